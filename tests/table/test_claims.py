import math

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from made_tables import SOFTCAM, rows, run, table, whole

from lib.explain import METHODS
from lib.metrics import bootstrap_ci
from lib.table import claims, claims_table, holm, read_claims
from lib.table.loading import VARIANTS

ONE = {
    **dict.fromkeys(("name", "text", "source", "how"), "x"),
    "metric": "top",
    "a": {"variant": "SoftCAM dense", "method": "evidence"},
    "b": {"variant": "black box", "method": "gradcam"},
}


@pytest.fixture
def judged(tmp_path):
    """The row of one claim on a table, on the differences SoftCAM less Grad-CAM, which is .5, of one list per seed."""

    def judge(*seeds, patients=None, **changes):
        runs = []
        for seed, values in enumerate(seeds):
            runs.append(run(rows("gradcam", "top", [0.5] * len(values), patients=patients), seed=seed))
            runs.append(run(rows("evidence", "top", np.add(values, 0.5), patients=patients), **SOFTCAM, seed=seed))
        path = tmp_path / "claims.yaml"
        path.write_text(yaml.safe_dump([{**ONE, **changes}]))
        return claims(table(*runs), path).iloc[0]

    return judge


@pytest.mark.parametrize(
    ("seeds", "given", "verdict"),
    [
        ([[0.2, 0.3, 0.2, 0.3]], {}, "supported"),
        ([[-0.2, -0.3, -0.2, -0.3]], {}, "not supported"),
        ([[-0.2, -0.3, -0.2, -0.3]], {"sign": -1}, "supported"),  # less can be better
        ([[-1.0, 1.0, -1.0, 1.0]], {}, "inconclusive"),
        ([[0.0, 0.0, 0.0, 0.0]], {}, "inconclusive"),  # no difference is not a higher value
        ([[0.0, 0.0, 0.0, 0.0]], {"margin": -0.02}, "supported"),  # but not lower by more than the margin
        ([[-0.05, -0.05, -0.05, -0.05]], {"margin": -0.02}, "not supported"),
        ([[0.9] * 4] * 9 + [[-0.1] * 4], {}, "inconclusive"),  # one seed of ten disagrees, though p is small
        ([[0.9] * 4] * 2 + [[0.01] * 4], {}, "supported"),  # seeds that differ, and agree
        ([[0.5, 0.6, 0.7]], {"patients": ["p"] * 3}, "inconclusive"),  # one patient proves nothing
    ],
)
def test_a_claim_is_judged_by_its_interval_its_margin_and_every_seed(judged, seeds, given, verdict):
    found = judged(*seeds, **given)
    assert found["verdict"] == verdict
    assert found["difference"] == pytest.approx(given.get("sign", 1) * np.mean(seeds))
    assert found.filter(like="seed ").tolist() == pytest.approx([given.get("sign", 1) * np.mean(one) for one in seeds])
    assert [found["a"], found["b"]] == pytest.approx([0.5 + np.mean(seeds), 0.5])


def test_undefined_images_are_left_out(judged):
    found = judged([0.5, math.nan, 0.5], [1.0, math.nan, 0.5])
    assert (found["difference"], found["used"]) == (pytest.approx(0.625), 2)
    assert (found["low"], found["high"]) == (0.5, 1)


def runs(evidence, gradcam, layercam=0.0, chosen=None):
    """A black box with post-hoc maps and a dense SoftCAM, by top-1 precision of eight images; `chosen`: that of
    Grad-CAM and Layer-CAM on validation images."""
    right, of = rows("classification", "correct", [0, 1] * 4), {"images": "stuvwxyz", "split": "val"}
    maps = {"gradcam": gradcam, "layercam": [layercam] * 8, "random": [0.1, 0] * 4}
    black = [rows(method, "topk_precision", values, k=1) for method, values in maps.items()]
    if chosen:
        black += [rows(m, "topk_precision", [v] * 8, k=1, **of) for m, v in zip(maps, chosen, strict=False)]
    soft = (
        right,
        rows("evidence", "topk_precision", evidence, k=1),
        rows("random", "topk_precision", maps["random"], k=1),
    )
    return table(run(right, *black), run(*soft, **SOFTCAM))


def localisation(*given, **more):
    return claims(runs(*given, **more)).set_index(["claim", "read"]).loc["localisation, dense", "image"]


