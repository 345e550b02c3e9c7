"""Kaggle Diabetic Retinopathy Detection, with the gradable images and splits of SoftCAM (arXiv 2505.17748)."""

import re
from pathlib import Path

from lib.data.manifest import SPLITS
from lib.data.sources.common import Entry, Listing, find_file, find_image, image_folder, read_table, whole_number

COLUMNS = ["image", "level", "onset1", "onset2", "filename"]
CLASSES = {"onset1": 2, "onset2": 2, "level": 5}
FOLDERS = ["images", "kaggle_data_512", "."]
RAW_FOLDERS = ["raw", "train", "test", "."]


def read(
    root: Path,
    target: str = "onset1",
    train: str = "kaggle_gradable_train_reduce.csv",
    images: str | None = None,
    raw: bool = False,
) -> Listing:
    """Entries of kaggle_gradable_{train,val,test}.csv; the patient is the number before _left or _right.

    target: onset1 (grade >= 1), onset2 (grade >= 2) or level (0 to 4). train: file name of the training CSV.
    images: folder of the images. raw: the images as Kaggle has them, to be cropped to the fundus circle and resized.
    """
    listing = Listing(crop=raw, size=512 if raw else None)
    files = {"train": train, "val": "kaggle_gradable_val.csv", "test": "kaggle_gradable_test.csv"}
    for split in SPLITS:
        places = [folder + files[split] for folder in ("", "csv_files/kaggle/", "kaggle/")]
        table = read_table(root, find_file(root, f"CSV of {split}", places), COLUMNS)
        folders = RAW_FOLDERS if raw else FOLDERS
        first = image_folder(root, images, folders, table["filename"])
        for row in table.itertuples():
            path = find_image(root, first, row.filename)
            if raw and images is None and not (root / path).is_file():
                found = (find_image(root, folder, row.filename) for folder in folders)
                path = next((p for p in found if (root / p).is_file()), path)
            wrong = []
            label = whole_number(getattr(row, target), range(CLASSES[target]))
            if label is None:
                most = CLASSES[target] - 1
                wrong.append(f"unknown label: {target} {getattr(row, target)!r}, expected a number from 0 to {most}")
            level = whole_number(row.level, range(5))
            if label is not None and level is not None and target != "level" and label != (level >= int(target[-1])):
                wrong.append(f"unknown label: {target} {label} with level {level}")
            patient = re.match(r"(\d+)_(?:left|right)", row.filename)
            if not patient:
                wrong.append(f"filename: expected a number before _left or _right, got {row.filename!r}")
            listing.add(Entry(path, label, split, row.row, patient[1] if patient else ""), *wrong)
    return listing
