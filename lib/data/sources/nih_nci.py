"""NIH-NCI cervix photographs (ALTS, Biopsy, CVT, NHS): worst histology after the visit, as in Rio-Torto et al. 2020."""

from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import xlrd

from lib.data.sources.common import Entry, Listing, find_file, find_image, published_split

STUDIES = ("ALTS", "Biopsy", "CVT", "NHS")
MISSING = {"", ".", "-1", "-2", "-1.0", "-2.0", "nan"}
HEADER_ROW = 5  # in the spreadsheet, counted from 1


def read(root: Path, target: str | None = None) -> Listing:
    """Entries of the four covariate_data.xls; label 1 where WRST_HIST_AFTER is above 1, rows without it left out.

    Split by patient, stratified by the patient's highest label: test 5 %, then 20 % of the rest validation, random
    state 6. (The reference code means to do so, but numbers the rows instead of the patients, so that images of one
    patient can be on both sides; its split is not repeated.) Masks IMAGE_mask.jpg count where they are there.
    """
    base = PurePosixPath(find_file(root, "study folder", ["data/ALTS", "ALTS"])).parent
    tables = []
    for study in STUDIES:
        file = find_file(root, f"table of {study}", [str(base / study / "covariate_data.xls")])
        tables.append(study_rows(read_sheet(root / file), file).assign(study=study))
    table, listing = pd.concat(tables, ignore_index=True), Listing()
    listing.left_out = int(table["histology"].isin(MISSING).sum())
    table = table[~table["histology"].isin(MISSING)].reset_index(drop=True)
    grade = pd.to_numeric(table["histology"], errors="coerce")
    table = table.assign(label=(grade > 1).astype(int), key=table["study"] + "-" + table["patient"])
    patients = table.groupby("key")["label"].max()
    try:
        split = dict(zip(patients.index, published_split(patients.to_numpy(), 0.05, 0.2), strict=True))
    except ValueError as error:
        raise ValueError(f"{root}: {len(patients)} patients cannot be split: {error}") from None
    for row, known in zip(table.itertuples(), np.isfinite(grade), strict=True):
        folder, image = str(base / row.study), PurePosixPath(row.image)
        path = find_image(root, folder, str(image.with_suffix(".jpg")) if row.image else "")
        mask = str(PurePosixPath(path).with_name(f"{PurePosixPath(path).stem}_mask.jpg"))
        wrong = [] if known and grade[row.Index] >= 0 else [f"unknown label: WRST_HIST_AFTER {row.histology!r}"]
        wrong += [] if row.patient not in MISSING else ["GG_PATIENT_ID is missing"]
        masks = (mask,) if (root / mask).is_file() else ()
        listing.add(Entry(path, None if wrong else row.label, split[row.key], row.row, row.key, masks), *wrong)
    return listing


def read_sheet(path: Path) -> pd.DataFrame:
    """The first sheet of a covariate_data.xls, whose header is in row 5; ValueError naming a file that is none."""
    try:
        sheet = xlrd.open_workbook(path).sheet_by_index(0)
        cells = [[_text(value) for value in sheet.row_values(row)] for row in range(sheet.nrows)]
    except Exception as error:  # XLRDError, CompDocError, struct.error, IndexError, AssertionError ...
        raise ValueError(f"{path}: expected an Excel file (.xls), damaged or of another kind: {error}") from None
    if len(cells) < HEADER_ROW:
        raise ValueError(f"{path}: expected the header in row {HEADER_ROW}, got {len(cells)} rows")
    return pd.DataFrame(cells[HEADER_ROW:], columns=cells[HEADER_ROW - 1])


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def study_rows(sheet: pd.DataFrame, file: str) -> pd.DataFrame:
    """Columns image, patient, histology (text) and row of one study's table; ValueError where a column is missing."""
    names = {"GG_IMAGE_ID": "image", "GG_PATIENT_ID": "patient", "WRST_HIST_AFTER": "histology"}
    sheet = sheet.rename(columns=lambda column: str(column).strip())
    if missing := [name for name in names if name not in sheet.columns]:
        raise ValueError(f"{file}: no column {missing[0]!r} in row {HEADER_ROW}; expected {', '.join(names)}")
    table = sheet[list(names)].rename(columns=names).fillna("").astype(str).apply(lambda column: column.str.strip())
    return table.assign(row=[f"{file} row {line + HEADER_ROW + 1}" for line in range(len(table))])
