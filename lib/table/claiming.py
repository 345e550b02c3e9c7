"""The papers' claims (notebooks/claims.yaml), each tested on every data set where the runs allow it.

A claim is a difference a - b of a metric (times `sign`: -1 where less is better) on the same images and seeds, each a
variant's map, judged by own | twin; `label`: of evidence maps, those of an image's own class or of others. Of several
methods of b the best on the validation images of choice is taken, over all seeds. A claim is *supported* on a
data set if the difference lies above `margin`, in every seed too, with p_holm < .05 (`interval`, over all tests of the
table), *not supported* if it lies below likewise, else *inconclusive*; *not testable here*: see `untestable`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from lib import PROJECT
from lib.table.comparing import IN_ORDER, RESAMPLES, holm, interval, resampled, seed_means, wide
from lib.table.loading import at, label

CLAIMS = PROJECT / "notebooks/claims.yaml"
CLAIM = {"name", "text", "source", "how", "metric", "a", "b"}, {"k", "sign", "margin", "read"}  # needed, and optional
SIDE = {"variant", "method"}, {"judge", "label"}  # of a and b
CURVES = {"aopc": "perturbation_curve", "deletion_area": "deletion_curve"}  # what these measures are made of
COLUMNS = ["claim", "dataset", "read", "against", "chosen", "a", "b", "margin", "difference", "low", "high", "p",
           "p_holm", "used", "reason", "verdict"]  # fmt: skip
LESS = [[1.0], [-1.0]]  # (columns a, b) @ LESS: a - b
Part = dict[str, pd.DataFrame]  # the rows of a data set by metric


def read_claims(path: str | Path = CLAIMS) -> list[dict[str, Any]]:
    """The entries of a YAML; ValueError naming file, entry and what is wrong where one is no claim."""
    entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for i, entry in enumerate(entries, 1):
        for what, (needed, more) in {"": CLAIM, "a": SIDE, "b": SIDE}.items():
            given = set(entry[what] if what else entry)
            if wrong := sorted((needed - given) | (given - needed - more)):
                said = f"expected {', '.join(sorted(needed))} and perhaps {', '.join(sorted(more))}"
                raise ValueError(f"{path}: entry {i}: {what} {wrong[0]}: {said}, got {sorted(given)}")
    return entries


def values(part: Part, claim: dict[str, Any], side: dict[str, Any], read: str, of: str = "main") -> pd.DataFrame:
    """A side's values times the claim's sign: (seed, unit, image) x those of its methods that have any."""
    rows = at(part[claim["metric"]], claim["metric"], claim.get("k", 0), side.get("judge", "own"), read)
    methods = np.atleast_1d(side["method"]).tolist()
    rows = rows[rows[of] & (rows["variant"] == side["variant"]) & rows["method"].isin(methods)]
    if "label" in side:
        labels = part["label"].drop_duplicates("image").set_index("image")["value"]
        own = labels.reindex(rows["image"]).to_numpy() == rows["k"]
        rows = rows[own if side["label"] == "own" else ~own]
    return claim.get("sign", 1) * wide(rows, ["method"]).reindex(columns=methods).dropna(axis=1, how="all")


def untestable(part: Part, claim: dict[str, Any], read: str, both: pd.DataFrame, best: str) -> str:
    """Why the measure cannot tell a from b (the map `best`) here: a ceiling, a floor, a curve that does not fall on the
    black box or on b's model, a random map as good as the better of the two; empty where it can."""
    found, curve, b = seed_means(both).mean(), CURVES.get(claim["metric"]), claim["b"]
    if found.min() > 0.98:  # never where less is better: these are below 0
        return "ceiling: both above .98"
    if found.abs().max() < 0.02:
        return "floor: both below .02"
    if curve in part:
        rows = at(part[curve], curve, "all")
        rows = rows[rows["main"] & rows["variant"].isin(["black box", b["variant"]])]
        means = rows[rows["method"].isin(["random", best])].groupby(["variant", "method", "k"], observed=True)["value"]
        ends = means.mean().groupby(level=[0, 1], observed=True).agg(["first", "last"])
        for variant, method in ends.index[ends["last"] >= ends["first"]]:
            return f"the curve of {method} on the {variant} does not fall"
    side = claim[better := found.idxmax()]
    model = "black box" if side.get("judge") == "twin" else side["variant"]
    random = values(part, claim, {"variant": model, "method": "random"}, read)
    if not random.empty and b["method"] != "random":
        two = both[[better]].join(random).dropna()
        if len(two) and interval(resampled(two, 2000) @ LESS).loc[0, "low"] <= 0:
            return "a random map does as well as the best"
    return ""


