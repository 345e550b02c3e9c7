from math import isnan

import pytest
import torch
from golden_values import CPU, METRICS, assert_rounded, lesions
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import metrics

NAN = float("nan")


@pytest.mark.parametrize("name", METRICS)
def test_the_values_of_the_reference_code(name):
    METRICS[name](CPU)


# A 4 x 4 map of four 2 x 2 patches that score 9, 5, 5, 1 in reading order; the mask touches the third.
MAP = torch.tensor([[[9.0, 0, 0, 5], [0, 0, 0, 0], [5, 0, 0, 1], [0, 0, 0, 0]]])
MASK = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]])


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
    scores, order = metrics.rank_patches(maps, 3)
    assert (scores.tolist(), order.tolist()) == ([[1, 0, 0, 0]], [[3, 0, 1, 2]])
    scores, order = metrics.rank_patches(maps, 3, by="mean")
    assert (scores.tolist(), order.tolist()) == ([[0.25, 0, 0, 0]], [[3, 0, 1, 2]])
    assert metrics.rank_patches(maps, 9)[0].tolist() == [[1]]


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
    ceiling = metrics.topk_ceiling(masks, 12, 4)
    assert torch.allclose(metrics.topk_precision(masks.float(), masks, 12, 4), ceiling)
    assert ceiling[-1] == pytest.approx(metrics.topk_chance(masks, 4).item())  # all nine patches shown
    noise = torch.rand(400, 12, 12, generator=generator)
    assert metrics.topk_precision(noise, masks, 3, 4)[2] == pytest.approx(
        metrics.topk_chance(masks, 4).item(), abs=0.05
    )


def test_activation_by_hand():
    maps = torch.tensor([[[-3.0, 0], [1, 2]]]).repeat(2, 1, 1)
    masks = torch.tensor([[[0, 1], [0, 1]], [[0, 0], [0, 0]]])
    assert metrics.activation_precision(maps, masks).tolist() == pytest.approx([2 / 3, NAN], nan_ok=True)
    assert metrics.activation_sensitivity(maps, masks).tolist() == pytest.approx([1 / 2, NAN], nan_ok=True)
    for constant in (torch.full_like(maps, -1.0), torch.full_like(maps, 3.0)):
        assert metrics.activation_precision(constant, masks).isnan().all()
        assert metrics.activation_sensitivity(constant, masks).isnan().all()


def test_minimum_of_an_all_positive_map_is_its_zero():
    maps, masks = torch.tensor([[[1.0, 2, 3]]]), torch.tensor([[[0, 1, 0]]])
    assert metrics.activation_precision(maps, masks).item() == pytest.approx(0.5 / 1.5)


def test_pointing_game_by_hand():
    maps = torch.tensor([[[1.0, 2.0]], [[2, 1]], [[3, 3]], [[0, 0]], [[1, 2]]])
    masks = torch.tensor([[[0, 1]], [[0, 1]], [[0, 1]], [[1, 1]], [[0, 0]]])
    assert metrics.pointing_game(maps, masks).tolist() == pytest.approx([1, 0, NAN, NAN, NAN], nan_ok=True)
    tied = torch.tensor([[[3.0, 3, 0]], [[3, 3, 0]], [[3, 3, 3]], [[3, 3, 0]]])
    tied[2, 0, 1] = 0
    masks = torch.tensor([[[1, 1, 0]], [[0, 0, 1]], [[1, 1, 0]], [[0, 1, 1]]])
    assert metrics.pointing_game(tied, masks).tolist() == [1, 0, 0.5, 0.5]


def test_grid_pointing_game_by_hand():
    diseased = torch.tensor([[[1.0, -1], [0.003, 2]]])  # two elements above the threshold
    healthy = torch.tensor([[[1.0, -1], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 0]], [[0, 0], [0, 0]]])
    assert metrics.grid_pointing_game(diseased, healthy, picks=[[0, 1, 2]]) == 2 / (2 + 4)
    assert metrics.grid_pointing_game(diseased, healthy, picks=torch.tensor([[0, 1, 3]])) == 2 / (2 + 1)
    assert metrics.grid_pointing_game(diseased, healthy[:3], seed=5) == 2 / (
        2 + 4
    )  # three are drawn without repetition
    drawn = {metrics.grid_pointing_game(diseased, healthy, seed=seed) for seed in range(30)}
    assert drawn == {2 / 6, 2 / 5, 2 / 3}
    assert isnan(metrics.grid_pointing_game(diseased, healthy, picks=[[1, 1, 3]], threshold=2))


def test_proportions_of_zero_map():
    maps = torch.tensor([[[1.0, -2, -3, 0]], [[0, 0, 0, 0]]])
    assert metrics.positive_proportion(maps).tolist() == pytest.approx([0.25, NAN], nan_ok=True)
    assert metrics.negative_proportion(maps).tolist() == pytest.approx([0.5, NAN], nan_ok=True)


