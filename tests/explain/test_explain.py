from contextlib import nullcontext

import pytest
import torch
from tiny_models import Gated, Linear, Net, eventful, run, state, vgg

from lib import models
from lib.explain import METHODS, explain, upsample


def test_the_register_names_every_method_once():
    assert len(METHODS) == len({method.label for method in METHODS.values()}) == 23
    for name, method in METHODS.items():
        assert method.name == name == method.function.__name__
        assert method.family in ("in-model", "gradient", "cam", "propagation", "baseline")


def test_upsample_is_bicubic_with_a_of_minus_three_quarters():
    impulse = torch.zeros(1, 1, 8)
    impulse[0, 0, 4] = 1
    near = [0.87890625, 0.26171875, -0.10546875, -0.03515625]  # the kernel at distances 1/4, 3/4, 5/4, 7/4
    assert upsample(impulse, (1, 16))[0, 0, 5:13].tolist() == pytest.approx(near[::-1] + near)
    assert torch.allclose(upsample(torch.ones(1, 3, 5), (9, 7)), torch.ones(1, 9, 7))


def test_gradcam_of_the_black_box_twin_is_the_rectified_evidence():
    box = models.blackbox("compact", 2, in_channels=1, width=8).eval()
    twin, images, targets = models.to_softcam(box), torch.randn(3, 1, 32, 32), torch.tensor([0, 1, 1])
    output = twin.eval()(images)
    bias = next(p for name, p in box.named_parameters() if name.endswith("fc.bias"))
    maps = output.evidence[torch.arange(3), targets] - bias[targets].view(-1, 1, 1)
    expected = upsample(maps.relu() / maps[0].numel(), (32, 32), mode="bilinear").detach()
    assert expected.max() > 0
    assert torch.allclose(explain("gradcam", box, images, targets), expected, atol=1e-6)
    assert torch.allclose(explain("gradcam", twin, images, targets), expected, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: models.softcam("compact", 3), lambda: vgg("softcam", 3)])
def test_gradcam_of_a_softcam_is_its_rectified_evidence_without_the_bias(make):
    model, images, targets = make().eval(), torch.randn(3, 3, 64, 64), torch.tensor([0, 2, 1])
    maps = model(images).evidence[torch.arange(3), targets] - model.evidence.bias[targets].view(-1, 1, 1)
    expected = upsample(maps.relu() / maps[0].numel(), (64, 64), mode="bilinear").detach()
    assert expected.max() > 0
    found = explain("gradcam", model, images, targets)
    assert torch.allclose(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", [models.softcam, models.explainer_classifier])
def test_the_post_hoc_maps_of_a_self_explaining_model_are_those_of_its_logits(kind):
    """Of a SoftCAM those of its logits alone, of an Explainer-Classifier those of the classifier given its heatmap."""

    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return (
                self.model(x).logits
                if kind is models.softcam
                else self.model.classifier(x, z.expand(len(x), -1, -1, -1))
            )

    model, image, target = kind("compact", 2, width=8).eval(), torch.rand(1, 3, 32, 32), torch.tensor([1])
    z = None if kind is models.softcam else model.explainer(image).detach()
    layer = {"layer": model.last_features}
    for method, more in {"gradcam": layer, "lrp": layer, "integrated_gradients": {}, "guided_backprop": {}}.items():
        expected = explain(method, Logits(model), image, target, **more)
        assert expected.abs().max() > 0
        assert torch.allclose(explain(method, model, image, target, **more), expected, atol=1e-6)


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_is_changed_by_a_method_that_tidies_nothing_up(monkeypatch, fails):
    def untidy(task):
        task.model.train().requires_grad_(True)
        for module in task.model.modules():
            module.register_forward_hook(lambda *_: None)
            module.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
            module.register_full_backward_hook(lambda *_: None)
        torch.rand(3)
        if fails:
            raise RuntimeError("on purpose")
        return task.images.sum(1)

    monkeypatch.setitem(METHODS, "untidy", METHODS["saliency"]._replace(name="untidy", function=untidy))
    model, images = eventful(models.blackbox), torch.rand(3, 1, 16, 16)
    before = state(model)
    with pytest.raises(RuntimeError, match="on purpose") if fails else nullcontext():
        explain("untidy", model, images, torch.tensor([0, 1, 1]))
    assert state(model) == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_found_where_they_are_off(context):
    model, images, targets = eventful(models.blackbox), torch.rand(3, 1, 16, 16), torch.tensor([0, 1, 1])
    expected = explain("guided_backprop", model, images, targets)
    with context():
        assert torch.equal(explain("guided_backprop", model, images + 0, targets), expected)
        assert not torch.is_grad_enabled()


X, T = torch.zeros(2, 3, 12, 10), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("method", "model", "images", "targets", "more", "error", "message"),
    [
        ("lime", Net(), X, T, {}, ValueError, "method: expected one of evidence, explainer, .*, got 'lime'"),
        ("guided_backprop", Linear(), X, T, {}, TypeError, "guided_backprop: .* nn.ReLU modules, got Linear"),
        ("saliency", Net(), X[0], T, {}, ValueError, r"images: .* \(N, C, H, W\), got torch.float32 of \(3, 12, 10\)"),
        ("saliency", Net(), X / 0, T, {}, ValueError, "images: expected finite floats"),
        ("saliency", Net(), X, T[:1], {}, ValueError, r"targets: expected class indices of shape \(2,\)"),
        ("saliency", Net(), X, T - 1, {}, ValueError, r"targets: expected class indices of shape \(2,\)"),
        ("saliency", Net(), X, T, {"step": 3}, TypeError, r"saliency\(\) got an unexpected keyword argument 'step'"),
    ],
)
def test_wrong_arguments_are_said(method, model, images, targets, more, error, message):
    with pytest.raises(error, match=message):
        explain(method, model, images, targets, **more)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.family != "baseline"])
def test_a_target_that_is_no_class_and_a_model_without_finite_logits_are_refused(method, value):
    makes = {"evidence": lambda: Net(evidence=True), "tte_cam": lambda: models.blackbox("compact", 3, width=4)}
    model = makes.get(method, Gated)()
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"targets: expected values in 0\.\.2, got 3"):
        run(method, model, images, torch.tensor([0, 3]))
    last = next(p for p in reversed(list(model.parameters())) if p.ndim == 2)  # of the last linear layer
    with torch.no_grad():
        last[1] = value
    with pytest.raises(ValueError, match="model: expected finite logits, got NaN or infinity"):
        run(method, model, images, torch.tensor([0, 1]))
