"""What the generators draw with: float64 NumPy only, so that the pixels do not depend on the machine."""

from functools import cache

import numpy as np

Drawn = tuple[np.ndarray, np.ndarray, dict]  # image uint8 (H, W[, 3]), mask bool (H, W), and what else is known


def pixel_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres (y, x) in pixels, shapes (height, 1) and (1, width)."""
    return np.arange(height)[:, None] + 0.5, np.arange(width)[None, :] + 0.5


def soft(distance: np.ndarray, width: float = 1.0) -> np.ndarray:
    """Coverage in [0, 1] of a signed distance in pixels (negative inside), with an edge `width` pixels wide."""
    return np.clip(0.5 - distance / width, 0.0, 1.0)


@cache
def _cubic(size: int, cells: int) -> np.ndarray:
    position = np.linspace(0, cells - 1, size)[:, None]
    distance = np.abs(position - np.arange(-1, cells + 1))
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance) ** 3 / 6
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Normal noise on `cells` x `cells` knots, cubic B-spline between them: (size, size), mean 0, std about 0.5."""
    knots, spline = rng.standard_normal((cells + 2, cells + 2)), _cubic(size, cells)
    rows = (spline[:, :, None] * knots[None]).sum(1)
    return (rows[:, None, :] * spline[None]).sum(2)


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as 0..255; rounded twice, so that the last bits of a float never decide a pixel."""
    return np.floor(np.round(np.clip(values, 0.0, 1.0) * 255, 6) + 0.5).astype(np.uint8)


def bounding_box(mask: np.ndarray) -> list[int]:
    """[x, y, width, height] in pixels of the True pixels of a mask (H, W) that has some."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]
