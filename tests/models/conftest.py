import golden_values
import pytest
import torch


@pytest.fixture(scope="session")
def golden() -> dict:
    """What the reference code of both papers puts out for the images and weights of these formulas."""
    return golden_values.OF_MODELS


@pytest.fixture(scope="session")
def image():
    return golden_values.image


@pytest.fixture(scope="session")
def formula_weights():
    return golden_values.formula_weights


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
