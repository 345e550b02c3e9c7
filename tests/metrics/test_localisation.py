from itertools import pairwise, permutations
from math import isnan

import pytest
import torch
from golden_values import CPU, METRICS, assert_rounded, lesions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lib import metrics
from lib.metrics import best_iou, best_shared_iou, localisation, pompom, pompom_curve, relevance_rank_accuracy

NAN = float("nan")
SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize("name", METRICS)
def test_the_values_of_the_reference_code(name):
    METRICS[name](CPU)


# A 4 x 4 map of four 2 x 2 patches that score 9, 5, 5, 1 in reading order; the mask touches the third.
MAP = torch.tensor([[[9.0, 0, 0, 5], [0, 0, 0, 0], [5, 0, 0, 1], [0, 0, 0, 0]]])
MASK = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]])
SMALL, SMALL_MASK = torch.tensor([[[4.0, 3], [-2, 1]]]), torch.tensor([[[1, 0], [1, 1]]])


def test_topk_by_hand():
    hits = metrics.topk_hits(MAP, MASK, k=6, patch=2)
    assert hits[0].tolist() == pytest.approx([0, 1 / 2, 1 / 2, 0, NAN, NAN], nan_ok=True)  # two patches tie at 5
    assert metrics.topk_precision(MAP, MASK, k=5, patch=2).tolist() == pytest.approx([0, 1 / 4, 1 / 3, 1 / 4, 1 / 4])
    above = metrics.topk_hits(MAP, MASK, k=3, patch=2, threshold=5)
    assert above[0].tolist() == pytest.approx([0, NAN, NAN], nan_ok=True)
    assert metrics.topk_precision(MAP, MASK, k=1, patch=2, threshold=9).isnan().all()


def test_patches_at_the_border_are_cut():
    maps = torch.zeros(1, 5, 5)
    maps[0, 4, 4] = 1
    for by, highest in (("max", 1), ("mean", 0.25)):
        scores, order = metrics.rank_patches(maps, 3, by)
        assert (scores.tolist(), order.tolist()) == ([[highest, 0, 0, 0]], [[3, 0, 1, 2]])
    assert metrics.rank_patches(maps, 9)[0].tolist() == [[1]]


def test_overlapping_patches_by_hand():
    # stride 1: patches at columns 0, 1, 2 (the last not cut) score 9, 7, 7
    maps, masks = torch.tensor([[[9.0, 0, 7, 0], [0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 1], [0, 0, 0, 0]]])
    scores, order = metrics.rank_patches(maps, 2, stride=1)
    assert (scores.tolist(), order.tolist()) == ([[9, 7, 7]], [[0, 1, 2]])
    hits = metrics.topk_hits(maps, masks, 4, 2, stride=1)[0]
    assert hits.tolist() == pytest.approx([0, 1 / 2, 1 / 2, NAN], nan_ok=True)
    assert metrics.topk_precision(maps, masks, 3, 2, stride=1).tolist() == pytest.approx([0, 1 / 4, 1 / 3])
    assert metrics.rank_patches(maps, 5, stride=2)[0].tolist() == [[9]]  # one patch where it exceeds the image
    # five columns, patches of 3 at columns 0 and 2; of 2 with stride 2 the third, at column 4, is cut
    line = torch.tensor([[[1.0, 2, 3, 4, 8]]])
    assert metrics.rank_patches(line, 3, by="mean", stride=2)[0].tolist() == [[5, 2]]
    assert metrics.rank_patches(line, 2, by="mean", stride=2)[0].tolist() == [[8, 3.5, 1.5]]


