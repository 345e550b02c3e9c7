"""What a self-explaining model says itself; class evidence maps are made bicubic to image size."""

from dataclasses import replace

import torch
from torch import Tensor

from lib.explain.task import Task, refusal, upsample
from lib.models import to_softcam


def said(task: Task, method: str, name: str, what: str) -> tuple[Tensor, Tensor]:
    """The logits (n, K) of a model, and what else it puts out by that name."""
    output = task.model(task.images)
    if not hasattr(output, name):
        raise refusal(method, f"with {what}", task.model)
    return task.logits.checked(output), getattr(output, name)


def evidence(task: Task) -> Tensor:
    """The target's class evidence map (Djoumessi & Berens 2025)."""
    _, maps = said(task, "evidence", "evidence", "class evidence maps")
    return upsample(maps[torch.arange(len(maps)), task.targets], task.images.shape[2:])


def explainer(task: Task) -> Tensor:
    """The Explainer's heatmap z, in [0, 1], the same for every target (Rio-Torto et al. 2020)."""
    return said(task, "explainer", "explanation", "an Explainer")[1][:, 0]


def evidence_difference(task: Task, other: int | None = None) -> Tensor:
    """The target's class evidence map less that of another class: A_t - A_o, whose mean is the margin of the logits.

    `other`: that class; by default the runner-up, the class of the highest logit except the target. Raises ValueError
    if it is the target of an image or no class, TypeError for a model of a single class.
    """
    logits, maps = said(task, "evidence_difference", "evidence", "class evidence maps")
    if (classes := maps.shape[1]) < 2:
        raise refusal("evidence_difference", "of 2 classes or more", task.model)
    if other is None:
        others = logits.scatter(1, task.targets[:, None], -torch.inf).argmax(1)
    elif other in range(classes) and not (task.targets == other).any():
        others = torch.full_like(task.targets, other)
    else:
        raise ValueError(f"other: expected a class in 0..{classes - 1} that is no image's target, got {other}")
    rows = torch.arange(len(maps))
    return upsample(maps[rows, task.targets] - maps[rows, others], task.images.shape[2:])


def tte_cam(task: Task) -> Tensor:
    """The evidence of `to_softcam(model)`, a black box whose linear layer is moved before its pooling, without training
    (TTE-CAM, arXiv 2603.26885). Raises TypeError where that would change the logits."""
    try:
        twin = to_softcam(task.model)
    except ValueError as error:
        raise refusal("tte_cam", "with global average pooling before its only linear layer", task.model) from error
    return evidence(replace(task, model=twin))
