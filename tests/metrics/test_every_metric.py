"""What holds for every metric of maps: an image counts for itself alone, in any batch, precision and unit of its map;
what is undefined for one image is NaN for that image, the others untouched: a map with a pixel that is not finite, a
constant or empty map where a metric needs more, an image without an annotated region."""

import inspect
from math import inf, isnan, nan

import pytest
import torch
from perturbing import in_batches, mean_predict

from lib import metrics as m
from lib.metrics import localisation

N, EMPTY = 4, 4
SEEDED = torch.Generator().manual_seed(0)
MAPS = torch.rand(N, 8, 8, generator=SEEDED)
MASKS = torch.cat([torch.rand(N, 8, 8, generator=SEEDED) > 0.7, torch.zeros(1, 8, 8, dtype=torch.bool)])
IMAGES = torch.rand(N, 1, 8, 8, generator=SEEDED)
TARGETS = torch.tensor([0, 1, 0, 1])
EVERYTHING, REST = torch.arange(N), torch.tensor([0, 2, 3])


def judged(metric, **options):
    return lambda maps, rows: metric(mean_predict, IMAGES[rows], maps, TARGETS[rows], **options)


def masked(metric, **options):
    return lambda maps, rows: metric(maps, MASKS[rows], **options)


def alone(metric, **options):
    return lambda maps, rows: metric(maps, **options)


def explained(metric):
    return lambda maps, rows: metric(lambda x: x[:, 0], IMAGES[rows], maps)


OF_REGIONS = {
    "topk_hits": masked(m.topk_hits, k=3, patch=3),
    "activation_precision": masked(m.activation_precision),
    "activation_sensitivity": masked(m.activation_sensitivity),
    "pompom": masked(m.pompom),
    "pompom_curve": masked(m.pompom_curve),
    "pointing_game": masked(m.pointing_game),
    "weighting_game": masked(m.weighting_game),
    "relevance_rank_accuracy": masked(m.relevance_rank_accuracy),
    "best_iou": masked(m.best_iou),
}
PER_IMAGE = OF_REGIONS | {
    "rank_patches": lambda maps, rows: m.rank_patches(maps, 3)[0],
    "positive_proportion": alone(m.positive_proportion),
    "negative_proportion": alone(m.negative_proportion),
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
    "road": judged(m.road, shares=(0.2, 0.6)),
}
POOLED = {
    "topk_precision": masked(m.topk_precision, k=3, patch=3),
    "deletion_curve": judged(m.deletion_curve, k=4, patch=3),
}
OF_SIZE = ("weighting_game", "positive_proportion", "negative_proportion", "gini")
OF_DIFFERENCES = (
    *("activation_precision", "activation_sensitivity", "pointing_game", "relevance_rank_accuracy", "best_iou"),
    *("map_correlation", "stability", "flip_equivariance"),
)
SORTING = ("topk_hits", "relevance_rank_accuracy", "best_iou", "gini", "map_correlation")
UNDEFINED = {  # what the second map is given -> where, and which metrics of it are undefined then
    **dict.fromkeys((nan, inf, -inf), ((1, 3, 4), PER_IMAGE)),
    0.3: (1, OF_DIFFERENCES),
    0.0: (1, OF_SIZE),
}


def test_every_metric_of_maps_is_here():
    functions = {name: inspect.signature(function) for name, function in inspect.getmembers(m, inspect.isfunction)}
    of_maps = {name for name, found in functions.items() if {"maps", "z", "diseased"} & set(found.parameters)}
    assert of_maps == set(PER_IMAGE) | set(POOLED) | {"grid_pointing_game"}


@pytest.mark.parametrize("name", PER_IMAGE)
def test_batch_order_precision_and_scale_do_not_matter(name):
    metric, order = PER_IMAGE[name], torch.tensor([2, 0, 3, 1])
    maps = MAPS.clone()
    maps[0] = (4 * maps[0]).round() / 4  # of few values
    whole, same = metric(maps, EVERYTHING), {"equal_nan": True, "rtol": 1e-5, "atol": 1e-5}
    assert torch.allclose(metric(maps[order], order), whole[order], **same)
    assert torch.allclose(torch.cat([metric(maps[rows], rows) for rows in EVERYTHING.split(3)]), whole, **same)
    assert torch.allclose(metric(maps.double(), EVERYTHING).to(whole.dtype), whole, **same)
    for size in (1, 5):
        with in_batches(size):
            assert torch.allclose(metric(maps, EVERYTHING), whole, **same)
    if name not in ("completeness", "pompom_curve", "rank_patches"):
        assert torch.allclose(metric(maps * 2.0**-6, EVERYTHING), whole, **same)


