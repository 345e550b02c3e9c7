"""The Explainer-Classifier (Rio-Torto, Fernandes & Teixeira, Pattern Recognition Letters 133, 2020)."""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.backbones import Gated, blackbox, double_conv


class Explainer(nn.Module):
    """U-Net from images (N, C, H, W) to a heatmap z (N, 1, H, W) in [0, 1]: `z = relu(tanh(bn(conv1x1(decoder))))`.

    channels: of the levels, from the image inwards; on the way up, each adds the encoder's output. init_bias: of the
    batch normalisation: z starts at its tanh (of 3: 0.995, nearly white). init: "torch", its own initialisation, as the
    reference has it, or "he": He-normal, since torch's smaller weights let the deep levels' signal fade, the last
    convolution small, so that the untrained z is even.
    Raises ValueError for sides that are no multiples of 2 ** len(channels).
    """

    def __init__(self, in_channels: int = 3, channels=(32, 64, 128), init_bias: float = 3.0, init: str = "he") -> None:
        super().__init__()
        self.encoder = nn.ModuleList(double_conv(i, o) for i, o in pairwise((in_channels, *channels)))
        self.pool = nn.MaxPool2d(2)
        outwards = (channels[-1], *channels[::-1])
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in pairwise(outwards))
        self.decoder = nn.ModuleList(double_conv(width, width) for width in outwards[1:])
        self.project, self.bn, self.init_bias = nn.Conv2d(channels[0], 1, 1), nn.BatchNorm2d(1), init_bias
        nn.init.constant_(self.bn.bias, init_bias)
        if init == "torch":
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):  # std by the inputs of an output pixel
                taps = module.weight[0, 0].numel() // module.stride[0] ** 2
                nn.init.normal_(module.weight, std=(2 / (module.in_channels * taps)) ** 0.5)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.project.weight, std=0.002)

    def forward(self, x: Tensor) -> Tensor:
        factor = 2 ** len(self.encoder)
        if x.ndim != 4 or any(side % factor for side in x.shape[2:]):
            raise ValueError(f"x: expected (N, C, H, W), sides multiples of {factor}, got {tuple(x.shape)}")
        skips = []
        for level in self.encoder:
            skips.append(level(x))
            x = self.pool(skips[-1])
        for upsample, level, skip in zip(self.upsample, self.decoder, skips[::-1], strict=True):
            x = level(upsample(x) + skip)
        return F.relu(torch.tanh(self.bn(self.project(x))))


class ExplainerClassifierOutput(NamedTuple):
    logits: Tensor  # (N, K)
    explanation: Tensor  # (N, 1, H, W) in [0, 1]


class ExplainerClassifier(nn.Module):
    """`z = explainer(x)`, `logits = classifier(x, z)`: the classifier sees its features through z (section 3)."""

    last_features = property(lambda self: self.classifier.last_features)

    def __init__(self, explainer: Explainer, classifier: Gated) -> None:
        super().__init__()
        self.explainer, self.classifier = explainer, classifier

    def forward(self, x: Tensor) -> ExplainerClassifierOutput:
        z = self.explainer(x)
        return ExplainerClassifierOutput(self.classifier(x, z), z)


def explainer_classifier(
    architecture: str, num_classes: int, weights: str | Path | None = None, init_bias: float = 3.0, **given
) -> ExplainerClassifier:
    """An Explainer with the classifier that `blackbox` builds from the same arguments and seed. given: in_channels and
    width of the classifier, channels and init of the Explainer."""
    own = {key: given.pop(key) for key in ("channels", "init") if key in given}
    classifier = blackbox(architecture, num_classes, weights, **given)
    return ExplainerClassifier(Explainer(given.get("in_channels", 3), init_bias=init_bias, **own), classifier)
