import re

import numpy as np
import pandas as pd
import pytest

from lib import PROJECT
from lib.data import load_description, load_manifest
from lib.data.manifest import parse_boxes


@pytest.mark.parametrize("name", ["chest", "digits", "fundus", "shapes"])
def test_committed_manifests_pass_every_check(name):
    description, frame = load_description(name), load_manifest(name, root="elsewhere")
    assert description.synthetic and description.patch == 8 and description.generator["seed"] == 0
    assert frame.groupby("split").size().to_dict() == description.counts
    assert frame.attrs["name"] == name and frame.attrs["root"].endswith("elsewhere")
    assert load_manifest(name).attrs["root"] == str(PROJECT / "datasets" / name)
    for _, split in frame.groupby("split"):
        assert np.abs(np.cumsum(2 * split["label"].to_numpy() - 1)).max() <= 1  # every prefix is balanced
    with_mask = frame["mask"] != ""
    assert (with_mask == (frame["mask_sha256"] != "")).all()
    assert with_mask.all() if name == "digits" else (with_mask == (frame["label"] == 1)).all()
    assert ((frame["boxes"] != "") == (with_mask & (name != "fundus"))).all()


def test_one_split_and_types(own):
    frame = load_manifest(own, "val")
    assert len(frame) == 3 and set(frame["split"]) == {"val"} and list(frame.index) == [0, 1, 2]
    assert frame["label"].dtype == frame["width"].dtype == int
    assert frame.attrs == {"name": "own", "root": str(own.parent / "images_of_own"), "mask_values": None}


SHA = "0" * 64
WRONG = {
    "label word": ({(1, "label"): "x"}, r"line 3, column label: 'x': expected a whole number from 0"),
    "label range": ({(1, "label"): "2"}, r"line 3, column label: 2: expected one of the 2 classes"),
    "split": ({(0, "split"): "dev"}, r"line 2, column split: 'dev': expected train, val or test"),
    "width": ({(0, "width"): "0"}, r"line 2, column width: '0': expected a whole number from 1"),
    "sha": ({(0, "sha256"): "abc"}, r"line 2, column sha256: 'abc': expected 64 hexadecimal digits"),
    "mask sha": ({(0, "mask_sha256"): "abc"}, "line 2, column mask_sha256: 'abc': expected 64 hexadecimal .*, or none"),
    "empty": ({(0, "image"): ""}, r"line 2, column image: '': expected a path inside"),
    "up": ({(2, "mask"): "../m.png"}, r"line 4, column mask: '../m.png': expected a path inside the data set's root"),
    "absolute": ({(2, "image"): "/m.png"}, r"line 4, column image: '/m.png': expected a path inside"),
    "boxes json": ({(2, "boxes"): "[[1"}, r"line 4, column boxes: '\[\[1': expected a JSON list of"),
    "boxes three": ({(2, "boxes"): "[[1,2,3]]"}, r"line 4, column boxes: .* expected a JSON list of"),
    "boxes word": ({(2, "boxes"): '[["1",2,3,4]]'}, r"line 4, column boxes: .* expected a JSON list of"),
    "boxes out": ({(2, "boxes"): "[[60,0,5,5]]"}, r"line 4, column boxes: .* inside the image of 64 x 64 pixels"),
    "patient": (
        {(0, "patient"): "p", (6, "patient"): "p"},
        r"line 8, column patient: 'p': in val, but already in train on line 2",
    ),
    "same image": (
        {(0, "sha256"): SHA, (9, "sha256"): SHA},
        rf"line 11, column sha256: '{SHA}': in test, but already in train on line 2",
    ),
    "twice": ({(0, "sha256"): SHA, (1, "sha256"): SHA}, r"line 3, column sha256: .* in train, but already in train"),
    "same path": ({(1, "image"): "images/train/00000.png"}, r"line 3, column image: .* already in train on line 2"),
    "counts": ({(5, "split"): "val"}, r"column split: 5 rows of 'train': expected 6"),
}


@pytest.mark.parametrize(("cells", "message"), WRONG.values(), ids=WRONG)
def test_a_failed_check_names_file_line_column_and_value(edit, cells, message):
    path = edit(cells)
    with pytest.raises(ValueError, match=message) as error:
        load_manifest(path)
    assert str(path.with_suffix(".csv")) in str(error.value)


def test_all_problems_at_once_up_to_twenty(edit):
    path = edit({(0, "label"): "7", (1, "split"): "dev", (2, "boxes"): "[1]"})
    with pytest.raises(ValueError, match="3 problem") as error:
        load_manifest(path)
    assert re.findall(r"line \d", str(error.value)) == ["line 2", "line 3", "line 4"]
    path = edit({(row, column): "?" for row in range(13) for column in ("split", "width")})
    with pytest.raises(ValueError, match="26 problem") as error:
        load_manifest(path)
    assert len(str(error.value).splitlines()) == 22 and str(error.value).endswith("... and 6 more")


def test_columns_missing_or_unknown(edit, own):
    table = pd.read_csv(own.with_suffix(".csv"), dtype=str)
    table.assign(age="3").drop(columns="mask").to_csv(own.with_suffix(".csv"), index=False)
    with pytest.raises(ValueError, match=r"own\.csv: columns missing or not known: age, mask; expected \['image', "):
        load_manifest(own)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"colour": "red"}, "colour\n.*Extra inputs are not permitted"),
        ({"mean": [0.5]}, r"own.yaml: mean, std: expected 3 values \(channels\), got \[0.5\]"),
        ({"std": [0.5, 0.5, 0.0]}, "std"),
        ({"mean": [0.5, float("nan"), 0.5]}, r"mean\.1\n.*finite number"),
        ({"std": [0.5, 0.5, float("inf")]}, r"std\.2\n.*finite number"),
        ({"mask_values": "half of it"}, r"mask_values\n.*'nonzero' or 'half'"),
        ({"annotation": "polygon"}, "annotation"),
        ({"counts": {"dev": 3}}, "counts"),
        ({"generator": {"seed": 1.5}}, "generator: expected a seed, a whole number from 0, got 1.5"),
    ],
)
def test_a_wrong_yaml_is_refused(edit, card, message):
    with pytest.raises(ValueError, match=message) as error:
        load_description(edit(**card))
    assert "own.yaml" in str(error.value)


def test_unknown_names_and_splits_and_where_the_csv_may_lie(own):
    with pytest.raises(FileNotFoundError, match=r"'retina'.*expected one of chest, .*, rsna, shapes, or the path"):
        load_manifest("retina")
    with pytest.raises(ValueError, match=r"split: expected one of .* got 'dev'"):
        load_manifest(own, "dev")
    own.with_suffix(".csv").unlink()
    assert len(load_manifest(own)) == 13  # of the root's own
    (own.parent / "images_of_own" / "manifest.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no manifest .*with the columns image, label"):
        load_manifest(own)


@pytest.mark.parametrize("content", [b"", b"image,label\n\xff\xfe,1\n"])
def test_a_manifest_that_is_no_csv_is_named(own, content):
    own.with_suffix(".csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"own.csv: expected a CSV in UTF-8: "):
        load_manifest(own)


def test_boxes_by_hand():
    assert parse_boxes("") == []
    assert parse_boxes("[[0, 1.5, 2, 1]]") == [[0, 1.5, 2, 1]]
