"""Files that appear whole or not at all: written under another name beside their own, then renamed."""

import json
import math
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
    """A text in UTF-8, lines ending as they do in it."""
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8", newline=""))


def write_json(path: Path, content: Any) -> None:
    """`content` as JSON, in one line where the file is hidden; tensors become lists, what is not finite null."""
    indent = None if path.name.startswith(".") else 1
    write_text(path, json.dumps(plain(content), indent=indent, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Nested dicts and lists of JSON's own types; NaN and infinity become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    write_whole(path, lambda p: save_file(tensors, p))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Pixels uint8 (H, W) or (H, W, 3), or a boolean mask as 0 and 255."""
    pixels = np.where(pixels, 255, 0).astype(np.uint8) if pixels.dtype == bool else pixels
    write_whole(path, lambda p: Image.fromarray(pixels).save(p, format="PNG"))
