import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.metrics.statistics import bootstrap_ci, bootstrap_means, compare_all, holm, paired_comparison

NAN = float("nan")


def randn(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).double()


def test_mean_interval_of_a_large_sample_is_the_normal_one():
    values = randn(2000)
    low, point, high = bootstrap_ci(values, resamples=4000)
    assert point == pytest.approx(values.mean().item())
    half = 1.96 * values.std().item() / 2000**0.5
    assert (low, high) == pytest.approx((point - half, point + half), abs=0.15 * half)


def test_two_values_by_hand():
    # resamples have the means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert bootstrap_ci(torch.tensor([0.0, 1.0]))[:] == (0, 0.5, 1)
    assert bootstrap_ci(torch.tensor([0.0, 1.0]), level=0.4)[:] == (0.5, 0.5, 0.5)


def test_groups_are_drawn_whole():
    values, groups = torch.tensor([0.0, 0, 0, 1]), ["a", "a", "a", "b"]
    # means: 0 (aa), 1 (bb), 1/4 (ab): nothing else can occur
    seen = set()
    bootstrap_ci(values, groups, statistic=lambda drawn: seen.add((len(drawn), drawn.mean().item())) or drawn.mean())
    assert seen == {(6, 0.0), (2, 1.0), (4, 0.25)}
    assert bootstrap_ci(values, groups, level=0.4)[:] == (0.25, 0.25, 0.25)


def test_repeated_images_of_a_patient_do_not_narrow_the_interval():
    patients = randn(40)
    once = bootstrap_ci(patients)
    copied, names = patients.repeat_interleave(25), np.arange(40).repeat(25)
    assert bootstrap_ci(copied, names)[:] == pytest.approx(once[:])
    naive = bootstrap_ci(copied)
    assert naive.high - naive.low < 0.3 * (once.high - once.low)


def test_nameless_groups_stand_alone():
    values = randn(30)
    assert bootstrap_ci(values, [""] * 30) == bootstrap_ci(values)
    assert bootstrap_ci(values, [None] * 30) == bootstrap_ci(values, [float("nan")] * 30) == bootstrap_ci(values)
    assert bootstrap_ci(values, torch.arange(30)) == bootstrap_ci(values)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), members=st.integers(2, 9))
