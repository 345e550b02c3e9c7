"""`METHODS`, the register, and `explain`, which runs one of them on a copy of the model."""

import copy
from collections import namedtuple

import torch
from torch import Tensor, nn
from zennit.types import Activation

from lib.explain import baseline, cam, gradient, in_model, propagation
from lib.explain.task import Task

Method = namedtuple("Method", "name label family signed needs_grad function relu", defaults=[""])
RELU, ONLY_RELU = "with nn.ReLU modules", "whose activations are all nn.ReLU"
METHODS = {row[0]: Method(*row) for row in (  # function(task, **options) gives (n, H, W); relu: what the model needs
    ("evidence", "SoftCAM evidence", "in-model", True, False, in_model.evidence),
    ("explainer", "Explainer", "in-model", False, False, in_model.explainer),
    ("tte_cam", "TTE-CAM", "in-model", True, False, in_model.tte_cam),
    ("gradcam", "Grad-CAM", "cam", False, True, cam.gradcam),
    ("smooth_gradcam", "Smooth Grad-CAM", "cam", False, True, cam.smooth_gradcam),
    ("gradcam_pp", "Grad-CAM++", "cam", False, True, cam.gradcam_pp),
    ("layercam", "Layer-CAM", "cam", False, True, cam.layercam),
    ("scorecam", "Score-CAM", "cam", False, False, cam.scorecam),
    ("saliency", "Saliency", "gradient", False, True, gradient.saliency),
    ("input_x_gradient", "Input x Gradient", "gradient", True, True, gradient.input_x_gradient),
    ("integrated_gradients", "Integrated Gradients", "gradient", True, True, gradient.integrated_gradients),
    ("smoothgrad", "SmoothGrad", "gradient", False, True, gradient.smoothgrad),
    ("deconvolution", "Deconvolution", "gradient", True, True, gradient.deconvolution, RELU),
    ("guided_backprop", "Guided Backprop", "gradient", True, True, gradient.guided_backprop, RELU),
    ("guided_gradcam", "Guided Grad-CAM", "gradient", True, True, gradient.guided_gradcam, RELU),
    ("occlusion", "Occlusion", "gradient", True, False, gradient.occlusion),
    ("lrp", "LRP alpha1-beta0", "propagation", True, True, propagation.lrp, ONLY_RELU),
    ("random", "Random", "baseline", False, False, baseline.random),
    ("centre_gaussian", "Centre Gaussian", "baseline", False, False, baseline.centre_gaussian),
    ("edge_map", "Edges", "baseline", False, False, baseline.edge_map),
    ("canny", "Canny", "baseline", False, False, baseline.canny),
    ("otsu", "Otsu", "baseline", False, False, baseline.otsu),
)}  # fmt: skip


def explain(
    method: str, model: nn.Module, images: Tensor, targets: Tensor, batch_size: int = 32, layer=None, **options
) -> Tensor:
    """Heatmaps (N, H, W), float32 on the CPU, of images (N, C, H, W) as the model takes them, for the logits of classes
    (N,); those of an ExplainerClassifier are its classifier's, at the fixed heatmap z. NaN where they are undefined.

    layer: a module, for CAM methods and LRP instead of the last features; options: those of the method. The model and
    torch's random state stay as they are. A map depends on its image and target alone, not on its place in a batch.
    Raises ValueError for wrong arguments and logits that are not finite, TypeError where the model cannot be explained.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if images.ndim != 4 or not images.is_floating_point() or not images.isfinite().all():
        raise ValueError(f"images: expected finite floats (N, C, H, W), got {images.dtype} of {tuple(images.shape)}")
    if targets.shape != images.shape[:1] or targets.is_floating_point() or (targets < 0).any():
        raise ValueError(f"targets: expected class indices of shape ({len(images)},), got {targets}")
    chosen, device = METHODS[method], next((parameter.device for parameter in model.parameters()), images.device)
    maps = [torch.empty(0, *images.shape[2:])]

    def checked(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        logits = getattr(output, "logits", output)
        if targets.max() >= logits.shape[1]:
            raise ValueError(f"targets: expected values in 0..{logits.shape[1] - 1}, got {targets.max()}")
        if not logits.isfinite().all():
            raise ValueError("model: expected finite logits, got NaN or infinity")
        return output if chosen.family == "in-model" else logits

    with torch.inference_mode(False), torch.random.fork_rng([device] if device.type == "cuda" else []):
        copies = {id(p): nn.Parameter(p.detach(), False) for p in model.parameters()}  # which share their values
        model = copy.deepcopy(model, copies).eval()
        explained = model.classifier if (gated := hasattr(model, "explainer")) else model
        layer = getattr(explained, "last_features", None) if layer is None else copies.get(id(layer), layer)
        explained.register_forward_hook(checked)
        kinds = {type(module).__name__ for module in explained.modules() if isinstance(module, Activation)}
        if {RELU: "ReLU" not in kinds, ONLY_RELU: bool(kinds - {"ReLU"})}.get(chosen.relu):
            found = f"{type(explained).__name__} (activations: {', '.join(sorted(kinds)) or 'none'})"
            raise TypeError(f"{method}: expected a model {chosen.relu}, got {found}")
        for start in range(0, len(images), batch_size):
            x, t = (batch[start : start + batch_size].detach().to(device) for batch in (images, targets))
            x, t = x.clone(), t.long().clone()  # an inference tensor cannot require a gradient
            with torch.no_grad():
                fixed = (model.explainer(x),) if gated and chosen.family not in ("in-model", "baseline") else ()
            with torch.set_grad_enabled(chosen.needs_grad):
                task = Task(method, model, layer, explained, x.requires_grad_(chosen.needs_grad), t, fixed)
                maps.append(chosen.function(task, **options).detach().float().cpu())
    return torch.cat(maps)
