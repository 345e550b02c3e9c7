"""The star polygons of the Explainer-Classifier paper (Rio-Torto et al., 2020): is the target {p/q} in the image?"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree as ET

import numpy as np
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from lib.data.drawing import bounding_box, to_uint8

CLASSES = ["other shapes", "target"]
CIRCLE = (-1, 0)
Grey = Annotated[int, Field(ge=0, le=255)]
SAMPLES = 4  # per pixel and axis
CONTRAST = 80  # least distance, in one channel, of a shape's grey values from the background's
RENAMED = {"background_color": "background_colour", "nr_shapes_per_img": "nr_shapes"}  # published spellings


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ShapesParameters:
    """The generator's parameters, named as in the published configuration files; lengths in pixels, colours 0 to 255.

    polygon, outside_polygon: (p, q), p vertices each joined to the q-th next, q < p / 2; p = -1: circle. nr_targets:
    images with the target, None: a coin each. nr_shapes: per image, None: from min_nr_shapes to max_nr_shapes.
    nr_tries: positions tried per shape, and layouts per image, before giving up. noise: Gaussian, standard deviation in
    grey values (true in a file: 10). simplified: target and circles only. poly_colour: the target's, None: any.
    """

    nr_images: NonNegativeInt = 100
    nr_targets: NonNegativeInt | None = None
    polygon: tuple[int, int] = (5, 2)
    outside_polygon: tuple[int, int] | None = None
    background_colour: Grey | tuple[Grey, Grey, Grey] = 255
    poly_colour: Grey | tuple[Grey, Grey, Grey] | None = None
    img_height: PositiveInt = 64
    img_width: PositiveInt = 64
    nr_channels: Literal[1, 3] = 3
    nr_shapes: PositiveInt | None = None
    min_nr_shapes: PositiveInt = 2
    max_nr_shapes: PositiveInt = 4
    nr_tries: PositiveInt = 100
    rad_min: Annotated[float, Field(ge=4)] = 8.0
    rad_max: float = 11.0
    overlap: bool = False
    occlusion: bool = False
    rotation: bool = True
    noise: Annotated[float, Field(ge=0, le=128)] = 8.0
    min_nr_vertices: Annotated[int, Field(ge=3)] = 3
    max_nr_vertices: int = 8
    simplified: bool = False
    no_circles: bool = False
    start_index: NonNegativeInt = 0

    def __post_init__(self):
        for name in ("polygon", "outside_polygon"):
            p, q = getattr(self, name) or CIRCLE
            if not (p == -1 or (p >= 3 and 1 <= q < p / 2)):
                raise ValueError(f"{name}: expected p = -1 (circle), or p >= 3 and 1 <= q < p / 2, got {(p, q)}")
        short, inner = min(self.img_height, self.img_width), self.rad_min * inner_share(self)
        area = (self.nr_shapes or self.min_nr_shapes) * np.pi * self.rad_min**2
        crowded = area > 0.9 * self.img_height * self.img_width and not (self.overlap or self.occlusion)
        mixed = self.nr_channels == 1 and 3 in (np.size(self.background_colour), np.size(self.poly_colour))
        tinted = self.poly_colour is not None and not mixed
        faint = tinted and np.abs(_colour(self, "poly_colour") - _colour(self)).max() < 20
        for wrong, name, expected in (
            (self.nr_targets is not None and self.nr_targets > self.nr_images, "nr_targets", "at most nr_images"),
            (self.max_nr_shapes < self.min_nr_shapes, "max_nr_shapes", "at least min_nr_shapes"),
            (self.max_nr_vertices < self.min_nr_vertices, "max_nr_vertices", "at least min_nr_vertices"),
            (self.rad_max < self.rad_min, "rad_max", "at least rad_min"),
            (2 * self.rad_max + 2 > short, "rad_max", f"shapes that fit into the image's {short} pixels"),
            (crowded, "nr_shapes" if self.nr_shapes else "min_nr_shapes", "shapes that fit into the image together"),
            (self.outside_polygon and inner < 4, "outside_polygon", f"a target radius >= 4 inside it, not {inner:.1f}"),
            (self.simplified and self.outside_polygon, "outside_polygon", "none where simplified"),
            (self.simplified and self.polygon[0] == -1, "polygon", "no circle where simplified"),
            (not other_kinds(self), "no_circles", "some shape besides the target"),
            (mixed, "nr_channels", "3, as a colour has three values"),
            (faint, "poly_colour", "a colour 20 grey values off the background"),
        ):
            if wrong:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    @classmethod
    def from_json(cls, path: str | Path) -> "ShapesParameters":
        """Parameters of a configuration file, also of the published ones; ValueError for a name that is not known."""
        known = {field.name for field in fields(cls)}
        values = {RENAMED.get(key, key): value for key, value in json.loads(Path(path).read_text("utf-8")).items()}
        values.pop("folder", None)
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{path}: {', '.join(unknown)}: not a parameter; expected {', '.join(sorted(known))}")
        for key in ("polygon", "outside_polygon"):
            if isinstance(value := values.get(key), list) and value and isinstance(value[0], dict):
                values[key] = (value[0]["p"], value[0]["q"])
        optional = {"outside_polygon", "poly_colour", "nr_targets", "nr_shapes"}
        values = {k: None if k in optional and (v is False or v == -1) else v for k, v in values.items()}
        if isinstance(values.get("noise"), bool):
            values["noise"] = 10.0 if values["noise"] else 0.0
        return cls(**values)


Parameters = ShapesParameters


def other_kinds(parameters: ShapesParameters) -> list[tuple[int, int]]:
    """All (p, q) that an image without the target may show."""
    stars = [
        (p, q)
        for p in range(parameters.min_nr_vertices, parameters.max_nr_vertices + 1)
        for q in range(1, (p + 1) // 2)
        if not parameters.simplified
    ]
    circles = [] if parameters.no_circles and not parameters.simplified else [CIRCLE]
    return [kind for kind in stars + circles if kind != parameters.polygon and max(kind[0], parameters.polygon[0]) > 0]


def inner_share(parameters: ShapesParameters) -> float:
    """Radius of the target as a share of its surrounding polygon's: 0.85 of that one's inner circle, cos(pi q / p)."""
    p, q = parameters.outside_polygon or CIRCLE
    return 0.85 if p == -1 else 0.85 * float(np.cos(np.pi * q / p))


def _colour(parameters: ShapesParameters, name: str = "background_colour") -> np.ndarray:
    return np.broadcast_to(np.asarray(getattr(parameters, name), dtype=float), (parameters.nr_channels,))


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
    if p == -1:
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


def _layout(parameters: ShapesParameters, rng: np.random.Generator) -> np.ndarray:
    """Centres and radii (y, x, radius) of one image's shapes, (n, 3); ValueError after nr_tries layouts."""
    low, high = parameters.min_nr_shapes, parameters.max_nr_shapes
    count = parameters.nr_shapes or int(rng.integers(low, high + 1))
    sides = np.array([parameters.img_height, parameters.img_width])
    for _ in range(parameters.nr_tries):
        placed = np.empty((0, 3))
        for _ in range(count):
            radius = rng.uniform(parameters.rad_min, parameters.rad_max)
            margin = 0.3 * radius if parameters.occlusion else radius + 1
            places = margin + rng.uniform(0, 1, (parameters.nr_tries, 2)) * (sides - 2 * margin)
            gaps = (
                np.hypot(places[:, None, 0] - placed[:, 0], places[:, None, 1] - placed[:, 1]) - placed[:, 2] - radius
            )
            free = np.flatnonzero((gaps > 1).all(1) | parameters.overlap)
            if not len(free):
                break
            placed = np.vstack([placed, [*places[free[0]], radius]])
        else:
            return placed
    raise ValueError(
        f"nr_shapes: {count} shapes of radius {parameters.rad_min:g} to {parameters.rad_max:g} found no room in "
        f"{sides[1]} x {sides[0]} pixels in {parameters.nr_tries} tries; expected fewer or smaller ones, or overlap"
    )


