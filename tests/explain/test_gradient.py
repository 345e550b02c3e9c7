import pytest
import torch
from captum import attr
from tiny_models import Gated, Linear, Net, gradient, run

from lib.explain import explain
from lib.explain.task import Task

IMAGES, TARGETS = torch.linspace(-1, 1, 2 * 3 * 12 * 10).mul(9).sin().view(2, 3, 12, 10), torch.tensor([2, 0])


def test_smoothgrad_without_noise_is_the_absolute_gradient():
    model = Net()
    expected = explain("saliency", model, IMAGES, TARGETS)
    assert torch.allclose(explain("smoothgrad", model, IMAGES, TARGETS, noise=0, samples=3), expected, atol=1e-7)


def test_smoothgrad_of_a_linear_model_is_its_weights_whatever_the_noise():
    model, images = Linear(), torch.randn(2, 3, 4, 4)
    expected = model.weight[torch.tensor([1, 0])].detach().abs().sum(1)
    assert torch.allclose(explain("smoothgrad", model, images, torch.tensor([1, 0])), expected, atol=1e-5)


class Square(torch.nn.Module):
    """Logits (sum of x^2, 0): the gradient is 2 x, so its mean over noisy copies shows the mean noise."""

    def forward(self, x):
        return torch.stack([(x**2).sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1)


def test_smoothgrads_noise_has_the_share_of_the_range_that_is_asked_for():
    images = torch.zeros(1, 1, 40, 40)
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 3.0, -1.0
    found = explain("smoothgrad", Square(), images, torch.tensor([0]), noise=0.2, samples=1)[0]
    noise = found[1:] / 2  # |N(0, 0.2 * 4)|
    assert noise.square().mean().sqrt().item() == pytest.approx(0.8, rel=0.06)
    many = explain("smoothgrad", Square(), images, torch.tensor([0]), noise=0.2, samples=64)[0]
    assert (many[1:] / 2).square().mean().sqrt().item() == pytest.approx(0.8 / 8, rel=0.06)


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


def test_occlusion_of_a_linear_model_by_hand():
    """The drop of a window, here a pixel, is the sum of w * x in it."""
    model, x = Linear().double(), torch.randn(1, 3, 4, 4).double()
    expected = (model.weight[1].detach() * x[0]).sum(0)
    assert torch.allclose(explain("occlusion", model, x, torch.tensor([1]))[0], expected.float(), atol=1e-6)


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
