"""Readers of published data sets, of the files as their owners publish them.

SoftCAM (arXiv 2505.17748), with its authors' split tables: Kaggle Diabetic Retinopathy, the gradable images; retinal
OCT (Kermany et al. 2018); RSNA Pneumonia Detection Challenge 2018; IDRiD, for evaluation alone.
Explainer-Classifier (Rio-Torto et al. 2020, code name xML): ImagenetHVZ, horses and zebras; NIH-NCI, the cervix.
"""

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np
import pandas as pd
import xlrd

from prepare.tables import blame, find_file, find_image, published_split, read_table, split_tables, whole_numbers

TRAIN = "kaggle_gradable_train_reduce.csv"
BOX = ["x", "y", "width", "height"]
SIDE = 1024  # the boxes of RSNA's split tables are in pixels of the original images
Lesion = Literal["MA", "HE", "EX", "SE"]  # microaneurysms, haemorrhages, hard and soft exudates
CLASSES = {"horse": 0, "zebra": 1}
MISSING = {"", ".", "-1", "-2", "-1.0", "-2.0", "nan"}
CELLS = {"GG_IMAGE_ID": "image", "GG_PATIENT_ID": "patient", "WRST_HIST_AFTER": "histology"}


def kaggle_dr(root: Path, target: str = "onset1", train: str = TRAIN, raw: bool = False) -> pd.DataFrame:
    """Rows of kaggle_gradable_{train,val,test}.csv; the patient is the number before _left or _right.

    target: onset1 (grade >= 1), onset2 (grade >= 2) or level (0 to 4). train: name of the training CSV. raw: the images
    as Kaggle has them, to be cropped to the fundus circle and resized.
    """
    files = [train, "kaggle_gradable_val.csv", "kaggle_gradable_test.csv"]
    folders = ["raw", "train", "test", "."] if raw else ["images", "kaggle_data_512", "."]
    columns = ["image", "level", "filename", target]
    rows = split_tables(root, "kaggle", files, columns, 5 if target == "level" else 2, folders)
    if target != "level":
        level, least = whole_numbers(rows["level"], 5), int(target[-1])
        differ = (rows["label"] >= 0) & (level >= 0) & (rows["label"] != (level >= least))
        blame(rows, differ, lambda row: f"unknown label: {target} {row.label} with level {row.level}")
    rows["patient"] = rows["filename"].str.extract(r"^(\d+)_(?:left|right)", expand=False).fillna("")
    blame(rows, rows["patient"] == "", lambda row: f"filename: no number before _left or _right in {row.filename!r}")
    rows.attrs.update({"crop": True, "size": 512} if raw else {})
    return rows


def oct2017(root: Path, target: str = "drusen", images: str | None = None, points: str | None = None) -> pd.DataFrame:
    """Rows of {train,val,test}.csv; target: drusen (0, 1) or level (0 NORMAL, 1 DRUSEN, 2 DME, 3 CNV).

    images: their folder. points: a CSV filename, x, y of drusen, a row per point, in pixels of the image file; discs
    around them (`radius` of `build_manifest`) are the mask.
    """
    folders = [images] if images else ["images", "OCT_preprocessed_resized_3_channels_496", "OCT2017", "."]
    files = [f"{'' if target == 'drusen' else 'multiclass/'}{split}.csv" for split in ("train", "val", "test")]
    columns, count = ["patient_id", "filename", target], 2 if target == "drusen" else 4
    rows = split_tables(root, "Retinal_OCT", files, columns, count, folders)
    marked = defaultdict(list)
    for row in read_table(root, points, ["filename", "x", "y"]).itertuples() if points else ():
        try:
            marked[row.filename].append([float(row.x), float(row.y)])
        except ValueError:
            raise ValueError(f"{root / row.row}: expected numbers x, y, got {row.x!r}, {row.y!r}") from None
    rows["points"] = [marked.pop(name, []) + marked.pop(PurePosixPath(name).name, []) for name in rows["filename"]]
    unknown = "points of an image that no split lists"
    rows.attrs["problems"] = [(name, points, unknown) for name in marked if target == "drusen"]
    return rows.assign(patient=rows["patient_id"])


