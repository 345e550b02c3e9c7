"""SoftCAM (Djoumessi & Berens, arXiv 2505.17748): a classifier that decides by the mean of its evidence maps."""

from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from torchvision import models
from torchvision.models.googlenet import BasicConv2d as GoogLeNetConv
from torchvision.models.inception import BasicConv2d as Inception3Conv

from lib.models.backbones import VGG, Compact, DenseNet, EfficientNet, PaperVGG, ResNet, blackbox, out_of_place

NOT_LINEAR = {
    (VGG, models.AlexNet): "its fully connected layers weigh the positions differently, and ReLUs follow",
    (PaperVGG,): "it pools by the maximum, and sigmoid layers follow",
    (models.SqueezeNet,): "a ReLU stands between its class maps and their mean",
    (models.MobileNetV3,): "a hidden layer with a Hardswish stands between pooling and logits",
    (models.ConvNeXt,): "a layer normalisation stands between pooling and its linear layer",
    (models.MaxVit,): "a layer normalisation and a hidden layer with a tanh stand between pooling and logits",
    (models.VisionTransformer,): "its linear layer sees the class token, not the mean over positions",
}


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
    The black box itself stays as it is: its tensors are copied.
    blackbox: `compact`, or any torchvision classifier that is average pooling over all positions followed by one linear
        layer, dropout before it allowed: ResNet, ResNeXt, Wide ResNet, DenseNet, EfficientNet v1 and v2, MobileNetV2,
        RegNet, ShuffleNetV2, MNASNet, GoogLeNet, Inception v3 (both without auxiliary heads), Swin Transformer.
    Raises ValueError for any other network, with the reason.
    """
    model = out_of_place(deepcopy(blackbox))
    for kinds, reason in NOT_LINEAR.items():
        if isinstance(model, kinds):
            raise ValueError(
                f"blackbox: {type(model).__name__} cannot become a SoftCAM with the same logits, since {reason}"
                + ("; build softcam('vgg16', ...) and train it" if isinstance(model, VGG) else "")
            )
    features, head, linear = parts(model)
    evidence = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None).to(linear.weight)
    evidence.load_state_dict(
        {name: value[:, :, None, None] if name == "weight" else value for name, value in linear.state_dict().items()}
    )
    return SoftCAM(features, head, evidence).train(blackbox.training)


class ScaledInput(nn.Module):
    """Images normalised by ImageNet's mean and standard deviation -> by 0.5 and 0.5, as Inception's weights want."""

    def forward(self, x: Tensor) -> Tensor:
        std, mean = (x.new_tensor(values)[:, None, None] for values in ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406)))
        return (x * std + mean - 0.5) / 0.5


class InceptionConv(nn.Module):
    """Convolution, batch normalisation and a ReLU that is a module, out of place."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


def chain(model: nn.Module, *left_out: str) -> nn.Sequential:
    """The children of `model` one after the other, by their names."""
    sequence = nn.Sequential()
    for name, child in model.named_children():
        if name not in left_out:
            sequence.add_module(name, child)
    return sequence


def parts(model: nn.Module) -> tuple[nn.Module, nn.Module, nn.Linear]:
    """The features, what stands between them and the last linear layer apart from pooling, and that layer."""
    match model:
        case ResNet() | models.RegNet() | models.ShuffleNetV2():
            return chain(model, "avgpool", "fc"), *head_of(model, model.fc)
        case DenseNet():
            return model.features, *head_of(model, model.classifier, model.relu)
        case EfficientNet() | models.MobileNetV2():
            return model.features, *head_of(model, model.classifier)
        case models.MNASNet():
            return model.layers, *head_of(model, model.classifier)
        case models.SwinTransformer():
            return chain(model, "avgpool", "flatten", "head"), *head_of(model, model.head)
        case models.GoogLeNet() | models.Inception3():
            features = chain(model, "aux1", "aux2", "AuxLogits", "avgpool", "dropout", "fc")
            for module in features.modules():
                if isinstance(module, GoogLeNetConv | Inception3Conv):
                    module.__class__, module.relu = InceptionConv, nn.ReLU()
            return (
                nn.Sequential(ScaledInput(), features) if model.transform_input else features,
                model.dropout,
                model.fc,
            )
        case VGG():
            return model.features, model.classifier[:-1], model.classifier[-1]
    raise ValueError(
        "blackbox: expected compact or a torchvision classifier that ends in average pooling and one linear layer, got "
        f"{type(model).__module__}.{type(model).__name__}"
    )


def head_of(model: nn.Module, last: nn.Module, before: nn.Module | None = None) -> tuple[nn.Module, nn.Linear]:
    """Dropout (or `before`) and linear layer of `last`. Raises ValueError if there is more to it, or other pooling."""
    *dropouts, linear = last if isinstance(last, nn.Sequential) else [last]
    if not isinstance(linear, nn.Linear) or not all(isinstance(layer, nn.Dropout) for layer in dropouts):
        raise ValueError(
            f"blackbox: expected dropout and one linear layer at the end of {type(model).__name__}, got {last}"
        )
    pooling = getattr(model, "avgpool", None)
    if pooling is not None and not (isinstance(pooling, nn.AdaptiveAvgPool2d) and pooling.output_size in (1, (1, 1))):
        raise ValueError(f"blackbox: expected average pooling over all positions, got {pooling}")
    layers = [*([] if before is None else [before]), *dropouts]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers) if layers else nn.Identity(), linear


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
