"""What the notebooks draw with: an image, a map, a mask, dots, curves.

Maps lie over the grey image and are scaled for the eye only: signed maps diverge around 0, others start at 0. The
scale of a panel ends at the 99.5th percentile of the map's absolute values, so that single pixels do not hide the rest;
the end and, where it is larger, the maximum are printed in the panel. Explainer heatmaps are shown on [0, 1], the
epochs of one image on one scale. Labels are those of `lib.table`: in-model ones strong, in their model's colour,
post-hoc ones thin and grey. No two things are told apart by red and green.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lib.explain import METHODS

OWN = {  # colours of models and of their own maps; safe for colour-blind readers (Okabe and Ito)
    "black box": "#000000", "SoftCAM dense": "#D55E00", "SoftCAM sparse": "#8C2D04", "SoftCAM ridge": "#E69F00",
    "SoftCAM elastic net": "#CC79A7", "Explainer unsupervised": "#56B4E9", "Explainer hybrid": "#0072B2",
    "TTE-CAM": "#000000",
}  # fmt: skip
POST_HOC = [method.label for method in METHODS.values() if method.family not in ("in-model", "baseline")]
WIDTH = 8.4  # inches: 100 pixels each where a page shows a figure 838 pixels wide
GREYS = {"LRP alpha1-beta0": "#333333", "Grad-CAM": "#666666"}
DASHES = {
    "Grad-CAM": (0, (5, 1)), "Integrated Gradients": (0, (3, 1, 1, 1)), "Guided Backprop": (0, (2, 1)),
    "LRP alpha1-beta0": (0, (4, 2)), "Score-CAM": (0, (6, 2)),
} | {method.label: ":" for method in METHODS.values() if method.family == "baseline"}  # fmt: skip
plt.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False})
plt.rcParams.update({"figure.dpi": 110, "savefig.dpi": 150, "font.size": 9, "axes.titlesize": 9, "image.cmap": "gray"})


def style(label: str, coloured: bool = False) -> dict[str, Any]:
    """Line style of a label; `coloured`: post-hoc methods each in a colour of its own instead of grey."""
    name = label.partition(" (")[0]
    if name in OWN:
        return {"color": OWN[name], "linestyle": "-", "linewidth": 2.4}
    colour = GREYS.get(name, "#8A8A8A") if name in POST_HOC else "#BBBBBB"
    colour = plt.get_cmap("tab20")(POST_HOC.index(name)) if coloured and name in POST_HOC else colour
    return {"color": colour, "linestyle": DASHES.get(name, (0, (3, 2))), "linewidth": 1.1}


def is_own(label: str) -> bool:
    return label.partition(" (")[0] in OWN


# ------------------------------------------------------------------------------------------------- images and maps
def show_image(ax: Axes, image: Tensor, title: str = "") -> None:
    """An image (C, H, W) in [0, 1], in its own colours."""
    array = image.detach().cpu().permute(1, 2, 0).numpy()
    ax.imshow(array if array.shape[2] == 3 else array[..., 0], vmin=0, vmax=1)
    ax.set_title(title)
    ax.set_axis_off()


def show_mask(ax: Axes, mask: Tensor | None) -> None:
    """The outline of a mask (H, W), black in white, so that it is seen on any colour; nothing where it is empty."""
    if mask is not None and bool(mask.any()):
        padded = np.pad(mask.cpu().numpy().astype(float), 1)
        y, x = np.arange(-1, padded.shape[0] - 1), np.arange(-1, padded.shape[1] - 1)
        for colour, width in (("white", 2.2), ("black", 0.9)):
            ax.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=width)


def show_region(ax: Axes, image: Tensor, mask: Tensor, title: str = "") -> None:
    """The mask (H, W), filled, over the grey image (C, H, W)."""
    show_image(ax, image.mean(0, keepdim=True), title)
    ax.imshow(np.ma.masked_equal(mask.cpu().numpy(), 0), cmap="Wistia", vmin=0, vmax=1.2, alpha=0.75)


def show_map(
    ax: Axes, image: Tensor, heatmap: Tensor, signed: bool, mask=None, title="", limit=None, ends=True
) -> None:
    """A map (H, W) over the grey image (C, H, W): blue-white-red around 0 if signed, else dark to bright from 0.

    `limit` is the end of the scale; None: the map's own; `ends`: print it.
    """
    values = heatmap.detach().cpu().float().numpy()
    size = np.abs(values[np.isfinite(values)])
    most = float(size.max()) if size.size else 0.0
    limit = limit or (float(np.quantile(size, 0.995)) if size.size else 0.0) or most
    ax.imshow(image.detach().cpu().mean(0).numpy() * 0.6 + 0.4, vmin=0, vmax=1, cmap="gray")
    scaled = np.clip(values / limit, -1, 1) if limit > 0 else values
    colours = plt.get_cmap("RdBu_r" if signed else "inferno")((scaled + 1) / 2 if signed else scaled)
    colours[..., 3] = 0.15 + 0.75 * np.abs(np.nan_to_num(scaled)) ** 0.6
    ax.imshow(colours)
    show_mask(ax, mask)
    ax.set_title(title)
    ax.set_axis_off()
    if ends:
        scale = f"{'±' if signed else '0–'}{limit:.2g}" + (f", max {most:.2g}" if most > 1.05 * limit else "")
        box = {"facecolor": "white", "alpha": 0.6, "pad": 0.8, "linewidth": 0}
        ax.text(0.98, 0.02, scale, transform=ax.transAxes, ha="right", va="bottom", fontsize=6, bbox=box)


def frames(evolution: Mapping[str, Tensor], signed: bool) -> tuple[Tensor, dict[str, Tensor], list[float]]:
    """The fixed images (M, C, H, W) of `Run.evolution`; 'phase, epoch n' -> their maps (M, H, W), bilinear, of SoftCAM
    for class 1; the end of the scale of each image, one for all its epochs: 1 for heatmaps."""
    images, found = evolution["images"], {}
    for key in sorted(evolution.keys() - {"images"}):  # the phases are called in their order
        phase, epoch = key.split("/")
        maps = evolution[key][:, min(1, evolution[key].shape[1] - 1)][:, None]
        maps = torch.nn.functional.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
        found[f"{phase}, epoch {int(epoch)}"] = maps
    ends = torch.stack([maps.flatten(1).abs().quantile(0.995, dim=1) for maps in found.values()]).amax(0).tolist()
    return images, found, ends if signed else [1.0] * len(images)


# ---------------------------------------------------------------------------------------------------------- charts
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


def sheet(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure as wide as a page: panels (rows, columns), of `height` inches in all."""
    return plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **options)


