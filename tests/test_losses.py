"""The losses: the reference code's values, by hand, in float64 loops, at their limits."""

from functools import partial
from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_values import OF_METRICS, field
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from lib.losses import classification_loss, contiguity, evidence_penalty, explanation_loss, outside_penalty, sparsity

CRITERIA = ("cross_entropy", "focal", "kappa", "mse", "mae", "smooth_l1")
focal_loss, kappa_loss = (partial(classification_loss, criterion=criterion) for criterion in ("focal", "kappa"))
DISTANCE = {"mse": lambda e: e * e, "mae": abs, "smooth_l1": lambda e: e * e / 2 if abs(e) < 1 else abs(e) - 0.5}
Z, MASKS = (values[:, None].float() for values in field())


def of(*probabilities):
    """Logits of the given rows of probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def batches(n):
    labels = st.lists(st.integers(0, 3), min_size=n, max_size=n)
    return st.tuples(arrays(np.float64, (n, 4), elements=st.floats(-8, 8)), labels)


BATCHES = st.integers(1, 6).flatmap(batches)


def descended(start, loss, steps):
    """The value that many steps of gradient descent lead to."""
    variable = start.requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(variable).backward()
        optimizer.step()
    return variable.detach()


@pytest.mark.parametrize("name", [name for name in OF_METRICS if name.startswith(("unsup_", "hybrid_"))])
def test_the_values_of_the_reference_code(name):
    kind, beta, *gamma, reduction = name.split("_")
    mask, weight = (MASKS, float(gamma[0].removeprefix("gamma"))) if kind == "hybrid" else (None, 1.0)
    loss = explanation_loss(Z, float(beta.removeprefix("beta")), mask, weight, reduction)
    assert loss.item() == pytest.approx(OF_METRICS[name], rel=1e-6)


HEATMAP, MASK = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]]), torch.tensor([[[[1, 0], [0, 0]]]])
EVIDENCE = torch.zeros(2, 2, 2, 2)
EVIDENCE[0, 0, 0, 0], EVIDENCE[0, 1, 1, 1] = 3, -4  # norms 7 and 5; the second sample is empty
TWO, FOCAL = (of([0.5, 0.5], [0.25, 0.75]), torch.tensor([0, 1])), (0.5**2 * log(2), 0.25**2 * log(4 / 3))
DOCUMENTED = of([0.1, 0.2, 0.6, 0.1], [0.1, 0.5, 0.3, 0.1], [0.8, 0.05, 0.05, 0.1], [0.01, 0.09, 0.1, 0.8])
SURE, CHANCE = 60 * (2 * torch.eye(2, dtype=torch.float64) - 1), of([0.7, 0.3], [0.7, 0.3])
GRADES = of([0.5, 0.25, 0.25]).expand(2, 3), torch.tensor([0, 1])  # wrong by 0, 1, 2 and by 1, 0, 1


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda: sparsity(HEATMAP), 0.5),
        (lambda: contiguity(HEATMAP), 0.5 + 0.5),  # rows (0.5 + 0.5) / 2, columns (1 + 0) / 2
        (lambda: outside_penalty(HEATMAP, MASK), 2 / (3 + 1e-6)),
        (lambda: outside_penalty(HEATMAP, torch.ones_like(MASK)), 0),
        (lambda: explanation_loss(HEATMAP, 0.9), 0.9 * 0.5 + 0.1 * 1.0),
        (lambda: explanation_loss(HEATMAP, 0.9, MASK, gamma=3.0), 0.55 + 3 * 2 / 3),
        (lambda: evidence_penalty(EVIDENCE, 1.0, 0.0), 7 / 2),
        (lambda: evidence_penalty(EVIDENCE, 0.0, 1.0), 5 / 2),
        (lambda: evidence_penalty(EVIDENCE.flip(0), 2.0, 10.0), 32),
        (lambda: focal_loss(*TWO), sum(FOCAL) / 2),
        (lambda: focal_loss(*TWO, weights=torch.tensor([3.0, 1.0])), (3 * FOCAL[0] + FOCAL[1]) / 4),
        # the example in the documentation of tensorflow_addons' WeightedKappaLoss
        (lambda: kappa_loss(DOCUMENTED, torch.tensor([2, 1, 0, 3])), -1.1611925),
        (lambda: kappa_loss(SURE, torch.tensor([0, 1])), log(1e-6)),  # kappa 1
        (lambda: kappa_loss(SURE, torch.tensor([1, 0])), log(2)),  # kappa -1
        (lambda: kappa_loss(CHANCE, torch.tensor([0, 1])), 0),
        (lambda: kappa_loss(CHANCE, torch.tensor([1, 1])), 0),  # a single grade
        (lambda: classification_loss(*GRADES, "mse", torch.tensor([1.0, 3.0, 9.0])), (1.25 + 3 * 0.75) / 4),
        (lambda: classification_loss(*GRADES, "mae", torch.tensor([1.0, 3.0, 9.0])), (0.75 + 3 * 0.75) / 4),
    ],
)
def test_values_by_hand(loss, expected):
    assert loss().item() == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_only_samples_with_a_mask_pay():
    got = explanation_loss(Z, 0.5, MASKS, 2.0, "sum", torch.tensor([True, False, True, False]))
    penalty = outside_penalty(Z, MASKS)
    torch.testing.assert_close(got, explanation_loss(Z, 0.5, reduction="sum") + 2 * (penalty[0] + penalty[2]))


def test_the_gradient_of_no_evidence_is_finite():
    evidence = torch.zeros(2, 2, 2, 2, requires_grad=True)
    assert torch.autograd.grad(evidence_penalty(evidence, 1.0, 1.0), evidence)[0].isfinite().all()


@given(BATCHES, st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_focal_again_and_cross_entropy_as_its_limit(batch, gamma):
    logits, labels = torch.from_numpy(batch[0]), torch.tensor(batch[1])
    weights = np.array([1.0, 2.0, 0.5, 3.0])
    p, each = softmax(batch[0], 1)[range(len(labels)), batch[1]], weights[batch[1]]
    weights, expected = torch.tensor(weights), (each * (1 - p) ** gamma * -np.log(p)).sum() / each.sum()
    found = focal_loss(logits, labels, gamma=gamma, weights=weights).item()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)
    limit = focal_loss(logits, labels, gamma=0.0, weights=weights)
    torch.testing.assert_close(limit, F.cross_entropy(logits, labels, weights))


@given(BATCHES)
def test_kappa_in_loops(batch):
    p, labels = softmax(batch[0], 1), batch[1]
    observed = sum((y - k) ** 2 / 9 * p[n, k] for n, y in enumerate(labels) for k in range(4))
    chance = sum((j - k) ** 2 / 9 * labels.count(j) * p[:, k].sum() / len(labels) for j in range(4) for k in range(4))
    got = kappa_loss(torch.from_numpy(batch[0]), torch.tensor(labels)).item()
    assert got == pytest.approx(log(observed / max(chance, 1e-12) + 1e-6), abs=1e-8)
    assert log(1e-6) - 1e-9 <= got <= log(2.1)


@given(BATCHES, st.sampled_from(list(DISTANCE)))
def test_grades_in_loops_and_mse_as_error_of_the_expected_grade_plus_variance(batch, distance):
    p, grades = softmax(batch[0], 1), np.arange(4)
    found = [sum(row[k] * DISTANCE[distance](k - y) for k in range(4)) for row, y in zip(p, batch[1], strict=True)]
    given = torch.from_numpy(batch[0]), torch.tensor(batch[1])
    assert classification_loss(*given, distance).item() == pytest.approx(np.mean(found), abs=1e-9)
    expected = ((p @ grades - batch[1]) ** 2 + p @ grades**2 - (p @ grades) ** 2).mean()
    assert classification_loss(*given, "mse").item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("distance", "best"), [("mse", 2), ("mae", 1)])
def test_the_most_probable_class_is_the_rounded_regression(distance, best):
    """One image that is labelled 0, 1, 1, 4, 4 by turns: the mean is 2, the median 1."""
    labels, start = torch.tensor([0, 1, 1, 4, 4]), torch.zeros(1, 5, dtype=torch.float64)
    p = descended(start, lambda logits: classification_loss(logits.expand(5, 5), labels, distance), 300).softmax(1)
    assert p.argmax().item() == best and p.max() > 0.9


@pytest.mark.parametrize("criterion", CRITERIA)
def test_each_criterion_learns_the_labels_and_has_finite_gradients_where_the_model_is_certain(criterion):
    torch.manual_seed(0)
    features, labels = torch.eye(6), torch.tensor([0, 1, 2, 0, 1, 2])
    learnt = descended(0.1 * torch.randn(6, 3), lambda w: classification_loss(features @ w, labels, criterion), 100)
    assert torch.equal((features @ learnt).argmax(1), labels)
    logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 0.0, 200.0]], requires_grad=True)
    for gamma in (0.5, 2.0):
        for labels in (torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([0, 0])):
            loss = classification_loss(logits, labels, criterion, gamma=gamma)
            assert loss.isfinite() and torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_the_default_is_torchs_cross_entropy_to_the_last_bit():
    logits, labels = torch.randn(9, 3), torch.randint(3, (9,))
    for weights in (None, torch.tensor([0.3, 1.7, 1.1])):
        found = classification_loss(logits, labels, weights=weights)
        assert torch.equal(found, F.cross_entropy(logits, labels, weights))


def test_half_precision_is_summed_in_float32():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    losses = [lambda dtype: explanation_loss(Z.to(dtype), 0.9, MASKS)]
    losses += [lambda dtype, c=c: classification_loss(logits.to(dtype), labels, c) for c in ("focal", "kappa", "mse")]
    for loss in losses:
        assert loss(torch.bfloat16).dtype == torch.float32 and loss(torch.float64).dtype == torch.float64
        torch.testing.assert_close(loss(torch.bfloat16), loss(torch.float32), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explanation_loss(Z, 1.5), r"expected beta in \[0, 1\] .* got 1.5"),
        (lambda: explanation_loss(Z, 0.5, reduction="none"), "reduction 'mean' or 'sum', got 0.5 and 'none'"),
        (lambda: outside_penalty(Z, MASKS[:, 0]), r"mask: expected shape \(4, 1, 32, 32\) .* got \(4, 32, 32\)"),
        (lambda: explanation_loss(Z, 0.5, has_mask=torch.ones(3)), r"has_mask: expected shape \(4,\), got \(3,\)"),
        (lambda: sparsity(torch.zeros(2).long()), r"z: expected floating-point maps of 4 dimensions, got .*int64 \(2,"),
    ],
)
def test_wrong_arguments_are_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
