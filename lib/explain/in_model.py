"""What a self-explaining model says itself; class evidence maps are made bicubic to image size."""

from dataclasses import replace

import torch
from torch import Tensor

from lib.explain.task import Task, upsample
from lib.models import to_softcam


def said(task: Task, name: str, what: str) -> tuple[Tensor, Tensor]:
    """Logits (n, K) and the field `name` of what the model puts out; TypeError where it has none."""
    output = task.model(task.images)
    if not hasattr(output, name):
        raise task.refusal(f"with {what}")
    return output.logits, getattr(output, name)


def evidence(task: Task) -> Tensor:
    """The target's class evidence map (Djoumessi & Berens 2025)."""
    _, maps = said(task, "evidence", "class evidence maps")
    return upsample(maps[torch.arange(len(maps)), task.targets], task.images.shape[2:])


def explainer(task: Task) -> Tensor:
    """The Explainer's heatmap z, in [0, 1], the same for every target (Rio-Torto et al. 2020)."""
    return said(task, "explanation", "an Explainer")[1][:, 0]


def tte_cam(task: Task) -> Tensor:
    """The evidence of `to_softcam(model)` (TTE-CAM, arXiv 2603.26885)."""
    task.model(task.images)  # whose logits are checked
    try:
        return evidence(replace(task, model=to_softcam(task.model)))
    except ValueError as error:
        raise task.refusal("with global average pooling before its only linear layer") from error
