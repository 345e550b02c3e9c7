"""A second device that every machine has: tensors which say that they are elsewhere, and hold their values on the CPU.

Inside `PretendedDevice()` tensors can be made on `ELSEWHERE` or moved to it and back, and their values be read and
gradients be taken; where one meets a CPU tensor, or a random generator of the CPU, it raises as on a GPU. (torch's own
FakeTensorMode has no values: each metric would end at its first check; and no gradients on "cuda" without a GPU.)
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

ELSEWHERE = torch.device("lazy", 0)  # a type of torch's that nothing else here uses; autograd runs it on the CPU
ACROSS = {"copy_", "_to_copy"}  # take tensors of two devices
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # take indices from the CPU


class Elsewhere(Tensor):
    """`held` on the CPU, with `ELSEWHERE` as its device."""

    is_cuda = True  # so that code takes the branch for a GPU
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> "Elsewhere":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, device=ELSEWHERE, requires_grad=requires_grad, **layout)
        made.held = held
        return made

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        Tensor.data.__set__(self, other)
        self.held = other.held

    def tolist(self) -> list:
        return self.held.tolist()

    def numpy(self) -> None:
        raise TypeError("can't convert a tensor of another device to numpy: use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class PretendedDevice(TorchDispatchMode):
    def __enter__(self):
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=ELSEWHERE) comes by here
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self.before)
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def run(function, args: tuple, kwargs: dict):
    """`function` on what the tensors hold; RuntimeError where the two devices meet."""
    name, device = function._schema.name.removeprefix("aten::"), kwargs.get("device")
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    if name in INDEXING:
        tensors = [args[0], *args[2:3]]
    if there and name not in ACROSS and any(tensor.ndim and not isinstance(tensor, Elsewhere) for tensor in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got some of both")
    if device is not None:
        to_there, kwargs = torch.device(device).type == ELSEWHERE.type, {**kwargs, "device": torch.device("cpu")}
    else:
        to_there = isinstance(args[0], Elsewhere) if name in ACROSS else bool(there)
    if to_there and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a generator of the device that {name} makes a tensor on, got one of the CPU")
    found = function(*tree_map(held, args), **tree_map(held, kwargs))
    known = {id(tensor.held): tensor for tensor in there}  # in-place functions return what they were given

    def returned(value):
        if not to_there or not isinstance(value, Tensor):
            return value
        given = known.get(id(value))
        if given is not None and given.shape != value.shape:  # squeeze_ and the like
            given.data = Elsewhere(value)
        return Elsewhere(value) if given is None else given

    return tree_map(returned, found)


def held(value):
    return value.held if isinstance(value, Elsewhere) else value
