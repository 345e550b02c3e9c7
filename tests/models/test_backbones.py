from functools import cache

import pytest
import torch
from torch import nn
from torchvision import models

from lib.models import ARCHITECTURES, blackbox, softcam

SMALL = ("resnet18", "resnet50", "vgg11", "densenet121", "efficientnet_v2_s", "compact", "vgg-gated")
network = cache(lambda architecture: blackbox(architecture, 2).eval())  # a test puts back what it changes


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in ("compact", "vgg-gated")])
def test_state_dict_is_torchvisions_and_nothing_happens_in_place(architecture):
    with torch.device("meta"):
        ours, theirs = blackbox(architecture, 5), models.get_model(architecture, weights=None, num_classes=5)
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert not any(getattr(module, "inplace", False) for module in ours.modules())
    assert ours(torch.zeros(2, 3, 64, 96, device="meta")).shape == (2, 5)


@pytest.mark.parametrize("architecture", SMALL[:5])
def test_logits_are_torchvisions(architecture):
    x, logits = torch.rand(2, 3, 64, 64), []
    for build in (blackbox, lambda name, classes: models.get_model(name, weights=None, num_classes=classes)):
        torch.manual_seed(3)
        logits.append(build(architecture, 3).eval()(x))
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("architecture", SMALL)
def test_a_white_explanation_changes_nothing_a_grey_one_something_and_a_black_one_lets_nothing_pass(architecture):
    model, x = network(architecture), torch.rand(2, 3, 72, 88)
    with torch.no_grad():
        plain = model(x)
        torch.testing.assert_close(model(x, torch.ones(2, 1, 72, 88)), plain)
        assert not torch.allclose(model(x, torch.full((2, 1, 72, 88), 0.5)), plain)
        dark = model(x, torch.zeros(2, 1, 72, 88))
    torch.testing.assert_close(dark[0], dark[1])
    with pytest.raises(ValueError, match=r"z: expected shape \(2, 1, 72, 88\) .* got \(1, 1, 72, 88\)"):
        model(x, torch.ones(1, 1, 72, 88))


def test_gating_of_a_resnet_restated():
    """Stem, then every block, each times z averaged over its cells: the paper's equation, written out."""
    model, x, z = blackbox("resnet18", 2).eval(), torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64)
    features = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
    for block in [nn.Identity(), *blocks]:
        features = block(features)
        n, cell = features.shape[-1], 64 // features.shape[-1]
        features = features * z.reshape(n, cell, n, cell).mean((1, 3))
    torch.testing.assert_close(model(x, z), model.fc(features.mean((2, 3))))


@pytest.mark.parametrize(
    ("architecture", "gates"), [("vgg11", 5), ("densenet121", 5), ("efficientnet_v2_s", 8), ("compact", 5)]
)
def test_how_often_a_family_is_gated(monkeypatch, architecture, gates):
    """VGG before 5 poolings, DenseNet after stem and 4 dense blocks, EfficientNet after 8 stages, `compact` after stem
    and 4 residual blocks."""
    seen = []
    monkeypatch.setattr("lib.models.backbones.gate", lambda features, z: seen.append(z) or features)
    network(architecture)(torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64))
    assert len(seen) == gates and all(z is not None for z in seen)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("architecture", SMALL)
def test_every_layer_runs_once_last_features_are_a_map_and_gradients_reach_x_and_z(architecture, gated):
    model, runs = network(architecture), []
    x, z = torch.rand(2, 3, 64, 64, requires_grad=True), torch.rand(2, 1, 64, 64, requires_grad=True)
    watched = {model.last_features, *(m for m in model.modules() if isinstance(m, nn.ReLU | nn.MaxPool2d))}
    hooks = [module.register_forward_hook(lambda m, _, output: runs.append((m, output))) for module in watched]
    logits = model(x, z) if gated else model(x)
    for hook in hooks:
        hook.remove()
    assert len({id(module) for module, _ in runs}) == len(runs)
    (features,) = (output for module, output in runs if module is model.last_features)
    assert features.ndim == 4
    last = {"resnet18": "fc", "compact": "fc", "densenet121": "classifier"}.get(architecture)
    if last and not gated:
        torch.testing.assert_close(getattr(model, last)(features.mean((2, 3))), logits)
    gradients = torch.autograd.grad(logits[0, 1], (x, z) if gated else (x,))
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)


def test_compact_is_small_and_fine():
    model = blackbox("compact", 4, in_channels=1, width=8).eval()
    features = []
    model.last_features.register_forward_hook(lambda _, __, output: features.append(output.shape))
    assert model(torch.rand(2, 1, 64, 96)).shape == (2, 4)
    assert features == [(2, 16, 16, 24)]
    x = torch.rand(1, 1, 96, 96, requires_grad=True)
    cell = softcam("compact", 1, in_channels=1, width=8).eval()
    (gradient,) = torch.autograd.grad(cell(x).evidence[0, 0, 12, 12], x)
    rows = gradient[0, 0].abs().sum(1).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 47  # the receptive field


@pytest.mark.parametrize("architecture, channels", [("resnet18", 2), ("densenet121", 1), ("efficientnet_v2_s", 1)])
def test_another_number_of_channels_is_the_rgb_network_on_repeated_grey(architecture, channels):
    x, logits = torch.rand(1, 1, 64, 64), []
    for count in (3, channels):
        torch.manual_seed(1)
        logits.append(blackbox(architecture, 2, in_channels=count).eval()(x.repeat(1, count, 1, 1)))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_the_architecture_is_checked():
    with pytest.raises(ValueError, match=r"architecture: expected one of resnet18, .*compact.*, got 'resnet19'"):
        blackbox("resnet19", 2)
