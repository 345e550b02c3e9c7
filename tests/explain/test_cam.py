import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import Gated, Net, run

from lib import models
from lib.explain import explain

IMAGES, TARGETS = torch.linspace(-1, 1, 2 * 3 * 12 * 10).mul(7).sin().view(2, 3, 12, 10), torch.tensor([2, 0])


class Positions(Net):
    """A Net whose logits weigh positions differently, so that gradients vary over the map."""

    def forward(self, x):
        x = self.relu2(self.conv2(self.relu1(self.bn(self.conv1(x)))))
        weights = torch.linspace(-1, 2, x[0, 0].numel(), dtype=x.dtype).view(x.shape[2:])
        return self.fc((x * weights).tanh().mean((2, 3)))


@pytest.fixture
def model():
    return Positions().double().eval()


def features(model, images):
    found = []
    handle = model.relu2.register_forward_hook(lambda *arguments: found.append(arguments[-1]))
    logits = model(images)
    handle.remove()
    return found[0], logits


def rectified(low, images):
    maps = torch.stack([torch.tensor(rows, dtype=torch.float64) for rows in low]).relu()
    return F.interpolate(maps[:, None], images.shape[2:], mode="bilinear", align_corners=False)[:, 0].float()


def loop(weigh, model, images, targets):
    """sum over k of weigh(A_k, g_k, i, j) * A_kij, written out."""
    maps = []
    for image, target in zip(images.double(), targets.tolist(), strict=True):
        a, logits = features(model, image[None])
        g = torch.autograd.grad(logits[0, target], a)[0][0].tolist()
        a = a[0].tolist()
        h, w = len(a[0]), len(a[0][0])
        low = [[sum(weigh(a[k], g[k], i, j) * a[k][i][j] for k in range(len(a))) for j in range(w)] for i in range(h)]
        maps.append(low)
    return rectified(maps, images)


def flat(rows):
    return [value for row in rows for value in row]


def gradcam_weight(a, g, i, j):
    return sum(flat(g)) / len(flat(g))


def gradcam_pp_weight(a, g, i, j):
    """Chattopadhay et al. 2018, equation 19 as it stands."""
    total = 0.0
    for value in flat(g):
        denominator = 2 * value**2 + sum(flat(a)) * value**3
        total += (value**2 / denominator if denominator else 0.0) * max(value, 0.0)
    return total


def layercam_weight(a, g, i, j):
    return max(g[i][j], 0.0)


@pytest.mark.parametrize(
    ("method", "weigh"),
    [("gradcam", gradcam_weight), ("gradcam_pp", gradcam_pp_weight), ("layercam", layercam_weight)],
)
def test_weighted_maps_are_their_definition_in_loops(method, weigh, model):
    expected = loop(weigh, model, IMAGES, TARGETS)
    assert expected.amax((1, 2)).min() > 0
    assert torch.allclose(run(method, model, IMAGES.double(), TARGETS), expected, atol=1e-7)


def test_scorecam_is_its_definition_in_loops(model):
    """With the baseline's score, which the softmax cancels, and one forward pass per channel."""
    images, maps = IMAGES.double(), []
    with torch.no_grad():
        model.conv2.weight[1] = 0  # a constant channel: no mask
        for image, target in zip(images, TARGETS.tolist(), strict=True):
            a = features(model, image[None])[0][0]
            rises = {}
            for k, channel in enumerate(a):
                mask = F.interpolate(channel[None, None], image.shape[1:], mode="bilinear", align_corners=False)[0]
                if channel.max() > channel.min():
                    mask = (mask - mask.min()) / (mask.max() - mask.min())
                    rises[k] = (model((image * mask)[None]) - model(torch.zeros_like(image)[None]))[0, target].item()
            total = sum(math.exp(rise) for rise in rises.values())
            maps.append(sum(math.exp(rise) / total * a[k] for k, rise in rises.items()).tolist())
    assert len(rises) == 4
    expected = rectified(maps, images)
    assert expected.max() > 0
    assert torch.allclose(run("scorecam", model, images, TARGETS), expected, atol=1e-7)


