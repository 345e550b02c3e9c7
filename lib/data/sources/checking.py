"""Reading every image once, in parallel, and finding what is wrong before a model sees it."""

import json
import math
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm.auto import tqdm

from lib.data.manifest import SPLITS
from lib.data.pixels import MaskValues, pixel_hash, resized_mask
from lib.data.sources.common import Entry, Problem
from lib.data.sources.decoding import BadImage, cut, decode, decode_mask, fundus_circle, resized
from lib.writing import write_json, write_png

CACHE = ".manifest_cache.json"
SAVE_SECONDS = 20


@dataclass(frozen=True)
class Preparation:
    """How files become the manifest's images: cropped to the fundus circle, resized to `size`; radius of points.

    mask_values: as in `read_mask`; where it is given, masks are written anew, as 0 and 255.
    """

    size: int | None = None
    crop: bool = False
    mask_values: MaskValues | None = None
    radius: float = 8.0

    @property
    def folder(self) -> str:
        return "prepared/" + "_".join(["crop"] * self.crop + [str(self.size or "full")])

    def key(self, entry: Entry) -> str:
        return json.dumps([self.folder, self.mask_values, self.radius, entry.image, entry.masks, entry.points])


def inspect(root: Path, entry: Entry, how: Preparation) -> tuple[dict | None, list[str]]:
    """Decode an entry's image and masks once, write what must be prepared; (result, what is wrong).

    The result holds image and mask (paths), width, height and sha256 of the prepared image, mask_sha256, and the file's
    own size.
    """
    if outside := [path for path in (entry.image, *entry.masks) if leaves_root(path)]:
        return None, [f"{path}: leaves the data set's root" for path in outside]
    wrong, regions, pixels = [], [], None
    try:
        pixels = decode(root / entry.image)
    except BadImage as error:
        wrong.append(str(error))
    for path in entry.masks:
        try:
            regions.append(decode_mask(root / path, how.mask_values))
        except BadImage as error:
            wrong.append(f"mask {path}: {error}")
            continue
        if pixels is not None and regions[-1].shape != pixels.shape[:2]:
            wrong.append(f"mask {path}: size {_size(regions[-1])}, the image has {_size(pixels)}")
    if pixels is None or wrong:
        return None, wrong
    height, width = pixels.shape[:2]
    if far := [point for point in entry.points if not (0 <= point[0] < width and 0 <= point[1] < height)]:
        return None, [f"point {point} outside the image of {width} x {height} pixels" for point in far]
    if entry.points:
        regions.append(discs(entry.points, how.radius, height, width))
    result = {"source": [width, height], "image": entry.image, "mask": entry.masks[0] if entry.masks else ""}
    region = np.logical_or.reduce(regions) if regions else None
    if how.crop:
        try:
            window = fundus_circle(pixels).window
        except BadImage as error:
            return None, [str(error)]
        pixels, region = cut(pixels, window), None if region is None else cut(region, window)
    if how.size:
        pixels = resized(pixels, how.size)
        region = None if region is None else resized_mask(region, (how.size, how.size))
    if how.crop or how.size or Path(entry.image).suffix.lower() in (".dcm", ".dicom"):
        result["image"] = _prepared(how, entry.image)
        write_png(root / result["image"], pixels)
    if region is not None and (
        result["image"] != entry.image or len(entry.masks) != 1 or entry.points or how.mask_values
    ):
        made_of = zlib.crc32(how.key(entry).encode())  # other lesions or points: another file
        result["mask"] = f"{how.folder}/masks/{entry.image}.{made_of:08x}.png" if region.any() else ""
        if result["mask"]:
            write_png(root / result["mask"], region)
    result["mask_sha256"] = pixel_hash(region) if result["mask"] else ""
    return result | {"width": pixels.shape[1], "height": pixels.shape[0], "sha256": pixel_hash(pixels)}, []


def leaves_root(path: str) -> bool:
    """Whether a path of a table is absolute, climbs, or is written for another system."""
    return not path or path.startswith("/") or "\\" in path or ".." in PurePosixPath(path).parts


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def _prepared(how: Preparation, path: str) -> str:
    return f"{how.folder}/{path}" if path.endswith(".png") else f"{how.folder}/{path}.png"


