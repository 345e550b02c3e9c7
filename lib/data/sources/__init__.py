"""Published data sets, and data of one's own: from the files as their owners publish them to a checked manifest.

Nothing is downloaded. docs/data.md says where to get each data set and how to lay it out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pandas as pd
from pydantic import ConfigDict, PositiveFloat, TypeAdapter, ValidationError

from lib.data.manifest import (
    COLUMNS,
    MANIFESTS,
    SPLITS,
    Description,
    check_manifest,
    data_root,
    how_to_get,
    load_description,
    load_manifest,
    manifest_path,
    write_manifest,
)
from lib.data.pixels import MaskValues
from lib.data.sources import folder, idrid, imagenet_hvz, kaggle_dr, nih_nci, oct2017, rsna
from lib.data.sources.checking import Preparation, cross_check, leaves_root, place_boxes, scan
from lib.data.sources.common import BadData, Entry, Listing, Problem
from lib.data.sources.own import kept_card, own_card
from lib.writing import write_json, write_text

__all__ = ["SOURCES", "BadData", "build_manifest", "ensure_manifest"]

SOURCES = {
    "kaggle_dr": kaggle_dr,
    "oct2017": oct2017,
    "rsna": rsna,
    "idrid": idrid,
    "imagenet_hvz": imagenet_hvz,
    "nih_nci": nih_nci,
    "folder": folder,
}
OF_ALL = {"radius": PositiveFloat, "mask_values": MaskValues}  # options of every source


def build_manifest(
    name: str | Path,
    root: str | Path | None = None,
    target: str | None = None,
    *,
    size: int | None = None,
    drop: bool = False,
    partial: bool = False,
    workers: int | None = None,
    progress: bool = True,
    **options,
) -> pd.DataFrame:
    """Read a data set from its own files, check every image, and write its manifest into the root; its rows.

    name: a card of data_manifests/ with a `source`, the path of such a card, or `folder` (which also writes a card,
    ROOT/dataset.yaml). target: which label, where a data set has several. size: side of the square images that are
    written to ROOT/prepared, boxes and masks along; None: the files stay as they are, except DICOM and raw fundus.
    options: those of the data set's `read`, over the card's own; `radius` of the discs around points; `mask_values` of
    `Description`, over the card's. An interrupted build goes on where it was. attrs hold `card` as well: what a recipe
    names as its dataset.
    Raises BadData with every problem (file, row, what) and writes nothing, unless `drop` (rows with a problem are left
    out and listed in dropped.csv beside the manifest); other counts than the card's are a problem unless `partial`.
    """
    if size is not None and size < 1:
        raise ValueError(f"size: expected a number of pixels from 1, got {size!r}")
    card_name = name if name == "folder" else _card_of(name, target)
    card = None if card_name == "folder" else load_description(card_name)
    if card is None and root is None:
        raise ValueError("root: expected the folder of your images, got None")
    base = Path(root).resolve() if card is None else data_root(card_name, root)
    if not base.is_dir():
        way = f"; {how_to_get(card_name, root)}" if card else ""
        raise FileNotFoundError(f"data set {str(name)!r}: no folder {base}{way}")
    source, settings = SOURCES[card.source if card else "folder"], {**(card.options if card else {}), **options}
    if rule := card.mask_values if card else kept_card(base).get("mask_values"):
        settings.setdefault("mask_values", rule)
    _check_options(source.read, settings)
    if source is folder and card:
        settings.setdefault("classes", card.classes)
    listing = source.read(base, **_target(card), **{key: settings[key] for key in settings if key not in OF_ALL})
    how = Preparation(size or listing.size, listing.crop, **{key: settings[key] for key in OF_ALL if key in settings})
    found = scan(base, listing.entries, how, workers, progress)
    rows, problems = _rows(listing, found)
    problems += _count_problems(card, listing, partial)
    bad = {problem.entry for problem in problems}
    if problems and (not drop or None in bad):
        raise BadData(f"{base}: {len(problems)} problem(s), no manifest written", problems)
    frame = pd.DataFrame([row for i, row in enumerate(rows) if i not in bad], columns=COLUMNS)
    if frame.empty:
        raise BadData(f"{base}: no image left, no manifest written", problems)
    counts = {split: int((frame["split"] == split).sum()) for split in SPLITS}
    if card is None:
        card_name, card = own_card(base, frame, listing.classes, counts)
    path = manifest_path(card_name, base)
    if path.parent != base or not path.name.startswith("manifest"):
        raise ValueError(f"{path}: expected no CSV beside a card whose manifest is built; name it otherwise")
    frame = check_manifest(frame.astype(str), card.model_copy(update={"counts": counts}), path)
    _write(path, frame, problems, {
        "schema": 1, "name": card.name, "target": card.target, "options": settings, "size": how.size, "counts": counts,
        "listed": len(listing.entries), "dropped": len(bad), "left_out": listing.left_out, "partial": partial,
    })  # fmt: skip
    frame.attrs.update(name=card.name, root=str(base), mask_values=card.mask_values, card=str(card_name))
    return frame


def ensure_manifest(name: str | Path, root: str | Path | None = None, **settings) -> pd.DataFrame:
    """The rows of a data set's manifest, built first where it is not there yet; `settings` as of `build_manifest`."""
    description = load_description(name)
    if description.source and not manifest_path(name, root).is_file() and data_root(name, root).is_dir():
        build_manifest(name, root, **settings)
    return load_manifest(name, root=root)


