"""Figures, each a pure function of arrays. Colours (Okabe and Ito, Tol) are safe for colour-blind readers.

Maps are drawn over the grey image and scaled for the eye only: signed maps diverge around 0, others start at 0. The
scale of a panel ends at the 99.5th percentile of the map's absolute values, so that single pixels do not hide the rest;
the end and, where it is larger, the maximum are printed in the panel. Explainer heatmaps are shown on [0, 1], and the
epochs of one image on one scale.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from lib.explain import METHODS

VARIANTS = {  # models, as `Recipe.variant` calls them
    "black box": "#000000", "SoftCAM dense": "#D55E00", "SoftCAM sparse": "#8C2D04", "SoftCAM ridge": "#E69F00",
    "SoftCAM elastic net": "#CC79A7", "Explainer unsupervised": "#56B4E9", "Explainer hybrid": "#0072B2",
}  # fmt: skip
COLOURS = {  # methods; an in-model one takes the colour of its model where that is known
    "evidence": "#D55E00", "explainer": "#0072B2", "gradcam": "#009E73", "integrated_gradients": "#CC79A7",
    "guided_backprop": "#E69F00", "saliency": "#882255", "input_x_gradient": "#000000", "random": "#999999",
}  # fmt: skip
DASHES = {
    "gradcam": (0, (5, 1)), "integrated_gradients": (0, (3, 1, 1, 1)), "guided_backprop": (0, (2, 1)),
    "saliency": (0, (5, 1, 1, 1, 1, 1)), "input_x_gradient": (0, (1, 1)), "random": ":",
}  # fmt: skip
SPLITS = (("train", "#0072B2", "--"), ("val", "#D55E00", "-"))
plt.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False})
plt.rcParams.update({"figure.dpi": 110, "savefig.dpi": 150, "font.size": 9, "axes.titlesize": 9, "image.cmap": "gray"})


def show_image(ax: Axes, image: Tensor, title: str = "") -> None:
    """An image (C, H, W) in [0, 1], in its own colours."""
    array = image.detach().cpu().permute(1, 2, 0).numpy()
    ax.imshow(array if array.shape[2] == 3 else array[..., 0], vmin=0, vmax=1)
    ax.set_title(title)
    ax.set_axis_off()


def show_mask(ax: Axes, mask: Tensor | None, colour: str = "#F0E442") -> None:
    """The outline of a mask (H, W); nothing where it is empty."""
    if mask is not None and bool(mask.any()):
        padded = np.pad(mask.cpu().numpy().astype(float), 1)
        y, x = np.arange(-1, padded.shape[0] - 1), np.arange(-1, padded.shape[1] - 1)
        ax.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=1.0)


def show_region(ax: Axes, image: Tensor, mask: Tensor, title: str = "") -> None:
    """The mask (H, W), filled, over the grey image (C, H, W)."""
    show_image(ax, image.mean(0, keepdim=True), title)
    ax.imshow(np.ma.masked_equal(mask.cpu().numpy(), 0), cmap="Wistia", vmin=0, vmax=1.2, alpha=0.75)


def show_map(
    ax: Axes,
    image: Tensor,
    heatmap: Tensor,
    signed: bool,
    mask: Tensor | None = None,
    title: str = "",
    limit: float | None = None,
) -> None:
    """A map (H, W) over the grey image (C, H, W): blue-white-red around 0 if signed, else dark to bright from 0.

    `limit` is the end of the scale; None: the map's own.
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
    show_mask(ax, mask, "#009E73" if signed else "#56B4E9")
    ax.set_title(title)
    ends = f"{'±' if signed else '0–'}{limit:.2g}" + (f", max {most:.2g}" if most > 1.05 * limit else "")
    box = {"facecolor": "white", "alpha": 0.6, "pad": 0.8, "linewidth": 0}
    ax.text(0.98, 0.02, ends, transform=ax.transAxes, ha="right", va="bottom", fontsize=6, bbox=box)
    ax.set_axis_off()


def sample_sheet(images: Tensor, masks: Tensor, titles: Sequence[str], columns: int = 6) -> Figure:
    """Images (N, C, H, W) with the outlines of their masks (N, H, W)."""
    rows = -(-len(images) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.75 * rows), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, mask, title in zip(axes.flat, images, masks, titles, strict=False):
        show_image(ax, image, title)
        show_mask(ax, mask)
    return fig


def explanation_grid(images: Tensor, masks: Tensor, maps: Mapping[str, Tensor], titles: Sequence[str]) -> Figure:
    """One row per image (N >= 1, C, H, W): the image, its mask, each map (N, H, W) by 'method' or 'method | model'."""
    columns = 2 + len(maps)
    fig, axes = plt.subplots(len(images), columns, figsize=(1.45 * columns, 1.6 * len(images) + 0.3), squeeze=False)
    for i, row in enumerate(axes):
        show_image(row[0], images[i], titles[i])
        show_region(row[1], images[i], masks[i], "lesion / target" if i == 0 else "")
        for ax, (key, values) in zip(row[2:], maps.items(), strict=True):
            name, _, model = key.partition(" | ")
            head = "\n".join(filter(None, (METHODS[name].label, model))) if i == 0 else ""
            end = 1.0 if name == "explainer" else None
            show_map(ax, images[i], values[i], METHODS[name].signed, masks[i], head, end)
    return fig


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
    losses = [c.removeprefix("val_") for c in history if c.startswith("val_") and c not in ("val_auc", "val_acc")]
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


