import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as T

from lib.metrics.faithfulness import (
    area_under_curve,
    deletion_probability,
    insertion_curve,
    perturbation_curve,
    sufficiency,
)


def mean_predict(images):
    """Two classes; the probability of the second is the mean pixel value."""
    mean = images.mean((1, 2, 3))
    return torch.stack([1 - mean, mean], 1)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


ONE = torch.ones(1, dtype=torch.long)
# 4 x 4 image of four 2 x 2 tiles with the values 1, 0, 0.5, 0.25; the map ranks them 3rd, 1st, 4th, 2nd.
IMAGE = torch.tensor([[1.0, 0.0], [0.5, 0.25]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
MAP = torch.tensor([[2.0, 4.0], [-1.0, 3.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("black", [0, 0, 0.25, 1.25, 1.75]),
        ("white", [4, 3, 2.25, 2.25, 1.75]),
        ("gray", [2, 1.5, 1.25, 1.75, 1.75]),
        ("mean", [1.75, 1.3125, 1.125, 1.6875, 1.75]),
    ],
)
def test_insertion_by_hand(start, expected):
    curve = insertion_curve(mean_predict, IMAGE, MAP, ONE, tile=2, start=start)
    assert curve[0].tolist() == [value / 4 for value in expected]


def test_insertion_starts_from_the_blurred_image_and_ends_with_the_image():
    seen = []

    def predict(images):
        seen.append(images)
        return mean_predict(images)

    images = noise(2, 3, 40, 30)
    curve = insertion_curve(predict, images, noise(2, 40, 30, seed=1), ONE.repeat(2), tile=8, batch_size=7)
    inputs = torch.cat(seen).view(2, 21, 3, 40, 30)  # 5 x 4 tiles
    assert torch.allclose(inputs[:, 0], T.gaussian_blur(images, [13, 13], [2.0, 2.0]))
    assert torch.equal(inputs[:, -1], images) and torch.allclose(curve[:, -1], images.mean((1, 2, 3)))


def test_deletion_by_hand():
    curve = deletion_probability(mean_predict, IMAGE, MAP, ONE, tile=2, fill="black")
    assert curve[0].tolist() == [value / 4 for value in [1.75, 1.75, 1.5, 0.5, 0]]
    assert area_under_curve(curve).item() == pytest.approx((1.75 / 2 + 1.75 + 1.5 + 0.5) / 16)
    halves = deletion_probability(mean_predict, IMAGE, MAP, ONE, tile=2, steps=2, fill="black")
    assert torch.equal(halves, curve[:, ::2])
    # Eight steps over four tiles; half a tile is rounded to the even number.
    many = deletion_probability(mean_predict, IMAGE, MAP, ONE, tile=2, steps=8, fill="black")
    assert torch.equal(many, curve[:, [0, 0, 1, 2, 2, 2, 3, 4, 4]])


def test_equal_states_cost_one_pass():
    passes = []

    def predict(images):
        passes.append(len(images))
        return mean_predict(images)

    deletion_probability(predict, IMAGE, MAP, ONE, tile=2, steps=100)
    perturbation_curve(predict, IMAGE, MAP, ONE, tile=2, steps=100)
    sufficiency(predict, IMAGE, MAP, ONE, shares=(0.01, 0.02, 1), tile=2)
    assert passes == [5, 5, 2]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6), height=st.integers(1, 9), width=st.integers(1, 9), tile=st.integers(1, 4),
    steps=st.none() | st.integers(1, 12), fill=st.sampled_from(["black", "white", "uniform", "blur", "mean"]),
)  # fmt: skip
def test_deletion_and_insertion_meet(seed, height, width, tile, steps, fill):
    images, maps = noise(3, 1, height, width, seed=seed + 2), noise(3, height, width, seed=seed + 1) - 0.5
    targets = torch.tensor([1, 0, 1])

    def curves(order=slice(None), scale=1.0, batch_size=64):
        arguments = mean_predict, images[order], maps[order] * scale, targets[order], tile, steps, fill, batch_size
        return torch.stack([deletion_probability(*arguments, seed=seed), insertion_curve(*arguments, seed=seed)], 1)

    whole, order = curves(), torch.tensor([2, 0, 1])
    tiles = -(-height // tile) * -(-width // tile)
    assert whole.shape == (3, 2, 1 + (steps or tiles))
    untouched = mean_predict(images).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(whole[:, 0, 0], untouched) and torch.allclose(whole[:, 1, -1], untouched)
    assert torch.allclose(whole[:, 0, -1], whole[:, 1, 0])  # the fully replaced image
    assert torch.allclose(whole.sum(1), (whole[:, :1, 0] + whole[:, :1, -1]), atol=1e-5)  # for a linear predictor
    assert torch.allclose(curves(batch_size=2), whole, atol=1e-6)
    assert torch.allclose(curves(order), whole[order], atol=1e-6)
    assert torch.allclose(curves(scale=16.0), whole, atol=1e-6)


def test_area_by_hand():
    curve = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1 / 3, 2 / 3, 1]], dtype=torch.float64)
    assert area_under_curve(curve).tolist() == pytest.approx([0.5, 1, 0.5])
    assert area_under_curve(curve[0]).item() == pytest.approx(0.5)


