"""Data of one's own: a folder per class, optionally with masks, or a CSV with the manifest's columns; and its card."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from lib.data.manifest import COLUMNS, SPLITS, Description, load_description, parse_boxes
from lib.data.pixels import read_image
from lib.writing import write_text
from prepare.tables import blame, find_image, read_table, whole_numbers

TABLE, CARD = "data.csv", "dataset.yaml"
SHARES = (0.7, 0.15, 0.15)  # of train, val, test


def folder(
    root: Path, classes: list[str] = (), patient: re.Pattern | None = None, shares: list[float] = SHARES, seed: int = 0
) -> pd.DataFrame:
    """Rows of ROOT/data.csv where it is there, or else of ROOT/CLASS/* or ROOT/{train,val,test}/CLASS/*.

    Masks lie in masks/ under the image's own path, of any suffix. The CSV needs image and label (a class's name or
    number). classes: the names in order, else as the card has them, new ones sorted behind. patient: expression whose
    first group, found in the image's path, is the patient. Without splits they are drawn, from `seed`."""
    table = (root / TABLE).is_file()
    rows = _table(root) if table else _folders(root)
    found = sorted(set(rows["label"]) - {""})
    kept = kept_card(root).get("classes", [])
    names = list(classes or sorted(found, key=lambda name: kept.index(name) if name in kept else len(kept)))
    if table and not classes and all(map(str.isdecimal, names)):
        names = [str(number) for number in range(max(map(int, names), default=-1) + 1)]
    if len(names) < 2:
        raise ValueError(f"{root}: expected at least two classes, got {names}")
    number = whole_numbers(rows["label"], len(names)) if table else -1
    number = rows["label"].map({name: i for i, name in enumerate(names)}).fillna(number).astype(int)
    blame(rows, number < 0, lambda row: f"unknown label: {row.label!r}, expected one of {', '.join(names)}")
    rows["label"] = number
    if patient:
        rows["patient"] = rows["image"].str.extract(patient).iloc[:, 0].fillna("")
        blame(rows, rows["patient"] == "", lambda row: f"patient: {patient.pattern} is not found in the path")
    if (rows["split"] == "").all():
        rows["split"] = draw_split(rows, shares, seed)
    rows.attrs["classes"] = names
    return rows


def _folders(root: Path) -> pd.DataFrame:
    """A row for each file below a class's folder, whose name is its label."""
    rows = []
    for split in [split for split in SPLITS if (root / split).is_dir()] or [""]:
        top = root / split
        for path in sorted(path for folder in top.iterdir() if folder.is_dir() for path in folder.rglob("*")):
            name, *below = path.relative_to(top).parts
            if name not in ("masks", "prepared") and "." not in [part[0] for part in (name, *below)] and path.is_file():
                image = path.relative_to(root).as_posix()
                mask = find_image(root, image, "masks")
                rows.append([image, name, split, "", image, [], [mask] if (root / mask).is_file() else []])
    return pd.DataFrame(rows, columns=["image", "label", "split", "patient", "row", "problem", "masks"])


def _table(root: Path) -> pd.DataFrame:
    rows = read_table(root, TABLE, ["image", "label"]).reindex(columns=["row", "problem", *COLUMNS], fill_value="")
    unknown = ~rows["split"].isin(SPLITS if rows["split"].any() else [""])
    blame(rows, unknown, lambda row: f"split: expected {', '.join(SPLITS)}, got {row.split!r}")
    boxes = []
    for row in rows.itertuples():
        try:
            boxes.append(parse_boxes(row.boxes))
        except ValueError as error:
            boxes.append([])
            row.problem.append(f"boxes: {error}, got {row.boxes!r}")
    claims = rows[["width", "height", "sha256"]].to_dict("records")
    return rows.assign(boxes=boxes, claims=claims, masks=[[mask] if mask else [] for mask in rows["mask"]])


def draw_split(rows: pd.DataFrame, shares: list[float], seed: int) -> pd.Series:
    """A split for every row, whatever their order: patients (without one: images) of each class are shared out; a
    patient's class is its highest label."""
    if len(shares) != 3 or min(shares) < 0 or not abs(sum(shares) - 1) < 1e-6:
        raise ValueError(f"shares: expected three numbers of sum 1 for {', '.join(SPLITS)}, got {list(shares)}")
    group = ("patient " + rows["patient"]).where(rows["patient"] != "", "image " + rows["image"])
    labels, split = rows["label"].groupby(group).max(), {}
    for label, keys in labels.groupby(labels).groups.items():
        keys = keys[np.random.default_rng([seed, label + 1]).permutation(len(keys))]
        ends = np.rint(np.cumsum(shares) * len(keys)).astype(int)
        split |= {key: SPLITS[np.searchsorted(ends, i, side="right")] for i, key in enumerate(keys)}
    return group.map(split)


def own_card(root: Path, frame: pd.DataFrame, classes: list[str], counts: dict[str, int]) -> tuple[Path, Description]:
    """Write or renew ROOT/dataset.yaml; its path and content. Classes, channels, sizes, counts, mean and std (of 500
    training images) are measured; what else stands in a card stays (the patch while the size of the images does)."""
    kept, measured, colour = kept_card(root), [], False
    rows = frame[frame["split"] == "train"] if counts["train"] else frame
    for i in np.unique(np.linspace(0, len(rows) - 1, min(500, len(rows))).astype(int)):
        pixels = np.atleast_3d(read_image(root / rows["image"].iloc[i]) / 255)
        measured.append([np.broadcast_to(value, 3) for value in (pixels.mean((0, 1)), (pixels**2).mean((0, 1)))])
        colour |= pixels.shape[2] == 3
    mean, square = np.mean(measured, axis=0)[:, : 3 if colour else 1]
    size = [int(rows[key].median()) for key in ("height", "width")]
    if kept.get("image_size") != size:
        kept.pop("patch", None)
    card = {
        "name": root.name, "title": root.name, "synthetic": False, "homepage": "", "licence": "", "citation": "",
        "modality": "image", "patch": max(2, round(33 / 512 * min(size))), "root": ".", "source": "folder",
    } | kept | {
        "classes": classes, "image_size": size, "channels": len(mean), "mean": mean.round(4).tolist(),
        "std": np.sqrt(np.maximum(square - mean**2, 1e-8)).round(4).tolist(), "counts": counts,
        "annotation": "mask" if frame["mask"].any() else "box" if frame["boxes"].any() else "none",
    }  # fmt: skip
    write_text(root / CARD, yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=120))
    return root / CARD, load_description(root / CARD)


def kept_card(root: Path) -> dict:
    """What stands in the card that is there already; nothing where none is."""
    path = root / CARD
    return load_description(path).model_dump(mode="json", exclude_unset=True) if path.is_file() else {}
