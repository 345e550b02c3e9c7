"""A manifest: what is checked of it, the order in which its rows are given out, the hash by which a run knows them."""

import re

import numpy as np
import pandas as pd
import pytest
from source_trees import build, write

from lib import PROJECT
from lib.data import fair_order, load_description, load_manifest, manifest_hash, ready
from lib.data.manifest import COLUMNS, parse_boxes


@pytest.mark.parametrize("name", ["chest", "digits", "digits10", "fundus", "fundus_grades", "shapes"])
def test_committed_manifests_pass_every_check(name):
    description, frame = load_description(name), load_manifest(name, root="elsewhere")
    assert (
        description.synthetic
        and description.patch == 8
        and description.generator["seed"] == (len(description.classes) > 2)
    )
    assert frame.attrs["name"] == name and frame.attrs["root"].endswith("elsewhere")
    assert load_manifest(name).attrs["root"] == str(PROJECT / "datasets" / name)
    for _, split in frame.groupby("split"):
        number = np.cumsum(split["label"].to_numpy()[:, None] == np.arange(len(description.classes)), 0)
        assert (number.max(1) - number.min(1)).max() <= 1  # every prefix is balanced
    with_mask = frame["mask"] != ""
    assert (with_mask == (frame["mask_sha256"] != "")).all()
    assert with_mask.all() if name.startswith("digits") else (with_mask == (frame["label"] > 0)).all()
    assert ((frame["boxes"] != "") == (with_mask & (not name.startswith("fundus")))).all()


def test_one_split_and_types(own):
    frame = load_manifest(own, "val")
    assert len(frame) == 3 and set(frame["split"]) == {"val"} and list(frame.index) == [0, 1, 2]
    assert frame["label"].dtype == frame["width"].dtype == int
    assert frame.attrs == {"name": "own", "root": str(own.parent / "images_of_own"), "mask_values": None}


SHA = "0" * 64


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({(1, "label"): "x"}, "line 3, column label: 'x': expected a whole number from 0"),
        ({(1, "label"): "2"}, "line 3, column label: 2: expected one of the 2 classes"),
        ({(0, "split"): "dev"}, "line 2, column split: 'dev': expected train, val or test"),
        ({(0, "width"): "0"}, "line 2, column width: '0': expected a whole number from 1"),
        ({(0, "sha256"): "abc"}, "line 2, column sha256: 'abc': expected 64 hexadecimal digits"),
        ({(0, "mask_sha256"): "abc"}, "line 2, column mask_sha256: 'abc': expected 64 hexadecimal .*, or none"),
        ({(0, "image"): ""}, "line 2, column image: '': expected a path inside"),
        ({(2, "mask"): "../m.png"}, r"line 4, column mask: '../m.png': expected a path inside the data set's root"),
        ({(2, "image"): "/m.png"}, "line 4, column image: '/m.png': expected a path inside"),
        ({(2, "boxes"): "[[1"}, r"line 4, column boxes: '\[\[1': expected a JSON list of"),
        ({(2, "boxes"): "[[60,0,5,5]]"}, "line 4, column boxes: .* inside the image of 64 x 64 pixels"),
        ({(0, "patient"): "p", (6, "patient"): "p"}, "line 8, column patient: 'p': in val, but already in train on"),
        ({(0, "sha256"): SHA, (9, "sha256"): SHA}, f"line 11, column sha256: '{SHA}': in test, but already in train"),
        (
            {(0, "sha256"): SHA, (1, "sha256"): SHA},
            "line 3, column sha256: .* in train, but already in train on line 2",
        ),
        ({(1, "image"): "images/train/00000.png"}, "line 3, column image: .* already in train on line 2"),
        ({(5, "split"): "val"}, "column split: 5 rows of 'train': expected 6"),
    ],
)
def test_a_failed_check_names_file_line_column_and_value(edit, cells, message):
    path = edit(cells)
    with pytest.raises(ValueError, match=message) as error:
        load_manifest(path)
    assert str(path.with_suffix(".csv")) in str(error.value)


