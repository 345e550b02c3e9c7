"""Is A better than B? Every two methods on the same images; own numbers beside published ones."""

from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lib import plots
from lib.explain import METHODS
from lib.metrics import compare_all
from lib.published import load_published
from lib.results import Results

Drawn = tuple[Figure, Any]
COMPARED = {"top1": "top-1 precision", "activation_precision": "activation precision", "aopc": "AOPC"}


def per_image(results: Results, dataset: str, metric: str) -> dict[str, Tensor]:
    """'method | variant' -> (N,) values of the main methods, averaged over seeds, of the images that all have."""
    found = {}
    for method, variant in results.shown(dataset):
        values = list(results.values(dataset, variant, method, metric).values())
        if values:
            n = min(map(len, values))
            found[f"{method} | {variant}"] = torch.stack([one[:n] for one in values]).nanmean(0)
    n = min(map(len, found.values()), default=0)
    return {key: values[:n] for key, values in found.items()}


@lru_cache(maxsize=4)
def compare(results: Results) -> pd.DataFrame:
    """`compare_all` on every data set and metric of `COMPARED`: data, metric, a, b, difference, bounds, p, verdict."""
    rows = []
    for dataset in results.datasets:
        for metric in COMPARED:
            values = per_image(results, dataset, metric)
            groups = results.patients(dataset, len(next(iter(values.values()), ())))
            for row in compare_all(values, groups, resamples=1000):
                rows.append({"data": dataset, "metric": metric, **row._asdict()})
    return pd.DataFrame(rows)


def comparison_table(results: Results) -> pd.DataFrame:
    """`compare`, the methods named as in the figures."""
    frame = compare(results)
    return frame.assign(**{side: frame[side].map(plots.series_label) for side in ("a", "b")}) if len(frame) else frame


def wins(frame: pd.DataFrame) -> pd.DataFrame:
    """Of `comparison_table`: on each data set and by each metric, how many others a method beats and is beaten by."""
    if not len(frame):
        return pd.DataFrame(columns=["data", "better / worse than others"])
    turned = frame.assign(a=frame["b"], verdict=frame["verdict"].map({"better": "worse", "worse": "better"}))
    both = pd.concat([frame, turned]).groupby(["data", "a", "metric"], sort=False)["verdict"]
    counts = both.agg(lambda said: f"{(said == 'better').sum()} / {(said == 'worse').sum()}").unstack("metric")
    counts = counts.reindex(columns=[metric for metric in COMPARED if metric in counts]).rename(columns=COMPARED)
    return counts.reset_index().rename(columns={"a": "better / worse than others"}).fillna("")


def verdicts(rows: pd.DataFrame, keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(M, M) differences row less column, NaN on the diagonal, and what they say of the row."""
    place, other = {key: i for i, key in enumerate(keys)}, {"better": "worse", "worse": "better"}
    differences, says = np.full((len(keys),) * 2, np.nan), np.full((len(keys),) * 2, "", dtype=object)
    for row in rows.itertuples():
        i, j = place[row.a], place[row.b]
        differences[i, j], differences[j, i] = row.difference, -row.difference
        says[i, j], says[j, i] = row.verdict, other.get(row.verdict, row.verdict)
    return differences, says


def comparison(results: Results) -> Drawn | None:
    """One matrix per data set and metric: the row's method less the column's, on the same images."""
    frame = compare(results)
    if not len(frame):
        return None
    datasets = [dataset for dataset in results.datasets if (frame["data"] == dataset).any()]
    size = max(len(set(frame[frame["data"] == d]["a"]) | set(frame[frame["data"] == d]["b"])) for d in datasets)
    fig, axes = plots.panels(len(COMPARED) * len(datasets), 0.26 * size + 1.3, 0.18 * size + 0.55, len(COMPARED))
    for i, dataset in enumerate(datasets):
        for ax, (metric, label) in zip(axes[i * len(COMPARED) :], COMPARED.items(), strict=False):
            values = per_image(results, dataset, metric)
            means = {key: {"value": float(one.nanmean())} for key, one in values.items()}
            keys = [key for key in plots.ranked(means) if np.isfinite(means[key]["value"])]
            if len(keys) < 2:
                ax.set_axis_off()
                continue
            rows = frame[(frame["data"] == dataset) & (frame["metric"] == metric)]
            rows = rows[rows["a"].isin(keys) & rows["b"].isin(keys)]
            plots.difference_matrix(ax, keys, *verdicts(rows, keys))
            used = int(rows["used"].max()) if len(rows) else 0
            ax.set_title(f"{results.heading(dataset)}, n = {used}: {label}")
    plots.footnote(
        fig, "Row less column, mean over the same images (seeds averaged); rows best first. Blue: the row is better; "
        "orange: worse; pale: no difference shown\n(Wilcoxon, Holm-corrected over the panel, at 5 %). In-model maps on "
        "their own model, post-hoc maps on the black box.",
    )  # fmt: skip
    return fig, frame.to_dict("list")


def published_pairs(results: Results) -> pd.DataFrame:
    """Published numbers with our own beside them (`own`, NaN where we have none), of real data sets that were run."""
    real = [dataset for dataset in results.datasets if not results.description(dataset).synthetic]
    rows = []
    for number in load_published().itertuples():
        runs = results.of(number.dataset, number.model) if number.dataset in real else []
        if not runs:
            continue
        path = ("explanations", number.method, number.metric) if number.method else ("classification", number.metric)
        found = results.value(number.dataset, number.model, *path)
        names = {"tile": "aopc_tile", "steps": "aopc_steps"}
        other = [
            f"{key} {mine}" for key, theirs in number.setting.items()
            if (mine := getattr(runs[0].recipe, names.get(key, key), theirs)) != theirs
        ]  # fmt: skip
        if found:
            last = {
                end: found[end][-1] if isinstance(found[end], list) else found[end] for end in ("value", "low", "high")
            }
            rows.append({"number": number, "own": last, "other": ", ".join(other)})
    return pd.DataFrame(rows)


def published(results: Results) -> Drawn | None:
    """Own numbers against those of the papers, where a run on the same real data set exists."""
    frame = published_pairs(results)
    if not len(frame):
        return None
    fig, (ax,) = plots.panels(1, 7.5, 0.3 * len(frame) + 1.0)
    keys, series = [], {}
    for y, row in enumerate(frame.itertuples()):
        number = row.number
        key = f"{number.method} | {number.model}" if number.method else number.model
        keys.append(key)
        series[key] = row.own
        ax.plot(number.value, y, "D", color="#CC79A7", markersize=6, label="published" if y == 0 else None)
        ax.plot(row.own["value"], y, "o", color="black", label="own" if y == 0 else None)
        ends = [row.own["value"] if row.own[end] is None else row.own[end] for end in ("low", "high")]
        ax.plot(ends, [y, y], color="black")
    labels = [
        f"{r.number.dataset}: {METHODS[r.number.method].label + ' of ' if r.number.method else ''}{r.number.model}, "
        f"{r.number.metric}{' (' + r.other + ')' if r.other else ''}" for r in frame.itertuples()
    ]  # fmt: skip
    ax.set_yticks(range(len(frame)), labels, fontsize=7.5)
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.legend(frameon=False)
    plots.footnote(fig, f"In brackets: what our setting has instead. Line: {results.band()}.")
    data = [{"published": r.number.value, "own": r.own} for r in frame.itertuples()]
    return fig, dict(zip(labels, data, strict=True))
