import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.metrics.localisation import pompom, pompom_curve

NAN = float("nan")


def test_pompom_by_hand():
    z = torch.tensor([[[0.5, 0.0], [0.1, 0.2]]]).repeat(3, 1, 1)
    z[2] = 0
    masks = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]])
    assert pompom(z, masks, eps=0).tolist() == pytest.approx([2 / 3, NAN, 0], nan_ok=True)  # nothing open: 0


def test_pompom_curve_by_hand():
    z = torch.tensor([[[0.5, 0.0], [0.1, 0.2]]]).repeat(4, 1, 1)
    z[2] = 0
    masks = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]], [[1, 1], [1, 1]]])
    curve = pompom_curve(z, masks, eps=[0, 0.15, 0.3, 0.5])
    assert curve[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert curve[1].isnan().all() and curve[2:].tolist() == [[0, 0, 0, 0]] * 2
    assert curve[:, 0].tolist() == pytest.approx(pompom(z, masks).tolist(), nan_ok=True)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_pompom_curve_never_rises_and_starts_at_pompom(seed):
    generator = torch.Generator().manual_seed(seed)
    z = (torch.rand(4, 6, 5, generator=generator) - 0.3).clamp(0)
    masks = torch.rand(4, 6, 5, generator=generator) > 0.7
    curve = pompom_curve(z, masks)
    assert torch.equal(curve[:, 0].nan_to_num(9), pompom(z, masks).nan_to_num(9))
    steps = curve.diff(dim=1)
    assert (steps[~steps.isnan()] <= 0).all()


def test_errors():
    z, masks = torch.ones(1, 2, 2), torch.ones(1, 2, 2)
    with pytest.raises(ValueError, match=r"eps: expected values of at least 0, got \[-0.1\]"):
        pompom_curve(z, masks, [-0.1])
    with pytest.raises(ValueError, match=r"z: expected values of at least 0, got -1.0"):
        pompom_curve(-z, masks, [0.5])
    with pytest.raises(ValueError, match="eps: expected at least one value, got none"):
        pompom_curve(z, masks, [])
