"""How an untrained Explainer behaves: white in phase 1, and with a signal from its deepest level."""

import pytest
import torch

from lib.models import Explainer


@pytest.mark.parametrize("seed", range(4))
def test_the_untrained_heatmap_is_even_in_evaluation_mode(seed):
    torch.manual_seed(seed)
    x = torch.randn(4, 3, 64, 64) * 2
    with torch.no_grad():
        z = Explainer(init_bias=3.0).eval()(x)
        assert z.min() > 0.97
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