def rsna(root: Path, target: str = "bin_target", boxes: str | None = None) -> pd.DataFrame:
    """Rows of {train,val,test}.csv, the boxes of several rows of an image joined; label 1 is pneumonia.

    boxes: a CSV patientId, x, y, width, height with all boxes, which then count alone, in pixels of images of side 512
    or 1024, whichever agrees with the tables; it must have their boxes.
    """
    folders = ["png_images", "images", "stage_2_train_images", "dicom", "."]
    rows = split_tables(root, "RSNA", ["train.csv", "val.csv", "test.csv"], ["filename", *BOX, target], 2, folders)
    rows["patient"], rows["box"], side = rows["filename"].map(lambda name: PurePosixPath(name).stem), _boxes(rows), SIDE
    rows["boxes"] = [[box] if box else [] for box in rows["box"]]
    expected = "box: expected four numbers or none, got"
    blame(rows, rows["box"].isna(), lambda row: f"{expected} {[row.x, row.y, row.width, row.height]}")
    if boxes:
        detailed = read_table(root, boxes, ["patientId", *BOX])
        detailed["box"] = _boxes(detailed)
        if (wrong := detailed["box"].isna()).any():
            raise ValueError(f"{root / detailed.loc[wrong, 'row'].iloc[0]}: {expected} something else")
        of_patient = defaultdict(list, detailed[detailed["box"].map(len) > 0].groupby("patientId")["box"].agg(list))
        lacking = {side: _lacking(rows, of_patient, SIDE / side) for side in (SIDE, 512)}
        side = min(lacking, key=lambda side: lacking[side].sum())
        said = f"of the {SIDE} px image is not in {boxes} ({side} px):"
        blame(rows, lacking[side], lambda row: f"box {row.box} {said} {of_patient[row.patient]}")
        rows["boxes"] = [list(of_patient[patient]) for patient in rows["patient"]]
    first, further = {}, []
    for row in rows[rows["label"] == 1].itertuples():
        if (known := first.setdefault((row.split, row.filename), row)) is not row:
            known.problem.extend(f"{row.row}: {what}" for what in row.problem)
            known.boxes.extend(row.boxes)
            further.append(row.Index)
    rows = rows.drop(index=further)
    rows["boxes"] = [[box for i, box in enumerate(found) if box not in found[:i]] for found in rows["boxes"]]
    rows["number"], rows["frame"] = rows["boxes"].map(len), [(side, side)] * len(rows)
    disagree = (rows["label"] >= 0) & ((rows["label"] > 0) != (rows["number"] > 0))
    blame(rows, disagree, lambda row: f"label {row.label} with {row.number} boxes")
    return rows


def _boxes(table: pd.DataFrame) -> list[list[float] | None]:
    """x, y, width, height of each row; [] where the cells are empty, None where they are no four numbers."""
    empty = (table[BOX].map(str.strip) == "").all(axis=1)
    values = table[BOX].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    boxes = zip(values.tolist(), empty, np.isfinite(values).all(1), strict=True)
    return [[] if none else box if good else None for box, none, good in boxes]


def _lacking(rows: pd.DataFrame, detailed: dict[str, list[list[float]]], scale: float) -> pd.Series:
    """Whether a row has a box that the detailed ones, scaled, do not have, to 2 pixels."""
    others = [scale * np.reshape(detailed[patient], (-1, 4)) for patient in rows["patient"]]
    pairs = zip(rows["box"], others, strict=True)
    return pd.Series([bool(b) and not (abs(near - b) <= 2).all(1).any() for b, near in pairs], rows.index)


def idrid(root: Path, lesions: list[Lesion] | None = None, crop: bool = True) -> pd.DataFrame:
    """Rows of all photographs, in `test` and with label 1 (retinopathy), with the masks of their lesions.

    lesions: which kinds join to the mask; None: all four. crop: to the fundus circle, 512 px.
    """
    places = [f"{place}1. Original Images" for place in ("", "A. Segmentation/", "A.%20Segmentation/")]
    images, rows = root / find_file(root, "original images", places), []
    truths = images.with_name("2. All Segmentation Groundtruths")
    masks = [path for path in truths.rglob("*") if path.suffix.lower() in (".tif", ".tiff", ".png")]
    masks = {path.stem: path.relative_to(root).as_posix() for path in masks}
    photographs = [path for path in images.rglob("*") if re.fullmatch(r"IDRiD_\d+\.jpe?g", path.name, re.I)]
    if not (photographs and masks):
        raise FileNotFoundError(f"{images.parent}: expected IDRiD_01.jpg, IDRiD_01_MA.tif and so on, got none")
    for path in sorted(photographs):
        image, kinds = path.relative_to(root).as_posix(), lesions or get_args(Lesion)
        found = [masks[name] for kind in kinds if (name := f"{path.stem}_{kind}") in masks]
        rows.append({"image": image, "row": image, "patient": path.stem, "masks": found, "problem": []})
    rows = pd.DataFrame(rows).assign(split="test", label=1)
    rows.attrs.update({"crop": True, "size": 512} if crop else {})
    return rows


