"""What a heatmap is like, whatever the annotation: sparse, consistent with the label, stable, equivariant, complete.

Maps are (N, H, W), of any scale and sign; undefined values are NaN, as are all those of a map with a pixel that is not
finite. `explain_fn` maps images (N, C, H, W) to maps (N, H, W), such as `lambda x: explain("saliency", model, x,
targets)`; correlations are over the pixels of a map.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lib.metrics.localisation import (
    NAN,
    check_count,
    check_maps,
    in_parts,
    mean_over_ties,
    negative_proportion,
    positive_proportion,
)

Explain = Callable[[Tensor], Tensor]
CORRELATIONS = ("spearman", "pearson")


class Consistency(NamedTuple):
    """Per image (N,): `positive` is NaN on healthy images, `negative` on diseased ones."""

    positive: Tensor
    negative: Tensor


def gini(maps: Tensor) -> Tensor:
    """(N,) in [0, 1 - 1 / (H W)]: Gini index of |map|, 0 for an even map, towards 1 for a sparse one.

    1 - 2 sum_k |a|_(k) / ||a||_1 (n - k + 1/2) / n, values ascending, k = 1..n. NaN for an all-zero map
    (Hurley & Rickard 2009; Chalasani et al. 2020).
    """
    return in_parts(_gini, check_maps("maps", maps))


def _gini(maps: Tensor) -> Tensor:
    values = maps.double().abs().flatten(1).sort(dim=1).values
    weights = torch.arange(values.shape[1], 0, -1, device=maps.device).double() - 0.5
    index = 1 - 2 * (values @ weights) / (values.sum(1) * values.shape[1])
    return index.clamp(min=0).to(maps.dtype)  # an even map may round to just below 0


def near_zero_proportion(maps: Tensor, tolerance: float = 0.01) -> Tensor:
    """(N,) in [0, 1): share of the elements with |a| <= tolerance max |a|; NaN for an all-zero map."""
    maps = check_maps("maps", maps)
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance: expected a value in [0, 1), got {tolerance}")
    size = maps.abs()
    largest = size.amax((1, 2), keepdim=True)
    share = (size <= tolerance * largest).to(maps.dtype).mean((1, 2))
    return share.masked_fill(~(largest[:, 0, 0] > 0), NAN)


def local_to_global_consistency(maps: Tensor, diseased: Tensor) -> Consistency:
    """Does local evidence have the sign of the label? (positive (N,), negative (N,)), each in [0, 1].

    `maps`: evidence of the disease class; `diseased` (N,) boolean. `positive_proportion` on diseased images,
    `negative_proportion` on healthy ones, NaN elsewhere and for an all-zero map (SoftCAM, arXiv 2505.17748).
    """
    maps = check_maps("maps", maps)
    if diseased.shape != maps.shape[:1] or diseased.dtype != torch.bool:
        raise ValueError(
            f"diseased: expected booleans of shape ({len(maps)},), got {diseased.dtype} of {tuple(diseased.shape)}"
        )
    diseased = diseased.to(maps.device)
    return Consistency(positive_proportion(maps).where(diseased, NAN), negative_proportion(maps).where(~diseased, NAN))


def map_correlation(maps: Tensor, others: Tensor, kind: str = "spearman") -> Tensor:
    """(N,) in [-1, 1]: correlation of map n of `maps` with map n of `others` over their pixels.

    `kind` "spearman" correlates the ranks (equal values share their mean rank), "pearson" the values. NaN where one of
    the two maps is constant.
    """
    maps, others = check_maps("maps", maps), check_maps("others", others)
    if maps.shape != others.shape:
        raise ValueError(f"others: expected shape {tuple(maps.shape)} to match maps, got {tuple(others.shape)}")
    return _correlation(maps, others.to(maps.device), kind).clamp(-1, 1).to(maps.dtype)


def _correlation(maps: Tensor, others: Tensor, kind: str) -> Tensor:
    """(N,) float64, up to rounding, which may take it beyond 1."""
    return in_parts(lambda a, b: (_standardised(a, kind) * _standardised(b, kind)).sum(1), maps, others)


def _ranks(values: Tensor) -> Tensor:
    """Ranks (N, P), float64, of each row's values from 0, equal values sharing their mean rank."""
    ordered, order = values.sort(dim=1)
    shared = mean_over_ties(ordered, torch.arange(values.shape[1], device=values.device).expand_as(ordered))
    return torch.empty_like(shared).scatter_(1, order, shared)


