"""How well a heatmap points at the annotated region (formulas, ranges, NaN and sources: docs/metrics.md).

Maps are (N, H, W), of any scale and sign; masks are (N, H, W), boolean or 0/1; values are (N,), NaN for an empty mask.
Patches lie side by side from (0, 0), those at the right and lower border are cut. Where scores tie, a value is its
expectation over all orders of the tied patches or pixels.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.metrics.arguments import NAN, check, check_maps, check_pair, undefined

PART = 2**22  # pixels that are sorted at a time: some 200 MB


def in_parts(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function` of tensors (N, ...), which treats every row alone, of so many rows at a time as have PART elements."""
    rows = max(1, PART // tensors[0].shape[1:].numel())
    return torch.cat([function(*part) for part in zip(*(tensor.split(rows) for tensor in tensors), strict=True)])


def mean_over_ties(ordered: Tensor, values: Tensor) -> Tensor:
    """(N, P) float64: `values` (N, P), each the mean over the places of its row where the sorted `ordered` is equal."""
    group = F.pad((ordered[:, 1:] != ordered[:, :-1]).cumsum(1), (1, 0))
    total, count = (torch.zeros_like(ordered, dtype=torch.float64) for _ in range(2))
    total.scatter_add_(1, group, values.double())
    count.scatter_add_(1, group, torch.ones_like(total))
    return (total / count).gather(1, group)


def _constant(maps: Tensor) -> Tensor:
    """(N,): where all pixels are equal, or NaN."""
    return ~(maps.amax((1, 2)) > maps.amin((1, 2)))


def patch_scores(maps: Tensor, patch: int, by: str = "max") -> Tensor:
    """(N, P), row by row: maximum or mean of each patch, of a cut one over the pixels it has."""
    check("patch", patch > 0, "at least 1", patch)
    size = [min(patch, side) for side in maps.shape[1:]]
    if by == "max":
        return F.max_pool2d(maps[:, None], size, ceil_mode=True).flatten(1)
    maps = maps.double()  # so that equal float32 pixels have equal means
    return F.avg_pool2d(maps[:, None], size, ceil_mode=True, count_include_pad=False).flatten(1)


def rank_patches(maps: Tensor, patch: int, by: str = "max") -> tuple[Tensor, Tensor]:
    """Scores and row-major grid positions of the patches, highest first, equal ones by position: two tensors (N, P)."""
    return patch_scores(check_maps("maps", maps), patch, by).sort(dim=1, descending=True, stable=True)


def topk_hits(maps, masks, k=10, patch=33, threshold: float | None = None) -> Tensor:
    """(N, k) in [0, 1]: whether the j-th highest patch (by its maximum) touches the mask, 1 or 0; of g patches of equal
    score, h of which touch it, each counts h / g. NaN where no j-th patch is above `threshold`."""

    def ranked(maps: Tensor, masks: Tensor) -> Tensor:
        scores, order = rank_patches(maps, patch)
        touched = patch_scores(masks.to(maps.dtype), patch).gather(1, order)
        counted = scores > (-float("inf") if threshold is None else threshold)
        hits = mean_over_ties(scores, touched).to(maps.dtype).masked_fill(~counted, NAN)[:, :k]
        return F.pad(hits, (0, k - hits.shape[1]), value=NAN)

    return in_parts(ranked, *check_pair(maps, masks))


def topk_precision(maps, masks, k=10, patch=33, threshold: float | None = None) -> Tensor:
    """(k,): for K = 1..k, the share of `topk_hits` among the K highest patches, over all images pooled; NaN where no
    patch is left (SoftCAM, arXiv 2505.17748)."""
    hits = topk_hits(maps, masks, k, patch, threshold)
    return hits.nan_to_num(0).sum(0).cumsum(0) / hits.isfinite().sum(0).cumsum(0)


def _touched(masks: Tensor, patch: int) -> Tensor:
    """(n, P): which patches touch the mask, 1 or 0, of the n masks that are not empty."""
    maps, masks = check_pair(masks.float(), masks, "masks")
    return patch_scores(maps[masks.flatten(1).any(1)], patch)


def topk_ceiling(masks: Tensor, k: int = 10, patch: int = 33) -> Tensor:
    """(k,): the highest `topk_precision` of any ranking of patches: an image may have fewer than K lesion patches."""
    touched, asked = _touched(masks, patch), torch.arange(1, k + 1, device=masks.device)
    return touched.sum(1)[:, None].minimum(asked).sum(0) / (asked.clamp(max=touched.shape[1]) * len(touched))


def topk_chance(masks: Tensor, patch: int = 33) -> Tensor:
    """(): the `topk_precision` expected of a random ranking: the share of patches that touch a (non-empty) mask."""
    return _touched(masks, patch).mean()


def _share(values: Tensor, masks: Tensor) -> Tensor:
    """(N,): of the sum of the values, what lies in the mask."""
    return (values * masks).sum((1, 2)) / values.sum((1, 2))


def _activation(maps: Tensor) -> Tensor:
    positive = maps.clamp(min=0)
    low, high = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
    return (positive - low) / (high - low)


def activation_precision(maps: Tensor, masks: Tensor) -> Tensor:
    """sum(m a) / sum(a), `a` the map clipped at 0, min-max scaled; NaN if that is constant."""
    maps, masks = check_pair(maps, masks)
    return _share(_activation(maps), masks)


def activation_sensitivity(maps: Tensor, masks: Tensor) -> Tensor:
    """sum(m a) / sum(m), `a` and NaN as in `activation_precision`."""
    maps, masks = check_pair(maps, masks)
    return (_activation(maps) * masks).sum((1, 2)) / masks.sum((1, 2))


def weighting_game(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of the positive values that lies in the mask, NaN if there is none (Raatikainen & Rahtu 2022)."""
    maps, masks = check_pair(maps, masks)
    return _share(maps.clamp(min=0), masks)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """1 if the maximum lies in the mask, else 0; of equal maxima the share. NaN for a constant map (Zhang et al. 2018,
    without tolerance)."""
    maps, masks = check_pair(maps, masks)
    peaks = (maps == maps.amax((1, 2), keepdim=True)).to(maps.dtype)
    return _share(peaks, masks).masked_fill(_constant(maps), NAN)


def relevance_rank_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of the |m| highest (signed) pixels that lie in the mask; NaN for a constant map (Arras et al. 2022)."""

    def accuracy(maps: Tensor, masks: Tensor) -> Tensor:
        ordered, order = maps.flatten(1).sort(dim=1, descending=True)
        size = masks.sum((1, 2))
        chosen = torch.arange(order.shape[1], device=maps.device) < size[:, None]
        inside = mean_over_ties(ordered, masks.flatten(1).gather(1, order)).where(chosen, 0).sum(1)
        return (inside / size).to(maps.dtype).masked_fill(_constant(maps), NAN)

    return in_parts(accuracy, *check_pair(maps, masks))


def best_iou(maps: Tensor, masks: Tensor) -> Tensor:
    """In [|m| / (H W), 1]: the highest IoU of {a >= t} and the mask over every value t of the image's own map: an upper
    bound, as the mask chooses. NaN for a constant map."""

    def best(maps: Tensor, masks: Tensor) -> Tensor:
        values, order = maps.flatten(1).sort(dim=1, descending=True)
        hits = masks.flatten(1).gather(1, order).cumsum(1)
        iou = hits.to(maps.dtype) / (torch.arange(1, order.shape[1] + 1, device=maps.device) + hits[:, -1:] - hits)
        apart = F.pad(values[:, 1:] < values[:, :-1], (0, 1), value=True)  # equal pixels enter together
        return iou.where(apart, 0).amax(1).masked_fill(_constant(maps), NAN)

    return in_parts(best, *check_pair(maps, masks))


def pompom(z: Tensor, masks: Tensor, eps: float = 1e-6) -> Tensor:
    """In [0, 1], lower is better: |{z > 0 and m = 0}| / (|{m = 0}| + eps), meaning outside the mask; 0 where there is
    none or the mask covers all (Rio-Torto et al. 2020)."""
    return pompom_curve(z, masks, [0], eps)[:, 0]


def pompom_curve(z: Tensor, masks: Tensor, eps: Sequence[float] = (0, 0.01, 0.1, 0.5), guard=1e-6) -> Tensor:
    """(N, E): `pompom` with a pixel of meaning above eps instead of above 0."""
    z, masks = check_pair(z, masks, "z")
    check("z", not (z < 0).any(), "values of at least 0", z[z < 0][:1].tolist())
    outside = (~masks).sum((1, 2)).to(z.dtype) + guard
    shares = torch.stack([((z > level) & ~masks).sum((1, 2)) / outside for level in eps], 1)
    return shares.masked_fill(undefined(z)[:, None], NAN)


def grid_pointing_game(diseased: Tensor, healthy: Tensor, picks=None, threshold=0.003, seed=0) -> float:
    """Share of the elements above `threshold` that lie in the diseased quarter of 2x2 grids of evidence maps, summed
    over the grids without an undefined map; NaN if there is no such element (SoftCAM, after Böhle et al. 2021).
    `diseased` (N, h, w), `healthy` (M, h, w): of the disease class; `picks` (N, 3): the healthy maps beside each
    diseased one, by default drawn without repetition."""
    diseased, healthy = check_maps("diseased", diseased), check_maps("healthy", healthy)
    n, m = len(diseased), len(healthy)
    check("healthy", healthy.shape[1:] == diseased.shape[1:], f"maps of {tuple(diseased.shape[1:])}", healthy)
    if picks is None:
        picks = torch.rand(n, m, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :3]
    picks = torch.as_tensor(picks).to(healthy.device)
    check("picks", picks.shape == (n, 3), f"3 of the {m} healthy maps for each of {n}", picks)
    kept = ~(undefined(diseased) | undefined(healthy)[picks].any(1).to(diseased.device))
    inside = int((diseased > threshold)[kept].sum())
    beside = int((healthy > threshold).sum((1, 2))[picks[kept.to(picks.device)]].sum())
    return inside / (inside + beside) if inside + beside else NAN


def positive_proportion(maps: Tensor) -> Tensor:
    """(N,) in [0, 1]: share of the elements above 0; NaN for an all-zero map."""
    maps = check_maps("maps", maps)
    return (maps > 0).to(maps.dtype).mean((1, 2)).masked_fill(~(maps.abs().amax((1, 2)) > 0), NAN)


def negative_proportion(maps: Tensor) -> Tensor:
    """(N,) in [0, 1]: share of the elements below 0; NaN for an all-zero map."""
    return positive_proportion(-maps)