def _contrasting(rng: np.random.Generator, *against: np.ndarray) -> np.ndarray:
    """The first of 32 random colours CONTRAST away from all of `against`, or else the furthest."""
    colours = rng.uniform(0, 255, (32, len(against[0])))
    distance = np.min([np.abs(colours - other).max(1) for other in against], axis=0)
    return colours[np.argmax(np.minimum(distance, CONTRAST))]


def draw(parameters: ShapesParameters, label: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict]:
    """One image uint8 (H, W) or (H, W, 3), mask bool (H, W) of the visible target pixels, `boxes` of each target.

    Label 1: at least one target of which some pixels are visible; label 0: none. The same `rng` seed with another label
    gives the same places, sizes, angles and colours. ValueError where the shapes find no room.
    """
    layout, kinds = rng.spawn(2)
    for _ in range(parameters.nr_tries):
        image, targets = _scene(parameters, bool(label), layout, kinds)
        if targets or not label:
            break
    else:
        raise ValueError(f"nr_tries: no part of the target was visible in {parameters.nr_tries} tries; expected more")
    if parameters.noise:
        image = image + layout.normal(0, parameters.noise, image.shape)
    pixels, mask = to_uint8(image / 255), np.any([np.zeros(image.shape[:2], dtype=bool), *targets], axis=0)
    boxes = [bounding_box(target) for target in targets]
    return pixels if parameters.nr_channels == 3 else pixels[..., 0], mask, {"boxes": boxes}