def test_overlapping_patches_of_the_golden_maps():
    maps, masks, sick = lesions()
    side_by_side = metrics.topk_precision(maps[sick], masks[sick], stride=33)
    assert_rounded(side_by_side, "topk_nonoverlap_precision_ps33_true_positives")
    hits = metrics.topk_hits(maps, masks, stride=8)
    pooled = metrics.topk_precision(maps[sick], masks[sick], stride=8)
    assert torch.allclose(pooled, hits[sick].mean(0).cumsum(0) / torch.arange(1, 11))
    best = maps.flatten(1).argmax(1)  # the first patch is the first one on the grid that holds the peak
    row, column = (((at - 32).clamp(min=0) + 7) // 8 for at in (best // 512, best % 512))
    order = metrics.rank_patches(maps, 33, stride=8)[1]
    assert torch.equal(order[:, 0], row * 61 + column)  # 1 + ceil((512 - 33) / 8) = 61 patches a side


def test_empty_masks_are_left_out_and_not_misses():
    maps, masks = MAP.repeat(2, 1, 1), torch.cat([MASK, torch.zeros_like(MASK)])
    assert torch.equal(metrics.topk_precision(maps, masks, 4, 2), metrics.topk_precision(MAP, MASK, 4, 2))
    assert metrics.topk_hits(maps, masks, 4, 2)[1].isnan().all()
    assert metrics.topk_precision(MAP, MASK * 0, 3, 2).isnan().all()
    assert metrics.topk_ceiling(masks, 4, 2).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert metrics.topk_chance(masks, 2).item() == 0.25
    assert metrics.topk_chance(MASK * 0, 2).isnan() and metrics.topk_ceiling(MASK * 0, 2, 2).isnan().all()


def test_ceiling_is_reached_by_the_mask_itself_and_chance_by_random_maps():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(400, 12, 12, generator=generator) > 0.97).int()
    ceiling, chance = metrics.topk_ceiling(masks, 12, 4), metrics.topk_chance(masks, 4).item()
    assert torch.allclose(metrics.topk_precision(masks.float(), masks, 12, 4), ceiling)
    assert ceiling[-1] == pytest.approx(chance)  # all nine patches shown
    noise = torch.rand(400, 12, 12, generator=generator)
    assert metrics.topk_precision(noise, masks, 3, 4)[2] == pytest.approx(chance, abs=0.05)


def orders(scores):
    """Every order of the places in which no score rises."""
    places = permutations(range(len(scores)))
    return [order for order in places if all(scores[a] >= scores[b] for a, b in pairwise(order))]


def mean_hits(scores, hits):
    """Hit at each rank, the mean over all orders of the tied places."""
    return torch.tensor([[hits[place] for place in order] for order in orders(scores)]).double().mean(0)


def patches(image, mask, patch, stride):
    """Maximum of each patch, and whether it touches the mask, by slices."""
    starts = [range(0, max(side - patch, 0) + stride, stride) for side in image.shape]
    parts = [(slice(y, y + patch), slice(x, x + patch)) for y in starts[0] for x in starts[1]]
    return [image[part].max().item() for part in parts], [float(mask[part].any()) for part in parts]


