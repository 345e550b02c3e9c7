import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import Gated, Net, gradient, run

from lib import models
from lib.explain import explain

IMAGES, TARGETS = torch.linspace(-1, 1, 2 * 3 * 12 * 10).mul(7).sin().view(2, 3, 12, 10), torch.tensor([2, 0])
CAMS = ("gradcam", "smooth_gradcam", "gradcam_pp", "layercam", "scorecam")


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


def rectified(maps):
    maps = torch.stack(maps).relu()[:, None].detach()
    return F.interpolate(maps, IMAGES.shape[2:], mode="bilinear", align_corners=False)[:, 0].float()


WEIGHTS = {  # of the features a (C, h, w), by their gradients g
    "gradcam": lambda a, g: g.mean((1, 2), keepdim=True),
    "gradcam_pp": lambda a, g: (alpha(a, g) * g.relu()).sum((1, 2), keepdim=True),
    "layercam": lambda a, g: g.relu(),
}


def alpha(a, g):
    """Chattopadhay et al. 2018, equation 19 as it stands, 0 where it is 0 / 0."""
    return (g**2 / (2 * g**2 + a.sum((1, 2), keepdim=True) * g**3)).nan_to_num(0)


@pytest.mark.parametrize("method", WEIGHTS)
def test_weighted_maps_are_their_definition_image_by_image(method, model):
    maps = []
    for image, target in zip(IMAGES.double(), TARGETS.tolist(), strict=True):
        a, logits = features(model, image[None])
        g = torch.autograd.grad(logits[0, target], a)[0][0]
        maps.append((WEIGHTS[method](a[0], g) * a[0]).sum(0))
    expected = rectified(maps)
    assert expected.amax((1, 2)).min() > 0
    assert torch.allclose(run(method, model, IMAGES.double(), TARGETS), expected, atol=1e-7)


def test_scorecam_is_its_definition_in_loops_at_one_pass_per_varying_channel(model):
    """With the baseline's score, which the softmax cancels."""
    images, maps, passes = IMAGES.double(), [], []
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
            maps.append(sum(math.exp(rise) / total * a[k] for k, rise in rises.items()))
    assert len(rises) == 4
    expected = rectified(maps)
    assert expected.max() > 0
    model.register_forward_hook(lambda _module, inputs, _output: passes.append(len(inputs[0])))
    assert torch.allclose(run("scorecam", model, images, TARGETS), expected, atol=1e-7)
    assert sum(passes) == 2 + 2 * 4  # and one for the features of each image


def test_scorecam_is_undefined_where_no_channel_varies():
    model = Net()
    torch.nn.init.zeros_(model.conv2.weight)
    assert run("scorecam", model, IMAGES, TARGETS).isnan().all()


@pytest.mark.parametrize("method", ["smooth_gradcam", "smoothgrad"])
def test_noise_has_the_share_of_the_range_that_is_asked_for_and_the_map_is_a_mean_over_the_copies(method, model):
    image, target, copies = IMAGES[:1].double(), TARGETS[:1], []
    handle = model.register_forward_pre_hook(lambda _module, inputs: copies.append(inputs[0].detach().clone()))
    found = run(method, model, image, target, samples=15, noise=0.3)
    handle.remove()
    copies = torch.cat(copies)
    assert (copies - image).std().item() == pytest.approx(0.3 * (image.max() - image.min()).item(), rel=0.05)
    if method == "smooth_gradcam":
        expected = run("gradcam", model, copies, target.expand(15)).mean(0)
    else:
        expected = gradient(lambda x: model(x)[:, target].sum(), copies).mean(0).abs().sum(0).float()
    assert torch.allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize("method", [*CAMS, "saliency", "integrated_gradients", "smoothgrad", "occlusion"])
def test_gradients_masks_and_noise_leave_the_heatmap_of_an_explainer_classifier_as_it_is(method):
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
    assert expected.abs().max() > 0
    assert torch.allclose(run(method, model, IMAGES[:1], TARGETS[:1]), expected, atol=1e-6)


@pytest.mark.parametrize("method", [*CAMS, "lrp"])
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
