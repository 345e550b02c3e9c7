from functools import cache

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from lib.models import ARCHITECTURES, blackbox, explainer_classifier, last_features, softcam
from lib.models.backbones import OWN

SMALL = ("resnet18", "resnet50", "vgg11", "densenet121", "efficientnet_v2_s", "compact", "vgg-gated")


@pytest.fixture(scope="module")
def network():
    """Black boxes of two classes in eval mode, each built once; a test puts back what it changes."""
    return cache(lambda architecture: blackbox(architecture, 2).eval())


def names_and_shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in OWN])
def test_state_dict_is_torchvisions_and_nothing_happens_in_place(architecture):
    with torch.device("meta"):
        ours, theirs = blackbox(architecture, 5), models.get_model(architecture, weights=None, num_classes=5)
    assert names_and_shapes(ours) == names_and_shapes(theirs)
    assert not any(getattr(module, "inplace", False) for module in ours.modules())
    assert ours(torch.zeros(2, 3, 64, 96, device="meta")).shape == (2, 5)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "vgg11", "densenet121", "efficientnet_v2_s"])
def test_logits_are_torchvisions(architecture):
    torch.manual_seed(3)
    ours = blackbox(architecture, 3).eval()
    torch.manual_seed(3)
    theirs = models.get_model(architecture, weights=None, num_classes=3).eval()
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("architecture", SMALL)
def test_gating(network, architecture):
    model, x = network(architecture), torch.rand(2, 3, 72, 88)
    with torch.no_grad():
        plain = model(x)
        torch.testing.assert_close(model(x, torch.ones(2, 1, 72, 88)), plain)
        assert not torch.allclose(model(x, torch.full((2, 1, 72, 88), 0.5)), plain)
        dark = model(x, torch.zeros(2, 1, 72, 88))
    torch.testing.assert_close(dark[0], dark[1])  # nothing of the image passes an all-black explanation
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


@pytest.mark.parametrize("architecture", SMALL)
def test_gradients_reach_input_and_explanation_and_every_layer_runs_once(network, architecture):
    model = network(architecture)
    runs = dict.fromkeys(
        (name for name, module in model.named_modules() if isinstance(module, nn.ReLU | nn.MaxPool2d)), 0
    )
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: runs.update({name: runs[name] + 1}))
        for name in runs
    ]
    x, z = torch.rand(1, 3, 64, 64, requires_grad=True), torch.rand(1, 1, 64, 64, requires_grad=True)
    gradients = torch.autograd.grad(model(x, z)[0, 1], (x, z))
    for hook in hooks:
        hook.remove()
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)
    assert set(runs.values()) <= {1}


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("architecture", SMALL)
def test_last_features_are_a_map_seen_in_both_passes(network, architecture, gated):
    model, seen = network(architecture), []
    hook = last_features(model).register_forward_hook(lambda _, __, output: seen.append(output))
    logits = model(torch.rand(2, 3, 64, 64), torch.ones(2, 1, 64, 64) if gated else None)
    hook.remove()
    assert [features.ndim for features in seen] == [4]
    if architecture in ("resnet18", "compact"):
        torch.testing.assert_close(model.fc(seen[0].mean((2, 3))), logits)
    if architecture == "densenet121":
        torch.testing.assert_close(model.classifier(seen[0].mean((2, 3))), logits)


def test_last_features_of_the_other_models():
    cam, pair = softcam("compact", 2), explainer_classifier("compact", 2)
    assert last_features(cam) is cam.head
    assert last_features(pair) is pair.classifier.layer2[-1]
    with pytest.raises(ValueError, match=r"model: expected a network of lib\.models, got Linear"):
        last_features(nn.Linear(2, 2))


def test_compact_is_small_and_fine():
    model = blackbox("compact", 4, in_channels=1, width=8).eval()
    features = []
    last_features(model).register_forward_hook(lambda _, __, output: features.append(output.shape))
    assert model(torch.rand(2, 1, 64, 96)).shape == (2, 4)
    assert features == [(2, 16, 16, 24)]
    x = torch.rand(1, 1, 96, 96, requires_grad=True)
    cell = softcam("compact", 1, in_channels=1, width=8).eval()
    (gradient,) = torch.autograd.grad(cell(x).evidence[0, 0, 12, 12], x)
    rows = gradient[0, 0].abs().sum(1).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 47  # the receptive field


@pytest.mark.parametrize("architecture, channels", [("resnet18", 2), ("densenet121", 1), ("efficientnet_v2_s", 1)])
def test_another_number_of_channels_is_the_rgb_network_on_repeated_grey(architecture, channels):
    torch.manual_seed(1)
    rgb = blackbox(architecture, 2).eval()
    torch.manual_seed(1)
    other = blackbox(architecture, 2, in_channels=channels).eval()
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(other(x.repeat(1, channels, 1, 1)), rgb(x.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    source, path = models.resnet18(weights=None, num_classes=7), tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    same, other = blackbox("resnet18", 7, weights=path), blackbox("resnet18", 2, weights=str(path))
    grey = blackbox("resnet18", 2, weights=path, in_channels=1)
    assert torch.equal(same.fc.weight, source.fc.weight)
    assert torch.equal(other.layer4[1].bn2.weight, source.layer4[1].bn2.weight)
    assert torch.equal(other.conv1.weight, source.conv1.weight)
    torch.testing.assert_close(grey.conv1.weight, source.conv1.weight.sum(1, keepdim=True))
    with pytest.raises(
        ValueError, match=r"weights=.* for resnet34: does not fit ResNet; \d+ missing: layer1\.2\.conv1"
    ):
        blackbox("resnet34", 2, weights=path)


def test_weights_by_the_older_names_of_densenet(tmp_path):
    source = models.densenet121(weights=None)
    older = {
        name.replace("norm1", "norm.1").replace("conv2", "conv.2") if "denselayer" in name else name: value
        for name, value in source.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(older, tmp_path / "densenet.pth")
    model = softcam("densenet121", 2, weights=tmp_path / "densenet.pth")
    assert torch.equal(
        model.features.denseblock2.denselayer3.conv2.weight, source.features.denseblock2.denselayer3.conv2.weight
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("resnet19", 2), r"architecture: expected one of resnet18, .*compact.*, got 'resnet19'"),
        (("resnet18", 0), "num_classes: expected a positive integer, got 0"),
        (("compact", 2, None, 0), "in_channels: expected a positive integer, got 0"),
        (("compact", 2, None, 3, -1), "width: expected a positive integer, got -1"),
        (("compact", 2, "imagenet"), "no ImageNet weights for 'compact'"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        blackbox(*arguments)


@pytest.mark.parametrize("architecture", ["compact", "resnet50", "efficientnet_v2_s"])
def test_bfloat16_autocast(network, architecture):
    model, x = network(architecture), torch.rand(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert model(x, torch.rand(1, 1, 64, 64)).isfinite().all()