def tested(part: Part, claim: dict[str, Any], read: str) -> dict[str, Any] | None:
    """A claim's difference on one data set; None where the runs lack a or b."""
    if claim["metric"] not in part:
        return None
    a, b = (values(part, claim, claim[side], read) for side in "ab")
    chosen = values(part, claim, claim["b"], read, "choice").reindex(columns=b.columns).dropna(axis=1, how="all")
    if a.empty or b.empty:
        return None
    best = seed_means(b if chosen.empty else chosen).mean().idxmax()
    both = pd.concat({"a": a.iloc[:, 0], "b": b[best]}, axis=1)
    both = both if "label" in claim["a"] else both.dropna()
    if not both.notna().any().all():
        return None
    means, margin = seed_means(both), claim.get("margin", 0.0)
    d, bounds = (means["a"] - means["b"]).dropna(), interval(resampled(both, RESAMPLES) @ LESS, margin).loc[0]
    against, variant = label(best, claim["b"]["variant"]), claim["b"]["variant"]
    sides, where = claim.get("sign", 1) * means.mean(), "tested" if chosen.empty else "validation"
    against = against if variant in (against, "black box") else f"{against} of {variant}"
    return {
        "against": against, "chosen": f"on the {where} images" if len(b.columns) > 1 else "", **sides,
        "margin": margin, "difference": d.mean(), **bounds, "used": both.index.unique("image").size,
        "reason": untestable(part, claim, read, both, best), **d.add_prefix("seed "),
    }  # fmt: skip


def claims(table: pd.DataFrame, path: str | Path = CLAIMS) -> pd.DataFrame:
    """A row per claim, data set and reading (image | evidence) where it can be tested: claim, dataset, read, against
    (the method of b), chosen (of several, on which images), a, b (means), margin, difference (a - b times the sign),
    low, high, p, p_holm, used (images), reason (of what is not testable), verdict, and seed 0 ... (the difference of
    each). Of a variant with several recipes none is tested: it says so."""
    table = table[table["main"] | table["choice"] & (table["sweep"] == "") & ~table["permuted"]]
    if several := ", ".join(name for name in table["variant"].unique() if "(" in name):
        print(f"No claim is tested of {several}: several recipes of a variant; load those to be tested alone.")
    parts, rows = dict([*table.groupby("dataset", **IN_ORDER)]), []
    parts = {dataset: dict([*part.groupby("metric", **IN_ORDER)]) for dataset, part in parts.items()}
    for claim in read_claims(path):
        asked = [(dataset, read) for dataset in parts for read in claim.get("read", ["image"])]
        found = [({"dataset": dataset, "read": read}, tested(parts[dataset], claim, read)) for dataset, read in asked]
        rows += [{"claim": claim["name"], **which, **result} for which, result in found if result]
    found = pd.DataFrame(rows, columns=None if rows else COLUMNS)
    seeds = found.filter(regex="^seed ").sub(found["margin"], axis=0)
    found["p_holm"] = holm(found["p"].astype(float))
    shown = found["p_holm"] < 0.05
    kinds = {"not testable here": found["reason"] != "", "supported": shown & (seeds.min(axis=1) > 0)}
    kinds["not supported"] = shown & (seeds.max(axis=1) < 0)
    found["verdict"] = np.select([*kinds.values()], [*kinds], "inconclusive")
    return found[[*COLUMNS, *seeds]]


def claims_table(found: pd.DataFrame, path: str | Path = CLAIMS) -> pd.DataFrame:
    """A row per claim: claim, paper, tested here, verdict by data set, with the difference, or why there is none; where
    two readings agree, once."""
    rows = []
    for claim in read_claims(path):
        kinds, own = {}, found[found["claim"] == claim["name"]]
        for (kind, dataset), part in own.groupby(["verdict", "dataset"], sort=False):
            said = part["reason"] if kind == "not testable here" else part["difference"].map("{:+.2f}".format)
            alike = len(part) == (own["dataset"] == dataset).sum()
            where = "" if alike else f", {part['read'].iloc[0]} resolution"
            kinds.setdefault(kind, []).append(f"{dataset}{where} ({' / '.join(dict.fromkeys(said))})")
        verdict = "; ".join(f"**{kind}**: {', '.join(names)}" for kind, names in kinds.items()) or "not tested"
        rows.append((claim["text"], claim["source"], claim["how"], verdict))
    return pd.DataFrame(rows, columns=["claim", "paper", "tested here", "verdict"])
