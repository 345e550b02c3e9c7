from functools import partial

import pytest
import torch
from torch import nn
from torchvision import models

from lib.models import ARCHITECTURES, blackbox, softcam, to_softcam


def settle(model: nn.Module) -> nn.Module:
    """Batch statistics that differ from their initial 0 and 1, so that a lost layer shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.1, 0.1)
    return model.eval()


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "vgg-gated"])
def test_every_architecture_has_one_map_per_class(architecture):
    stride = 4 if architecture == "compact" else 32
    with torch.device("meta"):
        model = softcam(architecture, 5, in_channels=1)
        logits, evidence = model(torch.zeros(2, 1, 96, 128, device="meta"))
    assert logits.shape == (2, 5)
    assert evidence.shape == (2, 5, 96 // stride, 128 // stride)


@pytest.mark.parametrize("architecture", ["compact", "resnet18", "densenet121"])
def test_logits_are_the_means_of_the_maps_and_features_those_of_the_black_box_of_the_same_seed(architecture):
    torch.manual_seed(5)
    theirs = blackbox(architecture, 3).state_dict()
    torch.manual_seed(5)
    model = softcam(architecture, 3).eval()
    ours = {name.removeprefix("features."): value for name, value in model.state_dict().items() if "features." in name}
    assert all(torch.equal(value, theirs.get(name, theirs.get(f"features.{name}"))) for name, value in ours.items())
    logits, evidence = model(torch.rand(2, 3, 75, 101))  # sides no stride divides
    torch.testing.assert_close(logits, evidence.double().sum((2, 3)).div(evidence[0, 0].numel()).float())


def resnet(**changed: nn.Module) -> nn.Module:
    model = models.resnet18(weights=None)
    for name, module in changed.items():
        setattr(model, name, module)
    return model


OWN = ("resnet18", "resnext50_32x4d", "densenet121", "efficientnet_v2_s", "compact")
OTHERS = ("mobilenet_v2", "shufflenet_v2_x0_5", "regnet_y_400mf", "mnasnet0_5", "efficientnet_b0", "swin_t")
INCEPTIONS = ("googlenet", "inception_v3")


def inception(name: str, scaled: bool) -> nn.Module:
    """With auxiliary heads, which only training uses, and with the input scaling of torchvision's own weights."""
    return models.get_model(name, num_classes=3, aux_logits=True, init_weights=False, transform_input=scaled)


CONVERTED = {
    **{name: partial(blackbox, name, 3) for name in OWN},
    **{f"torchvision's {name}": partial(models.get_model, name, num_classes=3) for name in OTHERS},
    **{f"{name}, {scaled}": partial(inception, name, scaled) for name in INCEPTIONS for scaled in (True, False)},
    "no bias": lambda: resnet(fc=nn.Sequential(nn.Dropout(0.3), nn.Linear(512, 3, bias=False))),
    "of one's own": lambda: nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    ),
}


@pytest.mark.parametrize("build", CONVERTED.values(), ids=CONVERTED)
def test_conversion_keeps_the_logits_to_what_tells_classes_and_images_apart(build):
    model, x = settle(build()), torch.rand(2, 3, 96, 128)
    kind, converted = type(model), to_softcam(model)
    with torch.no_grad():
        expected, (logits, evidence) = model(x), converted(x)
    scale = (expected - expected.mean()).abs().max()
    assert scale > 0
    assert (logits - expected).abs().max() < 1e-4 * scale
    torch.testing.assert_close(evidence.mean((2, 3)), logits)
    assert evidence.shape[2] * evidence.shape[3] > 1
    assert not any("aux" in name.lower() for name, _ in converted.named_modules())
    for parameter in converted.parameters():
        parameter.data.zero_()
    assert type(model) is kind
    torch.testing.assert_close(model(x), expected)  # it is left alone


REFUSED = [
    ("VGG", lambda: models.vgg11(init_weights=False)),  # fully connected layers weigh the positions differently
    ("SqueezeNet", models.squeezenet1_0),  # a ReLU stands between its class maps and their mean
    ("MobileNetV3", models.mobilenet_v3_small),  # a hidden layer stands between pooling and logits
    ("ConvNeXt", models.convnext_tiny),  # a layer normalisation
    ("VisionTransformer", models.vit_b_32),  # its linear layer sees the class token
    ("PaperVGG", lambda: blackbox("vgg-gated", 2)),  # it pools by the maximum
    ("Linear", lambda: nn.Linear(2, 2)),
    ("SoftCAM", lambda: softcam("compact", 2, width=2)),
    ("ResNet", lambda: resnet(fc=nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 3)))),
    ("ResNet", lambda: resnet(fc=nn.Sequential(nn.Tanh(), nn.Linear(512, 3)))),
    ("ResNet", lambda: resnet(avgpool=nn.AdaptiveMaxPool2d(1))),
    ("ResNet", lambda: resnet(avgpool=nn.AdaptiveAvgPool2d(2), fc=nn.Linear(4 * 512, 3))),
]


@pytest.mark.parametrize(("name", "build"), REFUSED)
def test_conversion_refuses_in_one_sentence_what_would_change_the_logits(name, build):
    said = rf"^blackbox: expected features, average .* got {name}, which cannot .*logits$"
    with pytest.raises(ValueError, match=said):
        to_softcam(build().eval())


def test_a_converted_network_keeps_what_stands_before_its_last_layer_and_a_fresh_densenet_has_no_final_relu():
    converted = to_softcam(CONVERTED["no bias"]().train())
    assert isinstance(converted.head, nn.Dropout) and converted.training
    assert isinstance(to_softcam(blackbox("densenet121", 2)).head, nn.ReLU)
    assert isinstance(softcam("densenet121", 2).head, nn.Identity)


def test_conversion_by_hand():
    """One weight per class: the map of class k is feature k, twice; the bias is added to every pixel."""
    model = blackbox("compact", 2, width=1).eval()
    model.fc.weight.data, model.fc.bias.data = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, -1.0])
    cam, x = to_softcam(model), torch.rand(1, 3, 16, 16)
    expected = 2 * cam.features(x) + torch.tensor([1.0, -1.0])[:, None, None]
    torch.testing.assert_close(cam(x).evidence, expected)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_output_stride_refines_the_same_map(architecture):
    """Without its stride a stage computes the same values at the old positions, and others between them."""
    torch.manual_seed(2)
    coarse = settle(softcam(architecture, 2))
    x = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        for stride in (32, 16, 8):
            fine = softcam(architecture, 2, output_stride=stride).eval()
            fine.load_state_dict(coarse.state_dict())
            evidence = fine(x).evidence
            assert evidence.shape[2:] == (96 // stride, 128 // stride)
            step = 32 // stride
            torch.testing.assert_close(evidence[:, :, ::step, ::step], coarse(x).evidence, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet18", 2, None, 4), "output_stride: expected 8, 16 or 32 of a ResNet, got 4 of resnet18"),
        (("compact", 2, None, 16), "output_stride: .* of a ResNet, got 16 of compact"),
        (("vgg-gated", 2), "'vgg-gated' ends in a global maximum"),
    ],
)
def test_wrong_arguments_are_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        softcam(*arguments)