def tied_case(seed, *size):
    """A map of few values, so that most places tie, and a mask that is neither empty nor full."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 3, size, generator=generator).double()
    masks = torch.rand(size, generator=generator) > 0.6
    masks[0, 0], masks[-1, -1] = True, False
    return maps[None], masks[None]


@settings(max_examples=60)
@given(seed=SEEDS, stride=st.sampled_from([None, 2, 1]), threshold=st.sampled_from([None, 0.0, 1.0]))
def test_topk_is_the_mean_over_all_orders_of_tied_patches(seed, stride, threshold):
    maps, masks = tied_case(seed, 4, 6 if stride is None else 4 if stride == 2 else 3)
    scores, touched = patches(maps[0], masks[0], 2, stride or 2)
    expected = mean_hits(scores, touched)[: sum(s > (-1 if threshold is None else threshold) for s in scores)]
    hits = metrics.topk_hits(maps, masks, 7, 2, threshold, stride)[0]
    assert hits[: len(expected)].tolist() == pytest.approx(expected.tolist()) and hits[len(expected) :].isnan().all()
    precision = metrics.topk_precision(maps, masks, 7, 2, threshold, stride)
    for k in range(1, len(expected) + 1):
        assert precision[k - 1].item() == pytest.approx(expected[:k].mean().item())


@settings(max_examples=60)
@given(seed=SEEDS)
def test_pixels_tie_in_the_pointing_game_and_in_rank_accuracy(seed):
    maps, masks = tied_case(seed, 2, 3)
    maps[0, 0, 0] = 3 * (seed % 2)
    maps[0, 1, 1] = 1
    if maps.unique().numel() == 1:
        maps[0, 0, 1] = 2
    expected = mean_hits(maps.flatten().tolist(), masks.flatten().float().tolist())
    size = int(masks.sum())
    assert metrics.pointing_game(maps, masks).item() == pytest.approx(expected[0].item())
    assert metrics.topk_precision(maps, masks, 1, 1).item() == pytest.approx(expected[0].item())
    assert relevance_rank_accuracy(maps, masks).item() == pytest.approx(expected[:size].mean().item())


def test_a_saturated_map_is_not_scored_by_the_place_of_its_pixels():
    maps, masks = torch.zeros(2, 8, 8), torch.zeros(2, 8, 8)
    maps[:, 2:6, 2:6] = 1.0
    masks[0, 2:4, 2:4], masks[1, 4:6, 4:6] = 1, 1  # the first and the last of four patches that share the maximum
    assert metrics.topk_hits(maps, masks, 5, 2).tolist() == [[0.25] * 4 + [0]] * 2
    assert metrics.pointing_game(maps, masks).tolist() == [0.25, 0.25]
    assert relevance_rank_accuracy(maps, masks).tolist() == [0.25, 0.25]


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1.0])
@pytest.mark.parametrize("tile", [3, 4, 7, 16])
def test_equal_pixels_have_equal_means_in_whole_and_cut_tiles(value, tile):
    maps = torch.full((1, 23, 17), value)
    scores, order = metrics.rank_patches(maps, tile, by="mean")
    assert (scores == maps[0, 0, 0]).all() and order[0].tolist() == list(range(order.shape[1]))


def test_activation_by_hand():
    maps = torch.tensor([[[-3.0, 0], [1, 2]]]).repeat(2, 1, 1)
    masks = torch.tensor([[[0, 1], [0, 1]], [[0, 0], [0, 0]]])
    assert metrics.activation_precision(maps, masks).tolist() == pytest.approx([2 / 3, NAN], nan_ok=True)
    assert metrics.activation_sensitivity(maps, masks).tolist() == pytest.approx([1 / 2, NAN], nan_ok=True)
    for constant in (torch.full_like(maps, -1.0), torch.full_like(maps, 3.0)):
        assert metrics.activation_precision(constant, masks).isnan().all()
        assert metrics.activation_sensitivity(constant, masks).isnan().all()
    maps, masks = torch.tensor([[[1.0, 2, 3]]]), torch.tensor([[[0, 1, 0]]])  # the minimum is its zero
    assert metrics.activation_precision(maps, masks).item() == pytest.approx(0.5 / 1.5)


def test_weighting_game_by_hand():
    assert metrics.weighting_game(SMALL, SMALL_MASK).item() == 5 / 8
    assert metrics.weighting_game(-SMALL.abs(), SMALL_MASK).isnan()
    assert metrics.weighting_game(SMALL, SMALL_MASK * 0).isnan()
    assert metrics.weighting_game(SMALL, torch.ones_like(SMALL_MASK)).item() == 1
    ground, masks = torch.tensor([[[3.0, 1, 1, 1]]]), torch.tensor([[[1, 0, 0, 0]]])  # counts here alone
    assert metrics.weighting_game(ground, masks).item() == 0.5
    assert metrics.activation_precision(ground, masks).item() == 1


def test_pointing_game_by_hand():
    maps = torch.tensor([[[1.0, 2.0]], [[2, 1]], [[3, 3]], [[0, 0]], [[1, 2]]])
    masks = torch.tensor([[[0, 1]], [[0, 1]], [[0, 1]], [[1, 1]], [[0, 0]]])
    assert metrics.pointing_game(maps, masks).tolist() == pytest.approx([1, 0, NAN, NAN, NAN], nan_ok=True)
    tied = torch.tensor([[[3.0, 3, 0]], [[3, 3, 0]], [[3, 0, 3]], [[3, 3, 0]]])
    masks = torch.tensor([[[1, 1, 0]], [[0, 0, 1]], [[1, 1, 0]], [[0, 1, 1]]])
    assert metrics.pointing_game(tied, masks).tolist() == [1, 0, 0.5, 0.5]


def test_grid_pointing_game_by_hand():
    diseased = torch.tensor([[[1.0, -1], [0.003, 2]]])  # two elements above the threshold
    healthy = torch.tensor([[[1.0, -1], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 0]], [[0, 0], [0, 0]]])
    assert metrics.grid_pointing_game(diseased, healthy, picks=[[0, 1, 2]]) == 2 / (2 + 4)
    assert metrics.grid_pointing_game(diseased, healthy, picks=torch.tensor([[0, 1, 3]])) == 2 / (2 + 1)
    assert metrics.grid_pointing_game(diseased, healthy[:3], seed=5) == 2 / (2 + 4)  # drawn without repetition
    drawn = {metrics.grid_pointing_game(diseased, healthy, seed=seed) for seed in range(30)}
    assert drawn == {2 / 6, 2 / 5, 2 / 3}
    assert isnan(metrics.grid_pointing_game(diseased, healthy, picks=[[1, 1, 3]], threshold=2))


def test_proportions_of_zero_map():
    maps = torch.tensor([[[1.0, -2, -3, 0]], [[0, 0, 0, 0]]])
    assert metrics.positive_proportion(maps).tolist() == pytest.approx([0.25, NAN], nan_ok=True)
    assert metrics.negative_proportion(maps).tolist() == pytest.approx([0.5, NAN], nan_ok=True)


def test_rank_accuracy_by_hand():
    assert relevance_rank_accuracy(SMALL, SMALL_MASK).item() == pytest.approx(2 / 3)  # chosen: 4, 3, 1
    assert relevance_rank_accuracy(-SMALL, SMALL_MASK).item() == pytest.approx(2 / 3)  # chosen: -2, 1, 3
    tied = torch.tensor([[[0.0, 0, 1, 0]]]).repeat(2, 1, 1)
    masks = torch.tensor([[[1, 0, 0, 1]], [[0, 1, 1, 1]]])  # chosen: the 1, then one or two of the three 0
    assert relevance_rank_accuracy(tied, masks).tolist() == pytest.approx([1 / 3, (1 + 4 / 3) / 3])
    assert relevance_rank_accuracy(torch.ones(1, 1, 4), masks[:1]).isnan()
    assert relevance_rank_accuracy(tied, masks * 0).isnan().all()


def test_best_iou_by_hand():
    # {4}: 1/3; {4, 3}: 1/4; {4, 3, 1}: 2/4; all: 3/4
    assert best_iou(SMALL, SMALL_MASK).item() == 3 / 4
    assert best_iou(SMALL, torch.tensor([[[1, 1], [0, 0]]])).item() == 1
    tied = torch.tensor([[[2.0, 2, 2, 0]]])  # the three enter together: 1/3, never 1/1
    assert best_iou(tied, torch.tensor([[[1, 0, 0, 0]]])).item() == pytest.approx(1 / 3)
    assert best_iou(torch.ones(1, 2, 2), SMALL_MASK).isnan() and best_iou(SMALL, SMALL_MASK * 0).isnan()


def iou_at(maps, masks, threshold):
    return best_shared_iou(maps, masks, torch.tensor([threshold], dtype=torch.float64)).iou


def test_best_shared_iou_by_hand():
    for threshold, expected in ((0, 3 / 4), (0.5, 2 / 4), (0.51, 1 / 4), (1, 1 / 3), (1.1, 0)):  # of 1, 5/6, 0, 1/2
        assert iou_at(SMALL, SMALL_MASK, threshold).item() == pytest.approx(expected)
    maps = torch.tensor([[[0.0, 1, 2, 4]], [[0, 10, 20, 40]], [[4, 0, 0, 0]], [[1, 1, 1, 1]]])
    masks = torch.tensor([[[0, 0, 1, 1]], [[0, 0, 0, 1]], [[0, 0, 0, 0]], [[1, 0, 0, 0]]])
    # at 1/4 < t <= 1/2: 1 and 1/2; at t > 1/2: 1/2 and 1; the lower is taken
    threshold, iou = best_shared_iou(maps, masks)
    assert threshold == pytest.approx(0.251) and iou.tolist() == pytest.approx([1, 0.5, NAN, NAN], nan_ok=True)
    coarse = best_shared_iou(maps, masks, torch.tensor([0.1, 0.9]))
    assert coarse.threshold == pytest.approx(0.9) and coarse.iou[:2].tolist() == [0.5, 1]
    nothing = best_shared_iou(maps[2:], masks[2:])
    assert isnan(nothing.threshold) and nothing.iou.isnan().all()


def random_case(seed, n=5, height=6, width=5):
    """Maps with ties, negative values, a constant and an all-negative one; masks of which one is empty."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(-3, 5, (n, height, width), generator=generator).double() / 3
    maps[0], maps[1] = -1, maps[1] - 2
    masks = torch.rand(n, height, width, generator=generator) > 0.7
    masks[2] = False
    return maps, masks


