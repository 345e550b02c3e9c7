"""Numbers: curves with bands, values with intervals, tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lib.explain import METHODS
from lib.plots.style import SPLITS, VARIANTS, series_label, series_style

SCORES = ("acc", "auc", "kappa", "sensitivity", "specificity", "precision")  # columns of a history that are no losses


def epoch_axis(ax: Axes, history: pd.DataFrame) -> list[int]:
    """Labels the rows of a history by epoch, draws a line where a phase begins; returns the phases' first rows."""
    starts = history["phase"].drop_duplicates().index.tolist()
    for start in starts[1:]:
        ax.axvline(start - 0.5, color="#999999", linewidth=0.8)
    shown = np.arange(0, len(history), max(1, len(history) // 8))
    ax.set_xticks(shown, history["epoch"].astype(int).iloc[shown])
    ax.set_xlabel("epoch of the phase" if len(starts) > 1 else "epoch")
    return starts


def loss_curves(history: pd.DataFrame) -> Figure:
    """Losses and accuracy after each epoch (epoch 0: before training), one panel each."""
    losses = [c.removeprefix("val_") for c in history if c.startswith("val_") and c.removeprefix("val_") not in SCORES]
    names = ["acc", *(name for name in losses if history[f"val_{name}"].fillna(0).any())]
    fig, axes = plt.subplots(1, len(names), figsize=(2.5 * len(names), 2.4), squeeze=False)
    for ax, name in zip(axes.flat, names, strict=True):
        for split, colour, style in SPLITS:
            ax.plot(np.arange(len(history)), history[f"{split}_{name}"], style, color=colour, marker=".", label=split)
        starts = epoch_axis(ax, history)
        ax.set_title({"acc": "accuracy", "loss": "total loss"}.get(name, f"{name} loss"), pad=14)
        for start in starts if len(starts) > 1 else []:
            ax.annotate(
                history["phase"][start], (start, 1), xycoords=("data", "axes fraction"), fontsize=6, va="bottom"
            )
    axes.flat[0].legend(frameon=False)
    return fig


def as_text(found: Mapping[str, Any], digits: int = 3) -> str:
    """'0.912 [0.880, 0.941]', and how many were undefined if any; '-' without a value."""
    if found.get("value") is None or not np.isfinite(found["value"]):
        return "-"
    parts = (f"{found[key]:.{digits}f}" if found[key] is not None else "?" for key in ("value", "low", "high"))
    undefined = f" ({found['undefined']} undefined)" if found.get("undefined") else ""
    return "{} [{}, {}]".format(*parts) + undefined


def curve(ax: Axes, x: Sequence[float], found: Mapping[str, Any], label: str, **style: Any) -> None:
    """A curve of `evaluation.interval` with its band; points without a value are gaps."""
    value, low, high = (np.array(found[key], dtype=float) for key in ("value", "low", "high"))
    ax.plot(x, value, label=label, **style)
    ax.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)


def dot(ax: Axes, y: float, found: Mapping[str, Any] | None, colour: str) -> None:
    """A value with its interval and its number; 'undefined' where there is none."""
    if found is None or found["value"] is None:
        ax.annotate("undefined", (0.5, y), xycoords=("axes fraction", "data"), ha="center", va="center", fontsize=7)
        return
    value, low, high = (found["value"] if found[key] is None else found[key] for key in ("value", "low", "high"))
    ax.errorbar(value, y, xerr=[[max(0, value - low)], [max(0, high - value)]], fmt="o", color=colour, capsize=3)
    ax.annotate(f"{value:.3f}", (value, y), (0, 6), textcoords="offset points", ha="center", fontsize=7)


def topk_reference(ax: Axes, reference: Mapping[str, Any]) -> None:
    """The best that any map can reach, and chance, behind top-k precision."""
    ceiling = np.asarray(reference["topk_ceiling"], dtype=float)
    chance = np.nan if reference["topk_chance"] is None else float(reference["topk_chance"])
    x = np.arange(1, len(ceiling) + 1)
    ax.plot(x, ceiling, color="#CCCCCC", linewidth=4, label="best possible", zorder=0)
    ax.axhline(chance, color="#BBBBBB", linestyle=":", label="chance", zorder=0)
    ax.set(ylim=(0, 1.03), xticks=[1, *x[1::2]])


def topk_panel(
    ax: Axes, series: Mapping[str, Mapping[str, Any]], reference: Mapping[str, Any], title: str = ""
) -> None:
    """Top-k localisation precision of each 'method' or 'method | variant', with ceiling and chance."""
    topk_reference(ax, reference)
    for key, found in series.items():
        curve(ax, range(1, len(found["value"]) + 1), found, series_label(key), **series_style(key))
    ax.set(xlabel="k patches", ylabel="top-k precision", title=title)


def perturbation_panels(axes: Sequence[Axes], series: Mapping[str, Mapping[str, Any]], recipe: Any) -> None:
    """Mean probability, AOPC, accuracy as the image is taken apart in the order of each map, and put together again."""
    side = f"{recipe.aopc_tile} px tiles, {recipe.perturbation}"
    panels = (
        ("perturbation_curve", f"tiles replaced ({side})", "probability of the true class"),
        ("aopc", f"L ({side})", "AOPC"),
        ("deletion_curve", f"patches occluded ({recipe.deletion_fill} fill)", "accuracy"),
        (
            "insertion_curve",
            f"% of the patches back (from {recipe.deletion_fill} fill)",
            "probability of the true class",
        ),
    )
    for ax, (name, x_label, y_label) in zip(axes, panels, strict=False):
        for key, found in series.items():
            x = np.arange(len(found[name]["value"]))
            x = 100 * x / x[-1] if name == "insertion_curve" else x
            curve(ax, x, found[name], series_label(key), **series_style(key))
        ax.set(xlabel=x_label, ylabel=y_label)


def roc_pr_confusion(metrics: Mapping[str, Any], classes: Sequence[str]) -> Figure:
    """ROC curve, precision-recall curve and confusion matrix of `classification_metrics`."""
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 2.8))
    parts = {classes[1]: metrics}
    if "per_class" in metrics:
        parts = {**dict(zip(classes, metrics["per_class"], strict=True)), "micro": metrics["micro"]}
    for (name, part), colour in zip(parts.items(), [*list(VARIANTS.values())[1:], "#009E73"] * 9, strict=False):
        left.plot(part["roc"]["false_positive_rate"], part["roc"]["sensitivity"], color=colour, label=name)
        middle.plot(part["pr"]["sensitivity"], part["pr"]["precision"], color=colour, label=name)
    left.plot([0, 1], [0, 1], ":", color="#999999")
    left.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"ROC, AUC {metrics['auc']:.3f}")
    middle.set(xlabel="sensitivity (recall)", ylabel="precision", ylim=(0, 1.02))
    middle.set_title(f"average precision {metrics['average_precision']:.3f}")
    left.legend(frameon=False)
    matrix = np.asarray(metrics["confusion_matrix"])
    right.imshow(matrix, cmap="Blues")
    for (i, j), count in np.ndenumerate(matrix):
        right.text(j, i, int(count), ha="center", va="center", color="white" if count > matrix.max() / 2 else "black")
    right.set(xlabel="predicted", ylabel="true", title=f"accuracy {metrics['accuracy']:.3f}")
    right.set_xticks(range(len(classes)), classes)
    right.set_yticks(range(len(classes)), classes)
    return fig


