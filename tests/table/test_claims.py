import math

import numpy as np
import pytest
import torch
import yaml
from made_tables import SOFTCAM, rows, run, table

from lib.explain import METHODS
from lib.metrics import bootstrap_ci
from lib.table import claims, claims_table, read_claims

ONE = {
    **dict.fromkeys(("name", "text", "source", "how"), "x"),
    "a": {"variant": "SoftCAM dense", "method": "evidence", "metric": "top"},
    "b": {"variant": "black box", "method": "gradcam", "metric": "top"},
}


@pytest.fixture
def judged(tmp_path):
    """The row of one claim on a table, on the differences SoftCAM less Grad-CAM of one list per seed."""

    def judge(*seeds, patients=None, **changes):
        runs = []
        for seed, values in enumerate(seeds):
            runs.append(run(rows("gradcam", "top", [0.0] * len(values), patients=patients), seed=seed))
            runs.append(run(rows("evidence", "top", values, patients=patients), **SOFTCAM, seed=seed))
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
        ([[0.9, 0.9, 0.9, 0.9], [-0.1, -0.1, -0.1, -0.1]], {}, "inconclusive"),  # one seed disagrees
        ([[0.5, 0.6, 0.7]], {"patients": ["p"] * 3}, "inconclusive"),  # one patient proves nothing
    ],
)
def test_a_claim_is_judged_by_its_interval_its_margin_and_every_seed(judged, seeds, given, verdict):
    found = judged(*seeds, **given)
    assert found["verdict"] == verdict
    assert found["difference"] == pytest.approx(given.get("sign", 1) * np.mean(seeds))


def test_undefined_images_are_left_out(judged):
    found = judged([0.5, math.nan, 0.5], [1.0, math.nan, 0.5])
    assert (found["difference"], found["used"], found["verdict"]) == (pytest.approx(0.625), 2, "supported")
    assert 0.5 <= found["low"] <= found["difference"] <= found["high"] <= 0.75


def runs(evidence, gradcam, layercam=0.0):
    """A black box with post-hoc maps and a dense SoftCAM, by top-1 precision of eight images."""
    right = rows("classification", "correct", [1.0] * 8)
    maps = {"gradcam": gradcam, "layercam": [layercam] * 8, "random": [1.0] * 8}
    black = run(right, *[rows(method, "topk_precision", values, k=1) for method, values in maps.items()])
    return table(black, run(right, rows("evidence", "topk_precision", evidence, k=1), **SOFTCAM))


def test_the_localisation_claim_is_tested_against_the_best_post_hoc_method():
    found = claims(runs([1.0] * 8, [0.5] * 8, layercam=0.25)).set_index("claim").loc["localisation, dense"]
    assert (found["verdict"], found["difference"], found["used"]) == ("supported", pytest.approx(0.5), 8)
    assert found["against"] == "Grad-CAM"
    found = claims(runs([0.0] * 8, [0.5] * 8, layercam=0.75)).set_index("claim").loc["localisation, dense"]
    assert (found["verdict"], found["against"]) == ("not supported", "Layer-CAM")  # and no baseline


def test_claims_without_their_runs_are_not_tested():
    found = claims(runs([1.0] * 8, [0.5] * 8))
    assert set(found["claim"]) == {"localisation, dense", "accuracy, dense"}
    assert claims(table(run(rows("classification", "correct", [1.0])))).empty


def test_local_evidence_agrees_with_the_label():
    share = rows("evidence", "positive_proportion", [0.9, 0.8, 0.7, 0.8, 0.1, 0.2, 0.1, 0.2], resolution="evidence")
    label = rows("classification", "label", [1] * 4 + [0] * 4)
    (found,) = claims(table(run(share, label, **SOFTCAM))).itertuples()
    assert (found.claim, found.verdict, found.used) == ("consistency", "supported", 8)
    assert found.difference == pytest.approx(0.65)
    assert claims(table(run(share, rows("classification", "label", [1] * 8), **SOFTCAM))).empty


@pytest.mark.parametrize("patients", [None, list("pqrspqrs")])
def test_the_interval_of_an_unpaired_difference_resamples_both_groups_together(patients):
    share, sick = np.random.default_rng(0).random(8), [1, 0, 0, 1, 1, 0, 1, 0]
    parts = rows("evidence", "positive_proportion", share, patients=patients), rows("classification", "label", sick)
    (found,) = claims(table(run(*parts, **SOFTCAM))).itertuples()

    def difference(both):
        return both[both[:, 1] == 1, 0].mean() - both[both[:, 1] == 0, 0].mean()

    both = torch.tensor(np.stack([share, sick], 1))
    expected = bootstrap_ci(both, patients, difference)
    assert (found.low, found.difference, found.high) == pytest.approx(tuple(expected))


def test_a_difference_is_of_the_same_images_wherever_they_stand():
    black = run(rows("gradcam", "topk_precision", [0.1, 0.2, 0.3, 0.4], images="abcd", k=1))
    soft = run(rows("evidence", "topk_precision", [1.0, 0.5], images="db", k=1), **SOFTCAM)
    (found,) = claims(table(black, soft)).itertuples()
    assert (found.difference, found.used) == (pytest.approx((0.6 + 0.3) / 2), 2)


def test_sweeps_and_permuted_labels_are_no_evidence():
    one = rows("classification", "correct", [1.0] * 4)
    swept = run(one, **SOFTCAM, sweep="p", parameter="l1", point=1.0)
    assert claims(table(run(one), swept)).empty
    assert claims(table(run(one), run(one, **SOFTCAM, permuted=True))).empty


def test_the_table_has_every_claim_and_says_where_it_holds():
    found = claims_table(claims(runs([1.0] * 8, [0.5] * 8)))
    assert len(found) == len(read_claims())
    row = found.set_index("claim").loc["Evidence maps localise better than post-hoc maps"]
    assert row["verdict"] == "**supported**: shapes"
    assert row["difference [95 %]"] == "shapes +0.500 [+0.500, +0.500] (Grad-CAM)"
    assert (found["verdict"] == "not tested").sum() == len(found) - 2


def test_the_papers_claims_name_what_there_is():
    given = read_claims()
    assert len({claim["name"] for claim in given}) == len(given) > 10
    named = {m for c in given for side in "ab" for m in np.atleast_1d(c[side]["method"]).tolist()}
    assert named <= set(METHODS) | {"classification"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({**ONE, "sing": 1}, "entry 2:  sing: expected a, b, how, name, source, text and perhaps margin, sign, got"),
        ({"name": "x", "a": {}, "b": {}}, "entry 2:  how: expected"),
        ({**ONE, "b": {**ONE["b"], "step": 1}}, "entry 2: b step: expected method, metric, variant and perhaps judge"),
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
