"""Whether a heatmap tells what the classifier looks at: replace what it ranks highest and watch the output.

`predict` maps images (B, C, H, W) to probabilities (B, K) and does its own normalisation; it runs without gradient, on
at most `batch_size` perturbed images at a time. Tiles are square, ranked by the mean of the map, equal ones by
position, so that a sparse map removes no more than is asked; all values of an undefined map (a pixel is not finite) are
NaN. What replaces tiles is black (0), white (1), gray (0.5), uniform noise (one seeded noise image for all), the
Gaussian-blurred image (sigma 5 % of the longer side) or the mean colour of the image.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lib.metrics.localisation import check_count, rank_patches
from lib.metrics.perturbation import (
    ORDERS,
    PERTURBATIONS,
    REPLACEMENTS,
    Predict,
    check_choice,
    check_inputs,
    check_pixels,
    evaluate,
    evaluate_counts,
    target_probability,
    tile_count,
    tile_rank,
)

FILLS = ("zero", "mean", "blur")
GRID_STEPS = {4: 100, 8: 100, 16: 49, 32: 49}


def _probabilities(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    counts: Tensor,
    tile: int,
    fill: str,
    batch_size: int,
    seed: int = 0,
    order: str = "morf",
    keep: bool = False,
) -> Tensor:
    """(N, len(counts)): f(x) with the `counts` first tiles replaced, or all but those."""
    check_choice("order", order, ORDERS)

    def rank(one: Tensor) -> Tensor:
        return tile_rank(one, tile, order)

    score = target_probability(targets)
    return evaluate_counts(predict, images, maps, rank, counts, tile, fill, score, batch_size, seed, keep)


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
    order: str = "morf",
) -> Tensor:
    """(N, steps + 1) in [0, 1]: f(x^(k)), k = 0..steps, the probability of the target class on the CPU.

    Step k replaces the k tiles of `tile` pixels with the highest mean of the map (`morf`, most relevant first) or the
    lowest (`lerf`); once every tile is replaced, the curve stays. Images (N, C, H, W) in [0, 1], before normalisation;
    maps (N, H, W); targets (N,); perturbation: one of black, white, gray, uniform, blur.
    Raises ValueError for other arguments, or a `predict` that gives no probabilities (Samek et al. 2017, eq. 9-11).
    """
    check_inputs(images, maps, targets)
    check_choice("perturbation", perturbation, PERTURBATIONS)
    check_pixels(images)
    check_count("steps", steps)
    counts = torch.arange(steps + 1).clamp(max=tile_count(images, tile))
    return _probabilities(predict, images, maps, targets, counts, tile, perturbation, batch_size, seed, order)


def aopc(curve: Tensor) -> Tensor:
    """AOPC_L = 1/(L+1) sum_{k=0}^{L} (f(x^(0)) - f(x^(k))) for every L: (..., steps + 1) -> the same shape.

    In [-1, 1], 0 at L = 0; higher is better for `morf`, lower for `lerf`. Raises ValueError for an empty curve (Samek
    et al. 2017, eq. 12).
    """
    if not curve.ndim or not curve.shape[-1] or not curve.is_floating_point():
        raise ValueError(f"curve: expected floats of shape (..., steps + 1), got {curve.dtype} of {tuple(curve.shape)}")
    steps = torch.arange(1, curve.shape[-1] + 1, device=curve.device)
    return (curve[..., :1] - curve).cumsum(-1) / steps


def aopc_between(morf: Tensor, lerf: Tensor) -> Tensor:
    """ABPC_L = 1/(L+1) sum_{k=0}^{L} (f(x_LeRF^(k)) - f(x_MoRF^(k))) for every L: (..., steps + 1) -> the same shape.

    In [-1, 1], higher is better, 0 for a ranking that cannot tell the two orders apart (a constant map). A fragile
    model that loses its output whatever is removed raises AOPC but not this area between the curves. Raises ValueError
    for curves of unequal shape (Samek et al. 2017, appendix; Schulz et al. 2020, section 4.4, there normalised).
    """
    if morf.shape != lerf.shape:
        raise ValueError(f"lerf: expected shape {tuple(morf.shape)} to match morf, got {tuple(lerf.shape)}")
    return aopc(morf) - aopc(lerf)


def perturbation_grid(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    tiles: Sequence[int] = (4, 8, 16, 32),
    perturbations: Sequence[str] = PERTURBATIONS,
    steps: Mapping[int, int] | int = GRID_STEPS,
    batch_size: int = 64,
    seed: int = 0,
    order: str = "morf",
) -> dict[tuple[int, str], Tensor]:
    """(tile, perturbation) -> the (N, steps + 1) of `perturbation_curve`, f(x) evaluated once for all.

    `steps`: one number, or one for each tile; by default those of the 4 x 5 grid of Rio-Torto et al. 2020 (224 px).
    Raises ValueError for a tile without a number of steps, and as `perturbation_curve`.
    """
    check_inputs(images, maps, targets)
    check_pixels(images)
    for perturbation in perturbations:
        check_choice("perturbations", perturbation, PERTURBATIONS)
    lengths = {tile: steps if isinstance(steps, int) else steps.get(tile) for tile in tiles}
    for tile, length in lengths.items():
        check_count(f"steps[{tile}]", length)
        tile_count(images, tile)
    score = target_probability(targets)
    start = evaluate(predict, lambda i, state: images[i : i + 1].clone(), maps, 1, score, batch_size)
    grid = {}
    for tile, length in lengths.items():
        counts = torch.arange(1, length + 1).clamp(max=tile_count(images, tile))
        for kind in perturbations:
            rest = _probabilities(predict, images, maps, targets, counts, tile, kind, batch_size, seed, order)
            grid[tile, kind] = torch.cat([start, rest], 1)
    return grid


def _spread(images: Tensor, tile: int, steps: int | None) -> Tensor:
    """Numbers of tiles from none to all, in equal steps."""
    tiles = tile_count(images, tile)
    steps = tiles if steps is None else steps
    check_count("steps", steps)
    return (torch.arange(steps + 1) * tiles / steps).round().long()


def deletion_probability(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    tile: int = 8,
    steps: int | None = None,
    fill: str = "mean",
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor:
    """(N, steps + 1) in [0, 1]: probability of the target as the highest tiles are replaced, from none to all of them.

    Step k replaces the round(k T / steps) highest of the T tiles (default: one tile a step), so that every curve spans
    the whole image; the area below it, `area_under_curve`, is the deletion score: lower is better. `fill`: one of
    black, white, gray, uniform, blur, mean. Images in [0, 1]; raises as `perturbation_curve` (Petsiuk et al. 2018).
    """
    check_inputs(images, maps, targets)
    check_choice("fill", fill, REPLACEMENTS)
    check_pixels(images)
    counts = _spread(images, tile, steps)
    return _probabilities(predict, images, maps, targets, counts, tile, fill, batch_size, seed)


def insertion_curve(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    tile: int = 8,
    steps: int | None = None,
    start: str = "blur",
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor:
    """(N, steps + 1) in [0, 1]: probability of the target as the highest tiles return to a fully replaced image.

    Step k brings the round(k T / steps) highest of the T tiles back into `start` (one of black, white, gray, uniform,
    blur, mean); the last value is f(x). The area below, `area_under_curve`, is the insertion score: higher is better.
    Images in [0, 1]; raises as `perturbation_curve` (Petsiuk et al. 2018).
    """
    check_inputs(images, maps, targets)
    check_choice("start", start, REPLACEMENTS)
    check_pixels(images)
    counts = _spread(images, tile, steps)
    return _probabilities(predict, images, maps, targets, counts, tile, start, batch_size, seed, keep=True)


def area_under_curve(curve: Tensor) -> Tensor:
    """(..., steps + 1) -> (...): trapezoidal area below a curve in [0, 1] over the share of tiles, from 0 to 1.

    In [0, 1]. The steps count as equally wide, which is exact where `steps` divides the number of tiles (as it does by
    default). Raises ValueError for a curve of fewer than two points (Petsiuk et al. 2018).
    """
    if not curve.ndim or curve.shape[-1] < 2 or not curve.is_floating_point():
        raise ValueError(f"curve: expected floats (..., steps + 1 >= 2), got {curve.dtype} of {tuple(curve.shape)}")
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1))


def sufficiency(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    shares: Sequence[float] = (0.05, 0.1, 0.2, 0.5),
    tile: int = 8,
    fill: str = "mean",
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor:
    """(N, len(shares)) in [-1, 1], lower is better: f(x) - f(x with only the highest share of its T tiles kept).

    Near 0 (or below) where the kept tiles suffice for the output. max(1, round(share T)) tiles are kept, the others
    become `fill` (one of black, white, gray, uniform, blur, mean); tile = 1 keeps single pixels. Shares in (0, 1],
    images in [0, 1]; raises as `perturbation_curve` (DeYoung et al. 2020, eq. 2, with tiles for tokens).
    """
    check_inputs(images, maps, targets)
    check_choice("fill", fill, REPLACEMENTS)
    check_pixels(images)
    tiles = tile_count(images, tile)
    if not len(shares) or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares: expected at least one number in (0, 1], got {tuple(shares)}")
    counts = torch.tensor([*(max(1, round(share * tiles)) for share in shares), tiles])
    kept = _probabilities(predict, images, maps, targets, counts, tile, fill, batch_size, seed, keep=True)
    return kept[:, -1:] - kept[:, :-1]


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
    check_inputs(images, maps, labels, "labels")
    check_count("k", k)
    check_choice("fill", fill, FILLS)

    def correct(output: Tensor, row: Tensor) -> Tensor:
        return output.argmax(1) == labels.to(output.device)[row]

    def rank(one: Tensor) -> Tensor:
        return rank_patches(one, patch)[1].argsort(1)

    counts = torch.arange(k + 1).clamp(max=tile_count(images, patch, "patch"))
    return evaluate_counts(predict, images, maps, rank, counts, patch, fill, correct, batch_size)


def deletion_curve(
    predict: Predict, images: Tensor, maps: Tensor, labels: Tensor, k: int = 30, patch: int = 33, **options
) -> Tensor:
    """(k + 1,) in [0, 1]: accuracy after occluding the 0..k highest patches, over the images with a defined map;
    `options` as of `deletion_hits`."""
    return deletion_hits(predict, images, maps, labels, k, patch, **options).nanmean(0)
