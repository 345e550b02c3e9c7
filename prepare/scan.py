"""Reading every image once, in parallel: what the manifest's image and mask are, or what is wrong with the files."""

import json
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pydicom
from PIL import Image
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from lib.data.manifest import leaves_root
from lib.data.pixels import MaskValues, mask_region, pixel_hash, read_image, read_mask, resized_mask
from lib.data.verification import once
from lib.writing import write_png

MEMORY = ".manifest_cache.json"
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
Image.init()  # all formats, so that they can be asked for by name


@dataclass
class Preparation:
    """How files become the manifest's images: cropped to the fundus circle, resized to `size`; radius of points;
    mask_values: as in `read_mask`; where it is given, masks are written anew, as 0 and 255."""

    size: PositiveInt | None = None
    crop: bool = False
    mask_values: MaskValues | None = None
    radius: Annotated[int | float, Field(gt=0)] = 8.0

    @property
    def folder(self) -> str:
        return f"prepared/{'crop_' if self.crop else ''}{self.size or 'full'}"

    def key(self, row: Any) -> str:
        """What the result of a row depends on, besides the files themselves."""
        return json.dumps([self.folder, self.mask_values, self.radius, row.image, row.masks, row.points])


def scan(root: Path, rows: pd.DataFrame, how: Preparation, workers: int | None) -> list[dict | list[str]]:
    """`inspect` of every row, in threads (decoding and hashing release the interpreter's lock), or what is wrong."""

    def result(key: str) -> dict | list[str]:
        try:
            return inspect(root, by_key[key], how)
        except ValueError as error:
            return [str(error)]

    by_key = {how.key(row): row for row in rows.itertuples()}
    jobs = {key: [root / path for path in (row.image, *row.masks)] for key, row in by_key.items()}
    found = once(root / MEMORY, jobs, result, workers, True)
    return [found[how.key(row)] for row in rows.itertuples()]


def inspect(root: Path, row: Any, how: Preparation) -> dict:
    """Decode a row's image and masks, and write what must be prepared: the manifest's cells, and the file's own size.
    ValueError says what is wrong with the files."""
    if outside := [path for path in (row.image, *row.masks) if not path or leaves_root(path)]:
        raise ValueError(f"{outside[0]}: leaves the data set's root")
    pixels = decode(root / row.image)
    height, width = pixels.shape[:2]
    region, (y, x) = np.zeros((height, width), dtype=bool), np.ogrid[:height, :width]
    for path in row.masks:
        try:
            mask = decode(root / path, True, how.mask_values)
        except ValueError as error:
            raise ValueError(f"mask {path}: {error}") from None
        if mask.shape != region.shape:
            raise ValueError(f"mask {path}: size {mask.shape[1]} x {mask.shape[0]}, the image has {width} x {height}")
        region |= mask
    for px, py in row.points:
        if not (0 <= px < width and 0 <= py < height):
            raise ValueError(f"point {[px, py]} outside the image of {width} x {height} pixels")
        region |= (x + 0.5 - px) ** 2 + (y + 0.5 - py) ** 2 <= how.radius**2
    if how.crop:
        window = fundus_window(pixels)
        pixels, region = (np.array(Image.fromarray(part).crop(window)) for part in (pixels, region))
    if how.size:  # the aspect ratio is not kept
        pixels = np.array(Image.fromarray(pixels).resize((how.size, how.size), Image.Resampling.BILINEAR))
        region = resized_mask(region, (how.size, how.size))
    image, mask = row.image, row.masks[0] if row.masks else ""
    if how.crop or how.size or is_dicom(image):
        image = f"{how.folder}/{image}{'' if image.endswith('.png') else '.png'}"
        write_png(root / image, pixels)
    if image != row.image or len(row.masks) != 1 or is_dicom(mask) or row.points or how.mask_values:
        made_of = zlib.crc32(how.key(row).encode())  # other lesions or points: another file
        if mask := f"{how.folder}/masks/{row.image}.{made_of:08x}.png" if region.any() else "":
            write_png(root / mask, region)
    return {
        "image": image, "mask": mask, "width": pixels.shape[1], "height": pixels.shape[0], "sha256": pixel_hash(pixels),
        "mask_sha256": pixel_hash(region) if mask else "", "source": [width, height],
    }  # fmt: skip


