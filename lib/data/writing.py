"""Files that appear whole or not at all: written under another name, then renamed."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """A name in the file's folder (made where it is missing) that becomes the file's own unless writing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, lines ending as they do in it."""
    with _part(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, content: object) -> None:
    """Write JSON; in one line where the file is hidden."""
    write_text(path, json.dumps(content, indent=None if path.name.startswith(".") else 2) + "\n")


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels uint8 (H, W) or (H, W, 3), or a boolean mask as 0 and 255."""
    pixels = np.where(pixels, 255, 0).astype(np.uint8) if pixels.dtype == bool else pixels
    with _part(path) as part:
        Image.fromarray(pixels).save(part, format="PNG")
