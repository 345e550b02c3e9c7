"""Images, masks and maps.

Maps are drawn over the grey image and scaled for the eye only: signed maps diverge around 0, others start at 0. The
scale of a panel ends at the 99.5th percentile of the map's absolute values, so that single pixels do not hide the rest;
the end and, where it is larger, the maximum are printed in the panel. Explainer heatmaps are shown on [0, 1], and the
epochs of one image on one scale.
"""

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from lib.explain import METHODS


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


def in_parts(maps: Mapping[str, Tensor], most: int = 9) -> list[dict[str, Tensor]]:
    """Maps by name, in parts of about equal size and at most `most`: as many as a sheet can show side by side."""
    names = list(maps)
    count = -(-len(names) // most)
    return [{names[i]: maps[names[i]] for i in part} for part in np.array_split(range(len(names)), count)]


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