def _standardised(maps: Tensor, kind: str) -> Tensor:
    """(N, P) float64: pixels of each map, or their ranks, of mean 0 and length 1; NaN where it is constant or NaN."""
    if kind not in CORRELATIONS:
        raise ValueError(f"kind: expected one of {', '.join(CORRELATIONS)}, got {kind!r}")
    values = maps.flatten(1)
    constant = ~(values.amax(1, keepdim=True) > values.amin(1, keepdim=True))
    values = _ranks(values) if kind == "spearman" else values.double()
    centred = values - values.mean(1, keepdim=True)
    centred = centred / centred.abs().amax(1, keepdim=True)  # the squares of tiny values would underflow
    return (centred / centred.norm(dim=1, keepdim=True)).masked_fill(constant, NAN)


def _check_images(images: Tensor, maps: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images: expected floats (N, C, H, W), got {images.dtype} of {tuple(images.shape)}")
    if len(images) != len(maps):
        raise ValueError(f"maps: expected {len(images)} maps to match images, got {len(maps)}")


def _explained(explain_fn: Explain, images: Tensor, maps: Tensor) -> Tensor:
    made = explain_fn(images)
    if made.shape != maps.shape:
        raise ValueError(f"explain_fn: expected maps of shape {tuple(maps.shape)}, got {tuple(made.shape)}")
    return check_maps("explain_fn", made).to(maps.device)


def stability(
    explain_fn: Explain,
    images: Tensor,
    maps: Tensor,
    noise: float = 0.02,
    samples: int = 4,
    seed: int = 0,
    kind: str = "spearman",
) -> Tensor:
    """(N,) in [-1, 1]: mean correlation of the map with the maps of `samples` slightly noisy copies of the image.

    Gaussian noise of standard deviation `noise`, in the units of `images`, drawn from `seed`: a sample adds the same
    noise to every image, so that the order of the batch does not matter; nothing is clipped. `maps` are
    `explain_fn(images)`; `kind` as in `map_correlation`. NaN where the map or that of a noisy copy is constant
    (after Alvarez-Melis & Jaakkola 2018).
    """
    maps = check_maps("maps", maps)
    _check_images(images, maps)
    check_count("samples", samples)
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise: expected a standard deviation of at least 0, got {noise}")
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(maps), dtype=torch.float64, device=maps.device)
    for _ in range(samples):
        added = noise * torch.randn(images.shape[1:], generator=generator)
        total += _correlation(maps, _explained(explain_fn, images + added.to(images), maps), kind)
    return (total / samples).clamp(-1, 1).to(maps.dtype)


def flip_equivariance(
    explain_fn: Explain, images: Tensor, maps: Tensor, direction: str = "horizontal", kind: str = "spearman"
) -> Tensor:
    """(N,) in [-1, 1]: correlation of flip(map(x)) with map(flip(x)), 1 if the map moves with the image.

    `maps` are `explain_fn(images)`; `direction` "horizontal" (left and right change places) or "vertical"; `kind` as in
    `map_correlation`. NaN where one of the maps is constant.
    """
    maps = check_maps("maps", maps)
    _check_images(images, maps)
    if direction not in ("horizontal", "vertical"):
        raise ValueError(f"direction: expected 'horizontal' or 'vertical', got {direction!r}")
    side = -1 if direction == "horizontal" else -2
    return map_correlation(maps.flip(side), _explained(explain_fn, images.flip(side), maps), kind)


def completeness(maps: Tensor, values: Tensor, reduction: str = "sum") -> Tensor:
    """(N,) at least 0, lower is better: |sum(map) - value|, how far the map is from accounting for the whole output.

    For an attribution such as Integrated Gradients `values` (N,) are f(x) - f(x0), x0 its baseline (Sundararajan et al.
    2017). For SoftCAM `reduction` is "mean", the maps are the evidence of a class at its own resolution (N, h, w), the
    values its logits: 0 up to rounding by construction (upsampled maps do not keep it). In the units of the output.
    """
    maps = check_maps("maps", maps)
    if values.shape != maps.shape[:1] or not values.is_floating_point():
        raise ValueError(
            f"values: expected floats of shape ({len(maps)},), got {values.dtype} of {tuple(values.shape)}"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction: expected 'sum' or 'mean', got {reduction!r}")
    total = maps.double().sum((1, 2)) / (maps.shape[1:].numel() if reduction == "mean" else 1)
    return (total - values.to(maps.device).double()).abs().to(maps.dtype)