def _scene(parameters: ShapesParameters, positive: bool, layout, kinds) -> tuple[np.ndarray, list[np.ndarray]]:
    """Grey values (H, W, C) of one scene, drawn from back to front, and the visible pixels of each target in it."""
    size, background = (parameters.img_height, parameters.img_width), _colour(parameters)
    image, targets = np.broadcast_to(background, (*size, parameters.nr_channels)), []
    places, others = _layout(parameters, layout), other_kinds(parameters)
    which, forced = kinds.integers(len(others), size=len(places)), kinds.integers(len(places))
    is_target = positive & (
        (kinds.uniform(size=len(places)) < 1 / (len(others) + 1)) | (np.arange(len(places)) == forced)
    )
    for index, (y, x, radius) in enumerate(places):
        turn, colour = layout.uniform(0, 2 * np.pi) * parameters.rotation, _contrasting(layout, background)
        kind, layers = others[which[index]], []
        if is_target[index]:
            kind = parameters.polygon
            colour = colour if parameters.poly_colour is None else _colour(parameters, "poly_colour")
            if parameters.outside_polygon:
                around = star_coverage(parameters.outside_polygon, (y, x), radius, turn, *size)
                layers, radius = [(around, _contrasting(kinds, background, colour))], radius * inner_share(parameters)
        layers = [*layers, (star_coverage(kind, (y, x), radius, turn, *size), colour)]
        for coverage, paint in layers:
            image = image * (1 - coverage[..., None]) + coverage[..., None] * paint
            targets = [target & (coverage < 1) for target in targets]
        if is_target[index]:
            targets.append(layers[-1][0] > 0)
    return image, [target for target in targets if target.any()]


def voc_xml(parameters: ShapesParameters, filename: str, boxes: list[list[int]]) -> str:
    """Pascal VOC annotation: target, whether and how often it is there, and its boxes, in pixels counted from 1."""
    root = ET.Element("annotation")

    def add(parent, **texts):
        for tag, text in texts.items():
            ET.SubElement(parent, tag).text = str(text)

    add(root, filename=filename)
    add(
        ET.SubElement(root, "size"),
        width=parameters.img_width,
        height=parameters.img_height,
        depth=parameters.nr_channels,
    )
    add(ET.SubElement(root, "polygon"), p=parameters.polygon[0], q=parameters.polygon[1])
    add(root, exists=int(bool(boxes)), count=len(boxes))
    for x, y, w, h in boxes:
        instance = ET.SubElement(root, "object")
        add(instance, name="target")
        add(ET.SubElement(instance, "bndbox"), xmin=x + 1, ymin=y + 1, xmax=x + w, ymax=y + h)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
