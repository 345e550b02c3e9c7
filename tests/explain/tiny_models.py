"""Models small enough to explain by hand."""

from functools import partial
from types import SimpleNamespace

import torch
from torch import nn
from torchvision.models import vgg11

from lib.explain import explain
from lib.models import Explainer, ExplainerClassifier, SoftCAM
from lib.models.backbones import out_of_place


class Net(nn.Module):
    """conv - bn - relu - conv - relu - dropout - mean - fc; `evidence`: also a map of each class."""

    def __init__(self, channels=3, evidence=False):
        super().__init__()
        self.conv1, self.bn, self.relu1 = nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.conv2, self.relu2, self.dropout = nn.Conv2d(6, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Dropout(0.5)
        self.fc, self.evidence = nn.Linear(5, 3), evidence

    def forward(self, x, z=None):
        x = self.relu1(self.bn(self.conv1(x)))
        x = self.dropout(self.relu2(self.conv2(x if z is None else x * z)))
        if self.evidence:
            maps = torch.einsum("nchw,kc->nkhw", x, self.fc.weight)
            return SimpleNamespace(logits=maps.mean((2, 3)), evidence=maps)
        return self.fc(x.mean((2, 3)))


class Gated(nn.Module):
    """Explains itself by z, which gates its classifier."""

    def __init__(self):
        super().__init__()
        self.explainer = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.BatchNorm2d(1), nn.ReLU(), nn.Dropout(0.5))
        self.classifier = Net()

    def forward(self, x):
        z = self.explainer(x)
        return SimpleNamespace(logits=self.classifier(x, z), explanation=z)


class Linear(nn.Module):
    """Logit k = sum of w_k * x + b_k."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(2, 3, 4, 4)), nn.Parameter(torch.randn(2))

    def forward(self, x):
        return torch.einsum("nchw,kchw->nk", x, self.weight) + self.bias


def vgg(kind="blackbox", classes=2, make=vgg11):
    """VGG-11 (or `make`) whose fully connected layers have 32 units instead of 4096."""
    with torch.device("meta"):
        model = out_of_place(make())
    model.features.to_empty(device="cpu")
    for module in model.features:
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    layer, width = (partial(nn.Conv2d, kernel_size=1), 512) if kind == "softcam" else (nn.Linear, 512 * 49)
    hidden = [layer(width, 32), nn.ReLU(), nn.Dropout(), layer(32, 32), nn.ReLU(), nn.Dropout()]
    if kind == "softcam":
        return SoftCAM(model.features, nn.Sequential(*hidden), layer(32, classes))
    model.classifier = nn.Sequential(*hidden, layer(32, classes))
    return model if kind == "blackbox" else ExplainerClassifier(Explainer(channels=(4, 4, 4)), model)


def run(method, model, images, targets, **more):
    """`explain`, with the layer of CAM methods and LRP where the model is a Net."""
    inner = getattr(model, "classifier", model)
    more = {"layer": inner.relu2} | more if isinstance(inner, Net) else more
    return explain(method, model, images, targets, **more)


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


def eventful(kind):
    """A small model in a state that nothing restores by luck: a layer in eval mode, one frozen, a gradient, a hook."""
    model = kind("compact", 3, in_channels=1, width=8).train()
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    layers[0].weight.requires_grad_(False)
    layers[1].weight.grad = torch.ones_like(layers[1].weight)
    layers[2].register_forward_hook(lambda *_: None)
    return model


def state(model):
    """All that `explain` could change: of the model, and the random state."""
    return {
        "modes": [(m.training, m._is_full_backward_hook) for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()],
        "hooks": [{k: dict(v) for k, v in vars(m).items() if "_hooks" in k} for m in model.modules()],
        "values": {k: v.numpy().tobytes() for k, v in model.state_dict().items()},
        "random": torch.get_rng_state().tolist(),
    }
