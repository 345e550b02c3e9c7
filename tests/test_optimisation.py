"""Optimisers, schedules, class weights, and which images an epoch sees."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_recipes import PHASES

from lib import fitting, training
from lib.objective import PhaseModule
from lib.optimisation import (
    Rebalanced,
    ShuffledByEpoch,
    class_weights,
    decayed,
    make_optimizer,
    make_sampler,
    make_schedule,
)
from lib.recipe import Recipe
from lib.runs import Run, build_model


def rates(epochs=6, schedule="none", steps=6, per_step=False, **changes):
    recipe = Recipe(epochs=epochs, schedule=schedule, lr=1.0, **changes)
    optimizer = make_optimizer(recipe, recipe.phases[0], [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0}])
    made = make_schedule(recipe, recipe.phases[0], optimizer, steps)["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step(1.0) if schedule == "plateau" else made.step()
    return found


def test_schedules_by_hand():
    assert rates() == [1.0] * 6
    assert rates(schedule="multistep", milestones=[2, 4], decay=0.1) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rates(schedule="exponential", decay=0.5) == pytest.approx([1, 0.5, 0.25, 0.125, 0.0625, 0.03125])
    cosine = [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]
    assert rates(schedule="cosine") == pytest.approx(cosine, abs=1e-6)
    assert rates(schedule="clipped_cosine", lr_floor=0.3) == pytest.approx([*cosine[:4], 0.3, 0.3], abs=1e-6)
    assert rates(warmup_epochs=2) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    plateau = rates(schedule="plateau", plateau_patience=1, decay=0.5, lr_floor=0.3)
    assert plateau == pytest.approx([1, 1, 1, 0.5, 0.5, 0.3])
    one = rates(schedule="onecycle", steps=20)
    assert max(one) == pytest.approx(1.0)
    assert one.index(max(one)) == 4  # pct_start 0.25 of 20 steps
    assert one[-1] < 1e-3


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adadelta"])
def test_optimizers(tiny, name):
    recipe = tiny(optimizer=name, nesterov=True, weight_decay=0.01)
    made = make_optimizer(recipe, recipe.phases[0], [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1}])
    assert type(made).__name__.lower() == name
    assert made.defaults["weight_decay"] == 0.01
    assert made.param_groups[0]["lr"] == 0.1
    assert name != "sgd" or (made.defaults["momentum"] == 0.9 and made.defaults["nesterov"])


def test_class_weights(tiny):
    labels = torch.tensor([0, 0, 0, 1])
    assert class_weights(tiny(), labels, 2) is None
    assert torch.allclose(class_weights(tiny(class_weights="balanced"), labels, 2), torch.tensor([4 / 6, 2.0]))
    assert torch.equal(class_weights(tiny(class_weights=[1.0, 3.0]), labels, 2), torch.tensor([1.0, 3.0]))
    with pytest.raises(ValueError, match=r"class_weights: expected 2 values, got \[1.0\]"):
        class_weights(tiny(class_weights=[1.0]), labels, 2)


def test_order_depends_on_the_seed_of_the_epoch_only():
    sampler = ShuffledByEpoch(10, lambda epoch: 5 + epoch)
    first = list(sampler)
    assert sorted(first) == list(range(10))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(ShuffledByEpoch(10, lambda epoch: 6 + epoch)) == list(sampler)


@pytest.mark.parametrize("sampling", ["instance", "class_balanced"])
def test_every_seed_phase_and_epoch_has_an_order_of_its_own(tiny, sampling):
    labels, orders = torch.arange(20) % 2, []
    for seed in (0, 1):
        for phase in ("classifier", "explainer", "joint"):
            sampler = make_sampler(tiny(seed=seed, sampling=sampling), phase, labels)
            for epoch in range(2):
                sampler.set_epoch(epoch)
                orders.append(tuple(sampler))
                assert tuple(sampler) == orders[-1]
    assert len(set(orders)) == 12


def test_the_default_order_is_one_permutation(tiny):
    recipe = tiny(seed=3)
    sampler = make_sampler(recipe, "softcam", torch.zeros(20, dtype=torch.long))
    sampler.set_epoch(2)
    generator = torch.Generator().manual_seed(recipe.stream("order", "softcam", 2))
    assert list(sampler) == torch.randperm(20, generator=generator).tolist()


def test_a_phase_of_one_seed_draws_what_no_phase_of_another_seed_draws(tiny, monkeypatch):
    drawn = {}

    def first_draw(run, phase, *_):
        drawn[run.recipe.seed, phase.name] = torch.rand(1).item()

    monkeypatch.setattr(fitting, "fit_phase", first_draw)
    for seed in (0, 1, 2):
        training.train(tiny(name="draws", seed=seed, **PHASES))
    assert len(drawn) == len(set(drawn.values())) == 9


LABELS = torch.tensor([0] * 6 + [1] * 3 + [3])  # class 2 has no image


@pytest.mark.parametrize(
    ("sampling", "epoch", "share"),
    [
        ("class_balanced", 0, 1.0),
        ("class_balanced", 9, 1.0),
        ("progressive", 0, 0.0),
        ("progressive", 2, 0.75),
        ("progressive_reversed", 0, 1.0),
        ("progressive_reversed", 2, 0.25),
    ],
)
def test_probabilities_by_hand(sampling, epoch, share):
    sampler = Rebalanced(LABELS, int, sampling, decay=0.5)
    sampler.set_epoch(epoch)
    found = sampler.probabilities
    expected = [(1 - share) / 10 + share / 3 / count for count in [6] * 6 + [3] * 3 + [1]]
    assert found.tolist() == pytest.approx(expected)
    assert found.sum().item() == pytest.approx(1)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 30), st.floats(0.05, 0.95))
def test_progressive_sampling_mixes_its_ends_and_the_two_directions_mirror_each_other(labels, epoch, decay):
    labels = torch.tensor(labels)
    there, back = (Rebalanced(labels, int, kind, decay) for kind in ("progressive", "progressive_reversed"))
    for sampler in (there, back):
        sampler.set_epoch(epoch)
    balanced = Rebalanced(labels, int, "class_balanced", decay).probabilities
    torch.testing.assert_close(there.probabilities + back.probabilities, 1 / len(labels) + balanced)
    per_class = torch.zeros(5, dtype=torch.float64).scatter_add(0, labels, balanced)
    present = per_class[per_class > 0]
    torch.testing.assert_close(present, torch.full_like(present, 1 / len(present)))


def test_draws_follow_the_probabilities_and_depend_on_the_seed_of_the_epoch_only():
    labels = torch.tensor([0] * 9000 + [1] * 1000)
    sampler = Rebalanced(labels, int, "class_balanced", 0.9)
    first = list(sampler)
    assert len(first) == len(sampler) == 10000
    assert labels[first].float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    again = Rebalanced(labels, int, "class_balanced", 0.9)
    again.set_epoch(1)
    assert list(again) == second
    assert list(Rebalanced(labels, lambda epoch: 7 + epoch, "class_balanced", 0.9)) != first


def test_dynamic_weights_decay_from_balanced_to_one_while_training_only(tiny):
    recipe = tiny(class_weights="dynamic", class_weights_decay=0.5)
    weights = class_weights(recipe, torch.tensor([0, 0, 0, 1]), 2)
    assert torch.equal(weights, class_weights(tiny(class_weights="balanced"), torch.tensor([0, 0, 0, 1]), 2))
    module = PhaseModule(recipe, recipe.phases[0], build_model(recipe), Run(recipe.run_dir, recipe), weights)
    torch.testing.assert_close(module.train().current_weights, torch.tensor([2 / 3, 2.0]))
    assert module.eval().current_weights is None  # losses of different epochs are to be compared
    torch.testing.assert_close(decayed(weights, 0.5, 2), 1 + 0.25 * (torch.tensor([2 / 3, 2.0]) - 1))
    assert torch.allclose(decayed(weights, 0.5, 60), torch.ones(2))
