"""Heatmaps of any model by any method: `METHODS` is the register, `explain` the one call.

Maps come as the method computes them: signed where it is, summed over the colour channels, never rescaled.
"""

import inspect
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from captum import attr
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """What a method gets: one batch, on the model's device."""

    model: nn.Module
    logits: nn.Module  # (images, *fixed) -> (n, K): the model, or the classifier of an ExplainerClassifier
    images: Tensor  # (n, C, H, W)
    targets: Tensor  # (n,)
    fixed: tuple[Tensor, ...]  # (z,) for the classifier of an ExplainerClassifier, else empty


@dataclass(frozen=True)
class Method:
    """One way to make a heatmap; `function(task, **options)` returns (n, H, W)."""

    name: str
    label: str
    family: str  # in-model, gradient, cam, propagation or baseline
    signed: bool
    needs_grad: bool
    function: Callable[..., Tensor]


METHODS: dict[str, Method] = {}


def register(label: str, family: str, signed: bool, needs_grad: bool = True) -> Callable:
    """Enters the decorated function into `METHODS` under its own name."""

    def enter(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        METHODS[function.__name__] = Method(function.__name__, label, family, signed, needs_grad, function)
        return function

    return enter


class _Logits(nn.Module):
    """The logits tensor of whatever `model` returns, checked against the highest target asked for."""

    def __init__(self, model: nn.Module, highest: int):
        super().__init__()
        self.model, self.highest = model, highest

    def forward(self, *inputs: Tensor) -> Tensor:
        output = self.model(*inputs)
        logits = getattr(output, "logits", output)
        if self.highest >= logits.shape[1]:
            raise ValueError(f"targets: expected values in 0..{logits.shape[1] - 1}, got {self.highest}")
        return logits


def upsample(maps: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """(N, h, w) -> (N, *size), pixel centres aligned as in image resizing (bicubic: a = -0.75, may overshoot)."""
    return F.interpolate(maps[:, None], size=size, mode=mode, align_corners=False)[:, 0]


def _attribute(task: Task, attribution: attr.Attribution, **options) -> Tensor:
    return attribution.attribute(
        task.images, target=task.targets, additional_forward_args=task.fixed or None, **options
    ).detach()


@register("SoftCAM evidence", "in-model", signed=True, needs_grad=False)
def evidence(task: Task) -> Tensor:
    """The target's class evidence map, bicubic to image size (Djoumessi & Berens 2025)."""
    output = task.model(task.images)
    if not hasattr(output, "evidence"):
        raise TypeError(f"evidence: expected a model with class evidence maps, got {type(task.model).__name__}")
    if task.logits.highest >= output.evidence.shape[1]:
        raise ValueError(f"targets: expected values in 0..{output.evidence.shape[1] - 1}, got {task.logits.highest}")
    maps = output.evidence[torch.arange(len(task.targets)), task.targets]
    return upsample(maps, task.images.shape[2:])


@register("Explainer", "in-model", signed=False, needs_grad=False)
def explainer(task: Task) -> Tensor:
    """The Explainer's heatmap z, in [0, 1], the same for every target (Rio-Torto et al. 2020)."""
    output = task.model(task.images)
    if not hasattr(output, "explanation"):
        raise TypeError(f"explainer: expected a model with an Explainer, got {type(task.model).__name__}")
    return output.explanation[:, 0]


@register("Grad-CAM", "cam", signed=False)
def gradcam(task: Task, layer: nn.Module | None = None) -> Tensor:
    """ReLU of the features weighted by their mean gradient, bilinear to image size (Selvaraju et al. 2017).

    `layer`: the module whose output are the features; by default the last feature map.
    """
    if layer is None:
        from lib.models import last_features

        layer = last_features(task.logits.model)
    maps = _attribute(task, attr.LayerGradCam(task.logits, layer), relu_attributions=True)[:, 0]
    return upsample(maps, task.images.shape[2:], mode="bilinear")


@register("Integrated Gradients", "gradient", signed=True)
def integrated_gradients(task: Task, steps: int = 50, baseline: float | Tensor = 0.0) -> Tensor:
    """(x - x0) times the mean gradient between baseline x0 and x, Gauss-Legendre (Sundararajan et al. 2017).

    `baseline`: a number or a tensor (1, C, H, W), as the model takes it; 0 is the mean of normalised images.
    """
    x0 = baseline.to(task.images) if isinstance(baseline, Tensor) else float(baseline)
    size = len(task.images)
    method = attr.IntegratedGradients(task.logits)
    return _attribute(task, method, baselines=x0, n_steps=steps, internal_batch_size=size).sum(1)


@register("Guided Backprop", "propagation", signed=True)
def guided_backprop(task: Task) -> Tensor:
    """Gradient with negative parts cut at every nn.ReLU, summed over channels (Springenberg et al. 2015)."""
    if not any(isinstance(module, nn.ReLU) for module in task.logits.modules()):
        raise TypeError(f"guided_backprop: expected a model with nn.ReLU modules, got {type(task.model).__name__}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting backward hooks on ReLU")
        return _attribute(task, attr.GuidedBackprop(task.logits)).sum(1)


@register("Saliency", "gradient", signed=False)
def saliency(task: Task) -> Tensor:
    """Absolute gradient, summed over channels (Simonyan et al. 2014 take the maximum)."""
    return _attribute(task, attr.Saliency(task.logits), abs=True).sum(1)


@register("Input x Gradient", "gradient", signed=True)
def input_x_gradient(task: Task) -> Tensor:
    """Gradient times input, summed over channels (Shrikumar et al. 2016)."""
    return _attribute(task, attr.InputXGradient(task.logits)).sum(1)


@register("Random", "baseline", signed=False, needs_grad=False)
def random(task: Task, seed: int = 0) -> Tensor:
    """Uniform noise in [0, 1) that depends on the seed and the image alone, not on its place in a batch."""
    maps = []
    for image in task.images.float().cpu():
        key = zlib.crc32(image.contiguous().numpy().tobytes(), seed)
        maps.append(torch.rand(image.shape[1:], generator=torch.Generator().manual_seed(key)))
    return torch.stack(maps)


@contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode with frozen parameters; afterwards modes, flags, hooks and torch's random state are as before."""
    modes = [(module, module.training, module._is_full_backward_hook) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    hooks = [
        (value, dict(value)) for module in model.modules() for key, value in vars(module).items() if "_hooks" in key
    ]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            model.eval().requires_grad_(False)
            yield
        finally:
            for module, training, full in modes:
                module.training, module._is_full_backward_hook = training, full
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            for current, before in hooks:
                current.clear()
                current.update(before)


def _check(method: str, images: Tensor, targets: Tensor, batch_size: int, options: dict) -> None:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    known = list(inspect.signature(METHODS[method].function).parameters)[1:]
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(f"{method}: expected options among {known}, got {unknown}")
    if images.ndim != 4 or not images.is_floating_point() or not images.isfinite().all():
        raise ValueError(f"images: expected finite floats (N, C, H, W), got {images.dtype} of {tuple(images.shape)}")
    if targets.shape != images.shape[:1] or targets.is_floating_point() or (targets < 0).any():
        raise ValueError(f"targets: expected class indices of shape ({len(images)},), got {targets}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")


def explain(method: str, model: nn.Module, images: Tensor, targets: Tensor, batch_size: int = 32, **options) -> Tensor:
    """Heatmaps (N, H, W), float32 on the CPU, of images (N, C, H, W) as the model takes them, for classes (N,).

    Explains logits: of a black box, a SoftCAM, or the classifier of an ExplainerClassifier at its fixed heatmap z.
    `options` are those of the method in `METHODS`. The model runs in evaluation mode, on its own device, and is left
    as it was. Raises ValueError for wrong arguments, TypeError where the method cannot explain the model.
    """
    _check(method, images, targets, batch_size, options)
    chosen, gated = METHODS[method], hasattr(model, "explainer")
    device = next((parameter.device for parameter in model.parameters()), images.device)
    logits = _Logits(model.classifier if gated else model, int(targets.max()) if len(targets) else 0)
    maps = [torch.empty(0, *images.shape[2:])]
    with torch.inference_mode(False), _untouched(model, device):
        for start in range(0, len(images), batch_size):
            x, t = (batch[start : start + batch_size].detach().to(device) for batch in (images, targets))
            x, t = x.clone(), t.long().clone()  # an inference tensor cannot require a gradient
            with torch.no_grad():
                fixed = (model.explainer(x),) if gated and chosen.needs_grad else ()
            with torch.set_grad_enabled(chosen.needs_grad):
                task = Task(model, logits, x.requires_grad_(chosen.needs_grad), t, fixed)
                maps.append(chosen.function(task, **options).detach().float().cpu())
    return torch.cat(maps)
