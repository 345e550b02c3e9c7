"""Decoding: image files and DICOM to 8-bit pixels, the fundus circle, and resizing images with their masks."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from PIL import Image, UnidentifiedImageError
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from lib.data.pixels import MaskValues, mask_region, read_image, read_mask

Image.init()  # all formats, so that they can be asked for by name
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
MOST_PIXELS = 89_478_485  # Pillow's own limit


class BadImage(ValueError):
    """A file that cannot be used as an image; the message says why, without the path."""


def decode(path: Path) -> np.ndarray:
    """Pixels uint8 (H, W) or (H, W, 3) of an image or DICOM file; BadImage where missing, truncated or not an image."""
    return _read(path, read_image, dicom_pixels)


def decode_mask(path: Path, values: MaskValues | None = None) -> np.ndarray:
    """Boolean (H, W), as `read_mask` of image files, and of DICOM files; BadImage where it is none."""
    return _read(
        path,
        lambda file: read_mask(file, values),
        lambda file: mask_region(dicom_pixels(file), values or "nonzero", file),
    )


def _read(path: Path, image_file: Callable[[Path], np.ndarray], dicom_file: Callable[[Path], np.ndarray]) -> np.ndarray:
    if not path.is_file():
        raise BadImage("missing")
    if not path.stat().st_size:
        raise BadImage("truncated: the file is empty")
    try:
        if path.suffix.lower() in (".dcm", ".dicom"):
            return dicom_file(path)
        with Image.open(path, formats=FORMATS) as image:
            _check_area(*image.size)
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise BadImage(f"wrong format: expected one picture, got {image.n_frames}")
        return image_file(path)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"decompression bomb: more than {2 * MOST_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise BadImage(f"wrong format: expected one of {', '.join(FORMATS)}") from None
    except ValueError as error:
        raise BadImage(f"wrong format: {str(error).removeprefix(f'{path}: ')}") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, EOFError, zlib.error ...
        raise BadImage(f"truncated or damaged: {error}") from None


def _check_area(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise BadImage(f"decompression bomb: {width} x {height}, more than {MOST_PIXELS} pixels")


def dicom_pixels(path: Path) -> np.ndarray:
    """Grey values uint8 (H, W) of a DICOM file of 8 to 16 bits: modality LUT, then VOI LUT or window, dark to bright.

    The range that the file's bits (or its LUT) can express becomes 0 to 255; MONOCHROME1 is inverted. Source: DICOM
    PS3.3, C.11.1 and C.11.2. BadImage for anything but one grey picture.
    """
    try:
        data = pydicom.dcmread(path)
        _check_area(int(data.Columns), int(data.Rows))
        if (
            data.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2")
            or int(data.get("NumberOfFrames") or 1) > 1
        ):
            raise BadImage(f"wrong format: expected one grey picture, got {data.PhotometricInterpretation}")
        values = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data).astype(np.float64)
        low, high = _value_range(data)
    except BadImage:
        raise
    except InvalidDicomError:
        raise BadImage("wrong format: not a DICOM file") from None
    except Exception as error:  # missing tags, unsupported compression, too few bytes
        raise BadImage(f"truncated or damaged DICOM: {error}") from None
    pixels = np.clip(np.rint((values - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
    return 255 - pixels if data.PhotometricInterpretation == "MONOCHROME1" else pixels


def _value_range(data: pydicom.Dataset) -> tuple[float, float]:
    """Lowest and highest value that the last table or the stored bits can give."""
    for sequence in ("VOILUTSequence", "ModalityLUTSequence"):
        if data.get(sequence):
            return 0, 2 ** int(data[sequence][0].LUTDescriptor[2]) - 1
    bits, signed = int(data.BitsStored), int(data.PixelRepresentation)
    slope, intercept = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    low, high = sorted(end * slope + intercept for end in ends)
    return low, high


class Circle(NamedTuple):
    """Centre and radius in pixels; the centre of the first pixel is at 0.5."""

    x: float
    y: float
    radius: float

    @property
    def window(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the square around it; may reach beyond the image, where its rim is cut off."""
        left, top, side = round(self.x - self.radius), round(self.y - self.radius), max(1, round(2 * self.radius))
        return left, top, left + side, top + side


def fundus_circle(pixels: np.ndarray) -> Circle:
    """The bright disc of a fundus photograph, uint8 (H, W, 3) or (H, W), also where the image cuts its rim.

    Least-squares circle (Kasa 1976) through the outermost bright pixel of each row and column that is not at the
    image's border; points further away than 2 % of the radius (notches, reflections) are left out, and it is fitted
    again. BadImage where nothing is bright.
    """
    grey = pixels if pixels.ndim == 2 else pixels.max(2)
    step = max(1, max(grey.shape) // 1024)
    bright = grey[::step, ::step] > max(12, 0.1 * np.percentile(grey, 95))
    height, width = bright.shape
    rows, columns = (np.flatnonzero(bright.sum(1) > 0.02 * width), np.flatnonzero(bright.sum(0) > 0.02 * height))
    if len(rows) < 3 or len(columns) < 3:
        raise BadImage("no fundus: the image is dark")
    edges = [(bright[r].argmax(), r + 0.5) for r in rows] + [(c + 0.5, bright[:, c].argmax()) for c in columns]
    edges += [(width - bright[r, ::-1].argmax(), r + 0.5) for r in rows]
    edges += [(c + 0.5, height - bright[::-1, c].argmax()) for c in columns]
    points = np.array(edges, dtype=float)
    inner = ((points > 1) & (points < (width - 1, height - 1))).all(1)
    whole = Circle(width / 2, height / 2, max(height, width) / 2)  # bright to every border: cropped already
    if inner.sum() < 0.2 * len(points):
        return Circle(*(step * value for value in whole))
    points = points[inner]
    for _ in range(5):
        design = np.column_stack([2 * points, np.ones(len(points))])
        (x, y, c), *_ = np.linalg.lstsq(design, (points**2).sum(1), rcond=None)
        radius = np.sqrt(max(c + x**2 + y**2, 0))
        off = np.abs(np.hypot(*(points - (x, y)).T) - radius)
        keep = off <= max(np.median(off), 0.02 * radius)
        if keep.all():
            break
        points = points[keep]
    return Circle(step * x, step * y, step * radius)


def cut(pixels: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """The window (left, top, right, bottom), black beyond the image."""
    return np.array(Image.fromarray(pixels).crop(window))


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (side, side[, 3]), bilinear with antialiasing; the aspect ratio is not kept."""
    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))
