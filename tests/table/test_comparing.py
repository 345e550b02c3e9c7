from math import isnan, nan

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tables import SOFTCAM, rows, run, table

from lib.metrics import bootstrap_ci
from lib.metrics.statistics import draws
from lib.table import by_seed, compare, holm, summary
from lib.table.comparing import interval


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
        low, point, high = bootstrap_ci(torch.tensor(sign * values), names, resamples=2000)
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


def seeds(*values, method="gradcam", patients=None, **about):
    """Runs of one map, a list of values per seed."""
    return [run(rows(method, "top", one, patients=patients), seed=seed, **about) for seed, one in enumerate(values)]


def test_seeds_and_images_are_drawn_independently():
    # two seeds, each the same in both images: the means 0, 1/2, 1 come with probabilities 1/4, 1/2, 1/4
    found = summary(table(*seeds([0, 0], [1, 1]))).iloc[0]
    assert found[["low", "value", "high", "used", "seeds"]].tolist() == [0, 0.5, 1, 2, 2]
    found = summary(table(*seeds([0, 1], [0, 1]))).iloc[0]  # the images differ, the seeds do not
    assert found[["low", "value", "high"]].tolist() == [0, 0.5, 1]
    same = summary(table(*seeds([1, 1, 1], [3, 3], [8, 8, nan]))).iloc[0]  # the mean of the seeds' means
    assert same[["low", "value", "high", "used", "undefined"]].tolist() == [1, 4, 8, 3, 0]
    one = summary(table(*seeds([0, 1], [0, 1], patients="pp"))).iloc[0]
    assert one["value"] == 0.5 and one[["low", "high"]].isna().all()


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_the_crossed_bootstrap_against_loops(seed):
    made, names = np.random.default_rng(seed), list("ppqrrrst")
    values = made.standard_normal((3, 8))
    values[made.random((3, 8)) < 0.2] = nan
    found = summary(table(*seeds(*values, patients=names)), resamples=60).iloc[0]
    units, means = sorted({names[i] for i in range(8) if not np.isnan(values[:, i]).all()}), []
    names = [name if name in units else units[0] for name in names]  # of images without a value, which are never drawn
    for times, chosen in zip(torch.cat([*draws(len(units), 60)]), torch.cat([*draws(3, 60, seed=1)]), strict=True):
        of_seeds = []
        for s in range(3):
            drawn = [values[s, i] for i in range(8) for _ in range(int(times[units.index(names[i])]))]
            drawn = [value for value in drawn if value == value]
            of_seeds += [np.mean(drawn)] * int(chosen[s]) if drawn else []
        means += [np.mean(of_seeds)] if of_seeds else []
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert found["value"] == pytest.approx(np.nanmean(np.nanmean(values, axis=1)))


def test_the_mean_of_each_seed():
    found = by_seed(table(*seeds([1, 3, nan], [5, 5, 5]), *seeds([0, 0], **SOFTCAM, method="evidence")), ["label"])
    assert found[["label", "seed", "value"]].values.tolist() == [
        ["Grad-CAM", 0, 2],
        ["Grad-CAM", 1, 5],
        ["SoftCAM dense", 0, 0],
    ]


def test_p_is_the_share_of_resamples_beyond_the_margin_on_both_sides():
    drawn = np.array([[1.0, 1.0, 0.0, nan], [2.0, -1.0, 0.0, nan], [3.0, 2.0, 0.0, nan], [4.0, 3.0, 0.0, nan]])
    assert interval(drawn)["p"].tolist() == pytest.approx([2 / 5, 4 / 5, 1, nan], nan_ok=True)
    assert interval(drawn, 3.0)["p"].tolist() == pytest.approx([1, 4 / 5, 2 / 5, nan], nan_ok=True)
    assert interval(drawn)[["low", "high"]].loc[0].tolist() == pytest.approx([1.075, 3.925])


