"""Pixels of image and mask files: which of a mask's values are region, and what identifies them."""

import hashlib
import math
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

MaskValues = Literal["nonzero", "half"]


def read_image(path: str | Path) -> np.ndarray:
    """Decoded pixels, uint8 (H, W) or (H, W, 3); palettes and alpha become RGB; ValueError for other depths."""
    with Image.open(path) as image:
        if image.mode not in ("1", "L", "P", "LA", "RGB", "RGBA"):
            raise ValueError(f"{path}: expected an 8-bit grey or colour image, got mode {image.mode!r}")
        return np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))


def read_mask(path: str | Path, values: MaskValues | None = None) -> np.ndarray:
    """Boolean (H, W): True in the region of a mask file, in any channel; of a palette the index counts, not its colour.
    values: `nonzero` (any but 0) or `half` (above 127: soft edges and the noise of JPEG are not region); None: half for
    JPEG files. ValueError as in `mask_region`, and where a palette has its black at another index than 0."""
    with Image.open(path) as image:
        values = values or ("half" if image.format in ("JPEG", "MPO") else "nonzero")
        if image.mode != "P":
            return mask_region(read_image(path), values, path)
        pixels, colours = np.array(image), np.reshape(image.getpalette(), (-1, 3))
    black = np.isin(np.arange(len(colours)), pixels) & ~colours.any(1)
    if colours[0].any() and black.any():
        said = f"the background, at index 0 of a mask's palette, got index {black.argmax()}"
        raise ValueError(f"{path}: expected black, {said}; save the mask as grey, 0 for the background")
    return mask_region(pixels, values, path)


def mask_region(pixels: np.ndarray, values: MaskValues, path: str | Path) -> np.ndarray:
    """Boolean (H, W) of a mask's pixels uint8 (H, W[, 3]); ValueError where none is region though some are not 0."""
    region = pixels > (127 if values == "half" else 0)
    if pixels.any() and not region.any():
        expected = "expected values above 127 in a mask, as mask_values 'half' counts them ('nonzero': any but 0)"
        raise ValueError(f"{path}: {expected}, the highest is {pixels.max()}")
    return region.any(2) if region.ndim == 3 else region


def resized_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boolean `size` (height, width): True on every pixel that a pixel of the region falls into: none is too small."""
    return np.array(Image.fromarray(mask.astype(np.float32)).resize(size[::-1], Image.Resampling.BOX)) > 0


def box_mask(boxes: list[list[float]], height: int, width: int) -> np.ndarray:
    """Boolean (height, width): True on every pixel that a box [x, y, width, height] touches."""
    mask = np.zeros((height, width), dtype=bool)
    for x, y, w, h in boxes:
        mask[math.floor(y) : math.ceil(y + h), math.floor(x) : math.ceil(x + w)] = True
    return mask


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 of the pixels' shape, type and bytes, however a file compresses them; a boolean mask counts as uint8."""
    pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    return hashlib.sha256(f"{pixels.shape}{pixels.dtype.str}".encode() + pixels.tobytes()).hexdigest()
