"""What the reference code of both papers puts out (tests/golden), and the checks of it, on any device.

`MODELS`, `METRICS` and `LOSSES` are checks by name: each puts its network or its tensors on the device it is given.
The tolerances are those of float32, on a GPU without TF32, whose products have 10 bits.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import metrics
from lib.losses import explanation_loss
from lib.models import Explainer, SoftCAM, blackbox, load_reference_checkpoint, load_reference_state

FOLDER = Path(__file__).parent / "golden"
OF_MODELS, OF_METRICS = (
    json.loads((FOLDER / f"reference_{kind}.json").read_text(encoding="utf-8")) for kind in ("models", "metrics")
)
CPU = torch.device("cpu")


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


def summary(values: Tensor) -> dict:
    flat = values.cpu().double().flatten()
    samples = flat[torch.from_numpy(np.linspace(0, len(flat) - 1, 17).astype(int))]
    return {
        "shape": list(values.shape),
        "sum": flat.sum().item(),
        "abs_sum": flat.abs().sum().item(),
        "samples": samples.tolist(),
    }


def assert_summary(values: Tensor, expected: dict) -> None:
    got = summary(values)
    assert got["shape"] == expected["shape"]
    assert got["sum"] == pytest.approx(expected["sum"], rel=1e-4, abs=1e-4 * expected["abs_sum"] / 1000)
    assert got["abs_sum"] == pytest.approx(expected["abs_sum"], rel=1e-4)
    scale = max(map(abs, expected["samples"]))
    assert got["samples"] == pytest.approx(expected["samples"], rel=1e-4, abs=1e-4 * scale)


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


def lesions() -> tuple[Tensor, Tensor, Tensor]:
    """Maps (N, 512, 512), masks, and which images are predicted to be diseased."""
    maps = torch.tensor(list(OF_METRICS["evidence"].values()))
    maps = F.interpolate(maps[:, None], size=(512, 512), mode="bicubic", align_corners=False)[:, 0]
    return maps, boxes(OF_METRICS["mask_boxes_yxhw"], 512), torch.tensor(OF_METRICS["pred"]) == 1


def field() -> tuple[Tensor, Tensor]:
    """Explanations (4, 32, 32) in float64, and masks of which the last is full."""
    i, phase = torch.arange(4 * 32 * 32, dtype=torch.float64), OF_METRICS["seed"]
    z = 0.4 + 0.7 * torch.sin(0.7319 * i + phase) * torch.cos(0.0137 * (1 + phase) * i)
    masks = boxes(OF_METRICS["loss_boxes_yxhw"], 32)
    masks[3] = 1
    return z.clamp(0, 1).view(4, 32, 32), masks


def assert_rounded(values: Tensor, name: str, digits: int = 3) -> None:
    """The reference values are rounded to so many digits."""
    assert values.tolist() == pytest.approx(OF_METRICS[name], rel=0, abs=0.501 * 10**-digits)


def check_topk_precision(device: torch.device) -> None:
    maps, masks, sick = (values.to(device) for values in lesions())
    name = "topk_nonoverlap_precision_ps33"
    assert_rounded(metrics.topk_precision(maps, masks), name)
    assert_rounded(metrics.topk_precision(maps[sick], masks[sick]), f"{name}_true_positives")
    assert_rounded(metrics.topk_precision(maps, masks, threshold=1.0), f"{name}_thresh1")


def check_patch_order(device: torch.device) -> None:
    scores, order = (values.cpu() for values in metrics.rank_patches(lesions()[0].to(device), 33))
    for image, expected in enumerate(OF_METRICS["nonoverlap_patch_order_first10"].values()):
        found = [[int(p) // 16 * 33, int(p) % 16 * 33] for p in order[image, :10]]
        assert found == [[int(y), int(x)] for y, x, _ in expected]
        assert scores[image, :10].tolist() == pytest.approx([score for *_, score in expected], abs=2e-5)


def check_activation(device: torch.device) -> None:
    maps, masks, _ = (values.to(device) for values in lesions())
    assert_rounded(metrics.activation_precision(maps, masks), "activation_precision", 4)
    assert_rounded(metrics.activation_sensitivity(maps, masks), "activation_sensitivity", 4)


def check_grid_pointing_game(device: torch.device) -> None:
    healthy = list(OF_METRICS["healthy_evidence"])
    value = metrics.grid_pointing_game(
        torch.tensor(list(OF_METRICS["evidence"].values())).to(device),
        torch.tensor(list(OF_METRICS["healthy_evidence"].values())).to(device),
        picks=[[healthy.index(name) for name in row] for row in OF_METRICS["grid_pointing_game_picks"]],
    )
    assert value == OF_METRICS["grid_pointing_game_sensitivity_thresh0.003"]


def check_positive_proportion(device: torch.device) -> None:
    maps = torch.tensor(list(OF_METRICS["evidence"].values())).to(device)
    share = metrics.positive_proportion(maps).cpu()
    assert share.tolist() == list(OF_METRICS["positive_proportion_per_image"].values())
    assert_rounded(torch.stack([share.mean(), share.std(correction=0)]), "positive_proportion_mean_std")
    assert torch.equal(metrics.negative_proportion(maps).cpu(), 1 - share)  # no exact zero in these maps


def check_pompom(device: torch.device) -> None:
    z, masks = (values.to(device) for values in field())
    assert metrics.pompom(z, masks).tolist() == pytest.approx(OF_METRICS["pompom"], abs=1e-12)


def check_explanation_loss(name: str, device: torch.device) -> None:
    kind, beta, *gamma, reduction = name.split("_")
    z, masks = (values[:, None].float().to(device) for values in field())
    mask, weight = (masks, float(gamma[0].removeprefix("gamma"))) if kind == "hybrid" else (None, 1.0)
    loss = explanation_loss(z, float(beta.removeprefix("beta")), mask, weight, reduction)
    assert loss.item() == pytest.approx(OF_METRICS[name], rel=1e-6)


LOSSES: dict[str, Callable[[torch.device], None]] = {
    name: partial(check_explanation_loss, name) for name in OF_METRICS if name.startswith(("unsup_", "hybrid_"))
}
METRICS: dict[str, Callable[[torch.device], None]] = {
    "topk_precision": check_topk_precision,
    "patch order": check_patch_order,
    "activation": check_activation,
    "grid_pointing_game": check_grid_pointing_game,
    "positive_proportion": check_positive_proportion,
    "pompom": check_pompom,
}
