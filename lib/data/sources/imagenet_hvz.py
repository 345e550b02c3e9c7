"""ImagenetHVZ: horses and zebras of ImageNet with their split, as in Rio-Torto et al. 2020 (code name xML)."""

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from lib.data.sources.common import Entry, Listing, find_image, published_split, read_table

CLASSES = ("horse", "zebra")


def read(root: Path, target: str | None = None, annotations: str = "annotations") -> Listing:
    """Entries of data.csv (imageID, label) in the published split: test 14.9 %, then 20 % of the rest validation.

    Masks are masks/LABEL/ID_mask.JPEG; boxes those of Pascal VOC files ID.xml in `annotations`, its folders LABEL, or
    ImageNet's n02391049 and so on. The split is drawn over all rows of data.csv, whatever is dropped later.
    """
    table = read_table(root, "data.csv", ["imageID", "label"])
    split, known = np.full(len(table), "train", dtype=object), table["label"].isin(CLASSES).to_numpy()
    try:
        split[known] = published_split(table["label"].to_numpy()[known], 0.149, 0.2)
    except ValueError as error:
        raise ValueError(f"{root / 'data.csv'}: {len(table)} rows cannot be split: {error}") from None
    listing = Listing()
    for row, part in zip(table.itertuples(), split, strict=True):
        wrong, stem = [], Path(row.imageID).stem
        label = CLASSES.index(row.label) if row.label in CLASSES else None
        if label is None:
            wrong.append(f"unknown label: {row.label!r}, expected horse or zebra")
        entry = Entry(find_image(root, f"images/{row.label}", row.imageID), label, part, row.row)
        if (root / (mask := f"masks/{row.label}/{stem}_mask.JPEG")).is_file():
            entry.masks = (mask,)
        folders = (row.label, stem.split("_")[0], ".")
        for file in [root / annotations / folder / f"{stem}.xml" for folder in folders]:
            if file.is_file():
                try:
                    entry.boxes, entry.frame = voc_boxes(file)
                except (ET.ParseError, AttributeError, TypeError, ValueError) as error:
                    wrong.append(f"{file.relative_to(root).as_posix()}: not a Pascal VOC annotation: {error}")
                break
        listing.add(entry, *wrong)
    return listing


def voc_boxes(file: Path) -> tuple[list[list[float]], tuple[int, int] | None]:
    """Boxes [x, y, width, height] of a Pascal VOC file, whose pixels count from 1, both ends in; and its image's size.

    ImageNet's files also have 0 as the first pixel: such an edge is the image's.
    """
    tree, boxes = ET.parse(file).getroot(), []
    for box in tree.iter("bndbox"):
        left, top, right, bottom = (float(box.find(tag).text) for tag in ("xmin", "ymin", "xmax", "ymax"))
        if not all(map(math.isfinite, (left, top, right, bottom))):
            raise ValueError(f"box {[left, top, right, bottom]}")
        left, top = (0.0 if edge == 0 else edge - 1 for edge in (left, top))
        boxes.append([left, top, right - left, bottom - top])
    size = tree.find("size")
    frame = (int(size.find("width").text), int(size.find("height").text)) if size is not None else None
    return boxes, frame if frame and min(frame) > 0 else None
