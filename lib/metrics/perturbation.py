"""Whether a heatmap tells what the classifier looks at: parts of the images are replaced (docs/metrics.md).

`predict` maps images (B, C, H, W) to probabilities (B, K) and does its own normalisation; images are (N, C, H, W) in
[0, 1], maps (N, H, W), targets (N,); f is the probability of the target, NaN for an undefined map. Tiles are square,
cut at the right and lower border, ranked by the mean of the map, equal ones by position; `order`: morf or lerf."""

import functools
import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from lib.metrics.arguments import NAN, check, check_perturbed, check_range, undefined
from lib.metrics.localisation import rank_patches

Predict = Callable[[Tensor], Tensor]
InStates = Callable[[int, Tensor], Tensor]  # number of an image, states (B,) of it -> a row for each
PERTURBATIONS = ("black", "white", "gray", "uniform", "blur")
GRID_STEPS = {4: 100, 8: 100, 16: 49, 32: 49}
BATCH = 64  # perturbed images that `predict` is shown at a time, so that memory does not grow with their number


def blurred(image: Tensor) -> Tensor:
    """Gaussian-blurred by 5 % of the longer side."""
    sides = image.shape[1:]
    sigma = 0.05 * max(sides)
    kernel = 2 * min(math.ceil(3 * sigma), min(sides) - 1) + 1
    return T.gaussian_blur(image, [kernel, kernel], [sigma, sigma])


FILLS = {  # name -> what stands where a tile was, of an image (C, H, W) and the noise that all images share
    "black": lambda image, noise: torch.zeros_like(image),
    "white": lambda image, noise: torch.ones_like(image),
    "gray": lambda image, noise: torch.full_like(image, 0.5),
    "uniform": lambda image, noise: noise.to(image),
    "blur": lambda image, noise: blurred(image),
    "zero": lambda image, noise: torch.zeros_like(image),
    "mean": lambda image, noise: image.mean((1, 2), keepdim=True),
}


