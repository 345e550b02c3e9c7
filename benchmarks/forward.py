"""SoftCAM's forward pass with its evidence maps against that of the black box with the same backbone."""

from functools import partial

import torch
from torch import nn

from benchmarks.models import network, samples
from benchmarks.timing import Row, compare, difference, interleaved
from lib.models import to_softcam

SETTINGS = (("compact", 64, 32), ("resnet18", 96, 16))


@torch.inference_mode()
def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    output = model(images)
    return getattr(output, "logits", output)


def run() -> list[Row]:
    rows = []
    for name, side, count in SETTINGS:
        images, blackbox = samples(count, side)[0], network(name)
        calls = {"ours": partial(logits, to_softcam(blackbox), images), "black box": partial(logits, blackbox, images)}
        agreement = difference(calls["ours"](), calls["black box"](), 1e-4)
        work = f"SoftCAM forward with maps, {name}, {count} images of {side} px"
        rows += compare(work, interleaved(calls, repeats=40), {"black box": agreement}, target=1 / 1.02)
    return rows
