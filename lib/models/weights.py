"""Weight files: reading them without running code, loading them strictly, ImageNet weights from torchvision."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

# best values that a training loop has saved as NumPy scalars, by the names of NumPy 2 and of NumPy 1
NUMPY_SCALARS = [
    *(np._core.multiarray.scalar, (np._core.multiarray.scalar, "numpy.core.multiarray.scalar")),
    *(np.dtype, type(np.dtype("float32")), type(np.dtype("float64")), type(np.dtype("int64"))),
]
PICKLED = """holds pickled objects ({}), not plain tensors, and runs code when opened. To convert it, in a sandbox (a \
container without network and without your files, the code that wrote it on the path): model = torch.load(path, \
weights_only=False), then torch.save(model.state_dict(), new_path) saves its state_dict() alone; give that file"""
STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")  # a ResNet's children, in order
LEVELS = ("encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1", "decoder.2")
REFERENCE = {  # a start of a name that tells the reference's network -> how its names start -> how ours do
    "conv_1x1.": {f"conv_mod{i}.conv{k}.": f"{level}.{2 * k}." for i, level in enumerate(LEVELS) for k in (0, 1)}
    | {"tr_conv": "upsample.", "conv_1x1.": "project."},
    "last_dense.": {f"conv_mod{i}.conv{k}.": f"stages.{i}.{2 * k}." for i in range(4) for k in (0, 1)}
    | {"dense0.": "dense.0.", "dense1.": "dense.3.", "last_dense.": "dense.6."},
    "sb1.": {f"sb{i}.block": f"layer{i}." for i in range(1, 5)},
    "backbone.0.weight": {f"backbone.{i}.": f"features.{stage}." for i, stage in enumerate(STAGES)}
    | {"classifier.": "evidence."},
    "backbone.0.": {"backbone.0.": "features.", "backbone.1.": "head.", "classifier.": "evidence."},
}


def read_checkpoint(path: str | Path) -> dict:
    """The dictionary in a `.safetensors` or a PyTorch file, on the CPU, without running pickled code. Raises
    FileNotFoundError; ValueError for a damaged file, another format, or anything but plain data and tensors."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails wherever its bytes lead the reader
        why = f"damaged, cut short, or neither a PyTorch nor a safetensors file ({path.stat().st_size} bytes)"
        pickled = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(f"{path}: {PICKLED.format(pickled[1]) if pickled else why}") from None
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(checkpoint).__name__}")
    return dict(checkpoint)


def intact(path: Path) -> bool:
    """Whether a file of tensors is there and can be read; one that cannot is said in a line, and counts as none."""
    try:
        return path.is_file() and read_checkpoint(path) is not None
    except ValueError as error:
        print(f"{error}; it counts as none")
        return False


def todays(model: nn.Module, state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """`state` by our names and torchvision's of today; counts of batches, which its older files lack, start at 0."""
    starts = next((REFERENCE[sign] for sign in REFERENCE if any(name.startswith(sign) for name in state)), {})
    named = {name: torch.tensor(0) for name in model.state_dict() if name.endswith("num_batches_tracked")}
    for name, value in state.items():
        start = next((start for start in starts if name.startswith(start)), "")
        name = starts.get(start, "") + name.removeprefix(start)
        named[re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)] = value
    return OrderedDict(named)


def load_reference_state(module: nn.Module, state_dict: Mapping[str, Tensor], source: str = "state_dict") -> nn.Module:
    """`module` with every tensor copied from `state_dict`, by the names of the reference code, ours or torchvision's.
    Raises ValueError that lists all that is missing, unexpected or of another shape, and leaves `module` as it was."""
    before, state = deepcopy(module.state_dict()), todays(module, state_dict)
    state._metadata = before._metadata  # shapes too are today's: MNASNet rebuilds itself for an older version
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        module.load_state_dict(before)
        problems = "; ".join(line.strip() for line in str(error).split("\n\t")[1:])
        raise ValueError(f"{source}: does not fit {type(module).__name__}: {problems}") from None
    return module


def stem_and_head(model: nn.Module) -> tuple[str, str]:
    """The names of the first convolution and of the last linear layer."""
    stem = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return stem, [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def grey_kernel(kernel: Tensor, in_channels: int) -> Tensor:
    """(O, 3, h, w) -> (O, in_channels, h, w), equal over the input channels and of the same sum."""
    return (kernel.sum(1, keepdim=True) / in_channels).repeat(1, in_channels, 1, 1)


def read_weights(architecture: str, weights: str | Path) -> dict[str, Tensor]:
    """The state dict that `weights` of `blackbox` names; torchvision's own are downloaded to torch's cache."""
    offered = models.get_model_weights(architecture).__members__ if architecture in models.list_models() else {}
    entry = offered.get("DEFAULT" if weights == "imagenet" else str(weights))
    if entry:
        weights = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
        try:
            if not weights.is_file():
                torch.hub.load_state_dict_from_url(entry.url, check_hash=True, progress=False, weights_only=True)
        except Exception as error:  # of the network, of the disk, of a file with another hash
            said = f"weights: {entry} are not cached, and {entry.url} cannot be downloaded ({error})"
            raise RuntimeError(f"{said}; put that file at {weights}, or give its path as weights") from None
    elif not Path(weights).is_file():
        names = f"imagenet, one of {', '.join(offered)} or the path of a file" if offered else "the path of a file"
        raise FileNotFoundError(f"weights: expected {names} for {architecture!r}, but there is no file at {weights}")
    return read_checkpoint(weights)


def load_weights(model: nn.Module, architecture: str, weights: str | Path) -> None:
    """`weights` of `blackbox` into `model`, whatever its number of classes and input channels."""
    state, own = read_weights(architecture, weights), model.state_dict()
    stem, head = (f"{name}.weight" for name in stem_and_head(model))
    if state.get(stem, own[stem]).shape[1] == 3 != own[stem].shape[1]:
        state[stem] = grey_kernel(state[stem], own[stem].shape[1])
    if state.get(head, own[head]).shape[0] != own[head].shape[0]:
        state |= {name: own[name] for name in (head, head.replace("weight", "bias"))}
    load_reference_state(model, state, f"weights={str(weights)!r} for {architecture}")
