"""ImagenetHVZ and NIH-NCI: published splits, VOC boxes, Excel sheets."""

import json
import struct

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from source_trees import biff2, build, write

from prepare import BadData
from prepare.published import study_rows, voc_boxes
from prepare.tables import find_image

STUDIES = ("ALTS", "Biopsy", "CVT", "NHS")
VOC = """<annotation><size><width>32</width><height>16</height><depth>3</depth></size><object><name>n02391049</name>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object></annotation>"""


def test_imagenet_hvz_has_the_published_split_masks_and_boxes(tmp_path):
    labels = ["horse", "zebra"] * 20
    names = [f"n0{2374451 if label == 'horse' else 2391049}_{i}.JPEG" for i, label in enumerate(labels)]
    pd.DataFrame({"imageID": names, "label": labels}).to_csv(tmp_path / "data.csv", index=False)
    for i, (name, label) in enumerate(zip(names, labels, strict=True)):
        write(tmp_path / f"images/{label}/{name}", i)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    (tmp_path / "masks/horse").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / f"masks/horse/{names[0][:-5]}_mask.JPEG")
    (tmp_path / "annotations/n02391049").mkdir(parents=True)
    (tmp_path / f"annotations/n02391049/{names[1][:-5]}.xml").write_text(VOC.format(1, 3, 16, 16))
    frame = build("imagenet_hvz", tmp_path)
    found = {split: frame.index[frame["split"] == split].tolist() for split in ("val", "test")}
    assert found == {"val": [5, 8, 10, 11, 24, 26, 29], "test": [6, 18, 20, 23, 31, 37]}  # as scikit-learn draws it
    assert (frame["split"] == "train").sum() == 27 and frame["label"].tolist() == [0, 1] * 20
    assert frame["mask"][0] == f"masks/horse/{names[0][:-5]}_mask.JPEG"
    assert json.loads(frame["boxes"][1]) == [[0.0, 2.0, 8.0, 14.0]]
    (tmp_path / f"annotations/n02391049/{names[1][:-5]}.xml").write_text(VOC.format(1, 3, 40, 16))
    (tmp_path / f"annotations/n02391049/{names[3][:-5]}.xml").write_text("<annotation><object>")
    table = pd.read_csv(tmp_path / "data.csv")
    table.loc[5, "label"] = "donkey"
    table.to_csv(tmp_path / "data.csv", index=False)
    with pytest.raises(BadData) as error:
        build("imagenet_hvz", tmp_path)
    found = "\n".join(error.value.table["what"])
    assert "box [0.0, 2.0, 40.0, 14.0] outside the image" in found and "not a Pascal VOC annotation" in found
    assert "unknown label: 'donkey', expected horse or zebra" in found


def test_an_image_under_another_suffix_and_one_that_is_missing(tmp_path):
    write(tmp_path / "a/b/c.png", 1)
    assert find_image(tmp_path, "c.jpg", "a/b") == "a/b/c.png"
    assert find_image(tmp_path, "c.jpg", "a", "a/b") == "a/b/c.png"
    assert find_image(tmp_path, "none.jpg", "a/b", "a") == "a/b/none.jpg"
    assert find_image(tmp_path, "", ".") == "."


def test_voc_boxes_count_from_one_and_forgive_zero(tmp_path):
    (tmp_path / "a.xml").write_text(VOC.format(0, 1, 10, 5))
    assert voc_boxes(tmp_path / "a.xml") == ([[0.0, 0.0, 10.0, 5.0]], (32, 16))


HEAD = ["GG_IMAGE_ID", "GG_PATIENT_ID", "WRST_HIST_AFTER", "AGE_GRP", "HPV_STATUS"]


def test_nih_nci_reads_row_five_splits_by_patient_and_leaves_missing_grades_out(tmp_path, windows):
    number, expected = 0, {}
    for study in STUDIES:
        cells = [["Covariate data"], [], [study], [], HEAD]
        (tmp_path / "data" / study).mkdir(parents=True)
        for patient in range(20):
            for visit in range(2):
                grade = (patient + visit) % 4
                cells.append([f"{study}_{number}.tif", f"{patient}", grade, "-1", "."])
                expected[f"data/{study}/{study}_{number}.jpg"] = int(grade > 1)
                write(tmp_path / f"data/{study}/{study}_{number}.jpg", number)
                number += 1
        cells += [[f"{study}_x{value}.tif", "99", value, "3", "1"] for value in (".", "-1", "-2")]
        (tmp_path / f"data/{study}/covariate_data.xls").write_bytes(biff2(cells))
    write(tmp_path / "data/CVT/CVT_80_mask.jpg", 999)
    frame = build("nih_nci", tmp_path)
    assert dict(zip(frame["image"], frame["label"], strict=True)) == expected
    assert frame.groupby("patient")["split"].nunique().max() == 1 and frame["patient"].nunique() == 80
    patients = frame.groupby("patient")["split"].first().value_counts().to_dict()
    assert patients == {"train": 60, "val": 16, "test": 4}
    assert frame.set_index("image").loc["data/CVT/CVT_80.jpg", "mask"] == "data/CVT/CVT_80_mask.jpg"
    assert json.loads((tmp_path / "manifest.json").read_text())["left_out"] == 12


def test_nih_nci_sheets_hold_numbers_as_text(tmp_path):
    sheet = biff2([[], [], [], [], [" GG_IMAGE_ID", *HEAD[1:]], ["a.tif", " 7 ", "", "."]])
    number = struct.pack("<HHHH3xd", 0x0003, 15, 5, 2, 3.0)  # a NUMBER record in row 6, column 3
    (tmp_path / "a.xls").write_bytes(sheet[:-4] + number + sheet[-4:])
    assert study_rows(tmp_path, "a.xls").to_dict("records") == [
        {"image": "a.tif", "patient": "7", "histology": "3", "row": "a.xls row 6", "problem": []}
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no table",
        bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600),
        biff2([["GG_IMAGE_ID"]]),
        biff2([[], [], [], [], HEAD[1:]]),
    ],
)
def test_nih_nci_damaged_sheet_is_named(tmp_path, content):
    for study in STUDIES:
        (tmp_path / study).mkdir()
        (tmp_path / study / "covariate_data.xls").write_bytes(content)
    expected = r"ALTS[/\\]covariate_data.xls: expected an Excel file \(.xls\) with GG_IMAGE_ID, .*HIST_AFTER in row 5: "
    with pytest.raises(ValueError, match=expected):
        build("nih_nci", tmp_path)
