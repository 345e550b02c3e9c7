"""What a self-explaining model says itself."""

import torch
from torch import Tensor

from lib.explain.core import Task, checked_logits, register, upsample
from lib.models import to_softcam


def _class_maps(task: Task, method: str) -> tuple[Tensor, Tensor]:
    """Logits (n, K) and class evidence maps (n, K, h, w) of a model that has them."""
    output = task.model(task.images)
    if not hasattr(output, "evidence"):
        raise TypeError(f"{method}: expected a model with class evidence maps, got {type(task.model).__name__}")
    return checked_logits(output, task.logits.highest), output.evidence


@register("SoftCAM evidence", "in-model", signed=True, needs_grad=False)
def evidence(task: Task) -> Tensor:
    """The target's class evidence map, bicubic to image size (Djoumessi & Berens 2025)."""
    maps = _class_maps(task, "evidence")[1]
    return upsample(maps[torch.arange(len(maps)), task.targets], task.images.shape[2:])


@register("Explainer", "in-model", signed=False, needs_grad=False)
def explainer(task: Task) -> Tensor:
    """The Explainer's heatmap z, in [0, 1], the same for every target (Rio-Torto et al. 2020)."""
    output = task.model(task.images)
    if not hasattr(output, "explanation"):
        raise TypeError(f"explainer: expected a model with an Explainer, got {type(task.model).__name__}")
    checked_logits(output, 0)  # any target will do
    return output.explanation[:, 0]


@register("SoftCAM evidence difference", "in-model", signed=True, needs_grad=False)
def evidence_difference(task: Task, other: int | None = None) -> Tensor:
    """The target's class evidence map less that of another class, bicubic to image size: A_t - A_o, whose mean is the
    margin of the two logits.

    `other`: that class; by default the runner-up, the class of the highest logit except the target. Raises ValueError
    if it is the target of an image or no class, TypeError for a model of a single class.
    """
    logits, maps = _class_maps(task, "evidence_difference")
    if (classes := maps.shape[1]) < 2:
        raise TypeError(f"evidence_difference: expected a model of 2 classes or more, got {classes}")
    if other is None:
        others = logits.scatter(1, task.targets[:, None], -torch.inf).argmax(1)
    elif other in range(classes) and not (task.targets == other).any():
        others = torch.full_like(task.targets, other)
    else:
        raise ValueError(f"other: expected a class in 0..{classes - 1} that is no image's target, got {other}")
    rows = torch.arange(len(maps))
    return upsample(maps[rows, task.targets] - maps[rows, others], task.images.shape[2:])


@register("TTE-CAM", "in-model", signed=True, needs_grad=False)
def tte_cam(task: Task) -> Tensor:
    """The target's evidence map of a black box whose linear layer is moved before its pooling, without training,
    bicubic to image size: the class evidence of `to_softcam(model)` (TTE-CAM, arXiv 2603.26885).

    Raises TypeError for a model that is not global average pooling and one linear layer after its features.
    """
    try:
        twin = to_softcam(task.model)
    except ValueError as error:
        raise TypeError(
            f"tte_cam: expected a model with global average pooling before its only linear layer, "
            f"got {type(task.model).__name__} ({error})"
        ) from error
    output = twin(task.images)
    checked_logits(output, task.logits.highest)
    return upsample(output.evidence[torch.arange(len(task.targets)), task.targets], task.images.shape[2:])
