"""The register of methods and the one call that runs them, leaving no trace on the model."""

import inspect
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zennit.types import Activation


@dataclass(frozen=True)
class Task:
    """What a method gets: one batch, on the model's device."""

    model: nn.Module
    logits: nn.Module  # (images, *fixed) -> (n, K): the model, or the classifier of an ExplainerClassifier
    images: Tensor  # (n, C, H, W)
    targets: Tensor  # (n,)
    fixed: tuple[Tensor, ...]  # (z,) for the classifier of an ExplainerClassifier, else empty

    def scores(self, images: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        """Target logits (m,) of `images` (m, C, H, W), variants of this task's images number `index`."""
        if not images.is_cuda:  # convolutions on a CPU are faster so, by 5 to 25 %
            images = images.contiguous(memory_format=torch.channels_last)
        logits = self.logits(images, *(tensor[index] for tensor in self.fixed))
        return logits.gather(1, self.targets[index, None])[:, 0]

    def gradients(self, images: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        """Gradients (m, C, H, W) of these target logits with respect to `images`."""
        images = images.detach().requires_grad_()
        return torch.autograd.grad(self.scores(images, index).sum(), images)[0]

    def at_once(self, chunk: int) -> int:
        """How many images to run at once, of `chunk` allowed: 16 on a CPU, whose cache holds no more."""
        return chunk if self.images.is_cuda else min(chunk, 16)

    def variants(self, count: int, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image with every number below `count`, image by image: indices of both, at most `chunk` at a time."""
        for part in torch.arange(len(self.images) * count, device=self.images.device).split(self.at_once(chunk)):
            yield part // count, part % count


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


def checked_logits(output: object, highest: int) -> Tensor:
    """The logits (n, K) in what a model returns. Raises ValueError if one is not finite or K <= `highest`, a target."""
    logits = getattr(output, "logits", output)
    if highest >= logits.shape[1]:
        raise ValueError(f"targets: expected values in 0..{logits.shape[1] - 1}, got {highest}")
    if not logits.isfinite().all():
        raise ValueError("model: expected finite logits, got NaN or infinity")
    return logits


class _Logits(nn.Module):
    """The logits tensor of whatever `model` returns, checked against the highest target asked for."""

    def __init__(self, model: nn.Module, highest: int):
        super().__init__()
        self.model, self.highest = model, highest

    def forward(self, *inputs: Tensor) -> Tensor:
        return checked_logits(self.model(*inputs), self.highest)


def upsample(maps: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """(N, h, w) -> (N, *size), pixel centres aligned as in image resizing (bicubic: a = -0.75, may overshoot)."""
    return F.interpolate(maps[:, None], size=size, mode=mode, align_corners=False)[:, 0]


def generators(images: Tensor, seed: int) -> list[torch.Generator]:
    """A random generator of each image, which depends on the seed and the image alone, not on its place in a batch."""
    pixels = images.detach().float().cpu().contiguous().numpy()
    return [torch.Generator().manual_seed(zlib.crc32(image.tobytes(), seed)) for image in pixels]


def noisy_copies(task: Task, noise: float, samples: int, seed: int, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`samples` copies of each image plus Gaussian noise of standard deviation noise * (max - min) of the image: image
    numbers (m,) and copies (m, C, H, W), at most `chunk` at a time. Raises ValueError for negative noise."""
    if noise < 0:
        raise ValueError(f"noise: expected a share of the image's range, at least 0, got {noise}")
    images = task.images.detach()
    spread = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    sources = generators(images, seed)
    for index, _ in task.variants(samples, chunk):
        drawn = torch.stack([torch.randn(images.shape[1:], generator=sources[i]) for i in index.tolist()])
        yield index, images[index] + spread[index] * drawn.to(images)


def activations(model: nn.Module) -> list[str]:
    """The kinds of activation modules in `model`, by class name."""
    return sorted({type(module).__name__ for module in model.modules() if isinstance(module, Activation)})


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
    counts = {"batch_size": batch_size} | {key: options[key] for key in ("chunk", "samples", "steps") if key in options}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def explain(method: str, model: nn.Module, images: Tensor, targets: Tensor, batch_size: int = 32, **options) -> Tensor:
    """Heatmaps (N, H, W), float32 on the CPU, of images (N, C, H, W) as the model takes them, for classes (N,).

    Explains logits: of a black box, a SoftCAM, or the classifier of an ExplainerClassifier at its fixed heatmap z.
    `options` are those of the method in `METHODS`; methods that run the model on many variants of an image have
    `chunk`, the number of images that it gets at once. The model runs in evaluation mode, on its own device, and is
    left as it was. A map depends on its image and target alone, not on batch_size, chunk or its place in the batch; one
    that the method leaves undefined is NaN. Raises ValueError for wrong arguments and for a model whose logits are not
    finite, TypeError where the method cannot explain the model.
    """
    _check(method, images, targets, batch_size, options)
    chosen, gated = METHODS[method], hasattr(model, "explainer")
    if chunk := inspect.signature(chosen.function).parameters.get("chunk"):
        batch_size = min(batch_size, options.get("chunk", chunk.default))
    device = next((parameter.device for parameter in model.parameters()), images.device)
    logits = _Logits(model.classifier if gated else model, int(targets.max()) if len(targets) else 0)
    gated &= chosen.family not in ("in-model", "baseline")
    maps = [torch.empty(0, *images.shape[2:])]
    with torch.inference_mode(False), _untouched(model, device):
        for start in range(0, len(images), batch_size):
            x, t = (batch[start : start + batch_size].detach().to(device) for batch in (images, targets))
            x, t = x.clone(), t.long().clone()  # an inference tensor cannot require a gradient
            with torch.no_grad():
                fixed = (model.explainer(x),) if gated else ()
            with torch.set_grad_enabled(chosen.needs_grad):
                task = Task(model, logits, x.requires_grad_(chosen.needs_grad), t, fixed)
                maps.append(chosen.function(task, **options).detach().float().cpu())
    return torch.cat(maps)
