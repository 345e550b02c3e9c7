from itertools import pairwise, permutations
from math import isnan, nan

import pytest
import torch
import torch.nn.functional as F
from golden_values import OF_METRICS, boxes, field
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import metrics as m

SEEDS, EVIDENCE = st.integers(0, 10**6), torch.tensor(list(OF_METRICS["evidence"].values()))


def lesions(sick=False):
    """Maps (N, 512, 512) and masks of the reference code, all or of the images that are predicted to be diseased."""
    maps = F.interpolate(EVIDENCE[:, None], size=(512, 512), mode="bicubic", align_corners=False)[:, 0]
    kept = torch.tensor(OF_METRICS["pred"]) >= int(sick)
    return maps[kept], boxes(OF_METRICS["mask_boxes_yxhw"], 512)[kept]


@pytest.mark.parametrize(
    ("found", "name", "digits"),  # to which the reference values are rounded
    [
        (lambda: m.topk_precision(*lesions()), "topk_nonoverlap_precision_ps33", 3),
        (lambda: m.topk_precision(*lesions(sick=True)), "topk_nonoverlap_precision_ps33_true_positives", 3),
        (lambda: m.topk_precision(*lesions(), threshold=1.0), "topk_nonoverlap_precision_ps33_thresh1", 3),
        (lambda: m.activation_precision(*lesions()), "activation_precision", 4),
        (lambda: m.activation_sensitivity(*lesions()), "activation_sensitivity", 4),
        (lambda: m.pompom(*field()), "pompom", 12),
    ],
)
def test_the_values_of_the_reference_code(found, name, digits):
    assert found().tolist() == pytest.approx(OF_METRICS[name], rel=0, abs=0.501 * 10**-digits)


def test_the_proportions_are_the_reference_codes():
    share = m.positive_proportion(EVIDENCE)
    assert share.tolist() == list(OF_METRICS["positive_proportion_per_image"].values())
    assert torch.equal(m.negative_proportion(EVIDENCE), 1 - share)  # no exact zero in these maps


def test_the_order_of_patches_is_the_reference_codes():
    scores, order = m.rank_patches(lesions()[0], 33)
    for image, expected in enumerate(OF_METRICS["nonoverlap_patch_order_first10"].values()):
        found = [[int(p) // 16 * 33, int(p) % 16 * 33] for p in order[image, :10]]
        assert found == [[int(y), int(x)] for y, x, _ in expected]
        assert scores[image, :10].tolist() == pytest.approx([score for *_, score in expected], abs=2e-5)


def test_the_grid_pointing_game_is_the_reference_codes():
    healthy = OF_METRICS["healthy_evidence"]
    picks = [[list(healthy).index(name) for name in row] for row in OF_METRICS["grid_pointing_game_picks"]]
    value = m.grid_pointing_game(EVIDENCE, torch.tensor(list(healthy.values())), picks=picks)
    assert value == OF_METRICS["grid_pointing_game_sensitivity_thresh0.003"]


# A 4 x 4 map of four 2 x 2 patches that score 9, 5, 5, 1 in reading order; the mask touches the third.
MAP = torch.tensor([[[9.0, 0, 0, 5], [0, 0, 0, 0], [5, 0, 0, 1], [0, 0, 0, 0]]])
MASK = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]])


def test_topk_by_hand():
    hits = m.topk_hits(MAP, MASK, k=6, patch=2)
    assert hits[0].tolist() == pytest.approx([0, 1 / 2, 1 / 2, 0, nan, nan], nan_ok=True)  # two patches tie at 5
    assert m.topk_precision(MAP, MASK, k=5, patch=2).tolist() == pytest.approx([0, 1 / 4, 1 / 3, 1 / 4, 1 / 4])
    assert m.topk_precision(MAP, MASK, k=1, patch=2, threshold=9).isnan().all()
    both = torch.cat([MASK, torch.zeros_like(MASK)])  # an empty mask is left out
    assert m.topk_ceiling(both, 4, 2).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert m.topk_chance(both, 2).item() == 0.25
    assert m.topk_chance(MASK * 0, 2).isnan() and m.topk_ceiling(MASK * 0, 2, 2).isnan().all()


