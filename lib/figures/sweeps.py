"""What a parameter of the loss does: the points of a sweep, one panel per parameter."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import plots
from lib.results import Results
from lib.runs import Run

Drawn = tuple[Figure, Any]
Path = tuple[str, ...]
MAP = "explanations"
LINES: dict[
    str, dict[str, tuple[Path, int | None, str, str]]
] = {  # name -> (path in metrics.json, point, colour, dash)
    "softcam": {
        "accuracy": (("classification", "accuracy_interval"), None, "#000000", "-"),
        "AUC": (("classification", "auc_interval"), None, "#000000", ":"),
        "top-1 precision": ((MAP, "evidence", "topk_precision"), 0, "#D55E00", "-"),
        "top-5 precision": ((MAP, "evidence", "topk_precision"), 4, "#D55E00", "--"),
        "activation precision": ((MAP, "evidence", "activation_precision"), None, "#0072B2", "-"),
    },
    "explainer_classifier": {
        "accuracy": (("classification", "accuracy_interval"), None, "#000000", "-"),
        "activation precision": ((MAP, "explainer", "activation_precision"), None, "#0072B2", "-"),
        "AOPC": ((MAP, "explainer", "aopc"), -1, "#009E73", "-"),
        "POMPOM (low = better)": ((MAP, "explainer", "pompom"), None, "#D55E00", "-"),
        "mean heatmap": ((MAP, "explainer", "mean_heatmap"), None, "#888888", "--"),
    },
}
MEANING = {
    "l1": "l1, weight of mean ‖A‖₁ (sparse →)",
    "l2": "l2, weight of mean ‖A‖₂ (ridge →)",
    "beta": "beta: contiguity alone (0) … sparsity alone (1)",
    "gamma": "gamma, weight of the penalty outside the region",
}


def read(results: Results, run: Run, path: Path, at: int | None) -> tuple[float, float, float]:
    """(value, low, high) of a number in a run's metrics.json, NaN where there is none."""
    content = results.metrics[run.dir.name]
    for key in path:
        content = content.get(key, {})
    found = [content.get(key) for key in ("value", "low", "high")]
    if at is not None:
        found = [part[at] if part and at < len(part) else None for part in found]
    return tuple(float("nan") if one is None else float(one) for one in found)


def end_labels(ax: Axes, lines: dict[str, tuple[float, str]], gap: float = 0.055) -> None:
    """Names lines right of the axes at the height of their ends, (value, colour), at least `gap` of the axes apart."""
    low, high = ax.get_ylim()
    ends = {name: (value - low) / (high - low) for name, (value, _) in lines.items() if np.isfinite(value)}
    order = sorted(ends, key=ends.__getitem__)
    places: list[float] = []
    for name in order:
        places.append(max(ends[name], places[-1] + gap) if places else ends[name])
    over = max(0.0, places[-1] - 1.0) if places else 0.0
    for i in reversed(range(len(places))):
        top = places[i + 1] - gap if i + 1 < len(places) else places[i] - over
        places[i] = min(places[i], top)
    for name, place in zip(order, places, strict=True):
        ax.text(1.02, place, name, transform=ax.transAxes, color=lines[name][1], va="center", fontsize=7.5)


def regularisation_path(results: Results) -> Drawn | None:
    """Performance and explanation against the weight of a penalty, one panel per sweep."""
    sweeps = {key: runs for key, runs in results.sweeps.items() if len(runs) > 1 and runs[0].recipe.method in LINES}
    if not sweeps:
        return None
    fig, axes = plots.panels(len(sweeps), 4.9, 3.0)
    data: dict[str, Any] = {}
    for ax, ((sweep, parameter), runs) in zip(axes, sweeps.items(), strict=True):
        values = [getattr(run.recipe, parameter) for run in runs]
        places, ends = plots.value_axis(ax, values), {}
        for name, (path, at, colour, dash) in LINES[runs[0].recipe.method].items():
            value, low, high = np.array([read(results, run, path, at) for run in runs]).T
            ax.plot(places, value, dash, color=colour, marker=".", linewidth=1.6)
            ax.fill_between(places, low, high, color=colour, alpha=0.1, linewidth=0)
            ends[name] = value[-1], colour
            data[f"{sweep} | {name}"] = dict(zip(map(str, values), value.tolist(), strict=True))
        ax.set_ylim(min(0.0, ax.get_ylim()[0]), max(1.02, ax.get_ylim()[1]))
        end_labels(ax, ends)
        dataset = runs[0].description
        model = "SoftCAM" if runs[0].recipe.method == "softcam" else "Explainer"
        ax.set_title(f"{dataset.name}{' (synthetic)' if dataset.synthetic else ''}: {model}")
        ax.set_xlabel(MEANING.get(parameter, parameter))
    limits = {(run.recipe.limit or {}).get("train") for runs in sweeps.values() for run in runs}
    where = f" on {limits.pop()} images" if len(limits) == 1 and None not in limits else ""
    said = f"Each point: a model trained with that value{where}, measured on validation images."
    plots.footnote(fig, f"{said} Band: 95 % bootstrap interval, one seed.")
    return fig, data
