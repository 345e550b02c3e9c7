"""How well a heatmap points at the annotated region.

Maps are (N, H, W), of any scale and sign; masks are (N, H, W), boolean or 0/1. A value that the definition leaves open
(an empty mask, a constant map) is NaN, and so is every value of a map with a pixel that is not finite. Patches lie on a
grid from (0, 0), side by side or, with a `stride` below `patch`, overlapping; those at the right and lower border are
cut. Where scores tie, a value is its expectation over all orders of the tied patches or pixels.
A metric pooled over images takes any subset of them: `topk_precision(maps[correct], masks[correct])` is the one over
true positives.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NAN = float("nan")
PART = 2**22  # pixels that are sorted at a time: some 200 MB


def check_maps(name: str, maps: Tensor) -> Tensor:
    """Maps (N, h, w) as float32 or float64. Raises ValueError where shape or dtype are wrong.

    A map with a NaN or an infinite pixel is undefined: it comes back as NaN throughout, as does every metric of it.
    """
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"{name}: expected shape (N, height, width), got {tuple(maps.shape)}")
    if not maps.is_floating_point():
        raise ValueError(f"{name}: expected floating-point values, got {maps.dtype}")
    maps = maps if maps.dtype == torch.float64 else maps.float()
    broken = undefined(maps)
    return maps.masked_fill(broken[:, None, None], NAN) if broken.any() else maps


def undefined(maps: Tensor) -> Tensor:
    """(N,): which maps (N, h, w) have a pixel that is not finite."""
    return ~maps.isfinite().flatten(1).all(1)


def check_count(name: str, value: int) -> None:
    """Raises ValueError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")


def check_masks(masks: Tensor) -> Tensor:
    """Masks (N, h, w) as boolean. Raises ValueError where the shape or a value is wrong."""
    if masks.ndim != 3:
        raise ValueError(f"masks: expected shape (N, height, width), got {tuple(masks.shape)}")
    if masks.dtype != torch.bool and not ((masks == 0) | (masks == 1)).all():
        raise ValueError(f"masks: expected 0 and 1 only, got values from {masks.min()} to {masks.max()}")
    return masks.bool()


def check_pair(maps: Tensor, masks: Tensor, name: str = "maps") -> tuple[Tensor, Tensor]:
    """`check_maps` and `check_masks` of two tensors of one shape, on the device of the maps."""
    maps = check_maps(name, maps)
    if masks.shape != maps.shape:
        raise ValueError(f"masks: expected shape {tuple(maps.shape)} to match {name}, got {tuple(masks.shape)}")
    return maps, check_masks(masks).to(maps.device)


def patch_scores(maps: Tensor, patch: int, by: str = "max", stride: int | None = None) -> Tensor:
    """Maximum or mean of each patch: (N, H, W) -> (N, rows, columns).

    Along a side of H pixels, 1 + ceil((H - patch) / stride) patches, one if H < patch; `stride` None: `patch`, no
    overlap. A cut patch counts with the pixels it has. Means are taken in float64, so that equal float32 pixels have
    equal means. Raises ValueError for another `by`, or a stride above `patch`.
    """
    check_count("patch", patch)
    stride = patch if stride is None else stride
    check_count("stride", stride)
    if stride > patch:
        raise ValueError(f"stride: expected at most patch = {patch}, or pixels are left out, got {stride}")
    size = [min(patch, side) for side in maps.shape[1:]]
    if by == "max":
        return F.max_pool2d(maps[:, None], size, stride, ceil_mode=True)[:, 0]
    if by == "mean":
        return F.avg_pool2d(maps[:, None].double(), size, stride, ceil_mode=True, count_include_pad=False)[:, 0]
    raise ValueError(f"by: expected 'max' or 'mean', got {by!r}")


def rank_patches(maps: Tensor, patch: int, by: str = "max", stride: int | None = None) -> tuple[Tensor, Tensor]:
    """Scores and row-major grid positions of the patches, highest first, equal ones by position: two tensors (N, P)."""
    scores = patch_scores(check_maps("maps", maps), patch, by, stride).flatten(1)
    return scores.sort(dim=1, descending=True, stable=True)


