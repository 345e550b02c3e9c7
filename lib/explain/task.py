"""What a method gets, and what several of them share."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """What a method gets: one batch, on the model's device."""

    method: str
    model: nn.Module
    layer: nn.Module | None  # whose output CAM methods weigh
    logits: nn.Module  # (images, *fixed) -> (n, K): the model, or the classifier of an ExplainerClassifier
    images: Tensor  # (n, C, H, W)
    targets: Tensor  # (n,)
    fixed: tuple[Tensor, ...]  # (z,) for the classifier of an ExplainerClassifier, else empty
    at_once = property(lambda self: 128 if self.images.is_cuda else 16)  # variants of images: a CPU's cache is small

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

    def variants(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image with every number below `count`, image by image: indices of both, `at_once` at a time."""
        for part in torch.arange(len(self.images) * count, device=self.images.device).split(self.at_once):
            yield part // count, part % count

    def generators(self, seed: int) -> list[torch.Generator]:
        """One for each image, which depends on the seed and the image alone, not on its place in a batch."""
        pixels = self.images.detach().float().cpu().contiguous().numpy()
        return [torch.Generator().manual_seed(zlib.crc32(image.tobytes(), seed)) for image in pixels]

    def noisy_copies(self, noise: float, samples: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers (m,) and copies (m, C, H, W) of each image plus Gaussian noise of deviation noise * (max - min)."""
        images, sources = self.images.detach(), self.generators(0)
        spread = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
        for index, _ in self.variants(samples):
            drawn = torch.stack([torch.randn(images.shape[1:], generator=sources[i]) for i in index.tolist()])
            yield index, images[index] + spread[index] * drawn.to(images)

    def refusal(self, expected: str) -> TypeError:
        """What is raised where the method cannot explain the model."""
        return TypeError(f"{self.method}: expected a model {expected}, got {type(self.model).__name__}")


def upsample(maps: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """(N, h, w) -> (N, *size), pixel centres aligned as in image resizing (bicubic: a = -0.75, may overshoot)."""
    return F.interpolate(maps[:, None], size=size, mode=mode, align_corners=False)[:, 0]
