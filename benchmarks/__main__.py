"""`python -m benchmarks [perturbation] [cam] [forward] [start] [memory]`: prints Markdown tables, by default all."""

import platform
import sys
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks import cam, forward, memory, perturbation, start
from benchmarks.timing import REPEATS, table

TOLD = {"start": start.run, "memory": memory.run}
TIMED = {"perturbation": perturbation.run, "cam": cam.run, "forward": forward.run}
LIBRARIES = ("torch", "torchvision", "numpy", "quantus", "grad-cam", "torchcam")


def installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} missing"


def processor() -> str:
    """As the system names it, where it does."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(chosen: list[str]) -> None:
    if unknown := set(chosen) - {*TIMED, *TOLD}:
        known = ", ".join([*TIMED, *TOLD])
        raise SystemExit(f"benchmarks: expected some of {known}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    begin = time.perf_counter()
    print(f"{date.today()}, Python {platform.python_version()}, {', '.join(map(installed, LIBRARIES))}; {processor()}")
    print(
        f"One thread; ours and peers in turn, medians of at least {REPEATS} turns; a ratio above 1: ours is faster.\n"
    )
    for name, timed in TIMED.items():
        if not chosen or name in chosen:
            print(f"{table(timed())}\n", flush=True)
    for name, told in TOLD.items():
        if not chosen or name in chosen:
            print(f"{told()}\n", flush=True)
    print(f"{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main(sys.argv[1:])
