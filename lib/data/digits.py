"""Which of two handwritten digits is there? Real digits (UCI, by way of scikit-learn) in synthetic clutter."""

from functools import cache
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from scipy.ndimage import map_coordinates

from lib.data.drawing import bounding_box, smooth_noise, to_uint8

CLASSES = ["4", "9"]
Digit = Annotated[int, Field(ge=0, le=9)]
SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DigitsParameters:
    """The two digits, side of the image, height range of a digit in pixels, numbers of whole and broken others."""

    digits: tuple[Digit, Digit] = (4, 9)
    size: int = 64
    height_min: Annotated[float, Field(ge=8)] = 19.0
    height_max: float = 24.0
    others: Annotated[int, Field(ge=0, le=2)] = 2
    fragments: Annotated[int, Field(ge=0, le=20)] = 6
    noise: Annotated[float, Field(ge=0, le=0.2)] = 0.04

    def __post_init__(self):
        if self.digits[0] == self.digits[1]:
            raise ValueError(f"digits: expected two different digits, got {self.digits}")
        if not self.height_min <= self.height_max <= 0.45 * self.size:
            most = f"height_min {self.height_min:g} to {0.45 * self.size:g} (0.45 of the side)"
            raise ValueError(f"height_max: expected {most}, got {self.height_max:g}")


Parameters = DigitsParameters


@cache
def sources(split: str) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Indices by digit of the handwritten digits of one split, and all of them in [0, 1] (1797, 8, 8).

    The three splits share no handwritten digit: 60, 15 and 25 % of each class, in the order of the collection.
    """
    from sklearn.datasets import load_digits  # most of a second, paid where digits are drawn

    data, (low, high) = load_digits(), SHARES[split]
    rows = {digit: np.flatnonzero(data.target == digit) for digit in range(10)}
    return {d: i[round(low * len(i)) : round(high * len(i))] for d, i in rows.items()}, data.images / 16


def draw(
    parameters: DigitsParameters, label: int, rng: np.random.Generator, split: str = "train"
) -> tuple[np.ndarray, np.ndarray, dict]:
    """One image uint8 (S, S), the box of its target as mask bool (S, S), `boxes`, and as `patient` the target's source.

    The same `rng` seed with another label gives the same clutter and another digit at the same place: what differs lies
    in the union of both boxes.
    """
    clutter, target = rng.spawn(2)
    size, (rows, images) = parameters.size, sources(split)
    image = 0.10 + 0.05 * smooth_noise(clutter, size, size, 5)
    centres = [_inside(clutter.uniform(size=2), parameters)]
    others = [digit for digit in range(10) if digit not in parameters.digits]
    for index in range(parameters.others + parameters.fragments):
        source = images[clutter.choice(rows[others[clutter.integers(len(others))]])]
        if index < parameters.others:
            centres.append(centre := _apart(_inside(clutter.uniform(size=(20, 2)), parameters), centres))
        else:
            top, left = clutter.integers(0, 5, 2)
            source = np.pad(source[top : top + 4, left : left + 4], ((top, 4 - top), (left, 4 - left)))
            centre = _apart(clutter.uniform(4, size - 4, (2, 2)), centres[:1])
        height, turn = clutter.uniform(parameters.height_min, parameters.height_max), clutter.normal(0, 0.15)
        image = np.maximum(image, clutter.uniform(0.6, 1.0) * _placed(source, size, centre, height, turn))
    chosen = int(target.choice(rows[parameters.digits[label]]))
    height, turn = target.uniform(parameters.height_min, parameters.height_max), target.normal(0, 0.15)
    ink = _placed(images[chosen], size, centres[0], height, turn)
    box = bounding_box(ink > 0.25)
    x, y, w, h = box
    mask = np.zeros((size, size), dtype=bool)
    mask[y : y + h, x : x + w] = True
    image = np.maximum(image, target.uniform(0.6, 1.0) * ink * mask)
    image = image + clutter.normal(0, parameters.noise, image.shape)
    return to_uint8(image), mask, {"boxes": [box], "patient": f"source-{chosen:04d}"}


def _inside(place: np.ndarray, parameters: DigitsParameters) -> np.ndarray:
    """Centres (y, x) in pixels at which a whole digit, slightly turned, fits into the image; `place` in [0, 1]."""
    margin = 0.55 * parameters.height_max
    return margin + place * (parameters.size - 2 * margin)


def _apart(places: np.ndarray, centres: list) -> np.ndarray:
    """Of the places (n, 2) the one furthest from all centres."""
    distance = np.min([np.hypot(*(places - centre).T) for centre in centres], axis=0)
    return places[np.argmax(distance)]


def _placed(source: np.ndarray, size: int, centre: np.ndarray, height: float, turn: float) -> np.ndarray:
    """An 8 x 8 digit `height` pixels high (cubic splines), turned by `turn` radians: (size, size) in [0, 1]."""
    y, x = (np.arange(size)[:, None] + 0.5 - centre[0], np.arange(size)[None, :] + 0.5 - centre[1])
    rows = (y * np.cos(turn) + x * np.sin(turn)) * 8 / height + 3.5
    columns = (x * np.cos(turn) - y * np.sin(turn)) * 8 / height + 3.5
    near = (np.abs(rows - 3.5) < 5) & (np.abs(columns - 3.5) < 5)
    canvas = np.zeros((size, size))
    canvas[near] = map_coordinates(source, np.stack([rows[near], columns[near]]), order=3, mode="grid-constant")
    return np.clip(canvas, 0, 1)
