import json
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def golden() -> dict:
    """What the reference code of both papers puts out for the images and weights of the formulas below."""
    return json.loads((Path(__file__).parents[1] / "golden" / "reference_models.json").read_text())


@pytest.fixture(scope="session")
def image():
    def build(n: int, h: int, w: int, c: int = 3, phase: float = 0.0) -> torch.Tensor:
        i = np.arange(n * c * h * w, dtype=np.float64)
        x = (np.sin(0.013 * i + phase) + np.cos(0.0031 * i)) * 0.25 + 0.5
        return torch.from_numpy(x.reshape(n, c, h, w)).float()

    return build


@pytest.fixture(scope="session")
def formula_weights():
    def build(shapes: dict[str, list[int]], gain: float = 1.0) -> dict[str, torch.Tensor]:
        state = {}
        for t, (name, shape) in enumerate(shapes.items()):
            numel = int(np.prod(shape))
            b = np.sin(0.7 * np.arange(numel, dtype=np.float64) + 1.3 * t)
            if name.endswith("num_batches_tracked"):
                state[name] = torch.tensor(0)
                continue
            if name.endswith("running_var"):
                b = 1 + 0.5 * b
            elif name.endswith("running_mean"):
                b = 0.1 * b
            elif len(shape) <= 1:
                b = 1 + 0.1 * b if name.endswith("weight") else 0.05 * b
            else:
                b = gain * b * np.sqrt(2 / (numel / shape[0]))
            state[name] = torch.from_numpy(b.reshape(shape)).float()
        return state

    return build


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
