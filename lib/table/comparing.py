"""Means and differences with their intervals, over seeds and over patients where they are known, else images.

They rest on wide frames: (seed, unit, image) x groups of values. A mean is that of the means of the seeds.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from lib.explain import METHODS
from lib.metrics.statistics import draws
from lib.table.loading import at, compared

RESAMPLES = 20_000  # of a test: its p can be as small as 1e-4, so that hundreds can be corrected for
SAME = 1e-6  # a difference up to this one is rounding
PAIRS = ["data", "metric", "a", "b", "difference", "low", "high", "p", "p_holm", "used", "verdict"]
IN_ORDER = {"observed": True, "sort": False}


def wide(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Values as (seed, unit, image) x `columns`, each the mean over what else there is."""
    keys = [*columns, "seed", "unit", "image"]
    return rows.groupby(keys, **IN_ORDER)["value"].mean().unstack(list(columns), sort=False)


def seed_means(values: pd.DataFrame) -> pd.DataFrame:
    """Seeds x columns of a wide frame."""
    return values.groupby(level="seed").mean()


def resampled(values: pd.DataFrame, resamples: int) -> np.ndarray:
    """(resamples, columns): means of a wide frame whose seeds and units are drawn with replacement, independently, the
    same for all columns (crossed bootstrap, Owen 2007); of one seed its units alone. NaN of a column with values in
    fewer than two units, or none among those drawn."""
    values = values.dropna(how="all")
    if values.empty:
        return np.full((1, values.shape[1]), math.nan)
    levels, parts = values.index.remove_unused_levels().levels[:2], values.groupby(level=["seed", "unit"])
    shape, every = (*map(len, levels), values.shape[1]), pd.MultiIndex.from_product(levels)
    cube = [one.reindex(every, fill_value=0).to_numpy(float).reshape(shape) for one in (parts.sum(), parts.count())]
    sums, sizes = (one.swapaxes(0, 1).reshape(shape[1], -1) for one in cube)  # (units, seeds * columns)
    single = cube[1].any(0).sum(0) < 2
    chosen, found = np.concatenate([*draws(shape[0], resamples, seed=1)]), []
    for times in map(np.asarray, draws(shape[1], resamples)):
        with np.errstate(invalid="ignore"):
            one = ((times @ sums) / (times @ sizes)).reshape(-1, shape[0], shape[2])
            weights = chosen[: len(times), :, None] * np.isfinite(one)
            found.append((weights * np.nan_to_num(one)).sum(1) / weights.sum(1))
        chosen = chosen[len(times) :]
    return np.where(single, math.nan, np.concatenate(found))


def interval(drawn: np.ndarray, margin: float = 0.0) -> pd.DataFrame:
    """low, high (95 %) and p (two-sided, of a mean of `margin`) of each column of resampled means."""
    drawn, (low, high) = pd.DataFrame(drawn), pd.DataFrame(drawn).quantile([0.025, 0.975]).to_numpy()
    tail = np.minimum((drawn <= margin + SAME).sum(), (drawn >= margin - SAME).sum())
    p = (2 * (1 + tail) / (1 + drawn.count())).clip(upper=1).where(drawn.count() > 0)
    return pd.DataFrame({"low": low, "high": high, "p": p})


def summary(
    table: pd.DataFrame, by: Sequence[str] = ("label", "metric", "judge", "k"), resamples: int = 2000
) -> pd.DataFrame:
    """Per data set and `by`: value, the mean over seeds of the means over images, each the mean over what `by` leaves
    out; low and high, its 95 % interval (`resampled`); used and undefined, numbers of images with a value of some seed
    and with none; seeds, their number."""
    found, keys = [], ["dataset", *by]
    for (dataset, *_), part in table.groupby(["dataset", "metric", "judge"], **IN_ORDER):
        values, images = wide(part, by), part.groupby([*by, "image"], **IN_ORDER)["value"].count()
        seeds, used = seed_means(values), (images > 0).groupby(level=list(by), **IN_ORDER).agg(["sum", "size"])
        one = interval(resampled(values, resamples)).set_index(values.columns).drop(columns="p")
        one = one.assign(value=seeds.mean(), used=used["sum"], undefined=used["size"] - used["sum"])
        found.append(one.assign(seeds=seeds.count(), dataset=dataset).reset_index())
    columns = [*keys, "value", "low", "high", "used", "undefined", "seeds"]
    kinds = {key: table[key].dtype for key in keys}
    return (pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns))[columns].astype(kinds)


