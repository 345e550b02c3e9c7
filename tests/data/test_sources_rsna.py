"""RSNA chest X-rays: boxes in two frames, PNG and DICOM."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from source_trees import SAMPLES, build, with_samples, write, write_dicom

from lib.data import read_image
from lib.data.sources import BadData

HEAD = "filename,x,y,width,height,type,bin_target,target\n"


@pytest.fixture
def rsna(tmp_path):
    (tmp_path / "train.csv").write_text(HEAD + "a.png,,,,,Train,0,0\nb.png,100.0,200.0,300.0,400.0,Train,1,2\n")
    (tmp_path / "val.csv").write_text(HEAD + "c.png,,,,,Val,0,0\n")
    rows = "d.png,0.0,0.0,512.0,256.0,Test,1,2\nd.png,512.0,512.0,512.0,512.0,Test,1,2\n"
    (tmp_path / "test.csv").write_text(HEAD + rows)
    for i, name in enumerate("abcd"):
        write(tmp_path / f"png_images/{name}.png", i, (64, 64))
    return tmp_path


def test_rsna_boxes_are_scaled_by_the_images_real_size(rsna):
    frame = build("rsna", rsna).set_index("patient")
    assert json.loads(frame.loc["b", "boxes"]) == [[6.25, 12.5, 18.75, 25.0]]
    assert json.loads(frame.loc["d", "boxes"]) == [[0.0, 0.0, 32.0, 16.0], [32.0, 32.0, 32.0, 32.0]]
    assert frame.loc["a", "boxes"] == "" and frame["label"].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("frame", [512, 1024])
def test_rsna_detailed_boxes_in_either_frame(rsna, frame):
    scale = 1024 // frame
    boxes = [("b", 100, 200, 300, 400), ("b", 500, 0, 100, 50), ("d", 0, 0, 512, 256), ("d", 512, 512, 512, 512)]
    lines = [f"{n},{','.join(str(v / scale) for v in values)},1" for n, *values in boxes] + ["a,,,,,0"]
    (rsna / "boxes.csv").write_text("patientId,x,y,width,height,Target\n" + "\n".join(lines) + "\n")
    table = build("rsna", rsna, boxes="boxes.csv").set_index("patient")
    assert json.loads(table.loc["b", "boxes"]) == [[6.25, 12.5, 18.75, 25.0], [31.25, 0.0, 6.25, 3.12]]
    lines[0] = "b,1,2,3,4,1"
    (rsna / "boxes.csv").write_text("patientId,x,y,width,height,Target\n" + "\n".join(lines) + "\n")
    with pytest.raises(BadData, match=r"box \[100.0, 200.0, 300.0, 400.0\] of the 1024 px image is not in boxes.csv"):
        build("rsna", rsna, boxes="boxes.csv")


def test_rsna_bad_boxes_and_labels(rsna):
    rows = "b.png,900,0,200,10,Train,1,2\ne.png,1,1,x,1,Train,1,2\nc2.png,,,,,Train,1,2\na.png,,,,,Train,7,0\n"
    (rsna / "train.csv").write_text(HEAD + rows)
    write(rsna / "png_images/c2.png", 9), write(rsna / "png_images/e.png", 10)
    with pytest.raises(BadData) as error:
        build("rsna", rsna)
    found = "\n".join(error.value.table["what"])
    assert "box [900.0, 0.0, 200.0, 10.0] outside the image" in found
    assert "box: expected four numbers or none, got ['1', '1', 'x', '1']" in found
    assert "label 1 with 0 boxes" in found and "unknown label: bin_target '7', expected 0 or 1" in found


@pytest.mark.parametrize("boxes", [None, "boxes.csv"])
def test_rsna_healthy_image_in_two_rows_is_reported(rsna, boxes):
    (rsna / "val.csv").write_text(HEAD + "c.png,,,,,Val,0,0\n" * 2)
    (rsna / "boxes.csv").write_text(
        "patientId,x,y,width,height,Target\nb,100,200,300,400,1\nd,0,0,512,256,1\nd,512,512,512,512,1\n"
    )
    with pytest.raises(BadData) as error:
        build("rsna", rsna, boxes=boxes)
    expected = ("png_images/c.png", "val.csv line 3")
    what = "image listed twice, in val and as png_images/c.png of val (val.csv line 2)"
    assert error.value.table.to_numpy().tolist() == [[*expected, what]]
    frame = build("rsna", rsna, boxes=boxes, drop=True).set_index("patient")
    assert (len(frame), frame.loc["c", "boxes"]) == (4, "")


def test_rsna_the_box_of_every_row_is_compared_with_the_detailed_ones(rsna):
    head, whole = "patientId,x,y,width,height,Target\n", "b,100,200,300,400,1\nd,0,0,512,256,1\n"
    (rsna / "boxes.csv").write_text(head + whole + "d,1,2,3,4,1\n")
    with pytest.raises(BadData) as error:
        build("rsna", rsna, boxes="boxes.csv")
    ((file, row, what),) = error.value.table.itertuples(index=False)
    assert (file, row) == ("png_images/d.png", "test.csv line 3")
    assert what.startswith("box [512.0, 512.0, 512.0, 512.0] of the 1024 px image is not in boxes.csv")
    assert build("rsna", rsna, boxes="boxes.csv", drop=True)["patient"].tolist() == ["a", "b", "c"]
    (rsna / "boxes.csv").write_text(head + whole + "d,512,512,512,512,1\n")
    assert len(build("rsna", rsna, boxes="boxes.csv")) == 4


def test_rsna_further_row_that_is_no_box_is_a_problem_of_its_image(rsna):
    (rsna / "test.csv").write_text(HEAD + "d.png,0,0,512,256,Test,1,2\nd.png,512,x,512,512,Test,1,2\n")
    with pytest.raises(BadData) as error:
        build("rsna", rsna)
    what = "box: expected four numbers or none, got ['512', 'x', '512', '512']"
    assert error.value.table.to_numpy().tolist() == [["png_images/d.png", "test.csv line 3", what]]


def test_rsna_further_row_without_a_box_or_with_the_same_adds_none(rsna):
    row = "b.png,100.0,200.0,300.0,400.0,Train,1,2\n"
    (rsna / "train.csv").write_text(HEAD + "a.png,,,,,Train,0,0\n" + row * 2 + "b.png,,,,,Train,1,2\n")
    assert json.loads(build("rsna", rsna).set_index("patient").loc["b", "boxes"]) == [[6.25, 12.5, 18.75, 25.0]]


def test_rsna_from_dicom(rsna):
    (rsna / "stage_2_train_images").mkdir()
    for name in "abcd":
        pixels = read_image(rsna / f"png_images/{name}.png")
        write_dicom(rsna / f"stage_2_train_images/{name}.dcm", pixels)
    before = build("rsna", rsna)
    shutil.rmtree(rsna / "png_images")
    frame = build("rsna", rsna)
    assert frame["image"][0] == "prepared/full/stage_2_train_images/a.dcm.png"
    assert frame["sha256"].tolist() == before["sha256"].tolist() and frame["boxes"].tolist() == before["boxes"].tolist()


@with_samples
def test_true_rsna_images_with_their_boxes(tmp_path):
    shutil.copytree(SAMPLES / "rsna/png_images", tmp_path / "png_images")
    rows = pd.read_csv(SAMPLES / "rsna/rows.csv")
    for split in ("train", "val", "test"):
        rows[: 3 if split == "test" else 0].to_csv(tmp_path / f"{split}.csv", index=False)
    shutil.copy(SAMPLES / "rsna/boxes_512.csv", tmp_path / "boxes_512.csv")
    frame = build("rsna", tmp_path, boxes="boxes_512.csv").set_index("patient")
    truth = pd.read_csv(tmp_path / "boxes_512.csv").set_index("patientId")[["x", "y", "width", "height"]] * 2
    for patient, row in frame.iterrows():
        assert np.allclose(json.loads(row["boxes"]), truth.loc[patient].to_numpy(), atol=0.01)
    assert (frame["width"] == 1024).all()
