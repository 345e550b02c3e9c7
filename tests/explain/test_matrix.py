"""Every method on every kind of model and every family of architectures, or the reason why not."""

import pytest
import torch
from tiny_models import eventful, state, vgg
from torchvision.models import vgg11_bn

from lib import models
from lib.explain import METHODS, explain

KINDS = {kind.__name__: kind for kind in (models.blackbox, models.softcam, models.explainer_classifier)}
ONLY_ON = {
    "evidence": ("softcam", "class evidence maps"),
    "tte_cam": ("blackbox", "global average pooling"),
    "explainer": ("explainer_classifier", "an Explainer"),
}
RELU = ("deconvolution", "guided_backprop", "guided_gradcam", "lrp")  # methods that need nn.ReLU
SENSITIVE = (*RELU, "gradcam", "gradcam_pp", "layercam", "tte_cam", "evidence", "explainer", "integrated_gradients")


def refusal(method, kind, architecture):
    if kind != ONLY_ON.get(method, (kind, ""))[0]:
        return ONLY_ON[method][1]
    if architecture == "efficientnet_v2_s" and method in RELU:
        return "(activations: SiLU, Sigmoid)"
    if architecture == "vgg-gated" and method == "lrp":
        return "whose activations are all nn.ReLU, got PaperVGG (activations: ReLU, Sigmoid)"
    return "VGG" if method == "tte_cam" and "vgg" in architecture else None


def check(method, model, kind, architecture, images, targets):
    """The maps; None where the method says why it cannot explain the model."""
    if reason := refusal(method, kind, architecture):
        with pytest.raises(TypeError, match=rf"(?s)^{method}: expected a model .*, got .*") as caught:
            explain(method, model, images, targets)
        assert reason in str(caught.value)
        return None
    cheap = {"steps": 2} if method == "integrated_gradients" and architecture != "compact" else {}
    maps = explain(method, model, images, targets, **cheap)
    assert maps.shape == (len(images), *images.shape[2:]) and maps.dtype == torch.float32 and not maps.requires_grad
    assert maps.isfinite().all() and (METHODS[method].signed or maps.min() >= 0)
    if "cam" not in method:  # a rectified map of a random network may be empty
        assert (maps != 0).any()
    return maps


@pytest.fixture(scope="module")
def compact():
    torch.manual_seed(0)
    made = {name: eventful(kind) for name, kind in KINDS.items()}
    made["explainer_classifier"].explainer.bn.bias.data.fill_(0.5)  # z is neither 0 nor 1
    return made, torch.rand(5, 1, 32, 32, requires_grad=True), torch.tensor([2, 0, 1, 1, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_map_depends_on_its_image_and_target_alone_and_nothing_is_changed(compact, method, kind):
    model, images, targets = compact[0][kind], *compact[1:]
    before, pixels = state(model), images.detach().clone()
    maps = check(method, model, kind, "compact", images, targets)
    if maps is not None:
        assert METHODS[method].signed == bool((maps < 0).any())
        scale = maps.abs().max() if method != "occlusion" else 1  # a small difference of large logits
        flipped = explain(method, model, images.flip(0), targets.flip(0), batch_size=2).flip(0)
        alone = explain(method, model, images[3:4], targets[3:4])
        for found, expected in ((flipped, maps), (alone, maps[3:4])):
            assert torch.allclose(found / scale, expected / scale, atol=1e-5)
        assert explain(method, model, images[:0], targets[:0]).shape == (0, 32, 32)
    assert state(model) == before
    assert images.grad is None and torch.equal(images, pixels) and images.requires_grad


BIG = [
    *((name, kind) for name in ("resnet18", "densenet121", "efficientnet_v2_s", "vgg11", "vgg11_bn") for kind in KINDS),
    *(("resnext50_32x4d", "blackbox"), ("wide_resnet50_2", "softcam")),
    *(("vgg-gated", "blackbox"), ("vgg-gated", "explainer_classifier")),
]


@pytest.mark.parametrize(("architecture", "kind"), BIG)
def test_sensitive_methods_on_every_family(architecture, kind):
    if architecture.startswith("vgg11"):
        model = vgg(kind, **({"make": vgg11_bn} if architecture == "vgg11_bn" else {}))
    else:
        model = KINDS[kind](architecture, 2)
    for method in SENSITIVE:
        check(method, model, kind, architecture, torch.rand(1, 3, 64, 64), torch.tensor([1]))
