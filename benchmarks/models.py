"""The networks of the benchmarks: random weights from a seed, batch statistics that do something, evaluation mode."""

import torch
from torch import Tensor, nn

from lib.models import blackbox


def network(name: str) -> nn.Module:
    """`tiny` (one convolution: what a metric costs besides the network), `full` (no stride), or one of lib.models."""
    torch.manual_seed(0)
    if name == "tiny":
        return classifier(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), channels=8)
    if name == "full":
        return classifier(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU(), channels=16)
    model = blackbox(name, 2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def classifier(*features: nn.Module, channels: int) -> nn.Module:
    layers = (nn.Sequential(*features), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))
    return nn.Sequential(*layers).eval()


def samples(count: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (count, 3, side, side) in [0, 1], maps (count, side, side) and classes (count,) in {0, 1}, seeded."""
    generator = torch.Generator().manual_seed(0)
    images, maps = (
        torch.rand(count, 3, side, side, generator=generator),
        torch.rand(count, side, side, generator=generator),
    )
    return images, maps, torch.arange(count) % 2
