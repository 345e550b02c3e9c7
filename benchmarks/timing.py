"""Interleaved timing and the table of what came out."""

import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

REPEATS = 7


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is how many times as long the peer takes, `low` and `high` its quartiles."""

    work: str
    peer: str
    ours_ms: float
    peer_ms: float
    ratio: float
    low: float
    high: float
    target: float  # ratio asked for
    agreement: str

    @property
    def met(self) -> bool:
        return self.ratio >= self.target


def peer(name: str) -> ModuleType:
    """The library of that import name. Raises SystemExit with one sentence if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(
            f"{name}: not installed, or without what it needs ({error}); pip install -e '.[bench]'"
        ) from None


def interleaved(calls: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """Seconds of each call, A B A B ..., so that whatever else runs slows all alike; one round before to warm up."""
    seconds = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def difference(ours: Tensor, theirs: Tensor, tolerance: float) -> str:
    """The largest absolute difference, as text. Raises AssertionError above `tolerance`: then speed means nothing."""
    if ours.shape != theirs.shape:
        raise AssertionError(f"shapes differ: {tuple(ours.shape)} and {tuple(theirs.shape)}")
    largest = float((ours - theirs).abs().max())
    if not largest <= tolerance:
        raise AssertionError(f"values differ by {largest:.2g}, expected at most {tolerance:g}")
    return f"max. difference {largest:.0e}"


def compare(work: str, seconds: dict[str, list[float]], agreements: dict[str, str], target: float) -> list[Row]:
    """Rows of 'ours' against each peer in `seconds`; ratios are taken turn by turn, then their median."""
    rows = []
    for name, agreement in agreements.items():
        ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds[name], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
        ours, theirs = (1e3 * statistics.median(seconds[key]) for key in ("ours", name))
        rows.append(Row(work, name, ours, theirs, ratio, low, high, target, agreement))
    return rows


def table(rows: list[Row]) -> str:
    """Markdown; a ratio above 1 means that ours is faster."""
    lines = [
        "| work | peer | ours [ms] | peer [ms] | ratio (quartiles) | target | | same result |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for row in rows:
        ratio = f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})"
        verdict = "met" if row.met else "**missed**"
        cells = (row.work, row.peer, f"{row.ours_ms:.1f}", f"{row.peer_ms:.1f}", ratio, f"{row.target:.3g}", verdict)
        lines.append(f"| {' | '.join([*cells, row.agreement])} |")
    return "\n".join(lines)
