"""Gradients of the target logit with respect to the image, plain, averaged, rectified, and as finite differences."""

import warnings

import torch
from captum import attr
from torch import Tensor

from lib.explain.cam import gradcam
from lib.explain.task import Task


def attributed(task: Task, attribution: type[attr.Attribution], **options) -> Tensor:
    """What captum's class finds, summed over channels."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting backward hooks on ReLU")
        given = {"target": task.targets, "additional_forward_args": task.fixed or None}
        return attribution(task.logits).attribute(task.images, **given, **options).detach().sum(1)


def saliency(task: Task) -> Tensor:
    """Absolute gradient, summed over channels (Simonyan et al. 2014 take the maximum)."""
    return task.gradients(task.images).abs().sum(1)


def input_x_gradient(task: Task) -> Tensor:
    """Gradient times input, summed over channels (Shrikumar et al. 2016)."""
    return (task.images * task.gradients(task.images)).sum(1)


def integrated_gradients(task: Task, steps: int = 50, baseline: float | Tensor = 0.0) -> Tensor:
    """(x - x0) times the mean gradient between `baseline` x0 (a number or (1, C, H, W), as the model takes it) and x at
    `steps` Gauss-Legendre points (Sundararajan et al. 2017): the map sums to f(x) - f(x0)."""
    run = {"n_steps": steps, "internal_batch_size": task.at_once}
    return attributed(task, attr.IntegratedGradients, baselines=baseline, **run)


def smoothgrad(task: Task, noise: float = 0.15, samples: int = 16) -> Tensor:
    """|mean gradient over `samples` noisy copies|, summed over channels (Smilkov et al. 2017)."""
    total = torch.zeros_like(task.images)
    for index, copies in task.noisy_copies(noise, samples):
        total.index_add_(0, index, task.gradients(copies, index))
    return (total / samples).abs().sum(1)


def deconvolution(task: Task) -> Tensor:
    """Gradient, each nn.ReLU rectifying the backward signal instead of the forward one (Zeiler & Fergus 2014)."""
    return attributed(task, attr.Deconvolution)


def guided_backprop(task: Task) -> Tensor:
    """Gradient with negative parts cut at every nn.ReLU, summed over channels (Springenberg et al. 2015)."""
    return attributed(task, attr.GuidedBackprop)


def guided_gradcam(task: Task) -> Tensor:
    """Guided Backprop times Grad-CAM, bilinear to image size (Selvaraju et al. 2017, section 3.2)."""
    return guided_backprop(task) * gradcam(task)


def occlusion(task: Task) -> Tensor:
    """Drop of the target logit when the pixel's window is filled with 0 (Zeiler & Fergus 2014): windows of an eighth of
    each side, without overlap, the last one cut at the border."""
    images = task.images
    row, column = (torch.arange(side, device=images.device) // max(1, side // 8) for side in images.shape[2:])
    place = row[:, None] * (column[-1] + 1) + column  # (H, W): the number of each pixel's window
    drops, clean = images.new_empty(len(images), int(place[-1, -1]) + 1), task.scores(images)
    for index, window in task.variants(drops.shape[1]):
        hidden = (place == window[:, None, None])[:, None]
        drops[index, window] = clean[index] - task.scores(images[index].masked_fill(hidden, 0), index)
    return drops[:, place]
