"""Synthetic chest X-rays: clear lungs, or an opacity with its box."""

from typing import Annotated

import numpy as np
from numpy.random import Generator
from pydantic import Field

from lib.data.pixels import box_mask
from prepare.drawing import Drawn, bounding_box, pixel_grid, smooth_noise, soft, to_uint8

Size, Contrast = Annotated[int, Field(ge=72)], Annotated[float, Field(ge=0.2, le=4)]


def draw(label: int, rng: Generator, size: Size = 96, contrast: Contrast = 1.4) -> Drawn:
    """One chest (S, S), the mask of its box, and `boxes`: the one around all that changed; contrast 1: 0.13 of the grey
    scale. The same `rng` seed with another label gives the same chest: the opacity has a random stream of its own."""
    anatomy, lesion = rng.spawn(2)
    image, lungs = _chest(anatomy, size)
    added = _opacity(lesion, contrast, lungs) if label else np.zeros((size, size))
    image, boxes = image + added, [bounding_box(added > 0)] if label else []
    gain, offset = anatomy.uniform(0.82, 1.0), anatomy.uniform(-0.02, 0.06)
    image = gain * image + offset + anatomy.normal(0, 0.015, image.shape)
    return to_uint8(image), box_mask(boxes, size, size), {"boxes": boxes}


def _chest(rng: Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Anatomy in about [0, 0.95] and the transparency of the lung fields in [0, 1], both (size, size)."""
    unit = size / 96
    rows, columns = pixel_grid(size, size)
    y = (rows - size / 2) / unit + rng.normal(0, 1.5)
    x = (columns - size / 2) / unit + rng.normal(0, 1.5)
    x, y = x + 0.03 * rng.normal() * y, y * rng.uniform(0.95, 1.05)
    across = np.abs(x)
    shoulders = np.maximum(-42 + 0.011 * across**2 - y, across - 44 - 0.10 * y)
    body = soft(np.minimum(shoulders, np.maximum(across - 8, -70 - y)), 5)
    image = body * (0.60 + 0.05 * smooth_noise(rng, size, 4) - 0.0012 * np.maximum(across - 30, 0) ** 2)

    lungs = np.zeros((size, size))
    for flank in (-1.0, 1.0):
        middle, height = flank * rng.uniform(18.5, 20), rng.uniform(33, 36)
        down = np.clip((y + height) / (2 * height), 0, 1)
        width = rng.uniform(12.5, 14.5) * (0.72 + 0.38 * down)
        oval = ((np.abs(x - middle - flank * 2.5 * down) / width) ** 2.4 + (np.abs(y) / height) ** 2.6) ** (1 / 2.5) - 1
        dome = y - (rng.uniform(22, 27) + (3 if flank > 0 else 0)) - 0.020 * (x - middle + flank * 3) ** 2
        lungs = np.maximum(lungs, soft(np.maximum(oval * 13, dome), 4.5))
    image = image * (1 - rng.uniform(0.66, 0.74) * lungs)

    tissue = 0.5 * smooth_noise(rng, size, 12) + 0.6 * smooth_noise(rng, size, 26)
    hilum = np.exp(-(((across - 9) / 8) ** 2) - ((y + 2) / 12) ** 2)
    image = image + lungs * (0.04 * tissue + hilum * (0.12 + 0.10 * tissue))
    u = across / 40
    arch = y + 7 * np.sin(np.pi * np.clip(u, 0, 1.2)) - 17 * u**2.2 + rng.uniform(0, 7.5)
    spacing = rng.uniform(7.2, 8.2)
    phase = arch / spacing - np.round(arch / spacing)
    bones = np.exp(-((phase * spacing / 1.5) ** 2)) * soft(across - 37, 5) * soft(5 - across, 4) * soft(-34 - y, 6)
    image = image + 0.085 * bones * (0.35 + 0.65 * lungs) * body
    collar = y + 33 + 0.10 * across - 2.5 * np.sin(across / 8)
    image = image + 0.13 * np.exp(-((collar / 1.9) ** 2)) * soft(across - 34, 4) * soft(3 - across, 3) * body

    heart = np.hypot((x - rng.uniform(5, 7)) / rng.uniform(13, 16), (y - rng.uniform(12, 15)) / rng.uniform(14, 16)) - 1
    mediastinum = across - (6.5 + 0.0022 * (y - 8) ** 2)
    knob = np.hypot(x - 6.5, y + 17) - rng.uniform(4, 5)
    shadow = np.maximum(soft(heart * 14, 4.5), np.maximum(soft(mediastinum, 5), 0.8 * soft(knob, 4)))
    image = image + shadow * body * np.maximum(0.66 - image, 0)
    spine = np.exp(-((x / 4.5) ** 4)) * (0.07 + 0.025 * np.cos(2 * np.pi * y / 6.5 + rng.uniform(0, 6)))
    trachea = np.exp(-((x / 2.4) ** 4)) * soft(y + 14, 8)
    return image + body * (spine - 0.12 * trachea) + 0.02, lungs * (1 - shadow)


def _opacity(rng: Generator, contrast: float, lungs: np.ndarray) -> np.ndarray:
    """Grey value added by a soft irregular shadow inside one lung (size, size); 0 where it would not be visible."""
    size = len(lungs)
    y, x = pixel_grid(size, size)
    inside = np.argwhere(lungs > 0.9)
    cy, cx = inside[rng.integers(len(inside))] + 0.5
    height, width = rng.uniform(16.0, 28.0, 2) / 2
    turn = np.arctan2(y - cy, x - cx)
    lobes = 1 + sum(rng.uniform(0, 0.09) * np.cos(k * turn + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    distance = np.hypot((y - cy) / height, (x - cx) / width) / lobes
    profile = np.clip(1 - distance**2, 0, 1) ** 0.75 * (1 + 0.22 * smooth_noise(rng, size, 14))
    added = 0.13 * contrast * profile * np.clip(1.15 * lungs, 0, 1)
    return np.where(added > 0.025 * contrast, added, 0.0)
