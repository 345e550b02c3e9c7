"""Whether a heatmap tells what the classifier looks at: replace parts of the images and watch its answers (formulas,
ranges and sources: docs/metrics.md).

`predict` maps images (B, C, H, W) to probabilities (B, K) and does its own normalisation; it runs without gradient, on
at most BATCH perturbed images at a time, so that memory does not grow with the number of images. Images are
(N, C, H, W) in [0, 1], maps (N, H, W), targets (N,); f is the probability of the target, NaN for an undefined map (a
pixel is not finite). Tiles are square, cut at the right and lower border, ranked by the mean of the map, equal ones by
position, so that a sparse map removes no more than is asked; `order` is morf (most relevant first) or lerf (least).
What replaces a tile is black (0), white (1), gray (0.5), uniform noise (one seeded noise image for all), the
Gaussian-blurred image (sigma 5 % of the longer side) or, but in `perturbation_curve`, the mean colour of the image.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from lib.metrics.arguments import NAN, check, check_choice, check_count, check_maps, check_perturbed, undefined
from lib.metrics.localisation import rank_patches

Predict = Callable[[Tensor], Tensor]
InStates = Callable[[int, Tensor], Tensor]  # number of an image, states (B,) of it -> a row for each
CONSTANTS = {"black": 0.0, "gray": 0.5, "white": 1.0, "zero": 0.0}
PERTURBATIONS = ("black", "white", "gray", "uniform", "blur")
FILLS = (*PERTURBATIONS, "mean")
GRID_STEPS = {4: 100, 8: 100, 16: 49, 32: 49}
BATCH = 64  # perturbed images that `predict` is shown at a time


def tile_count(images: Tensor, tile: int, argument: str = "tile") -> int:
    """How many tiles cover an image, those cut by the border included."""
    check_count(argument, tile)
    return math.prod(-(-side // tile) for side in images.shape[2:])


def tile_rank(maps: Tensor, tile: int, order: str = "morf", by: str = "mean") -> Tensor:
    """(N, T): rank of every tile, 0 for the first removed; equal tiles by position."""
    check_choice("order", order, ("morf", "lerf"))
    return rank_patches(maps if order == "morf" else -maps, tile, by)[1].argsort(1)


def replacement(images: Tensor, fill: str, seed: int) -> Callable[[int], Tensor]:
    """Number of an image -> what stands where a tile was, broadcastable to (C, H, W); worked out once for each."""
    noise = torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(seed)) if fill == "uniform" else None
    sigma = 0.05 * max(images.shape[2:])
    side = 2 * min(math.ceil(3 * sigma), min(images.shape[2:]) - 1) + 1
    ways = {
        "uniform": lambda i: noise.to(images),
        "mean": lambda i: images[i].mean((1, 2), keepdim=True),
        "blur": lambda i: T.gaussian_blur(images[i], [side, side], [sigma, sigma]),
    }
    return functools.lru_cache(1)(ways.get(fill, lambda i: images.new_full((), CONSTANTS[fill])))


@dataclass
class Perturbation:
    """Images parts of which are replaced, and what `predict` answers: f, or with `hits` whether the target is highest;
    `by`: tiles are ranked by the mean or the maximum ("max") of the map."""

    predict: Predict
    images: Tensor
    maps: Tensor
    targets: Tensor
    tile: int = 1
    fill: str = "black"
    seed: int = 0
    by: str = "mean"
    hits: bool = False

    def __post_init__(self) -> None:
        check_perturbed(self.images, self.maps, self.targets, "labels" if self.hits else "targets")
        self.tiles = tile_count(self.images, self.tile, "patch" if self.hits else "tile")

    @torch.no_grad()
    def evaluate(self, versions: InStates, states: int) -> Tensor:
        """(N, states) on the CPU: the answers to `versions(i, s)`, new tensors (B, C, H, W); images come in order, each
        in consecutive calls, so that a cache of one entry spares repeated work."""
        answers, targets = [], self.targets.cpu().long()
        for pairs in torch.arange(len(self.maps) * states).split(BATCH):
            row, state = pairs // states, pairs % states
            output = self.predict(torch.cat([versions(i, state[row == i]) for i in row.unique().tolist()]))
            good = output.ndim == 2 and len(output) == len(row) and output.isfinite().all()
            check("predict", good, f"finite values of shape ({len(row)}, K)", output)
            answers.append(self.answer(output, targets[row].to(output.device)).float().cpu())
        return torch.cat(answers).view(-1, states).masked_fill(undefined(self.maps).cpu()[:, None], NAN)

    def answer(self, output: Tensor, target: Tensor) -> Tensor:
        """(B,), of outputs (B, K)."""
        if self.hits:
            return output.argmax(1) == target
        low, high = float(output.min()), float(output.max())
        check("predict", low >= -1e-4 and high <= 1 + 1e-4, "probabilities", f"{low:.4g} to {high:.4g}")
        low, high = int(target.min()), int(target.max())
        check("targets", low >= 0 and high < output.shape[1], f"0..{output.shape[1] - 1}", f"{low}..{high}")
        return output.gather(1, target[:, None])[:, 0]

    def replace(self, gone: InStates, states: int) -> Tensor:
        """(N, states): the answers once the tiles are replaced where `gone(i, s)` (B, T) is true."""
        filled, (height, width) = replacement(self.images, self.fill, self.seed), self.images.shape[2:]

        def versions(i: int, state: Tensor) -> Tensor:
            grid = gone(i, state).to(self.images.device).view(-1, 1, -(-height // self.tile), -(-width // self.tile))
            covered = grid.repeat_interleave(self.tile, 2).repeat_interleave(self.tile, 3)[..., :height, :width]
            return torch.where(covered, filled(i), self.images[i])

        return self.evaluate(versions, states)

    def remove(self, counts: Tensor, order: str = "morf", keep: bool = False) -> Tensor:
        """(N, len(counts)): the answers once the `counts` first tiles are replaced, or all but those (`keep`)."""
        distinct, place = counts.clamp(max=self.tiles).unique(return_inverse=True)  # equal ones cost one forward pass
        ranks = functools.lru_cache(1)(lambda i: tile_rank(self.maps[i : i + 1], self.tile, order, self.by).cpu())
        return self.replace(lambda i, state: (ranks(i) < distinct[state, None]) != keep, len(distinct))[:, place]


def perturbation_curve(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    tile: int = 8,
    steps: int = 100,
    perturbation: str = "black",
    seed: int = 0,
    order: str = "morf",
) -> Tensor:
    """(N, steps + 1) in [0, 1]: f(x^(k)), k = 0..steps, the k first tiles replaced; after the last the curve stays
    (Samek et al. 2017, eq. 9-11)."""
    check_choice("perturbation", perturbation, PERTURBATIONS)
    check_count("steps", steps)
    perturbed = Perturbation(predict, images, maps, targets, tile, perturbation, seed)
    return perturbed.remove(torch.arange(steps + 1), order)


def perturbation_grid(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    tiles: Sequence[int] = (4, 8, 16, 32),
    perturbations: Sequence[str] = PERTURBATIONS,
    steps: Mapping[int, int] | int = GRID_STEPS,
    seed: int = 0,
) -> dict[tuple[int, str], Tensor]:
    """(tile, perturbation) -> the (N, steps + 1) of `perturbation_curve`, f(x) evaluated once for all; `steps`: one
    number, or one for each tile, by default those of the 4 x 5 grid of Rio-Torto et al. 2020 (224 px)."""
    for kind in perturbations:
        check_choice("perturbations", kind, PERTURBATIONS)
    lengths = {tile: steps if isinstance(steps, int) else steps.get(tile) for tile in tiles}
    for tile, length in lengths.items():
        check_count(f"steps[{tile}]", length)
    given = predict, images, maps, targets
    cells = {(t, kind): Perturbation(*given, t, kind, seed) for t in tiles for kind in perturbations}
    start = Perturbation(*given).evaluate(lambda i, state: images[i : i + 1].clone(), 1)
    rest = {cell: perturbed.remove(torch.arange(1, lengths[cell[0]] + 1)) for cell, perturbed in cells.items()}
    return {cell: torch.cat([start, curve], 1) for cell, curve in rest.items()}


def _check_curve(curve: Tensor, points: int) -> None:
    good = curve.ndim and curve.shape[-1] >= points and curve.is_floating_point()
    check("curve", good, f"floats of shape (..., steps + 1 >= {points})", curve)


def aopc(curve: Tensor) -> Tensor:
    """AOPC_L = 1/(L+1) sum_{k=0}^{L} (f(x^(0)) - f(x^(k))) for every L: (..., steps + 1) -> the same shape, in [-1, 1];
    higher is better for `morf`, lower for `lerf` (Samek et al. 2017, eq. 12)."""
    _check_curve(curve, 1)
    return (curve[..., :1] - curve).cumsum(-1) / torch.arange(1, curve.shape[-1] + 1, device=curve.device)


def area_under_curve(curve: Tensor) -> Tensor:
    """(..., steps + 1) -> (...) in [0, 1]: trapezoidal area below a curve over the share of tiles, in equal steps."""
    _check_curve(curve, 2)
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1))


def insertion_curve(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    tile: int = 8,
    steps: int | None = None,
    start: str = "blur",
    seed: int = 0,
) -> Tensor:
    """(N, steps + 1) in [0, 1]: f once the round(k T / steps) highest of the T tiles are back in a replaced image, by
    default one more a step. The area below is the insertion score: higher is better (Petsiuk et al. 2018)."""
    check_choice("start", start, FILLS)
    perturbed = Perturbation(predict, images, maps, targets, tile, start, seed)
    check_count("steps", steps := perturbed.tiles if steps is None else steps)
    return perturbed.remove((torch.arange(steps + 1) * perturbed.tiles / steps).round().long(), keep=True)


def sufficiency(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    shares: Sequence[float] = (0.05, 0.1, 0.2, 0.5),
    tile: int = 8,
    fill: str = "mean",
    seed: int = 0,
) -> Tensor:
    """(N, len(shares)) in [-1, 1], lower is better: f(x) - f(x with only max(1, round(share T)) of its T tiles kept),
    shares in (0, 1] (DeYoung et al. 2020, eq. 2)."""
    check_choice("fill", fill, FILLS)
    check("shares", len(shares) and all(0 < s <= 1 for s in shares), "at least one number in (0, 1]", tuple(shares))
    perturbed = Perturbation(predict, images, maps, targets, tile, fill, seed)
    counts = [max(1, round(share * perturbed.tiles)) for share in shares]
    kept = perturbed.remove(torch.tensor([*counts, perturbed.tiles]), keep=True)
    return kept[:, -1:] - kept[:, :-1]


def deletion_hits(
    predict: Predict, images: Tensor, maps: Tensor, labels: Tensor, k: int = 30, patch: int = 33, fill: str = "zero"
) -> Tensor:
    """(N, k + 1): 1 where the class of highest output is the label after occluding the 0..k highest patches, else 0.

    Patches rank by their maximum, as in `topk_precision`; they become zero, mean or blur in the space that `predict`
    takes, whatever its range. Images misclassified from the start stay in (SoftCAM, arXiv 2505.17748).
    """
    check_choice("fill", fill, ("zero", "mean", "blur"))
    check_count("k", k)
    perturbed = Perturbation(predict, images, maps, labels, patch, fill, by="max", hits=True)
    return perturbed.remove(torch.arange(k + 1))


def deletion_curve(
    predict: Predict, images: Tensor, maps: Tensor, labels: Tensor, k: int = 30, patch: int = 33, fill: str = "zero"
) -> Tensor:
    """(k + 1,) in [0, 1]: accuracy after occluding the 0..k highest patches: the mean of `deletion_hits`."""
    return deletion_hits(predict, images, maps, labels, k, patch, fill).nanmean(0)


def faithfulness_correlation(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    subset: int = 8,
    runs: int = 100,
    tile: int = 8,
    fill: str = "black",
    seed: int = 0,
) -> Tensor:
    """(N,) in [-1, 1], higher is better: Pearson correlation over `runs` random sets S of `subset` tiles, the same for
    all images and methods, between the sum of the map over S and the drop f(x) - f(x with S replaced).

    With `fill` black this is sensitivity-n of Ancona et al. 2018: 1 for input x weight of a linear model. NaN for a
    constant map, sums that do not vary, or an output that varies by less than 1e-6 (Bhatt et al. 2020, eq. 1).
    """
    check_choice("fill", fill, FILLS)
    check_count("runs", runs, least=2)
    check_count("subset", subset)
    perturbed = Perturbation(predict, images, maps, targets, tile, fill, seed)
    check("subset", subset < perturbed.tiles, f"fewer than the {perturbed.tiles} tiles of an image", subset)
    drawn = torch.rand(runs, perturbed.tiles, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :subset]
    chosen = torch.zeros(1 + runs, perturbed.tiles, dtype=torch.bool)  # none in the first row
    chosen[1:].scatter_(1, drawn, True)
    answers = perturbed.replace(lambda i, state: chosen[state], 1 + runs).double()
    correlation = []
    for part, f in zip(check_maps("maps", maps).split(BATCH), answers.split(BATCH), strict=True):
        part, drops = part.double().cpu(), f[:, :1] - f[:, 1:]
        total = F.avg_pool2d(part[:, None], tile, tile, ceil_mode=True, divisor_override=1).flatten(1)
        sums = total @ chosen[1:].double().T
        varies = (part.amax((1, 2)) > part.amin((1, 2))) & (drops.amax(1) - drops.amin(1) >= 1e-6)
        varies &= sums.amax(1) - sums.amin(1) > 1e-9 * part.abs().sum((1, 2))
        pearson = F.cosine_similarity(*(x - x.mean(1, keepdim=True) for x in (sums, drops)), dim=1, eps=0)
        correlation.append(pearson.clamp(-1, 1).masked_fill(~varies, NAN))
    return torch.cat(correlation).float()
