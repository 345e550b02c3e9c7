"""All methods side by side as numbers: localisation, faithfulness, one common model, properties."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib import plots
from lib.figures.curves import OWN, count
from lib.figures.numbers import COMMON, FAITHFULNESS, LOCALISATION, PROPERTIES, Number
from lib.results import Results, Shown, mean_interval

Drawn = tuple[Figure, Any]
Series = dict[str, Shown]


def localisation(results: Results) -> Drawn | None:
    """Every method by top-1 precision and by activation precision, best on top, one row of panels per data set."""
    measures = (
        Number("top-1 precision", "topk_precision", at=0),
        Number("activation precision", "activation_precision"),
    )
    data = {
        d: {m.label: m.series(results, d, results.shown(d, every=True)) for m in measures} for d in results.datasets
    }
    data = {d: found for d, found in data.items() if all(found.values())}
    if not data:
        return None
    rows = max(len(series) for found in data.values() for series in found.values())
    fig, axes = plots.panels(2 * len(data), 4.3, 0.165 * rows + 0.85)
    for i, (dataset, found) in enumerate(data.items()):
        chances = results.content(dataset)["reference"]["topk_chance"], chance_precision(results, dataset)
        for ax, (label, series), chance in zip(axes[2 * i : 2 * i + 2], found.items(), chances, strict=True):
            order = plots.ranked(series)
            plots.dot_rows(ax, series, order)
            plots.name_rows(ax, order)
            if chance is not None:
                ax.axvline(chance, color="#AAAAAA", linestyle=":", zorder=0)
            ax.set_xlim(0, 1.02)
            name = f"{results.heading(dataset)}, {count(series)}" if ax is axes[2 * i] else ""
            ax.set_title(f"{name}\n{label}", loc="left")
    plots.footnote(
        fig, f"In colour: in-model maps. Grey: post-hoc maps of the black box. Line: {results.band()}. Dotted: chance."
    )  # fmt: skip
    return fig, data


def chance_precision(results: Results, dataset: str) -> float | None:
    """Activation precision of the random map: what a map without knowledge gets."""
    found = results.value(dataset, "black box", "explanations", "random", "activation_precision")
    return found["value"] if found else None


def localisation_metrics(results: Results) -> Drawn | None:
    """Methods by localisation metrics, a table of means coloured from worst to best, one per data set."""
    data = {}
    for dataset in results.datasets:
        pairs = results.shown(dataset, every=True)
        columns = {m.label: m.series(results, dataset, pairs) for m in LOCALISATION}
        frame = pd.DataFrame(
            {label: {k: f["value"] for k, f in s.items()} for label, s in columns.items()}, dtype=float
        )
        frame = frame.dropna(how="all").dropna(axis=1, how="all")
        if len(frame):
            data[dataset] = frame.loc[frame.rank(ascending=False).mean(axis=1).sort_values(kind="stable").index]
    if not data:
        return None
    fig, axes = plots.panels(len(data), 5.4, 0.19 * max(map(len, data.values())) + 1.1)
    for ax, (dataset, frame) in zip(axes, data.items(), strict=True):
        plots.heat_table(ax, frame)
        n = count(LOCALISATION[0].series(results, dataset, results.shown(dataset)))
        ax.set_title(f"{results.heading(dataset)}, {n}", weight="bold")
    plots.footnote(
        fig, "Means; higher is better in every column. Dark: best of its column, bold number. Rows by mean rank. "
        "In colour: in-model maps; grey: post-hoc maps of the black box.",
    )  # fmt: skip
    return fig, {dataset: frame.to_dict() for dataset, frame in data.items()}


def mean_ranks(found: dict[Number, Series]) -> list[str]:
    """The keys by their mean rank over several numbers, best first."""
    ranks = pd.DataFrame(
        {m: pd.Series({k: f["value"] for k, f in series.items()}, dtype=float).rank(ascending=m.better == "lower")
         for m, series in found.items()}
    )  # fmt: skip
    return list(ranks.mean(axis=1).sort_values(kind="stable").index)


def dot_table(results: Results, numbers: Sequence[Number], empty: int = 0) -> tuple[Figure, Any, dict] | None:
    """Main methods by several numbers as dots, one row of panels per data set, rows by mean rank.

    `empty`: panels left free at the right. Returns also data set -> (panels, keys of the rows).
    """
    data: dict[str, dict[Number, Series]] = {}
    for dataset in results.datasets:
        pairs = results.shown(dataset)
        found = {m: series for m in numbers if (series := m.series(results, dataset, pairs))}
        if found:
            data[dataset] = found
    if not data:
        return None
    columns = len(numbers) + empty
    rows = max(len(series) for found in data.values() for series in found.values())
    fig, axes = plots.panels(columns * len(data), 1.62, 0.19 * rows + 0.85, columns)
    fig.set_figwidth(1.62 * columns + 1.3)
    placed = {}
    for i, (dataset, found) in enumerate(data.items()):
        order, line = mean_ranks(found), axes[i * columns : (i + 1) * columns]
        for ax, m in zip(line, numbers, strict=False):
            plots.dot_rows(ax, found.get(m, {}), order, digits=None)
            plots.name_rows(ax, order, named=ax is line[0])
            ax.tick_params(axis="x", labelsize=7)
            ax.set_title(m.label if i == 0 else "", fontsize=8.5)
            ax.set_xlabel(m.arrow, fontsize=7.5)
            mark_best(ax, m, found.get(m, {}), order)
        line[0].set_ylabel(f"{results.heading(dataset)}\n{count(next(iter(found.values())))}", weight="bold")
        placed[dataset] = (line, order)
    return fig, {d: {m.key: s for m, s in found.items()} for d, found in data.items()}, placed


def mark_best(ax: Any, measure: Number, series: Series, order: list[str]) -> None:
    """A ring around the best dot."""
    best = next(iter(plots.ranked(series, measure.better)), None)
    if best is not None and series[best]["value"] is not None:
        ax.plot(series[best]["value"], order.index(best), "o", markersize=10, markerfacecolor="none", color="black")


def faithfulness(results: Results) -> Drawn | None:
    """Six faithfulness metrics of the main methods, each map on the model that it explains."""
    drawn = dot_table(results, FAITHFULNESS)
    if drawn is None:
        return None
    fig, data, _ = drawn
    plots.footnote(fig, f"{OWN}.\nRing: best. Rows by mean rank. Line: {results.band()}.")
    return fig, data


def common_model(results: Results) -> Drawn | None:
    """AOPC and deletion area of all main maps on the black box, and of the in-model maps on their own model too."""
    data = {}
    for dataset in results.datasets:
        pairs = results.shown(dataset)
        for m in COMMON:
            own = m.series(results, dataset, pairs)
            moved = Number(m.label, f"common_{m.key}", m.better, m.at).series(results, dataset, pairs)
            here = {key: found for key, found in own.items() if "black box" in key}
            if moved and here:
                data.setdefault(dataset, {})[m] = {"black box": here | moved, "own": {k: own[k] for k in moved}}
    if not data:
        return None
    rows = max(len(found["black box"]) for by in data.values() for found in by.values())
    fig, axes = plots.panels(2 * len(data), 4.1, 0.2 * rows + 0.9)
    for i, (dataset, by) in enumerate(data.items()):
        for ax, (m, found) in zip(axes[2 * i :], by.items(), strict=False):
            order = plots.ranked(found["black box"], m.better)
            plots.dot_rows(ax, found["own"], order, hollow=True, digits=None)
            plots.dot_rows(ax, found["black box"], order, digits=2)
            plots.name_rows(ax, order)
            ax.set_title(f"{results.heading(dataset)}, {count(found['black box'])}: {m.label}", loc="left")
            ax.set_xlabel(m.arrow, fontsize=7.5)
            ax.margins(x=0.12)
    full, hollow = (
        Line2D([], [], marker="o", linestyle="", color="#0072B2", markerfacecolor=c) for c in ("#0072B2", "w")
    )
    labels = ["map judged by the black box (all maps)", "the same in-model map judged by its own model"]
    fig.legend([full, hollow], labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    plots.footnote(fig, f"Rows by the black box's verdict. Line: {results.band()}.")
    return fig, {d: {m.key: found for m, found in by.items()} for d, by in data.items()}


def consistency(results: Results, dataset: str) -> dict[str, dict[str, Shown]]:
    """'method | variant' -> share of positive evidence for the disease 'with' and 'without' a lesion.

    Of models of two classes: 'with' are the images of class 1.
    """
    sick, found = results.diseased(dataset), {}
    if sick.all() or not sick.any():
        return {}
    for method, variant in results.shown(dataset):
        values = results.values(dataset, variant, method, "disease_positive_proportion")
        if values:
            mean = next(iter(values.values())) if len(values) == 1 else sum(values.values()) / len(values)
            parts = {"with": mean[sick[: len(mean)]], "without": mean[~sick[: len(mean)]]}
            found[f"{method} | {variant}"] = {name: mean_interval(part) for name, part in parts.items()}
    return found


def properties(results: Results) -> Drawn | None:
    """Sparsity, stability, equivariance, completeness of the main methods' maps; local-to-global consistency."""
    drawn = dot_table(results, PROPERTIES, empty=1)
    if drawn is None:
        return None
    fig, data, placed = drawn
    for dataset, (line, order) in placed.items():
        errors = [found["value"] for found in data[dataset].get("completeness", {}).values()]
        if errors and min(errors) > 0 and max(errors) > 50 * min(errors):
            line[3].set_xscale("log")
        last, found = line[4], consistency(results, dataset)
        plots.name_rows(last, order, named=False)
        last.set_title("positive share\nof evidence" if last is fig.axes[4] else "", fontsize=8.5)
        for name, hollow in (("without", True), ("with", False)):
            plots.dot_rows(last, {key: shares[name] for key, shares in found.items()}, order, hollow, digits=None)
        last.set(xlim=(-0.05, 1.05), xlabel="○ class 0   ● class 1")
        last.xaxis.label.set_size(7.5)
        last.tick_params(axis="x", labelsize=7)
        if not found:
            why = "no SoftCAM\nof two classes"
            last.text(0.5, 0.5, why, transform=last.transAxes, ha="center", va="center", fontsize=7)
        data[dataset]["consistency"] = found
    plots.footnote(
        fig, f"{OWN}.\nRing: best. Line: {results.band()}. Stability, equivariance and error of the sum "
        "(|sum of the map − logit| / |logit|): on the images that are perturbed.\n"
        "Positive share: how much of the evidence map for the disease is above 0 (SoftCAM only, two classes).",
    )  # fmt: skip
    return fig, data
