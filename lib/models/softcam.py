"""SoftCAM (Djoumessi & Berens, arXiv 2505.17748): a classifier that decides by the mean of its evidence maps."""

from collections import OrderedDict
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms import Normalize

from lib.models.backbones import VGG, DenseNet, EfficientNet, ResNet, blackbox, out_of_place
from lib.models.weights import stem_and_head


class SoftCAMOutput(NamedTuple):
    logits: Tensor  # (N, K)
    evidence: Tensor  # (N, K, h, w), signed


class SoftCAM(nn.Module):
    """`evidence = conv1x1(head(features(x)))`, `logits = mean over (h, w) of evidence` (section 3.1); head: what the
    family puts before the 1x1 convolution `evidence`."""

    last_features = property(lambda self: self.head)

    def __init__(self, features: nn.Module, head: nn.Module, evidence: nn.Conv2d) -> None:
        super().__init__()
        self.features, self.head, self.evidence = features, head, evidence

    def forward(self, x: Tensor) -> SoftCAMOutput:
        evidence = self.evidence(self.head(self.features(x)))
        return SoftCAMOutput(evidence.mean((2, 3)), evidence)


def head_of(model: nn.Module) -> nn.Module:
    """What stands before a new evidence layer: in a VGG new convolutions in place of its fully connected layers."""
    if isinstance(model, VGG):
        first, second = nn.Conv2d(512, 4096, 1), nn.Conv2d(4096, 4096, 1)
        return nn.Sequential(first, nn.ReLU(), nn.Dropout(), second, nn.ReLU(), nn.Dropout())
    return nn.Dropout(0.3) if isinstance(model, EfficientNet) else nn.Identity()


def softcam(
    architecture: str, num_classes: int, weights: str | Path | None = None, output_stride: int | None = None, **given
) -> SoftCAM:
    """A SoftCAM with a new evidence layer on the features of `blackbox`, which takes `given` (in_channels, width) too.
    output_stride: image pixels per evidence pixel and side, for ResNets 32 (their own), 16 or 8, by dilation.
    """
    if architecture == "vgg-gated":
        raise ValueError("architecture: 'vgg-gated' ends in a global maximum, which no evidence map can replace")
    model = blackbox(architecture, num_classes, weights, **given)
    if output_stride is not None:
        if type(model) is not ResNet or output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: expected 8, 16 or 32 of a ResNet, got {output_stride} of {architecture}")
        set_output_stride(model, output_stride)
    features, _, linear = parts(model)
    return SoftCAM(features, head_of(model), nn.Conv2d(linear.in_features, num_classes, 1))


def to_softcam(blackbox: nn.Module) -> SoftCAM:
    """TTE-CAM (arXiv 2603.26885): a trained black box as a SoftCAM with the same logits, without training: mean and
    linear map commute. A DenseNet keeps its final ReLU, which `softcam` leaves out as the reference code does.

    blackbox: features, average pooling over all positions, dropout or none, one linear layer (most of torchvision's).
    Raises ValueError unless the (finite) logits are the same on a random image, computed in float64.
    """
    model = out_of_place(deepcopy(blackbox)).eval()
    try:
        features, head, linear = parts(model)
        if any(list(layer.parameters()) for layer in head):
            raise ValueError("weights between pooling and the last layer")
        evidence = nn.Conv2d(linear.in_features, linear.out_features, 1)
        evidence.weight, evidence.bias = nn.Parameter(linear.weight.detach()[:, :, None, None]), linear.bias
        twin = SoftCAM(features, head[0] if len(head) == 1 else nn.Sequential(*head), evidence)
        channels = model.get_submodule(stem_and_head(model)[0]).in_channels
        image = torch.rand(1, channels, 80, 112, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected, (logits, maps) = (module.cpu().double()(image) for module in deepcopy((model, twin)))
        if maps[0, 0].numel() == 1:
            raise ValueError("a map of one pixel")
        known = expected.isfinite()
        torch.testing.assert_close(logits[known], expected[known], rtol=1e-6, atol=1e-9)
    except Exception as error:  # a network of another form fails wherever its parts do not fit together
        raise ValueError(
            "blackbox: expected features, average pooling over all positions and one linear layer, got "
            f"{type(blackbox).__name__}, which cannot become a SoftCAM with the same logits"
        ) from error
    return twin.train(blackbox.training)


def parts(model: nn.Module) -> tuple[nn.Module, list[nn.Module], nn.Linear]:
    """The features, what stands between their pooling and the last linear layer, and that layer."""
    children = {name: child for name, child in model.named_children() if "aux" not in name.lower()}
    last = stem_and_head(model)[1].partition(".")[0]
    pooling = next(name for name in children if name == last or isinstance(children[name], nn.AdaptiveAvgPool2d))
    start, stop = (list(children).index(name) for name in (pooling, last))
    features = nn.Sequential(OrderedDict(list(children.items())[:start]))
    features = features[0] if len(features) == 1 else features
    if getattr(model, "transform_input", False):  # from ImageNet's mean and deviation to 0.5 and 0.5
        scale = Normalize((0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225), (0.5 / 0.229, 0.5 / 0.224, 0.5 / 0.225))
        features = nn.Sequential(scale, features)
    layers = [model.relu] if isinstance(model, DenseNet) else []
    for child in list(children.values())[start : stop + 1]:
        layers += child if isinstance(child, nn.Sequential) else [child]
    *head, linear = (layer for layer in layers if not isinstance(layer, nn.Flatten | nn.AdaptiveAvgPool2d))
    return features, head, linear


def set_output_stride(model: ResNet, output_stride: int) -> None:
    """Trades stride for dilation in the last stages: the coarser map is every second pixel of the finer one."""
    before = 1
    for stage, stride in ((model.layer3, 16), (model.layer4, 32)):
        dilation = max(1, stride // output_stride)
        for conv in (module for module in stage.modules() if isinstance(module, nn.Conv2d)):
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (before if conv.stride == (2, 2) else dilation,) * 2
            if dilation > 1:
                conv.stride = (1, 1)
        before = dilation