def imagenet_hvz(root: Path) -> pd.DataFrame:
    """Rows of data.csv (imageID, label) in the published split: test 14.9 %, then 20 % of the rest validation.

    Masks: masks/LABEL/ID_mask.JPEG; boxes: Pascal VOC files ID.xml in annotations, its folders LABEL, or n02391049 and
    so on. The split is drawn over all rows of data.csv, whatever is dropped later.
    """
    rows = read_table(root, "data.csv", ["imageID", "label"])
    known = rows["label"].isin(CLASSES)
    blame(rows, ~known, lambda row: f"unknown label: {row.label!r}, expected horse or zebra")
    rows["split"] = published_split(rows.loc[known, "label"], 0.149, 0.2, root / "data.csv")
    found = []
    for row in rows.itertuples():
        stem, boxes, frame = PurePosixPath(row.imageID).stem, [], None
        mask = f"masks/{row.label}/{stem}_mask.JPEG"
        files = [root / "annotations" / folder / f"{stem}.xml" for folder in (row.label, stem.split("_")[0], ".")]
        for file in list(filter(Path.is_file, files))[:1]:
            try:
                boxes, frame = voc_boxes(file)
            except (ET.ParseError, AttributeError, TypeError, ValueError) as error:
                row.problem.append(f"{file.relative_to(root).as_posix()}: not a Pascal VOC annotation: {error}")
        image, masks = find_image(root, row.imageID, f"images/{row.label}"), [mask] if (root / mask).is_file() else []
        found.append({"image": image, "masks": masks, "boxes": boxes, "frame": frame})
    label = rows["label"].map(CLASSES).fillna(-1).astype(int)
    return rows.fillna({"split": "train"}).assign(label=label, **pd.DataFrame(found))


def voc_boxes(file: Path) -> tuple[list[list[float]], tuple[int, int] | None]:
    """Boxes [x, y, width, height] of a Pascal VOC file, whose pixels count from 1 (or 0), and the image's size."""
    tree, boxes = ET.parse(file).getroot(), []
    for box in tree.iter("bndbox"):
        left, top, right, bottom = (float(box.find(tag).text) for tag in ("xmin", "ymin", "xmax", "ymax"))
        left, top = (0.0 if edge == 0 else edge - 1 for edge in (left, top))
        boxes.append([left, top, right - left, bottom - top])
    frame = int(tree.findtext("size/width", "0")), int(tree.findtext("size/height", "0"))
    return boxes, frame if min(frame) > 0 else None


def nih_nci(root: Path) -> pd.DataFrame:
    """Rows of the four covariate_data.xls; label 1 where WRST_HIST_AFTER is above 1, rows without it left out.

    Split by patient, stratified by the patient's highest label: test 5 %, then 20 % of the rest validation. (The
    reference code numbers the rows instead of the patients; its split is not repeated.) Masks: IMAGE_mask.jpg.
    """
    base, tables = PurePosixPath(find_file(root, "study folder", ["data/ALTS", "ALTS"])).parent, []
    for study in ("ALTS", "Biopsy", "CVT", "NHS"):
        table = study_rows(root, find_file(root, f"table of {study}", [str(base / study / "covariate_data.xls")]))
        tables.append(table.assign(folder=str(base / study), key=f"{study}-" + table["patient"]))
    table = pd.concat(tables, ignore_index=True)
    missing = table["histology"].isin(MISSING)
    rows = table[~missing].reset_index(drop=True)
    grade = pd.to_numeric(rows["histology"], errors="coerce")
    known = np.isfinite(grade) & (grade >= 0)
    blame(rows, ~known, lambda row: f"unknown label: WRST_HIST_AFTER {row.histology!r}")
    blame(rows, rows["patient"].isin(MISSING), lambda row: "GG_PATIENT_ID is missing")
    rows["label"] = (grade > 1).astype(int)
    split = rows["key"].map(published_split(rows.groupby("key")["label"].max(), 0.05, 0.2, root))
    names = [str(PurePosixPath(image).with_suffix(".jpg")) if image else "" for image in rows["image"]]
    images = [find_image(root, *one) for one in zip(names, rows["folder"], strict=True)]
    masks = [f"{image.rpartition('.')[0]}_mask.jpg" for image in images]
    rows["masks"], rows.attrs["left_out"] = [[m] if (root / m).is_file() else [] for m in masks], int(missing.sum())
    return rows.assign(image=images, patient=rows["key"], split=split)


def study_rows(root: Path, file: str) -> pd.DataFrame:
    """image, patient, histology (text), row and problem of one study's table; ValueError naming a file that is none."""
    try:
        sheet = xlrd.open_workbook(root / file).sheet_by_index(0)
        cells = [sheet.row_values(row) for row in range(4, sheet.nrows)]
        header, *cells = [[str(value).removesuffix(".0").strip() for value in row] for row in cells]
        table = pd.DataFrame(cells, columns=header)[list(CELLS)].rename(columns=CELLS)
    except Exception as error:  # XLRDError, CompDocError, struct.error, KeyError, AssertionError ...
        expected = f"an Excel file (.xls) with {', '.join(CELLS)} in row 5"
        raise ValueError(f"{root / file}: expected {expected}: {error}") from None
    return table.assign(row=[f"{file} row {i + 6}" for i in table.index], problem=[[] for _ in table.index])
