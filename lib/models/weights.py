"""Weight files: reading them safely, loading them strictly, ImageNet weights from torchvision."""

import hashlib
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
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


def read_checkpoint(path: str | Path) -> dict:
    """The dictionary in a `.safetensors` or a PyTorch file, on the CPU, without running pickled code.

    Raises FileNotFoundError, and ValueError for a damaged file, a file of another format, or one that holds anything
    but plain data and tensors, as a model that was pickled whole.
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
        with path.open("rb") as file:
            start = file.read(2)
        if isinstance(error, pickle.UnpicklingError) and start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise ValueError(
                f"{path}: holds pickled objects{f' ({named[1]})' if named else ''}, not plain tensors, and runs code "
                "when opened. To convert it, in a sandbox (a container without network and without your files, the "
                "code that wrote it on the path): model = torch.load(path, weights_only=False), then "
                "torch.save(model.state_dict(), new_path) saves its state_dict() alone; give that file"
            ) from None
        raise ValueError(
            f"{path}: damaged, cut short, or neither a PyTorch nor a safetensors file ({path.stat().st_size} bytes)"
        ) from None
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(checkpoint).__name__}")
    return dict(checkpoint)


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str = "state_dict",
    spelling: Mapping[str, str] | None = None,
) -> nn.Module:
    """`module` with every tensor of its state dict copied from `state`.

    spelling: names of `state` -> names in the file, for the message. Raises ValueError, leaving `module` as it was, if
    a name is missing or unexpected or a shape differs; the message lists them all, with found and expected shapes.
    """
    own, spelling = module.state_dict(), spelling or {}
    expected = {name: tuple(value.shape) for name, value in own.items()}
    found = {
        name: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for name, value in state.items()
    }
    theirs = {name: f", in the file {spelling[name]}" for name in found if spelling.get(name, name) != name}
    problems = {
        "missing": [f"{name} (expected {expected[name]})" for name in expected if name not in found],
        "unexpected": [f"{spelling.get(name, name)} (found {found[name]})" for name in found if name not in expected],
        "wrong shape": [
            f"{name} (expected {shape}, got {found[name]}{theirs.get(name, '')})"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
    }
    if any(problems.values()):
        listed = (f"{len(names)} {kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"{source}: does not fit {type(module).__name__}; {'; '.join(listed)}")
    current = OrderedDict(state)
    current._metadata = own._metadata  # names and shapes are today's: MNASNet would rebuild itself for an older version
    module.load_state_dict(current)
    return module


def stem_and_head(model: nn.Module) -> tuple[str, str]:
    """The names of the first convolution and of the last linear layer."""
    stem = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return stem, [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def grey_kernel(kernel: Tensor, in_channels: int) -> Tensor:
    """(O, 3, h, w) -> (O, in_channels, h, w), equal over the input channels and of the same sum."""
    return (kernel.sum(1, keepdim=True) / in_channels).repeat(1, in_channels, 1, 1)


def read_weights(architecture: str, weights: str | Path) -> dict[str, Tensor]:
    """The state dict that `weights` names, by torchvision's tensor names.

    weights: "imagenet" (torchvision's default ones), a name of torchvision's (`IMAGENET1K_V2`,
        `ResNet50_Weights.IMAGENET1K_V2`), or the path of a file.
    Raises FileNotFoundError for a path without a file, and what `imagenet_weights` and `read_checkpoint` raise.
    """
    entries = models.get_model_weights(architecture) if architecture in models.list_models(module=models) else None
    names = {} if entries is None else {key: key for key in entries.__members__}
    names |= {f"{entries.__name__}.{key}": key for key in names} | ({"imagenet": "DEFAULT"} if names else {})
    if str(weights) in names:
        return imagenet_weights(architecture, names[str(weights)])
    if not Path(weights).is_file():
        offered = f"one of {', '.join(names)} or " if names else ""
        raise FileNotFoundError(f"weights: expected {offered}the path of a file, but there is no file at {weights}")
    return read_checkpoint(weights)


def imagenet_weights(architecture: str, name: str = "DEFAULT") -> dict[str, Tensor]:
    """torchvision's ImageNet weights `name`, from its cache or downloaded to it, compared with the hash in their name.

    Raises RuntimeError where they are neither cached nor to be downloaded, ValueError where the hash differs.
    """
    entry = models.get_model_weights(architecture)[name]
    target = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    expected = re.search(r"-([0-9a-f]{8,})\.", target.name)
    if not target.is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry.url, str(target), expected and expected[1], progress=False)
        except (OSError, HTTPException, RuntimeError) as error:
            raise RuntimeError(
                f"weights: {entry} are not cached, and {entry.url} cannot be downloaded ({error}); "
                f"put that file at {target}, or give its path as weights"
            ) from None
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if expected and not digest.startswith(expected[1]):
        raise ValueError(
            f"weights: {target} is damaged: its SHA-256 starts with {digest[: len(expected[1])]}, expected "
            f"{expected[1]}; delete it to have {entry} downloaded again"
        )
    return read_checkpoint(target)


def modern_names(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` by the names of today: torchvision's DenseNet files predate them, and older files count no batches."""
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", str(name)): value for name, value in state.items()
    }
    counts = {name: torch.tensor(0) for name in model.state_dict() if name.endswith("num_batches_tracked")}
    return counts | state


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """`state`, by torchvision's names, into `model`, whatever its number of classes and input channels."""
    own, (stem, head) = model.state_dict(), stem_and_head(model)
    state = modern_names(model, state)
    kernel, matrix = state.get(f"{stem}.weight"), state.get(f"{head}.weight")
    if isinstance(kernel, Tensor) and kernel.shape[1] == 3 != own[f"{stem}.weight"].shape[1]:
        state[f"{stem}.weight"] = grey_kernel(kernel, own[f"{stem}.weight"].shape[1])
    if isinstance(matrix, Tensor) and len(matrix) != len(own[f"{head}.weight"]):
        state |= {f"{head}.weight": own[f"{head}.weight"], f"{head}.bias": own[f"{head}.bias"]}
    load_strict(model, state, source)


def intact(path: Path) -> bool:
    """Whether a file of tensors is there and can be read; one that cannot is said in a line, and counts as none."""
    try:
        return path.is_file() and read_checkpoint(path) is not None
    except ValueError as error:
        print(f"{error}; it counts as none")
        return False
