"""RSNA Pneumonia Detection Challenge 2018, with the splits of SoftCAM (arXiv 2505.17748); PNG or the original DICOM."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Literal

from lib.data.manifest import SPLITS
from lib.data.sources.common import (
    Entry,
    Listing,
    Problem,
    find_file,
    find_image,
    image_folder,
    read_table,
    whole_number,
)

SIDE = 1024  # the boxes of the split CSVs are in pixels of the original images
FOLDERS = ["png_images", "images", "stage_2_train_images", "dicom", "."]
COLUMNS = ["x", "y", "width", "height"]


def read(
    root: Path,
    target: str = "bin_target",
    images: str | None = None,
    boxes: str | None = None,
    boxes_frame: Literal[512, 1024] | None = None,
) -> Listing:
    """Entries of {train,val,test}.csv, the boxes of several rows of an image joined; label 1 is pneumonia.

    boxes: a CSV patientId, x, y, width, height, Target with all boxes, which then count alone; boxes_frame: the side
    of the image in whose pixels it is written, 512 or 1024 (None: the one that agrees with the split CSVs' boxes).
    A positive image without a box, a box of a split CSV that `boxes` does not have, and an image of label 0 in several
    rows are problems.
    """
    rows, detailed = [], _boxes(root, boxes) if boxes else None
    for split in SPLITS:
        places = [f"{place}{split}.csv" for place in ("", "csv_files/RSNA/", "RSNA/")]
        table = read_table(root, find_file(root, f"CSV of {split}", places), ["filename", *COLUMNS, target])
        folder = image_folder(root, images, FOLDERS, table["filename"])
        rows += [(row, split, folder) for row in table.itertuples()]
    frame = boxes_frame or (_frame(rows, detailed) if detailed else SIDE)
    listing, entries, whole = Listing(), {}, frame if detailed is not None else SIDE
    for row, split, folder in rows:
        wrong, patient = [], Path(row.filename).stem
        label = whole_number(getattr(row, target), range(2))
        if label is None:
            wrong.append(f"unknown label: {target} {getattr(row, target)!r}, expected 0 or 1")
        box = _box(row)
        if box is None:
            wrong.append(f"box: expected four numbers or none, got {[getattr(row, c) for c in COLUMNS]}")
        others = detailed.get(patient, []) if detailed is not None else []
        if box and detailed is not None and not any(_same(box, other, SIDE / frame) for other in others):
            wrong.append(f"box {box} of the {SIDE} px image is not in {boxes} ({frame} px): {others}")
        known = entries.get((split, row.filename))
        if known is not None and (entry := listing.entries[known]).label == label == 1:
            listing.problems += [Problem(entry.image, row.row, what, known) for what in wrong]
            if box and detailed is None and box not in entry.boxes:
                entry.boxes.append(box)
            continue
        image = find_image(root, folder, row.filename)
        entry = Entry(image, label, split, row.row, patient, boxes=others, frame=(whole, whole))
        if detailed is None:
            entry.boxes = [box] if box else []
        if label is not None and bool(label) != bool(entry.boxes):
            wrong.append(f"label {label} with {len(entry.boxes)} boxes")
        entries[split, row.filename] = len(listing.entries)
        listing.add(entry, *wrong)
    return listing


def _box(row) -> list[float] | None:
    """x, y, width, height; [] where the cells are empty, None where they are no four numbers."""
    cells = [getattr(row, column).strip() for column in COLUMNS]
    if not any(cells):
        return []
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


def _boxes(root: Path, path: str) -> dict[str, list[list[float]]]:
    found = defaultdict(list)
    for row in read_table(root, path, ["patientId", *COLUMNS]).itertuples():
        box = _box(row)
        if box is None:
            raise ValueError(f"{root / row.row}: expected four numbers x, y, width, height")
        if box and box not in found[row.patientId]:
            found[row.patientId].append(box)
    return dict(found)


def _same(box: list[float], other: list[float], scale: float) -> bool:
    return all(abs(a - scale * b) <= 2 for a, b in zip(box, other, strict=True))


def _frame(rows: list, detailed: dict[str, list[list[float]]]) -> int:
    """512 or 1024, whichever more boxes of the split CSVs agree with; without any, by how far the boxes reach."""

    def agreeing(side: int) -> int:
        listed = ((_box(row), detailed.get(Path(row.filename).stem, [])) for row, _, _ in rows)
        return sum(any(_same(box, other, SIDE / side) for other in others) for box, others in listed if box)

    small, large = agreeing(512), agreeing(SIDE)
    if small != large:
        return 512 if small > large else SIDE
    reach = max((max(x + w, y + h) for boxes in detailed.values() for x, y, w, h in boxes), default=0)
    return 512 if reach <= 512 else SIDE
