"""Maps that know nothing of the model: what any explanation must beat."""

import numpy as np
import skimage
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.explain.task import Task


def random(task: Task, seed: int = 0) -> Tensor:
    """Uniform noise in [0, 1) that depends on the seed and the image alone, not on its place in a batch."""
    return torch.stack([torch.rand(task.images.shape[2:], generator=source) for source in task.generators(seed)])


def centre_gaussian(task: Task) -> Tensor:
    """exp(-(u^2 + v^2) / 2) in (0, 1], u and v the distances from the centre in quarters of the sides."""
    height, width = task.images.shape[2:]
    v, u = (((torch.arange(side) + 0.5) / side - 0.5) / 0.25 for side in (height, width))
    return torch.exp(-(v[:, None] ** 2 + u**2) / 2).expand(len(task.images), height, width)


def edge_map(task: Task) -> Tensor:
    """Sobel magnitude sqrt(gx^2 + gy^2) of the mean over the colour channels, borders replicated; kernels
    [1, 2, 1]^T [-1, 0, 1] / 8, so that a ramp of slope 1 a pixel gives 1."""
    grey = F.pad(task.images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    kernel = torch.outer(grey.new_tensor([1, 2, 1]), grey.new_tensor([-1, 0, 1])) / 8
    return F.conv2d(grey, torch.stack([kernel, kernel.T])[:, None]).norm(dim=1)


def canny(task: Task) -> Tensor:
    """1 on Canny's edges (1986) of the grey image, else 0: sigma 1 px, thresholds of 0.1 and 0.2 of its range."""
    return torch.stack([torch.from_numpy(skimage.feature.canny(grey)) for grey in _grey(task)])


def otsu(task: Task) -> Tensor:
    """1 where the grey image is brighter than Otsu's threshold (1979), else 0: what is bright is taken to matter."""
    return torch.stack([torch.from_numpy(grey > skimage.filters.threshold_otsu(grey)) for grey in _grey(task)])


def _grey(task: Task) -> np.ndarray:
    """The mean over the colour channels, each image's range stretched to [0, 1]; one of a single value is 0."""
    grey = task.images.detach().cpu().double().mean(1)
    grey = grey - grey.amin((1, 2), keepdim=True)
    return (grey / grey.amax((1, 2), keepdim=True).clamp(min=1e-8)).numpy()
