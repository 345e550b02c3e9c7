"""Class activation maps: weighted sums over the channels of a feature map, rectified, bilinear to image size. A is the
output (C, h, w) of the task's layer, f the target logit (at the image's own z where there is one), g = df/dA."""

import torch
from torch import Tensor, nn

from lib.explain.task import Task, upsample


def features_and_gradients(task: Task, images: Tensor, index: Tensor | slice = slice(None)) -> tuple:
    """A and g (None where gradients are off), both (m, C, h, w), of variants (m, C, H, W) of the task's images number
    `index`. Raises TypeError without a layer, ValueError where it gives no A."""
    if task.layer is None:
        raise task.refusal("of lib.models or the option `layer`")
    found = []

    def cut(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor | None:
        if getattr(output, "ndim", 0) == 4:
            found.append(output.detach().requires_grad_())  # a leaf of the graph
        return found[-1] if found else None

    with task.layer.register_forward_hook(cut):
        scores = task.scores(images.detach(), index)
    if not found:
        raise ValueError(f"layer: expected one that runs and puts out (N, C, h, w), got {type(task.layer).__name__}")
    gradients = torch.autograd.grad(scores.sum(), found[-1])[0] if torch.is_grad_enabled() else None
    return found[-1].detach(), gradients


def weighted(weights: Tensor, features: Tensor) -> Tensor:
    """ReLU(sum_k w_k A_k): (n, C) and (n, C, h, w) -> (n, h, w)."""
    return torch.einsum("nc,nchw->nhw", weights, features).relu()


def gradcam(task: Task) -> Tensor:
    """ReLU(sum_k w_k A_k), w_k the mean of g_k over positions (Selvaraju et al. 2017, equations 1 and 2)."""
    features, gradients = features_and_gradients(task, task.images)
    return upsample(weighted(gradients.mean((2, 3)), features), task.images.shape[2:], "bilinear")


def smooth_gradcam(task: Task, noise: float = 0.15, samples: int = 16) -> Tensor:
    """Mean Grad-CAM over `samples` copies of the image with Gaussian noise, its standard deviation a share `noise` of
    the image's range: the averaging of SmoothGrad (Smilkov et al. 2017), not Smooth Grad-CAM++ (Omeiza et al. 2019)."""
    total = 0
    for index, copies in task.noisy_copies(noise, samples):
        features, gradients = features_and_gradients(task, copies, index)
        maps = weighted(gradients.mean((2, 3)), features)
        total = maps.new_zeros(len(task.images), *maps.shape[1:]).index_add_(0, index, maps) + total
    return upsample(total / samples, task.images.shape[2:], "bilinear")


def gradcam_pp(task: Task) -> Tensor:
    """ReLU(sum_k w_k A_k), w_k = sum_ij a_kij ReLU(g_kij), a_kij = 1 / (2 + g_kij sum_ab A_kab) where g_kij > 0
    (Chattopadhay et al. 2018, equations 10 and 19, without its factor exp(f))."""
    features, gradients = features_and_gradients(task, task.images)
    weights = (gradients.relu() / (2 + gradients.relu() * features.sum((2, 3), keepdim=True))).sum((2, 3))
    return upsample(weighted(weights, features), task.images.shape[2:], "bilinear")


def layercam(task: Task) -> Tensor:
    """ReLU(sum_k ReLU(g_k) * A_k), a weight for each position (Jiang et al. 2021, equations 6 and 7)."""
    features, gradients = features_and_gradients(task, task.images)
    return upsample((gradients.relu() * features).sum(1).relu(), task.images.shape[2:], "bilinear")


def scorecam(task: Task) -> Tensor:
    """ReLU(sum_k w_k A_k), w = softmax over channels of f(x * H_k), H_k = A_k bilinear to image size, then scaled to
    [0, 1] (Wang et al. 2020, algorithm 1; its baseline f(x_b) cancels). A channel that is constant over the image has
    no H_k and weight 0. NaN where all are constant (features of 1 x 1, for one)."""
    features = features_and_gradients(task, task.images)[0]
    varies = features.amax((2, 3)) > features.amin((2, 3))
    scores = torch.full_like(features[:, :, 0, 0], -torch.inf)
    for pairs in varies.nonzero().split(task.at_once):
        index, channel = pairs.unbind(1)
        masks = upsample(features[index, channel], task.images.shape[2:], "bilinear")
        low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
        scores[index, channel] = task.scores(task.images[index] * ((masks - low) / (high - low))[:, None], index)
    return upsample(weighted(scores.softmax(1), features), task.images.shape[2:], "bilinear")