def tile_count(images: Tensor, tile: int) -> int:
    """How many tiles cover an image, those cut by the border included."""
    return math.prod(-(-side // tile) for side in images.shape[2:])


def tile_rank(maps: Tensor, tile: int, order: str = "morf", by: str = "mean") -> Tensor:
    """(N, T): rank of every tile, 0 for the first removed; equal tiles by position."""
    check("order", order in ("morf", "lerf"), "morf or lerf", order)
    return rank_patches(maps if order == "morf" else -maps, tile, by)[1].argsort(1)


class Remembering(dict[Hashable, np.ndarray]):
    """`predict` and its answers, by what was replaced: metrics and maps that ask for the same share them."""

    def __init__(self, predict: Predict) -> None:
        self.predict = predict

    def __call__(self, images: Tensor) -> Tensor:
        return self.predict(images)


@dataclass
class Perturbation:
    """Images parts of which are replaced, and what `predict` answers: f, or with `hits` whether the target is highest
    as tiles go that are ranked by the maximum of the map."""

    predict: Predict
    images: Tensor
    maps: Tensor
    targets: Tensor
    tile: int = 1
    fill: str | tuple[float, ...] = "black"
    seed: int = 0
    hits: bool = False

    def __post_init__(self) -> None:
        check_perturbed(self.images, self.maps, self.targets, "labels" if self.hits else "targets")
        check("patch" if self.hits else "tile", self.tile > 0, "at least 1", self.tile)
        good = self.fill in FILLS or (isinstance(self.fill, tuple) and len(self.fill) == self.images.shape[1])
        check("fill", good, f"one of {', '.join(FILLS)}, or a value per channel", self.fill)
        self.tiles = tile_count(self.images, self.tile)

    @torch.no_grad()
    def evaluate(self, versions: InStates, states: int, keys: Sequence[Hashable] | None = None) -> Tensor:
        """(N, states) on the CPU: the answers to `versions(i, s)`, new tensors (B, C, H, W); images come in order, each
        in consecutive calls, so that a cache of one entry spares repeated work. Of the versions of one key (keys: of
        all, in order) `predict` is shown the first, and none that it remembers."""
        answers = self.predict if keys and isinstance(self.predict, Remembering) else {}
        keys = keys or range(len(self.images) * states)
        new = {key: place for place, key in reversed([*enumerate(keys)]) if key not in answers}
        asked, outputs = sorted(new.values()), []
        for places in torch.tensor(asked).split(BATCH) if asked else ():
            row, state = places // states, places % states
            output = self.predict(torch.cat([versions(i, state[row == i]) for i in row.unique().tolist()]))
            good = output.ndim == 2 and len(output) == len(row) and output.isfinite().all()
            check("predict", good, f"finite values of shape ({len(row)}, K)", output)
            outputs.append(output.float().cpu())
        answers.update(zip((keys[place] for place in asked), torch.cat(outputs).numpy(), strict=True) if asked else ())
        output = torch.from_numpy(np.stack([answers[key] for key in keys]))
        targets = self.targets.cpu().long().repeat_interleave(states)
        if self.hits:
            found = (output.argmax(1) == targets).float()
        else:
            check_range("predict", output, 0, 1)
            check_range("targets", targets, 0, output.shape[1] - 1)
            found = output.gather(1, targets[:, None])[:, 0]
        return found.view(-1, states).masked_fill(undefined(self.maps).cpu()[:, None], NAN)

    def replace(self, gone: Tensor) -> Tensor:
        """(N, states): the answers once the tiles are replaced where `gone` (N, states, T) is true."""
        height, width = self.images.shape[2:]
        noise = torch.rand(self.images.shape[1:], generator=torch.Generator().manual_seed(self.seed))
        fill = FILLS.get(self.fill, lambda image, noise: image.new_tensor(self.fill)[:, None, None].expand_as(image))
        filled = functools.lru_cache(1)(lambda i: fill(self.images[i], noise))

        def versions(i: int, state: Tensor) -> Tensor:
            grid = gone[i, state].to(self.images.device).view(len(state), 1, -(-height // self.tile), -1)
            covered = grid.repeat_interleave(self.tile, 2).repeat_interleave(self.tile, 3)[..., :height, :width]
            return torch.where(covered, filled(i), self.images[i])

        how, keys = (self.fill, self.seed, self.tile), []
        for image, states in zip(self.images.detach().cpu().numpy(), np.packbits(gone.numpy(), axis=2), strict=True):
            name = hashlib.blake2b(np.ascontiguousarray(image), digest_size=8).digest()
            keys += [(name, *how, bits.tobytes()) if bits.any() else name for bits in states]
        return self.evaluate(versions, gone.shape[1], keys)

    def remove(self, counts: Tensor, order: str = "morf", keep: bool = False) -> Tensor:
        """(N, len(counts)): the answers once the `counts` first tiles are replaced, or all but those (`keep`)."""
        by = "max" if self.hits else "mean"
        ranks = torch.cat([tile_rank(one[None], self.tile, order, by) for one in self.maps]).cpu()
        return self.replace((ranks[:, None] < counts[:, None]) != keep)


def perturbation_curve(
    predict, images, maps, targets, tile=8, steps=100, perturbation="black", seed=0, order="morf"
) -> Tensor:
    """(N, steps + 1) in [0, 1]: f(x^(k)), k = 0..steps, the k first tiles replaced; after the last the curve stays
    (Samek et al. 2017, eq. 9-11)."""
    perturbed = Perturbation(predict, images, maps, targets, tile, perturbation, seed)
    return perturbed.remove(torch.arange(steps + 1), order)


def perturbation_grid(
    predict, images, maps, targets, steps: Mapping[int, int] = GRID_STEPS, seed=0
) -> dict[tuple[int, str], Tensor]:
    """(tile, perturbation) -> the (N, steps[tile] + 1) of `perturbation_curve`, f(x) evaluated once for all; by default
    the 4 x 5 grid of Rio-Torto et al. 2020 (224 px)."""
    given, kinds = (Remembering(predict), images, maps, targets), PERTURBATIONS
    return {(t, kind): perturbation_curve(*given, t, steps[t], kind, seed) for t in steps for kind in kinds}


def aopc(curve: Tensor) -> Tensor:
    """AOPC_L = 1/(L+1) sum_{k=0}^{L} (f(x^(0)) - f(x^(k))) for every L: (..., steps + 1) -> the same shape, in [-1, 1];
    higher is better for `morf`, lower for `lerf` (Samek et al. 2017, eq. 12)."""
    return (curve[..., :1] - curve).cumsum(-1) / torch.arange(1, curve.shape[-1] + 1, device=curve.device)


def area_under_curve(curve: Tensor) -> Tensor:
    """(..., steps + 1) -> (...) in [0, 1]: trapezoidal area below a curve over the share of tiles, in equal steps."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1))


def insertion_curve(predict, images, maps, targets, tile=8, steps: int | None = None, start="blur", seed=0) -> Tensor:
    """(N, steps + 1) in [0, 1]: f once the round(k T / steps) highest of the T tiles are back in a replaced image, by
    default one more a step. The area below is the insertion score: higher is better (Petsiuk et al. 2018)."""
    perturbed = Perturbation(predict, images, maps, targets, tile, start, seed)
    steps = perturbed.tiles if steps is None else steps
    return perturbed.remove((torch.arange(steps + 1) * perturbed.tiles / steps).round().long(), keep=True)


def sufficiency(
    predict, images, maps, targets, shares: Sequence[float] = (0.05, 0.1, 0.2, 0.5), tile=8, fill="mean", seed=0
) -> Tensor:
    """(N, len(shares)) in [-1, 1], lower is better: f(x) - f(x with only max(1, round(share T)) of its T tiles kept),
    shares in (0, 1] (DeYoung et al. 2020, eq. 2)."""
    perturbed = Perturbation(predict, images, maps, targets, tile, fill, seed)
    counts = [max(1, round(share * perturbed.tiles)) for share in shares]
    kept = perturbed.remove(torch.tensor([*counts, perturbed.tiles]), keep=True)
    return kept[:, -1:] - kept[:, :-1]


def deletion_hits(predict, images, maps, labels, k=30, patch=33, fill="zero") -> Tensor:
    """(N, k + 1): 1 where the class of highest output is the label after occluding the 0..k highest patches (by their
    maximum, as in `topk_precision`), else 0; in the space that `predict` takes, whatever its range. Images
    misclassified from the start stay in (SoftCAM, arXiv 2505.17748)."""
    return Perturbation(predict, images, maps, labels, patch, fill, hits=True).remove(torch.arange(k + 1))


def deletion_curve(predict, images, maps, labels, k=30, patch=33, fill="zero") -> Tensor:
    """(k + 1,) in [0, 1]: accuracy after occluding the 0..k highest patches: the mean of `deletion_hits`."""
    return deletion_hits(predict, images, maps, labels, k, patch, fill).nanmean(0)
