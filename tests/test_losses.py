"""The losses: the reference code's values, by hand, in float64 loops, at their limits."""

from functools import partial
from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_values import CPU, LOSSES, field
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.losses import (
    classification_loss,
    contiguity,
    evidence_penalty,
    explanation_loss,
    outside_penalty,
    sparsity,
)

CRITERIA = ("cross_entropy", "focal", "kappa", "mse", "mae", "smooth_l1")
focal_loss, kappa_loss = (partial(classification_loss, criterion=criterion) for criterion in ("focal", "kappa"))
DISTANCE = {"mse": lambda e: e * e, "mae": abs, "smooth_l1": lambda e: e * e / 2 if abs(e) < 1 else abs(e) - 0.5}


@pytest.fixture(scope="module")
def z() -> torch.Tensor:
    return field()[0][:, None].float()


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    return field()[1][:, None]


def of(*probabilities):
    """Logits of the given rows of probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def softmax(row):
    shifted = np.exp(row - row.max())
    return shifted / shifted.sum()


def batches(n):
    labels = st.lists(st.integers(0, 3), min_size=n, max_size=n)
    return st.tuples(arrays(np.float64, (n, 4), elements=st.floats(-8, 8)), labels)


BATCHES = st.integers(1, 6).flatmap(batches)


@pytest.mark.parametrize("name", LOSSES)
def test_the_values_of_the_reference_code(name):
    LOSSES[name](CPU)


def test_heatmaps_by_hand():
    z = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    assert sparsity(z).item() == 0.5
    assert contiguity(z).item() == 0.5 + 0.5  # rows (0.5 + 0.5) / 2, columns (1 + 0) / 2
    mask = torch.tensor([[[[1, 0], [0, 0]]]])
    assert outside_penalty(z, mask).item() == pytest.approx(2 / (3 + 1e-6))
    assert outside_penalty(torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4)).tolist() == [0, 0]
    assert explanation_loss(z, 0.9).item() == pytest.approx(0.9 * 0.5 + 0.1 * 1.0)
    assert explanation_loss(z, 0.9, mask, gamma=3.0).item() == pytest.approx(0.55 + 3 * 2 / 3)


def test_only_samples_with_a_mask_pay(z, masks):
    has_mask = torch.tensor([True, False, True, False])
    got = explanation_loss(z, 0.5, masks, 2.0, "sum", has_mask)
    penalty = outside_penalty(z, masks)
    torch.testing.assert_close(got, explanation_loss(z, 0.5, reduction="sum") + 2 * (penalty[0] + penalty[2]))
    none = explanation_loss(z, 0.5, torch.zeros_like(z), has_mask=torch.zeros(4, dtype=torch.bool))
    assert none == explanation_loss(z, 0.5)


@given(arrays(np.float32, (3, 1, 4, 5), elements=st.floats(0, 1, width=32)))
def test_heatmaps_in_loops_and_ranges(values):
    z = torch.from_numpy(values)
    for n in range(3):
        m = values[n, 0].astype(np.float64)
        rows = [abs(m[i + 1, j] - m[i, j]) for i in range(3) for j in range(5)]
        columns = [abs(m[i, j + 1] - m[i, j]) for i in range(4) for j in range(4)]
        assert contiguity(z)[n].item() == pytest.approx(np.mean(rows) + np.mean(columns), abs=1e-6)
        assert sparsity(z)[n].item() == pytest.approx(m.mean(), abs=1e-6)
    torch.testing.assert_close(contiguity(z), contiguity(z.transpose(2, 3)))
    torch.testing.assert_close(contiguity(z), contiguity(1 - z), atol=1e-6, rtol=0)
    assert contiguity(z).max() <= 2 and sparsity(z).max() <= 1


def test_evidence_by_hand_per_sample_and_at_zero():
    evidence = torch.zeros(2, 2, 2, 2, requires_grad=True)
    gradient = torch.autograd.grad(evidence_penalty(evidence, 1.0, 1.0), evidence)[0]
    assert gradient.isfinite().all()
    evidence = evidence.detach()
    assert evidence_penalty(evidence, 0.0, 0.0).item() == 0
    evidence[0, 0, 0, 0], evidence[0, 1, 1, 1] = 3, -4  # norms 7 and 5; the second sample is empty
    found = [evidence_penalty(evidence, l1, l2).item() for l1, l2 in ((1.0, 0.0), (0.0, 1.0), (2.0, 10.0))]
    assert found == [3.5, 2.5, 32]
    torch.testing.assert_close(evidence_penalty(evidence.flip(0), 0.3, 0.7), evidence_penalty(evidence, 0.3, 0.7))


def test_focal_by_hand():
    logits, labels = of([0.5, 0.5], [0.25, 0.75]), torch.tensor([0, 1])
    each = [0.5**2 * log(2), 0.25**2 * log(4 / 3)]
    assert focal_loss(logits, labels).item() == pytest.approx(sum(each) / 2)
    assert focal_loss(logits, labels, gamma=1.0).item() == pytest.approx((0.5 * log(2) + 0.25 * log(4 / 3)) / 2)
    weighted = focal_loss(logits, labels, weights=torch.tensor([3.0, 1.0])).item()
    assert weighted == pytest.approx((3 * each[0] + each[1]) / 4)


@given(BATCHES, st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_focal_in_loops_and_cross_entropy_as_its_limit(batch, gamma):
    logits, labels = torch.from_numpy(batch[0]), torch.tensor(batch[1])
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    total = mass = 0.0
    for row, y in zip(*batch, strict=True):
        p = softmax(row)[y]
        total += weights[y].item() * (1 - p) ** gamma * -log(p)
        mass += weights[y].item()
    assert focal_loss(logits, labels, gamma=gamma, weights=weights).item() == pytest.approx(
        total / mass, rel=1e-6, abs=1e-12
    )
    torch.testing.assert_close(
        focal_loss(logits, labels, gamma=0.0, weights=weights), F.cross_entropy(logits, labels, weights)
    )
    assert focal_loss(logits, labels, gamma=gamma) <= F.cross_entropy(logits, labels) + 1e-12


def test_kappa_as_another_implementation_documents_it():
    """The example in the documentation of tensorflow_addons' WeightedKappaLoss, whose value is -1.1611925."""
    logits = of([0.1, 0.2, 0.6, 0.1], [0.1, 0.5, 0.3, 0.1], [0.8, 0.05, 0.05, 0.1], [0.01, 0.09, 0.1, 0.8])
    assert kappa_loss(logits, torch.tensor([2, 1, 0, 3])).item() == pytest.approx(-1.1611925, abs=1e-6)