def overview(summaries: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row per method, one column per metric that is a number: '0.912 [0.880, 0.941]'."""
    return pd.DataFrame(
        {
            METHODS[method].label: {
                key.replace("_", " "): as_text(value)
                for key, value in found.items()
                if not isinstance(value["value"], list)
            }
            for method, found in summaries.items()
        }
    ).T.fillna("")


def pompom_curve(eps: Sequence[float], found: Mapping[str, Any]) -> Figure:
    """POMPOM against the value up to which a pixel of the heatmap counts as closed."""
    fig, ax = plt.subplots(figsize=(4, 2.6))
    curve(ax, eps, found, "Explainer", color=VARIANTS["Explainer hybrid"], marker=".")
    ax.set(xscale="log", xlabel="epsilon", ylabel="POMPOM", ylim=(0, None))
    return fig


def aopc_grid(
    series: Mapping[str, Mapping[str, Tensor]],
    what: str = "AOPC",
    style: Callable[[str], dict[str, Any]] = series_style,
) -> Figure:
    """Rows: tile sizes, columns: perturbations; 'method | variant' -> 'tile kind' -> mean curve."""
    cells = list(next(iter(series.values())))
    tiles, kinds = (list(dict.fromkeys(cell.split()[i] for cell in cells)) for i in (0, 1))
    tiles = sorted(tiles, key=int)
    size = (2.4 * len(kinds), 1.9 * len(tiles) + 0.8)
    fig, axes = plt.subplots(len(tiles), len(kinds), figsize=size, squeeze=False, sharex="row", sharey=True)
    for i, tile in enumerate(tiles):
        for j, kind in enumerate(kinds):
            for key, curves in series.items():
                axes[i, j].plot(curves[f"{tile} {kind}"].tolist(), label=series_label(key), **style(key))
            axes[i, j].set_title(kind if i == 0 else "")
        axes[i, 0].set_ylabel(f"{what}\n{tile} px tiles")
    for ax in axes[-1]:
        ax.set_xlabel("tiles replaced")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=7.5)
    return fig


def sanity_curves(sanity: Mapping[str, Mapping[str, Any]], name: str = "spearman_abs") -> Figure:
    """Similarity to the trained model's maps as layers are randomised, 'method' -> 'cascading' | 'independent'."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True)
    for ax, mode in zip(axes, ("cascading", "independent"), strict=True):
        for method, found in sanity.items():
            values = {layer: scores[name] for layer, scores in found[mode].items()}
            style = series_style(method) | ({"linewidth": 3.5} if found["unchanged"] else {})
            start = [1.0] if mode == "cascading" else []
            y = np.array([*start, *values.values()], dtype=float)
            ax.plot(y, marker="." if mode == "cascading" else "o", label=series_label(method), **style)
            ax.set_xticks(range(len(y)), (["trained"] if start else []) + list(values), rotation=30, ha="right")
        ax.set(title=mode, ylim=(-0.2, 1.05))
        ax.axhline(0, color="#BBBBBB", linewidth=0.8)
    axes[0].set_ylabel("rank correlation of |map|")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=7)
    return fig
