"""The Explainer-Classifier: how little its heatmap leaves open, and how its three phases get there."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lib import plots
from lib.measures import POMPOM_EPS
from lib.plots import VARIANTS
from lib.results import Results

Drawn = tuple[Figure, Any]


def explainers(results: Results) -> list[tuple[str, str]]:
    """(data set, variant) of every Explainer-Classifier."""
    return [(d, v) for d in results.datasets for v in results.variants(d) if v.startswith("Explainer")]


def pompom(results: Results) -> Drawn | None:
    """POMPOM, mean heatmap, activation precision and accuracy of the Explainers: unsupervised against hybrid."""
    found = explainers(results)
    if not found:
        return None
    keys = {
        "POMPOM (lower is better)": ("explanations", "explainer", "pompom"),
        "mean heatmap": ("explanations", "explainer", "mean_heatmap"),
        "activation precision": ("explanations", "explainer", "activation_precision"),
        "accuracy (test)": ("classification", "accuracy_interval"),
    }
    size = (2.9 * len(keys), 0.36 * len(found) + 1.0)
    fig, axes = plt.subplots(1, len(keys), figsize=size, sharey=True, squeeze=False)
    data = {}
    for ax, (title, path) in zip(axes.flat, keys.items(), strict=True):
        for y, (dataset, variant) in enumerate(found):
            data[f"{title} | {dataset} | {variant}"] = results.value(dataset, variant, *path)
            plots.dot(ax, y, data[f"{title} | {dataset} | {variant}"], VARIANTS[variant.partition(" (")[0]])
        ax.margins(x=0.15)
        ax.set(xlabel=title, ylim=(len(found) - 0.4, -0.7))
        ax.set_yticks(range(len(found)), [f"{results.heading(d)}, {v.removeprefix('Explainer ')}" for d, v in found])
        if "accuracy" not in title:
            ax.set_xlim(left=0)
    plots.footnote(fig, f"Line: {results.band()}.")
    return fig, data


def pompom_epsilon(results: Results) -> Drawn | None:
    """POMPOM of every Explainer against epsilon, one panel per data set."""
    data: dict[str, dict[str, Any]] = {}
    for dataset, variant in explainers(results):
        found = results.value(dataset, variant, "explanations", "explainer", "pompom_curve")
        if found:
            data.setdefault(dataset, {})[variant] = found
    if not data:
        return None
    fig, axes = plots.panels(len(data), 3.1, 2.6, 4, sharey=True)
    for ax, (dataset, series) in zip(axes, data.items(), strict=True):
        for variant, found in series.items():
            colour = VARIANTS[variant.partition(" (")[0]]
            plots.curve(ax, POMPOM_EPS, found, variant.removeprefix("Explainer "), color=colour, marker=".")
        ax.set(xscale="log", xlabel="epsilon", title=results.heading(dataset))
        ax.legend(frameon=False, fontsize=7.5)
    axes[0].set(ylabel="POMPOM (lower is better)", ylim=(0, None))
    plots.footnote(fig, f"Band: {results.band()}.")
    return fig, data


def training_phases(results: Results) -> Drawn | None:
    """Losses of the three phases of each Explainer-Classifier, and its heatmap of one image after each phase."""
    runs = [results.of(dataset, variant)[0] for dataset, variant in explainers(results)]
    if not runs:
        return None
    names = {"classification": "classification loss", "explanation": "explanation loss", "acc": "accuracy"}
    size, widths = (13, 1.9 * len(runs) + 0.3), [1.8] * 3 + [1] * 4
    fig, axes = plt.subplots(len(runs), 7, figsize=size, squeeze=False, width_ratios=widths)
    data = {}
    for row, run in zip(axes, runs, strict=True):
        history, top = run.history, run is runs[0]
        for ax, (key, label) in zip(row, names.items(), strict=False):
            for split, colour, style in plots.SPLITS:
                ax.plot(np.arange(len(history)), history[f"{split}_{key}"], style, color=colour, label=split)
            plots.epoch_axis(ax, history)
            ax.set(title=label if top else "", ylim=(0, None))
        row[0].set_ylabel(f"{results.heading(results.group(run))}\n{run.recipe.variant.removeprefix('Explainer ')}")
        for ax in row[3:]:
            ax.set_axis_off()
        data[run.dir.name] = {"history": history.drop(columns="phase").to_dict("list")}
        if run.recipe.evolution_count:
            images, frames = plots.evolution_frames(run.evolution)
            last = {key.split("/")[0]: maps[0] for key, maps in frames.items()}
            plots.show_image(row[3], images[0], "image" if top else "")
            for ax, heatmap, number in zip(row[4:], last.values(), (1, 2, 3), strict=True):
                plots.show_map(ax, images[0], heatmap, False, title=f"z after phase {number}" if top else "", limit=1.0)
            data[run.dir.name]["z"] = last
    axes[0, 0].legend(frameon=False, fontsize=7)
    return fig, data
