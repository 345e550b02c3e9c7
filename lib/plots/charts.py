"""Methods set against one another: dots by rank, tables of colours, matrices of differences.

In-model maps are strong and in their model's colour, post-hoc ones grey; see `contrast_style`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.plots.style import contrast_style, in_model, series_label

BETTER, WORSE, NONE = "#92C5DE", "#F4A582", "#F2F2F2"


def panels(count: int, width: float, height: float, columns: int = 2, **options: Any) -> tuple[Figure, list[Axes]]:
    """`count` panels of that size in inches, so many to a row."""
    columns = max(1, min(columns, count))
    rows = -(-max(count, 1) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **options)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return fig, list(axes.flat[:count])


def footnote(fig: Figure, text: str) -> None:
    """What colours, bands and counts are, in small print below the panels, broken at the width of the figure."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, int(17.5 * fig.get_figwidth()))]
    fig.supxlabel("\n".join(lines), fontsize=7.5, color="#444444", x=0.01, ha="left")


def number(found: Mapping[str, Any] | None) -> float:
    """The value of what `Results.value` found, NaN where there is none."""
    return float("nan") if found is None or found["value"] is None else float(found["value"])


def ranked(series: Mapping[str, Mapping[str, Any]], better: str = "higher") -> list[str]:
    """The keys, best value first, undefined ones last."""
    sign = {"higher": -1, "lower": 1}[better]
    return sorted(series, key=lambda key: (np.isnan(number(series[key])), np.nan_to_num(sign * number(series[key]))))


def ranked_legend(ax: Axes, numbers: Mapping[str, Mapping[str, Any]], better: str, title: str, **labels: str) -> None:
    """Names the lines of `ax`, whose labels are the keys, to its right: best on top, with the number that ranks them.

    `labels`: key -> text to add.
    """
    lines = {line.get_label(): line for line in ax.get_lines()}
    order = [key for key in ranked(numbers, better) if key in lines]
    texts = [f"{number(numbers[key]):.2f}  {series_label(key)}{labels.get(key, '')}" for key in order]
    handles = [lines[key] for key in order]
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.02), "borderaxespad": 0, "handlelength": 2.2}
    legend = ax.legend(handles, texts, title=title, frameon=False, fontsize=7, labelspacing=0.25, **place)
    legend.get_title().set(fontsize=7)
    legend.set_alignment("left")
    for key, text in zip(order, legend.get_texts(), strict=True):
        text.set(color=contrast_style(key)["color"] if in_model(key) else "#555555")
        text.set_weight("bold" if in_model(key) else "normal")


def name_rows(ax: Axes, keys: Sequence[str], named: bool = True, numbered: bool = False) -> None:
    """The rows 0, 1, ... from the top down, named by method unless `named` is false: in-model ones bold, in colour."""
    names = [series_label(key) + (f"  {i}" if numbered else "") for i, key in enumerate(keys, 1)]
    ax.set_yticks(range(len(keys)), names if named else [""] * len(keys), fontsize=7.5)
    ax.set_ylim(len(keys) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    for key, text in zip(keys, ax.get_yticklabels(), strict=True):
        text.set(color=contrast_style(key)["color"] if in_model(key) else "#555555")
        text.set_weight("bold" if in_model(key) else "normal")


def dot_rows(
    ax: Axes,
    series: Mapping[str, Mapping[str, Any] | None],
    keys: Sequence[str],
    hollow: bool = False,
    digits: int | None = 2,
) -> None:
    """One row per key: a dot with its interval, or a hollow one without; an empty row: undefined.

    `digits`: of the number at the right edge, None: no number.
    """
    for y, key in enumerate(keys):
        found, value = series.get(key), number(series.get(key))
        if np.isnan(value):
            continue
        colour = contrast_style(key)["color"] if in_model(key) else "#8A8A8A"
        low, high = (value if found[end] is None or np.isnan(found[end]) else found[end] for end in ("low", "high"))
        if not hollow:
            ax.plot([low, high], [y, y], color=colour, linewidth=1.6 if in_model(key) else 1.0, alpha=0.7)
        face = "white" if hollow else colour
        ax.plot(value, y, "o", color=colour, markerfacecolor=face, markersize=5.5 if in_model(key) else 4)
        if digits is not None:
            ax.text(
                1.02, y, f"{value:.{digits}f}", transform=ax.get_yaxis_transform(), va="center", fontsize=7,
                color="black" if in_model(key) else "#777777", weight="bold" if in_model(key) else "normal",
            )  # fmt: skip
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_axisbelow(True)


def heat_table(ax: Axes, frame: pd.DataFrame, lower: Sequence[str] = ()) -> None:
    """Numbers of methods (rows, 'method | variant') by metrics (columns), coloured from a column's worst to its best.

    The best of a column is bold; `lower`: columns where less is better.
    """
    values = frame.to_numpy(dtype=float)
    signed = values * np.where([column in lower for column in frame], -1, 1)
    with np.errstate(all="ignore"):
        least, most = np.nanmin(signed, 0), np.nanmax(signed, 0)
        share = (signed - least) / np.where(most > least, most - least, 1)
    ax.imshow(np.nan_to_num(share) * 0.75, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        best = signed[i, j] >= most[j] - 5e-4
        text = "–" if np.isnan(value) else f"{value:.2f}"
        colour = "white" if share[i, j] > 0.8 else "black"
        ax.text(j, i, text, ha="center", va="center", fontsize=6.5, weight="bold" if best else "normal", color=colour)
    ax.set_xticks(range(len(frame.columns)), frame.columns, rotation=40, ha="left", rotation_mode="anchor", fontsize=7)
    ax.tick_params(axis="x", top=True, bottom=False, labeltop=True, labelbottom=False, length=0)
    name_rows(ax, list(frame.index))
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.spines[:].set_visible(False)


def difference_matrix(ax: Axes, keys: Sequence[str], differences: np.ndarray, verdicts: np.ndarray) -> None:
    """Row less column, (M, M) numbers, the columns numbered as the rows are.

    Blue where the row is better than the column, orange where it is worse, pale where no difference is shown.
    """
    colours = {"better": BETTER, "worse": WORSE}
    for (i, j), value in np.ndenumerate(differences):
        colour = "white" if i == j else colours.get(verdicts[i, j], NONE)
        ax.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, color=colour, linewidth=0))
        if i != j and np.isfinite(value):
            text = f"{value:+.2f}".replace("-", "−").replace("+0.", "+.").replace("−0.", "−.")
            ax.text(j, i, text, ha="center", va="center", fontsize=5.8)
    name_rows(ax, keys, numbered=True)
    ax.set_xticks(range(len(keys)), range(1, len(keys) + 1), fontsize=7.5)
    ax.set(xlim=(-0.5, len(keys) - 0.5), ylim=(len(keys) - 0.5, -0.5), aspect="auto")
    ax.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)


def value_axis(ax: Axes, values: Sequence[float]) -> list[float]:
    """Where the values of a swept parameter lie on the x axis, labelled: logarithmic, 0 at the left, if they span more
    than a factor of 50, else as they are."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) <= 50 * min(positive):
        places = [float(value) for value in values]
    else:
        logs = {value: float(np.log10(value)) for value in positive}
        places = [logs.get(value, min(logs.values()) - 1) for value in values]
        if 0 in values:
            ax.text(min(logs.values()) - 0.5, 0, "//", transform=ax.get_xaxis_transform(), ha="center", va="center")
    texts = [f"{value:.0e}".replace("e-0", "e-") if 0 < value < 0.01 else f"{value:g}" for value in values]
    ax.set_xticks(places, texts, fontsize=7)
    return places