@pytest.mark.parametrize("name", SORTING)
@pytest.mark.parametrize("rows", [1, 2])
def test_pixels_are_sorted_of_so_many_maps_at_a_time_as_memory_holds(name, rows, monkeypatch):
    metric, sort, sizes, pixels = PER_IMAGE[name], torch.Tensor.sort, [], MAPS[0].numel()
    whole = metric(MAPS, EVERYTHING)
    assert metric(MAPS[:0], EVERYTHING[:0]).shape == (0, *whole.shape[1:])
    monkeypatch.setattr(localisation, "PART", rows * pixels + pixels // 2)
    monkeypatch.setattr(torch.Tensor, "sort", lambda x, *a, **more: sizes.append(len(x)) or sort(x, *a, **more))
    torch.testing.assert_close(metric(MAPS, EVERYTHING), whole)
    assert max(sizes) == rows


@pytest.mark.parametrize(
    ("name", "value", "place"), [(name, value, place) for value, (place, names) in UNDEFINED.items() for name in names]
)
def test_one_undefined_map_is_nan_and_leaves_the_others(name, value, place):
    maps, metric = MAPS.clone(), PER_IMAGE[name]
    maps[place] = value
    found, expected = metric(maps, EVERYTHING), metric(MAPS[REST], REST)
    assert found[1].isnan().all()
    assert torch.allclose(found[REST], expected, equal_nan=True) and expected.isfinite().any()
    assert metric(maps * torch.nan, EVERYTHING).isnan().all()


@pytest.mark.parametrize("name", OF_REGIONS)
def test_an_image_without_a_region_is_nan_and_leaves_the_others(name):
    found = OF_REGIONS[name](MAPS, torch.tensor([0, EMPTY, 2, 3]))
    assert found[1].isnan().all()
    assert torch.allclose(found[REST], OF_REGIONS[name](MAPS[REST], REST), equal_nan=True)


@pytest.mark.parametrize("name", POOLED)
def test_pooled_metrics_leave_an_undefined_map_and_an_image_without_a_region_out(name):
    maps, expected = MAPS.clone(), POOLED[name](MAPS[REST], REST)
    maps[1, 0, 0] = nan
    assert torch.allclose(POOLED[name](maps, EVERYTHING), expected) and expected.isfinite().all()
    assert POOLED[name](maps * nan, EVERYTHING).isnan().all()
    if name != "deletion_curve":
        assert torch.allclose(POOLED[name](MAPS, torch.tensor([0, EMPTY, 2, 3])), expected)


def test_a_grid_with_an_undefined_map_is_left_out():
    diseased, healthy, picks = MAPS[:3].clone(), MAPS.clone(), torch.tensor([[0, 1, 2], [0, 1, 2], [1, 2, 3]])
    diseased[0, 0, 0], healthy[3, 5, 5] = nan, nan
    found = m.grid_pointing_game(diseased, healthy, picks, threshold=0.5)
    assert found == m.grid_pointing_game(MAPS[1:2], MAPS, picks[1:2], threshold=0.5)
    assert found != m.grid_pointing_game(MAPS[:3], MAPS, picks, threshold=0.5)
    assert isnan(m.grid_pointing_game(MAPS * nan, MAPS))


def test_an_undefined_map_of_a_noisy_or_flipped_image_counts_as_undefined():
    def explain(images):
        maps = images[:, 0].clone()
        maps[2, 0, 0] = inf
        return maps

    maps = IMAGES[:, 0]
    again = m.stability(explain, IMAGES, maps), m.flip_equivariance(explain, IMAGES, maps)
    for found in (*again, m.map_correlation(maps, explain(IMAGES))):
        assert found.isnan().tolist() == [False, False, True, False]
