import pytest
import torch
from torch import nn

from lib.models import Explainer, explainer_classifier


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("architecture", ["compact", "resnet18", "vgg-gated", "densenet121"])
def test_the_classifier_sees_the_image_through_the_heatmap(architecture, in_channels):
    model = explainer_classifier(architecture, 3, in_channels=in_channels, channels=(4, 8, 16)).eval()
    x = torch.rand(2, in_channels, 72, 96)
    logits, z = model(x)
    assert logits.shape == (2, 3) and z.shape == (2, 1, 72, 96)
    assert z.min() >= 0 and z.max() <= 1
    torch.testing.assert_close(model.classifier(x, z), logits)
    assert model.last_features is model.classifier.last_features


@pytest.mark.parametrize("seed", range(4))
def test_the_untrained_heatmap_is_even_in_evaluation_mode(seed):
    torch.manual_seed(seed)
    x = torch.randn(4, 3, 64, 64) * 2
    with torch.no_grad():
        z = Explainer(init_bias=3.0).eval()(x)
        assert z.min() > 0.97  # nearly white: phase 1 trains the classifier alone
        gray = Explainer(init_bias=1.0).eval()(x)
    assert abs(gray.mean() - torch.tanh(torch.tensor(1.0))) < 0.1
    assert gray.std() < 0.1


@pytest.mark.parametrize("seed", range(4))
def test_the_deepest_level_has_a_say_from_the_start(seed):
    torch.manual_seed(seed)
    explainer = Explainer(channels=(16, 32, 64)).train()
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        z = explainer(x)
        explainer.upsample[0].weight.zero_()
        changed = (explainer(x) - z).abs().mean()
    assert changed > 0.01 * z.mean()


def test_it_may_start_as_torch_would():
    bound = 1 / (3 * 9) ** 0.5  # of torch's uniform weights, by the fan-in
    weight = Explainer(init="torch").encoder[0][0].weight
    assert 0.8 * bound < weight.abs().max() <= bound
    assert Explainer(init="torch").project.weight.std() > 10 * Explainer().project.weight.std()
    made = explainer_classifier("compact", 2, init_bias=1.5, init="torch", channels=(4, 8, 16)).explainer
    assert (made.bn.bias.item(), made.project.in_channels) == (1.5, 4)


def test_explainer_by_hand():
    """All convolutions zero but the last bias, 0.5: z = relu(tanh(0.5 + init_bias)) everywhere in eval mode."""
    explainer = Explainer(1, (2, 2), init_bias=0.25).eval()
    for module in explainer.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.constant_(explainer.project.bias, 0.5)
    expected = torch.tanh(torch.tensor(0.5 / (1 + 1e-5) ** 0.5 + 0.25))
    torch.testing.assert_close(explainer(torch.rand(1, 1, 4, 8)), expected.expand(1, 1, 4, 8))


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 3, 64, 4), (3, 64, 64)])
def test_sides_are_checked(shape):
    with pytest.raises(ValueError, match=r"x: expected \(N, C, H, W\), sides multiples of 8, got \("):
        Explainer()(torch.rand(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["compact", "resnet18", "efficientnet_v2_s"])
def test_gradients_of_the_logits_reach_every_parameter_in_bfloat16_too(architecture, dtype):
    model, x = explainer_classifier(architecture, 2, channels=(4, 8, 16)), torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        logits = model(x).logits
    logits.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.explainer.encoder[0][0].weight.grad.abs().sum() > 0
