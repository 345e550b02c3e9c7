"""Class activation maps: weighted sums over the channels of the last feature map, rectified and upsampled.

A is the feature map (C, h, w) of an image, f the target logit, g = df/dA. All maps are bilinear to image size and >= 0.
One forward pass; the backward pass ends at A, since no layer below it needs a gradient. Every method takes `layer`, the
module whose output is A; by default the last features of a network of lib.models (before z gates them, if it does).
The target logit of an ExplainerClassifier is that at its fixed heatmap z, also of masked and noisy images.
"""

import torch
from torch import Tensor, nn

from lib.explain.core import Task, noisy_copies, register, upsample
from lib.models import last_features


def default_layer(task: Task, layer: nn.Module | None, method: str) -> nn.Module:
    """`layer`, or the last features. Raises TypeError for a model that is not of lib.models."""
    if layer is not None:
        return layer
    try:
        return last_features(task.logits.model)
    except ValueError as error:
        name = type(task.logits.model).__name__
        raise TypeError(f"{method}: expected a network of lib.models or the option `layer`, got {name}") from error


def features_and_scores(
    task: Task, layer: nn.Module, images: Tensor, index: Tensor | slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Output A (m, C, h, w) of `layer`, a leaf of the graph, and target logits (m,) computed from it.

    Raises ValueError if the model does not run `layer` or its output is not such a tensor.
    """
    found = []

    def cut(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError(f"layer: expected a module with output (N, C, h, w), got {type(layer).__name__}")
        found.append(output.detach().requires_grad_())
        return found[-1]

    handle = layer.register_forward_hook(cut)
    try:
        scores = task.scores(images.detach(), index)
    finally:
        handle.remove()
    if not found:
        raise ValueError(f"layer: expected a module that the model runs, got {type(layer).__name__}")
    return found[-1], scores


def features_and_gradients(
    task: Task, layer: nn.Module, images: Tensor, index: Tensor | slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """A and g, both (m, C, h, w), of variants (m, C, H, W) of the task's images number `index`."""
    features, scores = features_and_scores(task, layer, images, index)
    return features.detach(), torch.autograd.grad(scores.sum(), features)[0]


def _weighted(weights: Tensor, features: Tensor) -> Tensor:
    """ReLU(sum over channels of weights (m, C) times features (m, C, h, w))."""
    return torch.einsum("nc,nchw->nhw", weights, features).relu()


@register("Grad-CAM", "cam", signed=False)
def gradcam(task: Task, layer: nn.Module | None = None) -> Tensor:
    """ReLU(sum_k w_k A_k), w_k the mean of g_k over positions (Selvaraju et al. 2017, equations 1 and 2)."""
    features, gradients = features_and_gradients(task, default_layer(task, layer, "gradcam"), task.images)
    return upsample(_weighted(gradients.mean((2, 3)), features), task.images.shape[2:], mode="bilinear")


@register("Smooth Grad-CAM", "cam", signed=False)
def smooth_gradcam(
    task: Task,
    layer: nn.Module | None = None,
    noise: float = 0.15,
    samples: int = 16,
    seed: int = 0,
    chunk: int = 128,
) -> Tensor:
    """Mean Grad-CAM over `samples` noisy copies of the image, each rectified: the averaging of SmoothGrad (Smilkov et
    al. 2017) applied to the map. Smooth Grad-CAM++ (Omeiza et al. 2019) averages the derivatives of Grad-CAM++ instead.

    `noise`: standard deviation of the Gaussian noise as a share of the image's range max - min; 0 is `gradcam`. It
    depends on the seed and the image alone. Raises ValueError for negative noise.
    """
    layer, total = default_layer(task, layer, "smooth_gradcam"), 0
    for index, copies in noisy_copies(task, noise, samples, seed, chunk):
        features, gradients = features_and_gradients(task, layer, copies, index)
        maps = _weighted(gradients.mean((2, 3)), features)
        total = maps.new_zeros(len(task.images), *maps.shape[1:]).index_add_(0, index, maps) + total
    return upsample(total / samples, task.images.shape[2:], mode="bilinear")


@register("Grad-CAM++", "cam", signed=False)
def gradcam_pp(task: Task, layer: nn.Module | None = None) -> Tensor:
    """ReLU(sum_k w_k A_k), w_k = sum_ij a_kij ReLU(g_kij), a_kij = g_kij^2 / (2 g_kij^2 + g_kij^3 sum_ab A_kab)
    (Chattopadhay et al. 2018, equations 10 and 19 for Y = exp(f), whose factor exp(f) > 0 is left out of w).

    Where g_kij > 0, a_kij = 1 / (2 + g_kij sum_ab A_kab): nothing else counts, and with features >= 0 it never divides
    by 0; with signed features (EfficientNet, SoftCAM's DenseNet) it may be negative.
    """
    features, gradients = features_and_gradients(task, default_layer(task, layer, "gradcam_pp"), task.images)
    weights = (gradients.relu() / (2 + gradients.relu() * features.sum((2, 3), keepdim=True))).sum((2, 3))
    return upsample(_weighted(weights, features), task.images.shape[2:], mode="bilinear")


@register("Layer-CAM", "cam", signed=False)
def layercam(task: Task, layer: nn.Module | None = None) -> Tensor:
    """ReLU(sum_k ReLU(g_k) * A_k), a weight for each position (Jiang et al. 2021, equations 6 and 7)."""
    features, gradients = features_and_gradients(task, default_layer(task, layer, "layercam"), task.images)
    return upsample((gradients.relu() * features).sum(1).relu(), task.images.shape[2:], mode="bilinear")


@register("Score-CAM", "cam", signed=False, needs_grad=False)
def scorecam(task: Task, layer: nn.Module | None = None, chunk: int = 128) -> Tensor:
    """ReLU(sum_k w_k A_k), w = softmax over channels of the increase of confidence f(x * H_k) - f(x_b), H_k = A_k
    bilinear to image size, then scaled to [0, 1] by its own minimum and maximum (Wang et al. 2020, algorithm 1).

    f is the logit; the baseline's f(x_b) is the same for all channels, so the softmax does not depend on it and it is
    not computed. A channel that is constant over the image has no H_k: its weight is 0 and it costs no forward pass.
    NaN where all channels are constant (features of 1 x 1, for one).
    """
    layer, size = default_layer(task, layer, "scorecam"), task.images.shape[2:]
    features = features_and_scores(task, layer, task.images)[0].detach()
    varies = features.amax((2, 3)) > features.amin((2, 3))
    scores = torch.full_like(features[:, :, 0, 0], -torch.inf)
    for pairs in varies.nonzero().split(task.at_once(chunk)):
        index, channel = pairs.unbind(1)
        masks = upsample(features[index, channel], size, mode="bilinear")
        low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
        masked = task.images[index] * ((masks - low) / (high - low))[:, None]
        scores[index, channel] = task.scores(masked, index)
    return upsample(_weighted(scores.softmax(1), features), size, mode="bilinear")
