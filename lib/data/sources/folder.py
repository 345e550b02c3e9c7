"""Data of one's own: a folder per class, optionally with masks, or a CSV with the manifest's columns."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import NonNegativeInt

from lib.data.manifest import SPLITS, read_boxes
from lib.data.sources.common import Entry, Listing, find_image, read_table, whole_number
from lib.data.sources.own import kept_card

RESERVED = {"masks", "prepared"}
TABLE = "data.csv"


def read(
    root: Path,
    target: str | None = None,
    classes: Sequence[str] | None = None,
    csv: str | None = None,
    patient: str | None = None,
    shares: Sequence[float] = (0.7, 0.15, 0.15),
    seed: NonNegativeInt = 0,
) -> Listing:
    """Entries of ROOT/CLASS/*, of ROOT/{train,val,test}/CLASS/*, or of a CSV (data.csv where it is there, or `csv`).

    Masks lie in masks/ under the image's own path, of any suffix. The CSV needs image and label (a class's name or
    number); split, patient, mask, boxes, width, height and sha256 may be there. classes: the names in order; None: as
    the card that is there has them, new ones sorted behind. patient: regular expression whose first group, found in the
    image's path, is the patient. Without splits, `shares` of train, val and test are drawn by patient, else by image,
    within each class, from `seed`.
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares: expected three numbers of sum 1 for {', '.join(SPLITS)}, got {list(shares)}")
    if csv in ("manifest.csv", "dataset.csv"):
        raise ValueError(f"csv: expected another name than those of the files written, e.g. {TABLE}, got {csv!r}")
    try:
        pattern = re.compile(patient or "")
    except re.error as error:
        raise ValueError(f"patient: expected a regular expression, got {patient!r}: {error}") from None
    table = csv or (TABLE if (root / TABLE).is_file() else None)
    listing = _from_table(root, table, classes) if table else _from_folders(root, classes)
    if len(listing.classes) < 2:
        raise ValueError(f"{root}: expected at least two classes, got {listing.classes}")
    for entry in listing.entries if patient else []:
        found = pattern.search(entry.image)
        if not found or not found.groups() or found[1] is None:
            raise ValueError(
                f"patient: expected an expression with a group found in every path, got none in {entry.image}"
            )
        entry.patient = found[1]
    if not any(entry.split for entry in listing.entries):
        draw_split(listing.entries, shares, seed)
    return listing


def _from_folders(root: Path, classes: Sequence[str] | None) -> Listing:
    split_folders = [name for name in SPLITS if (root / name).is_dir()]
    tops = [(root / name, name) for name in split_folders] or [(root, "")]
    folders = [
        (folder, split)
        for top, split in tops
        for folder in sorted(top.iterdir())
        if folder.is_dir() and folder.name not in RESERVED and not folder.name.startswith(".")
    ]
    names = list(classes or _in_order(root, {folder.name for folder, _ in folders}))
    listing = Listing(classes=names)
    for folder, split in folders:
        label = names.index(folder.name) if folder.name in names else None
        wrong = [] if label is not None else [f"unknown label: {folder.name!r}, expected one of {', '.join(names)}"]
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
            image = path.relative_to(root).as_posix()
            mask = find_image(root, "masks", image)
            entry = Entry(image, label, split, image, masks=(mask,) if (root / mask).is_file() else ())
            listing.add(entry, *wrong)
    return listing


def _from_table(root: Path, csv: str, classes: Sequence[str] | None) -> Listing:
    table = read_table(root, csv, ["image", "label"])
    names = list(classes or _in_order(root, set(table["label"]) - {""}))
    if classes is None and all(name.isdecimal() for name in names):
        names = [str(number) for number in range(max(map(int, names), default=-1) + 1)]
    listing = Listing(classes=names)
    for row in table.itertuples():
        wrong = []
        label = names.index(row.label) if row.label in names else whole_number(row.label, range(len(names)))
        if label is None:
            wrong.append(f"unknown label: {row.label!r}, expected one of {', '.join(names)}")
        split = getattr(row, "split", "")
        if split and split not in SPLITS:
            wrong.append(f"split: expected {', '.join(SPLITS)}, got {split!r}")
        elif not split and "split" in table and (table["split"] != "").any():
            wrong.append("split: empty, but other rows have one")
        try:
            boxes = read_boxes(getattr(row, "boxes", ""))
        except ValueError:
            boxes = []
            wrong.append(f"boxes: expected a JSON list of [x, y, width, height], got {row.boxes!r}")
        mask = getattr(row, "mask", "")
        entry = Entry(row.image, label, split, row.row, getattr(row, "patient", ""), (mask,) if mask else (), boxes)
        entry.expected = {key: getattr(row, key) for key in ("width", "height", "sha256") if getattr(row, key, "")}
        listing.add(entry, *wrong)
    return listing


def _in_order(root: Path, names: set[str]) -> list[str]:
    kept = kept_card(root).get("classes")
    known = [name for name in kept if name in names] if isinstance(kept, list) else []
    return known + sorted(names - set(known))


def draw_split(entries: list[Entry], shares: Sequence[float], seed: int) -> None:
    """Give every entry a split: patients (without one: images) of each class are shuffled and shared out.

    A patient's class is its highest label. The same entries and seed give the same split, whatever their order.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(f"patient {entry.patient}" if entry.patient else f"image {entry.image}", []).append(entry)
    labels = {key: max(-1 if e.label is None else e.label for e in members) for key, members in groups.items()}
    for label in sorted(set(labels.values())):
        keys = sorted(key for key in groups if labels[key] == label)
        keys = [keys[i] for i in np.random.default_rng([seed, label + 1]).permutation(len(keys))]
        ends = np.rint(np.cumsum(shares) * len(keys)).astype(int)
        for i, key in enumerate(keys):
            for entry in groups[key]:
                entry.split = SPLITS[int(np.searchsorted(ends, i, side="right"))]
