"""Synthetic retina photographs: healthy, or with bright exudates and dark haemorrhages."""

from typing import Annotated

import numpy as np
from numpy.random import Generator
from pydantic import Field

from prepare.drawing import Drawn, pixel_grid, smooth_noise, soft, to_uint8

Size, Scale = Annotated[int, Field(ge=48)], Annotated[float, Field(ge=0.2, le=3)]
Grades = Annotated[list[tuple[int, int]], Field(min_length=2)]


def draw(label: int, rng: Generator, size: Size = 96, lesion_scale: Scale = 1.3, grades: Grades | None = None) -> Drawn:
    """One retina (S, S, 3), and the mask of the lesion pixels; lesion_scale 1: exudates of radius 1.6 to 3, dots of 1.2
    to 1.9 px. The same `rng` seed with another label gives the same retina: lesions have a stream of their own.

    grades: the least and the largest number of lesions, all of radius 1.7, of each label; they differ in it alone, and
    of the same seed the lesions of a label are among those of a higher one."""
    room = 0.35 * (46 - 4 * lesion_scale) ** 2 / (2.5 * lesion_scale) ** 2  # how many lesions fit
    if grades and any(not 0 <= low <= high <= room for low, high in grades):
        raise ValueError(f"grades: expected the least and largest numbers of lesions, up to {room:.0f}, got {grades}")
    anatomy, lesion = rng.spawn(2)
    unit = size / 96
    y, x = pixel_grid(size, size)
    centre, radius = size / 2 + anatomy.normal(0, 0.4, 2) * unit, 46 * unit
    side = anatomy.choice([-1.0, 1.0])
    disc = centre + unit * np.array([anatomy.normal(0, 2), side * anatomy.uniform(22, 27)])
    macula = centre + unit * np.array([anatomy.normal(2, 1.5), -side * anatomy.uniform(6, 10)])
    disc_radius = unit * anatomy.uniform(6, 7.5)

    image = np.array([0.80, 0.40, 0.18]) * (1 + anatomy.normal(0, 1, 3) * [0.07, 0.10, 0.14])
    image = image * (1 + 0.07 * smooth_noise(anatomy, size, 6) + 0.06 * smooth_noise(anatomy, size, 20))[..., None]
    spot = np.exp(-(((y - macula[0]) ** 2 + (x - macula[1]) ** 2) / (2 * (5.5 * unit) ** 2)))
    image = image * (1 - anatomy.uniform(0.45, 0.6) * spot[..., None] * [0.6, 1.0, 0.9])
    from_disc = np.hypot(y - disc[0], (x - disc[1]) * 1.1)
    cup = np.hypot(y - disc[0], x - disc[1] - side * unit)
    image = _blend(image, 0.9 * soft(from_disc - disc_radius, 2.5 * unit), [0.98, 0.76, 0.46])
    image = _blend(image, 0.7 * soft(cup - 0.45 * disc_radius, 2.5 * unit), [1.0, 0.93, 0.72])
    vessels = _vessels(anatomy, size, disc, side)[..., None]
    image = image * (1 - vessels * [0.45, 0.72, 0.66])

    mask = np.zeros((size, size), dtype=bool)
    if label or grades:
        among = grades[label] if grades else None
        image, mask = _lesions(image, lesion, lesion_scale * unit, centre, radius, disc, disc_radius, among)

    tilt = anatomy.normal(0, 0.06, 2)
    from_centre = np.hypot(y - centre[0], x - centre[1]) / radius
    light = 1.08 - 0.42 * from_centre**2 + tilt[0] * (y / size - 0.5) + tilt[1] * (x / size - 0.5)
    image = image * (light * anatomy.uniform(0.88, 1.08))[..., None]
    image = image + anatomy.normal(0, 0.012, image.shape)
    image = image * soft((from_centre - 1) * radius, 1.5)[..., None]
    return to_uint8(image), mask, {}


def _blend(image: np.ndarray, alpha: np.ndarray, colour) -> np.ndarray:
    return image * (1 - alpha[..., None]) + alpha[..., None] * np.asarray(colour)