def ranked(s: pd.DataFrame, better: str = "higher") -> list[str]:
    """The labels of a summary, best value first, undefined ones left out."""
    s = s.dropna(subset="value").sort_values("value", ascending=better == "lower", kind="stable")
    return list(s["label"].astype(str))


def by_mean_rank(s: pd.DataFrame, lower: Sequence[str] = ()) -> list[str]:
    """The labels of a summary of several data sets and columns, best mean rank first; in `lower` less is better."""
    frame = s.pivot_table(index="label", columns=["column", "dataset"], values="value", observed=True)
    ranks = (frame * [-1 if name in lower else 1 for name, _ in frame]).rank(ascending=False, pct=True).mean(axis=1)
    return list(ranks.sort_values(kind="stable").index.astype(str))


def emphasise(labels: Sequence[str], texts: Sequence[Text]) -> None:
    """In-model labels bold and in their colour, all others grey."""
    for label, text in zip(labels, texts, strict=False):  # inner panels that share their rows have no texts
        own = is_own(label)
        text.set(color=style(label)["color"] if own else "#555555", weight="bold" if own else "normal")


def dots(ax: Axes, s: pd.DataFrame, rows: Sequence[str], single=None, hollow: bool = False, best: str = "") -> None:
    """A row per label, in the order of `rows`: a dot of a summary's value with its interval, or a hollow one; small
    ones below for the values of `single` (each seed's, say); a ring around the `best`, higher or lower."""
    colours, first = np.array([style(x)["color"] if is_own(x) else "#777777" for x in rows]), ranked(s, best)[:1]
    for frame, size, below in ((s, 18, 0), (s[s["label"].isin(first if best else [])], 70, 0), (single, 2, 0.32)):
        if frame is not None and len(frame):
            frame = frame.dropna(subset="value")
            y = np.array([rows.index(label) for label in frame["label"]], dtype=int)
            if size == 18 and not hollow:
                ax.hlines(y, frame["low"], frame["high"], colors=colours[y], linewidth=1.4, alpha=0.7)
            face, edge = ("none", "black") if size == 70 else ("white" if hollow else colours[y], colours[y])
            ax.scatter(frame["value"], y + below, size, face, edgecolors=edge, zorder=2)
    for y in [y for y, label in enumerate(rows) if is_own(label) and not hollow]:
        ax.axhspan(y - 0.5, y + 0.5, color=colours[y], alpha=0.08, linewidth=0, zorder=0)
    ax.set_yticks(range(len(rows)), rows, fontsize=7)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    emphasise(rows, ax.get_yticklabels())
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_axisbelow(True)