def by_seed(table: pd.DataFrame, by: Sequence[str] = ("label", "metric", "judge", "k")) -> pd.DataFrame:
    """Per data set, `by` and seed: value, the mean over images, as in `summary`."""
    keys = ["dataset", *by, "seed"]
    images = table.groupby([*keys, "image"], **IN_ORDER)["value"].mean()
    return images.groupby(level=keys, **IN_ORDER).mean().reset_index()


def holm(p: pd.Series) -> pd.Series:
    """p-values adjusted for their number m: max_{j <= i} min(1, (m - j + 1) p_(j)); a NaN is no test (Holm 1979)."""
    ordered = p.dropna().sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).clip(upper=1).cummax().reindex(p.index)


def compare(
    table: pd.DataFrame, metric: str, k: float | str = 0, resolution: str = "image", resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Every two maps of a data set by a metric where more is better, on the same images and seeds.

    A row per pair, a the one with the higher mean: data, metric, a, b, difference (mean of a - b), low, high and p of
    `interval`, p_holm (over all pairs of the data set), used (images), verdict on a: "better" or "worse" where p_holm
    < 0.05, else "no difference" (none shown, not: none there); "undefined" without a p.
    """
    found = []
    for dataset, part in at(table, metric, k, resolution=resolution).groupby("dataset", **IN_ORDER):
        x = wide(part, ["label"]).dropna(axis=1, how="all")
        pairs = [*combinations(seed_means(x).mean().sort_values(ascending=False, kind="stable").index, 2)]
        if pairs:
            d = pd.DataFrame({i: x[a] - x[b] for i, (a, b) in enumerate(pairs)})
            one = interval(resampled(d, resamples)).assign(data=dataset, metric=metric, difference=seed_means(d).mean())
            one[["a", "b"]], one["p_holm"] = pairs, holm(one["p"])
            kinds = [one["p"].isna(), one["p_holm"] >= 0.05, one["difference"] > 0]
            one["verdict"] = np.select(kinds, ["undefined", "no difference", "better"], "worse")
            found.append(one.assign(used=d.notna().groupby(level="image").any().sum())[PAIRS])
    return pd.concat(found or [pd.DataFrame(columns=PAIRS)], ignore_index=True)


def results(table: pd.DataFrame) -> pd.DataFrame:
    """A row per model and map: data, model, accuracy, map, and means of localisation over images and seeds."""
    keys, models = ["dataset", "variant", "method"], table[["dataset", "variant", "method", "main"]].drop_duplicates()
    found = compared(models)[keys].drop_duplicates(ignore_index=True)
    columns = {"accuracy": ("correct", 0), "top-1 precision": ("topk_precision", 1)}
    columns |= {name.replace("_", " "): (name, 0) for name in ("activation_precision", "pointing_game")}
    for column, which in {**columns, "POMPOM": ("pompom", 0)}.items():
        rows, by = at(table, *which), keys[: 2 if column == "accuracy" else 3]
        rows = rows[rows["main"]] if column == "accuracy" else compared(rows)
        means = by_seed(rows, by[1:]).groupby(by, **IN_ORDER)["value"].mean()
        found = found.merge(means.rename(column).reset_index(), how="left")
    found.insert(3, "map", [METHODS[name].label for name in found.pop("method")])
    return found.rename(columns={"dataset": "data", "variant": "model"})
