"""Retinal OCT (Kermany et al. 2018, "OCT2017"), with the splits of SoftCAM (arXiv 2505.17748)."""

from collections import defaultdict
from pathlib import Path

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

CLASSES = {"drusen": 2, "level": 4}
FOLDERS = ["images", "OCT_preprocessed_resized_3_channels_496", "OCT2017", "."]


def read(root: Path, target: str = "drusen", images: str | None = None, points: str | None = None) -> Listing:
    """Entries of {train,val,test}.csv; target: drusen (0, 1) or level (0 NORMAL, 1 DRUSEN, 2 DME, 3 CNV).

    points: a CSV filename, x, y of drusen, a row per point, in pixels of the image file; discs around them (radius 8
    pixels, or what `radius` of `build_manifest` says) are the mask.
    """
    listing, marked = Listing(), _points(root, points) if points else {}
    places = ["multiclass/", "csv_files/Retinal_OCT/multiclass/", "Retinal_OCT/multiclass/"]
    places = ["", "csv_files/Retinal_OCT/", "Retinal_OCT/"] if target == "drusen" else places
    for split in SPLITS:
        file = find_file(root, f"CSV of {split}", [f"{place}{split}.csv" for place in places])
        table = read_table(root, file, ["patient_id", "filename", target])
        folder = image_folder(root, images, FOLDERS, table["filename"])
        for row in table.itertuples():
            wrong, label = [], whole_number(getattr(row, target), range(CLASSES[target]))
            if label is None:
                most = CLASSES[target] - 1
                wrong.append(f"unknown label: {target} {getattr(row, target)!r}, expected a number from 0 to {most}")
            if getattr(row, "type", split).lower() != split:
                wrong.append(f"type {row.type!r} in the CSV of {split}")
            entry = Entry(find_image(root, folder, row.filename), label, split, row.row, row.patient_id)
            listing.add(entry, *wrong)
            entry.points = marked.pop(row.filename, []) + marked.pop(Path(row.filename).name, [])
    listing.problems += [
        Problem(name, points, "points of an image that no split lists", None) for name in marked if target == "drusen"
    ]
    return listing


def _points(root: Path, path: str) -> dict[str, list[list[float]]]:
    found = defaultdict(list)
    for row in read_table(root, path, ["filename", "x", "y"]).itertuples():
        try:
            found[row.filename].append([float(row.x), float(row.y)])
        except ValueError:
            raise ValueError(f"{root / row.row}: expected numbers x, y, got {row.x!r}, {row.y!r}") from None
    return dict(found)