CORNER = [*[[0.0] * 5] * 4, [0.0, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("image", "patch", "options", "scores", "order"),
    [
        (CORNER, 3, {}, [1, 0, 0, 0], [3, 0, 1, 2]),
        (CORNER, 3, {"by": "mean"}, [1 / 4, 0, 0, 0], [3, 0, 1, 2]),  # a patch at the border has fewer pixels
        (CORNER, 9, {}, [1], [0]),
        ([[1.0, 2, 3, 4, 8]], 2, {"by": "mean"}, [8, 3.5, 1.5], [2, 1, 0]),  # the last is cut
    ],
)
def test_patches_by_hand(image, patch, options, scores, order):
    found = m.rank_patches(torch.tensor([image]), patch, **options)
    assert [values.tolist() for values in found] == [[scores], [order]]


def test_the_ceiling_is_reached_by_the_mask_itself_and_chance_by_random_maps():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(400, 12, 12, generator=generator) > 0.97).int()
    ceiling, chance = m.topk_ceiling(masks, 12, 4), m.topk_chance(masks, 4).item()
    assert torch.allclose(m.topk_precision(masks.float(), masks, 12, 4), ceiling)
    assert ceiling[-1] == pytest.approx(chance)  # all nine patches shown
    noise = torch.rand(400, 12, 12, generator=generator)
    assert m.topk_precision(noise, masks, 3, 4)[2] == pytest.approx(chance, abs=0.05)


def mean_hits(scores, hits):
    """Hit at each rank, the mean over every order of the places in which no score rises."""
    orders = [o for o in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(o))]
    return torch.tensor([[hits[place] for place in order] for order in orders]).double().mean(0)


def patches(image, mask, patch):
    """Maximum of each patch, and whether it touches the mask, by slices."""
    starts = [range(0, side, patch) for side in image.shape]
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
@given(seed=SEEDS, width=st.sampled_from([3, 6]), threshold=st.sampled_from([None, 0.0, 1.0]))
def test_topk_is_the_mean_over_all_orders_of_tied_patches(seed, width, threshold):
    maps, masks = tied_case(seed, 4, width)
    scores, touched = patches(maps[0], masks[0], 2)
    expected = mean_hits(scores, touched)[: sum(s > (-1 if threshold is None else threshold) for s in scores)]
    hits = m.topk_hits(maps, masks, 7, 2, threshold)[0]
    assert hits[: len(expected)].tolist() == pytest.approx(expected.tolist()) and hits[len(expected) :].isnan().all()
    precision = m.topk_precision(maps, masks, 7, 2, threshold)
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
    assert m.pointing_game(maps, masks).item() == pytest.approx(expected[0].item())
    accuracy = expected[: int(masks.sum())].mean().item()
    assert m.relevance_rank_accuracy(maps, masks).item() == pytest.approx(accuracy)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1.0])
@pytest.mark.parametrize("tile", [3, 4, 7, 16])
def test_equal_pixels_have_equal_means_in_whole_and_cut_tiles(value, tile):
    maps = torch.full((1, 23, 17), value)
    scores, order = m.rank_patches(maps, tile, by="mean")
    assert (scores == maps[0, 0, 0]).all() and order[0].tolist() == list(range(order.shape[1]))