def test_the_method_to_compare_with_is_the_best_on_validation_images():
    found = localisation([0.9] * 8, [0.5] * 8, layercam=0.25)
    assert (found["verdict"], found["difference"], found["used"]) == ("supported", pytest.approx(0.4), 8)
    assert (found["against"], found["chosen"]) == ("Grad-CAM", "on the tested images")
    found = localisation([0.2] * 8, [0.5] * 8, layercam=0.75)
    assert (found["verdict"], found["against"]) == ("not supported", "Layer-CAM")  # and no baseline
    found = localisation([0.9] * 8, [0.5] * 8, layercam=0.25, chosen=(0.1, 0.3))
    assert (found["against"], found["chosen"]) == ("Layer-CAM", "on the validation images")
    assert found["difference"] == pytest.approx(0.65)  # on the tested images


def test_what_cannot_be_told_apart_is_not_testable():
    for given, reason in (
        (([1.0] * 8, [0.99] * 8), "ceiling: both above .98"),
        (([0.0] * 8, [0.01] * 8), "floor: both below .02"),
        (([0.04] * 8, [0.02] * 8), "a random map does as well as the best"),  # .05 on average
        (([0.9] * 8, [0.02] * 8), ""),
    ):
        found = localisation(*given)
        assert (found["reason"], found["verdict"] == "not testable here") == (reason, reason != "")


@pytest.mark.parametrize(
    ("random", "best", "judge", "reason"),
    [
        ((0.9, 0.8), (0.9, 0.1), "own", ""),
        ((0.9, 0.9), (0.9, 0.1), "own", "the curve of random on the black box does not fall"),
        ((0.9, 0.8), (0.5, 0.6), "twin", "the curve of gradcam on the black box does not fall"),
    ],
)
def test_a_perturbation_that_does_not_lower_the_curve_tests_no_map(tmp_path, random, best, judge, reason):
    def curve(method, values):
        return [rows(method, "deletion_curve", [value] * 4, k=k) for k, value in enumerate(values)]

    area = rows("gradcam", "deletion_area", [0.5] * 4), rows("random", "deletion_area", [0.85, 0.9] * 2)
    black = run(*curve("random", random), *curve("gradcam", best), *area, rows("classification", "label", [0, 1]))
    soft = run(rows("evidence", "deletion_area", [0.2, 0.3] * 2, judge=judge), **SOFTCAM)
    path = tmp_path / "claims.yaml"
    claim = {**ONE, "metric": "deletion_area", "sign": -1, "a": {**ONE["a"], "judge": judge}}
    path.write_text(yaml.safe_dump([claim]))
    (found,) = claims(table(black, soft), path).itertuples()
    assert (found.reason, found.difference) == (reason, pytest.approx(0.25))
    assert found.verdict == ("not testable here" if reason else "supported")


def test_a_claim_is_judged_at_each_resolution_and_of_its_own_model():
    found = claims(whole(datasets=("shapes",))).set_index(["claim", "read"])
    assert set(found.index.get_level_values("read")) == {"image", "evidence"}
    one = found.loc["localisation, dense, same model"]
    assert one["against"].tolist() == ["LRP alpha1-beta0 of SoftCAM dense"] * 2 and one["a"].nunique() == 2
    assert found.loc[("on the object, top-1 over chance", "image"), "against"] == "Random of Explainer hybrid"
    twin = found.loc[[("deletion, own model", "image"), ("deletion, black box", "image")], "a"]
    assert twin.nunique() == 2  # another judge, other values
    assert len({name for name, _ in found.index}) == len(read_claims())  # every claim can be tested
    assert found.loc["precision, sparse over dense", "verdict"].tolist() == ["supported"] * 2
    assert found["p_holm"].tolist() == holm(found["p"]).tolist() and (found["p_holm"] >= 29 * 2 / 20001).all()


def test_claims_without_their_runs_are_not_tested():
    found = claims(runs([1.0] * 8, [0.5] * 8))
    assert set(found["claim"]) == {"localisation, dense", "accuracy, dense"}
    none = claims(table(run(rows("classification", "correct", [1.0]))))
    assert none.empty and list(none.columns) == list(found.columns)[: len(none.columns)]


def consistency(share, label, patients=None):
    """`share`: class -> positive proportions of its evidence."""
    parts = [
        rows("evidence", "positive_proportion", v, patients=patients, k=k, resolution="evidence")
        for k, v in share.items()
    ]
    found = claims(table(run(*parts, rows("classification", "label", label, patients=patients), **SOFTCAM)))
    return found[found["claim"] == "consistency"]


def test_local_evidence_agrees_with_the_label():
    share = [0.9, 0.8, 0.7, 0.8, 0.1, 0.2, 0.1, 0.2]
    (found,) = consistency({1: share}, [1] * 4 + [0] * 4).itertuples()
    assert (found.verdict, found.used, found.difference) == ("supported", 8, pytest.approx(0.65))
    assert consistency({1: share}, [1] * 8).empty
    three = {0: [0.9, 0.1, 0.3], 1: [0.2, 0.8, 0.1], 2: [0.0, 0.3, 0.7]}  # a row per class of three images
    (found,) = consistency(three, [0, 1, 2]).itertuples()
    assert (found.a, found.b) == (pytest.approx(0.8), pytest.approx((0.1 + 0.2 + 0.2) / 3))


