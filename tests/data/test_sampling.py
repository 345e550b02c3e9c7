"""Which images an epoch sees, and how much each class counts."""

from unittest.mock import patch

import pytest
import torch

from lib.data.sampling import EpochSampler, class_weights


def probabilities(sampler):
    """Of each image in the sampler's epoch: (N,)."""
    with patch("torch.multinomial", return_value=torch.zeros(0)) as drawn:
        list(sampler)
    return drawn.call_args.args[0]


LABELS = torch.tensor([0] * 6 + [1] * 3 + [3])  # class 2 has no image


def test_the_default_order_is_one_permutation_of_the_epochs_seed():
    sampler = EpochSampler(torch.zeros(20), lambda epoch: 5 + epoch)
    sampler.set_epoch(2)
    assert list(sampler) == torch.randperm(20, generator=torch.Generator().manual_seed(7)).tolist() == list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == list(EpochSampler(torch.zeros(20), lambda epoch: 6)) != list(range(20))


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        ("class_balanced", {0: 1.0, 9: 1.0}),
        ("progressive", {0: 0.0, 2: 0.75}),
        ("progressive_reversed", {0: 1.0, 2: 0.25}),
    ],
)
def test_probabilities_by_hand(sampling, shares):
    sampler = EpochSampler(LABELS, int, sampling, decay=0.5)
    for epoch, share in shares.items():
        sampler.set_epoch(epoch)
        expected = [(1 - share) / 10 + share / 3 / count for count in [6] * 6 + [3] * 3 + [1]]
        assert probabilities(sampler).tolist() == pytest.approx(expected)


def test_draws_follow_the_probabilities_and_depend_on_the_seed_of_the_epoch_only():
    labels = torch.tensor([0] * 9000 + [1] * 1000)
    sampler = EpochSampler(labels, int, "class_balanced")
    first = list(sampler)
    assert len(first) == len(sampler) == 10000
    assert labels[first].float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(EpochSampler(labels, lambda epoch: 1, "class_balanced")) == list(sampler)


def test_class_weights():
    labels = torch.tensor([0, 0, 0, 1])
    assert class_weights(None, labels, 2) is None
    for kind in ("balanced", "dynamic"):
        assert torch.allclose(class_weights(kind, labels, 2), torch.tensor([4 / 6, 2.0]))
    assert torch.equal(class_weights([1.0, 3.0], labels, 2), torch.tensor([1.0, 3.0]))
