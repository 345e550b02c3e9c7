"""What the reference code of both papers puts out (tests/golden), and how its inputs were made.

`MODELS` are checks of the networks by name, on any device. The tolerances are those of float32, on a GPU without TF32,
whose products have 10 bits.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib.models import Explainer, SoftCAM, blackbox, load_reference_checkpoint, load_reference_state

FOLDER = Path(__file__).parent / "golden"
OF_MODELS, OF_METRICS = (
    json.loads((FOLDER / f"reference_{kind}.json").read_text(encoding="utf-8")) for kind in ("models", "metrics")
)


def image(n: int, h: int, w: int, c: int = 3, phase: float = 0.0) -> Tensor:
    i = np.arange(n * c * h * w, dtype=np.float64)
    x = (np.sin(0.013 * i + phase) + np.cos(0.0031 * i)) * 0.25 + 0.5
    return torch.from_numpy(x.reshape(n, c, h, w)).float()


def formula_weights(shapes: dict[str, list[int]], gain: float = 1.0) -> dict[str, Tensor]:
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


def empty(build, *args, **kwargs) -> nn.Module:
    """A model without initial values, in eval mode: every tensor must come from the file."""
    with torch.device("meta"):
        model = build(*args, **kwargs)
    return model.to_empty(device="cpu").eval()


def assert_summary(values: Tensor, expected: dict) -> None:
    """Of the samples within 2e-4 of the largest: in float32 VGG-16 is off by .6e-4 in the reference, 1.2e-4 on AVX2."""
    flat, scale = values.cpu().double().flatten(), max(map(abs, expected["samples"]))
    samples = flat[torch.from_numpy(np.linspace(0, len(flat) - 1, 17).astype(int))].tolist()
    assert list(values.shape) == expected["shape"]
    assert flat.sum().item() == pytest.approx(expected["sum"], rel=1e-4, abs=1e-4 * expected["abs_sum"] / 1000)
    assert flat.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-4)
    assert samples == pytest.approx(expected["samples"], rel=1e-4, abs=2e-4 * scale)


def check_softcam(architecture: str, device: torch.device, folder: Path) -> None:
    """From the file alone: architecture, classes and names are told from the tensors."""
    expected = OF_MODELS[f"softcam_{architecture}_out"]
    torch.save(formula_weights(OF_MODELS[f"softcam_{architecture}_keys"], expected["gain"]), folder / "model.pt")
    model = load_reference_checkpoint(folder / "model.pt")
    assert isinstance(model, SoftCAM)
    assert not model.training
    with torch.no_grad():
        logits, evidence = model.to(device)(image(2, 224, 224).to(device))
    torch.testing.assert_close(logits.cpu(), torch.tensor(expected["logits"]), rtol=1e-4, atol=0)
    assert_summary(evidence, expected["evidence"])


def check_explainer(device: torch.device, folder: Path) -> None:
    explainer = load_reference_state(empty(Explainer), formula_weights(OF_MODELS["xml_explainer_keys"])).to(device)
    with torch.no_grad():
        assert_summary(explainer(image(2, 224, 224).to(device)), OF_MODELS["xml_explainer_out"])


def check_classifier(reference: str, architecture: str, device: torch.device, folder: Path) -> None:
    expected = OF_MODELS[f"xml_{reference}_out"]
    state = formula_weights(OF_MODELS[f"xml_{reference}_keys"], expected["gain"])
    classifier = load_reference_state(empty(blackbox, architecture, 2), state).to(device)
    with torch.no_grad():
        logits = classifier(image(2, 224, 224).to(device), image(2, 224, 224, c=1, phase=0.4).to(device))
    torch.testing.assert_close(logits.cpu(), torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-6)


MODELS: dict[str, Callable[[torch.device, Path], None]] = {
    **{f"SoftCAM {name}": partial(check_softcam, name) for name in ("resnet50", "vgg16", "densenet121")},
    "Explainer": check_explainer,
    **{f"Classifier {name}": partial(check_classifier, name, name) for name in ("resnet18", "resnet50")},
    "Classifier vgg": partial(check_classifier, "vgg", "vgg-gated"),
}


def boxes(rows: list[list[int]], size: int) -> Tensor:
    masks = torch.zeros(len(rows), size, size)
    for mask, (y, x, height, width) in zip(masks, rows, strict=True):
        mask[y : y + height, x : x + width] = 1
    return masks


def field() -> tuple[Tensor, Tensor]:
    """Explanations (4, 32, 32) in float64, and masks of which the last is full."""
    i, phase = torch.arange(4 * 32 * 32, dtype=torch.float64), OF_METRICS["seed"]
    z = 0.4 + 0.7 * torch.sin(0.7319 * i + phase) * torch.cos(0.0137 * (1 + phase) * i)
    masks = boxes(OF_METRICS["loss_boxes_yxhw"], 32)
    masks[3] = 1
    return z.clamp(0, 1).view(4, 32, 32), masks
