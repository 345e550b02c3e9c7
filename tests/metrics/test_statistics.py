import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.metrics import bootstrap_ci


def randn(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).double()


def test_two_values_by_hand():
    # resamples have the means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert bootstrap_ci(torch.tensor([0.0, 1.0])) == (0, 0.5, 1)
    assert bootstrap_ci(torch.tensor([0.0, 1.0]), level=0.4) == (0.5, 0.5, 0.5)


def test_groups_are_drawn_whole():
    values, groups = torch.tensor([0.0, 0, 0, 1]), ["a", "a", "a", "b"]
    # means: 0 (aa), 1 (bb), 1/4 (ab): nothing else can occur
    seen = set()
    bootstrap_ci(values, groups, statistic=lambda drawn: seen.add((len(drawn), drawn.mean().item())) or drawn.mean())
    assert seen == {(6, 0.0), (2, 1.0), (4, 0.25)}
    assert bootstrap_ci(values, groups, level=0.4) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("groups", [[""] * 30, [None] * 30, [float("nan")] * 30, torch.arange(30)])
def test_nameless_groups_stand_alone(groups):
    assert bootstrap_ci(randn(30), groups) == bootstrap_ci(randn(30))


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), members=st.integers(2, 9))
def test_fast_mean_equals_any_statistic(seed, members):
    values = randn(40, seed)
    groups = torch.randint(members, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    fast = bootstrap_ci(values, groups, resamples=50, seed=seed)
    slow = bootstrap_ci(values, groups, statistic=lambda drawn: drawn.mean(), resamples=50, seed=seed)
    assert fast == pytest.approx(slow)


def test_nan_is_left_out_and_one_group_has_no_interval():
    values = torch.tensor([1.0, float("nan"), 3.0, float("nan")])
    assert bootstrap_ci(values, ["a", "b", "c", "c"]) == bootstrap_ci(values[::2])
    assert bootstrap_ci(values).point == 2
    assert np.isnan(bootstrap_ci(values[1::2])).all()
    low, point, high = bootstrap_ci(values, ["a"] * 4)
    assert np.isnan(low) and point == 2 and np.isnan(high)


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
        ({"values": torch.zeros(2, 2, 2)}, r"values: expected shape \(N,\) or \(N, d\), got .* \(2, 2, 2\)"),
        ({"groups": ["a"]}, "groups: expected 3 entries to match values, got 1"),
        ({"level": 95}, "level: expected a value between 0 and 1, got 95"),
    ],
)
def test_wrong_arguments_are_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ci(**{"values": torch.zeros(3)} | arguments)
