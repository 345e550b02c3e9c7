import pytest
import torch
from tiny_models import Gated, Linear, Net, gradient, run

from lib import models
from lib.explain import METHODS, explain, upsample


def test_register():
    assert len(METHODS) == len({method.label for method in METHODS.values()}) == 21
    for name, method in METHODS.items():
        assert method.name == name == method.function.__name__ and isinstance(method.signed, bool)
        assert method.family in ("in-model", "gradient", "cam", "propagation", "baseline")


def test_evidence_is_the_upsampled_map_of_the_target():
    model, images, targets = Net(evidence=True).eval(), torch.randn(3, 3, 12, 10), torch.tensor([2, 0, 1])
    maps = model(images).evidence[torch.arange(3), targets].detach()
    assert torch.allclose(explain("evidence", model, images, targets), upsample(maps, (12, 10)))
    assert (maps < 0).any()


def test_explainer_is_its_heatmap_in_evaluation_mode():
    model, images = Gated(), torch.randn(3, 3, 12, 10)
    maps = explain("explainer", model, images, torch.zeros(3, dtype=torch.long))
    assert torch.equal(maps, model.eval()(images).explanation[:, 0])


def test_upsample_is_bicubic_with_a_of_minus_three_quarters():
    impulse = torch.zeros(1, 1, 8)
    impulse[0, 0, 4] = 1
    near = [0.87890625, 0.26171875, -0.10546875, -0.03515625]  # the kernel at distances 1/4, 3/4, 5/4, 7/4
    assert upsample(impulse, (1, 16))[0, 0, 5:13].tolist() == pytest.approx(near[::-1] + near)
    assert torch.allclose(upsample(torch.ones(1, 3, 5), (9, 7)), torch.ones(1, 9, 7))


def test_linear_model_by_hand():
    model, x, targets = Linear(), torch.randn(3, 3, 4, 4), torch.tensor([1, 0, 1])
    w = model.weight[targets].detach()
    assert torch.allclose(explain("saliency", model, x, targets), w.abs().sum(1), atol=1e-6)
    assert torch.allclose(explain("input_x_gradient", model, x, targets), (w * x).sum(1), atol=1e-6)
    assert torch.allclose(explain("integrated_gradients", model, x, targets), (w * x).sum(1), atol=1e-5)
    base = torch.randn(1, 3, 4, 4)
    maps = explain("integrated_gradients", model, x, targets, baseline=base, steps=3)
    assert torch.allclose(maps, (w * (x - base)).sum(1), atol=1e-5)


def test_integrated_gradients_are_complete_and_agree_with_a_plain_sum():
    model, x, targets = Net().double().eval(), torch.randn(2, 3, 12, 10).double(), torch.tensor([2, 0])
    maps = explain("integrated_gradients", model, x, targets, steps=400, baseline=0.1)
    start = torch.full_like(x, 0.1)
    change = (model(x) - model(start)).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(maps.double().sum((1, 2)), change, atol=1e-3)
    points = (torch.arange(2000) + 0.5) / 2000
    path = (start[:1] + points[:, None, None, None] * (x[:1] - start[:1])).double()
    mean = gradient(lambda p: model(p)[:, 2].sum(), path).mean(0)
    assert torch.allclose(maps[0].double(), (mean * (x[0] - start[0])).sum(0), atol=1e-3)


def test_gated_classifier_is_explained_at_its_fixed_heatmap():
    model, x, targets = Gated().eval(), torch.randn(2, 3, 12, 10), torch.tensor([1, 0])
    z = model.explainer(x).detach()
    fixed = gradient(lambda image: model.classifier(image, z).gather(1, targets[:, None]).sum(), x)
    through = gradient(lambda image: model(image).logits.gather(1, targets[:, None]).sum(), x)
    assert torch.allclose(explain("saliency", model, x, targets), fixed.abs().sum(1), atol=1e-6)
    assert not torch.allclose(fixed, through, atol=1e-4)


def test_random_depends_on_seed_and_image_alone():
    model, images, targets = Net(), torch.randn(4, 3, 12, 10), torch.zeros(4, dtype=torch.long)
    maps = explain("random", model, images, targets)
    assert torch.equal(explain("random", model, images[2:3], targets[:1])[0], maps[2])
    assert not torch.equal(explain("random", model, images, targets, seed=1), maps)
    assert len({tuple(row) for row in maps.flatten(1).tolist()}) == 4
    assert maps.min() >= 0 and maps.max() < 1 and maps.mean().item() == pytest.approx(0.5, abs=0.05)


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


X, T = torch.zeros(2, 3, 12, 10), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("method", "model", "images", "targets", "more", "error", "message"),
    [
        ("lime", Net(), X, T, {}, ValueError, "method: expected one of evidence, explainer, .*, got 'lime'"),
        ("evidence", Net(), X, T, {}, TypeError, "evidence: expected a model with class evidence maps, got Net"),
        ("explainer", Net(), X, T, {}, TypeError, "explainer: expected a model with an Explainer, got Net"),
        ("guided_backprop", Linear(), X, T, {}, TypeError, "guided_backprop: .* nn.ReLU modules, got Linear"),
        ("saliency", Net(), X[0], T, {}, ValueError, r"images: .* \(N, C, H, W\), got torch.float32 of \(3, 12, 10\)"),
        ("saliency", Net(), X / 0, T, {}, ValueError, "images: expected finite floats"),
        ("saliency", Net(), X, T[:1], {}, ValueError, r"targets: expected class indices of shape \(2,\)"),
        ("saliency", Net(), X, T - 1, {}, ValueError, r"targets: expected class indices of shape \(2,\)"),
        ("saliency", Net(), X, T + 2, {}, ValueError, r"targets: expected values in 0\.\.2, got 3"),
        *(
            (method, model, X, T + 2, {}, ValueError, r"targets: expected values in 0\.\.2, got 3")
            for method, model in (("evidence", Net(evidence=True)), ("tte_cam", models.blackbox("compact", 3, width=4)))
        ),
        ("saliency", Net(), X, T, {"step": 3}, TypeError, r"saliency\(\) got an unexpected keyword argument 'step'"),
    ],
)
def test_errors(method, model, images, targets, more, error, message):
    with pytest.raises(error, match=message):
        explain(method, model, images, targets, **more)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.family != "baseline"])
def test_a_model_without_finite_logits_is_refused(method, value):
    makes = {"evidence": lambda: Net(evidence=True), "tte_cam": lambda: models.blackbox("compact", 3, width=4)}
    model = (makes | {"evidence_difference": makes["evidence"]}).get(method, Gated)()
    broken = next(p for p in reversed(list(model.parameters())) if p.ndim == 2)  # the last linear layer
    with torch.no_grad():
        broken[1] = value
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="model: expected finite logits, got NaN or infinity"):
        run(method, model, images, torch.tensor([0, 1]))
