"""Weight files: reading them safely, loading them strictly, ImageNet weights from torchvision."""

import hashlib
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from http.client import HTTPException
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
PICKLED = """holds pickled objects{}, not plain tensors, and runs code when opened. To convert it, in a sandbox (a \
container without network and without your files, the code that wrote it on the path): model = torch.load(path, \
weights_only=False), then torch.save(model.state_dict(), new_path) saves its state_dict() alone; give that file"""


def read_checkpoint(path: str | Path) -> dict:
    """The dictionary in a `.safetensors` or a PyTorch file, on the CPU, without running pickled code.

    Raises FileNotFoundError; ValueError for a damaged file, another format, or anything but plain data and tensors.
    """
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
        with path.open("rb") as file:
            if isinstance(error, pickle.UnpicklingError) and re.match(b"PK|\x80[\x02-\x04]", file.read(2)):
                named = re.search(r"GLOBAL ([\w.]+)", str(error))
                why = PICKLED.format(f" ({named[1]})" if named else "")
        raise ValueError(f"{path}: {why}") from None
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


def load_strict(
    module: nn.Module, state: Mapping[str, Tensor], source: str, spelling: Mapping[str, str] | None = None
) -> nn.Module:
    """`module` with every tensor of its state dict copied from `state`; spelling: names of `state` -> in the file.

    Raises ValueError that lists what is missing, unexpected or of another shape, and leaves `module` as it was.
    """
    theirs = {ours: f" (in the file {name})" for ours, name in (spelling or {}).items() if name != ours}
    before, current = deepcopy(module.state_dict()), OrderedDict(state)
    current._metadata = before._metadata  # names and shapes are today's: MNASNet rebuilds itself for an older version
    try:
        module.load_state_dict(current)
    except RuntimeError as error:
        module.load_state_dict(before)
        problems = "; ".join(line.strip() for line in str(error).split("\n\t")[1:])
        problems = re.sub(r"[\w.]*\w", lambda name: name[0] + theirs.get(name[0], ""), problems)
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
    """The state dict that `weights` of `blackbox` names, by torchvision's tensor names."""
    known = architecture in models.list_models(module=models)
    entries = models.get_model_weights(architecture).__members__ if known else {}
    names = {name: entry for key, entry in entries.items() for name in (key, str(entry))}
    names |= {"imagenet": entries["DEFAULT"]} if known else {}
    if str(weights) in names:
        return read_checkpoint(cached(names[str(weights)]))
    if not Path(weights).is_file():
        offered = f"one of {', '.join(names)} or the path of a file" if known else "the path of a file"
        raise FileNotFoundError(f"weights: expected {offered} for {architecture!r}, but there is no file at {weights}")
    return read_checkpoint(weights)


def cached(entry: models.WeightsEnum) -> Path:
    """The file of torchvision's weights in torch's cache, downloaded to it, compared with the hash in its name."""
    file = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    prefix = re.search(r"-([0-9a-f]{8,})\.", file.name)[1]
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry.url, str(file), prefix, progress=False)
        except (OSError, HTTPException, RuntimeError) as error:
            raise RuntimeError(
                f"weights: {entry} are not cached, and {entry.url} cannot be downloaded ({error}); "
                f"put that file at {file}, or give its path as weights"
            ) from None
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[: len(prefix)]
    if digest != prefix:
        raise ValueError(
            f"weights: {file} is damaged: its SHA-256 starts with {digest}, expected {prefix}; "
            f"delete it to have {entry} downloaded again"
        )
    return file


def modern_names(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` by the names of today: torchvision's DenseNet files predate them, and older files count no batches."""
    numbered = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
    counts = {name: torch.tensor(0) for name in model.state_dict() if name.endswith("num_batches_tracked")}
    return counts | {numbered.sub(r"\1\2.", str(name)): value for name, value in state.items()}


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """`state`, by torchvision's names, into `model`, whatever its number of classes and input channels."""
    own, (stem, head) = model.state_dict(), (f"{name}.weight" for name in stem_and_head(model))
    state = modern_names(model, state)
    kernel, matrix = (getattr(state.get(name), "shape", own[name].shape) for name in (stem, head))
    if kernel[1:2] == (3,) != own[stem].shape[1:2]:
        state[stem] = grey_kernel(state[stem], own[stem].shape[1])
    if matrix[:1] != own[head].shape[:1]:
        state |= {name: own[name] for name in (head, head.replace("weight", "bias"))}
    load_strict(model, state, source)
