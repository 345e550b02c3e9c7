import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tables import rows, run, table

from lib.metrics import bootstrap_ci
from lib.table import compare, holm, interval, summary

SOFTCAM = {"name": "sc", "variant": "SoftCAM dense"}
NAN = math.nan


def randn(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n)


def first(found):
    return found.iloc[0]


def test_a_summary_is_the_mean_with_its_bootstrap_interval():
    values = randn(30)
    one = first(summary(table(run(rows("gradcam", "gini", values)))))
    low, point, high = bootstrap_ci(torch.tensor(values), resamples=1000)
    assert (one["low"], one["value"], one["high"]) == pytest.approx((low, point, high))
    assert (one["label"], one["used"], one["undefined"], one["seeds"]) == ("Grad-CAM", 30, 0, 1)


def test_patients_are_drawn_whole():
    values, names = [0, 0, 0, 1.0], ["p", "p", "q", "q"]
    found = summary(table(run(rows("gradcam", "gini", values, patients=names))))
    assert (found["low"][0], found["value"][0], found["high"][0]) == (0, 0.25, 0.5)
    alone = summary(table(run(rows("gradcam", "gini", values, patients=["p"] * 4))))
    assert alone[["low", "high"]].isna().all(axis=None)  # one patient says nothing of others
    assert alone["value"][0] == 0.25


def test_undefined_values_are_left_out_and_counted():
    found = first(summary(table(run(rows("gradcam", "top", [1, NAN, 3, NAN], patients=["p", "q", "r", "r"])))))
    assert (found["value"], found["used"], found["undefined"]) == (2, 2, 2)
    nothing = first(summary(table(run(rows("gradcam", "top", [NAN, NAN])))))
    assert np.isnan([nothing["value"], nothing["low"], nothing["high"]]).all()
    assert (nothing["used"], nothing["undefined"]) == (0, 2)


def test_every_point_of_a_curve_has_its_own_undefined_values():
    curve = [
        rows("gradcam", "top", values, k=k) for k, values in ((1, [1, NAN, NAN]), (2, [3, 5, NAN]), (3, [NAN, 7, 2]))
    ]
    found = summary(table(run(*curve)), ["label", "k"])
    assert found["k"].tolist() == [1, 2, 3]
    assert found["value"].tolist() == [1, 4, 4.5]
    assert found["used"].tolist() == [1, 2, 2]
    assert (found["low"][1], found["high"][1]) == (3, 5)
    assert math.isnan(found["low"][0])
    whole = first(summary(table(run(*curve)), ["label"]))  # of each image the mean over its points
    assert (whole["value"], whole["used"]) == (pytest.approx((2 + 6 + 2) / 3), 3)


def test_several_seeds_give_mean_and_range():
    given_runs = [run(rows("gradcam", "gini", [value, value]), seed=seed) for seed, value in enumerate((1.0, 2.0, 6.0))]
    found = first(summary(table(*given_runs)))
    assert (found["low"], found["value"], found["high"], found["seeds"]) == (1, 3, 6, 3)


def test_judges_and_data_sets_are_apart():
    own, twin = rows("evidence", "aopc", [1, 1]), rows("evidence", "aopc", [0, 0], judge="twin")
    found = summary(table(run(own, twin), run(own, dataset="chest")))
    assert found[["dataset", "judge", "value"]].values.tolist() == [
        ["shapes", "own", 1],
        ["shapes", "twin", 0],
        ["chest", "own", 1],
    ]
    assert summary(table(run(own)).iloc[:0]).empty


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), members=st.integers(2, 9))
def test_a_summary_is_bootstrap_ci_of_every_group(seed, members):
    values, names = randn(40, seed), [f"p{i}" for i in np.random.default_rng(seed).integers(members, size=40)]
    found = summary(table(run(rows("gradcam", "a", values, patients=names), rows("lrp", "a", -values, patients=names))))
    for sign, one in zip((1, -1), found.itertuples(), strict=True):
        low, point, high = bootstrap_ci(torch.tensor(sign * values), names, resamples=1000)
        assert (one.low, one.value, one.high) == pytest.approx((low, point, high), nan_ok=True)


def compared(a, b, patients=None, metric="top"):
    parts = rows("gradcam", metric, a, patients=patients), rows("lrp", metric, b, patients=patients)
    return first(compare(table(run(*parts)), metric))


def test_wilcoxon_by_hand():
    found = compared([1, 2, 3, 4, 5], [0.9, 1.7, 2.5, 3.3, 4.1])  # all positive: 2 of the 2^5 signs are as extreme
    assert (found["p"], found["difference"], found["used"]) == (pytest.approx(2 / 32), pytest.approx(0.5), 5)
    expected = bootstrap_ci(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]), resamples=1000)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))


def test_zeros_are_ranked_then_left_out():
    # ranks 4, 5, 6, 7 stay: of the 16 signs, the smaller rank sum is at most 7 in 10
    sums = [sum(rank for rank, bit in zip((4, 5, 6, 7), f"{n:04b}", strict=True) if bit == "1") for n in range(16)]
    expected = sum(min(s, 22 - s) <= 7 for s in sums) / 16
    assert compared([0, 0, 0, 1, 2, 3, -4], [0] * 7)["p"] == pytest.approx(expected)


