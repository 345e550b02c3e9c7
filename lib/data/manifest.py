"""Manifests: one CSV row per image and one YAML per data set, checked before use."""

import hashlib
import json
import math
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd
import pandera.pandas as pa
import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from lib.data.pixels import MaskValues
from lib.writing import write_text

PROJECT = Path(__file__).resolve().parents[2]
MANIFESTS = PROJECT / "data_manifests"
SPLITS = ("train", "val", "test")
REQUIRED = ["image", "label", "split", "patient", "mask", "boxes", "width", "height", "sha256"]
COLUMNS = [*REQUIRED, "mask_sha256"]
MOST_PROBLEMS = 20

Split = Literal["train", "val", "test"]


class Description(BaseModel):
    """What a data set is, as its YAML says; mean and std are per channel of images in [0, 1], patch in pixels.

    generator, of synthetic sets: a `seed`, and whatever the generator's own parameters are; `generator` names the
    generator where the data set is not called after it. source, of published sets: the reader in lib.data.sources that
    builds the manifest, with the `target` (which label) and the `options` that it is given. mask_values: what is region
    in a mask file, `nonzero` (any value but 0, of a palette any index but 0) or `half` (values above 127); None: half
    for JPEG files, nonzero for all others.
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
    counts: dict[Split, NonNegativeInt] | None = None
    annotation: Literal["mask", "box", "none"]
    patch: PositiveInt
    mask_values: MaskValues | None = None
    root: str | None = None
    generator: dict[str, Any] | None = None
    source: str | None = None
    target: str | None = None
    options: dict[str, Any] = {}


def _yaml_path(name: str | Path) -> Path:
    own = PROJECT / name  # relative paths start at the repository's root, wherever a notebook runs
    return own if own.suffix in (".yaml", ".yml") else MANIFESTS / f"{name}.yaml"


def load_description(name: str | Path) -> Description:
    """Read and check a data set's YAML; `name` is one of data_manifests/ or the path of a YAML of one's own."""
    path = _yaml_path(name)
    if not path.is_file():
        cards = sorted(MANIFESTS.glob("*.yaml"), key=lambda card: (not card.with_suffix(".csv").is_file(), card.stem))
        known = ", ".join(card.stem for card in cards)
        raise FileNotFoundError(f"data set {str(name)!r}: no {path}; expected one of {known}, or the path of a YAML")
    try:
        description = Description.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    for key in ("mean", "std"):
        if len(values := getattr(description, key)) != description.channels:
            raise ValueError(f"{path}: {key}: expected {description.channels} values (channels), got {values}")
    made = description.generator
    if made is not None and not (type(made.get("seed")) is int and made["seed"] >= 0):
        raise ValueError(f"{path}: generator: expected a seed, a whole number from 0, got {made.get('seed')!r}")
    return description


def data_root(name: str | Path, root: str | Path | None = None) -> Path:
    """Where the images lie: `root`, else the YAML's own `root` (relative to the YAML), else datasets/<name>."""
    if root is not None:
        return Path(root).resolve()
    description = load_description(name)
    own = description.root
    return (_yaml_path(name).parent / own).resolve() if own else PROJECT / "datasets" / description.name


def manifest_path(name: str | Path, root: str | Path | None = None) -> Path:
    """The CSV beside the YAML, or in the root `manifest.csv`, `manifest_NAME.csv` of a source's further tasks."""
    beside, description = _yaml_path(name).with_suffix(".csv"), load_description(name)
    main = description.source in (None, "folder", description.name)
    file = "manifest.csv" if main else f"manifest_{description.name}.csv"
    return beside if beside.is_file() else data_root(name, root) / file


def load_manifest(name: str | Path, split: str | None = None, root: str | Path | None = None) -> pd.DataFrame:
    """Rows of a data set's checked manifest in the file's order, of one split or of all.

    attrs hold `name`, `root` (absolute) and `mask_values`; `mask_sha256` is empty where the manifest does not know it.
    Raises FileNotFoundError without a CSV, and ValueError with every problem (at most 20) as file, line, column, value.
    The rows of a built manifest are counted against its own record (the JSON beside it), since rows may be dropped.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
    description, path, folder = load_description(name), manifest_path(name, root), data_root(name, root)
    if not path.is_file() and description.source:
        raise FileNotFoundError(f"data set {description.name!r}: no manifest {path}; {how_to_get(name, root)}")
    if not path.is_file():
        raise FileNotFoundError(
            f"data set {description.name!r}: no manifest {path}, a row per image with the columns {', '.join(REQUIRED)}"
        )
    if description.source and (record := path.with_suffix(".json")).is_file():
        counts = json.loads(record.read_text(encoding="utf-8"))["counts"]
        description = description.model_copy(update={"counts": counts})
    state = path.stat()
    frame = _checked(path, (state.st_size, state.st_mtime_ns), description.model_dump_json()).copy()
    frame = frame if split is None else frame[frame["split"] == split].reset_index(drop=True)
    frame.attrs.update(name=description.name, root=str(folder), mask_values=description.mask_values)
    return frame


@lru_cache(maxsize=8)
def _checked(path: Path, state: tuple[int, int], description: str) -> pd.DataFrame:
    """`check_manifest` of a file, once in a process for each of its states and descriptions (JSON)."""
    return check_manifest(read_cells(path), Description.model_validate_json(description), path)


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


def read_cells(path: Path) -> pd.DataFrame:
    """The cells of a CSV as text; ValueError naming a file that is empty, not UTF-8 or of uneven rows."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False).fillna("")
    except ValueError as error:
        raise ValueError(f"{path}: expected a CSV in UTF-8: {str(error).strip()}") from None


