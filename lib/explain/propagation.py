"""Layer-wise relevance propagation by zennit, on a copy of the model in canonical form."""

import copy

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.densenet import _Transition
from zennit.canonizers import NamedMergeBatchNorm
from zennit.composites import LayerMapComposite, layer_map_base
from zennit.core import BasicHook
from zennit.layer import Sum
from zennit.rules import ZPlus
from zennit.torchvision import ResNetCanonizer
from zennit.types import Convolution

from lib.explain.cam import features_and_gradients
from lib.explain.task import Task


def lrp(task: Task) -> Tensor:
    """The rule alpha1-beta0 (Bach et al. 2015, equation 60) in all convolutions, summed over channels: R_i = sum_j
    (x_i w_ij)^+ / sum_i (x_i w_ij)^+ R_j; of ReLU networks, for which it is derived, the z^+ of Montavon et al. 2017.

    Above the task's layer LRP-0, there feature times gradient (Ancona et al. 2018, proposition 1). Branches of a block
    share by their positive parts, average pooling by value; activations and diagonal layers (a batch normalisation
    after no convolution, the gate z) hand on unchanged. Biases take none."""
    features, gradients = features_and_gradients(task, task.images)
    twins: dict[int, nn.Module] = {}
    twin = copy.deepcopy(task.logits, twins)  # zennit replaces parameters, and the next batch needs the model's own
    found: list[Tensor] = []
    with composite(twin).context(twin):
        twins[id(task.layer)].register_forward_hook(lambda _module, _inputs, output: found.append(output))
        with Gates():
            twin(task.images, *task.fixed)
        relevance = torch.autograd.grad(found[-1], task.images, features * gradients)[0]
    return relevance.sum(1)


class Gates(TorchFunctionMode):
    """A product hands relevance on to its first factor unchanged: a constant gate is a diagonal layer."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is Tensor.mul and args[0].requires_grad:
            return args[0] + (result - args[0]).detach()
        return result


def composite(model: nn.Module) -> LayerMapComposite:
    """The rules for `model`, and what brings it into canonical form. Swaps convolution and average pooling in the
    transitions of a DenseNet, in place: the same function, but pooling then shares ReLU's output, which is >= 0."""
    canonizer = ResNetCanonizer()  # merges each batch normalisation into the convolution registered before it
    if transitions := [module for module in model.modules() if isinstance(module, _Transition)]:
        for module in transitions:
            module.add_module("conv", module._modules.pop("conv"))
        convolution = {"norm0": "conv0", "norm2": "conv1"}  # norm1 follows a concatenation
        names = [name for name, _ in model.named_modules() if name[-5:] in convolution]
        canonizer = NamedMergeBatchNorm([([name[:-5] + convolution[name[-5:]]], name) for name in names])
    rules = [
        (Sum, BasicHook([lambda x: x.clamp(min=0)], gradient_mapper=lambda r, sums: (r / above_zero(sums[0]),))),
        *layer_map_base(above_zero),
        (Convolution, ZPlus(above_zero, zero_params=["bias"])),
    ]
    return LayerMapComposite(rules, [canonizer])


def above_zero(sums: Tensor) -> Tensor:
    """Sums (n, ...) of positive parts as divisors: raised by 1e-6 of their root mean square in each image."""
    return sums + 1e-6 * sums.square().mean(tuple(range(1, sums.ndim)), keepdim=True).sqrt() + 1e-30
