"""Images, maps and classifiers whose curves are known."""

from unittest import mock

import torch

from lib.metrics import perturbation

ONE = torch.ones(1, dtype=torch.long)
# 4 x 4 image of four 2 x 2 tiles with the values 1, 0, 0.5, 0.25; the map ranks them 3rd, 1st, 4th, 2nd.
IMAGE = torch.tensor([[1.0, 0.0], [0.5, 0.25]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
MAP = torch.tensor([[2.0, 4.0], [-1.0, 3.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None]


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def mean_predict(images):
    """Two classes; the probability of the second is the mean pixel value."""
    mean = images.mean((1, 2, 3))
    return torch.stack([1 - mean, mean], 1)


class Recorder(list):
    """A predictor that keeps the batches that it is shown."""

    def __call__(self, images):
        self.append(images)
        return mean_predict(images)

    def images(self, n):
        seen = torch.cat(tuple(self))
        return seen.view(n, -1, *seen.shape[1:])


def in_batches(size):
    """A context in which a classifier is shown so many perturbed images at a time."""
    return mock.patch.object(perturbation, "BATCH", size)
