"""SoftCAM (Djoumessi & Berens, arXiv 2505.17748): a classifier that decides by the mean of its evidence maps."""

from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from lib.models.backbones import VGG, Compact, DenseNet, EfficientNet, ResNet, blackbox, out_of_place


class SoftCAMOutput(NamedTuple):
    logits: Tensor  # (N, K)
    evidence: Tensor  # (N, K, h, w), signed


class SoftCAM(nn.Module):
    """`evidence = conv1x1(head(features(x)))`, `logits = mean over (h, w) of evidence`; section 3.1 of the paper.

    features: images (N, C, H, W) -> (N, D, h, w); head: what the family puts before the evidence layer; evidence: 1x1
    convolution with bias, one output channel per class.
    """

    def __init__(self, features: nn.Module, head: nn.Module, evidence: nn.Conv2d) -> None:
        super().__init__()
        self.features, self.head, self.evidence = features, head, evidence

    def forward(self, x: Tensor) -> SoftCAMOutput:
        evidence = self.evidence(self.head(self.features(x)))
        return SoftCAMOutput(evidence.mean((2, 3)), evidence)

    @property
    def last_features(self) -> nn.Module:
        return self.head


def softcam(
    architecture: str,
    num_classes: int,
    weights: str | Path | None = None,
    output_stride: int | None = None,
    in_channels: int = 3,
    width: int = 32,
) -> SoftCAM:
    """A SoftCAM with a new evidence layer on the features that `blackbox` builds from the same arguments and seed.

    VGG's fully connected layers become fresh 1x1 convolutions of 4096 channels; DenseNet's final ReLU is left out, as
    in the reference code; EfficientNet has dropout 0.3 before the evidence layer.
    output_stride: image pixels per evidence pixel and side, for ResNets 32 (their own), 16 or 8, by dilation.
    Raises ValueError for an architecture that `blackbox` does not know or whose output stride cannot be chosen.
    """
    if architecture == "vgg-gated":
        raise ValueError("architecture: 'vgg-gated' ends in a global maximum, which no evidence map can replace")
    model = blackbox(architecture, num_classes, weights, in_channels, width)
    if output_stride is not None:
        set_output_stride(model, output_stride, architecture)
    features, head, linear = parts(model)
    if isinstance(model, VGG):
        layers = (nn.Conv2d(512, 4096, 1), nn.ReLU(), nn.Dropout(), nn.Conv2d(4096, 4096, 1), nn.ReLU(), nn.Dropout())
        head = nn.Sequential(*layers)
    elif isinstance(model, DenseNet):
        head = nn.Identity()
    elif isinstance(model, EfficientNet):
        head = nn.Dropout(0.3)
    return SoftCAM(features, head, nn.Conv2d(linear.in_features, num_classes, 1))


def to_softcam(blackbox: nn.Module) -> SoftCAM:
    """TTE-CAM (arXiv 2603.26885): a trained black box as a SoftCAM with the same logits, without training.

    The fully connected layer's weights and bias fill the evidence layer: mean over positions and linear map commute.
    The black box itself stays as it is: its tensors are copied. Takes torchvision's own networks, too.
    Raises ValueError for a network that is not global average pooling followed by one linear layer.
    """
    model = out_of_place(deepcopy(blackbox))
    if isinstance(model, VGG):
        raise ValueError(
            "blackbox: VGG cannot become a SoftCAM with the same logits, since its first fully connected layer weighs "
            "the 7x7 positions differently and ReLUs follow; build softcam('vgg16', ...) and train it"
        )
    features, head, linear = parts(model)
    evidence = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None).to(linear.weight)
    evidence.load_state_dict(
        {name: value[:, :, None, None] if name == "weight" else value for name, value in linear.state_dict().items()}
    )
    return SoftCAM(features, head, evidence).train(blackbox.training)


def parts(model: nn.Module) -> tuple[nn.Module, nn.Module, nn.Linear]:
    """The features, what stands between them and the last linear layer apart from pooling, and that layer."""
    match model:
        case ResNet():
            features = nn.Sequential()
            for name, child in model.named_children():
                if name not in ("avgpool", "fc"):
                    features.add_module(name, child)
            return features, nn.Identity(), model.fc
        case DenseNet():
            return model.features, model.relu, model.classifier
        case EfficientNet():
            return model.features, model.classifier[0], model.classifier[1]
        case VGG():
            return model.features, model.classifier[:-1], model.classifier[-1]
    raise ValueError(f"blackbox: expected a ResNet, DenseNet, EfficientNet or compact, got {type(model).__name__}")


def set_output_stride(model: nn.Module, output_stride: int, architecture: str) -> None:
    """Trades stride for dilation in the last stages: the coarser map is every second pixel of the finer one."""
    if not isinstance(model, ResNet) or isinstance(model, Compact):
        raise ValueError(f"output_stride: selectable for ResNets only, got {output_stride} for {architecture!r}")
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride: expected 8, 16 or 32, got {output_stride}")
    dilation = 1
    for stage, stride in ((model.layer3, 16), (model.layer4, 32)):
        for conv in (module for module in stage.modules() if isinstance(module, nn.Conv2d)):
            strided = conv.stride == (2, 2)
            if strided and stride > output_stride:
                conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                step = dilation if strided else max(1, stride // output_stride)
                conv.dilation = conv.padding = (step, step)
        dilation = max(1, stride // output_stride)
