"""SoftCAM's data sets: small trees of files in the layouts that their owners publish, and the true first rows."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from source_trees import SAMPLES, build, with_samples, write, write_dicom

from lib.data import ensure_manifest, load_description, load_manifest, read_image, ready, verify
from lib.data.manifest import MANIFESTS
from prepare import BadData
from prepare.build import READERS
from prepare.scan import fundus_window

CARDS = [p.stem for p in sorted(MANIFESTS.glob("*.yaml")) if load_description(p.stem).source]


@pytest.mark.parametrize("name", CARDS)
def test_cards_say_where_to_get_the_data_and_which_command_to_run(name, tmp_path):
    card = load_description(name)
    assert card.source in READERS and not card.synthetic and card.homepage.startswith("https://")
    assert card.licence and card.citation and card.channels == 3
    with pytest.raises(FileNotFoundError) as error:
        load_manifest(name, root=tmp_path)
    assert card.homepage in str(error.value)
    assert f"python -m prepare {name} {tmp_path}" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"no folder .*docs/data.md says"):
        build(name, tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        ensure_manifest(name, tmp_path / "none")


def test_known_numbers_of_the_published_sets():
    kaggle = (15105, 4617, 6956)
    assert {name: tuple((load_description(name).counts or {}).values()) for name in CARDS} == {
        "kaggle_dr": kaggle, "kaggle_dr_full": (34350, *kaggle[1:]), "kaggle_dr_onset2": kaggle,
        "kaggle_dr_levels": kaggle, "oct2017": (27430, 7532, 498), "oct2017_classes": (14894, 2306, 998),
        "rsna": (11369, 1264, 2230), "idrid": (0, 0, 81), "imagenet_hvz": (), "nih_nci": (),
    }  # fmt: skip
    assert [len(load_description(name).classes) for name in ("kaggle_dr_levels", "oct2017_classes")] == [5, 4]


KAGGLE = "image,level,ungradability_MEAN,ungradability_MEDIAN,Usage,onset1,onset2,filename\n"


@pytest.fixture
def kaggle(tmp_path):
    rows = {"train_reduce": [(17, 0), (20, 1)], "val": [(23, 2), (30, 0)], "test": [(13, 3), (40, 4)]}
    for split, cases in rows.items():
        lines = [f"{n}_left,{g},0.1,0.2,,{int(g >= 1)},{int(g >= 2)},{n}_left.png" for n, g in cases]
        (tmp_path / f"kaggle_gradable_{split}.csv").write_text(KAGGLE + "\n".join(lines) + "\n")
    for number in (17, 20, 23, 30, 13, 40):
        write(tmp_path / f"images/{number}_left.png", number)
    shutil.copy(tmp_path / "kaggle_gradable_train_reduce.csv", tmp_path / "kaggle_gradable_train.csv")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "target", "labels", "file"),
    [
        ("kaggle_dr", None, [0, 1, 1, 0, 1, 1], "manifest.csv"),
        ("kaggle_dr", "onset2", [0, 0, 1, 0, 1, 1], "manifest_kaggle_dr_onset2.csv"),
        ("kaggle_dr", "level", [0, 1, 2, 0, 3, 4], "manifest_kaggle_dr_levels.csv"),
        ("kaggle_dr_full", None, [0, 1, 1, 0, 1, 1], "manifest_kaggle_dr_full.csv"),
    ],
)
def test_kaggle_targets_each_have_their_manifest(kaggle, name, target, labels, file):
    frame = build(name, kaggle, target=target)
    assert frame["label"].tolist() == labels
    assert frame["patient"].tolist() == ["17", "20", "23", "30", "13", "40"]
    assert frame["split"].tolist() == ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    assert (kaggle / file).is_file()
    pd.testing.assert_frame_equal(load_manifest(frame.attrs["name"], root=kaggle), frame)
    assert len(ready(frame.attrs["name"], root=kaggle)) == 6


def test_kaggle_counts_labels_and_patients_are_checked(kaggle):
    with pytest.raises(BadData, match="kaggle_dr: 2 images of train listed, the card expects 15105"):
        build("kaggle_dr", kaggle, partial=False, drop=True)
    assert not (kaggle / "manifest.csv").exists()
    with open(kaggle / "kaggle_gradable_test.csv", "a") as table:
        table.write("17_right,5,,,,1,1,17_right.png\n20_right,0,,,,1,0,20_right.png\nx,0,,,,0,0,x.png\n")
    with pytest.raises(BadData) as error:
        build("kaggle_dr", kaggle)
    test = "_right.png of test (kaggle_gradable_test.csv line"
    assert set(error.value.table["what"]) == {
        "missing", "unknown label: onset1 1 with level 0",
        "filename: no number before _left or _right in 'x.png'",
        f"patient 17 in two splits, in train and as images/17{test} 4), with label 1",
        f"patient 20 in two splits, in train and as images/20{test} 5), with label 1",
    }  # fmt: skip
    with pytest.raises(BadData, match="unknown label: level '5', expected a whole number from 0 to 4"):
        build("kaggle_dr", kaggle, target="level")
    with pytest.raises(ValueError, match="target: expected one of level, onset1, onset2 for"):
        build("kaggle_dr", kaggle, target="onset3")
    with pytest.raises(ValueError, match="name: expected a card with a source of kaggle_dr"):
        build("shapes", kaggle)


def test_raw_kaggle_images_are_cropped_and_resized(kaggle):
    y, x = np.mgrid[:60, :90] + 0.5
    for i, number in enumerate((17, 20, 23, 30, 13, 40)):
        pixels = np.where((x - 50) ** 2 + (y - 30) ** 2 < 25**2, 100 + number, 0).astype(np.uint8)
        folder = kaggle / ("train", "test")[i > 3]
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}_left.jpeg", quality=100)
    frame = build("kaggle_dr", kaggle, raw=True, size=50)
    assert frame["image"].tolist()[::5] == [f"prepared/crop_50/{i}_left.jpeg.png" for i in ("train/17", "test/40")]
    verify(frame)
    found = read_image(kaggle / frame["image"][0]).astype(int)
    y, x = np.mgrid[:50, :50] + 0.5
    distance = np.hypot(x - 25, y - 25)
    assert (abs(found[distance < 22] - 117) < 4).all() and (found[distance > 29] < 10).all()
    assert build("kaggle_dr", kaggle, raw=True)["width"].unique() == [512]


def test_oct_drusen_with_points_and_four_classes(tmp_path):
    (tmp_path / "multiclass").mkdir()
    for i, (split, drusen, level) in enumerate((("train", 0, 0), ("val", 0, 0), ("test", 1, 3))):
        name = f"train/DRUSEN/DRUSEN-{100 + i}-1.png"
        write(tmp_path / name, i)
        (tmp_path / f"{split}.csv").write_text(f"patient_id,filename,drusen\n{100 + i},{name},{drusen}\n")
        (tmp_path / f"multiclass/{split}.csv").write_text(f"filename,patient_id,level\n{name},{100 + i},{level}\n")
    (tmp_path / "points.csv").write_text(f"filename,x,y\n{name},4,4\nDRUSEN-102-1.png,12,4\n")
    frame = build("oct2017", tmp_path, points="points.csv", radius=2)
    assert frame["label"].tolist() == [0, 0, 1] and frame["patient"].tolist() == ["100", "101", "102"]
    assert frame["mask"].map(bool).tolist() == [False, False, True]
    y, x = np.mgrid[:16, :16] + 0.5
    expected = (np.hypot(x - 4, y - 4) <= 2) | (np.hypot(x - 12, y - 4) <= 2)
    assert ((read_image(tmp_path / frame["mask"][2]) > 0) == expected).all()
    assert build("oct2017", tmp_path, target="level")["label"].tolist() == [0, 0, 3]
    (tmp_path / "points.csv").write_text("filename,x,y\nother.png,1,1\n")
    with pytest.raises(BadData, match="points of an image that no split lists"):
        build("oct2017", tmp_path, points="points.csv")


def test_missing_tables_and_columns(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no CSV of train; expected one of kaggle_gradable_train_reduce.csv, "):
        build("kaggle_dr", tmp_path)
    (tmp_path / "kaggle_gradable_train_reduce.csv").write_text("image,level\n")
    with pytest.raises(ValueError, match=r"no column 'filename'; expected image, level"):
        build("kaggle_dr", tmp_path)
    shutil.copy(MANIFESTS / "rsna.yaml", tmp_path / "own.yaml")
    with pytest.raises(FileNotFoundError, match=r"no CSV of train; expected one of train.csv"):
        build(tmp_path / "own.yaml", tmp_path)


HEAD = "filename,x,y,width,height,type,bin_target,target\n"
DETAILED = "patientId,x,y,width,height,Target\n"
B, D = "b,100,200,300,400,1\n", "d,0,0,512,256,1\nd,512,512,512,512,1\n"


@pytest.fixture
def chests(tmp_path):
    (tmp_path / "train.csv").write_text(HEAD + "a.png,,,,,Train,0,0\nb.png,100.0,200.0,300.0,400.0,Train,1,2\n")
    (tmp_path / "val.csv").write_text(HEAD + "c.png,,,,,Val,0,0\n")
    rows = "d.png,0.0,0.0,512.0,256.0,Test,1,2\nd.png,512.0,512.0,512.0,512.0,Test,1,2\n"
    (tmp_path / "test.csv").write_text(HEAD + rows)
    (tmp_path / "boxes.csv").write_text(DETAILED + B + D)
    for i, name in enumerate("abcd"):
        write(tmp_path / f"png_images/{name}.png", i, (64, 64))
    return tmp_path


def problems(*arguments, **settings):
    with pytest.raises(BadData) as error:
        build(*arguments, **settings)
    return error.value.table.to_numpy().tolist()


def test_rsna_boxes_are_scaled_by_the_images_real_size_in_png_and_in_dicom(chests):
    before = build("rsna", chests)
    frame = before.set_index("patient")
    assert json.loads(frame.loc["b", "boxes"]) == [[6.25, 12.5, 18.75, 25.0]]
    assert json.loads(frame.loc["d", "boxes"]) == [[0.0, 0.0, 32.0, 16.0], [32.0, 32.0, 32.0, 32.0]]
    assert frame.loc["a", "boxes"] == "" and frame["label"].tolist() == [0, 1, 0, 1]
    (chests / "stage_2_train_images").mkdir()
    for name in "abcd":
        pixels = read_image(chests / f"png_images/{name}.png")
        write_dicom(chests / f"stage_2_train_images/{name}.dcm", pixels)
    shutil.rmtree(chests / "png_images")
    frame = build("rsna", chests)
    assert frame["image"][0] == "prepared/full/stage_2_train_images/a.dcm.png"
    assert frame["sha256"].tolist() == before["sha256"].tolist() and frame["boxes"].tolist() == before["boxes"].tolist()


@pytest.mark.parametrize("frame", [512, 1024])
def test_rsna_detailed_boxes_in_either_frame(chests, frame):
    boxes = [("b", 100, 200, 300, 400), ("b", 500, 0, 100, 50), ("d", 0, 0, 512, 256), ("d", 512, 512, 512, 512)]
    lines = [f"{n},{','.join(str(v * frame / 1024) for v in values)},1" for n, *values in boxes] + ["a,,,,,0"]
    (chests / "boxes.csv").write_text(DETAILED + "\n".join(lines) + "\n")
    table = build("rsna", chests, boxes="boxes.csv").set_index("patient")
    assert json.loads(table.loc["b", "boxes"]) == [[6.25, 12.5, 18.75, 25.0], [31.25, 0.0, 6.25, 3.12]]


@pytest.mark.parametrize(
    ("split", "lines", "expected"),
    [
        ("train", "b.png,900,0,200,10,Train,1,2", ["box [900.0, 0.0, 200.0, 10.0] outside the image, expected "]),
        ("train", "b.png,1,1,x,1,Train,1,2", ["box: expected four numbers or none, got ['1', '1', 'x', '1']", "label"]),
        ("train", "b.png,,,,,Train,1,2", ["label 1 with 0 boxes"]),
        ("train", "a.png,,,,,Train,7,0", ["unknown label: bin_target '7', expected a whole number from 0 to 1"]),
        ("test", "d.png,0,0,512,256,Test,1,2\nd.png,512,x,512,512,Test,1,2", ["test.csv line 3: box: expected four "]),
    ],
)
def test_rsna_rows_that_are_no_box_or_no_label_are_problems_of_their_image(chests, split, lines, expected):
    (chests / f"{split}.csv").write_text(HEAD + lines + "\n")
    for (_, row, what), said in zip(problems("rsna", chests), expected, strict=True):
        assert row == f"{split}.csv line 2" and what.startswith(said)


@pytest.mark.parametrize("boxes", [None, "boxes.csv"])
def test_rsna_healthy_image_in_two_rows_is_reported_and_further_boxes_that_are_none_or_the_same_are_not(chests, boxes):
    (chests / "val.csv").write_text(HEAD + "c.png,,,,,Val,0,0\n" * 2)
    row = "b.png,100.0,200.0,300.0,400.0,Train,1,2\n"
    (chests / "train.csv").write_text(HEAD + "a.png,,,,,Train,0,0\n" + row * 2 + "b.png,,,,,Train,1,2\n")
    what = "image listed twice, in val and as png_images/c.png of val (val.csv line 2), with label 0"
    assert problems("rsna", chests, boxes=boxes) == [["png_images/c.png", "val.csv line 3", what]]
    frame = build("rsna", chests, boxes=boxes, drop=True).set_index("patient")
    assert (len(frame), frame.loc["c", "boxes"], frame.loc["b", "boxes"]) == (4, "", "[[6.25, 12.5, 18.75, 25.0]]")


def test_rsna_the_box_of_every_row_is_compared_with_the_detailed_ones(chests):
    assert len(build("rsna", chests, boxes="boxes.csv")) == 4
    (chests / "boxes.csv").write_text(DETAILED + B + D.replace("512,512,512,512", "1,2,3,4"))
    ((file, row, what),) = problems("rsna", chests, boxes="boxes.csv")
    assert (file, row) == ("png_images/d.png", "test.csv line 2")
    assert what.startswith("test.csv line 3: box [512.0, 512.0, 512.0, 512.0] of the 1024 px image is not in boxes.csv")
    assert build("rsna", chests, boxes="boxes.csv", drop=True)["patient"].tolist() == ["a", "b", "c"]
    (chests / "boxes.csv").write_text(DETAILED + B.replace("b", "x") + D)
    assert [file for file, *_ in problems("rsna", chests, boxes="boxes.csv")] == ["png_images/b.png"] * 2


def test_idrid_joins_the_lesions_that_are_asked_for(tmp_path, windows):
    base, names = tmp_path / "A. Segmentation", ("1. Microaneurysms", "2. Haemorrhages", "5. Optic Disc")
    write(base / "1. Original Images/a. Training Set/IDRiD_01.jpg", 1, (12, 8))
    write(base / "1. Original Images/b. Testing Set/IDRiD_55.jpg", 2, (12, 8))
    for i, (folder, kind) in enumerate(zip(names, ("MA", "HE", "OD"), strict=True)):
        path = base / f"2. All Segmentation Groundtruths/a. Training Set/{folder}/IDRiD_01_{kind}.tif"
        path.parent.mkdir(parents=True)
        mask = np.zeros((8, 12), np.uint8)
        mask[i, i] = 76  # the value in the published files
        Image.fromarray(mask).save(path)
    frame = build("idrid", tmp_path, crop=False)
    assert frame["split"].tolist() == ["test"] * 2 and frame["label"].tolist() == [1, 1]
    assert frame["patient"].tolist() == ["IDRiD_01", "IDRiD_55"] and frame["mask"][1] == ""
    for lesions, grey, expected in ((["HE"], 76, [[1, 1]]), (None, 255, [[0, 0], [1, 1]])):
        again = build("idrid", tmp_path, crop=False, lesions=lesions)
        assert np.argwhere(read_image(tmp_path / again["mask"][0]) == grey).tolist() == expected
    assert build("idrid", tmp_path)[["width", "height"]].to_numpy().tolist() == [[512, 512]] * 2


@with_samples
def test_true_kaggle_images_and_rows(tmp_path):
    shutil.copytree(SAMPLES / "kaggle_dr/images", tmp_path / "images")
    rows = pd.read_csv(SAMPLES / "kaggle_dr/rows.csv")
    for split, part in {"train_reduce": rows[:3], "val": rows[3:4], "test": rows[4:]}.items():
        part.to_csv(tmp_path / f"kaggle_gradable_{split}.csv", index=False)
    frame = build("kaggle_dr", tmp_path)
    assert frame["label"].tolist() == rows["onset1"].tolist() and (frame["width"] == 512).all()
    for image in frame["image"]:
        assert np.allclose(fundus_window(read_image(tmp_path / image)), (0, 0, 512, 512), atol=16), image


@with_samples
@pytest.mark.parametrize(
    ("name", "folder"),
    [("kaggle_dr", "kaggle"), ("kaggle_dr_full", "kaggle"), ("oct2017", "Retinal_OCT"),
     ("oct2017_classes", "Retinal_OCT"), ("rsna", "RSNA")],
)  # fmt: skip
def test_the_true_first_rows_are_read_and_only_their_images_are_missing(tmp_path, name, folder):
    shutil.copytree(SAMPLES / "softcam_csv" / folder, tmp_path / "csv_files" / folder)
    found = [what for *_, what in problems(name, tmp_path)]
    assert found.count("missing") == 120
    assert {what.split()[0] for what in found} <= {"missing", "patient"}


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
