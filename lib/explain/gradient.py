"""Gradients of the target logit with respect to the image, plain, averaged, rectified, and as finite differences."""

import warnings

import torch
from captum import attr
from torch import Tensor, nn

from lib.explain.cam import gradcam
from lib.explain.core import Task, activations, noisy_copies, register


def _attribute(task: Task, attribution: attr.Attribution, **options) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting backward hooks on ReLU")
        return attribution.attribute(
            task.images, target=task.targets, additional_forward_args=task.fixed or None, **options
        ).detach()


def _check_relu(task: Task, method: str) -> None:
    """The rectified gradients change the backward pass of nn.ReLU alone: other activations would pass unchanged."""
    if "ReLU" not in (kinds := activations(task.logits)):
        name, found = type(task.model).__name__, ", ".join(kinds) or "none"
        raise TypeError(f"{method}: expected a model with nn.ReLU modules, got {name} (activations: {found})")


@register("Saliency", "gradient", signed=False)
def saliency(task: Task) -> Tensor:
    """Absolute gradient, summed over channels (Simonyan et al. 2014 take the maximum)."""
    return task.gradients(task.images).abs().sum(1)


@register("Input x Gradient", "gradient", signed=True)
def input_x_gradient(task: Task) -> Tensor:
    """Gradient times input, summed over channels (Shrikumar et al. 2016)."""
    return (task.images * task.gradients(task.images)).sum(1)


@register("Integrated Gradients", "gradient", signed=True)
def integrated_gradients(task: Task, steps: int = 50, baseline: float | Tensor = 0.0, chunk: int = 128) -> Tensor:
    """(x - x0) times the mean gradient between baseline x0 and x, Gauss-Legendre (Sundararajan et al. 2017).

    `baseline`: a number or a tensor (1, C, H, W), as the model takes it; 0 is the mean of normalised images.
    Complete: the map sums to f(x) - f(x0), as far as `steps` points resolve the path.
    """
    x0 = baseline.to(task.images) if isinstance(baseline, Tensor) else float(baseline)
    method = attr.IntegratedGradients(task.logits)
    return _attribute(task, method, baselines=x0, n_steps=steps, internal_batch_size=task.at_once(chunk)).sum(1)


@register("SmoothGrad", "gradient", signed=False)
def smoothgrad(task: Task, noise: float = 0.15, samples: int = 16, seed: int = 0, chunk: int = 128) -> Tensor:
    """|mean gradient over `samples` noisy copies of the image|, summed over channels (Smilkov et al. 2017).

    `noise`: standard deviation of the Gaussian noise as a share of the image's range max - min; 0 is `saliency`. It
    depends on the seed and the image alone. Raises ValueError for negative noise.
    """
    total = torch.zeros_like(task.images)
    for index, copies in noisy_copies(task, noise, samples, seed, chunk):
        total.index_add_(0, index, task.gradients(copies, index))
    return (total / samples).abs().sum(1)


@register("Deconvolution", "gradient", signed=True)
def deconvolution(task: Task) -> Tensor:
    """Gradient with each nn.ReLU rectifying the backward signal instead of the forward one, summed over channels
    (Zeiler & Fergus 2014). Raises TypeError for a model without nn.ReLU."""
    _check_relu(task, "deconvolution")
    return _attribute(task, attr.Deconvolution(task.logits)).sum(1)


@register("Guided Backprop", "gradient", signed=True)
def guided_backprop(task: Task) -> Tensor:
    """Gradient with negative parts cut at every nn.ReLU, summed over channels (Springenberg et al. 2015).

    Raises TypeError for a model without nn.ReLU.
    """
    _check_relu(task, "guided_backprop")
    return _attribute(task, attr.GuidedBackprop(task.logits)).sum(1)


@register("Guided Grad-CAM", "gradient", signed=True)
def guided_gradcam(task: Task, layer: nn.Module | None = None) -> Tensor:
    """Guided Backprop times Grad-CAM of `layer`, bilinear to image size (Selvaraju et al. 2017, section 3.2)."""
    _check_relu(task, "guided_gradcam")
    return guided_backprop(task) * gradcam(task, layer)


@register("Occlusion", "gradient", signed=True, needs_grad=False)
def occlusion(
    task: Task, window: int | None = None, stride: int | None = None, fill: float = 0.0, chunk: int = 128
) -> Tensor:
    """Drop of the target logit when a square window is filled with `fill`; each pixel gets the mean drop of the windows
    that cover it (Zeiler & Fergus 2014). Not upsampled: as coarse as its windows.

    `window`, `stride`: pixels; by default an eighth of each side, without overlap. Windows start at multiples of
    `stride`, the last one is cut at the border. Raises ValueError unless 1 <= stride <= window.
    """
    images = task.images
    windows = [max(1, side // 8) if window is None else window for side in images.shape[2:]]
    strides = windows if stride is None else [stride] * 2
    if not all(1 <= step <= width for step, width in zip(strides, windows, strict=True)):
        raise ValueError(f"stride: expected 1 <= stride <= window, got stride {strides} and window {windows}")
    rows, columns = map(_covered, images.shape[2:], windows, strides)
    rows, columns = rows.to(images.device), columns.to(images.device)
    drops = images.new_empty(len(images), len(rows), len(columns))
    clean = task.scores(images)
    for index, place in task.variants(len(rows) * len(columns), chunk):
        row, column = place // len(columns), place % len(columns)
        hidden = rows[row][:, None, :, None] & columns[column][:, None, None, :]
        drops[index, row, column] = clean[index] - task.scores(images[index].masked_fill(hidden, fill), index)
    total = torch.einsum("nrc,rh,cw->nhw", drops, rows.to(drops), columns.to(drops))
    return total / torch.outer(rows.sum(0), columns.sum(0))


def _covered(side: int, window: int, stride: int) -> Tensor:
    """(windows, side) bool: which positions each window covers along one side."""
    starts = torch.arange(-(-max(side - window, 0) // stride) + 1)[:, None] * stride
    return (torch.arange(side) >= starts) & (torch.arange(side) < starts + window)
