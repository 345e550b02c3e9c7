"""What the faithfulness metrics share: images with some tiles replaced, and the classifier's answer to them.

`predict` maps images (B, C, H, W) to probabilities (B, K) and does its own normalisation; it runs without gradient, on
at most `batch_size` perturbed images at a time, so that memory does not grow with the number of images.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from lib.metrics.localisation import NAN, check_count, check_maps, rank_patches, undefined

Predict = Callable[[Tensor], Tensor]
CONSTANTS = {"black": 0.0, "gray": 0.5, "white": 1.0, "zero": 0.0}
PERTURBATIONS = ("black", "white", "gray", "uniform", "blur")
REPLACEMENTS = (*PERTURBATIONS, "mean")
ORDERS = ("morf", "lerf")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_inputs(images: Tensor, maps: Tensor, classes: Tensor, name: str = "targets") -> None:
    """Raises ValueError unless images (N, C, H, W), maps (N, H, W) and integer `classes` (N,) belong together."""
    check_maps("maps", maps)
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise ValueError(f"images: expected floats (N >= 1, C, H, W), got {images.dtype} of {tuple(images.shape)}")
    if maps.shape != (expected := (len(images), *images.shape[2:])):
        raise ValueError(f"maps: expected shape {expected} to match images, got {tuple(maps.shape)}")
    if classes.shape != images.shape[:1] or classes.is_floating_point():
        raise ValueError(
            f"{name}: expected integers of shape ({len(images)},), got {classes.dtype} of {tuple(classes.shape)}"
        )


def check_pixels(images: Tensor) -> None:
    """Raises ValueError unless the images are in [0, 1]."""
    if not images.min() >= -1e-3 or not images.max() <= 1 + 1e-3:
        raise ValueError(f"images: expected values in [0, 1], got {images.min():.4g} to {images.max():.4g}")


def tile_count(images: Tensor, tile: int, name: str = "tile") -> int:
    """How many tiles cover an image, those cut by the border included."""
    check_count(name, tile)
    return math.prod(-(-side // tile) for side in images.shape[2:])


def tile_rank(maps: Tensor, tile: int, order: str = "morf") -> Tensor:
    """(N, T): rank of every tile by the mean of the map, 0 for the first removed; equal tiles by position."""
    return rank_patches(maps if order == "morf" else -maps, tile, by="mean")[1].argsort(1)


def replace_tiles(image: Tensor, fill: Tensor, gone: Tensor, tile: int) -> Tensor:
    """(B, C, H, W): the image (C, H, W) with `fill` in the tiles where `gone` (B, T) is true."""
    height, width = image.shape[1:]
    grid = gone.to(image.device).view(-1, 1, -(-height // tile), -(-width // tile))
    return torch.where(grid.repeat_interleave(tile, 2).repeat_interleave(tile, 3)[..., :height, :width], fill, image)


def replacement(images: Tensor, kind: str, seed: int = 0) -> Callable[[int], Tensor]:
    """Image number -> what stands where a tile was, broadcastable to (C, H, W); worked out once for each image."""
    if kind in CONSTANTS:
        constant = images.new_full((), CONSTANTS[kind])
        return lambda i: constant
    if kind == "uniform":
        noise = torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)
        return lambda i: noise
    if kind == "mean":
        return functools.lru_cache(1)(lambda i: images[i].mean((1, 2), keepdim=True))
    sigma = 0.05 * max(images.shape[2:])
    radius = min(math.ceil(3 * sigma), min(images.shape[2:]) - 1)
    return functools.lru_cache(1)(lambda i: T.gaussian_blur(images[i], [2 * radius + 1] * 2, [sigma] * 2))


def target_probability(targets: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Score of `evaluate`: the probability of each image's target. Raises ValueError for what is no probability."""

    def score(output: Tensor, row: Tensor) -> Tensor:
        if output.min() < -1e-4 or output.max() > 1 + 1e-4:
            raise ValueError(f"predict: expected probabilities, got {output.min():.4g} to {output.max():.4g}")
        target = targets.to(output.device).long()[row]
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= output.shape[1]:
            raise ValueError(f"targets: expected 0..{output.shape[1] - 1}, got {low}..{high}")
        return output.gather(1, target[:, None])[:, 0]

    return score


@torch.no_grad()
def evaluate(
    predict: Predict,
    versions: Callable[[int, Tensor], Tensor],
    maps: Tensor,
    states: int,
    score: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
) -> Tensor:
    """(N, states) on the CPU: score(predict(x), image numbers) of every image in every state, NaN where the image's map
    of `maps` (N, H, W) is undefined.

    `versions(i, s)` gives image number i in the states s (B,) as a new tensor (B, C, H, W). Images come in order, each
    in consecutive calls, so that a cache of one entry spares repeated work. Raises ValueError for other outputs.
    """
    check_count("batch_size", batch_size)
    scores = []
    for pairs in torch.arange(len(maps) * states).split(batch_size):
        row, state = pairs // states, pairs % states
        parts = [versions(i, state[row == i]) for i in range(int(row[0]), int(row[-1]) + 1)]
        output = predict(torch.cat(parts) if len(parts) > 1 else parts[0])
        if output.ndim != 2 or len(output) != len(pairs) or not output.isfinite().all():
            raise ValueError(f"predict: expected finite values of shape ({len(pairs)}, K), got {tuple(output.shape)}")
        scores.append(score(output, row.to(output.device)).float().cpu())
    return torch.cat(scores).view(len(maps), states).masked_fill(undefined(maps).cpu()[:, None], NAN)


def evaluate_counts(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    rank: Callable[[Tensor], Tensor],
    counts: Tensor,
    tile: int,
    fill: str,
    score: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
    seed: int = 0,
    keep: bool = False,
) -> Tensor:
    """(N, len(counts)): the score of each image after replacing the `counts` first tiles, or all others (`keep`).

    `rank` maps maps (1, H, W) to the rank of each tile (1, T). Equal counts cost one forward pass.
    """
    distinct, place = counts.unique(return_inverse=True)
    filled = replacement(images, fill, seed)
    ranks = functools.lru_cache(1)(lambda i: rank(maps[i : i + 1]).cpu())

    def versions(i: int, state: Tensor) -> Tensor:
        return replace_tiles(images[i], filled(i), (ranks(i) < distinct[state, None]) != keep, tile)

    return evaluate(predict, versions, maps, len(distinct), score, batch_size)[:, place]