def is_dicom(path: str) -> bool:
    return path.lower().endswith((".dcm", ".dicom"))


def decode(path: Path, mask: bool = False, values: MaskValues | None = None) -> np.ndarray:
    """Pixels uint8 (H, W) or (H, W, 3) of an image or DICOM file; of a mask its region, boolean (H, W), as `read_mask`.
    ValueError, without the path, where it is missing, damaged or no single 8-bit image."""
    if not path.is_file():
        raise ValueError("missing")
    try:
        if is_dicom(path.name):
            return mask_region(dicom_pixels(path), values or "nonzero", path) if mask else dicom_pixels(path)
        with Image.open(path, formats=FORMATS) as image:
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise ValueError(f"expected one picture, got {image.n_frames}")
        return read_mask(path, values) if mask else read_image(path)
    except Exception as error:  # the decoders raise OSError, SyntaxError, AttributeError, zlib.error ...
        raise ValueError(f"cannot be read: {str(error).removeprefix(f'{path}: ')}") from None


def dicom_pixels(path: Path) -> np.ndarray:
    """Grey values uint8 (H, W) of a DICOM file of 8 to 16 bits: modality LUT, then VOI LUT or window, dark to bright.
    The range that the file's bits or LUT can express becomes 0 to 255; MONOCHROME1 is inverted. DICOM PS3.3, C.11."""
    data = pydicom.dcmread(path)
    kind = data.PhotometricInterpretation
    if kind not in ("MONOCHROME1", "MONOCHROME2") or int(data.get("NumberOfFrames") or 1) > 1:
        raise ValueError(f"expected one grey picture, got {kind}")
    if data.Columns * data.Rows > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"decompression bomb: {data.Columns} x {data.Rows} pixels")
    values = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data).astype(np.float64)
    slope, intercept = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
    count = 2 ** int(data.BitsStored)
    least = -count // 2 if data.PixelRepresentation else 0
    low, high = sorted(end * slope + intercept for end in (least, least + count - 1))
    if table := data.get("VOILUTSequence") or data.get("ModalityLUTSequence"):
        low, high = 0, 2 ** int(table[0].LUTDescriptor[2]) - 1
    pixels = np.clip(np.rint((values - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
    return 255 - pixels if kind == "MONOCHROME1" else pixels


def fundus_window(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the square around the bright disc of a fundus photograph, uint8 (H, W[, 3]).

    Least-squares circle (Kasa 1976) through the outermost bright pixel of each row and column that is not at the
    image's border, fitted again without points further away than 2 % of the radius (notches, reflections).
    """
    grey = pixels if pixels.ndim == 2 else pixels.max(2)
    step = max(1, max(grey.shape) // 1024)
    bright = grey[::step, ::step] > max(12, 0.1 * np.percentile(grey, 95))
    height, width = bright.shape
    rows, columns = (np.flatnonzero(bright.sum(1) > 0.02 * width), np.flatnonzero(bright.sum(0) > 0.02 * height))
    if len(rows) < 3 or len(columns) < 3:
        raise ValueError("no fundus: the image is dark")
    edges = [(bright[r].argmax(), r + 0.5) for r in rows] + [(c + 0.5, bright[:, c].argmax()) for c in columns]
    edges += [(width - bright[r, ::-1].argmax(), r + 0.5) for r in rows]
    edges += [(c + 0.5, height - bright[::-1, c].argmax()) for c in columns]
    points = np.array(edges, dtype=float)
    inner = ((points > 1) & (points < (width - 1, height - 1))).all(1)
    points, x, y, radius = points[inner], width / 2, height / 2, max(height, width) / 2
    for _ in range(0 if len(points) < 0.2 * len(inner) else 5):  # none: bright to every border, cropped already
        design = np.column_stack([2 * points, np.ones(len(points))])
        (x, y, c), *_ = np.linalg.lstsq(design, (points**2).sum(1), rcond=None)
        radius = np.sqrt(max(c + x**2 + y**2, 0))
        off = np.abs(np.hypot(*(points - (x, y)).T) - radius)
        points = points[off <= max(np.median(off), 0.02 * radius)]
    left, top, side = round(step * x - step * radius), round(step * y - step * radius), max(1, round(2 * step * radius))
    return left, top, left + side, top + side