def test_sufficiency_by_hand():
    # Kept: max(1, round(0.05 * 4)) = 1 tile (0), then 2 (0 and 0.25), then 3 (also 1), then all.
    drop = sufficiency(mean_predict, IMAGE, MAP, ONE, shares=(0.05, 0.5, 0.75, 1), tile=2, fill="black")
    assert drop[0].tolist() == [value / 4 for value in [1.75, 1.5, 0.5, 0]]
    mean = sufficiency(mean_predict, IMAGE, MAP, ONE, shares=(0.25,), tile=2)
    assert mean.tolist() == [[0.4375 - 0.4375 * 0.75]]


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), height=st.integers(2, 7), width=st.integers(2, 7))
def test_sufficiency_against_loops(seed, height, width):
    images, maps = noise(2, 1, height, width, seed=seed).double(), noise(2, height, width, seed=seed + 1).double() - 0.5
    shares = (0.1, 0.3, 0.9)
    drop = sufficiency(mean_predict, images, maps, ONE.repeat(2), shares, 1, "gray", batch_size=3)
    for n in range(2):
        pixels = [(-maps[n, y, x].item(), images[n, 0, y, x].item()) for y in range(height) for x in range(width)]
        total = sum(value for _, value in pixels)
        for share, found in zip(shares, drop[n].tolist(), strict=True):
            count = max(1, round(share * len(pixels)))
            kept = sum(value for _, value in sorted(pixels)[:count]) + 0.5 * (len(pixels) - count)
            assert found == pytest.approx((total - kept) / len(pixels), abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "change", "message"),
    [
        (insertion_curve, {"start": "zero"}, "start: expected one of black, .*, mean, got 'zero'"),
        (insertion_curve, {"steps": 0}, "steps: expected an integer of at least 1, got 0"),
        (insertion_curve, {"images": IMAGE - 1}, r"images: expected values in \[0, 1\], got -1 to 0"),
        (deletion_probability, {"fill": "zero"}, "fill: expected one of black, .*, mean, got 'zero'"),
        (deletion_probability, {"tile": 0}, "tile: expected an integer of at least 1, got 0"),
        (deletion_probability, {"images": IMAGE / 0}, r"images: expected values in \[0, 1\], got nan"),
        (sufficiency, {"shares": (0.1, 0)}, r"shares: expected at least one number in \(0, 1\], got \(0.1, 0\)"),
        (sufficiency, {"shares": ()}, r"shares: expected at least one number in \(0, 1\], got \(\)"),
        (sufficiency, {"maps": MAP[:, :3]}, r"maps: expected shape \(1, 4, 4\) to match images, got \(1, 3, 4\)"),
    ],
)
def test_errors(metric, change, message):
    arguments = {"predict": mean_predict, "images": IMAGE, "maps": MAP, "targets": ONE, "tile": 2}
    with pytest.raises(ValueError, match=message):
        metric(**arguments | change)


def test_area_needs_two_points():
    with pytest.raises(ValueError, match=r"curve: expected floats \(\.\.\., steps \+ 1 >= 2\), got torch.float32"):
        area_under_curve(torch.ones(3, 1))
