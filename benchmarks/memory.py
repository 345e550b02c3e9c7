"""Peak memory of the evaluation of N images: every faithfulness metric, as 04_evaluate runs it.

Each N runs in a process of its own (`python -m benchmarks.memory N` prints its peak in MB): a peak never falls.
"""

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import torch

COUNTS, SIDE = (50, 100, 200, 400), 64
SLACK_MB = 8  # of one allocation more or less
RECIPE = {"aopc_tile": 16, "aopc_steps": 4, "deletion_steps": 2, "perturbation": "black", "deletion_fill": "mean"}


def stored_mb(count: int) -> float:
    """Images (count, 3, H, W) and maps (count, H, W), float32."""
    return count * 4 * SIDE**2 * 4 / 1e6


def evaluate(count: int) -> float:
    """MB: the peak resident size of this process after Grad-CAM and `lib.evaluate` on `count` images."""
    from benchmarks.models import network, samples
    from lib.evaluate import kept, removed
    from lib.explain import explain

    images, classes = samples(count, SIDE)[::2]
    model = network("tiny")
    maps = explain("gradcam", model, images, classes, layer=model[0])
    recipe = SimpleNamespace(patch=SIDE // 4, stream=lambda *_: 0, **RECIPE)
    run = SimpleNamespace(recipe=recipe, predict=torch.no_grad()(lambda x: model(x).softmax(1)))
    batch = {"image": images, "label": classes}
    removed(run.predict, run, maps, batch)
    kept(run.predict, run, maps, batch)
    return peak_mb()


def peak_mb() -> float:
    """Peak resident size of this process (Linux; elsewhere NaN). `resource.getrusage` would count its parent's too."""
    if sys.platform != "linux":
        return math.nan
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def measure(count: int) -> float:
    """`evaluate` in a new process, whose glibc returns blocks above 256 KB as soon as they are freed: no fragments."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}
    command = [sys.executable, "-m", "benchmarks.memory", str(count)]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def run() -> str:
    """Markdown table of the peaks and the verdict."""
    peaks = {count: measure(count) for count in COUNTS}
    lines = ["| images | images and maps [MB] | peak memory [MB] |", "|---:|---:|---:|"]
    lines += [f"| {count} | {stored_mb(count):.1f} | {peak:.0f} |" for count, peak in peaks.items()]
    grown, allowed = peaks[COUNTS[-1]] - peaks[COUNTS[0]], stored_mb(COUNTS[-1]) - stored_mb(COUNTS[0])
    return "\n".join([*lines, "", verdict(grown, allowed)])


def verdict(grown: float, stored: float) -> str:
    if math.isnan(grown):
        return "Not measured: the peak is read from /proc, which Linux alone has."
    met = "met" if grown <= stored + SLACK_MB else "**missed**"
    growth = f"the peak grows by {grown:.0f} MB, images and maps by {stored:.0f} MB"
    return f"From {COUNTS[0]} to {COUNTS[-1]} images {growth}; target: no more than these and {SLACK_MB} MB: {met}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(evaluate(int(sys.argv[1])))
