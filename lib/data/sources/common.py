"""What the readers of the data sets share: entries, problems, tables, and where files lie."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.data.manifest import read_cells

SUFFIXES = (".png", ".jpeg", ".jpg", ".JPEG", ".JPG", ".tif", ".tiff", ".bmp", ".dcm")


@dataclass
class Entry:
    """One image as a data set's own files list it; paths are relative to the data set's root.

    row: where it is listed, for the report. masks: files whose union is the annotated region. boxes: [x, y, width,
    height] in pixels of a `frame` (width, height), None: the image's own. points: [x, y] in pixels of the image.
    expected: width, height or sha256 that the data set claims.
    """

    image: str
    label: int | None
    split: str
    row: str
    patient: str = ""
    masks: tuple[str, ...] = ()
    boxes: list[list[float]] = field(default_factory=list)
    frame: tuple[int, int] | None = None
    points: list[list[float]] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)


class Problem(NamedTuple):
    """What is wrong, in which file and row; entry: index of the entry that could be dropped, None: of the whole set."""

    file: str
    row: str
    what: str
    entry: int | None


@dataclass
class Listing:
    """All entries of a data set, what was wrong with their rows, and how its files are to be read.

    crop: to the fundus circle. left_out: rows without a label.
    """

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    classes: list[str] | None = None
    crop: bool = False
    size: int | None = None
    left_out: int = 0

    def add(self, entry: Entry, *problems: str) -> None:
        self.problems += [Problem(entry.image, entry.row, what, len(self.entries)) for what in problems]
        self.entries.append(entry)


class BadData(ValueError):
    """A data set refused; `problems` holds them all, `table` as file, row, what."""

    MOST_LINES = 1000

    def __init__(self, title: str, problems: list[Problem]):
        self.problems = problems
        lines = [f"{p.file} ({p.row}): {p.what}" if p.row else f"{p.file}: {p.what}" for p in problems]
        more = len(lines) - self.MOST_LINES
        lines = lines[: self.MOST_LINES] + ([f"... and {more} more, all of them in .problems"] if more > 0 else [])
        super().__init__("\n  ".join([title, *lines]))

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame([p[:3] for p in self.problems], columns=["file", "row", "what"])


def find_file(root: Path, what: str, candidates: Iterable[str]) -> str:
    """The first of the candidates, relative to the root, that is there; FileNotFoundError names them all."""
    candidates = list(dict.fromkeys(candidates))
    for path in candidates:
        if (root / path).exists():
            return path
    raise FileNotFoundError(f"{root}: no {what}; expected one of {', '.join(candidates)}")


def read_table(root: Path, path: str, columns: Iterable[str]) -> pd.DataFrame:
    """A CSV's cells as text, `row` added; ValueError where a column is missing or the file is no CSV."""
    table = read_cells(root / path)
    if missing := [column for column in columns if column not in table.columns]:
        raise ValueError(f"{root / path}: no column {missing[0]!r}; expected {', '.join(columns)}")
    return table.assign(row=[f"{path} line {line + 2}" for line in range(len(table))])


def whole_number(text: str, allowed: Iterable[int]) -> int | None:
    """The number that a cell spells (1, 1.0), None where it is not one of the allowed."""
    return next((number for number in allowed if text.strip() in (str(number), f"{number}.0")), None)


def find_image(root: Path, folder: str, name: str) -> str:
    """Path of an image whose file may have another suffix than its table says; the table's own where none is there."""
    path = PurePosixPath(folder) / name
    same_stem = (path.with_suffix(suffix) for suffix in SUFFIXES)
    return next((str(p) for p in (path, *same_stem) if name and (root / p).is_file()), str(path))


def image_folder(root: Path, given: str | None, candidates: Iterable[str], names: Iterable[str]) -> str:
    """The folder given, or the first candidate that holds one of the first names."""
    if given is not None:
        if not (root / given).is_dir():
            raise FileNotFoundError(f"images: expected a folder in {root}, got {given!r}")
        return given
    candidates, names = list(candidates), list(names)[:20]
    held = (folder for folder in candidates if any((root / find_image(root, folder, n)).is_file() for n in names if n))
    return next(held, next((folder for folder in candidates if (root / folder).is_dir()), candidates[0]))


def published_split(labels: np.ndarray, test: float, val: float, seed: int = 6) -> np.ndarray:
    """train, val or test of each row: stratified, first the test share, then val of the rest, as the xML code does."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    rest, tested = train_test_split(rows, test_size=test, stratify=labels, random_state=seed)
    rest = np.sort(rest)
    _, validated = train_test_split(rest, test_size=val, stratify=labels[rest], random_state=seed)
    split = np.full(len(labels), "train", dtype=object)
    split[tested], split[validated] = "test", "val"
    return split
