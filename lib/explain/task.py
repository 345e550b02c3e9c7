"""What a method gets, and what several of them share."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Logits(nn.Module):
    """The logits (n, K) of `model`: ValueError where one is not finite or K <= `highest`, a target."""

    def __init__(self, model: nn.Module, highest: int):
        super().__init__()
        self.model, self.highest = model, highest

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.checked(self.model(*inputs))

    def checked(self, output: object) -> Tensor:
        logits = getattr(output, "logits", output)
        if self.highest >= logits.shape[1]:
            raise ValueError(f"targets: expected values in 0..{logits.shape[1] - 1}, got {self.highest}")
        if not logits.isfinite().all():
            raise ValueError("model: expected finite logits, got NaN or infinity")
        return logits


@dataclass(frozen=True)
class Task:
    """What a method gets: one batch, on the model's device."""

    model: nn.Module
    logits: Logits  # (images, *fixed) -> (n, K): the model, or the classifier of an ExplainerClassifier
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

    def generators(self, seed: int) -> list[torch.Generator]:
        """One for each image, which depends on the seed and the image alone, not on its place in a batch."""
        pixels = self.images.detach().float().cpu().contiguous().numpy()
        return [torch.Generator().manual_seed(zlib.crc32(image.tobytes(), seed)) for image in pixels]

    def noisy_copies(self, noise: float, samples: int, seed: int, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`samples` copies of each image plus Gaussian noise of standard deviation noise * (max - min) of the image:
        image numbers (m,) and copies (m, C, H, W), at most `chunk` at a time."""
        images, sources = self.images.detach(), self.generators(seed)
        spread = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
        for index, _ in self.variants(samples, chunk):
            drawn = torch.stack([torch.randn(images.shape[1:], generator=sources[i]) for i in index.tolist()])
            yield index, images[index] + spread[index] * drawn.to(images)


def upsample(maps: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """(N, h, w) -> (N, *size), pixel centres aligned as in image resizing (bicubic: a = -0.75, may overshoot)."""
    return F.interpolate(maps[:, None], size=size, mode=mode, align_corners=False)[:, 0]


def refusal(method: str, expected: str, model: nn.Module, more: str = "") -> TypeError:
    """What is raised where a method cannot explain a model."""
    return TypeError(f"{method}: expected a model {expected}, got {type(model).__name__}{more}")
