"""The tables of all runs below one another.

A run's table.parquet (lib.evaluate) has the columns
method       a name of lib.explain.METHODS; `classification`: of the model itself; `masks`: of the annotated regions
metric       as lib.metrics or lib.evaluate calls it
judge        own | twin: whose prediction
resolution   image | evidence: at which the map was read
split, image, patient   image and patient are empty for a number of all images, patient where it is not known
k            step, rank, share or epsilon of a curve, class of a probability; 0 of a scalar
value        NaN: undefined
and `load` adds what is constant in a run: run, recipe, dataset, synthetic, architecture, variant, seed, sweep,
parameter, point, permuted; label, the name in figures; choice: of the validation images of a run that is evaluated on
test, by which what is compared is chosen; main: neither of a sweep, nor on permuted labels, nor of choice; and unit,
what is resampled, numbered in the order of the rows: patients where they are known, else images.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib import PROJECT
from lib.data import load_description
from lib.explain import METHODS
from lib.run import Run

COLUMNS = ["method", "metric", "judge", "resolution", "split", "image", "patient", "k", "value"]
DATASETS = (
    "shapes",
    "digits",
    "digits10",
    "chest",
    "fundus",
    "fundus_grades",
)  # in figures, others after them; of models:
VARIANTS = ("black box", "SoftCAM dense", "SoftCAM sparse", "SoftCAM ridge", "SoftCAM elastic net",
            "Explainer unsupervised", "Explainer hybrid")  # fmt: skip
MAIN = (  # post-hoc methods of figures that cannot show all: the papers' own comparison
    "gradcam", "scorecam", "layercam", "integrated_gradients", "guided_backprop", "lrp", "random",
)  # fmt: skip

SETTINGS = (
    "patch",
    "topk",
    "topk_threshold",
    "aopc_tile",
    "aopc_steps",
    "perturbation",
    "deletion_steps",
    "deletion_fill",
)


def rows(
    values: Mapping[str, Tensor | tuple[Tensor, Sequence[float]]],
    images: Sequence[str] = ("",),
    patients: Sequence[str] = ("",),
    **fixed: str,
) -> pd.DataFrame:
    """Rows of values: metric -> (N,) of N images or, for curves, (N, L), alone for k = 0, 1 ... or with their k; the
    other columns are `fixed`: method and split, judge ("own") and resolution ("image")."""
    parts = []
    for metric, given in values.items():
        found, steps = given if isinstance(given, tuple) else (given, None)
        found = torch.as_tensor(found).double().reshape(len(images), -1)
        steps = np.arange(found.shape[1]) if steps is None else np.array(steps)
        names = {"image": np.repeat(images, len(steps)), "patient": np.repeat(patients, len(steps))}
        curve = {"k": np.tile(steps.astype(float), len(images)), "value": found.flatten().numpy()}
        parts.append(pd.DataFrame({"metric": metric, **names, **curve}))
    return pd.concat(parts, ignore_index=True).assign(**{"judge": "own", "resolution": "image"} | fixed)[COLUMNS]


def load(runs_dir: str | Path, recipes: Sequence[str] | None = None, seeds: int | None = None) -> pd.DataFrame:
    """The tables of all evaluated runs of a folder, or of the recipes named and of seeds below `seeds`.

    A data set with several architectures is one per architecture; recipes of one variant are told apart by their
    names. ValueError without a run, or where runs of a data set differ in SETTINGS or images, or twins in training.
    """
    runs = [Run.load(path.parent) for path in sorted((PROJECT / runs_dir).glob("*/table.parquet"))]
    runs = [run for run in runs if recipes is None or run.recipe.name in recipes]
    runs = [run for run in runs if seeds is None or run.recipe.seed < seeds]
    if not runs:
        raise ValueError(f"runs_dir: no evaluated run in {runs_dir}; make one with notebooks/04_evaluate.ipynb")
    known = {(run.recipe.name, run.recipe.seed): run.recipe for run in runs}
    for one in known.values():
        if twin := one.method != "blackbox" and known.get((one.twin, one.seed)):
            one.check_twin(twin)
    about, first = [constants(run) for run in runs], {}
    for run, one in zip(runs, about, strict=True):
        if not (one["sweep"] or one["permuted"]):
            own = {key: getattr(run.recipe, key) for key in SETTINGS}
            name, theirs = first.setdefault(one["dataset"], (run.dir.name, own))
            if other := ", ".join(key for key in own if own[key] != theirs[key]):
                both = f"{name} and {run.dir.name}"
                raise ValueError(f"runs: {both} were measured with another {other}; run 04 of both again")
    return joined([run.table for run in runs], about)


def constants(run: Run) -> dict[str, Any]:
    """What is the same in all rows of a run."""
    recipe, sweep = run.recipe, run.recipe.sweep
    card = load_description(recipe.test_dataset) if recipe.test_dataset else run.description
    validation = " (validation)" if recipe.split == "val" and not recipe.test_dataset else ""
    return {
        "run": run.dir.name, "recipe": recipe.name, "dataset": card.name + validation, "synthetic": card.synthetic,
        "architecture": recipe.architecture, "variant": recipe.variant, "seed": recipe.seed,
        "sweep": sweep.name if sweep else "", "parameter": sweep.parameter if sweep else "",
        "point": sweep.place if sweep else math.nan, "setting": sweep.value if sweep else "",
        "permuted": recipe.random_labels,
    }  # fmt: skip


def joined(tables: list[pd.DataFrame], about: list[dict[str, Any]]) -> pd.DataFrame:
    """Tables of runs below one another, in the order of data sets and models, each with its `constants`."""
    runs = [{**one, "main": not one["sweep"] and not one["permuted"]} for one in about]
    for name, what, group in (("dataset", "architecture", ["dataset"]), ("variant", "recipe", ["dataset", "variant"])):
        kinds = {tuple(one[key] for key in [*group, what]) for one in runs if one["main"]}
        count = Counter(kind[:-1] for kind in kinds)
        for one in runs:  # told apart where there are several
            several = count[tuple(one[key] for key in group)] > 1
            one[name] += (f", {one[what]}" if name == "dataset" else f" ({one[what]})") if several else ""

    def place(i: int) -> tuple:
        one = runs[i]
        known = DATASETS.index(one["dataset"]) if one["dataset"] in DATASETS else len(DATASETS)
        variant = VARIANTS.index(one["variant"].partition(" (")[0])
        return known, one["dataset"], variant, one["recipe"], one["seed"]

    order = sorted(range(len(runs)), key=place)
    runs, found = [runs[i] for i in order], pd.concat([tables[i] for i in order], ignore_index=True)
    times = [len(tables[i]) for i in order]
    found = found.apply(categorical)
    for name, values in pd.DataFrame(runs).apply(categorical).items():
        found[name] = values.repeat(times).array
    found["choice"] = (found["split"] == "val") & (found["split"] == "test").groupby(found["run"]).transform("any")
    found["main"] &= ~found["choice"]
    kinds = found.groupby(["method", "variant"], observed=True, sort=False)
    found["label"] = categorical(pd.Series([label(*kind) for kind in kinds.size().index]))[kinds.ngroup()].array
    data, patients, images = (found[name].cat.codes.astype(int) for name in ("dataset", "patient", "image"))
    owner = patients.where(found["patient"] != "", -1 - images)
    found["unit"] = pd.factorize(owner + data * (2 + images.max() + patients.max()))[0]
    check_images(found)
    return found


def categorical(values: pd.Series) -> pd.Series:
    """Of strings, with the categories in the order in which they appear; others as they are."""
    return pd.Series(pd.Categorical.from_codes(*pd.factorize(values))) if values.dtype == "str" else values


def label(method: str, variant: str) -> str:
    """Grad-CAM, TTE-CAM ...; of the model itself, and of its own map, the model: SoftCAM sparse, Explainer hybrid ...
    A recipe's name, by which models of one variant are told apart, stays: Grad-CAM (mine)."""
    if method not in METHODS or method in ("evidence", "explainer"):
        return variant
    return METHODS[method].label + (f" ({recipe}" if (recipe := variant.partition(" (")[2]) else "")


