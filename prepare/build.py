"""From a data set's own files to a checked manifest. Nothing is downloaded: docs/data.md says where to get each one."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import validate_call

from lib.data.manifest import COLUMNS, MANIFESTS, SPLITS, Description, check_manifest, clashes, inside, load_description
from lib.writing import write_json, write_text
from prepare.own_data import folder, kept_card, own_card
from prepare.published import idrid, imagenet_hvz, kaggle_dr, nih_nci, oct2017, rsna
from prepare.scan import Preparation, scan

READERS = {reader.__name__: reader for reader in (kaggle_dr, oct2017, rsna, idrid, imagenet_hvz, nih_nci, folder)}
UNLISTED = {"patient": "", "masks": (), "points": (), "boxes": (), "frame": None, "claims": {}}


class BadData(ValueError):
    """A data set refused; `table` holds all that is wrong with it as file, row, what."""

    def __init__(self, title: str, table: pd.DataFrame):
        lines = [f"{file} ({row}): {what}" if row else f"{file}: {what}" for file, row, what in table.to_numpy()[:1000]]
        super().__init__("\n  ".join([title, *lines]))
        self.table = table


def build_manifest(
    name: str | Path, root=None, target=None, *, size=None, drop=False, partial=False, workers=None, **options
) -> pd.DataFrame:
    """Read a data set from its own files, check every image, and write its manifest into the root; its rows.

    name: a card of data_manifests/ with a `source`, the path of such a card, or `folder` (which also writes a card,
    ROOT/dataset.yaml). target: which label, where a data set has several. size: side of the square images that are
    written to ROOT/prepared, boxes and masks along. options: those of the reader, over the card's own; `radius` of the
    discs around points; `mask_values` of `Description`. attrs hold `card` as well: what a recipe names as its dataset.
    Raises BadData with every problem and writes nothing, unless `drop` (rows with a problem are left out and listed in
    dropped.csv beside the manifest); other counts than the card's are a problem unless `partial`.
    """
    if name == "folder" and root is None:
        raise ValueError("root: expected the folder of your images, got None")
    name, card = (name, None) if name == "folder" else _card_of(name, target)
    base = card.folder(root) if card else Path(root).resolve()
    if not base.is_dir():
        hint = f"; {card.how_to_get(root)}" if card else ""
        raise FileNotFoundError(f"data set {str(name)!r}: no folder {base}{hint}")
    settings = {**(card.options if card else {}), **options}
    if rule := card.mask_values if card else kept_card(base).get("mask_values"):
        settings.setdefault("mask_values", rule)
    if card and card.source == "folder":
        settings.setdefault("classes", card.classes)
    given = settings | ({"target": card.target} if card and card.target else {})
    of_all = {key: given.pop(key) for key in ("radius", "mask_values") if key in given}
    rows = validate_call(READERS[card.source if card else "folder"])(base, **given).reset_index(drop=True)
    rows = rows.assign(**{key: [empty] * len(rows) for key, empty in UNLISTED.items() if key not in rows})
    size = rows.attrs.get("size") if size is None else size
    how = Preparation(size=size, crop=rows.attrs.get("crop", False), **of_all)
    frame = _frame(rows, scan(base, rows, how, workers))
    problems = list(rows.attrs.get("problems", ()))
    for split, count in (card.counts if card and card.counts and not partial else {}).items():
        if (found := int((rows["split"] == split).sum())) != count:
            problems.append((card.name, "", f"{found} images of {split} listed, the card expects {count}"))
    drop = drop and not problems  # what is wrong with the whole cannot be dropped
    problems += [(row.image, row.row, what) for row in rows.itertuples() for what in row.problem]
    problems = pd.DataFrame(problems, columns=["file", "row", "what"])
    frame = frame[rows["problem"].map(len) == 0].reset_index(drop=True)
    if frame.empty or (len(problems) and not drop):
        raise BadData(f"{base}: {len(problems)} problem(s) in {len(rows)} rows, no manifest written", problems)
    counts = {split: int((frame["split"] == split).sum()) for split in SPLITS}
    name, card = (name, card) if card else own_card(base, frame, rows.attrs["classes"], counts)
    path = card.manifest(base)
    if path.parent != base or not path.name.startswith("manifest"):
        raise ValueError(f"{path}: expected no CSV beside a card whose manifest is built; name it otherwise")
    frame = check_manifest(frame.astype(str), card.model_copy(update={"counts": counts}), path)
    dropped = path.with_name(path.name.replace("manifest", "dropped", 1))
    dropped.unlink(missing_ok=True)
    if len(problems):
        write_text(dropped, problems.to_csv(index=False, lineterminator="\n"))
    write_json(path.with_suffix(".json"), {
        "schema": 1, "name": card.name, "target": card.target, "options": settings, "size": size, "counts": counts,
        "listed": len(rows), "dropped": len(rows) - len(frame), "left_out": rows.attrs.get("left_out", 0),
        "partial": partial,
    })  # fmt: skip
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))
    frame.attrs.update(name=card.name, root=str(base), mask_values=card.mask_values, card=str(name))
    return frame


def _card_of(name: str | Path, target: str | None) -> tuple[str | Path, Description]:
    """The card of a data set's task, and its name: the one named, or that of the same source with this target."""
    card = load_description(name)
    if card.source not in READERS:
        raise ValueError(f"name: expected a card with a source of {', '.join(READERS)}, got {str(name)!r}")
    if target in (None, card.target):
        return name, card
    cards = [load_description(path.stem) for path in sorted(MANIFESTS.glob("*.yaml"))]
    tasks = {str(other.target): other for other in cards if other.source == card.source and not other.options}
    if target not in tasks:
        raise ValueError(f"target: expected one of {', '.join(sorted(tasks))} for {str(name)!r}, got {target!r}")
    return tasks[target].name, tasks[target]


