import numpy as np
import pytest
import torch
from golden_values import CPU, LOSSES, field
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.losses import contiguity, evidence_penalty, explanation_loss, outside_penalty, sparsity


@pytest.fixture(scope="module")
def z() -> torch.Tensor:
    return field()[0][:, None].float()


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    return field()[1][:, None]


@pytest.mark.parametrize("name", LOSSES)
def test_the_values_of_the_reference_code(name):
    LOSSES[name](CPU)


def test_by_hand():
    z = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    assert sparsity(z).item() == 0.5
    assert contiguity(z).item() == 0.5 + 0.5  # rows (0.5 + 0.5) / 2, columns (1 + 0) / 2
    mask = torch.tensor([[[[1, 0], [0, 0]]]])
    assert outside_penalty(z, mask).item() == pytest.approx(2 / (3 + 1e-6))
    assert explanation_loss(z, 0.9).item() == pytest.approx(0.9 * 0.5 + 0.1 * 1.0)
    assert explanation_loss(z, 0.9, mask, gamma=3.0).item() == pytest.approx(0.55 + 3 * 2 / 3)


def test_a_full_mask_costs_nothing():
    assert outside_penalty(torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4)).tolist() == [0, 0]


def test_only_samples_with_a_mask_pay(z, masks):
    has_mask = torch.tensor([True, False, True, False])
    got = explanation_loss(z, 0.5, masks, 2.0, "sum", has_mask)
    penalty = outside_penalty(z, masks)
    torch.testing.assert_close(got, explanation_loss(z, 0.5, reduction="sum") + 2 * (penalty[0] + penalty[2]))
    none = explanation_loss(z, 0.5, torch.zeros_like(z), has_mask=torch.zeros(4, dtype=torch.bool))
    assert none == explanation_loss(z, 0.5)


@given(arrays(np.float32, (3, 1, 4, 5), elements=st.floats(0, 1, width=32)))
def test_loops_in_float64_and_ranges(values):
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


def test_evidence_penalty_by_hand_and_per_sample():
    evidence = torch.zeros(2, 2, 2, 2)
    evidence[0, 0, 0, 0], evidence[0, 1, 1, 1] = 3, -4  # norms 7 and 5; the second sample is empty
    assert evidence_penalty(evidence, 1.0, 0.0).item() == 3.5
    assert evidence_penalty(evidence, 0.0, 1.0).item() == 2.5
    assert evidence_penalty(evidence, 2.0, 10.0).item() == 32
    assert evidence_penalty(evidence, 0.0, 0.0).item() == 0
    torch.testing.assert_close(evidence_penalty(evidence.flip(0), 0.3, 0.7), evidence_penalty(evidence, 0.3, 0.7))


def test_gradients_are_finite_at_zero():
    evidence = torch.zeros(2, 2, 3, 3, requires_grad=True)
    evidence_penalty(evidence, 1.0, 1.0).backward()
    assert evidence.grad.isfinite().all()


def test_half_precision_is_summed_in_float32(z, masks):
    half = z.bfloat16()
    assert explanation_loss(half, 0.9, masks).dtype == torch.float32
    assert explanation_loss(half, 0.9, masks).item() == pytest.approx(explanation_loss(z, 0.9, masks).item(), rel=1e-2)
    assert explanation_loss(z.double(), 0.9, masks).dtype == torch.float64


def test_arguments_are_checked(z, masks):
    with pytest.raises(ValueError, match=r"beta: expected a value in \[0, 1\], got 1.5"):
        explanation_loss(z, 1.5)
    with pytest.raises(ValueError, match="reduction: expected 'mean' or 'sum', got 'none'"):
        explanation_loss(z, 0.5, reduction="none")
    with pytest.raises(ValueError, match=r"mask: expected shape \(4, 1, 32, 32\) to match z, got \(4, 32, 32\)"):
        explanation_loss(z, 0.5, masks[:, 0])
    with pytest.raises(ValueError, match=r"has_mask: expected shape \(4,\), got \(3,\)"):
        explanation_loss(z, 0.5, masks, has_mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"z: expected floating-point maps of 4 dimensions, got torch.int64 \(2, 2\)"):
        sparsity(torch.ones(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="l1, l2: expected values >= 0, got -1, 0"):
        evidence_penalty(torch.rand(1, 1, 2, 2), -1, 0)