def how_to_get(name: str | Path, root: str | Path | None = None) -> str:
    """Where a published data set is to be had, and the command that builds its manifest."""
    description, folder = load_description(name), data_root(name, root)
    return (
        f"get the data from {description.homepage or 'their owner'}, lay them out in {folder} as docs/data.md says, "
        f"and run: python -m lib.data.sources {name} {folder}"
    )


def write_manifest(frame: pd.DataFrame, path: str | Path) -> None:
    """Write manifest rows as CSV; the file appears whole."""
    write_text(Path(path), frame[COLUMNS].to_csv(index=False, lineterminator="\n"))


def _text(pattern: str, expected: str) -> pa.Column:
    return pa.Column(str, pa.Check.str_matches(f"^(?:{pattern})$", error=expected))


SCHEMA = pa.DataFrameSchema(
    {
        "image": _text(".+", "a path relative to the data set's root"),
        "label": _text(r"\d+", "a whole number from 0"),
        "split": _text("|".join(SPLITS), "train, val or test"),
        "patient": pa.Column(str),
        "mask": pa.Column(str),
        "boxes": pa.Column(str),
        "width": _text(r"[1-9]\d*", "a whole number from 1"),
        "height": _text(r"[1-9]\d*", "a whole number from 1"),
        "sha256": _text("[0-9a-f]{64}", "64 hexadecimal digits"),
        "mask_sha256": _text("(?:[0-9a-f]{64})?", "64 hexadecimal digits, or none"),
    },
    strict=True,
)


def check_manifest(raw: pd.DataFrame, description: Description, file: str | Path) -> pd.DataFrame:
    """Check rows of strings, as a CSV holds them, and return them typed; ValueError lists every problem found.

    `mask_sha256` need not be there: it is empty then.
    """
    raw, problems, bad = raw if "mask_sha256" in raw else raw.assign(mask_sha256=""), [], set()
    try:
        SCHEMA.validate(raw, lazy=True)
    except pa.errors.SchemaErrors as errors:
        for case in errors.failure_cases.itertuples():
            if case.check in ("column_in_dataframe", "column_in_schema"):
                verb = "is missing" if case.check == "column_in_dataframe" else "is not known"
                raise ValueError(f"{file}: column {case.failure_case!r} {verb}; expected {COLUMNS}") from None
            bad.add(case.index)
            problems.append((case.index, case.column, case.failure_case, f"expected {case.check}"))
    frame = raw.drop(index=list(bad)).astype({"label": int, "width": int, "height": int})
    problems += _cross_checks(frame, description)
    problems = sorted(problems, key=lambda problem: problem[:2])
    lines = [f"line {row + 2}, column {column}: {value!r}: {why}" for row, column, value, why in problems]
    if not bad and description.counts is not None:
        found = {split: int((frame["split"] == split).sum()) for split in description.counts}
        lines += [
            f"column split: {found[split]} rows of {split!r}: expected {expected} as the YAML's counts say"
            for split, expected in description.counts.items()
            if found[split] != expected
        ]
    if lines:
        raise ValueError(listing(f"{file}: {len(lines)} problem(s)", lines))
    return frame


def _cross_checks(frame: pd.DataFrame, description: Description) -> list[tuple[int, str, object, str]]:
    """What no single cell shows, as (row, column, value, why)."""
    problems, patients, seen = [], {}, {"image": {}, "sha256": {}}
    for row in frame.itertuples():
        if row.label >= len(description.classes):
            problems.append((row.Index, "label", row.label, f"expected one of the {len(description.classes)} classes"))
        if row.patient and patients.setdefault(row.patient, (row.split, row.Index))[0] != row.split:
            split, first = patients[row.patient]
            problems.append((row.Index, "patient", row.patient, f"in {row.split}, but in {split} on line {first + 2}"))
        for column, rows in seen.items():
            value = getattr(row, column)
            split, first = rows.setdefault(value, (row.split, row.Index))
            if first != row.Index:
                why = f"in {row.split}, but already in {split} on line {first + 2}"
                problems.append((row.Index, column, value, why))
        for column in ("image", "mask"):
            path = PurePosixPath(getattr(row, column))
            if path.is_absolute() or ".." in path.parts or "\\" in str(path):
                problems.append((row.Index, column, str(path), "expected a path inside the data set's root"))
        try:
            parse_boxes(row.boxes, row.width, row.height)
        except ValueError as error:
            problems.append((row.Index, "boxes", row.boxes, str(error)))
    return problems


def parse_boxes(text: str, width: int, height: int) -> list[list[float]]:
    """The boxes [x, y, width, height] in pixels of a manifest cell; an empty cell has none."""
    boxes = read_boxes(text)
    for x, y, w, h in boxes:
        if min(x, y) < 0 or min(w, h) <= 0 or x + w > width or y + h > height:
            raise ValueError(f"expected boxes inside the image of {width} x {height} pixels")
    return boxes


def read_boxes(text: str) -> list[list[float]]:
    """The boxes that a cell spells, wherever they lie; ValueError where it is no list of four finite numbers each."""
    try:
        boxes = json.loads(text) if text else []
    except json.JSONDecodeError as error:
        raise ValueError(f"expected a JSON list of [x, y, width, height] ({error})") from None
    if not isinstance(boxes, list) or not all(
        isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and math.isfinite(v) for v in box)
        for box in boxes
    ):
        raise ValueError("expected a JSON list of [x, y, width, height]")
    return boxes


def listing(title: str, lines: list[str]) -> str:
    """A message of several lines, at most 20 of them and how many more."""
    more = [f"... and {len(lines) - MOST_PROBLEMS} more"] if len(lines) > MOST_PROBLEMS else []
    return "\n  ".join([title, *lines[:MOST_PROBLEMS], *more])
