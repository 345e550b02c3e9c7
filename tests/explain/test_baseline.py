import math

import numpy as np
import pytest
import torch
from scipy import ndimage
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


@pytest.mark.parametrize("method", ["random", "centre_gaussian", "edge_map"])
def test_the_model_does_not_matter(method):
    images = torch.rand(2, 3, 12, 10)
    assert torch.equal(explain(method, Net(), images, TARGETS), explain(method, Net(), images, TARGETS.flip(0)))
