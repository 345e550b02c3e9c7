"""The losses of logits: closed forms, loops in float64, limits."""

from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.losses import focal_loss, grade_loss, kappa_loss
from lib.objective import classification_loss
from lib.recipe import Recipe

DISTANCE = {"mse": lambda e: e * e, "mae": abs, "smooth_l1": lambda e: e * e / 2 if abs(e) < 1 else abs(e) - 0.5}


def of(*probabilities):
    """Logits of the given rows of probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def softmax(row):
    shifted = np.exp(row - row.max())
    return shifted / shifted.sum()


batches = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, (n, 4), elements=st.floats(-8, 8)), st.lists(st.integers(0, 3), min_size=n, max_size=n)
    )
)


def test_focal_by_hand():
    logits = of([0.5, 0.5], [0.25, 0.75])
    labels = torch.tensor([0, 1])
    each = [0.5**2 * log(2), 0.25**2 * log(4 / 3)]
    assert focal_loss(logits, labels).item() == pytest.approx(sum(each) / 2)
    assert focal_loss(logits, labels, 1.0).item() == pytest.approx((0.5 * log(2) + 0.25 * log(4 / 3)) / 2)
    weighted = focal_loss(logits, labels, weights=torch.tensor([3.0, 1.0])).item()
    assert weighted == pytest.approx((3 * each[0] + each[1]) / 4)


@given(batches, st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_focal_in_loops_and_cross_entropy_as_its_limit(batch, gamma):
    logits, labels = torch.from_numpy(batch[0]), torch.tensor(batch[1])
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    total = mass = 0.0
    for row, y in zip(*batch, strict=True):
        p = softmax(row)[y]
        total += weights[y].item() * (1 - p) ** gamma * -log(p)
        mass += weights[y].item()
    assert focal_loss(logits, labels, gamma, weights).item() == pytest.approx(total / mass, rel=1e-6, abs=1e-12)
    torch.testing.assert_close(focal_loss(logits, labels, 0.0, weights), F.cross_entropy(logits, labels, weights))
    assert focal_loss(logits, labels, gamma) <= F.cross_entropy(logits, labels) + 1e-12


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
@given(batches)
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
    assert grade_loss(logits, labels, distance).item() == pytest.approx(expected)
    both = torch.cat([logits, logits]), torch.tensor([0, 1])  # the second is wrong by 1, 0, 1
    second = {"mse": 0.75, "mae": 0.75, "smooth_l1": 0.375}[distance]
    weights = torch.tensor([1.0, 3.0, 9.0])
    assert grade_loss(*both, distance, weights).item() == pytest.approx((expected + 3 * second) / 4)


@given(batches, st.sampled_from(list(DISTANCE)))
def test_grade_in_loops(batch, distance):
    found = [sum(softmax(row)[k] * DISTANCE[distance](k - y) for k in range(4)) for row, y in zip(*batch, strict=True)]
    got = grade_loss(torch.from_numpy(batch[0]), torch.tensor(batch[1]), distance)
    assert got.item() == pytest.approx(np.mean(found), abs=1e-9)


@given(batches)
def test_mse_is_the_error_of_the_expected_grade_plus_the_variance(batch):
    logits, labels = torch.from_numpy(batch[0]), torch.tensor(batch[1])
    p, k = logits.softmax(1), torch.arange(4.0, dtype=torch.float64)
    grade = p @ k
    expected = ((grade - labels) ** 2 + p @ k**2 - grade**2).mean()
    torch.testing.assert_close(grade_loss(logits, labels, "mse"), expected, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize(("distance", "best"), [("mse", 2), ("mae", 1)])
def test_the_most_probable_class_is_the_rounded_regression(distance, best):
    """One image that is labelled 0, 1, 1, 4, 4 by turns: the mean is 2, the median 1."""
    labels, logits = torch.tensor([0, 1, 1, 4, 4]), torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        grade_loss(logits.expand(5, 5), labels, distance).backward()
        optimizer.step()
    assert logits.argmax().item() == best
    assert logits.softmax(1).max() > 0.9


@pytest.mark.parametrize("criterion", ["cross_entropy", "focal", "kappa", "mse", "mae", "smooth_l1"])
def test_gradients_are_finite_where_the_model_is_certain(criterion):
    for gamma in (0.5, 2.0):
        logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 0.0, 200.0]], requires_grad=True)
        recipe = Recipe(criterion=criterion, focal_gamma=gamma)
        for labels in (torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([0, 0])):
            loss = classification_loss(recipe, logits, labels, None)
            assert loss.isfinite()
            assert torch.autograd.grad(loss, logits)[0].isfinite().all()


@pytest.mark.parametrize("criterion", ["cross_entropy", "focal", "kappa", "mse", "mae", "smooth_l1"])
def test_a_few_steps_learn_the_labels(criterion):
    torch.manual_seed(0)
    features, labels = torch.eye(6), torch.tensor([0, 1, 2, 0, 1, 2])
    weight = (0.1 * torch.randn(6, 3)).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        classification_loss(Recipe(criterion=criterion), features @ weight, labels, None).backward()
        optimizer.step()
    assert torch.equal((features @ weight).argmax(1), labels)


def test_the_default_is_torchs_cross_entropy_to_the_last_bit():
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 3), torch.randint(3, (9,))
    for weights in (None, torch.tensor([0.3, 1.7, 1.1])):
        got = classification_loss(Recipe(), logits, labels, weights)
        assert torch.equal(got, F.cross_entropy(logits, labels, weights))


def test_half_precision_is_summed_in_float32():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for loss in (focal_loss, kappa_loss, lambda *both: grade_loss(*both, "mse")):
        assert loss(logits.bfloat16(), labels).dtype == torch.float32
        torch.testing.assert_close(loss(logits.bfloat16(), labels), loss(logits, labels), rtol=0.05, atol=0.05)


def test_arguments_are_checked():
    logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="gamma: expected a value >= 0, got -1"):
        focal_loss(logits, labels, -1)
    with pytest.raises(ValueError, match="distance: expected one of mse, mae, smooth_l1, got 'rmse'"):
        grade_loss(logits, labels, "rmse")
    with pytest.raises(ValueError, match=r"logits: expected floating-point values of shape \(N, K >= 2\), .* \(2, 1\)"):
        kappa_loss(logits[:, :1], labels)
    with pytest.raises(ValueError, match=r"labels: expected shape \(2,\), got \(1,\)"):
        focal_loss(logits, labels[:1])
