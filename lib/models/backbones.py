"""The classifiers: torchvision's networks without in-place operations, and two small ones.

Each class below changes only the forward pass of the torchvision class of the same name, so names and initial values
of weights stay torchvision's. Every network also takes an explanation `z` that gates its feature maps (Rio-Torto et al.
2020, section 3); without `z` it is the plain black box.
"""

from itertools import pairwise
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models import densenet, efficientnet, resnet, vgg

from lib.models.weights import grey_kernel, load_weights, read_weights, stem_and_head

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2")
RESNEXTS = ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")
VGGS = ("vgg11", "vgg13", "vgg16", "vgg19")
DENSENETS = ("densenet121", "densenet161", "densenet169", "densenet201")
EFFICIENTNETS = ("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l")
OWN = ("compact", "vgg-gated")
ARCHITECTURES = (*RESNETS, *RESNEXTS, *VGGS, *DENSENETS, *EFFICIENTNETS, *OWN)


def gate(features: Tensor, z: Tensor | None) -> Tensor:
    """`features` (N, C, h, w) times `z` (N, 1, H, W) average-pooled to (h, w); `features` themselves without `z`.

    Sides that do not divide H, W are pooled adaptively: each cell is the mean of the pixels it overlaps.
    """
    if z is None:
        return features
    (height, width), (h, w) = z.shape[-2:], features.shape[-2:]
    if height % h or width % w:
        return features * F.adaptive_avg_pool2d(z, (h, w))
    return features * F.avg_pool2d(z, (height // h, width // w))  # unlike the adaptive one deterministic on a GPU


class Gated(nn.Module):
    """A classifier x (N, C, H, W) in, logits (N, K) out, whose features an explanation z (N, 1, H, W) may gate."""

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        if z is None:
            return super().forward(x)
        check_explanation(x, z)
        return self.gated_forward(x, z)


def check_explanation(x: Tensor, z: Tensor) -> None:
    expected = (x.shape[0], 1, *x.shape[2:])
    if z.shape != expected:
        raise ValueError(f"z: expected shape {expected} for images of shape {tuple(x.shape)}, got {tuple(z.shape)}")


class BasicBlock(resnet.BasicBlock):
    """conv-bn-relu-conv-bn, shortcut, relu."""

    own_relus = ("relu1",)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class Bottleneck(resnet.Bottleneck):
    """conv-bn-relu-conv-bn-relu-conv-bn, shortcut, relu."""

    own_relus = ("relu1", "relu2")

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + shortcut)


class ResNet(Gated, resnet.ResNet):
    """ResNet, ResNeXt, Wide ResNet: gated after the stem and after every residual block."""

    def gated_forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = gate(self.maxpool(self.relu(self.bn1(self.conv1(x)))), z)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = gate(block(x), z)
        return self.fc(self.avgpool(x).flatten(1))

    @property
    def last_features(self) -> nn.Module:
        return (self.layer4 if len(self.layer4) else self.layer2)[-1]


class Compact(ResNet):
    """A ResNet of two stages of two BasicBlocks: 3x3 stem of stride 2, no max pooling; output stride 4."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 32) -> None:
        nn.Module.__init__(self)  # torchvision's constructor would build four stages
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(width), nn.ReLU(), nn.Identity()
        shortcut = nn.Sequential(nn.Conv2d(width, 2 * width, 1, stride=2, bias=False), nn.BatchNorm2d(2 * width))
        self.layer1 = nn.Sequential(*(resnet.BasicBlock(width, width) for _ in range(2)))
        self.layer2 = nn.Sequential(
            resnet.BasicBlock(width, 2 * width, stride=2, downsample=shortcut), resnet.BasicBlock(2 * width, 2 * width)
        )
        self.layer3, self.layer4 = nn.Sequential(), nn.Sequential()
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(2 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class VGG(Gated, vgg.VGG):
    """VGG: gated before every max pooling."""

    def gated_forward(self, x: Tensor, z: Tensor) -> Tensor:
        for layer in self.features:
            x = layer(gate(x, z) if isinstance(layer, nn.MaxPool2d) else x)
        return self.classifier(self.avgpool(x).flatten(1))

    @property
    def last_features(self) -> nn.Module:
        return self.features[-1]


class DenseNet(Gated, densenet.DenseNet):
    """DenseNet: gated after the stem and after every dense block. Its last ReLU is a module, for Guided Backprop."""

    own_relus = ("relu",)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        if z is None:
            return self.classifier(F.adaptive_avg_pool2d(self.relu(self.features(x)), 1).flatten(1))
        check_explanation(x, z)
        for name, layer in self.features.named_children():
            x = gate(layer(x), z if name == "pool0" or name.startswith("denseblock") else None)
        return self.classifier(F.adaptive_avg_pool2d(self.relu(x), 1).flatten(1))

    @property
    def last_features(self) -> nn.Module:
        return self.relu


class InvertedResidual(nn.Module):
    """EfficientNet's blocks: the shortcut is added out of place."""

    def forward(self, x: Tensor) -> Tensor:
        return self.stochastic_depth(self.block(x)) + x if self.use_res_connect else self.block(x)


class MBConv(InvertedResidual, efficientnet.MBConv):
    """Expansion, depthwise convolution, squeeze and excitation, projection."""


class FusedMBConv(InvertedResidual, efficientnet.FusedMBConv):
    """Expansion by a full convolution, projection."""


class EfficientNet(Gated, efficientnet.EfficientNet):
    """EfficientNet v2: gated after the stem and after every stage."""

    def gated_forward(self, x: Tensor, z: Tensor) -> Tensor:
        for stage in self.features:
            x = gate(stage(x), z)
        return self.classifier(self.avgpool(x).flatten(1))

    @property
    def last_features(self) -> nn.Module:
        return self.features[-1]


class PaperVGG(Gated):
    """The VGG of the Explainer-Classifier paper: four stages of two convolutions, gated before each max pooling, global
    max pooling, two sigmoid layers of 128 with dropout 0.3. FC weights Xavier-uniform, biases 0."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        widths = (in_channels, 32, 64, 128, 256)
        self.stages = nn.ModuleList(double_conv(i, o) for i, o in pairwise(widths))
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in self.stages)
        self.dense = nn.Sequential(
            *(nn.Linear(256, 128), nn.Sigmoid(), nn.Dropout(0.3)),
            *(nn.Linear(128, 128), nn.Sigmoid(), nn.Dropout(0.3)),
            nn.Linear(128, num_classes),
        )
        for layer in self.dense[::3]:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        if z is not None:
            check_explanation(x, z)
        for stage, pool in zip(self.stages, self.pools, strict=True):
            x = pool(gate(stage(x), z))
        return self.dense(x.amax((2, 3)))

    @property
    def last_features(self) -> nn.Module:
        return self.stages[-1]


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """conv 3x3 - relu - conv 3x3 - relu, sides kept: the unit of the U-Net Explainer and of its VGG."""
    first, second = (
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
    )
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


OUT_OF_PLACE = {
    resnet.BasicBlock: BasicBlock,
    resnet.Bottleneck: Bottleneck,
    resnet.ResNet: ResNet,
    vgg.VGG: VGG,
    densenet.DenseNet: DenseNet,
    efficientnet.MBConv: MBConv,
    efficientnet.FusedMBConv: FusedMBConv,
    efficientnet.EfficientNet: EfficientNet,
}


def out_of_place(model: nn.Module) -> nn.Module:
    """`model` itself, its torchvision networks and blocks turned into the classes above, no activation in place."""
    for module in list(model.modules()):
        if getattr(module, "inplace", False):
            module.inplace = False
        if type(module) in OUT_OF_PLACE:
            module.__class__ = OUT_OF_PLACE[type(module)]
            for name in getattr(module, "own_relus", ()):  # one ReLU module per activation: attribution hooks need it
                setattr(module, name, nn.ReLU())
    return model


def blackbox(
    architecture: str, num_classes: int, weights: str | Path | None = None, in_channels: int = 3, width: int = 32
) -> nn.Module:
    """A classifier, images (N, in_channels, H, W) in, logits (N, num_classes) out.

    architecture: a torchvision name, `compact` (two residual stages of `width` and 2 `width` channels, for small
        images) or `vgg-gated` (the VGG of the Explainer-Classifier paper).
    weights: None (random), "imagenet" (torchvision's default weights), a name of torchvision's weights as
        `IMAGENET1K_V2`, or the path of a `.pth` or `.safetensors` file with torchvision's tensor names. A last layer
        for another number of classes is left out; all else must fit.
    in_channels: other than 3, each kernel of the first layer becomes the sum of its RGB kernels divided by in_channels,
        the same network on a grey image that is repeated in all channels.
    Raises ValueError for an unknown architecture or weights that are damaged or do not fit, FileNotFoundError,
    RuntimeError if torchvision's weights are neither cached nor can be downloaded.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    for name, value in (("num_classes", num_classes), ("in_channels", in_channels), ("width", width)):
        if value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value}")
    if architecture in OWN and weights == "imagenet":
        raise ValueError(f"weights: there are no ImageNet weights for {architecture!r}; give None or a path")
    if architecture == "compact":
        model = out_of_place(Compact(num_classes, in_channels, width))
    elif architecture == "vgg-gated":
        model = PaperVGG(num_classes, in_channels)
    else:
        model = out_of_place(models.get_model(architecture, weights=None, num_classes=num_classes))
        stem = model.get_submodule(stem_and_head(model)[0])
        if in_channels != stem.in_channels:
            stem.in_channels, stem.weight = in_channels, nn.Parameter(grey_kernel(stem.weight.detach(), in_channels))
    if weights is not None:
        load_weights(model, read_weights(architecture, weights), f"weights={str(weights)!r} for {architecture}")
    return model


def last_features(model: nn.Module) -> nn.Module:
    """The layer of CAM methods: its output (N, C, h, w) goes into the pooling (black box; before `z`
    gates it, if it does) or into the evidence layer (SoftCAM). Raises ValueError for any other model."""
    if not isinstance(getattr(model, "last_features", None), nn.Module):
        raise ValueError(f"model: expected a network of lib.models, got {type(model).__name__}")
    return model.last_features
