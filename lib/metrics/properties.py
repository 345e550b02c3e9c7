"""What a heatmap is like, whatever the annotation: sparse, stable, equivariant, complete
(formulas, ranges and sources: docs/metrics.md). Maps are (N, H, W), of any scale and sign; `explain_fn` maps images
(N, C, H, W) to maps, such as `lambda x: explain("saliency", model, x, targets)`; `maps` are those of `images`."""

from collections.abc import Callable

import torch
from torch import Tensor

from lib.metrics.arguments import NAN, check, check_maps
from lib.metrics.localisation import in_parts, mean_over_ties


def gini(maps: Tensor) -> Tensor:
    """(N,) in [0, 1 - 1 / n]: Gini index of |map| of n pixels, 0 for an even map, towards 1 for a sparse one:
    1 - 2 sum_k |a|_(k) / ||a||_1 (n - k + 1/2) / n, ascending; NaN for an all-zero map (Hurley & Rickard 2009)."""

    def index(maps: Tensor) -> Tensor:
        values = maps.double().abs().flatten(1).sort(dim=1).values
        weights = torch.arange(values.shape[1], 0, -1, device=maps.device).double() - 0.5
        found = 1 - 2 * (values @ weights) / (values.sum(1) * values.shape[1])
        return found.clamp(min=0).to(maps.dtype)  # an even map may round to just below 0

    return in_parts(index, check_maps("maps", maps))


def map_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """(N,) in [-1, 1]: Spearman's rank correlation of map n of `maps` and of `others` over their pixels, equal values
    sharing their mean rank; NaN where one of the two is constant."""
    maps = check_maps("maps", maps)
    return _correlation(maps, others).to(maps.dtype)


def _correlation(maps: Tensor, others: Tensor) -> Tensor:
    check("others", others.shape == maps.shape, f"maps of shape {tuple(maps.shape)}", others)
    others = check_maps("others", others).to(maps.device)
    return in_parts(lambda a, b: (_standardised_ranks(a) * _standardised_ranks(b)).sum(1), maps, others).clamp(-1, 1)


def _standardised_ranks(maps: Tensor) -> Tensor:
    """(N, P) float64: ranks of each map's pixels, of mean 0 and length 1; NaN where it is constant or NaN."""
    ordered, order = maps.flatten(1).sort(dim=1)
    shared = mean_over_ties(ordered, torch.arange(ordered.shape[1], device=maps.device).expand_as(ordered))
    ranks = torch.empty_like(shared).scatter_(1, order, shared)
    centred = ranks - ranks.mean(1, keepdim=True)
    centred = centred / centred.abs().amax(1, keepdim=True)
    constant = ~(ordered[:, -1:] > ordered[:, :1])
    return (centred / centred.norm(dim=1, keepdim=True)).masked_fill(constant, NAN)


def stability(explain_fn: Callable, images: Tensor, maps: Tensor, noise=0.02, samples=4, seed=0) -> Tensor:
    """(N,) in [-1, 1]: mean `map_correlation` with the maps of `samples` copies of the image with Gaussian noise, NaN
    if one is constant (after Alvarez-Melis & Jaakkola 2018). `noise`: standard deviation, in the units of `images`, not
    clipped, the same noise for every image."""
    maps, total, generator = check_maps("maps", maps), 0, torch.Generator().manual_seed(seed)
    for _ in range(samples):
        added = noise * torch.randn(images.shape[1:], generator=generator)
        total += _correlation(maps, explain_fn(images + added.to(images)))
    return (total / samples).to(maps.dtype)


def flip_equivariance(explain_fn: Callable, images: Tensor, maps: Tensor) -> Tensor:
    """(N,) in [-1, 1]: `map_correlation` of flip(map(x)) and map(flip(x)), left and right changing places: 1 if the map
    moves with the image."""
    return map_correlation(maps.flip(-1), explain_fn(images.flip(-1)))


def completeness(maps: Tensor, values: Tensor) -> Tensor:
    """(N,) at least 0, lower is better: |sum(map) - value|, how far the map is from accounting for the whole output. Of
    Integrated Gradients the values (N,) are f(x) - f(x0), x0 the baseline (Sundararajan et al. 2017); of SoftCAM's
    evidence of a class, at its own resolution (N, h, w) and divided by h w, the logit."""
    maps = check_maps("maps", maps)
    check("values", values.shape == maps.shape[:1], f"shape ({len(maps)},)", values)
    return (maps.double().sum((1, 2)) - values.to(maps.device).double()).abs().to(maps.dtype)
