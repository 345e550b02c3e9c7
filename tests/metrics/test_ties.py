from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import metrics
from lib.metrics.perturbation import tile_rank

ONE = torch.ones(1, dtype=torch.long)


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


def case(seed, *size):
    """A map of few values, so that most places tie, and a mask that is neither empty nor full."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 3, size, generator=generator).double()
    masks = torch.rand(size, generator=generator) > 0.6
    masks[0, 0], masks[-1, -1] = True, False
    return maps[None], masks[None]


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), stride=st.sampled_from([None, 2, 1]), threshold=st.sampled_from([None, 0.0, 1.0]))
def test_topk_is_the_mean_over_all_orders_of_tied_patches(seed, stride, threshold):
    maps, masks = case(seed, 4, 6 if stride is None else 4 if stride == 2 else 3)
    scores, touched = patches(maps[0], masks[0], 2, stride or 2)
    expected = mean_hits(scores, touched)[: sum(s > (-1 if threshold is None else threshold) for s in scores)]
    hits = metrics.topk_hits(maps, masks, 7, 2, threshold, stride)[0]
    assert hits[: len(expected)].tolist() == pytest.approx(expected.tolist()) and hits[len(expected) :].isnan().all()
    precision = metrics.topk_precision(maps, masks, 7, 2, threshold, stride)
    for k in range(1, len(expected) + 1):
        assert precision[k - 1].item() == pytest.approx(expected[:k].mean().item())


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_pixels_tie_in_the_pointing_game_and_in_rank_accuracy(seed):
    maps, masks = case(seed, 2, 3)
    maps[0, 0, 0] = 3 * (seed % 2)
    maps[0, 1, 1] = 1
    if maps.unique().numel() == 1:
        maps[0, 0, 1] = 2
    expected = mean_hits(maps.flatten().tolist(), masks.flatten().float().tolist())
    size = int(masks.sum())
    assert metrics.pointing_game(maps, masks).item() == pytest.approx(expected[0].item())
    assert metrics.topk_precision(maps, masks, 1, 1).item() == pytest.approx(expected[0].item())
    assert metrics.relevance_rank_accuracy(maps, masks).item() == pytest.approx(expected[:size].mean().item())


def test_a_saturated_map_is_not_scored_by_the_place_of_its_pixels():
    maps, masks = torch.zeros(2, 8, 8), torch.zeros(2, 8, 8)
    maps[:, 2:6, 2:6] = 1.0
    masks[0, 2:4, 2:4], masks[1, 4:6, 4:6] = 1, 1  # the first and the last of four patches that share the maximum
    assert metrics.topk_hits(maps, masks, 5, 2).tolist() == [[0.25] * 4 + [0]] * 2
    assert metrics.pointing_game(maps, masks).tolist() == [0.25, 0.25]
    assert metrics.relevance_rank_accuracy(maps, masks).tolist() == [0.25, 0.25]


def test_removal_breaks_ties_by_position():
    maps = torch.zeros(1, 6, 6)
    maps[0, 2, 2] = 1.0
    assert tile_rank(maps, 2)[0].tolist() == [1, 2, 3, 4, 0, 5, 6, 7, 8]
    seen = []

    def predict(images):
        seen.append(images)
        return torch.tensor([[0.5, 0.5]]).repeat(len(images), 1)

    metrics.perturbation_curve(predict, torch.ones(1, 1, 6, 6), maps, ONE, tile=2, steps=4)
    gone = 36 - torch.cat(seen).sum((1, 2, 3))
    assert gone.tolist() == [0, 4, 8, 12, 16]  # four pixels more a step, however many tiles are equal


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1.0])
@pytest.mark.parametrize("tile", [3, 4, 7, 16])
def test_equal_pixels_have_equal_means_in_whole_and_cut_tiles(value, tile):
    maps = torch.full((1, 23, 17), value)
    scores, order = metrics.rank_patches(maps, tile, by="mean")
    assert (scores == maps[0, 0, 0]).all() and order[0].tolist() == list(range(order.shape[1]))
