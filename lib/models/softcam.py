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
    """`evidence = conv1x1(head(features(x)))`, `logits = mean over (h, w) of evidence`; section 3.1 of the paper.

    features: images (N, C, H, W) -> (N, D, h, w); head: what the family puts before `evidence`, the 1x1 convolution.
    """

    last_features = property(lambda self: self.head)

    def __init__(self, features: nn.Module, head: nn.Module, evidence: nn.Conv2d) -> None:
        super().__init__()
        self.features, self.head, self.evidence = features, head, evidence

    def forward(self, x: Tensor) -> SoftCAMOutput:
        evidence = self.evidence(self.head(self.features(x)))
        return SoftCAMOutput(evidence.mean((2, 3)), evidence)


HEADS = {  # what a family puts before the evidence layer; VGG its fully connected layers, made convolutional
    VGG: lambda: nn.Sequential(
        nn.Conv2d(512, 4096, 1), nn.ReLU(), nn.Dropout(), nn.Conv2d(4096, 4096, 1), nn.ReLU(), nn.Dropout()
    ),
    EfficientNet: lambda: nn.Dropout(0.3),
}


def softcam(
    architecture: str,
    num_classes: int,
    weights: str | Path | None = None,
    output_stride: int | None = None,
    in_channels: int = 3,
    width: int = 32,
) -> SoftCAM:
    """A SoftCAM with a new evidence layer on the features that `blackbox` builds from the same arguments and seed.

    DenseNet's final ReLU is left out, as in the reference code.
    output_stride: image pixels per evidence pixel and side, for ResNets 32 (their own), 16 or 8, by dilation.
    Raises ValueError for an architecture that `blackbox` does not know or whose output stride cannot be chosen.
    """
    if architecture == "vgg-gated":
        raise ValueError("architecture: 'vgg-gated' ends in a global maximum, which no evidence map can replace")
    model = blackbox(architecture, num_classes, weights, in_channels, width)
    if output_stride is not None:
        set_output_stride(model, output_stride, architecture)
    features, _, linear = parts(model)
    return SoftCAM(features, HEADS.get(type(model), nn.Identity)(), nn.Conv2d(linear.in_features, num_classes, 1))


def to_softcam(blackbox: nn.Module) -> SoftCAM:
    """TTE-CAM (arXiv 2603.26885): a trained black box as a SoftCAM with the same logits, without training.

    Copies of the last linear layer's weights and bias fill the evidence layer: mean and linear map commute.
    blackbox: features, average pooling over all positions, dropout or none, one linear layer (most of torchvision's).
    Raises ValueError unless the (finite) logits are the same on a random image, computed in float64.
    """
    model = out_of_place(deepcopy(blackbox)).eval()
    try:
        features, head, linear = parts(model)
        if any(list(layer.parameters()) for layer in head):
            raise ValueError("weights between pooling and the last layer")
        evidence = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
        state = linear.state_dict()
        evidence.to(linear.weight).load_state_dict(state | {"weight": state["weight"][:, :, None, None]})
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
    names = list(children)[: list(children).index(last)]
    pooling = next((i for i, name in enumerate(names) if isinstance(children[name], nn.AdaptiveAvgPool2d)), len(names))
    features = nn.Sequential(OrderedDict((name, children[name]) for name in names[:pooling]))
    features = features[0] if len(features) == 1 else features
    if getattr(model, "transform_input", False):  # from ImageNet's mean and deviation to 0.5 and 0.5
        scale = Normalize((0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225), (0.5 / 0.229, 0.5 / 0.224, 0.5 / 0.225))
        features = nn.Sequential(scale, features)
    layers = [children[name] for name in names[pooling + 1 :]] + ([model.relu] if isinstance(model, DenseNet) else [])
    layers += children[last] if isinstance(children[last], nn.Sequential) else [children[last]]
    *head, linear = (layer for layer in layers if not isinstance(layer, nn.Flatten))
    return features, head, linear


def set_output_stride(model: nn.Module, output_stride: int, architecture: str) -> None:
    """Trades stride for dilation in the last stages: the coarser map is every second pixel of the finer one."""
    if type(model) is not ResNet:
        raise ValueError(f"output_stride: selectable for ResNets only, got {output_stride} for {architecture!r}")
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride: expected 8, 16 or 32, got {output_stride}")
    before = 1
    for stage, stride in ((model.layer3, 16), (model.layer4, 32)):
        dilation = max(1, stride // output_stride)
        for conv in (module for module in stage.modules() if isinstance(module, nn.Conv2d)):
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (before if conv.stride == (2, 2) else dilation,) * 2
            if dilation > 1:
                conv.stride = (1, 1)
        before = dilation