def check_images(table: pd.DataFrame) -> None:
    """ValueError naming two runs of a data set that were measured on different images."""
    correct = table[table["main"] & (table["metric"] == "correct")]
    for dataset, part in correct.groupby("dataset", observed=True, sort=False):
        (name, images), *others = part.groupby("run", observed=True, sort=False)["image"].agg(set).items()
        for other, found in others:
            if not (found <= images or images <= found):
                said = f"{name} and {other} are measured on different images of {dataset}: {min(found - images)} is"
                raise ValueError(f"runs: {said} only in {other}; run 03 and 04 of both again")


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """The `main` rows of the maps that are compared: in-model ones on their own models, post-hoc ones of the black
    boxes."""
    own = table["method"].isin([name for name, method in METHODS.items() if method.family == "in-model"])
    post_hoc = table["method"].isin(METHODS) & ~own & table["variant"].str.startswith("black box")
    return table[table["main"] & (own | post_hoc)]


def at(
    table: pd.DataFrame, metric: str, k: float | str = 0, judge: str = "own", resolution: str = "image"
) -> pd.DataFrame:
    """The rows of a metric at `k`; "last": at the end of each run's curves, "all": the whole curves. Of a metric that
    is read at one resolution only, those at this one."""
    rows = table[(table["metric"] == metric) & (table["judge"] == judge)]
    asked = rows["resolution"] == resolution
    rows = rows[asked] if asked.any() else rows
    if k == "all":
        return rows
    return rows[rows["k"] == (rows.groupby("run", observed=True)["k"].transform("max") if k == "last" else k)]
