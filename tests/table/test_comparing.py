from math import isnan, nan

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tables import SOFTCAM, rows, run, table

from lib.metrics import bootstrap_ci
from lib.table import compare, holm, summary


def randn(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n)


def measured(patients=None, **maps):
    """The table of a black box and the values of its maps."""
    return table(run(*[rows(method, "top", values, patients=patients) for method, values in maps.items()]))


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), members=st.sampled_from([0, 2, 3, 9]))
def test_a_summary_is_bootstrap_ci_of_every_group(seed, members):
    values, names = randn(40, seed), None
    if members:
        names = [f"p{i}" for i in np.random.default_rng(seed).integers(members, size=40)]
    found = summary(measured(names, gradcam=values, lrp=-values))
    for sign, one in zip((1, -1), found.itertuples(), strict=True):
        low, point, high = bootstrap_ci(torch.tensor(sign * values), names, resamples=1000)
        assert (one.low, one.value, one.high) == pytest.approx((low, point, high), nan_ok=True)


def test_undefined_values_are_left_out_and_counted():
    found = summary(measured(["p", "q", "r", "r"], gradcam=[1, nan, 3, nan])).iloc[0]
    assert found[["label", "value", "used", "undefined", "seeds"]].tolist() == ["Grad-CAM", 2, 2, 2, 1]
    nothing = summary(measured(gradcam=[nan, nan])).iloc[0]
    assert nothing[["value", "low", "high"]].isna().all()
    assert (nothing["used"], nothing["undefined"]) == (0, 2)


def test_one_patient_says_nothing_of_others():
    found = summary(measured(["p"] * 4, gradcam=[0, 0, 0, 1])).iloc[0]
    assert found["value"] == 0.25 and found[["low", "high"]].isna().all()


def test_every_point_of_a_curve_has_its_own_undefined_values():
    points = {1: [1, nan, nan], 2: [3, 5, nan], 3: [nan, 7, 2]}
    curve = [rows("gradcam", "top", values, k=k) for k, values in points.items()]
    found = summary(table(run(*curve)), ["label", "k"])
    assert found[["k", "value", "used"]].values.tolist() == [[1, 1, 1], [2, 4, 2], [3, 4.5, 2]]
    assert (found["low"][1], found["high"][1]) == (3, 5)
    assert isnan(found["low"][0])
    whole = summary(table(run(*curve)), ["label"]).iloc[0]  # of each image the mean over its points
    assert (whole["value"], whole["used"]) == (pytest.approx((2 + 6 + 2) / 3), 3)


def test_several_seeds_give_mean_and_range():
    made = [run(rows("gradcam", "gini", [value, value]), seed=seed) for seed, value in enumerate((1.0, 2.0, 6.0))]
    found = summary(table(*made)).iloc[0]
    assert found[["low", "value", "high", "seeds"]].tolist() == [1, 3, 6, 3]


def test_judges_and_data_sets_are_apart():
    own, twin = rows("evidence", "aopc", [1, 1]), rows("evidence", "aopc", [0, 0], judge="twin")
    found = summary(table(run(own, twin), run(own, dataset="chest")))
    expected = [["shapes", "own", 1], ["shapes", "twin", 0], ["chest", "own", 1]]
    assert found[["dataset", "judge", "value"]].values.tolist() == expected
    assert summary(table(run(own)).iloc[:0]).empty


ZERO = [0.0] * 9