def in_parts(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function` of tensors (N, ...), which treats every row alone, of so many rows at a time as have `PART` elements.

    Sorting the pixels of maps takes some 50 bytes for each: this bounds them. At least one row is taken at a time.
    """
    rows = max(1, PART // tensors[0].shape[1:].numel())
    return torch.cat([function(*part) for part in zip(*(tensor.split(rows) for tensor in tensors), strict=True)])


def mean_over_ties(ordered: Tensor, values: Tensor) -> Tensor:
    """(N, P): `values` (N, P), each the mean over the places of its row where the sorted scores `ordered` are the same.

    What is expected at each rank if places of equal score come in any order, each as likely as the others.
    """
    group = F.pad((ordered[:, 1:] != ordered[:, :-1]).cumsum(1), (1, 0))
    total, count = (torch.zeros_like(ordered, dtype=torch.float64) for _ in range(2))
    total.scatter_add_(1, group, values.double())
    count.scatter_add_(1, group, torch.ones_like(total))
    return (total / count).gather(1, group)


def topk_hits(
    maps: Tensor,
    masks: Tensor,
    k: int = 10,
    patch: int = 33,
    threshold: float | None = None,
    stride: int | None = None,
) -> Tensor:
    """(N, k) in [0, 1]: whether the j-th highest patch (score: its maximum) touches the mask, 1 or 0.

    Among g patches of equal score, h of which touch the mask, each rank counts h / g: the expectation over all orders
    of them, so that (sum of the first k) / k is the expected precision. NaN for an image with an empty mask, and where
    there is no j-th patch (scoring above `threshold`, if given). With a `stride` below `patch` a chosen patch may
    overlap others, none is struck out for it: patches that share a peak score the same, so the finer the stride, the
    more the k highest crowd around one peak.
    """
    check_count("k", k)

    def ranked(maps: Tensor, masks: Tensor) -> Tensor:
        scores, order = rank_patches(maps, patch, stride=stride)
        touched = patch_scores(masks.to(maps.dtype), patch, stride=stride).flatten(1)
        counted = masks.flatten(1).any(1)[:, None] & (scores > (-float("inf") if threshold is None else threshold))
        hits = mean_over_ties(scores, touched.gather(1, order)).to(maps.dtype).masked_fill(~counted, NAN)[:, :k]
        return F.pad(hits, (0, k - hits.shape[1]), value=NAN)

    return in_parts(ranked, *check_pair(maps, masks))


def topk_precision(
    maps: Tensor,
    masks: Tensor,
    k: int = 10,
    patch: int = 33,
    threshold: float | None = None,
    stride: int | None = None,
) -> Tensor:
    """(k,): for K = 1..k, the share of the K highest patches that touch the mask, over all images pooled.

    Arguments, ties and exclusions as in `topk_hits`; NaN where no patch is left (SoftCAM, arXiv 2505.17748).
    """
    hits = topk_hits(maps, masks, k, patch, threshold, stride)
    return hits.nan_to_num(0).sum(0).cumsum(0) / hits.isfinite().sum(0).cumsum(0)


def topk_ceiling(masks: Tensor, k: int = 10, patch: int = 33, stride: int | None = None) -> Tensor:
    """(k,): the highest `topk_precision` that any ranking could reach: an image may have fewer than K lesion patches.

    With overlap no map need reach it, since the scores of overlapping patches depend on each other.
    """
    masks = check_masks(masks)
    check_count("k", k)
    touched = patch_scores(masks.float(), patch, stride=stride).flatten(1)[masks.flatten(1).any(1)]
    asked = torch.arange(1, k + 1, device=masks.device)
    found = touched.sum(1)[:, None].minimum(asked).sum(0)
    return found / (asked.clamp(max=touched.shape[1]) * len(touched))


def topk_chance(masks: Tensor, patch: int = 33, stride: int | None = None) -> Tensor:
    """(): the `topk_precision` expected of a random ranking: the share of patches that touch a (non-empty) mask."""
    masks = check_masks(masks)
    return patch_scores(masks.float(), patch, stride=stride)[masks.flatten(1).any(1)].mean()


def _activation(maps: Tensor) -> Tensor:
    positive = maps.clamp(min=0)
    low, high = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
    return (positive - low) / (high - low)


def activation_precision(maps: Tensor, masks: Tensor) -> Tensor:
    """(N,) in [0, 1]: sum(m a) / sum(a), `a` the map clipped at 0, then min-max scaled.

    NaN for an empty mask and for a map that is constant once clipped.
    """
    maps, masks = check_pair(maps, masks)
    a = _activation(maps)
    return ((a * masks).sum((1, 2)) / a.sum((1, 2))).masked_fill(~masks.flatten(1).any(1), NAN)


def activation_sensitivity(maps: Tensor, masks: Tensor) -> Tensor:
    """(N,) in [0, 1]: sum(m a) / sum(m), `a` and NaN as in `activation_precision`."""
    maps, masks = check_pair(maps, masks)
    return (_activation(maps) * masks).sum((1, 2)) / masks.sum((1, 2))


def pompom(z: Tensor, masks: Tensor, eps: float = 1e-6) -> Tensor:
    """(N,) in [0, 1], lower is better: |{z > 0 and m = 0}| / (|{m = 0}| + eps), pixels of meaning outside the mask.

    By its formula 0 for an all-zero z and for a mask that covers all; NaN for an empty mask (Rio-Torto et al. 2020).
    """
    z, masks = check_pair(z, masks, "z")
    if (z < 0).any():
        raise ValueError(f"z: expected values of at least 0, got {z[z < 0].min()}")
    outside = ~masks
    share = ((z > 0) & outside).sum((1, 2)) / (outside.sum((1, 2)).to(z.dtype) + eps)
    return share.masked_fill(outside.flatten(1).all(1) | undefined(z), NAN)


def pompom_curve(z: Tensor, masks: Tensor, eps: Sequence[float] = (0, 0.01, 0.05, 0.1, 0.25, 0.5)) -> Tensor:
    """(N, E) in [0, 1], lower is better: `pompom` with a pixel of meaning above eps instead of above 0.

    It never rises with eps, and is `pompom` itself at eps = 0 (`eps` here is the limit of meaning; that of `pompom`
    only guards its denominator). 0 where no pixel of z is above eps, NaN for an empty mask.
    """
    z, _ = check_pair(z, masks, "z")
    if not len(eps):
        raise ValueError("eps: expected at least one value, got none")
    if not all(0 <= e < float("inf") for e in eps):
        raise ValueError(f"eps: expected values of at least 0, got {list(eps)}")
    return torch.stack([pompom(z.masked_fill((z > 0) & (z <= e), 0), masks) for e in eps], 1)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """(N,) in [0, 1]: 1 if the maximum lies in the mask, else 0 (Zhang et al. 2018, without tolerance).

    Of several equal maxima the share that lies inside: the expectation over a random choice of one. NaN for an empty
    mask and a constant map.
    """
    maps, masks = check_pair(maps, masks)
    peaks = maps == maps.amax((1, 2), keepdim=True)
    share = (peaks & masks).sum((1, 2)).to(maps.dtype) / peaks.sum((1, 2))
    return share.masked_fill(peaks.flatten(1).all(1) | ~masks.flatten(1).any(1), NAN)


def grid_pointing_game(
    diseased: Tensor,
    healthy: Tensor,
    picks: Tensor | Sequence[Sequence[int]] | None = None,
    threshold: float = 0.003,
    seed: int = 0,
) -> float:
    """Share of the elements above `threshold` that lie in the diseased quarter of 2x2 grids of evidence maps.

    `diseased` (N, h, w), `healthy` (M, h, w): maps of the disease class; `picks` (N, 3): the healthy maps beside each
    diseased one, by default drawn without repetition from `seed`. Counts are summed over the grids before dividing,
    without those that hold an undefined map; NaN if no element is above the threshold. Raises ValueError for other
    shapes, or picks outside 0..M-1.
    """
    diseased, healthy = check_maps("diseased", diseased), check_maps("healthy", healthy)
    n, m = len(diseased), len(healthy)
    if diseased.shape[1:] != healthy.shape[1:]:
        raise ValueError(f"healthy: expected maps of {tuple(diseased.shape[1:])}, got {tuple(healthy.shape[1:])}")
    if picks is None:
        if m < 3:
            raise ValueError(f"healthy: expected at least 3 maps to fill a 2x2 grid, got {m}")
        picks = torch.rand(n, m, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :3]
    picks = torch.as_tensor(picks)
    if picks.shape != (n, 3) or picks.is_floating_point():
        raise ValueError(f"picks: expected integers of shape ({n}, 3), got {picks.dtype} of shape {tuple(picks.shape)}")
    if picks.numel() and not 0 <= int(picks.min()) <= int(picks.max()) < m:
        raise ValueError(f"picks: expected values in 0..{m - 1}, got {int(picks.min())}..{int(picks.max())}")
    picks = picks.to(healthy.device)
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
