"""Means and differences with their intervals: over patients where they are known, else over images."""

import math
import warnings
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from lib.explain import METHODS
from lib.metrics.statistics import draws
from lib.table.loading import at, compared

BOUNDS = (0.025, 0.975)  # quantiles of the 95 % intervals


def resampled(sums: np.ndarray, sizes: np.ndarray, resamples: int) -> np.ndarray:
    """(resamples, groups): means of groups whose values have these sums and numbers in each unit (groups, units).

    Whole units are drawn with replacement, the same for all groups; NaN where a group has no value among them (Efron &
    Tibshirani 1993, ch. 13).
    """
    times = draws(sums.shape[1], resamples).numpy()
    with np.errstate(invalid="ignore"):
        return (times @ sums.T) / (times @ sizes.T)


def summary(
    table: pd.DataFrame, by: Sequence[str] = ("label", "metric", "judge", "k"), resamples: int = 1000
) -> pd.DataFrame:
    """Per data set and `by`: value, low, high, used and undefined (numbers of images), seeds (their number).

    Of one seed the mean over images, each the mean over what `by` leaves out, with its 95 % bootstrap interval (NaN of
    a single unit); of several seeds the mean of their means, and their range.
    """
    found, keys = [], ["dataset", *by]
    for _, part in table.groupby(["dataset", "metric", "judge"], observed=True, sort=False):
        levels = {"observed": True, "sort": False}
        images = part.groupby([*keys, "seed", "unit", "image"], **levels)["value"].mean()
        cells = images.groupby(level=[*keys, "seed", "unit"], **levels).agg(["sum", "count", "size"])
        cells = cells.unstack(fill_value=0).sort_index(axis=1)
        sums, sizes, all_images = (cells[name].to_numpy(float) for name in ("sum", "count", "size"))
        one = pd.DataFrame({"used": sizes.sum(1), "undefined": (all_images - sizes).sum(1)}, cells.index)
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice")
            one["value"] = sums.sum(1) / sizes.sum(1)
            bounds = np.nanquantile(resampled(sums, sizes, resamples), BOUNDS, axis=0)
        one["low"], one["high"] = np.where((sizes > 0).sum(1) > 1, bounds, math.nan)
        seeds = one.groupby(level=keys, **levels)
        one, means = seeds.first(), seeds["value"].agg(["mean", "min", "max", "size"])
        several = means["size"] > 1
        one["value"], one["seeds"] = means["mean"], means["size"]
        one.loc[several, ["low", "high"]] = means.loc[several, ["min", "max"]].to_numpy()
        found.append(one.reset_index())
    columns = [*keys, "value", "low", "high", "used", "undefined", "seeds"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns, dtype=float)


def by_image(rows: pd.DataFrame, columns: str) -> pd.DataFrame:
    """Values as (unit, image) x `columns`, a name of the table's, means over what else there is."""
    return rows.pivot_table("value", ["unit", "image"], columns, observed=True, sort=False)


def interval(a: pd.Series, b: pd.Series | None = None, resamples: int = 2000) -> tuple[float, float]:
    """95 % bounds of the mean of `a` (index: unit, image), or of mean a - mean b, all units resampled together."""
    parts = [values.dropna().groupby(level="unit").agg(["sum", "count"]) for values in ([a] if b is None else [a, b])]
    both = pd.concat(parts, axis=1, keys=range(len(parts))).fillna(0).sort_index()
    if len(both) < 2:
        return math.nan, math.nan
    sums, sizes = (both.xs(name, axis=1, level=1).to_numpy(float).T for name in ("sum", "count"))
    means = resampled(sums, sizes, resamples)
    low, high = np.nanquantile(means[:, 0] - (0 if b is None else means[:, 1]), BOUNDS)
    return float(low), float(high)


def holm(p: pd.Series) -> pd.Series:
    """p-values adjusted for their number m: max_{j <= i} min(1, (m - j + 1) p_(j)); a NaN is no test (Holm 1979)."""
    ordered = p.dropna().sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).clip(upper=1).cummax().reindex(p.index)


def compare(table: pd.DataFrame, metric: str, k: float | str = 0, resamples: int = 1000) -> pd.DataFrame:
    """Every two maps of a data set by a metric where more is better, on the same images, seeds averaged.

    A row per pair, a the one with the higher mean: data, metric, a, b, difference (mean of a - b), low and high (its
    95 % interval), p (two-sided Wilcoxon signed-rank test of the units' means, zeros ranked, then left out: Pratt
    1959), p_holm (over all pairs of the data set), used (images), verdict on a: "better" or "worse" where p_holm < 0.05
    and the interval leaves out 0, else "no difference" (none shown, not: none there); "undefined" without a p.
    """
    from scipy.stats import wilcoxon  # half a second, paid where it is needed

    found, columns = [], ["data", "metric", "a", "b", "difference", "low", "high", "p", "used"]
    for dataset, part in at(table, metric, k).groupby("dataset", observed=True, sort=False):
        x, rows = by_image(part, "label").dropna(axis=1, how="all"), []
        for a, b in combinations(x.mean().sort_values(ascending=False, kind="stable").index, 2):
            both = x[[a, b]].dropna()
            d = (both[a] - both[b]).mask(np.isclose(both[a], both[b]), 0)
            means, p = d.groupby(level="unit").mean(), math.nan
            if len(means) > 1 or (len(d) and not d.any()):
                p = float(wilcoxon(means, zero_method="pratt").pvalue) if means.any() else 1.0
            rows.append((dataset, metric, a, b, d.mean(), *interval(d, resamples=resamples), p, len(d)))
        one = pd.DataFrame(rows, columns=columns)
        one.insert(8, "p_holm", holm(one["p"]))
        shown = (one["p_holm"] < 0.05) & ((one["low"] > 0) | (one["high"] < 0))
        one["verdict"] = np.where(shown, np.where(one["low"] > 0, "better", "worse"), "no difference")
        found.append(one.assign(verdict=one["verdict"].mask(one["p"].isna(), "undefined")))
    empty = pd.DataFrame(columns=[*columns, "p_holm", "verdict"], dtype=float)
    return pd.concat(found, ignore_index=True) if found else empty


def results(table: pd.DataFrame) -> pd.DataFrame:
    """A row per model and map: data, model, accuracy, map, and means of localisation over images and seeds."""
    maps, keys = compared(table), ["dataset", "variant", "method"]
    found = maps[keys].drop_duplicates(ignore_index=True)
    columns = {"accuracy": (table[table["main"]], "correct", 0), "top-1 precision": (maps, "topk_precision", 1)}
    columns |= {name.replace("_", " "): (maps, name, 0) for name in ("activation_precision", "pointing_game")}
    for column, (rows, metric, k) in {**columns, "POMPOM": (maps, "pompom", 0)}.items():
        by = keys[: 2 if column == "accuracy" else 3]
        means = summary(at(rows, metric, k), by[1:])[[*by, "value"]]
        found = found.merge(means.rename(columns={"value": column}), how="left")
    found.insert(3, "map", [METHODS[name].label for name in found.pop("method")])
    return found.rename(columns={"dataset": "data", "variant": "model"})
