import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from perturbing import ONE, Recorder, in_batches, mean_predict, noise
from torchvision.transforms.v2 import functional as T

from lib.metrics.road import impute, road


def dense_imputation(image, removed):
    """One equation for each pixel, solved in one piece."""
    height, width = removed.shape
    matrix, right = np.eye(height * width), image.reshape(len(image), -1).T.astype(np.float64)
    for y, x in zip(*removed.nonzero(), strict=True):
        around = [
            (v * width + u, 1 / 6 if v == y or u == x else 1 / 12)
            for v in (y - 1, y, y + 1) for u in (x - 1, x, x + 1)
            if (v, u) != (y, x) and 0 <= v < height and 0 <= u < width
        ]  # fmt: skip
        for place, weight in around:
            matrix[y * width + x, place] = -weight / sum(weight for _, weight in around)
        right[y * width + x] = 0
    return np.linalg.solve(matrix, right).T.reshape(image.shape)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 9), width=st.integers(2, 9), share=st.floats(0, 1))
def test_imputation_against_a_dense_solve(seed, height, width, share):
    image = noise(2, height, width, seed=seed).numpy()
    removed = noise(height, width, seed=seed + 1).numpy() < share
    removed.flat[seed % removed.size], removed.flat[(seed + 1) % removed.size] = False, True
    before = image.copy(), removed.copy()
    found = impute(image, removed)
    assert found.dtype == np.float64 and np.allclose(found, dense_imputation(image, removed), atol=1e-12)
    assert np.array_equal(image, before[0]) and np.array_equal(removed, before[1])


def test_imputation_by_hand():
    image = np.array([[[1.0, 0.2, 1.0], [0.2, 9.0, 0.2], [1.0, 0.2, 1.0]]])
    middle, corner = np.zeros((2, 3, 3), dtype=bool)
    middle[1, 1] = corner[0, 0] = True
    assert impute(image, middle)[0, 1, 1] == pytest.approx(4 / 6 * 0.2 + 4 / 12 * 1.0)
    # neighbours 0.2, 0.2 and 9 with weights 1/6, 1/6, 1/12
    assert impute(image, corner)[0, 0, 0] == pytest.approx((0.2 + 0.2 + 9 / 2) / 2.5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_large_holes_satisfy_every_equation(share):
    image, rank = noise(3, 150, 110).numpy(), T.gaussian_blur(noise(1, 150, 110, seed=1), [31, 31], [9.0, 9.0])[0]
    removed = (rank < rank.quantile(share)).numpy()
    found = torch.from_numpy(impute(image, removed))[:, None]
    weights = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]], dtype=torch.float64)[None, None] / 12
    inside = F.conv2d(torch.ones_like(found), weights, padding=1)
    mean = (F.conv2d(found, weights, padding=1) / inside)[:, 0].numpy()
    assert np.allclose(found[:, 0].numpy()[:, removed], mean[:, removed], rtol=0, atol=1e-12)


def shown(images, maps, shares, **options):
    recorder = Recorder()
    road(recorder, images, maps, ONE.repeat(len(images)), shares, **options)
    return recorder.images(len(images))


@pytest.mark.parametrize("order", ["morf", "lerf"])
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), height=st.integers(2, 8), width=st.integers(2, 8))
def test_the_asked_share_is_removed_pixel_by_pixel_equal_ones_by_position(order, seed, height, width):
    images, maps = noise(2, 3, height, width, seed=seed), (4 * noise(2, height, width, seed=seed + 1)).round() - 2
    found = road(mean_predict, images, maps, ONE.repeat(2), (0.3, 0.7), order, noise=0)
    for n in range(2):
        ranked = maps[n] if order == "lerf" else -maps[n]
        places = sorted((ranked[y, x].item(), y, x) for y in range(height) for x in range(width))
        for j, share in enumerate((0.3, 0.7)):
            removed = np.zeros((height, width), dtype=bool)
            for _, y, x in places[: round(share * height * width)]:
                removed[y, x] = True
            expected = dense_imputation(images[n].numpy(), removed).mean()
            assert found[n, j].item() == pytest.approx(expected, abs=1e-5)


def test_noise_is_small_seeded_by_the_image_and_the_same_for_all_shares():
    images = torch.full((2, 3, 40, 40), 0.5)
    images[1, :, 0, 0] = 0.25
    maps, shares = noise(2, 40, 40, seed=1), (0.25, 0.75)

    def added(**options):
        return shown(images[:1].repeat(2, 1, 1, 1), maps, shares, **options) - 0.5

    found = added()
    removed = found[:, :, :1] != 0
    assert found[0, 1][removed[0, 1].expand(3, -1, -1)].std().item() == pytest.approx(0.01, rel=0.1)
    assert torch.equal(found[0, 0], found[0, 1] * removed[0, 0])
    both = removed[0, 1] & removed[1, 1]
    assert both.any() and torch.equal(found[0, 1] * both, found[1, 1] * both)  # another map, the same image
    assert torch.equal(added(), found) and not torch.equal(added(seed=1), found)
    assert added(noise=0.0).abs().max() < 1e-6
    first, second = shown(images, maps[:1].repeat(2, 1, 1), shares)[:, 1]
    assert (first - second)[:, 20:, 20:].abs().max() > 0.005  # another image, other noise
    loud = shown(torch.zeros(1, 1, 8, 8), maps[:1, :8, :8], (0.1, 0.5, 0.9), noise=0.5)
    assert loud.min() == 0 and 0.9 < loud.max() <= 1


def test_several_judges_see_the_same_images_imputed_once(monkeypatch):
    calls = []
    monkeypatch.setitem(road.__globals__, "impute", lambda *arguments: calls.append(1) or impute(*arguments))
    images, maps, shares = noise(5, 2, 8, 8), noise(5, 8, 8, seed=1), (0.2, 0.6)
    recorders = [Recorder(), Recorder()]
    with in_batches(4):
        found = road([*recorders, lambda x: mean_predict(x).flip(1)], images, maps, ONE.repeat(5), shares)
    assert len(calls) == 5 * 2
    assert found.shape == (3, 5, 2) and torch.allclose(found[2], 1 - found[0])
    assert all(torch.equal(recorder.images(5), shown(images, maps, shares)) for recorder in recorders)
    assert all(len(batch) <= 4 for recorder in recorders for batch in recorder)
    assert torch.equal(road(mean_predict, images, maps, ONE.repeat(5), shares), found[0])


def test_wrong_arguments_are_said():
    given = mean_predict, noise(1, 1, 6, 6), noise(1, 6, 6), ONE
    for shares in ((0.5, 1.0), ()):
        with pytest.raises(ValueError, match=r"shares: expected .* some of 36 pixels but not all, got \("):
            road(*given, shares)
    with pytest.raises(ValueError, match=r"images: expected values in \[0, 1\], got \[-"):
        road(mean_predict, noise(1, 1, 6, 6) - 1, *given[2:])