def test_fast_mean_equals_any_statistic(seed, members):
    values = randn(40, seed)
    groups = torch.randint(members, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    fast = bootstrap_ci(values, groups, resamples=50, seed=seed)
    slow = bootstrap_ci(values, groups, statistic=lambda drawn: drawn.mean(), resamples=50, seed=seed)
    assert fast[:] == pytest.approx(slow[:])
    assert fast[:] == pytest.approx(
        tuple(v / 3 - 2 for v in bootstrap_ci(values * 3 + 6, groups, resamples=50, seed=seed))
    )


def test_nan_is_dropped_and_counted():
    values = torch.tensor([1.0, float("nan"), 3.0, float("nan")])
    interval = bootstrap_ci(values, ["a", "b", "c", "c"])
    assert (interval.point, interval.used, interval.dropped) == (2, 2, 2)
    assert interval[:] == bootstrap_ci(values[::2])[:]
    nothing = bootstrap_ci(values[1::2])
    assert np.isnan(nothing[:]).all() and (nothing.used, nothing.dropped) == (0, 2)


def test_one_group_has_no_interval():
    low, point, high = bootstrap_ci(torch.tensor([1.0, 2.0]), ["a", "a"])
    assert np.isnan(low) and point == 1.5 and np.isnan(high)


def test_rows_stay_together_and_undefined_resamples_are_left_out():
    pairs = torch.stack([torch.arange(20.0), torch.arange(20.0) ** 2], 1)

    def ratio(drawn):
        assert (drawn[:, 0] ** 2 == drawn[:, 1]).all()
        return float("nan") if drawn[0, 0] == 7 else drawn[:, 0].median()

    low, point, high = bootstrap_ci(pairs, statistic=ratio, resamples=200)
    assert low <= point <= high and point == 9


def test_seed_decides_and_the_global_random_state_is_left_alone():
    values = randn(50)
    state = torch.get_rng_state()
    assert bootstrap_ci(values, seed=1) == bootstrap_ci(values, seed=1) != bootstrap_ci(values, seed=2)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": torch.zeros(2, 2, 2)}, r"values: expected shape \(N,\) or \(N, d\), got \(2, 2, 2\)"),
        ({"groups": ["a"]}, "groups: expected 3 entries to match values, got 1"),
        ({"level": 95}, "level: expected a value between 0 and 1, got 95"),
        ({"resamples": 0}, "resamples: expected at least 1, got 0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ci(**{"values": torch.zeros(3)} | arguments)


def test_wilcoxon_by_hand():
    # all five differences positive: 2 of the 2^5 signs are as extreme
    found = paired_comparison(torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([0.9, 1.7, 2.5, 3.3, 4.1]))
    assert (found.p, found.difference, found.used) == (pytest.approx(2 / 32), pytest.approx(0.5), 5)
    assert (found.low, found.difference, found.high) == pytest.approx(
        bootstrap_ci(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))[:]
    )


def test_zeros_are_ranked_then_left_out():
    a = torch.tensor([0.0, 0, 0, 1, 2, 3, -4])
    # ranks 4, 5, 6, 7 stay: of the 16 signs, the smaller rank sum is at most 7 in 10
    sums = [sum(rank for rank, bit in zip((4, 5, 6, 7), f"{n:04b}", strict=True) if bit == "1") for n in range(16)]
    expected = sum(min(s, 22 - s) <= 7 for s in sums) / 16
    assert paired_comparison(a, torch.zeros(7)).p == pytest.approx(expected)


def test_equal_values_have_p_one_and_rounding_is_no_difference():
    a = randn(20)
    for test in ("wilcoxon", "bootstrap"):
        same = paired_comparison(a, a * (1 + 1e-9), test=test)
        assert same[:4] == (0, 0, 0, 1) and same.used == 20
        cancelling = paired_comparison(torch.tensor([1.0, 0, 1, 0]), torch.tensor([0.0, 1, 0, 1]), list("aabb"), test)
        assert cancelling.difference == 0 and cancelling.p == 1


def test_groups_are_tested_by_their_means():
    a, zero = torch.tensor([1.0, 1, 1, 1, 1, 1, 2, 3]), torch.zeros(8)
    names = ["p"] * 6 + ["q", "r"]
    assert paired_comparison(a, zero, names).p == pytest.approx(2 / 2**3)  # three patients, all positive
    assert paired_comparison(a, zero).p < 0.02
    # by its mean, 0.1, patient p ranks below q: the negative ranks sum to 2; by its sum, 0.6, q would rank first
    uneven = paired_comparison(torch.tensor([0.1] * 6 + [-0.3, 0.5, 0.7]), torch.zeros(9), [*names, "s"])
    assert uneven.p == pytest.approx(2 * 3 / 2**4)
    one = paired_comparison(a, zero, ["p"] * 8)
    assert one.difference == 11 / 8 and np.isnan((one.low, one.high, one.p)).all()


def test_pairs_with_nan_are_dropped_and_counted():
    a = torch.tensor([1.0, NAN, 3, 4, 6])
    b = torch.tensor([0.0, 1, NAN, 2, 3])
    found = paired_comparison(a, b, list("vwxyz"))
    assert (found.used, found.dropped, found.difference) == (3, 2, 2)
    assert found[:4] == paired_comparison(a[[0, 3, 4]], b[[0, 3, 4]])[:4]
    nothing = paired_comparison(a[:1] * NAN, b[:1])
    assert np.isnan(nothing[:4]).all() and nothing[4:] == (0, 1)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), shift=st.floats(-1, 1), members=st.integers(3, 40))
def test_bootstrap_p_says_what_the_interval_says(seed, shift, members):
    a, b = randn(40, seed), randn(40, seed + 1) + shift
    groups = torch.randint(members, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    options = {"groups": groups, "test": "bootstrap", "resamples": 399}
    found, other = paired_comparison(a, b, **options), paired_comparison(b, a, **options)
    assert (found.p, found.difference) == (other.p, pytest.approx(-other.difference))
    assert 2 / 400 <= found.p <= 1
    if found.p > 0.06:
        assert found.low <= 0 <= found.high
    if found.p < 0.04:
        assert found.low > 0 or found.high < 0


@pytest.mark.parametrize("test", ["wilcoxon", "bootstrap"])
def test_false_alarms_keep_to_the_level(test):
    p = [
        paired_comparison(randn(30, seed), randn(30, seed + 10_000), test=test, resamples=200).p for seed in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.10
    assert paired_comparison(randn(30) + 2, randn(30, 1), test=test).p < 0.01


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, NAN, 0.01]).tolist() == pytest.approx([0.5, NAN, 0.02], nan_ok=True)
    assert holm([0.9, 0.8]).tolist() == [1, 1] and holm([]).tolist() == [] and holm(torch.tensor([NAN])).isnan().all()


