"""The benchmarks' own arithmetic and words; the timing itself needs the peers and runs by `make bench`."""

import math
import subprocess
import sys

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import memory, models
from benchmarks.timing import Row, compare, difference, interleaved, peer, table
from lib import PROJECT


def test_calls_are_interleaved_and_the_first_round_is_not_counted():
    order = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3)
    assert order == ["a", "b"] * 4
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_ratio_is_the_median_of_the_turns_own_ratios():
    seconds = {"ours": [1.0, 2.0, 4.0], "peer": [3.0, 2.0, 8.0]}  # ratios 3, 1, 2
    (row,) = compare("work", seconds, {"peer": "same"}, target=2)
    assert (row.low, row.ratio, row.high) == (1.5, 2.0, 2.5)
    assert (row.ours_ms, row.peer_ms) == (2000.0, 3000.0)
    assert row.met and not compare("work", seconds, {"peer": "same"}, target=2.01)[0].met


def test_table_marks_what_is_met_and_missed():
    rows = [Row("work", "peer", 1.25, 2.5, ratio, 1.5, 2.5, 2.0, "same") for ratio in (2.0, 1.99)]
    assert table(rows).splitlines()[2:] == [
        "| work | peer | 1.2 | 2.5 | 2.00 (1.50 to 2.50) | 2 | met | same |",
        "| work | peer | 1.2 | 2.5 | 1.99 (1.50 to 2.50) | 2 | **missed** | same |",
    ]


def test_difference_is_the_largest_and_stops_above_the_tolerance():
    ours = torch.tensor([0.0, 1.0])
    assert difference(ours, torch.tensor([0.5, 1.0]), 0.5) == "max. difference 5e-01"
    wrong = {"differ by 0.25": torch.tensor([0.0, 0.75]), "shapes": ours[:1], "nan": ours * torch.nan}
    for message, theirs in wrong.items():
        with pytest.raises(AssertionError, match=message):
            difference(ours, theirs, 0.2)


def test_a_missing_peer_and_an_unknown_benchmark_are_named():
    with pytest.raises(SystemExit, match=r"^no_such_peer: not installed.*pip install -e '\.\[bench\]'$"):
        peer("no_such_peer")
    assert peer("torch") is torch
    with pytest.raises(SystemExit, match="expected some of perturbation, cam, forward, start, memory, got speed"):
        command.main(["speed"])


def test_networks_are_seeded_in_evaluation_mode_and_samples_in_range():
    images, maps, classes = models.samples(3, 16)
    assert images.shape == (3, 3, 16, 16) and maps.shape == (3, 16, 16) and classes.tolist() == [0, 1, 0]
    assert images.min() >= 0 and images.max() <= 1
    for name in ("tiny", "full", "compact"):
        model, again = models.network(name), models.network(name)
        assert not any(module.training for module in model.modules())
        assert torch.equal(model(images), again(images)) and model(images).shape == (3, 2)


def test_memory_verdict_allows_what_is_stored_and_little_more():
    images, maps, _ = models.samples(10, memory.SIDE)
    assert memory.stored_mb(10) == pytest.approx((images.nbytes + maps.nbytes) / 1e6)
    assert memory.verdict(20 + memory.SLACK_MB, 20).endswith(" met")
    assert memory.verdict(20.1 + memory.SLACK_MB, 20).endswith("**missed**")
    assert memory.verdict(math.nan, 20) == "Not measured: the peak is read from /proc, which Linux alone has."


def test_peak_memory_grows_with_what_is_held_and_stays():
    """In a process of its own: the tests before may have left a higher peak."""
    code = """if True:
        import torch
        from benchmarks import memory
        before = memory.evaluate(2)
        held = torch.ones(100_000_000)
        after = memory.peak_mb()
        del held
        print(before, after, memory.peak_mb())"""
    made = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    before, after, later = map(float, made.stdout.split())
    if sys.platform == "linux":
        assert before + 200 < after < later + 10  # the kernel counts pages in batches
    else:
        assert math.isnan(before) and math.isnan(after) and math.isnan(later)