def slow_iou(image, mask, t):
    inside = sum(v >= t and m for v, m in zip(image, mask, strict=True))
    either = sum(v >= t or m for v, m in zip(image, mask, strict=True))
    return inside / either


def slow(image, mask):
    """Four definitions again, pixel by pixel: weighting game, rank accuracy, best IoU, IoU at half the range."""
    if not any(mask):
        return [NAN] * 4
    mass = sum(max(v, 0) for v in image)
    weighted = sum(max(v, 0) for v, m in zip(image, mask, strict=True) if m) / mass if mass else NAN
    if min(image) == max(image):
        return [weighted, NAN, NAN, NAN]
    last = sorted(image, reverse=True)[sum(mask) - 1]
    tied = [bool(m) for v, m in zip(image, mask, strict=True) if v == last]  # of these a share is chosen
    share = (sum(mask) - sum(v > last for v in image)) / len(tied)
    accuracy = (sum(m for v, m in zip(image, mask, strict=True) if v > last) + share * sum(tied)) / sum(mask)
    scaled = [(v - min(image)) / (max(image) - min(image)) for v in image]
    return [weighted, accuracy, max(slow_iou(image, mask, t) for t in set(image)), slow_iou(scaled, mask, 0.5)]


@settings(max_examples=40)
@given(seed=SEEDS)
def test_against_loops(seed):
    maps, masks = random_case(seed)
    expected = [slow(a.flatten().tolist(), m.flatten().tolist()) for a, m in zip(maps, masks, strict=True)]
    found = [metric(maps, masks) for metric in (metrics.weighting_game, relevance_rank_accuracy, best_iou)]
    found = torch.stack([*found, iou_at(maps, masks, 0.5)], 1)
    assert found.flatten().tolist() == pytest.approx([v for row in expected for v in row], nan_ok=True)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_the_best_threshold_is_found_and_bounds_hold(seed):
    maps, masks = random_case(seed, n=6)
    best, (threshold, shared) = best_iou(maps, masks), best_shared_iou(maps, masks)
    known = ~best.isnan()
    assert torch.equal(known, ~shared.isnan())
    assert (shared[known] <= best[known] + 1e-12).all() and 0 <= threshold <= 1
    assert (best[known] >= masks[known].double().mean((1, 2)) - 1e-12).all() and (best[known] <= 1).all()
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        assert iou_at(maps, masks, t).nanmean() <= shared.nanmean() + 1e-12
    alone = best_shared_iou(maps[3:4], masks[3:4])  # for one image the fine grid is as good as every threshold
    assert alone.iou.tolist() == pytest.approx(best[3:4].tolist(), nan_ok=True)