SMALL, SMALL_MASK = [[4.0, 3], [-2, 1]], [[1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("metric", "image", "mask", "expected"),
    [
        (m.activation_precision, [[-3.0, 0], [1, 2]], [[0, 1], [0, 1]], 2 / 3),
        (m.activation_precision, [[1.0, 2, 3]], [[0, 1, 0]], 0.5 / 1.5),  # the minimum is its zero
        (m.activation_precision, [[3.0, 1, 1, 1]], [[1, 0, 0, 0]], 1),
        (m.activation_sensitivity, [[-3.0, 0], [1, 2]], [[0, 1], [0, 1]], 1 / 2),
        (m.weighting_game, [[3.0, 1, 1, 1]], [[1, 0, 0, 0]], 1 / 2),  # the ground counts here alone
        (m.weighting_game, SMALL, SMALL_MASK, 5 / 8),
        (m.weighting_game, [[-4.0, -3]], [[1, 0]], nan),
        (m.pointing_game, [[1.0, 2]], [[0, 1]], 1),
        (m.pointing_game, [[2.0, 1]], [[0, 1]], 0),
        (m.pointing_game, [[3.0, 0, 3]], [[1, 1, 0]], 1 / 2),
        (m.relevance_rank_accuracy, SMALL, SMALL_MASK, 2 / 3),  # chosen: 4, 3, 1
        (m.relevance_rank_accuracy, [[0.0, 0, 1, 0]], [[0, 1, 1, 1]], (1 + 4 / 3) / 3),  # the 1, two of the three 0
        (m.best_iou, SMALL, SMALL_MASK, 3 / 4),  # {4}: 1/3; {4, 3}: 1/4; {4, 3, 1}: 2/4; all: 3/4
        (m.best_iou, [[2.0, 2, 2, 0]], [[1, 0, 0, 0]], 1 / 3),  # the three enter together
    ],
)
def test_values_by_hand(metric, image, mask, expected):
    assert metric(torch.tensor([image]), torch.tensor([mask])).item() == pytest.approx(expected, nan_ok=True)


def test_grid_pointing_game_by_hand():
    diseased = torch.tensor([[[1.0, -1], [0.003, 2]]])  # two elements above the threshold
    healthy = torch.tensor([[[1.0, -1], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 0]], [[0, 0], [0, 0]]])
    assert m.grid_pointing_game(diseased, healthy, picks=[[0, 1, 2]]) == 2 / (2 + 4)
    assert m.grid_pointing_game(diseased, healthy[:3], seed=5) == 2 / (2 + 4)  # drawn without repetition
    assert m.grid_pointing_game(diseased * 0, healthy, picks=[[0, 1, 2]]) == 0
    drawn = {m.grid_pointing_game(diseased, healthy, seed=seed) for seed in range(30)}
    assert drawn == {2 / 6, 2 / 5, 2 / 3}
    assert isnan(m.grid_pointing_game(diseased, healthy, picks=[[1, 1, 3]], threshold=2))


def random_case(seed, n=5, height=6, width=5):
    """Maps with ties, negative values, a constant and an all-negative one; masks of which one is empty."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(-3, 5, (n, height, width), generator=generator).double() / 3
    maps[0], maps[1] = -1, maps[1] - 2
    masks = torch.rand(n, height, width, generator=generator) > 0.7
    masks[2] = False
    return maps, masks


def again(image, mask):
    """Two definitions of one image: weighting game, best IoU."""

    def iou(values, t):
        return (((values >= t) & mask).sum() / ((values >= t) | mask).sum()).item()

    if not mask.any():
        return [nan] * 2
    positive = image.clamp(min=0)
    weighted = (positive[mask].sum() / positive.sum()).item()
    if image.min() == image.max():
        return [weighted, nan]
    return [weighted, max(iou(image, t) for t in image.unique())]


@settings(max_examples=40)
@given(seed=SEEDS)
def test_weighting_game_and_intersections_are_their_definitions_image_by_image(seed):
    maps, masks = random_case(seed)
    expected = [again(*pair) for pair in zip(maps, masks, strict=True)]
    found = torch.stack([m.weighting_game(maps, masks), m.best_iou(maps, masks)], 1)
    assert found.flatten().tolist() == pytest.approx([v for row in expected for v in row], nan_ok=True)


def test_pompom_by_hand():
    z = torch.tensor([[[0.5, 0.0], [0.1, 0.2]]]).repeat(3, 1, 1)
    z[1] = 0
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 0], [0, 0]], [[1, 1], [1, 1]]])
    assert m.pompom(z, masks, eps=0)[:2].tolist() == pytest.approx([2 / 3, 0])
    curve = m.pompom_curve(z, masks, eps=[0, 0.15, 0.3, 0.5])
    assert curve[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert curve[1:].tolist() == [[0, 0, 0, 0]] * 2  # nothing open, nothing outside


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.topk_hits(MAP[0], MASK[0]), r"maps: expected floats of shape \(N, .*, got torch.float32 of \(4, 4"),
        (lambda: m.best_iou(MAP, MASK[:, None]), r"masks: expected shape \(1, 4, 4\) to match maps, .* \(1, 1, 4, 4\)"),
        (lambda: m.topk_chance(MASK * 255), "masks: expected 0 and 1 only, got .0, 255."),
        (lambda: m.topk_hits(MAP, MASK, patch=0), "patch: expected at least 1, got 0"),
        (lambda: m.pompom(-MAP, MASK), r"z: expected values of at least 0, got \[-9.0\]"),
        (lambda: m.grid_pointing_game(MAP, MAP), "picks: expected 3 of the 1 healthy maps for each of 1"),
        (lambda: m.grid_pointing_game(MAP, MAP[:, :2]), r"healthy: expected maps of \(4, 4\), .* \(1, 2, 4\)"),
    ],
)
def test_wrong_arguments_are_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