def curves(ax: Axes, s: pd.DataFrame, coloured: bool = False, bands: bool = False) -> None:
    """A line per label of a summary over k, with the bands of in-model maps (or all)."""
    for label, one in reversed(list(s.groupby("label", observed=True, sort=False))):
        look = style(label, coloured)
        ax.plot(one["k"], one["value"], label=label, **look)
        if bands or is_own(label):
            ax.fill_between(one["k"], one["low"], one["high"], color=look["color"], alpha=0.13, linewidth=0)


def ranked_legend(ax: Axes, s: pd.DataFrame, title: str, better="higher", marks=None) -> None:
    """Names the lines of `ax` to its right, best on top, with the value of a summary that ranks them; `marks`: label ->
    text to add."""
    lines = {line.get_label(): line for line in ax.get_lines()}
    rows = [label for label in ranked(s, better) if label in lines]
    values = s.set_index(s["label"].astype(str))["value"]
    texts = [f"{values[label]:.2f}  {label}{(marks or {}).get(label, '')}" for label in rows]
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.02), "borderaxespad": 0, "handlelength": 2.2}
    handles = [lines[label] for label in rows]
    legend = ax.legend(handles, texts, title=title, frameon=False, fontsize=7, labelspacing=0.25, **place)
    legend.get_title().set(fontsize=7)
    legend.set_alignment("left")
    emphasise(rows, legend.get_texts())


def epochs(ax: Axes, history: pd.DataFrame, name: str) -> dict[str, tuple[float, float]]:
    """A column of a history for both splits over the epochs of all phases, one after the other, which are named above
    and begin at a line; phase -> its first and last epoch there."""
    lengths = history.groupby("phase", sort=False)["epoch"].max()
    ends = lengths.cumsum()
    x = history["epoch"] + history["phase"].map(ends - lengths)
    for split, colour, look in (("train", "#0072B2", "--"), ("val", "#D55E00", "-")):
        ax.plot(x, history[f"{split}_{name}"], look, color=colour, label=split, linewidth=1.3)
    for phase, end in ends.items() if len(ends) > 1 else ():
        ax.axvline(end, color="#BBBBBB", linewidth=0.8, zorder=0)
        at = end - lengths[phase] / 2, 1.1 if phase == "explainer" else 1.01  # so that short phases have room
        ax.text(*at, phase, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=6)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel("epoch")
    return {phase: (end - lengths[phase], end) for phase, end in ends.items()}
