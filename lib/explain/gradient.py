"""Gradients of the target logit with respect to the image, plain, averaged, rectified, and as finite differences."""

import warnings

import torch
from captum import attr
from torch import Tensor, nn

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


def integrated_gradients(task: Task, steps: int = 50, baseline: float | Tensor = 0.0, chunk: int = 128) -> Tensor:
    """(x - x0) times the mean gradient between `baseline` x0 (a number or (1, C, H, W), as the model takes it) and x at
    `steps` Gauss-Legendre points (Sundararajan et al. 2017): the map sums to f(x) - f(x0)."""
    x0 = baseline.to(task.images) if isinstance(baseline, Tensor) else float(baseline)
    at_once = task.at_once(chunk)
    return attributed(task, attr.IntegratedGradients, baselines=x0, n_steps=steps, internal_batch_size=at_once)


def smoothgrad(task: Task, noise: float = 0.15, samples: int = 16, seed: int = 0, chunk: int = 128) -> Tensor:
    """|mean gradient over `samples` noisy copies of the image|, summed over channels (Smilkov et al. 2017); `noise` and
    `seed` as in `smooth_gradcam`."""
    total = torch.zeros_like(task.images)
    for index, copies in task.noisy_copies(noise, samples, seed, chunk):
        total.index_add_(0, index, task.gradients(copies, index))
    return (total / samples).abs().sum(1)


def deconvolution(task: Task) -> Tensor:
    """Gradient with each nn.ReLU rectifying the backward signal instead of the forward one, summed over channels
    (Zeiler & Fergus 2014)."""
    return attributed(task, attr.Deconvolution)


def guided_backprop(task: Task) -> Tensor:
    """Gradient with negative parts cut at every nn.ReLU, summed over channels (Springenberg et al. 2015)."""
    return attributed(task, attr.GuidedBackprop)


def guided_gradcam(task: Task, layer: nn.Module) -> Tensor:
    """Guided Backprop times Grad-CAM of `layer`, bilinear to image size (Selvaraju et al. 2017, section 3.2)."""
    return guided_backprop(task) * gradcam(task, layer)


def occlusion(
    task: Task, window: int | None = None, stride: int | None = None, fill: float = 0.0, chunk: int = 128
) -> Tensor:
    """Drop of the target logit when a square window is filled with `fill`; each pixel gets the mean drop of the windows
    that cover it (Zeiler & Fergus 2014). Windows start at multiples of `stride`, the last one is cut at the border; by
    default they are an eighth of each side, without overlap. Raises ValueError for a stride above the window."""
    images, covers = task.images, []
    for side in images.shape[2:]:  # (windows, side): which positions each window covers along one side
        size = max(1, side // 8) if window is None else window
        step = size if stride is None else stride
        if step > size:
            raise ValueError(f"stride: expected at most the window, {size}, got {step}")
        starts = torch.arange(-(-max(side - size, 0) // step) + 1)[:, None] * step
        position = torch.arange(side)
        covers.append(((position >= starts) & (position < starts + size)).to(images.device))
    rows, columns = covers
    drops, clean = images.new_empty(len(images), len(rows), len(columns)), task.scores(images)
    for index, place in task.variants(len(rows) * len(columns), chunk):
        row, column = place // len(columns), place % len(columns)
        hidden = rows[row][:, None, :, None] & columns[column][:, None, None, :]
        drops[index, row, column] = clean[index] - task.scores(images[index].masked_fill(hidden, fill), index)
    total = torch.einsum("nrc,rh,cw->nhw", drops, rows.to(drops), columns.to(drops))
    return total / torch.outer(rows.sum(0), columns.sum(0))
