"""Weight files: reading them safely, loading them strictly."""

import pickle
import re
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models


def read_checkpoint(path: str | Path) -> dict:
    """The dictionary in a `.safetensors` or a PyTorch file, on the CPU, without running pickled code.

    Raises FileNotFoundError, and ValueError for a file that holds anything but plain data and tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path}: damaged, or not plain tensors. A pickled model runs code when opened: in a sandbox, load it with "
            "torch.load(path, weights_only=False), torch.save its state_dict() alone, and give that file"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(checkpoint).__name__}")
    return dict(checkpoint)


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str = "state_dict") -> nn.Module:
    """`module` with every tensor of its state dict copied from `state`.

    Raises ValueError, leaving `module` as it was, if a name is missing or unexpected or a shape differs.
    """
    own = module.state_dict()
    shapes = {name: tuple(value.shape) if isinstance(value, Tensor) else type(value) for name, value in state.items()}
    wrong = [
        f"{name} (expected {tuple(own[name].shape)}, got {shapes[name]})"
        for name in own
        if name in shapes and shapes[name] != tuple(own[name].shape)
    ]
    problems = {
        "missing": [name for name in own if name not in shapes],
        "unexpected": [str(name) for name in shapes if name not in own],
        "wrong shape": wrong,
    }
    if any(problems.values()):
        listed = (
            f"{len(names)} {kind}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            for kind, names in problems.items()
            if names
        )
        raise ValueError(f"{source}: does not fit {type(module).__name__}; {'; '.join(listed)}")
    module.load_state_dict(state)
    return module


def stem_and_head(model: nn.Module) -> tuple[str, str]:
    """The names of the first convolution and of the last linear layer."""
    stem = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return stem, [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def grey_kernel(kernel: Tensor, in_channels: int) -> Tensor:
    """(O, 3, h, w) -> (O, in_channels, h, w), equal over the input channels and of the same sum."""
    return (kernel.sum(1, keepdim=True) / in_channels).repeat(1, in_channels, 1, 1)


def imagenet_weights(architecture: str) -> dict[str, Tensor]:
    """torchvision's default ImageNet weights. RuntimeError where they are neither cached nor to be downloaded."""
    entry = models.get_model_weights(architecture).DEFAULT
    target = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    try:
        return entry.get_state_dict(progress=False, check_hash=True, map_location="cpu")
    except (OSError, HTTPException) as error:
        raise RuntimeError(
            f"weights='imagenet': {entry.url} cannot be downloaded ({error}); "
            f"put that file at {target}, or give its path as weights"
        ) from error


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """`state`, by torchvision's names, into `model`, whatever its number of classes and input channels."""
    own, (stem, head) = model.state_dict(), stem_and_head(model)
    # torchvision's DenseNet files predate its names: denselayer1.norm.1 is norm1; older files count no batches
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): value for name, value in state.items()
    }
    state |= {name: own[name] for name in own if name.endswith("num_batches_tracked") and name not in state}
    kernel, matrix = state.get(f"{stem}.weight"), state.get(f"{head}.weight")
    if isinstance(kernel, Tensor) and kernel.shape[1] == 3 != own[f"{stem}.weight"].shape[1]:
        state[f"{stem}.weight"] = grey_kernel(kernel, own[f"{stem}.weight"].shape[1])
    if isinstance(matrix, Tensor) and len(matrix) != len(own[f"{head}.weight"]):
        state |= {f"{head}.weight": own[f"{head}.weight"], f"{head}.bias": own[f"{head}.bias"]}
    load_strict(model, state, source)
