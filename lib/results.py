"""Evaluated runs gathered: by data set and variant, over seeds; as a table; with a hash of what a figure shows."""

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.data import Description, load_description
from lib.explain import METHODS
from lib.metrics import bootstrap_ci
from lib.plots import MAIN, VARIANTS
from lib.recipe import PROJECT
from lib.runs import Run
from lib.writing import plain, write_text, write_whole

ORDER = ("shapes", "digits", "chest", "fundus")
Shown = dict[str, Any]  # {"value", "low", "high", "used"} of a number or of a curve


class Results:
    """Evaluated runs, by data set and variant; where a recipe ran with several seeds, their mean and spread.

    `runs` are those that are compared with one another; `points`, of sweeps, and `permuted`, trained on permuted
    labels, are kept apart from them. Runs of a data set are compared image by image: ValueError where they are not
    measured on the same ones.
    """

    def __init__(self, runs: Iterable[Run]):
        every = sorted(runs, key=lambda r: (list(VARIANTS).index(r.recipe.variant), r.recipe.name, r.recipe.seed))
        self.permuted = [run for run in every if run.recipe.random_labels]
        self.points = [run for run in every if run not in self.permuted and run.recipe.sweep]
        self.runs = [run for run in every if run not in self.permuted and run not in self.points]
        if not self.runs:
            raise ValueError("runs: expected at least one evaluated run (with metrics.json), got none")
        self.metrics = {run.dir.name: run.metrics for run in every}
        networks = {(measured_on(run), run.recipe.architecture) for run in self.runs}
        self.several = {name for name, count in Counter(name for name, _ in networks).items() if count > 1}
        names = {self.group(run) for run in self.runs}
        self.datasets = sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
        self.seeds = sorted({run.recipe.seed for run in self.runs})
        named = {(self.group(r), r.recipe.variant, r.recipe.name) for r in self.runs}
        for dataset in self.datasets:
            self.check_images([run for run in self.runs if self.group(run) == dataset])
        self.ambiguous = {pair for pair, count in Counter((d, v) for d, v, _ in named).items() if count > 1}

    @classmethod
    def load(cls, runs_dir: str | Path, recipes: Sequence[str] | None = None, seeds: int | None = None) -> "Results":
        """Every evaluated run of a folder, or those of the recipes named, with seeds below `seeds`."""
        folders = [path.parent for path in sorted((PROJECT / runs_dir).glob("*/metrics.json"))]
        return cls(
            run
            for run in map(Run.load, folders)
            if (recipes is None or run.recipe.name in recipes) and (seeds is None or run.recipe.seed < seeds)
        )

    def check_images(self, runs: Sequence[Run]) -> None:
        """ValueError naming two runs and the first image in which they differ, up to as many as both have."""
        names = [run.dir.name for run in runs]
        images = [self.metrics[name]["images"] for name in names]
        for name, other in zip(names[1:], images[1:], strict=True):
            for i, (a, b) in enumerate(zip(images[0], other, strict=False), 1):
                if a != b:
                    said = f"runs: {names[0]} and {name} are measured on other images: image {i} is {a} and {b}"
                    raise ValueError(f"{said}; run 03 and 04 of both again")

    def group(self, run: Run) -> str:
        """What is compared with one another: a data set, or 'data set, architecture' where it has several."""
        name = measured_on(run)
        return f"{name}, {run.recipe.architecture}" if name in self.several else name

    def label(self, run: Run) -> str:
        """A model's name in figures: its variant, with the recipe's name where two recipes of a data set share it."""
        shared = (self.group(run), run.recipe.variant) in self.ambiguous
        return f"{run.recipe.variant} ({run.recipe.name})" if shared else run.recipe.variant

    def variants(self, dataset: str) -> list[str]:
        return list(dict.fromkeys(self.label(r) for r in self.runs if self.group(r) == dataset))

    def of(self, dataset: str, variant: str) -> list[Run]:
        """Runs of a variant (as `label` has it) on a data set, one per seed."""
        return [r for r in self.runs if self.group(r) == dataset and self.label(r) == variant]

    def content(self, dataset: str) -> dict[str, Any]:
        """The metrics of the first run on a data set: its recipe and what precision is read against."""
        return self.metrics[next(r for r in self.runs if self.group(r) == dataset).dir.name]

    def description(self, dataset: str) -> Description:
        return data_of(next(r for r in self.runs if self.group(r) == dataset))

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
        return pooled(found)

    def values(self, dataset: str, variant: str, method: str, metric: str) -> dict[int, Tensor]:
        """seed -> per-image values (N,) of a method's metric, NaN where undefined; empty where nothing was measured."""
        stored = {run.recipe.seed: run.values for run in self.of(dataset, variant)}
        return {seed: found[key] for seed, found in stored.items() if (key := f"{method}/{metric}") in found}

    def differences(self, dataset: str, a: tuple[str, str, str], b: tuple[str, str, str]) -> Tensor | None:
        """a - b, each (variant, method, metric), image by image: (S, N) of the seeds that both have; None if none."""
        first, second = self.values(dataset, *a), self.values(dataset, *b)
        pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
        if not pairs:
            return None
        n = min(len(values) for pair in pairs for values in pair)
        return torch.stack([x[:n] - y[:n] for x, y in pairs])

    def measured(self, dataset: str, variant: str, method: str, metric: str, less: str | None = None) -> Shown | None:
        """`value` from the per-image values of a metric, less those of the metric `less` on the same images."""
        found = self.values(dataset, variant, method, metric)
        if less:
            other = self.values(dataset, variant, method, less)
            found = {seed: values - other[seed] for seed, values in found.items() if seed in other}
        known = [values for values in found.values() if values.isfinite().any()]
        return pooled([mean_interval(values, self.patients(dataset, len(values))) for values in known])

    def patients(self, dataset: str, count: int) -> list[str]:
        """Patient of each of the first `count` test images, empty where not known."""
        return self.content(dataset)["patients"][:count]

    def diseased(self, dataset: str, count: int | None = None) -> Tensor:
        """(N,) boolean: which of the (first `count`) explained test images have label 1."""
        found = [r.values["images/label"] for r in self.runs if self.group(r) == dataset]
        return max(found, key=len)[:count] == 1

    def explained(self, dataset: str) -> list[tuple[str, str]]:
        """(method, variant) of every map on a data set; a method on its own model, post-hoc ones on the black box."""
        pairs = []
        for variant in self.variants(dataset):
            methods = self.metrics[self.of(dataset, variant)[0].dir.name]["explanations"]
            family = {m: METHODS[m].family for m in methods}
            pairs += [(m, variant) for m in methods if variant.startswith("black box") or family[m] == "in-model"]
        return pairs

    def shown(self, dataset: str, every: bool = False) -> list[tuple[str, str]]:
        """`explained`, in-model maps first: of the post-hoc methods only `MAIN`, or every one; no difference map,
        which with two classes ranks as the evidence does."""
        pairs = [pair for pair in self.explained(dataset) if pair[0] != "evidence_difference"]
        own = [pair for pair in pairs if METHODS[pair[0]].family == "in-model"]
        return own + [pair for pair in pairs if pair not in own and (every or pair[0] in MAIN)]

    def band(self, dataset: str | None = None) -> str:
        """What intervals and bands are, in words."""
        names = [dataset] if dataset else self.datasets
        counts = [len(self.of(name, variant)) for name in names for variant in self.variants(name)]
        if max(counts) > 1:
            return f"mean and range of {max(counts)} seeds"
        known = [any(self.content(name)["patients"]) for name in names]
        over = "patients" if all(known) else "patients where known, else images" if any(known) else "images"
        return f"95 % bootstrap interval over {over}"

    @cached_property
    def sweeps(self) -> dict[tuple[str, str], list[Run]]:
        """(sweep, parameter) -> its runs, by the parameter's value."""
        found: dict[tuple[str, str], list[Run]] = {}
        for run in sorted(self.points, key=lambda run: getattr(run.recipe, run.recipe.sweep.parameter)):
            found.setdefault((run.recipe.sweep.name, run.recipe.sweep.parameter), []).append(run)
        return found

    def series(self, dataset: str, *keys: str) -> dict[str, dict]:
        """'method | variant' -> the values of a metric."""
        pairs = {f"{m} | {v}": self.value(dataset, v, "explanations", m, *keys) for m, v in self.explained(dataset)}
        return {key: found for key, found in pairs.items() if found}


