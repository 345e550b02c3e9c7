"""Manifests: one CSV row per image and one YAML per data set, checked before use."""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from lib import PROJECT
from lib.data.pixels import MaskValues

MANIFESTS = PROJECT / "data_manifests"
SPLITS = ("train", "val", "test")


class Description(BaseModel):
    """What a data set is, as its YAML says; mean and std are per channel of images in [0, 1], patch in pixels.

    generator, of synthetic sets: `seed` and the generator's parameters; `generator` where its name is not the set's.
    source, of published sets: the reader in `prepare` that builds the manifest, given `target` (which label) and
    `options`. mask_values: as in `read_mask`.
    """

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
        owner, folder = self.homepage or "their owner", self.folder(root)
        card = self._file.stem if self._file.parent == MANIFESTS else self._file
        command = f"lay them out in {folder} as docs/data.md says, and run: python -m prepare {card} {folder}"
        return f"get the data from {owner}, {command}" if self.source else f"to be had from {owner}"


def load_description(name: str | Path) -> Description:
    """Read and check a data set's YAML; `name` is one of data_manifests/ or the path of a YAML of one's own."""
    path = PROJECT / name if Path(name).suffix in (".yaml", ".yml") else MANIFESTS / f"{name}.yaml"
    if not path.is_file():
        cards = sorted(MANIFESTS.glob("*.yaml"), key=lambda card: (not card.with_suffix(".csv").is_file(), card.stem))
        known = ", ".join(card.stem for card in cards)
        raise FileNotFoundError(f"data set {str(name)!r}: no {path}; expected one of {known}, or the path of a YAML")
    try:
        card = Description.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    for key, values in (("mean", card.mean), ("std", card.std)):
        if len(values) != card.channels:
            raise ValueError(f"{path}: {key}: expected {card.channels} values (channels), got {values}")
    seed = (card.generator or {}).get("seed")
    if card.generator is not None and not (type(seed) is int and seed >= 0):
        raise ValueError(f"{path}: generator: expected a seed, a whole number from 0, got {seed!r}")
    card._file = path
    return card


def load_manifest(name: str | Path, split: str | None = None, root: str | Path | None = None) -> pd.DataFrame:
    """Rows of a data set's checked manifest in the file's order, of one split or of all.

    attrs hold `name`, `root` (absolute) and `mask_values`; `mask_sha256` is empty where the manifest does not know it.
    Raises FileNotFoundError without a CSV, and ValueError with every problem (at most 20) as file, line, column, value.
    The rows of a built manifest are counted against its own record (the JSON beside it), since rows may be dropped.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
    card = load_description(name)
    path = card.manifest(root)
    if not path.is_file():
        columns = f"a row per image with the columns {', '.join(COLUMNS[:-1])}"
        way = card.how_to_get(root) if card.source else columns
        raise FileNotFoundError(f"data set {card.name!r}: no manifest {path}; {way}")
    if card.source and (record := path.with_suffix(".json")).is_file():
        card.counts = json.loads(record.read_text(encoding="utf-8"))["counts"]
    state = path.stat()
    frame = _checked(path, (state.st_size, state.st_mtime_ns), card.model_dump_json()).copy()
    frame = frame if split is None else frame[frame["split"] == split].reset_index(drop=True)
    frame.attrs.update(name=card.name, root=str(card.folder(root)), mask_values=card.mask_values)
    return frame


@lru_cache(maxsize=8)
def _checked(path: Path, state: tuple[int, int], card: str) -> pd.DataFrame:
    """`check_manifest` of a file, once in a process for each of its states and cards (JSON)."""
    return check_manifest(read_cells(path), Description.model_validate_json(card), path)


def read_cells(path: Path) -> pd.DataFrame:
    """The cells of a CSV as text; ValueError naming a file that is empty, not UTF-8 or of uneven rows."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False).fillna("")
    except ValueError as error:
        raise ValueError(f"{path}: expected a CSV in UTF-8: {str(error).strip()}") from None


