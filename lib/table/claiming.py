"""The papers' claims (notebooks/claims.yaml), each tested on every data set where the runs allow it.

A claim is a difference a - b of two sets of values, each a variant's, method's and metric's (at k, judged by own |
twin), of the same images; with `label`, of the images of two classes. Of several methods of b the best on average is
taken, on the images that it is then tested on, which favours it. A claim is *supported* on a data set if the 95 %
interval of the mean difference (times `sign`; seeds averaged image by image) lies above `margin` and every seed agrees,
*not supported* if it lies below and every seed agrees, else *inconclusive*. The intervals of the many claims are not
corrected for their number.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lib import PROJECT
from lib.table.comparing import by_image, interval
from lib.table.loading import at, label

CLAIMS = PROJECT / "notebooks/claims.yaml"
CLAIM = {"name", "text", "source", "how", "a", "b"}, {"sign", "margin"}  # what an entry has and may have
VALUES = {"variant", "method", "metric"}, {"k", "judge", "label"}  # its a and b


def read_claims(path: str | Path = CLAIMS) -> list[dict[str, Any]]:
    """The entries of a YAML; ValueError naming file, entry and what is wrong where one is no claim."""
    entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for i, entry in enumerate(entries, 1):
        for what, (needed, more) in {"": CLAIM, "a": VALUES, "b": VALUES}.items():
            given = set(entry[what] if what else entry)
            if wrong := sorted((needed - given) | (given - needed - more)):
                said = f"expected {', '.join(sorted(needed))} and perhaps {', '.join(sorted(more))}"
                raise ValueError(f"{path}: entry {i}: {what} {wrong[0]}: {said}, got {sorted(given)}")
    return entries


def values(table, variant: str, method: str, metric: str, k=0, judge="own", label: int | None = None) -> pd.DataFrame:
    """(unit, image) x seed, of all images or of those of a class."""
    rows = at(table[(table["variant"] == variant) & (table["method"] == method)], metric, k, judge)
    labels = at(table, "label")
    kept = rows if label is None else rows[rows["image"].isin(labels[labels["value"] == label]["image"])]
    return by_image(kept, "seed")


def tested(table: pd.DataFrame, claim: dict[str, Any]) -> dict[str, Any] | None:
    """A claim's difference on one data set, with interval and verdict; None where the runs lack a or b."""
    sign, margin = claim.get("sign", 1), claim.get("margin", 0.0)
    a, methods = sign * values(table, **claim["a"]), pd.Series(claim["b"]["method"])  # one, or several
    others = {method: sign * values(table, **claim["b"] | {"method": method}) for method in methods}
    others = {method: b for method, b in others.items() if b.notna().any(axis=None)}
    if a.empty or not others:
        return None
    best = max(others, key=lambda method: others[method].mean().mean())
    b = others[best]
    if "label" in claim["a"]:
        seeds, bounds = a.mean() - b.mean(), interval(a.mean(axis=1), b.mean(axis=1))
        difference, used = a.mean(axis=1).mean() - b.mean(axis=1).mean(), len(a) + len(b)
    else:
        d = (a - b).dropna(how="all").dropna(how="all", axis=1)
        seeds, bounds, difference, used = d.mean(), interval(d.mean(axis=1)), d.mean(axis=1).mean(), len(d)
    low, high = bounds
    kind = "supported" if low > margin and (seeds > margin).all() else "inconclusive"
    kind = "not supported" if high < margin and (seeds < margin).all() else kind
    said = {"against": label(best, claim["b"]["variant"]), "difference": difference, "low": low, "high": high}
    return {**said, "used": used, "verdict": kind} if used else None


def claims(table: pd.DataFrame, path: str | Path = CLAIMS) -> pd.DataFrame:
    """A row per claim and data set where it can be tested: claim, dataset, against, difference (times the claim's
    sign), low, high, used (images), verdict; of the `main` rows. Of a variant with several recipes none is: it says so.
    """
    several = table["variant"].astype(str)[table["main"] & table["variant"].str.contains("(", regex=False)]
    if names := ", ".join(several.unique()):
        print(f"No claim is tested of {names}: several recipes of a variant; load those to be tested alone.")
    parts = dict(list(table[table["main"]].groupby("dataset", observed=True, sort=False)))
    pairs = [(claim, dataset) for claim in read_claims(path) for dataset in parts]
    made = [({"claim": claim["name"], "dataset": dataset}, tested(parts[dataset], claim)) for claim, dataset in pairs]
    found = [about | result for about, result in made if result]
    return pd.DataFrame(found, columns=["claim", "dataset", "against", "difference", "low", "high", "used", "verdict"])


def claims_table(found: pd.DataFrame, path: str | Path = CLAIMS) -> pd.DataFrame:
    """A row per claim: claim, paper, tested here, difference [95 %] by data set, verdict by data set."""
    rows = []
    for claim in read_claims(path):
        own, several = found[found["claim"] == claim["name"]], not isinstance(claim["b"]["method"], str)
        cells = [f"{r.dataset} {r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in own.itertuples()]
        cells = [f"{cell} ({name})" if several else cell for cell, name in zip(cells, own["against"], strict=True)]
        kinds = own.groupby("verdict", sort=False)["dataset"].agg(", ".join)
        verdict = "; ".join(f"**{kind}**: {names}" for kind, names in kinds.items()) or "not tested"
        rows.append((claim["text"], claim["source"], claim["how"], "; ".join(cells), verdict))
    return pd.DataFrame(rows, columns=["claim", "paper", "tested here", "difference [95 %]", "verdict"])
