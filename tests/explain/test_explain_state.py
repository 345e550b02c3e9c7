"""`explain` leaves the model, the images and the random state as they were."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from lib.explain import METHODS, explain
from lib.models import blackbox, explainer_classifier, softcam

TARGETS = torch.tensor([0, 1, 1])


def make(kind):
    """A small model in a state that nothing restores by luck: a layer in eval mode, one frozen, a gradient, a hook."""
    torch.manual_seed(0)
    model = kind("compact", 2, in_channels=1, width=4).train()
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    layers[0].weight.requires_grad_(False)
    layers[1].weight.grad = torch.ones_like(layers[1].weight)
    layers[2].register_forward_hook(lambda *_: None)
    return model


def state(model):
    hooks = [{k: dict(v) for k, v in vars(m).items() if "_hooks" in k} for m in model.modules()]
    grads = [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()]
    return {
        "modes": [m.training for m in model.modules()],
        "full": [m._is_full_backward_hook for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": grads,
        "hooks": hooks,
        "values": {k: v.numpy().tobytes() for k, v in model.state_dict().items()},
        "random": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("kind", [blackbox, softcam, explainer_classifier])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_changed(method, kind):
    model, images = make(kind), torch.rand(3, 1, 16, 16, requires_grad=True)
    before, pixels = state(model), images.detach().clone()
    needed = {"evidence": softcam, "evidence_difference": softcam, "tte_cam": blackbox}
    needed = (needed | {"explainer": explainer_classifier}).get(method, kind)
    with nullcontext() if needed is kind else pytest.raises(TypeError, match=method):
        explain(method, model, images, TARGETS, batch_size=2)
    assert state(model) == before
    assert images.grad is None and torch.equal(images, pixels) and images.requires_grad


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
    model, images = make(blackbox), torch.rand(3, 1, 16, 16)
    before = state(model)
    with pytest.raises(RuntimeError, match="on purpose") if fails else nullcontext():
        explain("untidy", model, images, TARGETS)
    assert state(model) == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context):
    model, images = make(blackbox), torch.rand(3, 1, 16, 16)
    expected = explain("guided_backprop", model, images, TARGETS)
    with context():
        assert torch.equal(explain("guided_backprop", model, images + 0, TARGETS), expected)
        assert not torch.is_grad_enabled()