def evolution_frames(evolution: Mapping[str, Tensor], target: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """The fixed images (M, C, H, W), and 'phase/epoch' -> their maps (M, h, w); of SoftCAM those of class `target`."""
    order = ("classifier", "explainer", "joint")
    keys = [key for key in evolution if key != "images"]
    keys.sort(key=lambda key: (order.index(key.split("/")[0]) if key.split("/")[0] in order else 0, key))
    return evolution["images"], {key: evolution[key][:, min(target, evolution[key].shape[1] - 1)] for key in keys}


def evolution_limits(frames: Mapping[str, Tensor], signed: bool) -> list[float]:
    """One scale per image for all its epochs: 1 for heatmaps in [0, 1], else the largest of the epochs' ends."""
    if not signed:
        return [1.0] * len(next(iter(frames.values())))
    return torch.stack([maps.flatten(1).abs().quantile(0.995, dim=1) for maps in frames.values()]).amax(0).tolist()


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (M, h, w) -> (M, H, W), bilinear, for the eye."""
    return torch.nn.functional.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def evolution_strip(evolution: Mapping[str, Tensor], signed: bool, most: int = 9) -> Figure:
    """Explanations of the fixed images after each epoch, from left (before training) to right."""
    images, frames = evolution_frames(evolution)
    limits = evolution_limits(frames, signed)
    keys = [list(frames)[i] for i in np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).astype(int))]
    size = (1.25 * (len(keys) + 1), 1.4 * len(images))
    fig, axes = plt.subplots(len(images), len(keys) + 1, figsize=size, squeeze=False)
    for i, row in enumerate(axes):
        show_image(row[0], images[i], "image" if i == 0 else "")
        for ax, key in zip(row[1:], keys, strict=True):
            phase, epoch = key.split("/")
            title = f"{phase}\nepoch {int(epoch)}" if i == 0 else ""
            heatmap = resized(frames[key], images.shape[2:])[i]
            show_map(ax, images[i], heatmap, signed, title=title, limit=limits[i])
    return fig


def evolution_gif(evolution: Mapping[str, Tensor], signed: bool, seconds: float = 0.6) -> bytes:
    """The papers' animated figure: one frame per epoch, as GIF bytes."""
    images, frames = evolution_frames(evolution)
    pictures, limits = [], evolution_limits(frames, signed)
    for key, maps in frames.items():
        fig, axes = plt.subplots(1, len(images), figsize=(1.8 * len(images), 2.1), squeeze=False)
        for i, ax in enumerate(axes.flat):
            show_map(ax, images[i], resized(maps, images.shape[2:])[i], signed, limit=limits[i])
        fig.suptitle(f"{key.split('/')[0]}, epoch {int(key.split('/')[1])}")
        fig.canvas.draw()
        pictures.append(Image.fromarray(np.asarray(fig.canvas.buffer_rgba())[..., :3].copy()))
        plt.close(fig)
    out = io.BytesIO()
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=int(seconds * 1000), loop=0)
    return out.getvalue()


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


def topk_panel(
    ax: Axes, series: Mapping[str, Mapping[str, Any]], reference: Mapping[str, Any], title: str = ""
) -> None:
    """Top-k localisation precision of each 'method' or 'method | variant', with ceiling and chance."""
    ceiling = np.asarray(reference["topk_ceiling"], dtype=float)
    chance = np.nan if reference["topk_chance"] is None else float(reference["topk_chance"])
    x = range(1, len(ceiling) + 1)
    ax.plot(x, ceiling, color="#BBBBBB", linewidth=4, label="best possible", zorder=0)
    ax.axhline(chance, color="#BBBBBB", linestyle=":", label="chance", zorder=0)
    for key, found in series.items():
        curve(ax, x, found, series_label(key), **series_style(key))
    ax.set(xlabel="k patches", ylabel="top-k precision", ylim=(0, 1.03), title=title, xticks=[1, *x[1::2]])


def perturbation_panels(axes: Sequence[Axes], series: Mapping[str, Mapping[str, Any]], recipe: Any) -> None:
    """Mean probability, AOPC and accuracy as the image is taken apart in the order of each method's map."""
    side = f"{recipe.aopc_tile} px tiles, {recipe.perturbation}"
    panels = (
        ("perturbation_curve", f"tiles replaced ({side})", "probability of the true class"),
        ("aopc", f"L ({side})", "AOPC"),
        ("deletion_curve", f"patches occluded ({recipe.deletion_fill} fill)", "accuracy"),
    )
    for ax, (name, x_label, y_label) in zip(axes, panels, strict=False):
        for key, found in series.items():
            curve(ax, range(len(found[name]["value"])), found[name], series_label(key), **series_style(key))
        ax.set(xlabel=x_label, ylabel=y_label)


def series_label(key: str) -> str:
    """'evidence | SoftCAM sparse' -> 'SoftCAM sparse'; 'gradcam | black box' -> 'Grad-CAM'; 'gradcam' -> 'Grad-CAM'."""
    method, _, variant = key.partition(" | ")
    return variant if variant and METHODS[method].family == "in-model" else METHODS[method].label


def series_style(key: str) -> dict[str, Any]:
    """Colour, dash and width of a curve: in-model maps are drawn solid and strong, post-hoc ones dashed."""
    method, _, variant = key.partition(" | ")
    own = METHODS[method].family == "in-model"
    colour = VARIANTS.get(variant.partition(" (")[0], COLOURS[method]) if own else COLOURS[method]
    return {"color": colour, "linestyle": "-" if own else DASHES[method], "linewidth": 2.2 if own else 1.3}


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