def _frame(rows: pd.DataFrame, found: list[dict | list[str]]) -> pd.DataFrame:
    """The manifest's rows, empty where the files are bad; adds what is wrong with a row to its problems. Of images that
    are there twice, and of patients in two splits, the rows of test stay, then of val, then the first."""
    made = []
    for row, seen in zip(rows.itertuples(), found, strict=True):
        made.append({"label": row.label, "split": row.split, "patient": row.patient, "sha256": ""})
        if isinstance(seen, list):
            row.problem.extend(seen)
            continue
        made[-1] |= seen | {"boxes": placed_boxes(row, seen)}
        for key, claim in row.claims.items():
            if claim and seen["image"] == row.image and str(seen[key]) != claim:
                row.problem.append(f"{key}: the table says {claim}, the file has {seen[key]}")
    frame = pd.DataFrame(made, index=rows.index, columns=COLUMNS, dtype=object)
    listed = rows[rows["split"].isin(SPLITS)].assign(sha256=frame["sha256"])
    said = {"image": "image listed twice", "sha256": "duplicate image: the same pixels"}
    for i, column, first in clashes(listed.sort_values("split", key=lambda s: -s.map(SPLITS.index), kind="stable")):
        row, other = rows.loc[i], rows.loc[first]
        if column != "sha256" or other["image"] != row["image"]:
            what = said.get(column, f"patient {row['patient']} in two splits")
            where = f"{other['image']} of {other['split']} ({other['row']}), with label {other['label']}"
            row["problem"].append(f"{what}, in {row['split']} and as {where}")
    return frame


def placed_boxes(row: Any, seen: dict) -> str:
    """A row's boxes as JSON, in pixels of the prepared image, to 1/100 px; one outside the image is a problem."""
    placed, (width, height) = [], row.frame or seen["source"]
    across, down = seen["width"] / width, seen["height"] / height
    for box in row.boxes:
        if not inside(box, width, height):
            expected = f"expected [x, y, width, height] within {width} x {height} pixels"
            row.problem.append(f"box {box} outside the image, {expected}")
        x, y, w, h = box
        left, right = round(x * across, 2), min(round((x + w) * across, 2), seen["width"])
        top, bottom = round(y * down, 2), min(round((y + h) * down, 2), seen["height"])
        placed.append([left, top, round(right - left, 2), round(bottom - top, 2)])
    return json.dumps(placed) if placed else ""