@pytest.mark.parametrize(
    ("a", "b", "patients", "difference", "p"),
    [
        ([1, 2, 3, 4, 5], [0.9, 1.7, 2.5, 3.3, 4.1], None, 0.5, 2 / 2**5),  # all positive: 2 signs are as extreme
        # zeros are ranked, then left out: of the ranks 4, 5, 6, 7 the smaller sum is at most 7 for 10 of the 16 signs
        ([0, 0, 0, 1, 2, 3, -4], ZERO[:7], None, 2 / 7, 10 / 16),
        ([1, 2, 3], [1 + 1e-9, 2 - 1e-9, 3], None, 0, 1),  # rounding is no difference
        ([1, 0, 1, 0], [0, 1, 0, 1], "ppqq", 0, 1),
        ([1, nan, 3, 4, 6], [0, 1, nan, 2, 3], None, 2, 2 / 2**3),  # pairs without one of the two are left out
        ([1, 1, 1, 1, 1, 1, 2, 3], ZERO[:8], "ppppppqr", 11 / 8, 2 / 2**3),  # three patients, all positive
        # by its mean, 0.1, patient p ranks below q: the negative ranks sum to 2; by its sum, 0.6, q would rank first
        ([0.1] * 6 + [-0.3, 0.5, 0.7], ZERO, "ppppppqrs", 1.5 / 9, 2 * 3 / 2**4),
        ([1, 1, 1, 1, 1, 1, 2, 3], ZERO[:8], "pppppppp", 11 / 8, nan),
    ],
)
def test_differences_and_wilcoxons_p_by_hand(a, b, patients, difference, p):
    found = compare(measured(patients, gradcam=a, lrp=b), "top").iloc[0]
    assert abs(found["difference"]) == pytest.approx(difference, abs=1e-12)
    assert found["p"] == pytest.approx(p, nan_ok=True)
    assert found["used"] == np.isfinite(np.subtract(a, b)).sum()
    assert found["verdict"] == ("undefined" if np.isnan(p) else "no difference")
    assert found[["low", "high"]].isna().all() == np.isnan(p)


def test_the_interval_of_a_difference_is_bootstrap_ci():
    a, b = randn(20), randn(20, 1)
    found = compare(measured(gradcam=a, lrp=b), "top").iloc[0]
    low, point, high = bootstrap_ci(torch.tensor(a - b) * (1 if a.mean() > b.mean() else -1), resamples=1000)
    assert (found["low"], found["difference"], found["high"]) == pytest.approx((low, point, high))
    assert compare(measured(gradcam=[nan], lrp=[1]), "top").empty  # a map without a value is not compared


def test_every_pair_once_the_higher_first():
    base = randn(60)
    found = compare(measured(gradcam=base + 1, lrp=base + 1, random=base, saliency=base * nan), "top")
    pairs = [["Grad-CAM", "LRP alpha1-beta0"], ["Grad-CAM", "Random"], ["LRP alpha1-beta0", "Random"]]
    assert found[["a", "b"]].values.tolist() == pairs
    assert found["verdict"].tolist() == ["no difference", "better", "better"]
    assert found["p_holm"].tolist() == holm(found["p"]).tolist()
    assert found["difference"].tolist() == pytest.approx([0, 1, 1])
    assert compare(measured(lrp=base), "top").empty


def test_the_correction_for_many_pairs_can_undo_a_difference():
    names = ("gradcam", "lrp", "random", "saliency", "layercam", "scorecam", "occlusion")
    maps = {name: randn(20, seed) for seed, name in enumerate(names)}
    less = maps["gradcam"] - np.linspace(-0.4, 1, 20)
    assert compare(measured(gradcam=maps["gradcam"], smoothgrad=less), "top")["verdict"].tolist() == ["better"]
    found = compare(measured(**maps, smoothgrad=less), "top").set_index(["a", "b"]).loc["Grad-CAM", "SmoothGrad"]
    assert found["p"] < 0.05 < found["p_holm"] and found["low"] > 0
    assert found["verdict"] == "no difference"


def test_values_are_averaged_over_seeds_and_compared_on_common_images():
    both = [0, 1, nan, 1], [1, 1, 0.5]
    black = [run(rows("gradcam", "top", values), seed=seed) for seed, values in enumerate(both)]
    soft = run(rows("evidence", "top", [0, 0]), **SOFTCAM)
    found = compare(table(*black, soft), "top").iloc[0]
    assert found[["a", "b", "used", "difference"]].tolist() == ["Grad-CAM", "SoftCAM dense", 2, 0.75]


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, nan, 0.01], [0.5, nan, 0.02]),
        ([0.9, 0.8], [1, 1]),
        ([], []),
    ],
)
def test_holm_by_hand(p, adjusted):
    assert holm(pd.Series(p, dtype=float)).tolist() == pytest.approx(adjusted, nan_ok=True)


@given(p=st.lists(st.floats(0, 1) | st.just(nan), max_size=8))
def test_holm_against_loops(p):
    known = sorted(v for v in p if v == v)
    expected = [
        max(min(1, (len(known) - j) * known[j]) for j in range(known.index(v) + 1)) if v == v else nan for v in p
    ]
    assert holm(pd.Series(p, dtype=float)).tolist() == pytest.approx(expected, nan_ok=True)
