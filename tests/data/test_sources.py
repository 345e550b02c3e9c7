"""Published data sets: small trees of files in the layouts that their owners publish, and the true first rows."""

import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from source_trees import SAMPLES, build, with_samples, write

from lib.data import ensure_manifest, load_description, load_manifest, prepare, read_image, sources, verify
from lib.data.manifest import MANIFESTS
from lib.data.sources import BadData
from lib.data.sources.decoding import fundus_circle

CARDS = [p.stem for p in sorted(MANIFESTS.glob("*.yaml")) if load_description(p.stem).source]


@pytest.mark.parametrize("name", CARDS)
def test_cards_say_where_to_get_the_data_and_which_command_to_run(name, tmp_path):
    card = load_description(name)
    assert card.source in sources.SOURCES and not card.synthetic and card.homepage.startswith("https://")
    assert card.licence and card.citation and card.channels == 3
    with pytest.raises(FileNotFoundError) as error:
        load_manifest(name, root=tmp_path)
    assert card.homepage in str(error.value)
    assert f"python -m lib.data.sources {name} {tmp_path}" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"no folder .*docs/data.md says"):
        build(name, tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        ensure_manifest(name, tmp_path / "none")


def test_known_numbers_of_the_published_sets():
    counts = {name: tuple((load_description(name).counts or {}).values()) for name in CARDS}
    assert counts == {
        "kaggle_dr": (15105, 4617, 6956), "kaggle_dr_full": (34350, 4617, 6956),
        "kaggle_dr_onset2": (15105, 4617, 6956), "kaggle_dr_levels": (15105, 4617, 6956), "oct2017": (27430, 7532, 498),
        "oct2017_classes": (14894, 2306, 998),
        "rsna": (11369, 1264, 2230), "idrid": (0, 0, 81), "imagenet_hvz": (), "nih_nci": (),
    }  # fmt: skip
    assert (
        len(load_description("kaggle_dr_levels").classes) == 5 and len(load_description("oct2017_classes").classes) == 4
    )


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
    again = load_manifest(frame.attrs["name"], root=kaggle)
    pd.testing.assert_frame_equal(again, frame)
    assert len(prepare(frame.attrs["name"], root=kaggle)) == 6
    (kaggle / "images/17_left.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"python -m lib.data.sources"):
        prepare(frame.attrs["name"], root=kaggle)


def test_kaggle_counts_labels_and_patients_are_checked(kaggle):
    with pytest.raises(BadData, match="kaggle_dr: 2 images of train listed, the card expects 15105"):
        build("kaggle_dr", kaggle, partial=False, drop=True)
    assert not (kaggle / "manifest.csv").exists()
    with open(kaggle / "kaggle_gradable_test.csv", "a") as table:
        table.write("17_right,5,,,,1,1,17_right.png\n20_right,0,,,,1,0,20_right.png\nx,0,,,,0,0,x.png\n")
    with pytest.raises(BadData) as error:
        build("kaggle_dr", kaggle)
    found = set(error.value.table["what"])
    test = "_right.png of test (kaggle_gradable_test.csv line"
    assert found == {
        "missing", "unknown label: onset1 1 with level 0",
        "filename: expected a number before _left or _right, got 'x.png'",
        f"patient 17 in two splits, in train and as images/17{test} 4)",
        f"patient 20 in two splits, in train and as images/20{test} 5)",
    }  # fmt: skip
    with pytest.raises(BadData, match="unknown label: level '5', expected a number from 0 to 4"):
        build("kaggle_dr", kaggle, target="level")
    with pytest.raises(ValueError, match="target: expected one of level, onset1, onset2 for"):
        build("kaggle_dr", kaggle, target="onset3")
    with pytest.raises(ValueError, match="name: expected a card with a source of kaggle_dr"):
        build("shapes", kaggle)


def test_raw_kaggle_images_are_cropped_and_resized(kaggle):
    y, x = np.mgrid[:60, :90] + 0.5
    for number in (17, 20, 23, 30, 13, 40):
        pixels = np.where((x - 50) ** 2 + (y - 30) ** 2 < 25**2, 100 + number, 0).astype(np.uint8)
        (kaggle / "train").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(kaggle / f"train/{number}_left.jpeg", quality=100)
    frame = build("kaggle_dr", kaggle, raw=True, size=50)
    assert frame["image"][0] == "prepared/crop_50/train/17_left.jpeg.png"
    verify(frame)
    found = read_image(kaggle / frame["image"][0]).astype(int)
    y, x = np.mgrid[:50, :50] + 0.5
    distance = np.hypot(x - 25, y - 25)
    assert (abs(found[distance < 22] - 117) < 4).all() and (found[distance > 29] < 10).all()
    assert build("kaggle_dr", kaggle, raw=True)["width"].unique() == [512]


def test_oct_drusen_with_points_and_four_classes(tmp_path):
    cases = {"train": ("NORMAL", 0), "val": ("NORMAL", 0), "test": ("DRUSEN", 1)}
    (tmp_path / "multiclass").mkdir()
    for i, (split, (kind, label)) in enumerate(cases.items()):
        name = f"{'test' if split == 'test' else 'train'}/{kind}/{kind}-{100 + i}-1.png"
        write(tmp_path / name, i)
        head = "patient_id,filename,type,drusen"
        (tmp_path / f"{split}.csv").write_text(f"{head}\n{100 + i},{name},{split.title()},{label}\n")
        head = "filename,patient_id,level" if split == "test" else "patient_id,height,width,label,level,filename"
        row = f"{name},{100 + i},3" if split == "test" else f"{100 + i},16,16,{kind},{label},{name}"
        (tmp_path / f"multiclass/{split}.csv").write_text(f"{head}\n{row}\n")
    (tmp_path / "points.csv").write_text("filename,x,y\ntest/DRUSEN/DRUSEN-102-1.png,4,4\nDRUSEN-102-1.png,12,4\n")
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
    with pytest.raises(ValueError, match=r"no column 'onset1'; expected image, level"):
        build("kaggle_dr", tmp_path)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(yaml.safe_load((MANIFESTS / "rsna.yaml").read_text())))
    with pytest.raises(FileNotFoundError, match=r"no CSV of train; expected one of train.csv"):
        build(tmp_path / "own.yaml", tmp_path)


@with_samples
def test_true_kaggle_images_and_rows(tmp_path):
    shutil.copytree(SAMPLES / "kaggle_dr/images", tmp_path / "images")
    rows = pd.read_csv(SAMPLES / "kaggle_dr/rows.csv")
    for split, part in {"train_reduce": rows[:3], "val": rows[3:4], "test": rows[4:]}.items():
        part.to_csv(tmp_path / f"kaggle_gradable_{split}.csv", index=False)
    frame = build("kaggle_dr", tmp_path)
    assert frame["label"].tolist() == rows["onset1"].tolist() and (frame["width"] == 512).all()
    for image in frame["image"]:
        assert np.allclose(fundus_circle(read_image(tmp_path / image)), (256, 256, 256), atol=8), image


@with_samples
@pytest.mark.parametrize(
    ("name", "folder"),
    [("kaggle_dr", "kaggle"), ("kaggle_dr_full", "kaggle"), ("oct2017", "Retinal_OCT"),
     ("oct2017_classes", "Retinal_OCT"), ("rsna", "RSNA")],
)  # fmt: skip
def test_the_true_first_rows_are_read_and_only_their_images_are_missing(tmp_path, name, folder):
    shutil.copytree(SAMPLES / "softcam_csv" / folder, tmp_path / "csv_files" / folder)
    with pytest.raises(BadData) as error:
        build(name, tmp_path)
    found = error.value.table
    assert sum(found["what"] == "missing") == 120
    assert set(found["what"].str.split().str[0]) <= {"missing", "patient"}
