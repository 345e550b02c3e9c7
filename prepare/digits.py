"""Which of two to ten handwritten digits is there? Real digits (UCI, by way of scikit-learn) in synthetic clutter."""

from functools import cache
from typing import Annotated

import numpy as np
from numpy.random import Generator
from pydantic import Field
from scipy.ndimage import map_coordinates

from lib.data.pixels import box_mask
from prepare.drawing import Drawn, bounding_box, smooth_noise, to_uint8

Digits = Annotated[tuple[Annotated[int, Field(ge=0, le=9)], ...], Field(min_length=2)]
SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}
SIZE, HEIGHTS = 64, (19.0, 24.0)  # of the image, of a digit, in pixels
OTHERS, FRAGMENTS = 2, 6  # digits besides the target, whole (none of a class) and broken


@cache
def sources(split: str) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Indices by digit of the handwritten digits of one split (no other has them), and all in [0, 1] (1797, 8, 8)."""
    from sklearn.datasets import load_digits  # most of a second, paid where digits are drawn

    data, (low, high) = load_digits(), SHARES[split]
    rows = {digit: np.flatnonzero(data.target == digit) for digit in range(10)}
    return {d: i[round(low * len(i)) : round(high * len(i))] for d, i in rows.items()}, data.images / 16


def draw(label: int, rng: Generator, split: str = "train", digits: Digits = (4, 9)) -> Drawn:
    """One image (S, S), the mask of its target's box, `boxes`, and as `patient` the target's source. The same `rng`
    seed with another label gives the same clutter and the other digit at the same place."""
    if len(set(digits)) < len(digits):
        raise ValueError(f"digits: expected different digits, got {digits}")
    clutter, target = rng.spawn(2)
    rows, images = sources(split)
    image = 0.10 + 0.05 * smooth_noise(clutter, SIZE, 5)
    margin = 0.55 * HEIGHTS[1]  # within which a whole digit, slightly turned, fits
    centres = [margin + clutter.uniform(size=2) * (SIZE - 2 * margin)]
    whole = [digit for digit in range(10) if digit not in digits]
    others = whole or range(10)
    for index in range(0 if whole else OTHERS, OTHERS + FRAGMENTS):
        source = images[clutter.choice(rows[others[clutter.integers(len(others))]])]
        if index < OTHERS:
            centre = _furthest(margin + clutter.uniform(size=(20, 2)) * (SIZE - 2 * margin), centres)
            centres.append(centre)
        else:
            top, left = clutter.integers(0, 5, 2)
            source = np.pad(source[top : top + 4, left : left + 4], ((top, 4 - top), (left, 4 - left)))
            centre = _furthest(clutter.uniform(4, SIZE - 4, (2, 2)), centres[:1])
        height, turn = clutter.uniform(*HEIGHTS), clutter.normal(0, 0.15)
        image = np.maximum(image, clutter.uniform(0.6, 1.0) * _placed(source, centre, height, turn))
    chosen = int(target.choice(rows[digits[label]]))
    height, turn = target.uniform(*HEIGHTS), target.normal(0, 0.15)
    ink = _placed(images[chosen], centres[0], height, turn)
    boxes = [bounding_box(ink > 0.25)]
    mask = box_mask(boxes, SIZE, SIZE)
    image = np.maximum(image, target.uniform(0.6, 1.0) * ink * mask)
    image = image + clutter.normal(0, 0.04, image.shape)
    return to_uint8(image), mask, {"boxes": boxes, "patient": f"source-{chosen:04d}"}


def _furthest(places: np.ndarray, centres: list) -> np.ndarray:
    """Of the places (n, 2) the one furthest from all centres."""
    distance = np.min([np.hypot(*(places - centre).T) for centre in centres], axis=0)
    return places[np.argmax(distance)]


def _placed(source: np.ndarray, centre: np.ndarray, height: float, turn: float) -> np.ndarray:
    """An 8 x 8 digit `height` pixels high (cubic splines), turned by `turn` radians: (S, S) in [0, 1]."""
    y, x = (np.arange(SIZE)[:, None] + 0.5 - centre[0], np.arange(SIZE)[None, :] + 0.5 - centre[1])
    rows = (y * np.cos(turn) + x * np.sin(turn)) * 8 / height + 3.5
    columns = (x * np.cos(turn) - y * np.sin(turn)) * 8 / height + 3.5
    near = (np.abs(rows - 3.5) < 5) & (np.abs(columns - 3.5) < 5)
    canvas = np.zeros((SIZE, SIZE))
    canvas[near] = map_coordinates(source, np.stack([rows[near], columns[near]]), order=3, mode="grid-constant")
    return np.clip(canvas, 0, 1)
