import pytest
import torch
from captum import attr
from tiny_models import Gated, Linear, Net, gradient, run

from lib.explain import explain
from lib.explain.task import Task

IMAGES, TARGETS = torch.linspace(-1, 1, 2 * 3 * 12 * 10).mul(9).sin().view(2, 3, 12, 10), torch.tensor([2, 0])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("saliency", lambda w, x: w.abs()),
        ("smoothgrad", lambda w, x: w.abs()),  # whatever the noise
        ("input_x_gradient", lambda w, x: w * x),
        ("integrated_gradients", lambda w, x: w * x),
        ("occlusion", lambda w, x: w * x),  # a window is a pixel here
    ],
)
def test_a_linear_model_by_hand(method, expected):
    model, x, targets = Linear(), torch.randn(3, 3, 4, 4), torch.tensor([1, 0, 1])
    w = model.weight[targets].detach()
    assert torch.allclose(explain(method, model, x, targets), expected(w, x).sum(1), atol=1e-5)


def test_integrated_gradients_are_complete_and_agree_with_a_plain_sum():
    model, x, start = Net().double().eval(), IMAGES.double(), torch.rand(1, 3, 12, 10).double()
    maps = explain("integrated_gradients", model, x, TARGETS, steps=400, baseline=start).double()
    change = (model(x) - model(start)).gather(1, TARGETS[:, None])[:, 0]
    assert torch.allclose(maps.sum((1, 2)), change, atol=1e-3)
    points = (torch.arange(2000).double()[:, None, None, None] + 0.5) / 2000
    mean = gradient(lambda path: model(path)[:, 2].sum(), start + points * (x[:1] - start)).mean(0)
    assert torch.allclose(maps[0], (mean * (x - start)[0]).sum(0), atol=1e-3)


@pytest.mark.parametrize("method", ["deconvolution", "guided_backprop"])
def test_rectified_gradients_are_equal_to_a_chain_by_hand(method):
    model = Net().eval()
    a = model.bn(model.conv1(IMAGES))
    b = model.conv2(a.relu())
    at_b = (model.fc.weight[TARGETS] / b[0, 0].numel())[:, :, None, None].expand_as(b).relu()
    at_b = at_b * (b > 0) if method == "guided_backprop" else at_b
    at_a = torch.nn.grad.conv2d_input(a.shape, model.conv2.weight, at_b, stride=2, padding=1).relu()
    at_a = at_a * (a > 0) if method == "guided_backprop" else at_a
    at_a = at_a * (model.bn.weight / (model.bn.running_var + model.bn.eps).sqrt())[:, None, None]
    expected = torch.nn.grad.conv2d_input(IMAGES.shape, model.conv1.weight, at_a, padding=1).sum(1)
    assert torch.allclose(explain(method, model, IMAGES, TARGETS), expected.detach(), atol=1e-6)
    plain = gradient(lambda images: model(images).gather(1, TARGETS[:, None]).sum(), IMAGES).sum(1)
    assert not torch.allclose(expected, plain, atol=1e-4)


@pytest.mark.parametrize("make", [Net, Gated])
def test_guided_gradcam_is_the_product_of_its_parts(make):
    model, images, targets = make(), IMAGES.repeat(3, 1, 1, 1), torch.tensor([0, 0, 1, 1, 2, 2])
    expected = run("guided_backprop", model, images, targets) * run("gradcam", model, images, targets)
    assert expected.abs().sum() > 0
    assert torch.allclose(run("guided_gradcam", model, images, targets), expected, atol=1e-7)


@pytest.mark.parametrize("shape", [(16, 24), (19, 33), (12, 7)])
def test_occlusion_is_captums(shape):
    model, images, window = Net().eval(), torch.randn(2, 3, *shape), (3, *(max(1, side // 8) for side in shape))
    peer = attr.Occlusion(model).attribute(images, window, window, target=TARGETS, perturbations_per_eval=16)
    assert torch.allclose(explain("occlusion", model, images, TARGETS), peer[:, 0].float(), atol=1e-6)


@pytest.mark.parametrize("method", ["integrated_gradients", "smoothgrad", "occlusion", "smooth_gradcam", "scorecam"])
@pytest.mark.parametrize("make", [Net, Gated])
def test_no_more_variants_at_once_than_a_cache_holds(monkeypatch, method, make):
    model, images, targets = make(), torch.randn(9, 3, 12, 10), torch.arange(9) % 3
    expected, sizes = run(method, model, images, targets), []
    inner = getattr(model, "classifier", model)
    inner.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    for limit in (16, 7):
        monkeypatch.setattr(Task, "at_once", limit)
        assert torch.allclose(run(method, model, images, targets), expected, atol=1e-5)
        assert max(sizes) == (limit if "smooth" in method else 9 if "int" in method else max(limit, 9))
        sizes.clear()
