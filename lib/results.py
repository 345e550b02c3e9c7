"""Evaluated runs gathered: by data set and variant, over seeds; as a table; with a hash of what a figure shows."""

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.data import Description
from lib.explain import METHODS
from lib.plots import VARIANTS
from lib.recipe import PROJECT
from lib.runs import Run, plain

ORDER = ("shapes", "digits", "chest", "fundus")


class Results:
    """Evaluated runs, by data set and variant; where a recipe ran with several seeds, their mean and spread."""

    def __init__(self, runs: Iterable[Run]):
        self.runs = sorted(runs, key=lambda r: (list(VARIANTS).index(r.recipe.variant), r.recipe.name, r.recipe.seed))
        if not self.runs:
            raise ValueError("runs: expected at least one evaluated run (with metrics.json), got none")
        self.metrics = {run.dir.name: run.metrics for run in self.runs}
        names = {run.description.name for run in self.runs}
        self.datasets = sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
        self.seeds = sorted({run.recipe.seed for run in self.runs})
        named = {(r.description.name, r.recipe.variant, r.recipe.name) for r in self.runs}
        self.ambiguous = {pair for pair, count in Counter((d, v) for d, v, _ in named).items() if count > 1}

    @classmethod
    def load(cls, runs_dir: str | Path, recipes: Sequence[str] | None = None, seeds: int | None = None) -> "Results":
        """Every evaluated run of a folder, or those of the recipes named, with seeds below `seeds`."""
        found = [Run.load(path.parent) for path in sorted((PROJECT / runs_dir).glob("*/metrics.json"))]
        found = [run for run in found if recipes is None or run.recipe.name in recipes]
        return cls(run for run in found if seeds is None or run.recipe.seed < seeds)

    def label(self, run: Run) -> str:
        """A model's name in figures: its variant, with the recipe's name where two recipes of a data set share it."""
        shared = (run.description.name, run.recipe.variant) in self.ambiguous
        return f"{run.recipe.variant} ({run.recipe.name})" if shared else run.recipe.variant

    def variants(self, dataset: str) -> list[str]:
        return list(dict.fromkeys(self.label(r) for r in self.runs if r.description.name == dataset))

    def of(self, dataset: str, variant: str) -> list[Run]:
        """Runs of a variant (as `label` has it) on a data set, one per seed."""
        return [r for r in self.runs if r.description.name == dataset and self.label(r) == variant]

    def content(self, dataset: str) -> dict[str, Any]:
        """The metrics of the first run on a data set: its recipe and what precision is read against."""
        return self.metrics[next(r for r in self.runs if r.description.name == dataset).dir.name]

    def description(self, dataset: str) -> Description:
        return next(r.description for r in self.runs if r.description.name == dataset)

    def heading(self, dataset: str) -> str:
        return f"{dataset} (synthetic)" if self.description(dataset).synthetic else dataset

    def value(self, dataset: str, variant: str, *keys: str) -> dict[str, Any] | None:
        """A measured number or curve: of one seed with its bootstrap interval, of several their mean with its range."""
        found = []
        for run in self.of(dataset, variant):
            content = self.metrics[run.dir.name]
            for key in keys:
                content = content.get(key, {}) if isinstance(content, dict) else {}
            found += [content] if isinstance(content, dict) and "value" in content else []
        if len(found) < 2:
            return found[0] if found else None
        values = np.array([f["value"] for f in found], dtype=float)
        return {"value": values.mean(0).tolist(), "low": values.min(0).tolist(), "high": values.max(0).tolist()}

    def explained(self, dataset: str) -> list[tuple[str, str]]:
        """(method, variant) of every map on a data set; a method on its own model, post-hoc ones on the black box."""
        pairs = []
        for variant in self.variants(dataset):
            methods = self.metrics[self.of(dataset, variant)[0].dir.name]["explanations"]
            family = {m: METHODS[m].family for m in methods}
            pairs += [(m, variant) for m in methods if variant.startswith("black box") or family[m] == "in-model"]
        return pairs

    def series(self, dataset: str, *keys: str) -> dict[str, dict]:
        """'method | variant' -> the values of a metric."""
        pairs = {f"{m} | {v}": self.value(dataset, v, "explanations", m, *keys) for m, v in self.explained(dataset)}
        return {key: found for key, found in pairs.items() if found}


def data_hash(data: Any) -> str:
    """SHA-256 of plotted data, numbers rounded to six significant digits: the same data give the same hash anywhere."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value

    return hashlib.sha256(json.dumps(rounded(plain(data)), sort_keys=True).encode()).hexdigest()


def table(results: Results) -> pd.DataFrame:
    """One row per model and method: accuracy, AUC, localisation; the means over seeds."""
    rows = []
    for dataset in results.datasets:
        for method, variant in results.explained(dataset):
            found = {key: results.value(dataset, variant, "explanations", method, key)
                     for key in ("topk_precision", "activation_precision", "pointing_game", "pompom")}  # fmt: skip
            numbers = {
                key: (f["value"][0] if isinstance(f["value"], list) else f["value"]) if f else None
                for key, f in found.items()
            }
            score = results.value(dataset, variant, "classification", "accuracy_interval")["value"]
            rows.append({"data": dataset, "model": variant, "accuracy": score, "map": METHODS[method].label, **numbers})
    frame = pd.DataFrame(rows).rename(columns={"topk_precision": "top-1 precision", "pompom": "POMPOM"})
    return frame.rename(columns=lambda name: name.replace("_", " "))


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, numbers with three digits."""

    def cell(value: Any) -> str:
        return ("" if pd.isna(value) else f"{value:.3f}") if isinstance(value, float) or value is None else str(value)

    rows = [list(frame.columns), *([cell(v) for v in row] for row in frame.itertuples(index=False))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]) + "\n"


TOLERANCE = {
    "accuracy": 0.03,
    "top-1 precision": 0.1,
    "activation precision": 0.15,
    "pointing game": 0.15,
    "POMPOM": 0.05,
}


def deviations(found: pd.DataFrame, expected: pd.DataFrame) -> list[str]:
    """Where a table of results leaves an expected one: missing rows, numbers beyond `TOLERANCE`; empty: nowhere."""
    keys = ["data", "model", "map"]
    found, expected = (frame.set_index(keys).astype(float) for frame in (found, expected))
    said = [f"{', '.join(key)}: missing" for key in expected.index.difference(found.index)]
    for key in expected.index.intersection(found.index):
        for column, tolerance in TOLERANCE.items():
            have, want = found.loc[key, column], expected.loc[key, column]
            if math.isnan(have) != math.isnan(want) or abs(have - want) > tolerance:
                said.append(f"{', '.join(key)}: {column} {have:.3f}, expected {want:.3f} +- {tolerance}")
    return said


if __name__ == "__main__":  # python -m lib.results RUNS EXPECTED.csv: the regression check of a finished pipeline
    folder, reference = sys.argv[1:]
    problems = deviations(table(Results.load(folder)), pd.read_csv(reference))
    sys.exit("\n".join(problems) if problems else None)