def test_equal_values_have_p_one_and_rounding_is_no_difference():
    a = randn(20)
    same = compared(a, a * (1 + 1e-9))
    assert (same["difference"], same["p"], same["verdict"]) == (0, 1, "no difference")
    cancelling = compared([1, 0, 1, 0], [0, 1, 0, 1], list("ppqq"))
    assert (cancelling["difference"], cancelling["p"]) == (0, 1)


def test_patients_are_tested_by_their_means():
    a, names = [1, 1, 1, 1, 1, 1, 2, 3], ["p"] * 6 + ["q", "r"]
    assert compared(a, [0] * 8, names)["p"] == pytest.approx(2 / 2**3)  # three patients, all positive
    assert compared(a, [0] * 8)["p"] < 0.02
    # by its mean, 0.1, patient p ranks below q: the negative ranks sum to 2; by its sum, 0.6, q would rank first
    uneven = compared([0.1] * 6 + [-0.3, 0.5, 0.7], [0] * 9, [*names, "s"])
    assert uneven["p"] == pytest.approx(2 * 3 / 2**4)
    one = compared(a, [0] * 8, ["p"] * 8)
    assert one["difference"] == 11 / 8
    assert np.isnan([one["low"], one["high"], one["p"]]).all()
    assert one["verdict"] == "undefined"


def test_pairs_with_an_undefined_value_are_left_out():
    found = compared([1, NAN, 3, 4, 6], [0, 1, NAN, 2, 3])
    assert (found["used"], found["difference"]) == (3, 2)
    nothing = compare(table(run(rows("gradcam", "top", [NAN]), rows("lrp", "top", [1]))), "top")
    assert nothing.empty  # a map without a value is not compared


def test_false_alarms_keep_to_the_level():
    p = [compared(randn(30, seed), randn(30, seed + 10_000))["p"] for seed in range(200)]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.10
    assert compared(randn(30) + 2, randn(30, 1))["p"] < 0.01


def test_every_pair_once_the_higher_first():
    base = randn(60)
    maps = {"gradcam": base + 1, "lrp": base + 1, "random": base, "saliency": base * NAN}
    found = compare(table(run(*[rows(method, "top", values) for method, values in maps.items()])), "top")
    assert found[["a", "b"]].values.tolist() == [
        ["Grad-CAM", "LRP alpha1-beta0"],
        ["Grad-CAM", "Random"],
        ["LRP alpha1-beta0", "Random"],
    ]
    assert found["verdict"].tolist() == ["no difference", "better", "better"]
    assert found["p_holm"].tolist() == holm(found["p"]).tolist()
    assert found["difference"].tolist() == pytest.approx([0, 1, 1])
    assert compare(table(run(rows("lrp", "top", base))), "top").empty


def test_the_correction_can_undo_a_difference():
    values = {name: randn(20, seed) for seed, name in enumerate("abcdefg")}
    methods = dict(
        zip(
            "abcdefgh",
            ("gradcam", "lrp", "random", "saliency", "layercam", "scorecam", "occlusion", "smoothgrad"),
            strict=True,
        )
    )
    values["h"] = values["a"] - np.linspace(-0.4, 1, 20)
    both = [rows(methods[name], "top", values[name]) for name in "ah"]
    alone = first(compare(table(run(*both)), "top"))
    assert (alone["p"] < 0.05, alone["verdict"]) == (True, "better")
    found = compare(table(run(*[rows(methods[name], "top", one) for name, one in values.items()])), "top")
    row = first(found[(found["a"] == "Grad-CAM") & (found["b"] == "SmoothGrad")])
    assert row["p"] < 0.05 < row["p_holm"]
    assert row["verdict"] == "no difference"
    assert row["low"] > 0


def test_values_are_averaged_over_seeds_and_compared_on_common_images():
    black = [
        run(rows("gradcam", "top", values), seed=seed) for seed, values in enumerate(([0, 1, NAN, 1], [1, 1, 0.5]))
    ]
    found = first(compare(table(*black, run(rows("evidence", "top", [0, 0]), **SOFTCAM)), "top"))
    assert (found["a"], found["b"], found["used"]) == ("Grad-CAM", "SoftCAM dense", 2)
    assert found["difference"] == 0.75


def test_holm_by_hand():
    assert holm(pd.Series([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(pd.Series([0.5, NAN, 0.01])).tolist() == pytest.approx([0.5, NAN, 0.02], nan_ok=True)
    assert holm(pd.Series([0.9, 0.8])).tolist() == [1, 1]
    assert holm(pd.Series([], dtype=float)).tolist() == []


@settings(max_examples=40)
@given(p=st.lists(st.floats(0, 1) | st.just(NAN), max_size=8))
def test_holm_against_loops(p):
    known = sorted(v for v in p if v == v)
    expected = [
        max(min(1, (len(known) - j) * known[j]) for j in range(known.index(v) + 1)) if v == v else NAN for v in p
    ]
    assert holm(pd.Series(p, dtype=float)).tolist() == pytest.approx(expected, nan_ok=True)


def test_the_interval_of_an_unpaired_difference_counts_both_groups():
    values = np.random.default_rng(0).random(60)
    both = pd.Series(values, pd.MultiIndex.from_arrays([range(60), range(60)], names=["unit", "image"]))
    low, high = interval(both[::2], both[1::2])
    error = math.sqrt(values[::2].var() / 30 + values[1::2].var() / 30)  # normal approximation
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert low < values[::2].mean() - values[1::2].mean() < high
    assert np.isnan(interval(both[:1])).all()
