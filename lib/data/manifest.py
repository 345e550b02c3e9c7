"""Manifests: one CSV row per image and one YAML per data set, checked before use."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from lib import PROJECT
from lib.data.pixels import MaskValues

MANIFESTS = PROJECT / "data_manifests"
SPLITS = ("train", "val", "test")
COLUMNS = ["image", "label", "split", "patient", "mask", "boxes", "width", "height", "sha256", "mask_sha256"]
CELLS = {  # column -> whether a cell is right, what is expected
    "image": (lambda cell: cell and not leaves_root(cell), "a path inside the data set's root"),
    "label": (re.compile(r"\d+").fullmatch, "a whole number from 0"),
    "split": (lambda cell: cell in SPLITS, "train, val or test"),
    "mask": (lambda cell: not leaves_root(cell), "a path inside the data set's root"),
    "width": (re.compile(r"[1-9]\d*").fullmatch, "a whole number from 1"),
    "height": (re.compile(r"[1-9]\d*").fullmatch, "a whole number from 1"),
    "sha256": (re.compile(r"[0-9a-f]{64}").fullmatch, "64 hexadecimal digits"),
    "mask_sha256": (re.compile(r"([0-9a-f]{64})?").fullmatch, "64 hexadecimal digits, or none"),
}
BOXES = pydantic.TypeAdapter(list[Annotated[list[int | pydantic.FiniteFloat], Field(min_length=4, max_length=4)]])


class Description(BaseModel):
    """What a data set is, as its YAML says; mean and std are per channel of images in [0, 1], patch in pixels;
    generator: its `seed`, parameters and, where it is not the set's, name; source: the reader in `prepare`, of `target`
    (which label) with `options`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str
    title: str
    synthetic: bool
    homepage: str = ""
    licence: str = ""
    citation: str = ""
    classes: list[str] = Field(min_length=2)
    modality: str
    image_size: tuple[PositiveInt, PositiveInt]
    channels: Literal[1, 3]
    mean: list[float]
    std: list[PositiveFloat]
    counts: dict[Literal["train", "val", "test"], NonNegativeInt] | None = None
    annotation: Literal["mask", "box", "none"]
    patch: PositiveInt
    mask_values: MaskValues | None = None
    root: str | None = None
    generator: dict[str, Any] | None = None
    source: str | None = None
    target: str | None = None
    options: dict[str, Any] = {}
    _file: Path

    def folder(self, root: str | Path | None = None) -> Path:
        """Where the images lie: `root`, else the YAML's own `root` (relative to the YAML), else datasets/<name>."""
        if root is None and not self.root:
            return PROJECT / "datasets" / self.name
        return (self._file.parent / self.root if root is None else Path(root)).resolve()

    def manifest(self, root: str | Path | None = None) -> Path:
        """The CSV beside the YAML, or in the root `manifest.csv`, `manifest_NAME.csv` of a source's further tasks."""
        file = "manifest.csv" if self.source in (None, "folder", self.name) else f"manifest_{self.name}.csv"
        beside = self._file.with_suffix(".csv")
        return beside if beside.is_file() else self.folder(root) / file

    def how_to_get(self, root: str | Path | None = None) -> str:
        """Where the data set is to be had, and the command that builds the manifest of a published one."""
        owner, card = self.homepage or "their owner", self._file.stem if self._file.parent == MANIFESTS else self._file
        command = f"lay them out as docs/data.md says, and run: python -m prepare {card} {self.folder(root)}"
        return f"get the data from {owner}, {command}" if self.source else f"to be had from {owner}"


def load_description(name: str | Path) -> Description:
    """Read and check a data set's YAML; `name` is one of data_manifests/ or the path of a YAML of one's own."""
    path = PROJECT / name if Path(name).suffix in (".yaml", ".yml") else MANIFESTS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(card.stem for card in MANIFESTS.glob("*.yaml")))
        raise FileNotFoundError(f"data set {str(name)!r}: no {path}; expected one of {known}, or the path of a YAML")
    try:
        card = Description.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValueError, yaml.YAMLError) as error:  # also of pydantic, and of text that is not UTF-8
        raise ValueError(f"{path}: {error}") from error
    if not len(card.mean) == len(card.std) == card.channels:
        raise ValueError(f"{path}: mean, std: expected {card.channels} values (channels), got {card.mean}, {card.std}")
    if card.generator is not None and type(seed := card.generator.get("seed")) is not int:
        raise ValueError(f"{path}: generator: expected a seed, a whole number from 0, got {seed!r}")
    card._file = path
    return card


def load_manifest(name: str | Path, split: str | None = None, root: str | Path | None = None) -> pd.DataFrame:
    """Rows of a data set's checked manifest, of one split or of all; attrs: `name`, `root` (absolute), `mask_values`.
    FileNotFoundError without a CSV; ValueError with every problem (at most 20). The rows of a built manifest are
    counted against its own record (the JSON beside it), since rows may be dropped."""
    if split not in (None, *SPLITS):
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
    card = load_description(name)
    path = card.manifest(root)
    if not path.is_file():
        way = card.how_to_get(root) if card.source else f"a row per image with the columns {', '.join(COLUMNS[:-1])}"
        raise FileNotFoundError(f"data set {card.name!r}: no manifest {path}; {way}")
    if card.source and (record := path.with_suffix(".json")).is_file():
        card.counts = json.loads(record.read_text(encoding="utf-8"))["counts"]
    frame = check_manifest(read_cells(path), card, path)
    frame = frame if split is None else frame[frame["split"] == split].reset_index(drop=True)
    frame.attrs.update(name=card.name, root=str(card.folder(root)), mask_values=card.mask_values)
    return frame