def test_pompom_by_hand():
    z = torch.tensor([[[0.5, 0.0], [0.1, 0.2]]]).repeat(4, 1, 1)
    z[2] = 0
    masks = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]], [[1, 1], [1, 1]]])
    assert pompom(z[:3], masks[:3], eps=0).tolist() == pytest.approx([2 / 3, NAN, 0], nan_ok=True)  # nothing open: 0
    curve = pompom_curve(z, masks, eps=[0, 0.15, 0.3, 0.5])
    assert curve[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert curve[1].isnan().all() and curve[2:].tolist() == [[0, 0, 0, 0]] * 2


class Largest(TorchDispatchMode):
    """Records the elements of the largest tensor of 8 bytes an element that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_iter(made) if isinstance(t, torch.Tensor) and t.element_size() == 8]
        self.elements = max([self.elements, *sizes])
        return made


SORTING = {
    "topk_hits": lambda maps, masks: metrics.topk_hits(maps, masks, patch=2, stride=1),
    "relevance_rank_accuracy": relevance_rank_accuracy,
    "best_iou": best_iou,
    "best_shared_iou": lambda maps, masks: iou_at(maps, masks, 0.5),
    "gini": lambda maps, masks: metrics.gini(maps),
    "map_correlation": lambda maps, masks: metrics.map_correlation(maps, maps.flip(1)),
    "stability": lambda maps, masks: metrics.stability(lambda x: x.mean(1), maps[:, None], maps, samples=2),
}


@pytest.mark.parametrize("name", SORTING)
@pytest.mark.parametrize("rows", [1, 2])
def test_pixels_are_sorted_of_so_many_maps_at_a_time_as_memory_holds(name, rows, monkeypatch):
    maps, masks = random_case(3)
    maps[3, 0, 0] = torch.nan
    maps, function = maps.float(), SORTING[name]
    whole, none = function(maps, masks), function(maps[:0], masks[:0])
    assert none.shape == (0, *whole.shape[1:])
    pixels = maps[0].numel()
    monkeypatch.setattr(localisation, "PART", rows * pixels + pixels // 2)
    with Largest() as largest:
        found = function(maps, masks)
    torch.testing.assert_close(found, whole, rtol=1e-6 if name == "gini" else 0, atol=0, equal_nan=True)
    assert largest.elements <= rows * (pixels + 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: metrics.topk_precision(MAP[0], MASK[0]),
            r"maps: expected floats of shape \(N, height, width\), got torch.float32 of \(4, 4\)",
        ),
        (lambda: best_iou(MAP, MASK[:, None]), r"masks: expected shape \(1, 4, 4\) to match maps, .* \(1, 1, 4, 4\)"),
        (lambda: metrics.topk_chance(MASK * 255), "masks: expected 0 and 1 only, got .0, 255."),
        (lambda: metrics.activation_precision(MAP.int(), MASK), "maps: expected floats .*, got torch.int32 of"),
        (lambda: metrics.rank_patches(MAP, 2, stride=3), "stride: expected 1 to patch = 2, .* got 3"),
        (lambda: metrics.topk_hits(MAP, MASK, patch=0), "stride: expected 1 to patch = 0, .* got 0"),
        (lambda: pompom(-MAP, MASK), r"z: expected values of at least 0, got \[-9.0\]"),
        (lambda: metrics.grid_pointing_game(MAP, MAP), "picks: expected 3 of the 1 healthy maps for each of 1"),
        (lambda: metrics.grid_pointing_game(MAP, MAP[:, :2]), r"healthy: expected maps of \(4, 4\), .* \(1, 2, 4\)"),
        (lambda: metrics.grid_pointing_game(MAP, MAP, [[0, 0]]), r"picks: expected 3 of .*, got .* of \(1, 2\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
