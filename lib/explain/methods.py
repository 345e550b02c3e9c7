"""`METHODS`, and the one call that checks what it is given and runs one of them on a copy of the model."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from zennit.types import Activation

from lib.explain import baseline, cam, gradient, in_model, propagation
from lib.explain.task import Logits, Task, refusal


@dataclass(frozen=True)
class Method:
    """One way to make a heatmap; `function(task, **options)` returns (n, H, W)."""

    name: str
    label: str
    family: str  # in-model, gradient, cam, propagation or baseline
    signed: bool
    needs_grad: bool
    function: Callable[..., Tensor]
    relu: str | None = None  # the activations that it can explain: nn.ReLU among others ("any") or nothing else ("all")


METHODS = {method.name: method for method in (
    # name, label, family, signed, needs_grad, function, relu
    Method("evidence", "SoftCAM evidence", "in-model", True, False, in_model.evidence),
    Method("explainer", "Explainer", "in-model", False, False, in_model.explainer),
    Method("evidence_difference", "SoftCAM evidence difference", "in-model", True, False, in_model.evidence_difference),
    Method("tte_cam", "TTE-CAM", "in-model", True, False, in_model.tte_cam),
    Method("gradcam", "Grad-CAM", "cam", False, True, cam.gradcam),
    Method("smooth_gradcam", "Smooth Grad-CAM", "cam", False, True, cam.smooth_gradcam),
    Method("gradcam_pp", "Grad-CAM++", "cam", False, True, cam.gradcam_pp),
    Method("layercam", "Layer-CAM", "cam", False, True, cam.layercam),
    Method("scorecam", "Score-CAM", "cam", False, False, cam.scorecam),
    Method("saliency", "Saliency", "gradient", False, True, gradient.saliency),
    Method("input_x_gradient", "Input x Gradient", "gradient", True, True, gradient.input_x_gradient),
    Method("integrated_gradients", "Integrated Gradients", "gradient", True, True, gradient.integrated_gradients),
    Method("smoothgrad", "SmoothGrad", "gradient", False, True, gradient.smoothgrad),
    Method("deconvolution", "Deconvolution", "gradient", True, True, gradient.deconvolution, "any"),
    Method("guided_backprop", "Guided Backprop", "gradient", True, True, gradient.guided_backprop, "any"),
    Method("guided_gradcam", "Guided Grad-CAM", "gradient", True, True, gradient.guided_gradcam, "any"),
    Method("occlusion", "Occlusion", "gradient", True, False, gradient.occlusion),
    Method("lrp", "LRP alpha1-beta0", "propagation", True, True, propagation.lrp, "all"),
    Method("random", "Random", "baseline", False, False, baseline.random),
    Method("centre_gaussian", "Centre Gaussian", "baseline", False, False, baseline.centre_gaussian),
    Method("edge_map", "Edges", "baseline", False, False, baseline.edge_map),
)}  # fmt: skip
LEAST = {  # what batch_size and options must not be below
    "batch_size": 1, "chunk": 1, "samples": 1, "steps": 1, "window": 1, "stride": 1, "noise": 0, "sigma": 1e-6,
}  # fmt: skip


def check(method: str, model: nn.Module, images: Tensor, targets: Tensor, batch_size: int, options: dict) -> None:
    """The arguments of `explain`; `model`, whose logits are explained, by its modules. Adds CAM methods' layer."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    known, relu = list(inspect.signature(METHODS[method].function).parameters)[1:], METHODS[method].relu
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(f"{method}: expected options among {known}, got {unknown}")
    for name, value in (options | {"batch_size": batch_size}).items():
        if name in LEAST and value is not None and not value >= LEAST[name]:
            raise ValueError(f"{name}: expected at least {LEAST[name]}, got {value}")
    if images.ndim != 4 or not images.is_floating_point() or not images.isfinite().all():
        raise ValueError(f"images: expected finite floats (N, C, H, W), got {images.dtype} of {tuple(images.shape)}")
    if targets.shape != images.shape[:1] or targets.is_floating_point() or (targets < 0).any():
        raise ValueError(f"targets: expected class indices of shape ({len(images)},), got {targets}")
    kinds = {type(module).__name__ for module in model.modules() if isinstance(module, Activation)}
    if (relu == "any" and "ReLU" not in kinds) or (relu == "all" and kinds - {"ReLU"}):
        expected = "with nn.ReLU modules" if relu == "any" else "whose activations are all nn.ReLU"
        raise refusal(method, expected, model, f" (activations: {', '.join(sorted(kinds)) or 'none'})")
    if "layer" in known and options.setdefault("layer", getattr(model, "last_features", None)) is None:
        raise refusal(method, "of lib.models or the option `layer`", model)


def explain(method: str, model: nn.Module, images: Tensor, targets: Tensor, batch_size: int = 32, **options) -> Tensor:
    """Heatmaps (N, H, W), float32 on the CPU, of images (N, C, H, W) as the model takes them, for classes (N,).

    Explains logits: of a black box, a SoftCAM, or the classifier of an ExplainerClassifier at its fixed heatmap z.
    `options` are those of the method; its `chunk` is the number of variants of images that the model gets at once. The
    model is copied, so that it stays as it is, and so does torch's random state. A map depends on its image and target
    alone, not on batch_size, chunk or its place in the batch; it is NaN where the method leaves it undefined.
    Raises ValueError for wrong arguments and for logits that are not finite, TypeError where the method cannot explain
    the model.
    """
    gated = hasattr(model, "explainer")
    check(method, model.classifier if gated else model, images, targets, batch_size, options)
    chosen = METHODS[method]
    if chunk := inspect.signature(chosen.function).parameters.get("chunk"):
        batch_size = min(batch_size, options.get("chunk", chunk.default))
    device = next((parameter.device for parameter in model.parameters()), images.device)
    maps = [torch.empty(0, *images.shape[2:])]
    with torch.inference_mode(False), torch.random.fork_rng([device] if device.type == "cuda" else []):
        copies: dict[int, object] = {}
        model = copy.deepcopy(model, copies).eval().requires_grad_(False)
        options = {name: copies.get(id(value), value) for name, value in options.items()}
        logits = Logits(model.classifier if gated else model, int(targets.max()) if len(targets) else 0)
        for start in range(0, len(images), batch_size):
            x, t = (batch[start : start + batch_size].detach().to(device) for batch in (images, targets))
            x, t = x.clone(), t.long().clone()  # an inference tensor cannot require a gradient
            with torch.no_grad():
                fixed = (model.explainer(x),) if gated and chosen.family not in ("in-model", "baseline") else ()
            with torch.set_grad_enabled(chosen.needs_grad):
                task = Task(model, logits, x.requires_grad_(chosen.needs_grad), t, fixed)
                maps.append(chosen.function(task, **options).detach().float().cpu())
    return torch.cat(maps)