def _vessels(rng: Generator, size: int, disc: np.ndarray, side: float) -> np.ndarray:
    """Darkness (size, size) in [0, 1] of a tree of vessels: four arcades of a vein and an artery leave the optic
    disc, up and down, bent around the macula (temporal) or away from it (nasal), and branch twice."""
    unit = size / 96
    steps, up, temporal = 68, np.repeat([1.0, 1.0, -1.0, -1.0], 2), np.tile([1.0, 1.0, 0.0, 0.0], 2)
    heading = (np.pi if side > 0 else 0.0) - side * up * np.where(temporal > 0, 1.35, 2.35) + rng.normal(0, 0.14, 8)
    bend = side * up * np.where(temporal > 0, 0.021, -0.006) + rng.normal(0, 0.003, 8)
    thickness = unit * np.tile([1.25, 0.9], 4) * rng.uniform(0.85, 1.15, 8)
    origin = disc[None] + rng.normal(0, 0.8 * unit, (8, 2))
    depth, points = np.tile([1.0, 0.75], 4), []
    for branches, length in ((3, 34), (2, 20), (0, 0)):
        wobble = np.cumsum(rng.normal(0, 0.05, (len(heading), steps)), 1)
        angle = heading[:, None] + bend[:, None] * np.arange(steps) + wobble
        path = origin[:, None] + unit * np.cumsum(np.stack([-np.sin(angle), np.cos(angle)], -1), 1)
        width = thickness[:, None] * np.linspace(1, 0.42, steps)
        points.append(np.stack([path[..., 0], path[..., 1], width, np.broadcast_to(depth[:, None], width.shape)], -1))
        at = rng.integers(6, steps - 4, (len(heading), branches))
        rows = np.arange(len(heading))[:, None]
        turn = rng.choice([-1.0, 1.0], at.shape) * rng.uniform(0.4, 0.95, at.shape)
        origin, thickness = path[rows, at].reshape(-1, 2), (0.62 * width[rows, at]).ravel()
        heading, bend = (angle[rows, at] + turn).ravel(), (-0.35 * turn / length).ravel()
        depth, steps = np.repeat(depth * 0.9, branches), length
    return _stamp(np.concatenate([p.reshape(-1, 4) for p in points]), size, reach=int(np.ceil(2.5 * unit)))


def _stamp(points: np.ndarray, size: int, reach: int) -> np.ndarray:
    """Largest coverage times depth of discs given as rows (y, x, radius, depth), in a window of `reach` pixels."""
    offset = np.arange(-reach, reach + 1)
    y, x, radius, depth = (column[:, None, None] for column in points.T)
    rows, columns = np.floor(y).astype(int) + offset[:, None], np.floor(x).astype(int) + offset[None, :]
    value = depth * np.clip(radius + 0.5 - np.sqrt((rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2), 0, 1)
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size) & (value > 0)
    canvas = np.zeros(size * size)
    np.maximum.at(canvas, (rows * size + columns)[inside], value[inside])
    return canvas.reshape(size, size)


def _lesions(image, rng, scale, centre, radius, disc, disc_radius, among) -> tuple[np.ndarray, np.ndarray]:
    """The retina with as many lesions as `among` says, (least, most), or else with one or two clusters of exudates and
    a few haemorrhages, and the mask of all that changed."""
    size, spots = len(image), []  # (y, x), radius, squash, turn, whether it is an exudate
    y, x = pixel_grid(size, size)

    def place(margin, apart=0.0):
        while True:
            point = centre + rng.uniform(-1, 1, 2) * radius
            others = [(disc, disc_radius + margin), *((at, apart) for at, *_ in spots)]
            clear = all(np.hypot(*(point - at)) > distance for at, distance in others)
            if clear and np.hypot(*(point - centre)) < radius - margin:
                return point

    for _ in range(among[0] + int(rng.uniform() * (among[1] - among[0] + 1)) if among else 0):
        spots.append((place(4 * scale, 5 * scale), scale * 1.7, 1.0, 0.0, rng.uniform() < 0.5))
    for _ in range(0 if among else rng.integers(1, 3)):
        middle = place(9 * scale)
        for _ in range(rng.integers(3, 6)):
            at, r = middle + rng.normal(0, 2.8 * scale, 2), scale * rng.uniform(1.6, 3.0)
            at = middle + (at - middle) * min(1.0, 5.5 * scale / max(np.hypot(*(at - middle)), 1e-9))
            spots.append((at, r, rng.uniform(0.75, 1.3), rng.uniform(0, np.pi), True))
    for _ in range(0 if among else rng.integers(2, 5)):
        spots.append((place(5 * scale), scale * rng.uniform(1.2, 1.9), 1.0, 0.0, False))
    exudate, blood = np.zeros((2, size, size))
    for at, r, squash, turn, bright in spots:
        u = (y - at[0]) * np.cos(turn) + (x - at[1]) * np.sin(turn)
        v = (x - at[1]) * np.cos(turn) - (y - at[0]) * np.sin(turn)
        alpha = soft(np.hypot(u * squash, v / squash) - r, 1.8 if bright else 1.4)
        exudate, blood = (np.maximum(exudate, alpha), blood) if bright else (exudate, np.maximum(blood, alpha))
    exudate, blood = (np.where(alpha > 0.15, alpha, 0.0) for alpha in (exudate, blood))
    image = image * (1 - 0.85 * blood[..., None] * [0.62, 0.88, 0.85])
    return _blend(image, 0.85 * exudate, [0.97, 0.86, 0.48]), (exudate > 0) | (blood > 0)