def test_scorecam_is_undefined_where_no_channel_varies():
    model = Net()
    torch.nn.init.zeros_(model.conv2.weight)
    assert run("scorecam", model, IMAGES, TARGETS).isnan().all()


def test_scorecam_costs_one_pass_per_varying_channel_and_one_for_the_features():
    model, seen = Net(), []
    with torch.no_grad():
        model.conv2.weight[:2] = 0
    model.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    a = features(model.eval(), IMAGES)[0]
    varying = int((a.amax((2, 3)) > a.amin((2, 3))).sum())
    seen.clear()
    run("scorecam", model, IMAGES, TARGETS)
    assert sum(seen) == 2 + varying and varying <= 6


def test_smooth_gradcam_is_the_mean_over_its_noisy_copies(model):
    images = IMAGES.double()
    plain = run("gradcam", model, images, TARGETS)
    assert torch.allclose(run("smooth_gradcam", model, images, TARGETS, noise=0, samples=3), plain, atol=1e-7)
    copies = []
    handle = model.register_forward_pre_hook(lambda _module, inputs: copies.append(inputs[0].clone()))
    found = run("smooth_gradcam", model, images[:1], TARGETS[:1], samples=5, noise=0.3)
    handle.remove()
    assert torch.cat(copies).shape == (5, 3, 12, 10)
    expected = run("gradcam", model, torch.cat(copies), TARGETS[:1].expand(5)).mean(0)
    assert torch.allclose(found[0], expected, atol=1e-6) and not torch.allclose(found[0], plain[0], atol=1e-4)
    other = run("smooth_gradcam", model, images, TARGETS, samples=5, noise=0.3)
    assert torch.allclose(other[0], found[0], atol=1e-6)


@pytest.mark.parametrize("method", ["gradcam", "smooth_gradcam", "gradcam_pp", "layercam", "scorecam"])
def test_masked_and_noisy_images_keep_the_heatmap_of_the_image(method):
    """The classifier sees z of the clean image: the map is that of the classifier called with z."""

    class Fixed(torch.nn.Module):
        def __init__(self, net, z):
            super().__init__()
            self.net, self.z = net, z

        def forward(self, x):
            return self.net(x, self.z.expand(len(x), -1, -1, -1))

    model = Gated().eval()
    fixed = Fixed(model.classifier, model.explainer(IMAGES[:1]).detach())
    expected = explain(method, fixed, IMAGES[:1], TARGETS[:1], layer=model.classifier.relu2)
    assert torch.allclose(run(method, model, IMAGES[:1], TARGETS[:1]), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["gradcam", "smooth_gradcam", "gradcam_pp", "layercam", "scorecam", "lrp"])
def test_a_layer_is_needed_where_the_last_features_are_not_known(method):
    with pytest.raises(TypeError, match=f"{method}: expected a model of lib.models or the option `layer`, got Net"):
        explain(method, Net(), IMAGES, TARGETS)


def test_a_layer_must_run_and_give_a_feature_map():
    model = Net()
    for method, layer in (("gradcam", torch.nn.ReLU()), ("lrp", torch.nn.ReLU()), ("gradcam", model.fc)):
        said = rf"layer: expected one that runs and puts out \(N, C, h, w\), got {type(layer).__name__}"
        with pytest.raises(ValueError, match=said):
            explain(method, model, IMAGES, TARGETS, layer=layer)


def test_any_layer_can_be_chosen():
    """A stage as a whole too, which a gated classifier runs block by block."""
    for architecture, name in (("compact", "layer1"), ("densenet121", "features")):
        model = models.blackbox(architecture, 2).eval()
        maps = explain("layercam", model, torch.rand(1, 3, 32, 32), torch.tensor([1]), layer=getattr(model, name))
        assert maps.shape == (1, 32, 32) and maps.max() > 0