@pytest.mark.parametrize("patients", [None, list("pqrspqrs")])
def test_the_interval_of_an_unpaired_difference_resamples_both_groups_together(patients):
    share, sick = np.random.default_rng(0).random(8), [1, 0, 0, 1, 1, 0, 1, 0]
    (found,) = consistency({1: share}, sick, patients).itertuples()

    def difference(both):
        return both[both[:, 1] == 1, 0].mean() - both[both[:, 1] == 0, 0].mean()

    both = torch.tensor(np.stack([share, sick], 1))
    expected = bootstrap_ci(both, patients, difference, resamples=4000)
    assert found.difference == pytest.approx(expected.point)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_a_difference_is_of_the_same_images_wherever_they_stand():
    black = run(rows("gradcam", "topk_precision", [0.1, 0.2, 0.3, 0.4], images="abcd", k=1))
    soft = run(rows("evidence", "topk_precision", [1.0, 0.5], images="db", k=1), **SOFTCAM)
    found = claims(table(black, soft)).iloc[0]
    assert (found["difference"], found["used"]) == (pytest.approx((0.6 + 0.3) / 2), 2)


def test_sweeps_and_permuted_labels_are_no_evidence():
    one = rows("classification", "correct", [1.0] * 4)
    swept = run(one, **SOFTCAM, sweep="p", parameter="l1", point=1.0)
    assert claims(table(run(one), swept)).empty
    assert claims(table(run(one), run(one, **SOFTCAM, permuted=True))).empty


def test_the_table_has_every_claim_and_says_where_it_holds():
    tested = claims(runs([0.9] * 8, [0.5] * 8))
    found = claims_table(tested)
    assert list(found.columns) == ["claim", "paper", "tested here", "verdict"] and len(found) == len(read_claims())
    row = found.set_index("claim").loc["SoftCAM localises lesions better than post-hoc methods"]
    assert row["verdict"] == "**supported**: shapes (+0.40)"
    assert (found["verdict"] == "not tested").sum() == len(found) - 2
    one = tested[tested["claim"] == "localisation, dense"].iloc[0]
    for other, said in (
        ({"difference": 0.126}, "**supported**: shapes (+0.40 / +0.13)"),
        ({"verdict": "inconclusive"}, "**supported**: shapes, image resolution (+0.40); "
         "**inconclusive**: shapes, evidence resolution (+0.40)"),
        ({"verdict": "not testable here", "reason": "why"}, "**supported**: shapes, image resolution (+0.40); "
         "**not testable here**: shapes, evidence resolution (why)"),
    ):  # fmt: skip
        two = pd.DataFrame([dict(one), {**one, "read": "evidence", **other}])
        assert claims_table(two)["verdict"].tolist()[2] == said


def test_the_papers_claims_name_what_there_is():
    given = read_claims()
    assert len({claim["name"] for claim in given}) == len(given) > 10
    named = {m for c in given for side in "ab" for m in np.atleast_1d(c[side]["method"]).tolist()}
    assert named <= set(METHODS) | {"classification"}
    assert {c[side]["variant"] for c in given for side in "ab"} <= set(VARIANTS)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {**ONE, "sing": 1},
            "entry 2:  sing: expected a, b, how, metric, name, source, text and perhaps k, margin, read, sign, got",
        ),
        ({"name": "x", "a": {}, "b": {}}, "entry 2:  how: expected"),
        ({**ONE, "b": {**ONE["b"], "step": 1}}, "entry 2: b step: expected method, variant and perhaps judge"),
    ],
)
def test_what_is_no_claim_is_named(tmp_path, entry, said):
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump([ONE, entry]))
    with pytest.raises(ValueError, match=f"claims.yaml: {said}"):
        read_claims(tmp_path / "claims.yaml")


def test_a_variant_with_several_recipes_is_tested_by_no_claim_and_named(tmp_path, capsys):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([ONE]))
    box, cam = run(rows("gradcam", "top", [0, 0])), rows("evidence", "top", [1, 1])
    assert len(claims(table(box, run(cam, **SOFTCAM)), path)) == 1 and not capsys.readouterr().out
    assert claims(table(box, run(cam, **SOFTCAM), run(cam, **{**SOFTCAM, "name": "mine"})), path).empty
    assert "is tested of SoftCAM dense (mine), SoftCAM dense (sc): several recipes" in capsys.readouterr().out