def read_cells(path: Path) -> pd.DataFrame:
    """The cells of a CSV as text; ValueError naming a file that is empty, not UTF-8 or of uneven rows."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False).fillna("")
    except ValueError as error:
        raise ValueError(f"{path}: expected a CSV in UTF-8: {str(error).strip()}") from None


def check_manifest(raw: pd.DataFrame, card: Description, file: str | Path) -> pd.DataFrame:
    """Rows of strings, as a CSV holds them (`mask_sha256` need not be there), typed; ValueError lists every problem."""
    raw = raw if "mask_sha256" in raw else raw.assign(mask_sha256="")
    if odd := {*raw} ^ {*COLUMNS}:
        raise ValueError(f"{file}: columns missing or not known: {', '.join(sorted(odd))}; expected {COLUMNS}")
    problems = [
        (row, column, cell, f"expected {expected}")
        for column, (right, expected) in CELLS.items() for row, cell in raw[column].items() if not right(cell)
    ]  # fmt: skip
    bad = {row for row, *_ in problems}
    frame = raw.drop(index=list(bad)).astype({"label": int, "width": int, "height": int})
    for row in frame.itertuples():
        if row.label >= len(card.classes):
            problems.append((row.Index, "label", row.label, f"expected one of the {len(card.classes)} classes"))
        try:
            if not all(inside(box, row.width, row.height) for box in parse_boxes(row.boxes)):
                raise ValueError(f"expected boxes inside the image of {row.width} x {row.height} pixels")
        except ValueError as error:
            problems.append((row.Index, "boxes", row.boxes, str(error)))
    for row, column, first in clashes(frame):
        why = f"in {frame.at[row, 'split']}, but already in {frame.at[first, 'split']} on line {first + 2}"
        problems.append((row, column, frame.at[row, column], why))
    problems.sort(key=lambda problem: problem[:2])
    lines = [f"line {row + 2}, column {column}: {value!r}: {why}" for row, column, value, why in problems]
    for split, expected in (card.counts or {}).items() if not bad else ():
        if (found := int((frame["split"] == split).sum())) != expected:
            lines.append(f"column split: {found} rows of {split!r}: expected {expected} as the YAML's counts say")
    if lines:
        raise ValueError(listing(f"{file}: {len(lines)} problem(s)", lines))
    return frame


def clashes(frame: pd.DataFrame) -> Iterator[tuple[int, str, int]]:
    """Rows that repeat an image or its pixels, or whose patient is in another split: index, column, the first's index.
    Rows are taken in the frame's order; an empty cell repeats nothing."""
    for column in ("image", "sha256", "patient"):
        rows = frame[frame[column] != ""]
        first = rows.index.to_series().groupby(rows[column]).transform("first")
        split = rows["split"].loc[first].to_numpy()
        wrong = first[split != rows["split"] if column == "patient" else first != rows.index]
        yield from ((row, column, other) for row, other in wrong.items())


def parse_boxes(text: str) -> list[list[float]]:
    """The boxes [x, y, width, height] of a manifest's cell, an empty one has none; ValueError for anything else."""
    try:
        return BOXES.validate_json(text or "[]", strict=True)
    except ValidationError:
        raise ValueError("expected a JSON list of [x, y, width, height]") from None


def inside(box: list[float], width: int, height: int) -> bool:
    """Whether a box has an area, all of it in an image of that size, to 1/100 px."""
    x, y, w, h = box
    return min(x, y) >= 0 and min(w, h) > 0 and x + w <= width + 0.01 and y + h <= height + 0.01


def leaves_root(path: str) -> bool:
    """Whether a path is absolute, climbs, or is written for another system."""
    return path.startswith("/") or "\\" in path or ".." in path.split("/")


def listing(title: str, lines: list[str]) -> str:
    """A message of at most 20 lines, and how many more there are."""
    return "\n  ".join([title, *lines[:20], *([f"... and {len(lines) - 20} more"] if len(lines) > 20 else [])])


def fair_order(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows so that every first N of a split have its classes in proportion; train, val, test in turn: by (rank in
    its class + 0.5) / rows of its class, ranks and ties by sha256 (Webster's method). The index stays with its row."""
    ranked = frame.sort_values("sha256")
    classes = ranked.groupby(["split", "label"])["sha256"]
    place = (classes.cumcount() + 0.5) / classes.transform("size")
    return ranked.iloc[np.lexsort((ranked["sha256"], place, ranked["split"].map(SPLITS.index)))]


def manifest_hash(frame: pd.DataFrame) -> str:
    """16 hexadecimal digits of the rows' content, all columns of a manifest, whatever their order."""
    rows = sorted(frame[COLUMNS].astype(str).itertuples(index=False, name=None))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
