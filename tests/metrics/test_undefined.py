"""A map with a pixel that is not finite is undefined: NaN for that image in every metric, the others untouched."""

import inspect

import pytest
import torch

from lib import metrics as m

N = 4
SEEDED = torch.Generator().manual_seed(0)
MAPS = torch.rand(N, 8, 8, generator=SEEDED)
MASKS = torch.rand(N, 8, 8, generator=SEEDED) > 0.7
IMAGES = torch.rand(N, 1, 8, 8, generator=SEEDED)
TARGETS = torch.tensor([0, 1, 0, 1])
SICK = torch.tensor([True, True, False, False])


def predict(images):
    mean = images.mean((1, 2, 3))
    return torch.stack([mean, 1 - mean], 1)


def judged(metric, **options):
    return lambda maps, rows: metric(predict, IMAGES[rows], maps, TARGETS[rows], **options)


def masked(metric, **options):
    return lambda maps, rows: metric(maps, MASKS[rows], **options)


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
    "iou_curve": masked(m.iou_curve, thresholds=torch.tensor([0.0, 0.5])),
    "best_shared_iou": lambda maps, rows: m.best_shared_iou(maps, MASKS[rows]).iou,
    "rank_patches": lambda maps, rows: m.rank_patches(maps, 3)[0],
    "positive_proportion": lambda maps, rows: m.positive_proportion(maps),
    "negative_proportion": lambda maps, rows: m.negative_proportion(maps),
    "local_to_global_consistency": lambda maps, rows: m.local_to_global_consistency(maps, SICK[rows]).positive,
    "gini": lambda maps, rows: m.gini(maps),
    "near_zero_proportion": lambda maps, rows: m.near_zero_proportion(maps),
    "map_correlation": lambda maps, rows: m.map_correlation(maps, MAPS[rows]),
    "stability": lambda maps, rows: m.stability(lambda x: x[:, 0], IMAGES[rows], maps),
    "flip_equivariance": lambda maps, rows: m.flip_equivariance(lambda x: x[:, 0], IMAGES[rows], maps),
    "completeness": lambda maps, rows: m.completeness(maps, torch.ones(len(maps))),
    "perturbation_curve": judged(m.perturbation_curve, tile=3, steps=4),
    "perturbation_grid": lambda *given: judged(m.perturbation_grid, tiles=[4], steps=2)(*given)[4, "black"],
    "deletion_probability": judged(m.deletion_probability, tile=3),
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
    functions = {name: inspect.signature(f) for name in m.__all__ if inspect.isfunction(f := getattr(m, name))}
    of_maps = {name for name, found in functions.items() if {"maps", "z", "diseased"} & set(found.parameters)}
    assert of_maps == set(PER_IMAGE) | set(POOLED) | {"grid_pointing_game"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", PER_IMAGE)
def test_one_undefined_map_is_nan_and_leaves_the_others(name, value):
    maps, rest = MAPS.clone(), torch.tensor([0, 2, 3])
    maps[1, 3, 4] = value
    found, alone = PER_IMAGE[name](maps, torch.arange(N)), PER_IMAGE[name](MAPS[rest], rest)
    assert found[1].isnan().all()
    assert torch.allclose(found[rest], alone, equal_nan=True) and alone.isfinite().any()


@pytest.mark.parametrize("name", POOLED)
def test_pooled_metrics_leave_an_undefined_map_out(name):
    maps, rest = MAPS.clone(), torch.tensor([0, 2, 3])
    maps[1, 0, 0] = float("nan")
    alone = POOLED[name](MAPS[rest], rest)
    assert torch.allclose(POOLED[name](maps, torch.arange(N)), alone) and alone.isfinite().all()


def test_a_grid_with_an_undefined_map_is_left_out():
    diseased, healthy, picks = MAPS[:3].clone(), MAPS.clone(), torch.tensor([[0, 1, 2], [0, 1, 2], [1, 2, 3]])
    diseased[0, 0, 0], healthy[3, 5, 5] = float("nan"), float("nan")
    found = m.grid_pointing_game(diseased, healthy, picks, threshold=0.5)
    assert found == m.grid_pointing_game(MAPS[1:2], MAPS, picks[1:2], threshold=0.5)
    assert found != m.grid_pointing_game(MAPS[:3], MAPS, picks, threshold=0.5)


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_an_undefined_map_of_a_noisy_or_flipped_image_counts_as_undefined(kind):
    def explain(images):
        maps = images[:, 0].clone()
        maps[2, 0, 0] = float("inf")
        return maps

    for found in (
        m.stability(explain, IMAGES, IMAGES[:, 0], kind=kind),
        m.flip_equivariance(explain, IMAGES, IMAGES[:, 0], kind=kind),
        m.map_correlation(IMAGES[:, 0], explain(IMAGES), kind),
    ):
        assert found.isnan().tolist() == [False, False, True, False]


def test_only_undefined_maps_are_only_nan():
    maps = torch.full_like(MAPS, float("nan"))
    for metric in PER_IMAGE.values():
        assert metric(maps, torch.arange(N)).isnan().all()
    assert POOLED["topk_precision"](maps, torch.arange(N)).isnan().all()
    assert m.grid_pointing_game(maps, MAPS) != m.grid_pointing_game(maps, MAPS)
