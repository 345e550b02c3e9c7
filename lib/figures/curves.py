"""Curves of all main methods: localisation by the number of patches, faithfulness by what is taken away or given."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from lib import plots
from lib.figures.numbers import Number
from lib.metrics import aopc as aopc_of
from lib.results import Results, Shown

Drawn = tuple[Figure, Any]
OWN = "In colour: in-model maps, each on its own model. Grey: post-hoc maps of the black box, on the black box"


def curve_figure(results: Results, name: str, ranking: Number, y_label: str) -> Drawn | None:
    """One panel per data set: a curve of every main method, each on the model it explains, named by rank."""
    data = {d: found for d in results.datasets if (found := Number("", name).raw(results, d, results.shown(d)))}
    if not data:
        return None
    fig, axes = plots.panels(len(data), 4.9, 3.0)
    for ax, (dataset, series) in zip(axes, data.items(), strict=True):
        recipe, reference = results.content(dataset)["recipe"], results.content(dataset)["reference"]
        start = 1 if name == "topk_precision" else 0
        if start:
            plots.topk_reference(ax, reference)
        for key, found in reversed(series.items()):
            x, style = np.arange(start, start + len(found["value"])), plots.contrast_style(key)
            x = 100 * x / x[-1] if name == "insertion_curve" else x
            ax.plot(x, np.array(found["value"], dtype=float), label=key, **style)
            if plots.in_model(key):
                low, high = (np.array(found[end], dtype=float) for end in ("low", "high"))
                ax.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)
        numbers = ranking.series(results, dataset, results.shown(dataset))
        plots.ranked_legend(ax, numbers, ranking.better, ranking.label)
        ax.set(title=f"{results.heading(dataset)}, {count(series)}", ylabel=y_label)
        if name != "aopc":
            ax.set_ylim(0, 1.03)
        patch = recipe["patch"] or results.description(dataset).patch
        ax.set_xlabel({
            "topk_precision": f"the k highest patches of {patch} px",
            "deletion_curve": f"patches of {patch} px occluded ({recipe['deletion_fill']} fill)",
            "insertion_curve": f"% of the patches of {patch} px inserted (into {recipe['deletion_fill']} fill)",
            "aopc": f"L tiles of {recipe['aopc_tile']} px replaced ({recipe['perturbation']})",
        }[name])  # fmt: skip
    model = "In colour: in-model maps. Grey: post-hoc maps of the black box" if start else OWN
    plots.footnote(fig, f"{model}. Band (in-model only): {results.band()}.")
    return fig, data


def count(series: dict[str, Shown]) -> str:
    """'n = 60' images, of a number or of a curve's first point."""
    used = [found.get("used") for found in series.values()]
    numbers = {one[0] if isinstance(one, list) else one for one in used if one}
    return f"n = {'–'.join(str(n) for n in sorted({min(numbers), max(numbers)}))}" if numbers else "n unknown"


def topk_precision(results: Results) -> Drawn | None:
    return curve_figure(results, "topk_precision", Number("k = 1", "topk_precision", at=0), "top-k precision")


def deletion(results: Results) -> Drawn | None:
    return curve_figure(results, "deletion_curve", Number("area, low = better", "deletion_area", "lower"), "accuracy")


def insertion(results: Results) -> Drawn | None:
    ranking = Number("area, high = better", "insertion_area")
    return curve_figure(results, "insertion_curve", ranking, "probability of the true class")


def aopc(results: Results) -> Drawn | None:
    return curve_figure(results, "aopc", Number("at the last L", "aopc", at=-1), "AOPC")


def grids(results: Results, dataset: str) -> dict[str, dict[str, torch.Tensor]]:
    """'method | variant' -> 'TILE KIND' -> mean curve of f, over seeds; of the main methods that have a grid."""
    found = {}
    for method, variant in results.shown(dataset):
        files = [file for run in results.of(dataset, variant) if (file := run.dir / "grid.safetensors").is_file()]
        stored = [load_file(file) for file in files]
        cells = [key.split("/")[1] for key in (stored[0] if stored else ()) if key.split("/")[0] == method]
        curves = {cell: torch.stack([grid[f"{method}/{cell}"] for grid in stored]).mean(0) for cell in cells}
        found |= {f"{method} | {variant}": curves} if curves else {}
    return found


def grid_figure(results: Results, what: str) -> Drawn | None:
    """The papers' 4 x 5 grid of tile sizes and perturbations on the first data set that has one: AOPC or mean f."""
    for dataset in results.datasets:
        series = grids(results, dataset)
        if series:
            break
    else:
        return None
    if what == "AOPC":
        series = {k: {cell: aopc_of(f[None])[0] for cell, f in cells.items()} for k, cells in series.items()}
    fig = plots.aopc_grid(series, what, plots.contrast_style)
    said = f"{OWN}; means over the first images perturbed, at most 6"
    fig.suptitle(f"{results.heading(dataset)}: {what} by tile size and what replaces a tile\n{said}", fontsize=9)
    return fig, {dataset: series}