def test_judges_and_data_sets_are_apart():
    own, twin = rows("evidence", "aopc", [1, 1]), rows("evidence", "aopc", [0, 0], judge="twin")
    found = summary(table(run(own, twin), run(own, dataset="chest")))
    expected = [["shapes", "own", 1], ["shapes", "twin", 0], ["chest", "own", 1]]
    assert found[["dataset", "judge", "value"]].values.tolist() == expected
    assert summary(table(run(own)).iloc[:0]).empty


@pytest.mark.parametrize(
    ("a", "b", "patients", "difference", "p"),
    [
        ([1, 2, 3, 4, 5], [0.9, 1.7, 2.5, 3.3, 4.1], None, 0.5, 2 / 20001),  # all positive: as small as it gets
        ([1, 1, -0.5], [0, 0, 0], None, 0.5, 14 / 27),  # not above 0 where the last comes twice or thrice: 6 + 1 of 27
        ([1, 2, 3], [1 + 1e-9, 2 + 1e-9, 3], None, 0, 1),  # rounding is no difference
        ([1, nan, 3, 4, 6], [0, 1, nan, 2, 3], None, 2, 2 / 20001),  # pairs without one of the two are left out
        ([1, 1, 1, -1], [0] * 4, "pppq", 0.5, 1 / 2),  # two patients: (p, p), (p, q) twice, (q, q)
        ([1, 1, 1], [0] * 3, "ppp", 1, nan),
    ],
)
def test_differences_and_p_by_hand(a, b, patients, difference, p):
    found = compare(measured(patients, gradcam=a, lrp=b), "top").iloc[0]
    assert found["difference"] == pytest.approx(difference, abs=1e-8)
    assert found["p"] == pytest.approx(p, abs=0.02 if p > 0.01 else 1e-6, nan_ok=True)
    assert found["used"] == np.isfinite(np.subtract(a, b)).sum()
    assert found["verdict"] == ("undefined" if np.isnan(p) else "better" if p < 0.05 else "no difference")
    assert found[["low", "high"]].isna().all() == np.isnan(p)


def test_the_interval_of_a_difference_is_bootstrap_ci():
    a, b = randn(20), randn(20, 1)
    found = compare(measured(gradcam=a, lrp=b), "top").iloc[0]
    low, point, high = bootstrap_ci(torch.tensor(a - b) * (1 if a.mean() > b.mean() else -1), resamples=20000)
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
    less = maps["gradcam"] - np.linspace(-0.5, 1, 20)
    assert compare(measured(gradcam=maps["gradcam"], smoothgrad=less), "top")["verdict"].tolist() == ["better"]
    found = compare(measured(**maps, smoothgrad=less), "top").set_index(["a", "b"]).loc["Grad-CAM", "SmoothGrad"]
    assert found["p"] < 0.05 < found["p_holm"] and found["low"] > 0
    assert found["verdict"] == "no difference"


def test_maps_are_compared_on_common_images_of_the_same_seed():
    black, soft = seeds([0, 1, nan, 1], [1, 1, 0.5]), seeds([0, 0], [0.5, 0, 0], **SOFTCAM, method="evidence")
    found = compare(table(*black, *soft), "top").iloc[0]
    assert found[["a", "b", "used"]].tolist() == ["Grad-CAM", "SoftCAM dense", 3]
    assert found["difference"] == pytest.approx(((0 + 1) / 2 + (0.5 + 1 + 0.5) / 3) / 2)


def test_maps_are_compared_at_one_resolution():
    both = [
        rows(m, "top", [v] * 3, resolution=r)
        for m, r, v in (
            ("gradcam", "image", 1),
            ("lrp", "image", 0),
            ("gradcam", "evidence", 0),
            ("lrp", "evidence", 1),
        )
    ]
    assert compare(table(run(*both)), "top")["a"].tolist() == ["Grad-CAM"]
    assert compare(table(run(*both)), "top", resolution="evidence")["a"].tolist() == ["LRP alpha1-beta0"]


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
