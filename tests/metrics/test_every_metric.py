"""What holds for every metric of maps: an image counts for itself alone, in any batch, precision and unit of its map;
a map with a pixel that is not finite is undefined: NaN for that image, the others untouched."""

import inspect
from math import isnan

import pytest
import torch
from perturbing import in_batches, mean_predict

from lib import metrics as m

N = 4
SEEDED = torch.Generator().manual_seed(0)
MAPS = torch.rand(N, 8, 8, generator=SEEDED)
MASKS = torch.rand(N, 8, 8, generator=SEEDED) > 0.7
IMAGES = torch.rand(N, 1, 8, 8, generator=SEEDED)
TARGETS = torch.tensor([0, 1, 0, 1])
SICK = torch.tensor([True, True, False, False])


def judged(metric, **options):
    return lambda maps, rows: metric(mean_predict, IMAGES[rows], maps, TARGETS[rows], **options)


def masked(metric, **options):
    return lambda maps, rows: metric(maps, MASKS[rows], **options)


def alone(metric, **options):
    return lambda maps, rows: metric(maps, **options)


def explained(metric):
    return lambda maps, rows: metric(lambda x: x[:, 0], IMAGES[rows], maps)


PER_IMAGE = {
    "topk_hits": masked(m.topk_hits, k=3, patch=3),
    "activation_precision": masked(m.activation_precision),
    "activation_sensitivity": masked(m.activation_sensitivity),
    "pompom": masked(m.pompom),
    "pompom_curve": masked(m.pompom_curve),
    "pointing_game": masked(m.pointing_game),
    "weighting_game": masked(m.weighting_game),
    "relevance_rank_accuracy": masked(m.relevance_rank_accuracy),
    "best_iou": masked(m.best_iou),
    "best_shared_iou": lambda maps, rows: m.best_shared_iou(maps, MASKS[rows], torch.tensor([0.5])).iou,
    "rank_patches": lambda maps, rows: m.rank_patches(maps, 3)[0],
    "positive_proportion": alone(m.positive_proportion),
    "negative_proportion": alone(m.negative_proportion),
    "local_to_global_consistency": lambda maps, rows: m.local_to_global_consistency(maps, SICK[rows]).positive,
    "gini": alone(m.gini),
    "map_correlation": lambda maps, rows: m.map_correlation(maps, MAPS[rows]),
    "stability": explained(m.stability),
    "flip_equivariance": explained(m.flip_equivariance),
    "completeness": lambda maps, rows: m.completeness(maps, torch.ones(len(maps))),
    "perturbation_curve": judged(m.perturbation_curve, tile=3, steps=4),
    "perturbation_grid": lambda *given: judged(m.perturbation_grid, steps={4: 2})(*given)[4, "black"],
    "insertion_curve": judged(m.insertion_curve, tile=3),
    "sufficiency": judged(m.sufficiency, tile=3),
    "deletion_hits": judged(m.deletion_hits, k=4, patch=3),
    "faithfulness_correlation": judged(m.faithfulness_correlation, subset=2, runs=6, tile=3),
    "road": judged(m.road, shares=(0.2, 0.6)),
}
POOLED = {
    "topk_precision": masked(m.topk_precision, k=3, patch=3),
    "deletion_curve": judged(m.deletion_curve, k=4, patch=3),
    "best_shared_iou": lambda maps, rows: torch.tensor(m.best_shared_iou(maps, MASKS[rows]).threshold),
}


def test_every_metric_of_maps_is_here():
    functions = {name: inspect.signature(function) for name, function in inspect.getmembers(m, inspect.isfunction)}
    of_maps = {name for name, found in functions.items() if {"maps", "z", "diseased"} & set(found.parameters)}
    assert of_maps == set(PER_IMAGE) | set(POOLED) | {"grid_pointing_game"}


@pytest.mark.parametrize("name", PER_IMAGE)
def test_batch_order_precision_and_scale_do_not_matter(name):
    metric, everything, order = PER_IMAGE[name], torch.arange(N), torch.tensor([2, 0, 3, 1])
    maps = MAPS.clone()
    maps[0] = (4 * maps[0]).round() / 4  # of few values
    whole, same = metric(maps, everything), {"equal_nan": True, "rtol": 1e-5, "atol": 1e-5}
    assert torch.allclose(metric(maps[order], order), whole[order], **same)
    assert torch.allclose(torch.cat([metric(maps[rows], rows) for rows in everything.split(3)]), whole, **same)
    assert torch.allclose(metric(maps.double(), everything).to(whole.dtype), whole, **same)
    for size in (1, 5):
        with in_batches(size):
            assert torch.allclose(metric(maps, everything), whole, **same)
    if name not in ("completeness", "pompom_curve", "rank_patches"):
        assert torch.allclose(metric(maps * 2.0**-6, everything), whole, **same)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", PER_IMAGE)
def test_one_undefined_map_is_nan_and_leaves_the_others(name, value):
    maps, rest = MAPS.clone(), torch.tensor([0, 2, 3])
    maps[1, 3, 4] = value
    found, alone = PER_IMAGE[name](maps, torch.arange(N)), PER_IMAGE[name](MAPS[rest], rest)
    assert found[1].isnan().all()
    assert torch.allclose(found[rest], alone, equal_nan=True) and alone.isfinite().any()
    assert PER_IMAGE[name](maps * torch.nan, torch.arange(N)).isnan().all()


@pytest.mark.parametrize("name", POOLED)
def test_pooled_metrics_leave_an_undefined_map_out(name):
    maps, rest = MAPS.clone(), torch.tensor([0, 2, 3])
    maps[1, 0, 0] = float("nan")
    alone = POOLED[name](MAPS[rest], rest)
    assert torch.allclose(POOLED[name](maps, torch.arange(N)), alone) and alone.isfinite().all()
    assert POOLED[name](maps * torch.nan, torch.arange(N)).isnan().all()


def test_a_grid_with_an_undefined_map_is_left_out():
    diseased, healthy, picks = MAPS[:3].clone(), MAPS.clone(), torch.tensor([[0, 1, 2], [0, 1, 2], [1, 2, 3]])
    diseased[0, 0, 0], healthy[3, 5, 5] = float("nan"), float("nan")
    found = m.grid_pointing_game(diseased, healthy, picks, threshold=0.5)
    assert found == m.grid_pointing_game(MAPS[1:2], MAPS, picks[1:2], threshold=0.5)
    assert found != m.grid_pointing_game(MAPS[:3], MAPS, picks, threshold=0.5)
    assert isnan(m.grid_pointing_game(MAPS * torch.nan, MAPS))


def test_an_undefined_map_of_a_noisy_or_flipped_image_counts_as_undefined():
    def explain(images):
        maps = images[:, 0].clone()
        maps[2, 0, 0] = float("inf")
        return maps

    for found in (
        m.stability(explain, IMAGES, IMAGES[:, 0]),
        m.flip_equivariance(explain, IMAGES, IMAGES[:, 0]),
        m.map_correlation(IMAGES[:, 0], explain(IMAGES)),
    ):
        assert found.isnan().tolist() == [False, False, True, False]
