"""The papers' claims, each tested on every data set where the runs allow it, written as a table by 05_figures.

A claim is a difference of two sets of per-image values (`values.safetensors`), averaged over seeds image by image. It
is *supported* on a data set if the 95 % interval of the mean difference lies beyond the claim's margin and every single
seed agrees, *not supported* if the interval lies on the other side and every seed agrees, else *inconclusive*. The best
post-hoc method is chosen on the images that it is then tested on, which favours the post-hoc side; the intervals of the
many claims are not corrected for their number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lib.explain import METHODS
from lib.metrics import bootstrap_ci
from lib.results import Results

SOFTCAM = "Djoumessi & Berens 2025"
XML = "Rio-Torto et al. 2020"
COMPARED = {  # the post-hoc methods that each paper compares with
    "SoftCAM": ("gradcam", "scorecam", "layercam", "guided_backprop", "integrated_gradients", "smooth_gradcam"),
    "Explainer": ("saliency", "input_x_gradient", "integrated_gradients", "deconvolution", "guided_backprop",
                  "guided_gradcam", "lrp"),
}  # fmt: skip
Difference = tuple[Tensor, list[str] | None, str]  # (S, N) per seed and image (see `judge`), patients, against what


class Verdict(NamedTuple):
    """What a claim came to on one data set."""

    claim: str
    dataset: str
    against: str
    difference: float
    low: float
    high: float
    used: int
    verdict: str


@dataclass(frozen=True)
class Claim:
    """One claim: `test(results, dataset)` gives the difference that must exceed `margin`, or None if it cannot."""

    name: str
    text: str
    source: str
    how: str
    test: Callable[[Results, str], Difference | None]
    margin: float = 0.0


def label(variant: str, method: str) -> str:
    """'Grad-CAM of the black box', or the variant where the map or the accuracy is its own."""
    own = method == "classification" or method in ("evidence", "explainer")
    return variant if own else f"{METHODS[method].label} of the {variant}"


def _between(a: tuple[str, str, str], b: tuple[str, str, str], sign: int = 1) -> Callable:
    """Test of a - b (times `sign`), each (variant, method, metric) on the same images and seeds."""

    def test(results: Results, dataset: str) -> Difference | None:
        found = results.differences(dataset, a, b)
        return None if found is None else (sign * found, results.patients(dataset, found.shape[1]), label(*b[:2]))

    return test


def best_post_hoc(
    results: Results, dataset: str, metric: str, sign: int = 1, among: tuple[str, ...] = COMPARED["SoftCAM"]
) -> str | None:
    """The method `among` those of the black box with the best mean of a metric on a data set; None without one.

    It is chosen on the images that it is then tested on, which favours the post-hoc side.
    """
    found = {}
    for method, variant in results.explained(dataset):
        if variant == "black box" and method in among:
            values = results.values(dataset, variant, method, metric)
            means = [float(v.nanmean()) for v in values.values()]
            if means and all(isfinite(mean) for mean in means):
                found[method] = sign * sum(means) / len(means)
    return max(found, key=found.__getitem__) if found else None


def _beats_post_hoc(variant: str, method: str, metric: str, sign: int = 1, own: str | None = None) -> Callable:
    """Test against the best of the paper's post-hoc methods on the black box; `own`: the in-model map's metric."""
    among = COMPARED[variant.split()[0]]

    def test(results: Results, dataset: str) -> Difference | None:
        best = best_post_hoc(results, dataset, metric, sign, among)
        if best is None:
            return None
        return _between((variant, method, own or metric), ("black box", best, metric), sign)(results, dataset)

    return test


def _diseased_over_healthy(variant: str) -> Callable:
    """Test that the share of positive evidence is higher with a lesion than without (unpaired)."""

    def test(results: Results, dataset: str) -> Difference | None:
        shares = results.values(dataset, variant, "evidence", "disease_positive_proportion")
        if not shares:
            return None
        on = torch.stack(list(shares.values()))
        sick = results.diseased(dataset, on.shape[1])
        if not sick.any() or sick.all():
            return None
        rows = torch.stack([on, sick.float().expand_as(on)], 2)
        return rows, results.patients(dataset, on.shape[1]), "healthy images"

    return test


CLAIMS = (
    Claim("accuracy, dense", "SoftCAM is as accurate as its black box", f"{SOFTCAM}, abstract, results",
          "accuracy on the test split, not more than 2 points lower",
          _between(("SoftCAM dense", "classification", "correct"), ("black box", "classification", "correct")), -0.02),
    Claim("accuracy, sparse", "The sparsity penalty costs no accuracy", f"{SOFTCAM}, results",
          "accuracy on the test split, not more than 2 points lower",
          _between(("SoftCAM sparse", "classification", "correct"), ("black box", "classification", "correct")), -0.02),
    Claim("localisation, dense", "Evidence maps localise better than post-hoc maps", f"{SOFTCAM}, localisation",
          "top-1 precision against the best of the paper's post-hoc methods",
          _beats_post_hoc("SoftCAM dense", "evidence", "top1")),
    Claim("precision, dense", "Evidence maps are more precise than post-hoc maps", f"{SOFTCAM}, localisation",
          "activation precision against the best of the paper's post-hoc methods",
          _beats_post_hoc("SoftCAM dense", "evidence", "activation_precision")),
    Claim("precision, sparse over dense", "The sparse maps are more precise than the dense ones",
          f"{SOFTCAM}, localisation", "activation precision",
          _between(("SoftCAM sparse", "evidence", "activation_precision"),
                   ("SoftCAM dense", "evidence", "activation_precision"))),
    Claim("deletion, dense", "Removing what the evidence map ranks highest hurts more than with post-hoc maps",
          f"{SOFTCAM}, faithfulness", "area under the deletion curve, lower is better; each map on its own model",
          _beats_post_hoc("SoftCAM dense", "evidence", "deletion_area", -1)),
    Claim("deletion, one model", "The same, all maps judged by one model", f"{SOFTCAM}, faithfulness; our control",
          "area under the deletion curve, all maps on the black box, lower is better",
          _beats_post_hoc("SoftCAM dense", "evidence", "deletion_area", -1, "common_deletion_area")),
    Claim("consistency", "Local evidence agrees with the label", f"{SOFTCAM}, local-to-global consistency",
          "share of positive evidence for the disease, diseased less healthy images",
          _diseased_over_healthy("SoftCAM dense")),
    Claim("TTE-CAM", "Without training, the black box's own map localises as its Grad-CAM", "TTE-CAM, arXiv 2603.26885",
          "top-1 precision, not more than 2 points lower",
          _between(("black box", "tte_cam", "top1"), ("black box", "gradcam", "top1")), -0.02),
    Claim("accuracy, hybrid", "The joint training keeps the classifier's accuracy", f"{XML}, results",
          "accuracy after phase 3 against phase 1, not more than 2 points lower",
          _between(("Explainer hybrid", "classification", "correct"),
                   ("Explainer hybrid", "classification", "correct_classifier")), -0.02),
    Claim("AOPC, hybrid", "The hybrid explanation has a higher AOPC than post-hoc maps", f"{XML}, AOPC figure",
          "AOPC at the last step, each map on its own model",
          _beats_post_hoc("Explainer hybrid", "explainer", "aopc")),
    Claim("AOPC, one model", "The same, all maps judged by one model", f"{XML}, AOPC figure; our control",
          "AOPC at the last step, all maps on the black box",
          _beats_post_hoc("Explainer hybrid", "explainer", "aopc", own="common_aopc")),
    Claim("AOPC, hybrid over unsupervised", "The hybrid explanation has a higher AOPC than the unsupervised one",
          f"{XML}, AOPC figure", "AOPC at the last step, each on its own model",
          _between(("Explainer hybrid", "explainer", "aopc"), ("Explainer unsupervised", "explainer", "aopc"))),
    Claim("POMPOM", "The hybrid loss leaves less outside the annotated region", f"{XML}, POMPOM",
          "POMPOM, hybrid against unsupervised, lower is better",
          _between(("Explainer hybrid", "explainer", "pompom"), ("Explainer unsupervised", "explainer", "pompom"), -1)),
    Claim("localisation, hybrid", "The hybrid heatmap lies on the object", f"{XML}, qualitative results",
          "activation precision against the best of the paper's post-hoc methods",
          _beats_post_hoc("Explainer hybrid", "explainer", "activation_precision")),
)  # fmt: skip


def unpaired(rows: Tensor) -> Tensor:
    """Mean value of the diseased less that of the healthy, of rows (N, 2) of value and 1 or 0."""
    return rows[rows[:, 1] == 1, 0].mean() - rows[rows[:, 1] == 0, 0].mean()


def judge(difference: Tensor, margin: float, groups: list[str] | None = None, resamples: int = 2000) -> tuple:
    """(mean, low, high, images used, verdict) of differences (S, N) of S seeds and N images; NaNs are left out.

    Of (S, N, 2), a value and whether the image is diseased: the `unpaired` difference, both groups resampled.
    """
    if difference.ndim == 3:
        found = bootstrap_ci(difference.nanmean(0), groups, unpaired, resamples=resamples)
        seeds = torch.stack([unpaired(rows[~rows.isnan().any(1)]) for rows in difference])
    else:
        found = bootstrap_ci(difference.nanmean(0), groups, resamples=resamples)
        seeds = difference.nanmean(1)
    verdict = "inconclusive"
    if found.low > margin and (seeds > margin).all():
        verdict = "supported"
    elif found.high < margin and (seeds < margin).all():
        verdict = "not supported"
    elif found.used == 0:
        verdict = "undefined"
    return found.point, found.low, found.high, found.used, verdict


def test_claims(results: Results) -> list[Verdict]:
    """Every claim on every data set where the runs that it compares exist."""
    rows = []
    for claim in CLAIMS:
        for dataset in results.datasets:
            found = claim.test(results, dataset)
            if found is not None and found[0].numel():
                difference, groups, against = found
                rows.append(Verdict(claim.name, dataset, against, *judge(difference, claim.margin, groups)))
    return rows


test_claims.__test__ = False  # not one of pytest's


def claims_table(verdicts: list[Verdict]) -> pd.DataFrame:
    """One row per claim: claim, where, how tested, result by data set with interval, verdict by data set."""
    rows = []
    for claim in CLAIMS:
        own = [v for v in verdicts if v.claim == claim.name]
        marks = {kind: [v.dataset for v in own if v.verdict == kind] for kind in dict.fromkeys(v.verdict for v in own)}
        results = "; ".join(
            f"{v.dataset} {v.difference:+.3f} [{v.low:+.3f}, {v.high:+.3f}]"
            + (f" ({v.against.partition(' of the')[0]})" if " of the black box" in v.against else "") for v in own
        )  # fmt: skip
        verdict = "; ".join(f"**{kind}**: {', '.join(names)}" for kind, names in marks.items()) or "not tested"
        rows.append({"claim": claim.text, "paper": claim.source, "tested here": claim.how,
                     "difference [95 %]": results, "verdict": verdict})  # fmt: skip
    return pd.DataFrame(rows)
