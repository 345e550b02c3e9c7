import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lib.metrics import localisation
from lib.metrics.localisation import activation_precision, topk_hits
from lib.metrics.overlap import best_iou, best_shared_iou, iou_curve, relevance_rank_accuracy, weighting_game
from lib.metrics.properties import gini, map_correlation, stability

NAN = float("nan")
MAPS = torch.tensor([[[4.0, 3], [-2, 1]]])
MASKS = torch.tensor([[[1, 0], [1, 1]]])


def random_case(seed, n=5, height=6, width=5):
    """Maps with ties, negative values, a constant and an all-negative one; masks of which one is empty."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(-3, 5, (n, height, width), generator=generator).double() / 3
    maps[0], maps[1] = -1, maps[1] - 2
    masks = torch.rand(n, height, width, generator=generator) > 0.7
    masks[2] = False
    return maps, masks


def test_weighting_game_by_hand():
    assert weighting_game(MAPS, MASKS).item() == 5 / 8
    assert weighting_game(-MAPS.abs(), MASKS).isnan() and weighting_game(MAPS, MASKS * 0).isnan()
    assert weighting_game(MAPS, torch.ones_like(MASKS)).item() == 1


def test_a_positive_ground_counts_in_the_weighting_game_but_not_in_activation_precision():
    maps = torch.tensor([[[3.0, 1, 1, 1]]])
    masks = torch.tensor([[[1, 0, 0, 0]]])
    assert (weighting_game(maps, masks).item(), activation_precision(maps, masks).item()) == (0.5, 1)


def test_rank_accuracy_by_hand():
    assert relevance_rank_accuracy(MAPS, MASKS).item() == pytest.approx(2 / 3)  # chosen: 4, 3, 1
    assert relevance_rank_accuracy(-MAPS, MASKS).item() == pytest.approx(2 / 3)  # chosen: -2, 1, 3
    tied = torch.tensor([[[0.0, 0, 1, 0]]]).repeat(2, 1, 1)
    masks = torch.tensor([[[1, 0, 0, 1]], [[0, 1, 1, 1]]])  # chosen: the 1, then one or two of the three 0
    assert relevance_rank_accuracy(tied, masks).tolist() == pytest.approx([1 / 3, (1 + 4 / 3) / 3])
    assert relevance_rank_accuracy(torch.ones(1, 1, 4), masks[:1]).isnan()
    assert relevance_rank_accuracy(tied, masks * 0).isnan().all()


def test_best_iou_by_hand():
    # {4}: 1/3; {4, 3}: 1/4; {4, 3, 1}: 2/4; all: 3/4
    assert best_iou(MAPS, MASKS).item() == 3 / 4
    assert best_iou(MAPS, torch.tensor([[[1, 1], [0, 0]]])).item() == 1
    tied = torch.tensor([[[2.0, 2, 2, 0]]])  # the three enter together: 1/3, never 1/1
    assert best_iou(tied, torch.tensor([[[1, 0, 0, 0]]])).item() == pytest.approx(1 / 3)
    assert best_iou(torch.ones(1, 2, 2), MASKS).isnan() and best_iou(MAPS, MASKS * 0).isnan()


def test_iou_curve_by_hand():
    # scaled: 1, 5/6, 0, 1/2
    curve = iou_curve(MAPS, MASKS, torch.tensor([0, 0.5, 0.51, 1, 1.1]))
    assert curve[0].tolist() == pytest.approx([3 / 4, 2 / 4, 1 / 4, 1 / 3, 0])


def test_best_shared_iou_by_hand():
    maps = torch.tensor([[[0.0, 1, 2, 4]], [[0, 10, 20, 40]], [[4, 0, 0, 0]], [[1, 1, 1, 1]]])
    masks = torch.tensor([[[0, 0, 1, 1]], [[0, 0, 0, 1]], [[0, 0, 0, 0]], [[1, 0, 0, 0]]])
    # at 1/4 < t <= 1/2: 1 and 1/2; at t > 1/2: 1/2 and 1; the lower is taken
    threshold, iou = best_shared_iou(maps, masks)
    assert threshold == pytest.approx(0.251) and iou.tolist() == pytest.approx([1, 0.5, NAN, NAN], nan_ok=True)
    coarse = best_shared_iou(maps, masks, torch.tensor([0.1, 0.9]))
    assert coarse.threshold == pytest.approx(0.9) and coarse.iou[:2].tolist() == [0.5, 1]
    nothing = best_shared_iou(maps[2:], masks[2:])
    assert nothing.threshold != nothing.threshold and nothing.iou.isnan().all()


def slow_iou(image, mask, t):
    inside = sum(v >= t and m for v, m in zip(image, mask, strict=True))
    either = sum(v >= t or m for v, m in zip(image, mask, strict=True))
    return inside / either


def slow(image, mask):
    """The four definitions again, pixel by pixel: weighting game, rank accuracy, best IoU, IoU at half the range."""
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
@given(seed=st.integers(0, 10**6))
def test_against_loops(seed):
    maps, masks = random_case(seed)
    expected = [slow(a.flatten().tolist(), m.flatten().tolist()) for a, m in zip(maps, masks, strict=True)]
    half = iou_curve(maps, masks, torch.tensor([0.5]))[:, 0]
    found = torch.stack(
        [weighting_game(maps, masks), relevance_rank_accuracy(maps, masks), best_iou(maps, masks), half]
    )
    assert found.T.flatten().tolist() == pytest.approx([v for row in expected for v in row], nan_ok=True)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_the_best_threshold_is_found_and_bounds_hold(seed):
    maps, masks = random_case(seed, n=6)
    best, (threshold, shared) = best_iou(maps, masks), best_shared_iou(maps, masks)
    known = ~best.isnan()
    assert torch.equal(known, ~shared.isnan())
    assert (shared[known] <= best[known] + 1e-12).all() and 0 <= threshold <= 1
    assert (best[known] >= masks[known].double().mean((1, 2)) - 1e-12).all() and (best[known] <= 1).all()
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        curve = iou_curve(maps, masks, torch.tensor([t]))[:, 0]
        assert curve.nanmean() <= shared.nanmean() + 1e-12
    alone = best_shared_iou(maps[3:4], masks[3:4])  # for one image the fine grid is as good as every threshold
    assert alone.iou.tolist() == pytest.approx(best[3:4].tolist(), nan_ok=True)


PER_IMAGE = [
    weighting_game,
    relevance_rank_accuracy,
    best_iou,
    lambda a, m: iou_curve(a, m, torch.tensor([0.25, 0.7], dtype=torch.float64)),
]


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), power=st.integers(-6, 6))
@pytest.mark.parametrize("metric", PER_IMAGE)
def test_batch_order_chunks_precision_and_scale(metric, seed, power):
    maps, masks = random_case(seed)
    maps = maps.float()
    whole, order = metric(maps, masks), torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    same = {"equal_nan": True, "rtol": 1e-5, "atol": 1e-6}
    assert torch.allclose(metric(maps[order], masks[order]), whole[order], **same)
    assert torch.allclose(torch.cat([metric(maps[i : i + 2], masks[i : i + 2]) for i in (0, 2, 4)]), whole, **same)
    assert torch.allclose(metric(maps.double(), masks.int()).float(), whole, **same)
    assert torch.allclose(metric(maps * 2.0**power, masks), whole, **same)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
@pytest.mark.parametrize("metric", [relevance_rank_accuracy, best_iou])
def test_only_the_order_counts(metric, seed):
    maps, masks = random_case(seed)
    for monotone in (torch.exp, lambda a: a**3, lambda a: 5 * a - 2):
        assert torch.allclose(metric(monotone(maps), masks), metric(maps, masks), equal_nan=True)


@pytest.mark.parametrize("metric", [weighting_game, relevance_rank_accuracy, best_iou, best_shared_iou])
def test_shapes_are_checked(metric):
    with pytest.raises(ValueError, match=r"masks: expected shape \(1, 2, 2\) to match maps, got \(1, 2, 1\)"):
        metric(MAPS, MASKS[..., :1])


def test_thresholds_are_checked():
    for thresholds in (torch.tensor(0.5), torch.tensor([]), torch.tensor([NAN])):
        with pytest.raises(ValueError, match=r"thresholds: expected finite values of shape \(T,\), got"):
            iou_curve(MAPS, MASKS, thresholds)


class Largest(TorchDispatchMode):
    """Records the elements of the largest tensor of 8 bytes an element that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_iter(made) if isinstance(t, torch.Tensor) and t.element_size() == 8]
        self.elements = max([self.elements, *sizes])
        return made


SORTING = {
    "topk_hits": lambda maps, masks: topk_hits(maps, masks, patch=2, stride=1),
    "relevance_rank_accuracy": relevance_rank_accuracy,
    "best_iou": best_iou,
    "iou_curve": lambda maps, masks: iou_curve(maps, masks, torch.linspace(0, 1, 7)),
    "gini": lambda maps, masks: gini(maps),
    "spearman": lambda maps, masks: map_correlation(maps, maps.flip(1)),
    "stability": lambda maps, masks: stability(lambda x: x.mean(1), maps[:, None], maps, samples=2),
    "pearson": lambda maps, masks: map_correlation(maps, maps.flip(1), "pearson"),
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
