import math

import pandas as pd
import pytest
import torch
from made_runs import made_run, summary

from lib.figures.numbers import Number
from lib.results import Results, mean_interval, pooled, write_table

L1 = {"name": "path", "parameter": "l1"}


def test_no_name_makes_a_run_a_point_of_a_sweep():
    results = Results([made_run("bb"), made_run("chest_l1-0.001", "softcam", l1=0.001)])
    assert [run.recipe.name for run in results.runs] == ["bb", "chest_l1-0.001"]
    assert not results.points


def test_different_images_are_never_compared_by_their_row():
    assert Results([made_run("bb"), made_run("sc", "softcam", images="abc")]).variants("shapes")
    with pytest.raises(ValueError, match="bb and sc are measured on other images: image 2 is b and c; run 03 and 04"):
        Results([made_run("bb"), made_run("sc", "softcam", images="acb")])


def test_runs_on_other_images_are_another_group():
    runs = [
        made_run("bb"),
        made_run("val", split="val", images="xyz"),
        made_run("on", test_dataset="chest", images="u"),
    ]
    results = Results(runs)
    assert results.datasets == ["shapes", "chest", "shapes (validation)"]
    assert results.heading("chest") == "chest (synthetic)"
    assert results.description("chest").name == "chest"


def test_points_of_sweeps_and_permuted_labels_are_kept_apart():
    runs = [
        made_run("bb"),
        *[made_run(f"path-{l1:g}", "softcam", l1=l1, sweep=L1) for l1 in (0.01, 0.0, 0.001)],
        made_run("random_labels_bb-1", random_labels=True),
    ]
    results = Results(runs)
    assert [run.recipe.name for run in results.runs] == ["bb"]
    assert results.variants("shapes") == ["black box"]
    assert [run.recipe.name for run in results.permuted] == ["random_labels_bb-1"]
    ((key, points),) = results.sweeps.items()
    assert key == ("path", "l1")
    assert [run.recipe.l1 for run in points] == [0, 0.001, 0.01]
    with pytest.raises(ValueError, match="runs: expected at least one evaluated run"):
        Results(runs[1:])


def test_shown_holds_in_model_maps_first_and_the_main_post_hoc_ones():
    of_black_box = {method: {} for method in ("random", "saliency", "gradcam", "tte_cam")}
    soft = {"evidence": {}, "evidence_difference": {}, "random": {}}
    results = Results([made_run("bb", explanations=of_black_box), made_run("sc", "softcam", explanations=soft)])
    own = [("tte_cam", "black box"), ("evidence", "SoftCAM dense")]
    assert results.shown("shapes") == [*own, ("random", "black box"), ("gradcam", "black box")]
    assert set(results.shown("shapes", every=True)) - set(results.shown("shapes")) == {("saliency", "black box")}


def test_measured_of_one_seed_and_of_several():
    first = made_run("bb", values={"gradcam/aopc": [1, 2, 3, math.nan], "gradcam/aopc_lerf": [0, 1, 1, 0]})
    second = made_run("bb", seed=1, values={"gradcam/aopc": [5, 5, 5, 5], "gradcam/aopc_lerf": [1, 1, 1, 1]})
    found = Results([first]).measured("shapes", "black box", "gradcam", "aopc", "aopc_lerf")
    assert (found["value"], found["used"]) == (pytest.approx(4 / 3), 3)
    assert 1 <= found["low"] < found["value"] < found["high"] <= 2
    both = Results([first, second]).measured("shapes", "black box", "gradcam", "aopc", "aopc_lerf")
    assert (both["low"], both["value"], both["high"]) == pytest.approx((4 / 3, 8 / 3, 4))
    assert Results([first]).measured("shapes", "black box", "gradcam", "road") is None


def test_a_metric_that_is_undefined_on_all_images_is_not_measured():
    run = made_run("bb", values={"gradcam/top1": [math.nan] * 4})
    assert Results([run]).measured("shapes", "black box", "gradcam", "top1") is None


def test_mean_interval_draws_patients():
    values, alone = torch.tensor([0.0, 0.0, 1.0, 1.0]), ["a", "a", "b", "b"]
    assert (mean_interval(values, alone)["low"], mean_interval(values, alone)["high"]) == (0, 1)
    assert mean_interval(values)["low"] == 0
    assert mean_interval(values, ["a"] * 4)["low"] != 0  # NaN: one patient says nothing about others


def test_pooled_keeps_curves_and_counts():
    found = pooled([summary([0.0, 1.0]), summary([1.0, 1.0])])
    assert found == {"value": [0.5, 1.0], "low": [0.0, 1.0], "high": [1.0, 1.0], "used": [4, 4]}
    assert pooled([]) is None


def test_band_says_what_it_is():
    assert Results([made_run("bb")]).band() == "95 % bootstrap interval over images"
    assert Results([made_run("bb", patients="abcd")]).band() == "95 % bootstrap interval over patients"
    assert Results([made_run("bb"), made_run("bb", seed=1)]).band() == "mean and range of 2 seeds"


def test_a_number_is_a_point_or_the_mean_of_a_curve_or_a_difference():
    values = {"gradcam/aopc": [1, 1, 1, 1], "gradcam/aopc_lerf": [0, 1, 0, 1]}
    explanations = {"gradcam": {"road": summary([0.2, 0.4]), "gini": summary(0.5)}}
    results = Results([made_run("bb", values=values, explanations=explanations)])
    where = results, "shapes", "gradcam", "black box"
    assert Number("", "road").of(*where)["value"] == pytest.approx(0.3)
    assert Number("", "road").of(*where)["low"] == pytest.approx(0.2)
    assert Number("", "road", at=1).of(*where)["value"] == 0.4
    assert Number("", "road", at=-1).of(*where)["used"] == 4
    assert Number("", "road", at=2).of(*where) is None
    assert Number("", "gini").of(*where)["value"] == 0.5
    assert Number("", "aopc", less="aopc_lerf").of(*where)["value"] == 0.5
    assert Number("", "pompom").of(*where) is None
    assert Number("", "gini").series(results, "shapes", [("gradcam", "black box")]).keys() == {"gradcam | black box"}


def test_arrows_point_to_the_better_side():
    assert Number("", "x").arrow == "better →"
    assert Number("", "x", "lower").arrow == "← better"


def test_write_table(tmp_path):
    write_table(tmp_path / "t", pd.DataFrame({"a": [0.123456], "b": ["x"]}))
    assert (tmp_path / "t.csv").read_text() == "a,b\n0.123456,x\n"
    assert (tmp_path / "t.md").read_text().splitlines()[2] == "| 0.123 | x |"