def test_all_problems_at_once_up_to_twenty(edit):
    path = edit({(row, column): "?" for row in range(13) for column in ("split", "width")})
    with pytest.raises(ValueError, match="26 problem") as error:
        load_manifest(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 22 and lines[-1].strip() == "... and 6 more"
    assert re.findall(r"line \d+", " ".join(lines[1:5])) == ["line 2", "line 2", "line 3", "line 3"]


def test_columns_missing_or_unknown(edit):
    path = edit({(0, "age"): "3"}, drop=["mask"])
    with pytest.raises(ValueError, match=r"own\.csv: columns missing or not known: age, mask; expected \['image', "):
        load_manifest(path)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"colour": "red"}, "colour\n.*Extra inputs are not permitted"),
        ({"mean": [0.5]}, r"own.yaml: mean, std: expected 3 values \(channels\), got \[0.5\]"),
        ({"std": [0.5, 0.5, 0.0]}, r"std\.2\n.*greater than 0"),
        ({"std": [0.5, 0.5, float("inf")]}, r"std\.2\n.*finite number"),
        ({"mask_values": "half of it"}, r"mask_values\n.*'nonzero' or 'half'"),
        ({"counts": {"dev": 3}}, r"counts\.dev\..*\n.*'train', 'val' or 'test'"),
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


def test_boxes_by_hand():
    assert parse_boxes("") == parse_boxes("[]") == []
    assert parse_boxes("[[0, 1.5, 2, 1]]") == [[0, 1.5, 2, 1]]


def test_every_limit_of_a_listing_by_class_has_the_classes_in_proportion(tmp_path):
    for i, name in enumerate(["healthy"] * 30 + ["mild"] * 9 + ["severe"]):
        write(tmp_path / f"train/{name}/{i:02d}.png", i, (8, 8))
    build("folder", tmp_path)
    card = tmp_path / "dataset.yaml"
    assert load_manifest(card)["label"].is_monotonic_increasing
    whole = ready(card)
    for most in (1, 2, 5, 10, 21, 39, 40):
        frame = ready(card, limit={"train": most})
        assert frame["image"].tolist() == whole["image"].tolist()[:most]
        assert np.abs(np.bincount(frame["label"], minlength=3) - most * np.array([30, 9, 1]) / 40).max() < 1, most
    assert whole["label"].tolist().index(2) in (19, 20)  # the only one of its class, in the middle


@pytest.mark.parametrize("count", [1, 2, 7, 100, 401])
def test_the_order_is_that_of_the_definition_and_any_prefix_is_fair(count):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame("", index=range(count), columns=COLUMNS)
    hashes = [rng.bytes(32).hex() for _ in range(count)]
    frame = frame.assign(label=rng.choice(3, count, p=[0.7, 0.25, 0.05]), split="train", sha256=hashes)
    found = fair_order(frame)
    keys = {}
    for row in frame.itertuples():
        of_class = sorted(frame.loc[frame["label"] == row.label, "sha256"])
        keys[row.sha256] = ((of_class.index(row.sha256) + 0.5) / len(of_class), row.sha256)
    assert found["sha256"].tolist() == sorted(keys, key=keys.get)
    taken = np.cumsum(np.eye(3)[found["label"]], axis=0)
    assert np.abs(taken - taken[-1] / count * np.arange(1, count + 1)[:, None]).max() < 1


def test_the_order_does_not_depend_on_that_of_the_csv_and_rows_keep_their_index(own):
    first, frame = ready(own), load_manifest(own)
    assert list(first["split"].unique()) == ["train", "val", "test"]
    ordered = fair_order(frame)
    pd.testing.assert_frame_equal(ordered.sort_index(), frame)
    assert ordered.attrs == frame.attrs and list(ordered.index) != list(frame.index)
    table = pd.read_csv(own.with_suffix(".csv"), dtype=str, keep_default_na=False)
    table.sample(frac=1, random_state=1).to_csv(own.with_suffix(".csv"), index=False)
    assert load_manifest(own)["image"].tolist() != load_manifest(own)["image"].sort_values().tolist()
    assert ready(own)["image"].tolist() == first["image"].tolist()
    assert fair_order(first)["image"].tolist() == first["image"].tolist()


def test_the_hash_is_of_content_and_not_of_order(own):
    frame = ready(own)
    found = manifest_hash(frame)
    assert len(found) == 16 and int(found, 16) >= 0
    assert manifest_hash(frame.sample(frac=1, random_state=0)) == found == manifest_hash(ready(own))
    assert manifest_hash(frame[:-1]) != found
    other = {"label": 1 - frame["label"], "split": frame["split"][::-1].to_numpy(), "width": 63, "height": 63}
    for column in COLUMNS:
        assert manifest_hash(frame.assign(**{column: other.get(column, "x")})) != found, column