def _card_of(name: str | Path, target: str | None) -> str | Path:
    """The card of a data set's task: the one named, or that of the same source with this target."""
    card = load_description(name)
    if card.source not in SOURCES:
        raise ValueError(f"name: expected a card with a source of {', '.join(SOURCES)}, got {str(name)!r}")
    if target in (None, card.target):
        return name
    cards = [load_description(path.stem) for path in sorted(MANIFESTS.glob("*.yaml"))]
    tasks = {other.target: other.name for other in cards if other.source == card.source and not other.options}
    if target not in tasks:
        raise ValueError(
            f"target: expected one of {', '.join(sorted(map(str, tasks)))} for {str(name)!r}, got {target!r}"
        )
    return tasks[target]


def _check_options(read: Callable[..., Listing], settings: dict) -> None:
    """ValueError for an option that `read` does not take, or whose value is not of the type that it takes."""
    hints = get_type_hints(read, include_extras=True) | OF_ALL
    types = {key: kind for key, kind in hints.items() if key not in ("root", "target", "return")}
    if unknown := set(settings) - set(types):
        raise ValueError(f"options: expected some of {', '.join(sorted(types))}, got {', '.join(sorted(unknown))}")
    for key, value in settings.items():
        try:
            TypeAdapter(types[key], config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
        except ValidationError as error:
            expected = error.errors()[0]["msg"].replace("an instance of Sequence", "a list")
            raise ValueError(f"options: {key}: {expected}, got {value!r}") from None


def _target(card: Description | None) -> dict:
    return {"target": card.target} if card and card.target else {}


def _rows(listing: Listing, found: list) -> tuple[list[dict | None], list[Problem]]:
    """A manifest row per entry (None where there can be none), and all problems in the order of the entries."""
    problems, rows = list(listing.problems), []
    for i, (entry, (result, wrong)) in enumerate(zip(listing.entries, found, strict=True)):
        rows.append(None)
        wrong = list(wrong)
        if result:
            try:
                rows[-1] = _row(entry, result)
                wrong += [
                    f"{key}: the table says {value}, the file has {rows[-1][key]}"
                    for key, value in entry.expected.items()
                    if result["image"] == entry.image and str(rows[-1][key]) != value
                ]
            except ValueError as error:
                wrong.append(str(error))
        problems += [Problem(entry.image, entry.row, what, i) for what in wrong]
    known = [i for i, entry in enumerate(listing.entries) if entry.split in SPLITS and not leaves_root(entry.image)]
    crossed = cross_check([listing.entries[i] for i in known], [found[i] for i in known])
    problems += [problem._replace(entry=known[problem.entry]) for problem in crossed]
    return rows, sorted(problems, key=lambda problem: -1 if problem.entry is None else problem.entry)


def _row(entry: Entry, result: dict) -> dict:
    boxes = place_boxes(entry, result["source"], result["width"], result["height"])
    return {
        "image": result["image"], "label": entry.label, "split": entry.split, "patient": entry.patient,
        "mask": result["mask"], "boxes": json.dumps(boxes) if boxes else "", "width": result["width"],
        "height": result["height"], "sha256": result["sha256"], "mask_sha256": result["mask_sha256"],
    }  # fmt: skip


def _count_problems(card: Description | None, listing: Listing, partial: bool) -> list[Problem]:
    if card is None or card.counts is None or partial:
        return []
    found = {split: sum(entry.split == split for entry in listing.entries) for split in card.counts}
    return [
        Problem(card.name, "", f"{found[split]} images of {split} listed, the card expects {count}", None)
        for split, count in card.counts.items()
        if found[split] != count
    ]


def _write(path: Path, frame: pd.DataFrame, problems: list[Problem], record: dict) -> None:
    dropped = path.with_name(path.name.replace("manifest", "dropped"))
    dropped = dropped if dropped != path else path.with_name(f"dropped_{path.name}")
    if problems:
        write_text(dropped, BadData("", problems).table.to_csv(index=False, lineterminator="\n"))
    else:
        dropped.unlink(missing_ok=True)
    write_json(path.with_suffix(".json"), record)
    write_manifest(frame, path)