def test_kappa_by_hand_and_at_its_ends():
    sure = 60 * (2 * torch.eye(2, dtype=torch.float64) - 1)
    labels = torch.tensor([0, 1])
    assert kappa_loss(sure[labels], labels).item() == pytest.approx(log(1e-6))  # kappa 1
    assert kappa_loss(sure[1 - labels], labels).item() == pytest.approx(log(2), abs=1e-6)  # kappa -1
    assert kappa_loss(of([0.7, 0.3], [0.7, 0.3]), labels).item() == pytest.approx(0, abs=1e-5)  # chance
    one_grade = kappa_loss(of([0.2, 0.8], [0.9, 0.1]), torch.tensor([1, 1]))
    assert one_grade.item() == pytest.approx(0, abs=1e-5)


@settings(max_examples=40)
@given(BATCHES)
def test_kappa_in_loops(batch):
    labels = batch[1]
    p = np.array([softmax(row) for row in batch[0]])
    observed = sum((y - k) ** 2 / 9 * p[n, k] for n, y in enumerate(labels) for k in range(4))
    chance = sum((j - k) ** 2 / 9 * labels.count(j) * p[:, k].sum() / len(labels) for j in range(4) for k in range(4))
    got = kappa_loss(torch.from_numpy(batch[0]), torch.tensor(labels)).item()
    assert got == pytest.approx(log(observed / max(chance, 1e-12) + 1e-6), abs=1e-8)
    assert log(1e-6) - 1e-9 <= got <= log(2.1)


@pytest.mark.parametrize(("distance", "expected"), [("mse", 1.25), ("mae", 0.75), ("smooth_l1", 0.5)])
def test_grade_by_hand(distance, expected):
    logits, labels = of([0.5, 0.25, 0.25]), torch.tensor([0])  # wrong by 0, 1, 2
    assert classification_loss(logits, labels, distance).item() == pytest.approx(expected)
    both = torch.cat([logits, logits]), torch.tensor([0, 1])  # the second is wrong by 1, 0, 1
    second = {"mse": 0.75, "mae": 0.75, "smooth_l1": 0.375}[distance]
    weights = torch.tensor([1.0, 3.0, 9.0])
    assert classification_loss(*both, distance, weights).item() == pytest.approx((expected + 3 * second) / 4)


