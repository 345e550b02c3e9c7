"""What the readers share. A reader is a function from an owner's files to a frame with a row per image: image, label
(-1: unknown), split, row (where it is listed), problem (a list: what is wrong), and where there are any patient; masks
(paths, their union counts); points [x, y] in pixels; boxes [x, y, width, height] in pixels of `frame` (width, height),
None: the image's own; claims, what a table says of the file. attrs may hold classes; crop, to the fundus circle; size,
of the images to be made; left_out, the number of rows without a label; problems (file, row, what) of no image."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from lib.data.manifest import SPLITS, read_cells

SUFFIXES = (".png", ".jpeg", ".jpg", ".JPEG", ".JPG", ".tif", ".tiff", ".bmp", ".dcm")


def find_file(root: Path, what: str, candidates: list[str]) -> str:
    """The first of the candidates, relative to the root, that is there; FileNotFoundError names them all."""
    if there := [path for path in candidates if (root / path).exists()]:
        return there[0]
    raise FileNotFoundError(f"{root}: no {what}; expected one of {', '.join(candidates)}")


def read_table(root: Path, path: str, columns: list[str]) -> pd.DataFrame:
    """A CSV's cells as text, and row and problem; ValueError where a column is missing or the file is no CSV."""
    table = read_cells(root / path)
    if missing := [column for column in columns if column not in table.columns]:
        raise ValueError(f"{root / path}: no column {missing[0]!r}; expected {', '.join(columns)}")
    return table.assign(row=[f"{path} line {i + 2}" for i in table.index], problem=[[] for _ in table.index])


def blame(rows: pd.DataFrame, wrong: pd.Series, what: Callable[[Any], str]) -> None:
    """Add to the problems of the rows that are `wrong`: `what` of each, as a named tuple."""
    for row in rows[wrong].itertuples():
        row.problem.append(what(row))


def whole_numbers(cells: pd.Series, count: int) -> pd.Series:
    """The numbers below `count` that cells spell (1, 1.0), -1 for any other."""
    known = {spelling: number for number in range(count) for spelling in (str(number), f"{number}.0")}
    return cells.str.strip().map(known).fillna(-1).astype(int)


def find_image(root: Path, name: str, *folders: str) -> str:
    """Path of an image, which may have another suffix than its table says; in the first folder where none is there."""
    paths = [PurePosixPath(folder) / name for folder in folders]
    spelt = (path.with_suffix(suffix) for path in paths if name for suffix in (path.suffix, *SUFFIXES))
    return str(next((path for path in spelt if (root / path).is_file()), paths[0]))


def split_tables(root: Path, places: str, files: list[str], columns: list[str], count: int, folders: list[str]):
    """The rows of SoftCAM's tables of train, val and test, with image (in some of the folders), label, split; the last
    of the columns holds the labels, below `count`."""
    tables = []
    for split, file in zip(SPLITS, files, strict=True):
        path = find_file(root, f"CSV of {split}", [file, f"csv_files/{places}/{file}", f"{places}/{file}"])
        tables.append(read_table(root, path, columns).assign(split=split))
    rows = pd.concat(tables, ignore_index=True).fillna("")
    there = [folder for folder in folders if (root / folder).is_dir()] or folders
    rows["image"] = [find_image(root, name, *there) for name in rows["filename"]]
    cells = rows[columns[-1]]
    rows["label"], said = whole_numbers(cells, count), f"expected a whole number from 0 to {count - 1}"
    blame(rows, rows["label"] < 0, lambda row: f"unknown label: {columns[-1]} {cells[row.Index]!r}, {said}")
    return rows


def published_split(labels: pd.Series, test: float, val: float, what: Path) -> pd.Series:
    """train, val or test of each row: stratified, first the test share, then val of the rest, as the xML code does."""
    from sklearn.model_selection import train_test_split

    split, rows = pd.Series("train", labels.index), np.arange(len(labels))
    for name, share in (("test", test), ("val", val)):
        try:
            rows, chosen = train_test_split(rows, test_size=share, stratify=labels.iloc[rows], random_state=6)
        except ValueError as error:
            raise ValueError(f"{what}: {len(labels)} rows or patients cannot be split: {error}") from None
        split.iloc[chosen], rows = name, np.sort(rows)
    return split