@settings(max_examples=40)
@given(p=st.lists(st.floats(0, 1) | st.just(NAN), max_size=8))
def test_holm_against_loops(p):
    known = sorted(v for v in p if v == v)
    expected = [
        max(min(1, (len(known) - j) * known[j]) for j in range(known.index(v) + 1)) if v == v else NAN for v in p
    ]
    adjusted = holm(p).tolist()
    assert adjusted == pytest.approx(expected, nan_ok=True)
    for (v, w), (x, y) in zip(zip(p, adjusted, strict=True), zip(p[1:], adjusted[1:], strict=True), strict=False):
        assert not v <= x or w <= y  # the order is kept
        assert v != v or v <= w <= 1


def test_compare_all_pairs():
    base = randn(60)
    values = {"good": base + 1, "twin": base + 1, "bad": base, "unknown": base * NAN}
    rows = {row[:2]: row for row in compare_all(values)}
    assert list(rows) == [
        ("good", "twin"),
        ("good", "bad"),
        ("good", "unknown"),
        ("twin", "bad"),
        ("twin", "unknown"),
        ("bad", "unknown"),
    ]
    verdicts = ["no difference", "better", "undefined", "better", "undefined", "undefined"]
    assert [row.verdict for row in rows.values()] == verdicts
    known = [rows["good", "twin"], rows["good", "bad"], rows["twin", "bad"]]
    assert [row.p_holm for row in known] == holm([row.p for row in known]).tolist()
    assert rows["good", "bad"].difference == pytest.approx(1) and rows["bad", "unknown"].dropped == 60
    assert rows["good", "bad"][2:6] == paired_comparison(values["good"], values["bad"])[:4]
    reverse = compare_all({"bad": base, "good": base + 1})
    assert reverse[0].verdict == "worse" and compare_all({"good": base}) == []
    assert compare_all({"bad": base, "good": base + 1}, higher_is_better=False)[0].verdict == "better"


def test_the_correction_can_undo_a_difference():
    generator = torch.Generator().manual_seed(5)
    values = {name: torch.randn(20, generator=generator) for name in "abcdefgh"}
    values["h"] = values["a"] + torch.linspace(-0.4, 1, 20)
    row = next(row for row in compare_all(values) if row[:2] == ("a", "h"))
    assert row.p < 0.05 < row.p_holm and row.verdict == "no difference" and row.high < 0
    assert compare_all({"a": values["a"], "h": values["h"]})[0].verdict == "worse"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: paired_comparison(randn(3), randn(4)),
            r"a, b: expected the same shape \(N,\), got \(3,\) and \(4,\)",
        ),
        (lambda: paired_comparison(randn(3), randn(3), test="t"), "test: expected one of wilcoxon, bootstrap, got 't'"),
        (lambda: paired_comparison(randn(3), randn(3), ["p"]), "groups: expected 3 entries to match values, got 1"),
        (lambda: holm([0.5, 1.5]), r"p_values: expected values in \[0, 1\] of shape \(m,\), got \[0.5, 1.5\]"),
    ],
)
def test_comparison_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("groups", [None, ["a", "a", "b", "c", "c", "c"]])
def test_bootstrap_means_are_bootstrap_ci_of_every_column(groups):
    values = torch.rand(6, 3, generator=torch.Generator().manual_seed(1)).double()
    found = bootstrap_means(values, groups, resamples=500)
    for column in range(3):
        one = bootstrap_ci(values[:, column], groups, resamples=500)
        assert [bound[column].item() for bound in found[:3]] == pytest.approx(list(one))


def test_bootstrap_means_leave_a_nan_out_of_its_column_alone():
    nan = float("nan")
    found = bootstrap_means(torch.tensor([[1.0, nan, nan], [3.0, 5.0, nan], [nan, 7.0, 2.0]]))
    assert found.value.tolist() == [2.0, 6.0, 2.0]
    assert found.used.tolist() == [2, 2, 1]
    assert found.undefined.tolist() == [1, 1, 2]
    assert [found.low[0], found.high[0], found.low[1], found.high[1]] == [1.0, 3.0, 5.0, 7.0]
    assert found.low[2].isnan()
    assert bootstrap_means(torch.full((2, 1), nan)).value.isnan().all()


def test_bootstrap_means_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"values: expected shape \(N, L\), got \(3,\)"):
        bootstrap_means(torch.ones(3))
