"""AOPC: `perturbation_curve` against quantus' RegionPerturbation, the same tiles replaced by black."""

import warnings
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models import network, samples
from benchmarks.timing import Row, compare, difference, interleaved, peer
from lib.metrics import perturbation_curve

SETTINGS = (
    ("tiny", 64, 16, 64),
    ("tiny", 224, 4, 50),
    ("compact", 64, 16, 12),
    ("resnet18", 96, 8, 8),
)  # px, images, steps
TILE = 8


def ours(model: nn.Module, images: Tensor, maps: Tensor, classes: Tensor, steps: int) -> Tensor:
    """(N, steps): f(x) - f(x^(k)), k = 1..steps."""
    curve = perturbation_curve(lambda x: model(x).softmax(1), images, maps, classes, tile=TILE, steps=steps)
    return curve[:, :1] - curve[:, 1:]


def theirs(batch: int, model: nn.Module, images: Tensor, maps: Tensor, classes: Tensor, steps: int) -> Tensor:
    """The same from quantus, `batch` images at a time (64 is its default); the maps go in as they are."""
    metric = peer("quantus").RegionPerturbation(
        patch_size=TILE, regions_evaluation=steps, normalise=False, disable_warnings=True
    )
    given = {"x_batch": images.numpy(), "y_batch": classes.numpy(), "a_batch": maps.numpy()[:, None]}
    with warnings.catch_warnings(action="ignore"):
        values = metric(model=model, **given, softmax=True, device="cpu", batch_size=batch)
    return torch.from_numpy(np.array(values))


def run() -> list[Row]:
    rows = []
    for name, side, count, steps in SETTINGS:
        given = (network(name), *samples(count, side), steps)
        calls = {"ours": partial(ours, *given)}
        calls |= {f"quantus, {batch} at once": partial(theirs, batch, *given) for batch in (64, 1)}
        mine = calls["ours"]()
        agreements = {key: difference(mine, call(), 1e-4) for key, call in calls.items() if key != "ours"}
        work = f"AOPC, {name}, {count} images of {side} px, tiles of {TILE}, {steps} steps"
        rows += compare(work, interleaved(calls), agreements, target=10)
    return rows