def discs(points: list[list[float]], radius: float, height: int, width: int) -> np.ndarray:
    """Boolean (height, width): True where a pixel's centre is at most `radius` from a point."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.logical_or.reduce([(x - px) ** 2 + (y - py) ** 2 <= radius**2 for px, py in points])


def scan(
    root: Path, entries: list[Entry], how: Preparation, workers: int | None = None, progress: bool = True
) -> list[tuple[dict | None, list[str]]]:
    """`inspect` of every entry, in threads (decoding and hashing release the interpreter's lock).

    What was read is remembered in the root by file size and time, so that an interrupted scan goes on where it was.
    """
    store, keys = _read_cache(root), [how.key(entry) for entry in entries]
    stamps = [_stamps(root, entry) for entry in entries]
    found: list = [None] * len(entries)
    for i, (key, stamp) in enumerate(zip(keys, stamps, strict=True)):
        known = store.get(key)
        if known and stamp == known["files"] and all(_there(root, known["result"][k]) for k in ("image", "mask")):
            found[i] = (known["result"], [])
    left, saved = [i for i, result in enumerate(found) if result is None], time.monotonic()
    pool = ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1))
    try:
        jobs = {pool.submit(inspect, root, entries[i], how): i for i in left}
        bar = {"total": len(entries), "initial": len(entries) - len(left), "unit": "image", "disable": not progress}
        for job in tqdm(as_completed(jobs), desc="reading images", **bar):
            i = jobs[job]
            found[i] = job.result()
            if found[i][0] is not None:
                store[keys[i]] = {"files": stamps[i], "result": found[i][0]}
            if time.monotonic() - saved > SAVE_SECONDS:
                write_json(root / CACHE, store)
                saved = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)
        if left:
            write_json(root / CACHE, store)
    return found


def _read_cache(root: Path) -> dict:
    try:
        return json.loads((root / CACHE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _stamps(root: Path, entry: Entry) -> list[list[int]] | None:
    """Size and time of an entry's files; None where one is not there."""
    try:
        stats = [(root / path).stat() for path in (entry.image, *entry.masks)]
    except (OSError, ValueError):
        return None
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


def _there(root: Path, path: str) -> bool:
    return not path or (root / path).is_file()


def place_boxes(entry: Entry, source: tuple[int, int], width: int, height: int) -> list[list[float]]:
    """An entry's boxes in pixels of the prepared image, to 1/100 px; ValueError where one is outside the image."""
    frame_width, frame_height = entry.frame or source
    placed = []
    for box in entry.boxes:
        x, y, w, h = box
        inside = min(x, y) >= 0 and min(w, h) > 0 and x + w <= frame_width + 0.01 and y + h <= frame_height + 0.01
        if not (inside and all(map(math.isfinite, box))):
            frame = f"{frame_width} x {frame_height} pixels"
            raise ValueError(f"box {box} outside the image, expected [x, y, width, height] within {frame}")
        (x, w), (y, h) = _scaled(x, w, width / frame_width, width), _scaled(y, h, height / frame_height, height)
        placed.append([x, y, w, h])
    return placed


def _scaled(start: float, extent: float, scale: float, limit: int) -> tuple[float, float]:
    low, high = round(start * scale, 2), min(round((start + extent) * scale, 2), limit)
    extent = round(high - low, 2)
    while low + extent > limit:  # the rounding of floats
        extent = round(extent - 0.01, 2)
    return low, extent


def cross_check(entries: list[Entry], found: list[tuple[dict | None, list[str]]]) -> list[Problem]:
    """Images listed or stored twice, and patients in two splits; rows of test stay, then of val, then the first."""
    problems, seen = [], {}
    for i in sorted(range(len(entries)), key=lambda i: (-SPLITS.index(entries[i].split), i)):
        entry, result = entries[i], found[i][0]
        keys: list[tuple[str, str, Callable[[Entry], bool]]] = [
            ("image listed twice", entry.image, lambda other: True),
            ("duplicate image: the same pixels", result["sha256"] if result else "", lambda other: True),
            (f"patient {entry.patient} in two splits", entry.patient, lambda o, split=entry.split: o.split != split),
        ]
        for what, value, wrong in keys:
            kind = what.split()[0]
            other = seen.setdefault((kind, value), entry) if value else entry
            if other is not entry and wrong(other) and not (kind == "duplicate" and other.image == entry.image):
                label = "" if other.label == entry.label or kind == "patient" else f", with label {other.label}"
                where = f"{other.image} of {other.split} ({other.row}){label}"
                problems.append(Problem(entry.image, entry.row, f"{what}, in {entry.split} and as {where}", i))
    return problems
