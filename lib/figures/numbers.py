"""Which numbers of `metrics.json` the figures compare, and in which direction they are better."""

from dataclasses import dataclass

import numpy as np

from lib.results import Results, Shown


@dataclass(frozen=True)
class Number:
    """A metric of a map as one number: `key` of metrics.json; of a curve the point `at`, or its mean (None).

    `less`: another key, whose per-image values are subtracted; `words`: where the better values lie, in words.
    """

    label: str
    key: str
    better: str = "higher"
    at: int | None = None
    less: str | None = None
    words: str = "better"

    def of(self, results: Results, dataset: str, method: str, variant: str) -> Shown | None:
        """The number of a method's map of a variant, with its bounds; those of a mean are the means of the bounds."""
        if self.less:
            return results.measured(dataset, variant, method, self.key, self.less)
        found = results.value(dataset, variant, "explanations", method, self.key)
        if not found or not isinstance(found["value"], list):
            return found
        if self.at is not None and self.at >= len(found["value"]):
            return None
        parts = {key: np.array(found[key], dtype=float) for key in ("value", "low", "high")}
        reduced = {key: float(part.mean() if self.at is None else part[self.at]) for key, part in parts.items()}
        used = found.get("used")
        return {**reduced, "used": used[0] if isinstance(used, list) else used}

    def raw(self, results: Results, dataset: str, pairs: list[tuple[str, str]]) -> dict[str, Shown]:
        """'method | variant' -> the whole curve."""
        found = {f"{m} | {v}": results.value(dataset, v, "explanations", m, self.key) for m, v in pairs}
        return {key: value for key, value in found.items() if value}

    def series(self, results: Results, dataset: str, pairs: list[tuple[str, str]]) -> dict[str, Shown]:
        """'method | variant' -> the number, of those pairs of method and variant that have it."""
        found = {f"{m} | {v}": self.of(results, dataset, m, v) for m, v in pairs}
        return {key: value for key, value in found.items() if value}

    @property
    def arrow(self) -> str:
        return f"{self.words} →" if self.better == "higher" else f"← {self.words}"


LOCALISATION = (
    Number("top-1", "topk_precision", at=0),
    Number("top-5", "topk_precision", at=4),
    Number("activation\nprecision", "activation_precision"),
    Number("activation\nsensitivity", "activation_sensitivity"),
    Number("weighting\ngame", "weighting_game"),
    Number("pointing\ngame", "pointing_game"),
    Number("rank\naccuracy", "relevance_rank_accuracy"),
    Number("best IoU", "best_iou"),
)
FAITHFULNESS = (
    Number("AOPC,\nMoRF − LeRF", "aopc", less="aopc_lerf"),
    Number("deletion\narea", "deletion_area", "lower"),
    Number("insertion\narea", "insertion_area"),
    Number("sufficiency", "sufficiency", "lower"),
    Number("ROAD", "road", "lower"),
    Number("faithfulness\ncorrelation", "faithfulness_correlation"),
)
COMMON = (Number("AOPC", "aopc", at=-1), Number("deletion area", "deletion_area", "lower"))
PROPERTIES = (
    Number("Gini\ncoefficient", "gini", words="sparser"),
    Number("stability\nunder noise", "stability"),
    Number("equivariance\nunder flips", "flip_equivariance"),
    Number("error of\nthe sum", "completeness", "lower"),
)
