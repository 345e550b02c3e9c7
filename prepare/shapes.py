"""The star polygons of the Explainer-Classifier paper (Rio-Torto et al., 2020): is the target {p/q} in the image?"""

from typing import Annotated
from xml.etree import ElementTree as ET

import numpy as np
from numpy.random import Generator
from pydantic import Field

from prepare.drawing import Drawn, bounding_box, to_uint8

Noise = Annotated[float, Field(ge=0, le=128)]
CIRCLE = (-1, 0)
SIZE = (64, 64)
WHITE = np.full(3, 255.0)
SAMPLES = 4  # per pixel and axis
CONTRAST = 80  # least distance, in one channel, of a shape's colour from the background's
TRIES = 100  # positions per shape


def draw(label: int, rng: Generator, polygon: tuple[int, int] = (5, 2), noise: Noise = 8.0) -> Drawn:
    """One image (H, W, 3), the mask of the targets' pixels, and `boxes` of each target.

    polygon: the target (p, q), p vertices each joined to the q-th next; noise: std in grey values. The label: whether
    there is one. The same `rng` seed with another label gives the same places, sizes, angles and colours.
    """
    if polygon[0] < 3 or not 1 <= polygon[1] < polygon[0] / 2:
        raise ValueError(f"polygon: expected p >= 3 and 1 <= q < p / 2, got {polygon}")
    layout, kinds = rng.spawn(2)
    image, targets = np.broadcast_to(WHITE, (*SIZE, 3)), []
    stars = [(p, q) for p in range(3, 9) for q in range(1, (p + 1) // 2)]
    places, others = _layout(layout), [kind for kind in [*stars, CIRCLE] if kind != polygon]
    which, forced = kinds.integers(len(others), size=len(places)), kinds.integers(len(places))
    by_chance = kinds.uniform(size=len(places)) < 1 / (len(others) + 1)
    is_target = bool(label) & (by_chance | (np.arange(len(places)) == forced))
    for index, (y, x, radius) in enumerate(places):
        turn, colour = layout.uniform(0, 2 * np.pi), _contrasting(layout)
        kind = polygon if is_target[index] else others[which[index]]
        coverage = star_coverage(kind, (y, x), radius, turn, *SIZE)
        image = image * (1 - coverage[..., None]) + coverage[..., None] * colour
        if is_target[index]:
            targets.append(coverage > 0)
    image = image + layout.normal(0, noise, image.shape)
    mask = np.any([np.zeros(SIZE, dtype=bool), *targets], axis=0)
    return to_uint8(image / 255), mask, {"boxes": [bounding_box(target) for target in targets]}


def star_coverage(kind, centre, radius: float, turn: float, height: int, width: int) -> np.ndarray:
    """Share of each pixel (height, width), in sixteenths, inside the filled star polygon {p/q} or circle.

    With the angle phi folded into [0, pi / p], a point at distance r is inside where
    r cos(pi q / p - phi) <= radius cos(pi q / p).
    """
    canvas, (p, q), step = np.zeros((height, width)), kind, 1 / SAMPLES
    low = np.clip(np.floor(np.asarray(centre) - radius).astype(int) - 1, 0, [height, width])
    high = np.clip(np.ceil(np.asarray(centre) + radius).astype(int) + 1, low, [height, width])
    y = (np.arange(low[0], high[0], step) + step / 2 - centre[0])[:, None]
    x = (np.arange(low[1], high[1], step) + step / 2 - centre[1])[None, :]
    r = np.hypot(y, x)
    if kind == CIRCLE:
        excess = r - radius
    else:
        sector = 2 * np.pi / p
        angle = (np.arctan2(x, -y) - turn) / sector
        phi = np.abs(angle - np.round(angle)) * sector
        excess = r * np.cos(np.pi * q / p - phi) - radius * np.cos(np.pi * q / p)
    inside = np.round(excess, 9) <= 0
    shape = (high[0] - low[0], SAMPLES, high[1] - low[1], SAMPLES)
    canvas[low[0] : high[0], low[1] : high[1]] = inside.reshape(shape).mean((1, 3))
    return canvas


def _layout(rng: Generator) -> np.ndarray:
    """Centres and radii (y, x, radius) of one image's two to four shapes, (n, 3), which do not touch."""
    count, placed = int(rng.integers(2, 5)), np.empty((0, 3))
    while len(placed) < count:
        radius = rng.uniform(8.0, 11.0)
        places = radius + 1 + rng.uniform(0, 1, (TRIES, 2)) * (np.array(SIZE) - 2 * (radius + 1))
        apart = np.hypot(places[:, None, 0] - placed[:, 0], places[:, None, 1] - placed[:, 1])
        free = np.flatnonzero((apart - placed[:, 2] - radius > 1).all(1))
        placed = np.vstack([placed, [*places[free[0]], radius]]) if len(free) else np.empty((0, 3))
    return placed


def _contrasting(rng: Generator) -> np.ndarray:
    """The first of 32 random colours CONTRAST away from white, or else the furthest."""
    colours = rng.uniform(0, 255, (32, 3))
    return colours[np.argmax(np.minimum(np.abs(colours - WHITE).max(1), CONTRAST))]


def voc_xml(polygon: tuple[int, int], filename: str, boxes: list[list[int]]) -> str:
    """Pascal VOC annotation: target, whether and how often it is there, and its boxes, in pixels counted from 1."""
    size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
    target = f"<polygon><p>{polygon[0]}</p><q>{polygon[1]}</q></polygon>"
    count = f"<exists>{int(bool(boxes))}</exists><count>{len(boxes)}</count>"
    parts = [f"<filename>{filename}</filename>", size, target, count]
    for x, y, w, h in boxes:
        low, high = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>", f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        parts.append(f"<object><name>target</name><bndbox>{low}{high}</bndbox></object>")
    root = ET.fromstring(f"<annotation>{''.join(parts)}</annotation>")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
