"""Class activation maps: weighted sums over the channels of a feature map, rectified, bilinear to image size.

A is the output (C, h, w) of `layer` (by default the last features of a network of lib.models, before z gates them), f
the target logit (of an ExplainerClassifier at its fixed z, also of masked and noisy images), g = df/dA.
"""

from functools import partial

import torch
from torch import Tensor, nn

from lib.explain.task import Task, upsample

bilinear = partial(upsample, mode="bilinear")


def features_and_gradients(
    task: Task, layer: nn.Module, images: Tensor, index: Tensor | slice = slice(None)
) -> tuple[Tensor, Tensor | None]:
    """A and g (None where gradients are off), both (m, C, h, w), of variants (m, C, H, W) of the task's images number
    `index`: the backward pass ends at A. Raises ValueError if the model does not run `layer` or it gives no A."""
    found = []

    def cut(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError(f"layer: expected a module with output (N, C, h, w), got {type(layer).__name__}")
        found.append(output.detach().requires_grad_())  # a leaf of the graph
        return found[-1]

    with layer.register_forward_hook(cut):
        scores = task.scores(images.detach(), index)
    if not found:
        raise ValueError(f"layer: expected a module that the model runs, got {type(layer).__name__}")
    gradients = torch.autograd.grad(scores.sum(), found[-1])[0] if torch.is_grad_enabled() else None
    return found[-1].detach(), gradients


def weighted(weights: Tensor, features: Tensor) -> Tensor:
    """ReLU(sum over channels of weights (m, C) times features (m, C, h, w))."""
    return torch.einsum("nc,nchw->nhw", weights, features).relu()


def gradcam(task: Task, layer: nn.Module) -> Tensor:
    """ReLU(sum_k w_k A_k), w_k the mean of g_k over positions (Selvaraju et al. 2017, equations 1 and 2)."""
    features, gradients = features_and_gradients(task, layer, task.images)
    return bilinear(weighted(gradients.mean((2, 3)), features), task.images.shape[2:])


def smooth_gradcam(
    task: Task, layer: nn.Module, noise: float = 0.15, samples: int = 16, seed: int = 0, chunk: int = 128
) -> Tensor:
    """Mean Grad-CAM over `samples` copies of the image with Gaussian noise, its standard deviation a share `noise` of
    the image's range: the averaging of SmoothGrad (Smilkov et al. 2017), not Smooth Grad-CAM++ (Omeiza et al. 2019)."""
    total = 0
    for index, copies in task.noisy_copies(noise, samples, seed, chunk):
        features, gradients = features_and_gradients(task, layer, copies, index)
        maps = weighted(gradients.mean((2, 3)), features)
        total = maps.new_zeros(len(task.images), *maps.shape[1:]).index_add_(0, index, maps) + total
    return bilinear(total / samples, task.images.shape[2:])


def gradcam_pp(task: Task, layer: nn.Module) -> Tensor:
    """ReLU(sum_k w_k A_k), w_k = sum_ij a_kij ReLU(g_kij), a_kij = g_kij^2 / (2 g_kij^2 + g_kij^3 sum_ab A_kab)
    (Chattopadhay et al. 2018, equations 10 and 19 for Y = exp(f), whose factor exp(f) > 0 is left out of w).

    Only g_kij > 0 counts, where a_kij = 1 / (2 + g_kij sum_ab A_kab): negative at times where features are signed.
    """
    features, gradients = features_and_gradients(task, layer, task.images)
    weights = (gradients.relu() / (2 + gradients.relu() * features.sum((2, 3), keepdim=True))).sum((2, 3))
    return bilinear(weighted(weights, features), task.images.shape[2:])


def layercam(task: Task, layer: nn.Module) -> Tensor:
    """ReLU(sum_k ReLU(g_k) * A_k), a weight for each position (Jiang et al. 2021, equations 6 and 7)."""
    features, gradients = features_and_gradients(task, layer, task.images)
    return bilinear((gradients.relu() * features).sum(1).relu(), task.images.shape[2:])


def scorecam(task: Task, layer: nn.Module, chunk: int = 128) -> Tensor:
    """ReLU(sum_k w_k A_k), w = softmax over channels of the increase of confidence f(x * H_k) - f(x_b), H_k = A_k
    bilinear to image size, then scaled to [0, 1] by its own minimum and maximum (Wang et al. 2020, algorithm 1).

    The softmax does not depend on f(x_b), which is not computed. A channel that is constant over the image has no H_k
    and weight 0. NaN where all are constant (features of 1 x 1, for one).
    """
    size, features = task.images.shape[2:], features_and_gradients(task, layer, task.images)[0]
    varies = features.amax((2, 3)) > features.amin((2, 3))
    scores = torch.full_like(features[:, :, 0, 0], -torch.inf)
    for pairs in varies.nonzero().split(task.at_once(chunk)):
        index, channel = pairs.unbind(1)
        masks = bilinear(features[index, channel], size)
        low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
        masked = task.images[index] * ((masks - low) / (high - low))[:, None]
        scores[index, channel] = task.scores(masked, index)
    return bilinear(weighted(scores.softmax(1), features), size)