CELLS = {  # column -> what a cell matches, in words
    "image": (r".+", "a path relative to the data set's root"),
    "label": (r"\d+", "a whole number from 0"),
    "split": ("|".join(SPLITS), "train, val or test"),
    "patient": (r"[\s\S]*", "any text"),
    "mask": (r"[\s\S]*", "any text"),
    "boxes": (r"[\s\S]*", "any text"),
    "width": (r"[1-9]\d*", "a whole number from 1"),
    "height": (r"[1-9]\d*", "a whole number from 1"),
    "sha256": (r"[0-9a-f]{64}", "64 hexadecimal digits"),
    "mask_sha256": (r"(?:[0-9a-f]{64})?", "64 hexadecimal digits, or none"),
}
COLUMNS = list(CELLS)
CHECKS = {column: pa.Check.str_matches(f"^(?:{cell})$", error=said) for column, (cell, said) in CELLS.items()}
SCHEMA = pa.DataFrameSchema({column: pa.Column(str, check) for column, check in CHECKS.items()}, strict=True)
BOXES = pydantic.TypeAdapter(list[Annotated[list[int | pydantic.FiniteFloat], Field(min_length=4, max_length=4)]])


def check_manifest(raw: pd.DataFrame, card: Description, file: str | Path) -> pd.DataFrame:
    """Check rows of strings, as a CSV holds them, and return them typed; ValueError lists every problem found.

    `mask_sha256` need not be there: it is empty then.
    """
    raw, problems = raw if "mask_sha256" in raw else raw.assign(mask_sha256=""), []
    try:
        SCHEMA.validate(raw, lazy=True)
    except pa.errors.SchemaErrors as errors:
        for case in errors.failure_cases.itertuples():
            if case.check in ("column_in_dataframe", "column_in_schema"):
                verb = "is missing" if case.check == "column_in_dataframe" else "is not known"
                raise ValueError(f"{file}: column {case.failure_case!r} {verb}; expected {COLUMNS}") from None
            problems.append((case.index, case.column, case.failure_case, f"expected {case.check}"))
    bad = {row for row, *_ in problems}
    frame = raw.drop(index=list(bad)).astype({"label": int, "width": int, "height": int})
    for row in frame.itertuples():
        if row.label >= len(card.classes):
            problems.append((row.Index, "label", row.label, f"expected one of the {len(card.classes)} classes"))
        for column, path in (("image", row.image), ("mask", row.mask)):
            if leaves_root(path):
                problems.append((row.Index, column, path, "expected a path inside the data set's root"))
        try:
            if not all(inside(box, row.width, row.height) for box in parse_boxes(row.boxes)):
                raise ValueError(f"expected boxes inside the image of {row.width} x {row.height} pixels")
        except ValueError as error:
            problems.append((row.Index, "boxes", row.boxes, str(error)))
    for row, column, first in clashes(frame):
        already = f"{'' if column == 'patient' else 'already '}in {frame.at[first, 'split']} on line {first + 2}"
        problems.append((row, column, frame.at[row, column], f"in {frame.at[row, 'split']}, but {already}"))
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

    Rows are taken in the frame's order; an empty cell repeats nothing.
    """
    for column in ("image", "sha256", "patient"):
        rows = frame[frame[column] != ""]
        first = rows.index.to_series().groupby(rows[column]).transform("first")
        wrong = first != rows.index
        if column == "patient":
            wrong = rows["split"].loc[first].to_numpy() != rows["split"]
        yield from ((row, column, other) for row, other in first[wrong].items())


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


def listing(title: str, lines: list[str], most: int = 20) -> str:
    """A message of several lines, at most so many of them and how many more."""
    more = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n  ".join([title, *lines[:most], *more])


def fair_order(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows so that every first N of a split have its classes in proportion; train, val, test in turn.

    By (rank in its class + 0.5) / rows of its class, where a class is ranked by sha256, which also decides ties: the
    order depends on neither the file's nor on how many are taken. The index stays with its row. (Webster's method.)
    """
    ranked = frame.sort_values("sha256")
    classes = ranked.groupby(["split", "label"])["sha256"]
    place = (classes.cumcount() + 0.5) / classes.transform("size")
    return ranked.iloc[np.lexsort((ranked["sha256"], place, ranked["split"].map(SPLITS.index)))]


def manifest_hash(frame: pd.DataFrame) -> str:
    """16 hexadecimal digits of the rows' content, all columns of a manifest, whatever their order."""
    rows = sorted(frame[COLUMNS].astype(str).itertuples(index=False, name=None))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