def data_of(run: Run) -> Description:
    """The data set whose images a run was evaluated on."""
    return load_description(run.recipe.test_dataset) if run.recipe.test_dataset else run.description


def measured_on(run: Run) -> str:
    """Its name, and 'validation' where it was on those images."""
    tested = run.recipe.test_dataset or run.recipe.split == "test"
    return data_of(run).name if tested else f"{data_of(run).name} (validation)"


def pooled(found: Sequence[Shown]) -> Shown | None:
    """The only one, or of several (one per seed) mean and range; None of none."""
    if len(found) < 2:
        return found[0] if found else None
    values = np.array([f["value"] for f in found], dtype=float)
    low, high = values.min(0).tolist(), values.max(0).tolist()
    return {"value": values.mean(0).tolist(), "low": low, "high": high, "used": found[0].get("used")}


def mean_interval(values: Tensor, patients: Sequence[str] | None = None) -> Shown:
    """Mean of values (N,) with its 95 % bootstrap interval over patients where they are known, else images."""
    found = bootstrap_ci(values, patients, resamples=1000)
    return {"value": found.point, "low": found.low, "high": found.high, "used": found.used}


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


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """A frame as PATH.md and, with all digits, as PATH.csv."""
    write_text(path.with_suffix(".md"), markdown(frame))
    write_whole(path.with_suffix(".csv"), lambda p: frame.to_csv(p, index=False, lineterminator="\n"))


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
