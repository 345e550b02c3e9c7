"""Bootstrap intervals and paired comparisons, over images or over groups of them (patients)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

NAN = float("nan")
TESTS = ("wilcoxon", "bootstrap")


class _Bounds(NamedTuple):
    low: float
    point: float
    high: float


class PairedComparison(NamedTuple):
    """`difference`: mean of a - b with its bounds; `p`: two-sided; `used`, `dropped`: pairs counted and left out."""

    difference: float
    low: float
    high: float
    p: float
    used: int
    dropped: int


class ComparisonRow(NamedTuple):
    """One pair of `compare_all`."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    used: int
    dropped: int
    verdict: str


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
    low, point, high = NAN, float(statistic(values)) if len(values) else NAN, NAN
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


class Means(NamedTuple):
    """One entry per column (L,): bounds and mean, and how many values were defined and how many NaN."""

    low: Tensor
    value: Tensor
    high: Tensor
    used: Tensor
    undefined: Tensor


def bootstrap_means(
    values: Tensor, groups: Sequence | None = None, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Means:
    """`bootstrap_ci` of the mean of every column of values (N, L), with the same draws for all columns.

    A NaN is left out of its column alone; a resample without a value in a column is left out there. With fewer than two
    groups that have a value low and high are NaN, without values the mean too.
    """
    values = torch.as_tensor(values).double().cpu()
    if values.ndim != 2:
        raise ValueError(f"values: expected shape (N, L), got {tuple(values.shape)}")
    codes = _codes(groups, len(values)).unique(return_inverse=True)[1]
    known, count = ~values.isnan(), int(codes.max()) + 1 if len(codes) else 0
    sums = torch.zeros(count, values.shape[1]).double().index_add(0, codes, values.nan_to_num(0))
    sizes = torch.zeros(count, values.shape[1]).double().index_add(0, codes, known.double())
    mean = sums.sum(0) / sizes.sum(0)
    bounds = torch.full((2, values.shape[1]), NAN).double()
    if count >= 2:
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randint(count, (resamples, count), generator=generator)
        times = torch.zeros(resamples, count).double().scatter_add_(1, draws, torch.ones_like(draws).double())
        drawn = (times @ sums) / (times @ sizes)
        bounds = drawn.nanquantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]).double(), 0)
        bounds = bounds.masked_fill((sizes > 0).sum(0) < 2, NAN)
    return Means(bounds[0], mean, bounds[1], known.sum(0), (~known).sum(0))


def paired_comparison(
    a: Tensor,
    b: Tensor,
    groups: Sequence | None = None,
    test: str = "wilcoxon",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedComparison:
    """Mean of a - b over the same images, with its percentile bootstrap interval and a two-sided p-value.

    `a`, `b` (N,), one value per image; a pair with a NaN is dropped and counted; values equal within rounding
    (`torch.isclose`) count as equal. `groups` as in `bootstrap_ci`. `test`:
    "wilcoxon": signed-rank test of the differences, of their mean within each group where groups are given, as images
        of one group are not independent. Zeros are ranked, then left out (Pratt 1959).
    "bootstrap": 2 min(P(mean <= 0), P(mean >= 0)) over the resamples, each share as (count + 1) / (resamples + 1): what
        the interval says, and never below 2 / (resamples + 1).
    If all differences are 0, p is 1; else with fewer than two groups low, high and p are NaN, without a pair all three
    and the difference. Raises ValueError for wrong shapes or another `test`.
    """
    a, b = torch.as_tensor(a).double().cpu(), torch.as_tensor(b).double().cpu()
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"a, b: expected the same shape (N,), got {tuple(a.shape)} and {tuple(b.shape)}")
    if test not in TESTS:
        raise ValueError(f"test: expected one of {', '.join(TESTS)}, got {test!r}")
    differences = (a - b).masked_fill(torch.isclose(a, b), 0)
    low, point, high = interval = bootstrap_ci(differences, groups, level=level, resamples=resamples, seed=seed)
    kept = ~differences.isnan()
    values, codes = differences[kept], _codes(groups, len(a))[kept].unique(return_inverse=True)[1]
    sizes, p = codes.bincount(), NAN
    if len(values) and not values.any():
        p = 1.0
    elif len(sizes) >= 2 and test == "wilcoxon":
        from scipy.stats import wilcoxon  # half a second, paid by the test alone

        means = torch.zeros(len(sizes)).double().index_add(0, codes, values) / sizes
        p = float(wilcoxon(means.numpy(), zero_method="pratt").pvalue) if means.any() else 1.0
    elif len(sizes) >= 2:
        drawn = torch.cat(list(_resampled(values, codes, sizes, torch.mean, resamples, seed)))
        tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p = min(1.0, 2 * (tail + 1) / (resamples + 1))
    return PairedComparison(point, low, high, p, interval.used, interval.dropped)


def holm(p_values: Sequence[float] | Tensor) -> Tensor:
    """p-values (m,) adjusted for m tests: (m,) float64 in [0, 1], in the order given.

    The i-th smallest of m becomes max_{j <= i} min(1, (m - j + 1) p_(j)). A NaN stays NaN and is no test. Raises
    ValueError for values outside [0, 1] (Holm 1979).
    """
    p = torch.as_tensor(p_values, dtype=torch.float64).cpu()
    known = ~p.isnan()
    if p.ndim != 1 or not ((p[known] >= 0) & (p[known] <= 1)).all():
        raise ValueError(f"p_values: expected values in [0, 1] of shape (m,), got {p.tolist()}")
    ordered, order = p[known].sort()
    steps = (ordered * torch.arange(len(ordered), 0, -1)).clamp(max=1)
    stepped = steps.cummax(0).values if len(steps) else steps
    return p.masked_scatter(known, torch.empty_like(stepped).scatter(0, order, stepped))


def compare_all(
    values: Mapping[str, Tensor],
    groups: Sequence | None = None,
    higher_is_better: bool = True,
    test: str = "wilcoxon",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[ComparisonRow]:
    """`paired_comparison` of every two entries of `values` (name -> (N,), the same images in all), in their order.

    `p_holm` is adjusted over all pairs, the bounds are not. `verdict` on a against b: "better" or "worse" if
    p_holm < 1 - level and the interval leaves out 0, else "no difference" (none shown, not: none there); "undefined"
    where p is NaN.
    """
    pairs = list(combinations(values, 2))
    options = {"groups": groups, "test": test, "level": level, "resamples": resamples, "seed": seed}
    found = [paired_comparison(values[a], values[b], **options) for a, b in pairs]
    rows = []
    for (a, b), one, p_holm in zip(pairs, found, holm([one.p for one in found]).tolist(), strict=True):
        verdict = "undefined" if p_holm != p_holm else "no difference"
        if p_holm < 1 - level and (one.low > 0 or one.high < 0):
            verdict = "better" if (one.low > 0) == higher_is_better else "worse"
        rows.append(ComparisonRow(a, b, *one[:4], p_holm, one.used, one.dropped, verdict))
    return rows
