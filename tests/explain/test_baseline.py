import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import feature
from tiny_models import Net

from lib.explain import explain

TARGETS = torch.tensor([0, 1])


def test_centre_gaussian_by_hand():
    found = explain("centre_gaussian", Net(), torch.rand(2, 3, 6, 4), TARGETS)
    for i in range(6):
        for j in range(4):
            v, u = (i - 2.5) / (0.25 * 6), (j - 1.5) / (0.25 * 4)
            assert found[0, i, j].item() == pytest.approx(math.exp(-(u**2 + v**2) / 2))
    assert torch.equal(found[0], found[1])


def test_edge_map_is_scipys_sobel_of_the_grey_image():
    images = torch.rand(2, 3, 9, 7, dtype=torch.float64)
    grey = images.mean(1).numpy()
    expected = [np.hypot(ndimage.sobel(g, 0, mode="nearest"), ndimage.sobel(g, 1, mode="nearest")) / 8 for g in grey]
    found = explain("edge_map", Net(), images, TARGETS)
    assert torch.allclose(found, torch.tensor(np.stack(expected)).float(), atol=1e-6)


def test_random_is_uniform_and_depends_on_seed_and_image():
    images, targets = torch.randn(4, 3, 12, 10), torch.zeros(4, dtype=torch.long)
    maps = explain("random", Net(), images, targets)
    assert not torch.equal(explain("random", Net(), images, targets, seed=1), maps)
    assert len(maps.flatten(1).unique(dim=0)) == 4
    assert maps.min() >= 0 and maps.max() < 1 and maps.mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-2.5, 2), (0.4, 0.41)])
def test_canny_and_otsu_of_a_step_by_hand(low, high):
    """Whatever its height and offset: the column in which it rises, but at the border, and the columns behind it."""
    column = torch.arange(17)
    images = (low + (high - low) * ((column - 7) / 2).clamp(0, 1)).expand(1, 3, 17, 17)
    edge, bright = (explain(method, Net(), images, TARGETS[:1])[0] for method in ("canny", "otsu"))
    assert torch.equal(edge[2:-2], (column == 8).float().expand(13, 17))
    assert torch.equal(bright[:, column != 8], (column > 8).float()[column != 8].expand(17, 16))


def test_canny_and_otsu_are_scikit_images_of_the_stretched_grey_image():
    y, x = torch.meshgrid(torch.linspace(0, 9, 24), torch.linspace(0, 7, 20), indexing="ij")
    images = torch.stack([torch.sin(x + i) * torch.cos(y * (1 + i / 3)) for i in range(3)]).expand(2, 3, 24, 20)
    grey = images[0].double().mean(0).numpy()
    grey = (grey - grey.min()) / (grey.max() - grey.min())
    edges, bright = (explain(method, Net(), images, TARGETS) for method in ("canny", "otsu"))
    assert edges.dtype == bright.dtype == torch.float32 and torch.equal(bright[0], bright[1])
    assert (edges[0].numpy() == feature.canny(grey, 1, 0.1, 0.2)).all() and 0 < edges.mean() < 0.5
    levels = np.linspace(0, 1, 257)[1:-1]
    parts = [(grey[grey > t], grey[grey <= t]) for t in levels]
    between = [len(high) * len(low) * (high.mean() - low.mean()) ** 2 for high, low in parts]
    assert (bright[0].numpy() != (grey > levels[np.argmax(between)])).mean() < 0.02  # the largest variance between both


@pytest.mark.parametrize("method", ["canny", "otsu"])
def test_an_image_of_one_grey_has_neither_edges_nor_bright_parts(method):
    assert not explain(method, Net(), torch.full((2, 3, 9, 9), 0.3), TARGETS).any()


@pytest.mark.parametrize("method", ["random", "centre_gaussian", "edge_map", "canny", "otsu"])
def test_the_model_does_not_matter(method):
    images = torch.rand(2, 3, 12, 10)
    assert torch.equal(explain(method, Net(), images, TARGETS), explain(method, Net(), images, TARGETS.flip(0)))
