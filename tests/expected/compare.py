"""python -m tests.expected.compare RUNS: whether a finished pipeline still gives results.csv, within tolerances."""

import sys
from pathlib import Path

import pandas as pd

from lib.table import load, results

TOLERANCE = {
    "accuracy": 0.03, "top-1 precision": 0.1, "activation precision": 0.15, "pointing game": 0.15, "POMPOM": 0.05,
}  # fmt: skip


def deviations(found: pd.DataFrame, expected: pd.DataFrame) -> list[str]:
    """Where a table of results leaves an expected one: missing rows, numbers too far off; empty: nowhere."""
    keys = ["data", "model", "map"]
    found, expected = (frame.astype(dict.fromkeys(keys, str)).set_index(keys) for frame in (found, expected))
    said = [f"{', '.join(key)}: missing" for key in expected.index.difference(found.index)]
    found = found.reindex(expected.index.intersection(found.index))
    for column, off in TOLERANCE.items():
        have, want = found[column], expected[column].reindex(found.index)
        for key in found.index[(have.isna() != want.isna()) | ((have - want).abs() > off)]:
            said.append(f"{', '.join(key)}: {column} {have[key]:.3f}, expected {want[key]:.3f} +- {off}")
    return said


if __name__ == "__main__":
    expected = pd.read_csv(Path(__file__).with_name("results.csv"))
    sys.exit("\n".join(deviations(results(load(sys.argv[1])), expected)) or None)
