"""AOPC: `perturbation_curve` against quantus' RegionPerturbation, the same tiles replaced by black, and against its own
forward passes alone. Ours asks the network as a run does, folded; quantus gets it as its user has it."""

import statistics
import warnings
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models import network, samples
from benchmarks.timing import Row, compare, difference, interleaved, peer
from lib.metrics import perturbation_curve
from lib.run import folded

SETTINGS = (
    ("tiny", 64, 16, 64),
    ("tiny", 224, 4, 50),
    ("compact", 64, 16, 12),
    ("resnet18", 96, 8, 8),
)  # px, images, steps
TILE, BATCHES = 8, (8, 16, 32, 64)


@torch.inference_mode()
def probabilities(model: nn.Module, batch: int, images: Tensor) -> Tensor:
    return torch.cat([model(part) for part in images.split(batch)]).softmax(1)


def ours(model: nn.Module, images: Tensor, maps: Tensor, classes: Tensor, steps: int) -> Tensor:
    """(N, steps): f(x) - f(x^(k)), k = 1..steps; 16 images at a time, as `Run.predict`."""
    curve = perturbation_curve(partial(probabilities, model, 16), images, maps, classes, tile=TILE, steps=steps)
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
        fast = folded(given[0]).to(memory_format=torch.channels_last)
        calls = {"ours": partial(ours, fast, *given[1:])}
        calls |= {f"quantus, {batch} at once": partial(theirs, batch, *given) for batch in (64, 1)}
        mine = calls["ours"]()
        agreements = {key: difference(mine, call(), 1e-4) for key, call in calls.items() if key != "ours"}
        work = f"AOPC, {name}, {count} images of {side} px, tiles of {TILE}, {steps} steps"
        shown = given[1].repeat(1 + steps, 1, 1, 1)  # as many images as ours shows to the network
        passes = {f"its passes alone, {b} at once": partial(probabilities, fast, b, shown) for b in BATCHES}
        seconds = interleaved(calls | passes)
        best = min(passes, key=lambda name: statistics.median(seconds[name]))
        rows += compare(work, seconds, agreements, target=1.25)
        if name != "tiny":  # which has next to none
            rows += compare(work, seconds, {best: ""}, target=1 / 1.1)
    return rows
