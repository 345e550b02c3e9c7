"""Whether a heatmap tells what the classifier looks at: replace what it ranks highest and watch the output.

`predict` maps images (B, C, H, W) to probabilities (B, K) and does its own normalisation; it runs without gradient, on
at most `batch_size` perturbed images at a time. Curves start at the untouched image; once every tile is replaced, a
curve stays at its last value.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from lib.metrics.localisation import check_count, check_maps, rank_patches

Predict = Callable[[Tensor], Tensor]
CONSTANTS = {"black": 0.0, "gray": 0.5, "white": 1.0, "zero": 0.0}
PERTURBATIONS = ("black", "white", "gray", "uniform", "blur")
FILLS = ("zero", "mean", "blur")


def _check(images: Tensor, maps: Tensor, classes: Tensor, name: str) -> None:
    check_maps("maps", maps)
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise ValueError(f"images: expected floats (N >= 1, C, H, W), got {images.dtype} of {tuple(images.shape)}")
    if maps.shape != (expected := (len(images), *images.shape[2:])):
        raise ValueError(f"maps: expected shape {expected} to match images, got {tuple(maps.shape)}")
    if classes.shape != images.shape[:1] or classes.is_floating_point():
        raise ValueError(
            f"{name}: expected integers of shape ({len(images)},), got {classes.dtype} of {tuple(classes.shape)}"
        )


def _replacement(images: Tensor, kind: str, seed: int) -> Tensor:
    """What stands where a tile was, broadcastable to images (B, C, H, W)."""
    if kind in CONSTANTS:
        return images.new_full((), CONSTANTS[kind])
    if kind == "uniform":
        return torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)
    if kind == "mean":
        return images.mean((2, 3), keepdim=True)
    sigma = 0.05 * max(images.shape[2:])
    radius = min(math.ceil(3 * sigma), min(images.shape[2:]) - 1)
    return T.gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)


@torch.no_grad()
def _morf(
    predict: Predict,
    images: Tensor,
    order: Tensor,
    tile: int,
    steps: int,
    kind: str,
    score: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
    seed: int,
) -> Tensor:
    """(N, steps + 1): score(predict(x_k), image number) for x_k = the image without its k first tiles of `order`."""
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    (n, _, height, width), tiles = images.shape, order.shape[1]
    rank = order.argsort(1).to(images.device).view(n, -(-height // tile), -(-width // tile))
    last = min(steps, tiles)
    scores = []
    for pairs in torch.arange(n * (last + 1), device=images.device).split(batch_size):
        row, k = pairs // (last + 1), pairs % (last + 1)
        first, stop = int(row[0]), int(row[-1]) + 1
        gone = (rank[row] < k[:, None, None]).repeat_interleave(tile, 1).repeat_interleave(tile, 2)
        fill = _replacement(images[first:stop], kind, seed).expand(stop - first, *images.shape[1:])
        output = predict(torch.where(gone[:, None, :height, :width], fill[row - first], images[row]))
        if output.ndim != 2 or len(output) != len(pairs) or not output.isfinite().all():
            raise ValueError(f"predict: expected finite values of shape ({len(pairs)}, K), got {tuple(output.shape)}")
        scores.append(score(output, row.to(output.device)).float().cpu())
    curve = torch.cat(scores).view(n, last + 1)
    return torch.cat([curve, curve[:, -1:].expand(-1, steps - last)], 1)


def perturbation_curve(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    tile: int = 8,
    steps: int = 100,
    perturbation: str = "black",
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor:
    """(N, steps + 1) in [0, 1]: f(x_MoRF^(k)), k = 0..steps, the probability of the target class on the CPU.

    Step k replaces the k square tiles of `tile` pixels with the highest mean of the map (equal ones by position) by
    black (0), white (1), gray (0.5), uniform noise (one seeded noise image for all) or the Gaussian-blurred image
    (sigma 5 % of the longer side). Images (N, C, H, W) in [0, 1], before normalisation; maps (N, H, W); targets (N,).
    Raises ValueError for other arguments, or a `predict` that gives no probabilities (Samek et al. 2017, eq. 9-11).
    """
    _check(images, maps, targets, "targets")
    if perturbation not in PERTURBATIONS:
        raise ValueError(f"perturbation: expected one of {', '.join(PERTURBATIONS)}, got {perturbation!r}")
    if images.min() < -1e-3 or images.max() > 1 + 1e-3:
        raise ValueError(f"images: expected values in [0, 1], got {images.min():.4g} to {images.max():.4g}")

    def probability(output: Tensor, row: Tensor) -> Tensor:
        if output.min() < -1e-4 or output.max() > 1 + 1e-4:
            raise ValueError(f"predict: expected probabilities, got {output.min():.4g} to {output.max():.4g}")
        target = targets.to(output.device).long()[row]
        if not 0 <= int(target.min()) <= int(target.max()) < output.shape[1]:
            raise ValueError(
                f"targets: expected 0..{output.shape[1] - 1}, got {int(target.min())}..{int(target.max())}"
            )
        return output.gather(1, target[:, None])[:, 0]

    order = rank_patches(maps, tile, by="mean")[1]
    return _morf(predict, images, order, tile, steps, perturbation, probability, batch_size, seed)


def aopc(curve: Tensor) -> Tensor:
    """AOPC_L = 1/(L+1) sum_{k=0}^{L} (f(x^(0)) - f(x^(k))) for every L: (..., steps + 1) -> the same shape.

    Higher is better, 0 at L = 0. Raises ValueError for an empty curve (Samek et al. 2017, eq. 12).
    """
    if not curve.ndim or not curve.shape[-1] or not curve.is_floating_point():
        raise ValueError(f"curve: expected floats of shape (..., steps + 1), got {curve.dtype} of {tuple(curve.shape)}")
    steps = torch.arange(1, curve.shape[-1] + 1, device=curve.device)
    return (curve[..., :1] - curve).cumsum(-1) / steps


def deletion_hits(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    labels: Tensor,
    k: int = 30,
    patch: int = 33,
    fill: str = "zero",
    batch_size: int = 64,
) -> Tensor:
    """(N, k + 1): 1 where the class of highest output is the label after occluding the 0..k highest patches, else 0.

    Patches rank by the maximum of the map, as in `topk_precision`; an occluded patch becomes 0, the mean colour of its
    image or its Gaussian blur (sigma 5 % of the longer side), in the space that `predict` takes. Images misclassified
    from the start stay in. Raises ValueError for other shapes or an unknown `fill`.
    """
    _check(images, maps, labels, "labels")
    check_count("k", k)
    if fill not in FILLS:
        raise ValueError(f"fill: expected one of {', '.join(FILLS)}, got {fill!r}")

    def correct(output: Tensor, row: Tensor) -> Tensor:
        return output.argmax(1) == labels.to(output.device)[row]

    return _morf(predict, images, rank_patches(maps, patch)[1], patch, k, fill, correct, batch_size, seed=0)


def deletion_curve(
    predict: Predict, images: Tensor, maps: Tensor, labels: Tensor, k: int = 30, patch: int = 33, **options
) -> Tensor:
    """(k + 1,) in [0, 1]: accuracy after occluding the 0..k highest patches; `options` as of `deletion_hits`."""
    return deletion_hits(predict, images, maps, labels, k, patch, **options).mean(0)