@given(BATCHES, st.sampled_from(list(DISTANCE)))
def test_grade_in_loops_and_mse_as_error_of_the_expected_grade_plus_variance(batch, distance):
    found = [sum(softmax(row)[k] * DISTANCE[distance](k - y) for k in range(4)) for row, y in zip(*batch, strict=True)]
    logits, labels = torch.from_numpy(batch[0]), torch.tensor(batch[1])
    assert classification_loss(logits, labels, distance).item() == pytest.approx(np.mean(found), abs=1e-9)
    p, k = logits.softmax(1), torch.arange(4.0, dtype=torch.float64)
    expected = ((p @ k - labels) ** 2 + p @ k**2 - (p @ k) ** 2).mean()
    torch.testing.assert_close(classification_loss(logits, labels, "mse"), expected, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize(("distance", "best"), [("mse", 2), ("mae", 1)])
def test_the_most_probable_class_is_the_rounded_regression(distance, best):
    """One image that is labelled 0, 1, 1, 4, 4 by turns: the mean is 2, the median 1."""
    labels, logits = torch.tensor([0, 1, 1, 4, 4]), torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        classification_loss(logits.expand(5, 5), labels, distance).backward()
        optimizer.step()
    assert logits.argmax().item() == best
    assert logits.softmax(1).max() > 0.9


@pytest.mark.parametrize("criterion", CRITERIA)
def test_each_criterion_learns_the_labels_and_has_finite_gradients_where_the_model_is_certain(criterion):
    torch.manual_seed(0)
    features, labels = torch.eye(6), torch.tensor([0, 1, 2, 0, 1, 2])
    weight = (0.1 * torch.randn(6, 3)).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        classification_loss(features @ weight, labels, criterion).backward()
        optimizer.step()
    assert torch.equal((features @ weight).argmax(1), labels)
    logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 0.0, 200.0]], requires_grad=True)
    for gamma in (0.5, 2.0):
        for labels in (torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([0, 0])):
            loss = classification_loss(logits, labels, criterion, gamma=gamma)
            assert loss.isfinite() and torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_the_default_is_torchs_cross_entropy_to_the_last_bit():
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 3), torch.randint(3, (9,))
    for weights in (None, torch.tensor([0.3, 1.7, 1.1])):
        got = classification_loss(logits, labels, weights=weights)
        assert torch.equal(got, F.cross_entropy(logits, labels, weights))


def test_half_precision_is_summed_in_float32(z, masks):
    half = z.bfloat16()
    assert explanation_loss(half, 0.9, masks).dtype == torch.float32
    assert explanation_loss(half, 0.9, masks).item() == pytest.approx(explanation_loss(z, 0.9, masks).item(), rel=1e-2)
    assert explanation_loss(z.double(), 0.9, masks).dtype == torch.float64
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for loss in (focal_loss, kappa_loss, partial(classification_loss, criterion="mse")):
        assert loss(logits.bfloat16(), labels).dtype == torch.float32
        torch.testing.assert_close(loss(logits.bfloat16(), labels), loss(logits, labels), rtol=0.05, atol=0.05)


def test_arguments_are_checked(z, masks):
    for said, call in {
        r"expected beta in \[0, 1\] .* got 1.5": lambda: explanation_loss(z, 1.5),
        "reduction 'mean' or 'sum', got 0.5 and 'none'": lambda: explanation_loss(z, 0.5, reduction="none"),
        r"mask: expected shape \(4, 1, 32, 32\) to match z, got \(4, 32, 32\)": lambda: outside_penalty(z, masks[:, 0]),
        r"has_mask: expected shape \(4,\), got \(3,\)": lambda: explanation_loss(z, 0.5, masks, has_mask=torch.ones(3)),
        r"z: expected floating-point maps of 4 dimensions, got torch.int64 \(2,\)": lambda: sparsity(
            torch.zeros(2, dtype=torch.long)
        ),
    }.items():
        with pytest.raises(ValueError, match=said):
            call()
