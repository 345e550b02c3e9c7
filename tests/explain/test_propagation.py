import pytest
import torch
import torch.nn.functional as F
from tiny_models import Net, run, vgg
from torch import nn

from lib import models
from lib.explain import explain

IMAGES, TARGETS = torch.linspace(-1, 1, 2 * 3 * 12 * 10).mul(7).sin().view(2, 3, 12, 10), torch.tensor([2, 0])


def unbiased(model, noise=True):
    """No bias outside batch normalisations; those far from their start, so that merging them matters."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d) and noise and module.num_features > 1:  # not the Explainer's
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.05)
            nn.init.normal_(module.bias, 0, 0.05)
    return model.eval()


KINDS = [models.blackbox, models.softcam, models.explainer_classifier]


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        *((kind, name) for kind in KINDS for name in ("compact", "resnet18", "densenet121")),
        (models.blackbox, "resnext50_32x4d"),
        (models.explainer_classifier, "wide_resnet50_2"),
        *((vgg, kind) for kind in ("blackbox", "softcam", "explainer_classifier")),
    ],
)
def test_relevance_is_conserved_in_every_family(kind, architecture):
    model = unbiased(kind(architecture, 2), noise=architecture in ("compact", "resnet18", "densenet121"))
    images, targets = torch.rand(1, 3, 32, 32) - 0.3, torch.tensor([1])
    maps, output = explain("lrp", model, images, targets), model(images)
    logit = getattr(output, "logits", output)[0, 1].item()
    assert maps.sum().item() == pytest.approx(logit, rel=0.02) and maps.abs().max() > 0


def test_the_rule_written_out():
    """conv - bn - relu - conv - relu - mean - fc: every share of the rule as a matrix, in float64."""
    model = Net().double().eval()
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.5, 2)
    images = IMAGES.double()[:, :, :5, :4]
    scale = (model.bn.weight / (model.bn.running_var + model.bn.eps).sqrt()).detach()
    w1 = model.conv1.weight.detach() * scale[:, None, None, None]
    b1 = (model.conv1.bias.detach() - model.bn.running_mean) * scale + model.bn.bias.detach()
    w2, b2, v = model.conv2.weight.detach(), model.conv2.bias.detach(), model.fc.weight.detach()

    def back(x, w, relevance, stride):
        """R_i = sum_j (x_i w_ij)^+ / sum_i (x_i w_ij)^+ R_j for a 3x3 convolution with padding 1."""
        pixels = torch.eye(x.numel()).double().view(-1, *x.shape)
        weights = F.conv2d(pixels, w, stride=stride, padding=1).flatten(1)  # (i, j)
        parts = (x.flatten()[:, None] * weights).clamp(min=0)
        total = parts.sum(0)
        return (parts / total.where(total > 0, 1) @ relevance.flatten()).view(x.shape)

    expected = []
    for image, target in zip(images, TARGETS.tolist(), strict=True):
        a = F.conv2d(image, w1, b1, padding=1).relu()
        f = F.conv2d(a, w2, b2, stride=2, padding=1).relu()
        at_f = f * v[target][:, None, None] / f[0].numel()
        expected.append(back(image, w1, back(a, w2, at_f, 2), 1).sum(0))
    found = run("lrp", model, images, TARGETS)
    assert found.abs().max() > 0
    assert torch.allclose(found.double(), torch.stack(expected), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["compact", "densenet121"])
def test_a_black_box_and_its_twin_have_the_same_relevance(architecture):
    box = models.blackbox(architecture, 2, **({"width": 8} if architecture == "compact" else {})).eval()
    images, targets = torch.rand(1, 3, 32, 32), torch.tensor([1])
    expected, found = (explain("lrp", model, images, targets) for model in (box, models.to_softcam(box)))
    assert torch.allclose(found, expected, atol=1e-6 + 1e-4 * expected.abs().max().item())


def test_a_gate_scales_the_logit_and_the_relevance_alike():
    model, z = unbiased(models.explainer_classifier("compact", 2, width=8), noise=False), [1.0]
    images, targets = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    model.explainer.register_forward_hook(lambda _module, inputs, _output: torch.full_like(inputs[0][:, :1], z[0]))
    plain = explain("lrp", model.classifier, images, targets)
    assert torch.allclose(explain("lrp", model, images, targets), plain, atol=1e-6)
    z[0] = 0.5  # of five gates, each halves the logit of a network without biases
    assert torch.allclose(explain("lrp", model, images, targets), plain / 2**5, atol=1e-7)


def test_all_shares_have_the_sign_of_what_they_share():
    """alpha1-beta0 never changes a sign: from features that all speak for the target, only positive relevance."""
    model = models.blackbox("compact", 2, width=8).eval()
    with torch.no_grad():
        model.fc.weight.abs_()
    maps = explain("lrp", model, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert maps.min() >= 0 and maps.max() > 0


def test_a_black_image_is_finite():
    maps = explain("lrp", models.blackbox("compact", 2, width=8), torch.zeros(1, 3, 32, 32), torch.tensor([0]))
    assert torch.equal(maps, torch.zeros(1, 32, 32))
