import math

import pytest
import torch
from made_runs import made_run

from lib import claims
from lib.results import Results

PATIENTS = 8 * [""]


def judged(rows, margin=0.0, groups=None):
    return claims.judge(torch.tensor(rows, dtype=torch.float32), margin, groups)


@pytest.mark.parametrize(
    ("rows", "margin", "verdict"),
    [
        ([[0.2, 0.3, 0.2, 0.3]], 0.0, "supported"),
        ([[-0.2, -0.3, -0.2, -0.3]], 0.0, "not supported"),
        ([[-1.0, 1.0, -1.0, 1.0]], 0.0, "inconclusive"),
        ([[0.0, 0.0, 0.0, 0.0]], 0.0, "inconclusive"),  # no difference is not a higher value
        ([[0.0, 0.0, 0.0, 0.0]], -0.02, "supported"),  # but not lower by more than the margin
        ([[-0.05, -0.05, -0.05, -0.05]], -0.02, "not supported"),
        ([[0.9, 0.9, 0.9, 0.9], [-0.1, -0.1, -0.1, -0.1]], 0.0, "inconclusive"),  # one seed disagrees
        ([[math.nan] * 4], 0.0, "undefined"),
    ],
)
def test_judge(rows, margin, verdict):
    assert judged(rows, margin)[-1] == verdict


def test_judge_leaves_undefined_images_out_and_counts_the_others():
    point, low, high, used, verdict = judged([[0.5, math.nan, 0.5], [1.0, math.nan, 0.5]])
    assert (point, used, verdict) == (pytest.approx(0.625), 2, "supported")
    assert 0.5 <= low <= point <= high <= 0.75


def test_judge_needs_more_than_one_patient():
    *_, verdict = judged([[0.5, 0.6, 0.7]], groups=["a", "a", "a"])
    assert verdict == "inconclusive"


def runs(evidence, gradcam, other=0.0):
    """A black box with two post-hoc methods, and a dense SoftCAM, by top-1 precision of eight images."""
    mask = torch.ones(8, dtype=torch.bool)
    explanations = {"gradcam": {}, "layercam": {}, "random": {}}
    values = {"gradcam/top1": gradcam, "layercam/top1": [other] * 8, "random/top1": [1.0] * 8}
    correct = {"classification/correct": [1.0] * 8}
    black = made_run("bb", values=values | correct, explanations=explanations, patients=PATIENTS)
    soft = made_run("sc", "softcam", values={"evidence/top1": evidence} | correct, patients=PATIENTS)
    for run in (black, soft):
        run.values["images/has_mask"] = mask
    return Results([black, soft])


def verdicts(results):
    return {verdict.claim: verdict for verdict in claims.test_claims(results)}


def test_the_localisation_claim_is_tested_against_the_best_post_hoc_method():
    found = verdicts(runs([1.0] * 8, [0.5] * 8, other=0.25))["localisation, dense"]
    assert (found.verdict, found.difference, found.used) == ("supported", pytest.approx(0.5), 8)
    assert found.against == "Grad-CAM of the black box"
    found = verdicts(runs([0.0] * 8, [0.5] * 8, other=0.75))["localisation, dense"]
    assert (found.verdict, found.against) == ("not supported", "Layer-CAM of the black box")


def test_a_baseline_is_no_post_hoc_method():
    assert claims.best_post_hoc(runs([1.0] * 8, [0.5] * 8), "shapes", "top1") == "gradcam"
    assert claims.best_post_hoc(runs([1.0] * 8, [0.5] * 8), "shapes", "top1", sign=-1) == "layercam"
    assert claims.best_post_hoc(Results([made_run("bb")]), "shapes", "top1") is None


def test_claims_without_their_runs_are_not_tested():
    found = verdicts(runs([1.0] * 8, [0.5] * 8))
    assert set(found) == {"localisation, dense", "accuracy, dense"}
    assert found["accuracy, dense"].verdict == "supported"


def test_local_evidence_agrees_with_the_label():
    values = {"evidence/disease_positive_proportion": [0.9, 0.8, 0.7, 0.8, 0.1, 0.2, 0.1, 0.2]}
    run = made_run("sc", "softcam", values=values, patients=PATIENTS)
    run.values["images/label"] = torch.tensor([1] * 4 + [0] * 4)
    (found,) = claims.test_claims(Results([run]))
    assert (found.claim, found.verdict, found.difference) == ("consistency", "supported", pytest.approx(0.65))
    run.values["images/label"] = torch.ones(8, dtype=torch.long)
    assert claims.test_claims(Results([run])) == []


def test_the_table_has_every_claim_and_says_where_it_holds():
    table = claims.claims_table(claims.test_claims(runs([1.0] * 8, [0.5] * 8)))
    assert len(table) == len(claims.CLAIMS)
    row = table[table["claim"] == "Evidence maps localise better than post-hoc maps"].iloc[0]
    assert row["verdict"] == "**supported**: shapes"
    assert row["difference [95 %]"] == "shapes +0.500 [+0.500, +0.500] (Grad-CAM)"
    assert (table["verdict"] == "not tested").sum() == len(claims.CLAIMS) - 2


def test_claims_have_names_of_their_own():
    assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)


def test_the_interval_of_an_unpaired_difference_counts_both_groups():
    rows = torch.rand(1, 60, 2, generator=torch.Generator().manual_seed(0))
    rows[..., 1] = (torch.arange(60) % 2).float()
    point, low, high, used, _ = claims.judge(rows, 0.0)
    sick, well = rows[0, 1::2, 0], rows[0, ::2, 0]
    assert (point, used) == (pytest.approx((sick.mean() - well.mean()).item(), abs=1e-6), 60)
    error = (sick.var() / 30 + well.var() / 30).sqrt().item()  # normal approximation
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert claims.judge(torch.cat([rows, rows]), 0.0)[:3] == pytest.approx((point, low, high))


def test_two_architectures_of_a_data_set_are_judged_apart():
    black = {"correct": [1.0] * 8}
    made = []
    for architecture in ("resnet18", "resnet50"):
        for name, method in (("bb", "blackbox"), ("sc", "softcam")):
            values = {f"classification/{key}": value for key, value in black.items()}
            run = made_run(f"{architecture}_{name}", method, values=values, patients=PATIENTS)
            run.recipe = run.recipe.replace(architecture=architecture)
            made.append(run)
    found = claims.test_claims(Results(made))
    assert [(v.claim, v.dataset) for v in found] == [
        ("accuracy, dense", "shapes, resnet18"), ("accuracy, dense", "shapes, resnet50"),
    ]  # fmt: skip
