"""The one writer of files: whole or not at all, written under another name beside their own, then renamed."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` on a temporary name beside `path`, then renames: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(temporary))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8", newline=""))  # lines end as they do in it


def plain(value: Any) -> Any:
    """JSON's own types: tensors and tuples become lists, what is not finite None."""
    return json.loads(json.dumps(value, default=Tensor.tolist), parse_constant=lambda _: None)


def write_json(path: Path, content: Any) -> None:
    """`plain` content as JSON, in one line where the file is hidden."""
    write_text(path, json.dumps(plain(content), indent=None if path.name.startswith(".") else 1) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    write_whole(path, lambda p: save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, p))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Pixels uint8 (H, W) or (H, W, 3), or a boolean mask as 0 and 255."""
    pixels = np.where(pixels, 255, 0).astype(np.uint8) if pixels.dtype == bool else pixels
    write_whole(path, lambda p: Image.fromarray(pixels).save(p, format="PNG"))
