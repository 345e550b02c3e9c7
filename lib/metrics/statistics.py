"""Bootstrap intervals, over images or over groups of them (patients)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor


class _Bounds(NamedTuple):
    low: float
    point: float
    high: float


class Interval(_Bounds):
    """(low, point, high); `.used` and `.dropped` count the values that were defined and those that were NaN."""

    used: int
    dropped: int


def _codes(groups: Sequence | None, n: int) -> Tensor:
    """Group number of each value; without a name (None, NaN or empty) each value is a group of its own."""
    if groups is None:
        return torch.arange(n)
    names = pd.Series(groups.tolist() if isinstance(groups, Tensor) else list(groups), dtype=object)
    if len(names) != n:
        raise ValueError(f"groups: expected {n} entries to match values, got {len(names)}")
    codes = torch.tensor(pd.factorize(names.where(names != ""))[0])
    alone = codes < 0
    return codes.masked_scatter(alone, n + torch.arange(int(alone.sum())))


def bootstrap_ci(
    values: Tensor,
    groups: Sequence | None = None,
    statistic: Callable[[Tensor], Tensor | float] = torch.mean,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of `statistic(values)`: (low, point, high).

    `values` (N,) or (N, d), one row per image; rows with a NaN are left out and counted in `.dropped`. Whole groups are
    drawn with replacement where `groups` (N names) are given, else rows; `statistic` sees the drawn rows, and resamples
    in which it is NaN are left out. With fewer than two groups low and high are NaN, without values all three.
    Raises ValueError for wrong shapes or a level outside (0, 1) (Efron & Tibshirani 1993, ch. 13).
    """
    values = torch.as_tensor(values).double().cpu()
    if values.ndim not in (1, 2):
        raise ValueError(f"values: expected shape (N,) or (N, d), got {tuple(values.shape)}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a value between 0 and 1, got {level}")
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    codes = _codes(groups, len(values))
    kept = ~values.isnan().reshape(len(values), -1).any(1)
    values, codes = values[kept], codes[kept].unique(return_inverse=True)[1]
    sizes = codes.bincount()
    nan = float("nan")
    low, point, high = nan, float(statistic(values)) if len(values) else nan, nan
    if len(sizes) >= 2:
        drawn = torch.cat(list(_resampled(values, codes, sizes, statistic, resamples, seed)))
        low, high = torch.nanquantile(drawn, torch.tensor([(1 - level) / 2, (1 + level) / 2]).double()).tolist()
    interval = Interval(low, point, high)
    interval.used, interval.dropped = len(values), int((~kept).sum())
    return interval


def _resampled(values: Tensor, codes: Tensor, sizes: Tensor, statistic: Callable, resamples: int, seed: int):
    """Blocks of the statistic of each resample; the mean needs only each group's sum."""
    generator = torch.Generator().manual_seed(seed)
    members, starts = codes.argsort(stable=True), sizes.cumsum(0) - sizes
    sums = torch.zeros(len(sizes)).double().index_add(0, codes, values.reshape(len(values), -1).mean(1))
    for block in torch.arange(resamples).split(max(1, 10_000_000 // len(sizes))):
        draws = torch.randint(len(sizes), (len(block), len(sizes)), generator=generator)
        if statistic is torch.mean:
            yield sums[draws].sum(1) / sizes[draws].sum(1)
            continue
        for groups in draws:
            length = sizes[groups]
            within = torch.arange(int(length.sum())) - (length.cumsum(0) - length).repeat_interleave(length)
            rows = members[starts[groups].repeat_interleave(length) + within]
            yield torch.as_tensor(statistic(values[rows])).double().reshape(1)
