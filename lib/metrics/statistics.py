"""Bootstrap intervals over images, or over groups of them (patients)."""

from collections import namedtuple
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.metrics.arguments import check

Interval = namedtuple("Interval", "low point high")


def draws(units: int, resamples: int, seed: int = 0) -> Iterator[Tensor]:
    """How often each unit comes in a resample of as many, drawn with replacement: `resamples` rows (n, units) float64,
    in blocks of some megabytes."""
    generator, rows = torch.Generator().manual_seed(seed), max(1, 2**20 // units)
    for start in range(0, resamples, rows):
        drawn = torch.randint(units, (min(rows, resamples - start), units), generator=generator)
        yield torch.zeros(drawn.shape).double().scatter_add_(1, drawn, torch.ones_like(drawn).double())


def bootstrap_ci(
    values: Tensor, groups: Sequence | None = None, statistic=torch.mean, level=0.95, resamples=2000, seed=0
) -> Interval:
    """Percentile bootstrap interval of `statistic(values)`: (low, point, high) (Efron & Tibshirani 1993, ch. 13).

    `values` (N,) or (N, d), a row per image; rows with a NaN are left out. Whole groups are drawn where `groups` (N
    names; None, NaN or empty: a group by itself) are given, else rows; resamples in which the statistic is NaN are left
    out. With fewer than two groups low and high are NaN, without values all three.
    """
    values = torch.as_tensor(values).double().cpu()
    names = pd.Series(range(len(values)) if groups is None else list(groups), dtype=object)
    check("values", values.ndim in (1, 2), "shape (N,) or (N, d)", values)
    check("groups", len(names) == len(values), f"{len(values)} entries to match values", len(names))
    check("level", 0 < level < 1, "a value between 0 and 1", level)
    kept = ~values.isnan().reshape(len(values), -1).any(1)
    values, names = values[kept], names[kept.numpy()]
    codes = pd.factorize(names.where(names != ""))[0]  # -1 without a name
    codes[codes < 0] = len(codes) + np.arange((codes < 0).sum())
    codes = torch.tensor(codes).unique(return_inverse=True)[1]
    low, point, high = torch.nan, float(statistic(values)) if len(values) else torch.nan, torch.nan
    if len(values) and codes.max() > 0:
        times = torch.cat([*draws(int(codes.max()) + 1, resamples, seed)])[:, codes]
        if statistic is torch.mean:
            drawn = times @ values.reshape(len(values), -1).mean(1) / times.sum(1)
        else:
            drawn = torch.tensor([float(statistic(values.repeat_interleave(row.long(), 0))) for row in times]).double()
        low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(low, point, high)
