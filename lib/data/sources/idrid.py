"""IDRiD, Indian Diabetic Retinopathy Image Dataset: 81 photographs with lesion masks, for evaluation alone."""

import re
from pathlib import Path

from lib.data.sources.common import Entry, Listing, find_file

LESIONS = {"MA": "Microaneurysms", "HE": "Haemorrhages", "EX": "Hard Exudates", "SE": "Soft Exudates"}


def read(root: Path, target: str | None = None, lesions: list[str] | None = None, crop: bool = True) -> Listing:
    """Entries of all photographs, in `test` and with label 1 (retinopathy), with the masks of their lesions.

    lesions: which kinds join to the mask, MA, HE, EX, SE; None: all four. crop: to the fundus circle, 512 px.
    An image without any of the lesions asked for has no mask.
    """
    kinds = list(LESIONS) if lesions is None else list(lesions)
    if not kinds or set(kinds) - set(LESIONS):
        raise ValueError(f"lesions: expected some of {', '.join(LESIONS)}, got {lesions!r}")
    places = [place + "1. Original Images" for place in ("", "A. Segmentation/", "A.%20Segmentation/")]
    images = find_file(root, "original images", places)
    truths = Path(images).with_name("2. All Segmentation Groundtruths")
    listing = Listing(crop=crop, size=512 if crop else None)
    files = sorted(path for path in (root / images).rglob("*") if re.fullmatch(r"IDRiD_\d+\.jpe?g", path.name, re.I))
    masks = {path.stem: path for path in (root / truths).rglob("*") if path.suffix.lower() in (".tif", ".tiff", ".png")}
    if not masks:
        raise FileNotFoundError(f"{root / truths}: no masks; expected IDRiD_01_MA.tif and so on")
    for path in files:
        found = tuple(
            masks[f"{path.stem}_{kind}"].relative_to(root).as_posix()
            for kind in kinds
            if f"{path.stem}_{kind}" in masks
        )
        image = path.relative_to(root).as_posix()
        listing.add(Entry(image, 1, "test", image, patient=path.stem, masks=found))
    return listing
