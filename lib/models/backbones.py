"""The classifiers: torchvision's networks, their forward passes without in-place operations, and two small ones."""

from itertools import pairwise
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models import densenet, efficientnet, resnet, vgg

from lib.models.weights import grey_kernel, load_weights, stem_and_head

ARCHITECTURES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "vgg11", "vgg13", "vgg16", "vgg19",
    "densenet121", "densenet161", "densenet169", "densenet201",
    "efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l", "compact", "vgg-gated",
)  # fmt: skip


def gate(features: Tensor, z: Tensor | None) -> Tensor:
    """`features` (N, C, h, w) times `z` (N, 1, H, W) average-pooled to (h, w), each cell's mean."""
    if z is None:
        return features
    (height, width), (h, w) = z.shape[-2:], features.shape[-2:]
    if height % h or width % w:
        return features * F.adaptive_avg_pool2d(z, (h, w))
    return features * F.avg_pool2d(z, (height // h, width // w))  # unlike the adaptive one deterministic on a GPU


class Gated(nn.Module):
    """Images (N, C, H, W) in, logits (N, K) out; an explanation z (N, 1, H, W) may gate the features (Rio-Torto et al.
    2020, section 3). The output (N, C, h, w) of `last_features` goes, gated or not, into the pooling."""

    before, after = (), nn.Module  # kinds of stages before and after which it is gated
    last_features = property(lambda self: self.features[-1])

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        expected = (x.shape[0], 1, *x.shape[2:])
        if z is not None and z.shape != expected:
            raise ValueError(f"z: expected shape {expected} for images of shape {tuple(x.shape)}, got {tuple(z.shape)}")
        return self.logits(x, z)

    def logits(self, x: Tensor, z: Tensor | None) -> Tensor:
        return self.classifier(self.avgpool(self.gated(self.features, x, z)).flatten(1))

    def gated(self, stages: nn.Sequential, x: Tensor, z: Tensor | None) -> Tensor:
        if z is None:
            return stages(x)
        for stage in stages:
            x = stage(gate(x, z) if isinstance(stage, self.before) else x)
            x = gate(x, z) if isinstance(stage, self.after) else x
        return x


class Residual(nn.Module):
    """ResNet's blocks, BasicBlock and Bottleneck: one ReLU module per activation, as attribution hooks need it."""

    relus = property(lambda self: ("relu1", "relu2") if hasattr(self, "conv3") else ("relu1",))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            out = self.bn3(self.conv3(self.relu2(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(Gated, resnet.ResNet):
    """ResNet, ResNeXt, Wide ResNet: gated after the stem and after every residual block."""

    last_features = property(lambda self: [*self.layer1, *self.layer2, *self.layer3, *self.layer4][-1])

    def logits(self, x: Tensor, z: Tensor | None) -> Tensor:
        x = gate(self.maxpool(self.relu(self.bn1(self.conv1(x)))), z)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = self.gated(stage, x, z)
        return self.fc(self.avgpool(x).flatten(1))


class Compact(ResNet):
    """A ResNet of two stages of two BasicBlocks: 3x3 stem of stride 2, no max pooling; output stride 4."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        nn.Module.__init__(self)  # torchvision's constructor would build four stages
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(width), nn.ReLU(), nn.Identity()
        block, wide = resnet.BasicBlock, 2 * width
        shortcut = nn.Sequential(nn.Conv2d(width, wide, 1, stride=2, bias=False), nn.BatchNorm2d(wide))
        self.layer1 = nn.Sequential(block(width, width), block(width, width))
        self.layer2 = nn.Sequential(block(width, wide, stride=2, downsample=shortcut), block(wide, wide))
        self.layer3, self.layer4 = nn.Sequential(), nn.Sequential()
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(wide, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class VGG(Gated, vgg.VGG):
    """VGG: gated before every max pooling."""

    before, after = nn.MaxPool2d, ()


class DenseNet(Gated, densenet.DenseNet):
    """DenseNet: gated after the stem and after every dense block. Its last ReLU is a module, for Guided Backprop."""

    after, relus = (nn.MaxPool2d, densenet._DenseBlock), ("relu",)
    last_features = property(lambda self: self.relu)

    def logits(self, x: Tensor, z: Tensor | None) -> Tensor:
        features = self.relu(self.gated(self.features, x, z))
        return self.classifier(F.adaptive_avg_pool2d(features, 1).flatten(1))


class EfficientNet(Gated, efficientnet.EfficientNet):
    """EfficientNet: gated after the stem and after every stage."""


class InvertedResidual(nn.Module):
    """EfficientNet's blocks, MBConv and FusedMBConv: the shortcut is added out of place."""

    def forward(self, x: Tensor) -> Tensor:
        return self.stochastic_depth(self.block(x)) + x if self.use_res_connect else self.block(x)


class PaperVGG(Gated):
    """The VGG of the Explainer-Classifier paper: four stages of two convolutions, gated before each max pooling, global
    max pooling, two sigmoid layers of 128 with dropout 0.3. FC weights Xavier-uniform, biases 0."""

    last_features = property(lambda self: self.stages[-1])

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(double_conv(i, o) for i, o in pairwise((in_channels, 32, 64, 128, 256)))
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in self.stages)
        hidden = (layer for i in (256, 128) for layer in (nn.Linear(i, 128), nn.Sigmoid(), nn.Dropout(0.3)))
        self.dense = nn.Sequential(*hidden, nn.Linear(128, num_classes))
        for layer in self.dense[::3]:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def logits(self, x: Tensor, z: Tensor | None) -> Tensor:
        for stage, pool in zip(self.stages, self.pools, strict=True):
            x = pool(gate(stage(x), z))
        return self.dense(x.amax((2, 3)))


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """conv 3x3 - relu - conv 3x3 - relu, sides kept: the unit of the U-Net Explainer and of its VGG."""
    first = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.ReLU())


OUT_OF_PLACE = {
    **{own.__bases__[-1]: own for own in (ResNet, VGG, DenseNet, EfficientNet)},
    **{base: type(base.__name__, (Residual, base), {}) for base in (resnet.BasicBlock, resnet.Bottleneck)},
    **dict.fromkeys((efficientnet.MBConv, efficientnet.FusedMBConv), InvertedResidual),
}


def out_of_place(model: nn.Module) -> nn.Module:
    """`model` itself, its torchvision networks and blocks turned into the classes above, no activation in place."""
    for module in list(model.modules()):
        if getattr(module, "inplace", False):
            module.inplace = False
        if type(module) in OUT_OF_PLACE:
            module.__class__ = OUT_OF_PLACE[type(module)]
            for name in getattr(module, "relus", ()):
                setattr(module, name, nn.ReLU())
    return model


def blackbox(
    architecture: str, num_classes: int, weights: str | Path | None = None, in_channels: int = 3, width: int = 32
) -> nn.Module:
    """A classifier, images (N, in_channels, H, W) in, logits (N, num_classes) out.

    architecture: one of `ARCHITECTURES`; width: channels of `compact`, in its first stage.
    weights: None (random), "imagenet", a name of torchvision's as `IMAGENET1K_V2`, or the path of a `.pth` or
        `.safetensors` file; a last layer for another number of classes is left out, all else must fit.
    in_channels: other than 3, each kernel of the first layer becomes the sum of its RGB kernels divided by in_channels:
        the same network on a grey image that is repeated in all channels.
    Raises ValueError, FileNotFoundError, or RuntimeError where torchvision's weights cannot be downloaded.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
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
        load_weights(model, architecture, weights)
    return model
