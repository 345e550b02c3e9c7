"""The one writer of files: whole or not at all, written under another name beside their own, then renamed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` on a temporary name beside `path`, then renames: a reader sees the old file or the new one."""
    (temporary := path.with_name(f".{path.name}.{uuid4().hex[:8]}")).parent.mkdir(parents=True, exist_ok=True)
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8", newline=""))  # lines end as they do in it


def write_json(path: Path, content: Any) -> None:
    """JSON, in one line where the file is hidden; tensors become lists, what is not finite null."""
    plain = json.loads(json.dumps(content, default=Tensor.tolist), parse_constant=lambda _: None)
    write_text(path, json.dumps(plain, indent=None if path.name[0] == "." else 1) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    write_whole(path, lambda p: save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, p))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Pixels uint8 (H, W) or (H, W, 3), or a boolean mask as 0 and 255."""
    pixels = np.where(pixels, 255, 0).astype(np.uint8) if pixels.dtype == bool else pixels
    write_whole(path, lambda p: Image.fromarray(pixels).save(p, format="PNG"))