def test_overlapping_patches_by_hand():
    # stride 1: patches at columns 0, 1, 2 (the last not cut) score 9, 7, 7
    maps, masks = torch.tensor([[[9.0, 0, 7, 0], [0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 1], [0, 0, 0, 0]]])
    scores, order = metrics.rank_patches(maps, 2, stride=1)
    assert (scores.tolist(), order.tolist()) == ([[9, 7, 7]], [[0, 1, 2]])
    hits = metrics.topk_hits(maps, masks, 4, 2, stride=1)[0]
    assert hits.tolist() == pytest.approx([0, 1 / 2, 1 / 2, NAN], nan_ok=True)
    assert metrics.topk_precision(maps, masks, 3, 2, stride=1).tolist() == pytest.approx([0, 1 / 4, 1 / 3])
    assert metrics.topk_ceiling(masks, 2, 2, stride=1).tolist() == [1, 1 / 2]
    assert metrics.topk_chance(masks, 2, stride=1).item() == pytest.approx(1 / 3)
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
    for chosen in (slice(None), sick):
        pooled = metrics.topk_precision(maps[chosen], masks[chosen], stride=8)
        assert torch.allclose(pooled, hits[chosen].mean(0).cumsum(0) / torch.arange(1, 11))
    best = maps.flatten(1).argmax(1)  # the first patch is the first one on the grid that holds the peak
    scores, order = metrics.rank_patches(maps, 33, stride=8)
    assert torch.equal(scores[:, 0], maps.amax((1, 2)))
    row, column = (((at - 32).clamp(min=0) + 7) // 8 for at in (best // 512, best % 512))
    assert torch.equal(order[:, 0], row * 61 + column)  # 1 + ceil((512 - 33) / 8) = 61 patches a side


def slow_topk(maps, masks, k, patch, stride):
    """The definition again, one patch at a time."""
    shown, hit = [0] * k, [0] * k
    for image, mask in zip(maps.tolist(), masks.tolist(), strict=True):
        if not any(map(any, mask)):
            continue
        found = []
        for y in range(0, max(len(image) - patch, 0) + stride, stride):
            for x in range(0, max(len(image[0]) - patch, 0) + stride, stride):
                area = [
                    (i, j)
                    for i in range(y, min(y + patch, len(image)))
                    for j in range(x, min(x + patch, len(image[0])))
                ]
                found.append((-max(image[i][j] for i, j in area), y, x, any(mask[i][j] for i, j in area)))
        for rank, (score, *_) in enumerate(sorted(found)[:k]):
            tied = [touches for other, *_, touches in found if other == score]
            for upto in range(rank, k):
                shown[upto] += 1
                hit[upto] += sum(tied) / len(tied)
    return [h / s if s else NAN for h, s in zip(hit, shown, strict=True)]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6), patch=st.integers(1, 9), k=st.integers(1, 12), side=st.integers(2, 13), data=st.data()
)
def test_topk_against_loops(seed, patch, k, side, data):
    stride = data.draw(st.none() | st.integers(1, patch))
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(-3, 4, (4, side, side + 1), generator=generator).double()  # many ties
    masks = (torch.rand(4, side, side + 1, generator=generator) > 0.95).int()
    expected = slow_topk(maps, masks, k, patch, stride or patch)
    assert metrics.topk_precision(maps, masks, k, patch, stride=stride).tolist() == pytest.approx(expected, nan_ok=True)


PER_IMAGE = [
    lambda a, m: metrics.topk_hits(a, m, 4, 3),
    lambda a, m: metrics.topk_hits(a, m, 4, 3, stride=2),
    metrics.activation_precision,
    metrics.activation_sensitivity,
    metrics.pointing_game,
    lambda a, m: metrics.pompom(a.clamp(min=0), m),
    lambda a, m: metrics.positive_proportion(a),
]


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), power=st.integers(-6, 6))
@pytest.mark.parametrize("metric", PER_IMAGE)
def test_batch_order_chunks_precision_and_scale(metric, seed, power):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(5, 8, 7, generator=generator)
    masks = (torch.rand(5, 8, 7, generator=generator) > 0.9).int()
    whole, order = metric(maps, masks), torch.randperm(5, generator=generator)
    same = {"equal_nan": True, "rtol": 1e-5, "atol": 1e-6}
    assert torch.allclose(metric(maps[order], masks[order]), whole[order], **same)
    assert torch.allclose(torch.cat([metric(maps[i : i + 2], masks[i : i + 2]) for i in (0, 2, 4)]), whole, **same)
    assert torch.allclose(metric(maps.double(), masks.bool()).float(), whole, **same)
    assert torch.allclose(metric(maps * 2.0**power, masks), whole, **same)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.topk_precision(MAP[0], MASK[0]), r"maps: expected shape \(N, height, width\), got \(4, 4\)"),
        (
            lambda: metrics.topk_precision(MAP, MASK[:, None]),
            r"masks: expected shape \(1, 4, 4\) .* got \(1, 1, 4, 4\)",
        ),
        (
            lambda: metrics.activation_precision(MAP, MASK * 255),
            "masks: expected 0 and 1 only, got values from 0 to 255",
        ),
        (
            lambda: metrics.activation_precision(MAP.int(), MASK),
            "maps: expected floating-point values, got torch.int32",
        ),
        (lambda: metrics.topk_hits(MAP, MASK, k=0), "k: expected an integer of at least 1, got 0"),
        (lambda: metrics.topk_hits(MAP, MASK, patch=2.0), "patch: expected an integer of at least 1, got 2.0"),
        (lambda: metrics.topk_hits(MAP, MASK, patch=2, stride=0), "stride: expected an integer of at least 1, got 0"),
        (lambda: metrics.rank_patches(MAP, 2, stride=3), "stride: expected at most patch = 2, .* got 3"),
        (lambda: metrics.pompom(-MAP, MASK), "z: expected values of at least 0, got -9.0"),
        (lambda: metrics.rank_patches(MAP, 2, by="sum"), "by: expected 'max' or 'mean', got 'sum'"),
        (lambda: metrics.grid_pointing_game(MAP, MAP), "healthy: expected at least 3 maps to fill a 2x2 grid, got 1"),
        (lambda: metrics.grid_pointing_game(MAP, MAP[:, :2]), r"healthy: expected maps of \(4, 4\), got \(2, 4\)"),
        (lambda: metrics.grid_pointing_game(MAP, MAP, [[0, 0, 1]]), r"picks: expected values in 0..0, got 0..1"),
        (lambda: metrics.grid_pointing_game(MAP, MAP, [[0, 0]]), r"picks: expected integers of shape \(1, 3\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
