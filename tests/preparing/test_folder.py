"""Data of one's own, and with it what holds for every data set: the report, dropping, the memory, sizes, masks."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from source_trees import write

import prepare.scan
from lib.data import ImageDataset, ensure_manifest, load_description, load_manifest, ready, verify
from prepare import BadData, build_manifest
from prepare.own_data import draw_split

REGION = np.zeros((8, 8), bool)
REGION[2:4, 3:6] = True


@pytest.fixture
def tree(tmp_path):
    """Two classes of ten images, masks for the second."""
    root = tmp_path / "mine"
    (root / "masks/dog").mkdir(parents=True)
    for i in range(10):
        write(root / f"cat/p{i // 2}_{i}.png", i, (8, 8), "RGB")
        write(root / f"dog/q{i // 2}_{i}.png", 100 + i, (8, 8), "RGB")
        Image.fromarray(REGION).save(root / f"masks/dog/q{i // 2}_{i}.png")
    return root


def build(root, **settings):
    return build_manifest("folder", root, workers=2, **settings)


def card_of(root, **changes):
    """What the card says, after these changes."""
    path = root / "dataset.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    return load_description(path)


def test_a_folder_per_class_gives_a_manifest_and_a_card(tree, windows):
    frame = build(tree, patient=r"([pq]\d+)_", shares=(0.6, 0.2, 0.2))
    assert (frame["mask"] == ("masks/" + frame["image"]).where(frame["label"] == 1, "")).all()
    sizes = frame.groupby(["label", "split"]).size().unstack()[["train", "val", "test"]]
    assert sizes.to_numpy().tolist() == [[6, 2, 2], [6, 2, 2]]
    assert frame.groupby("patient")["split"].nunique().max() == 1
    card, description = tree / "dataset.yaml", card_of(tree)
    assert (description.classes, description.channels, description.annotation) == (["cat", "dog"], 3, "mask")
    train = np.stack([np.array(Image.open(tree / p)) for p in frame.loc[frame["split"] == "train", "image"]]) / 255
    assert np.allclose(description.mean, train.mean((0, 1, 2)), atol=1e-4)
    assert np.allclose(description.std, train.std((0, 1, 2)), atol=1e-4)
    pd.testing.assert_frame_equal(load_manifest(card), frame)
    assert len(ready(card)) == 20
    samples = ImageDataset(load_manifest(card))
    assert {(int(s["label"]), int(s["mask"].sum())) for s in samples} == {(0, 0), (1, 6)}


def test_a_card_that_is_there_keeps_its_words_and_builds_by_its_path(tree):
    build(tree)
    card = tree / "dataset.yaml"
    card_of(tree, title="Pets", patch=5)
    write(tree / "cat/new.png", 77, (8, 8), "RGB")
    with pytest.raises(BadData, match="the card expects"):
        build_manifest(card)
    build(tree)
    assert (load_description(card).title, load_description(card).patch) == ("Pets", 5)
    (tree / "manifest.csv").unlink()
    assert len(ensure_manifest(card)) == len(build_manifest(card)) == 21


def test_the_patch_follows_the_size_of_the_images(tmp_path):
    for i in range(3):
        write(tmp_path / f"a/{i}.png", i, (128, 128)), write(tmp_path / f"b/{i}.png", 10 + i, (128, 128))
    for size, patch in ((None, 8), (64, 4), (64, 4), (256, 16)):
        build(tmp_path, size=size)
        assert (card_of(tmp_path).image_size, card_of(tmp_path).patch) == ((size or 128,) * 2, patch)


def test_the_order_of_the_classes_is_the_users_and_stays(tree):
    def first(**settings):
        return set(build(tree, **settings).query("label == 0")["image"].str[:3]), card_of(tree).classes

    assert first(classes=["dog", "cat"]) == first() == ({"dog"}, ["dog", "cat"])
    write(tree / "bird/new.png", 77, (8, 8), "RGB")
    assert first() == ({"dog"}, ["dog", "cat", "bird"])
    (tree / "data.csv").write_text("image,label\nbird/new.png,bird\ncat/p0_0.png,cat\ndog/q0_0.png,dog\n")
    assert build(tree)["label"].tolist() == [2, 1, 0]
    assert first(classes=["bird", "cat", "dog"]) == ({"bir"}, ["bird", "cat", "dog"])


def test_split_folders_and_a_further_class_that_is_not_known(tmp_path):
    for i, split in enumerate(("train", "val", "test")):
        write(tmp_path / split / "a/x.png", i)
        write(tmp_path / split / "b/x.png", 10 + i)
    frame = build(tmp_path)
    assert frame.set_index("image")["split"].to_dict()["val/b/x.png"] == "val"
    assert card_of(tmp_path).channels == 1
    write(tmp_path / "val/c/x.png", 30)
    with pytest.raises(BadData, match=r"val/c/x.png \(val/c/x.png\): unknown label: 'c', expected one of a, b"):
        build(tmp_path, classes=["a", "b"])


def test_everything_wrong_is_in_one_report_and_nothing_is_written(tree):
    (tree / "cat/p0_0.png").write_bytes((tree / "cat/p0_0.png").read_bytes()[:60])
    (tree / "cat/p0_1.png").write_text("text")
    (tree / "cat/p1_2.png").write_bytes((tree / "cat/p1_3.png").read_bytes())
    write(tree / "masks/dog/q0_0.png", 5, (7, 8))
    Image.new("1", (20_000, 10_000)).save(tree / "dog/q4_9.png")
    with pytest.raises(BadData, match=r"5 problem\(s\) in 20 rows, no manifest written") as error:
        build(tree, seed=1)
    table = error.value.table
    assert list(table.columns) == ["file", "row", "what"]
    said = {
        "cat/p0_0.png": "image file is truncated", "cat/p0_1.png": "cannot identify", "dog/q0_0.png": "size 7 x 8",
        "cat/p1_": "duplicate image: the same pixels, in", "dog/q4_9.png": "decompression bomb",
    }  # fmt: skip
    for file, what in said.items():
        assert [what in line for line in table["what"]] == table["file"].str.startswith(file).tolist()
    assert all(line in str(error.value) for line in table["what"])
    assert not (tree / "manifest.csv").exists() and not (tree / "dataset.yaml").exists()


def test_dropped_rows_are_recorded_beside_the_manifest(tree):
    (tree / "cat/p0_0.png").write_text("text")
    frame = build(tree, drop=True)
    assert len(frame) == 19 and "cat/p0_0.png" not in set(frame["image"])
    assert pd.read_csv(tree / "dropped.csv")["file"].tolist() == ["cat/p0_0.png"]
    record = json.loads((tree / "manifest.json").read_text())
    assert (record["listed"], record["dropped"], sum(record["counts"].values())) == (20, 1, 19)
    assert len(load_manifest(tree / "dataset.yaml")) == 19
    write(tree / "cat/p0_0.png", 0, (8, 8), "RGB")
    build(tree)
    assert not (tree / "dropped.csv").exists()


TABLE = """image,label,split,patient,mask,boxes,width,height
cat/p0_0.png,cat,train,1,,,8,8
cat/p0_1.png,cat,test,1,,,,
cat/p1_2.png,bird,train,,,,,
../cat/p1_3.png,cat,train,,,,,
dog/q0_0.png,dog,val,,masks/dog/q0_0.png,"[[1, 2, 3, 4]]",9,8
dog/q0_1.png,dog,dev,,,"[[5, 5, 4, 3]]",,
dog/none.png,dog,test,,,[1],,
dog/q0_0.png,cat,train,,,,,
"""
WRONG = [
    (2, "patient 1 in two splits, in train and as cat/p0_1.png of test (data.csv line 3), with label 0"),
    (4, "unknown label: 'bird', expected one of cat, dog"),
    (5, "../cat/p1_3.png: leaves the data set's root"),
    (6, "width: the table says 9, the file has 8"),
    (7, "split: expected train, val, test, got 'dev'"),
    (7, "box [5, 5, 4, 3] outside the image, expected [x, y, width, height] within 8 x 8 pixels"),
    (8, "boxes: expected a JSON list of [x, y, width, height], got '[1]'"),
    (8, "missing"),
    (9, "image listed twice, in train and as dog/q0_0.png of val (data.csv line 6), with label 1"),
]


def test_a_table_with_the_manifests_columns_and_all_its_problems(tree):
    (tree / "data.csv").write_text(TABLE)
    with pytest.raises(BadData) as error:
        build(tree, classes=["cat", "dog"])
    found = error.value.table[["row", "what"]].itertuples(index=False, name=None)
    assert list(found) == [(f"data.csv line {line}", what) for line, what in WRONG]
    frame = build(tree, classes=["cat", "dog"], drop=True)
    assert frame["image"].tolist() == ["cat/p0_1.png"]  # of the patient in two splits, the test image stays
    assert len(pd.read_csv(tree / "dropped.csv")) == 9


def test_with_a_size_images_masks_and_boxes_are_scaled_along(tree):
    lines = ["image,label,split,mask,boxes"]
    lines += [f'dog/q0_{i}.png,{i},train,masks/dog/q0_{i}.png,"[[3, 2, 3, 2], [0.33, 0, 7.67, 8]]"' for i in range(2)]
    (tree / "data.csv").write_text("\n".join(lines) + "\n")
    frame = build(tree, size=4)
    assert frame["image"].tolist() == ["prepared/4/dog/q0_0.png", "prepared/4/dog/q0_1.png"]
    assert frame["boxes"].map(json.loads).tolist() == [[[1.5, 1.0, 1.5, 1.0], [0.17, 0.0, 3.83, 4.0]]] * 2
    assert frame[["width", "height"]].to_numpy().tolist() == [[4, 4], [4, 4]]
    verify(frame)
    sample = ImageDataset(frame)[0]
    assert sample["image"].shape == (3, 4, 4)
    assert sample["mask"].nonzero().tolist() == [[1, 1], [1, 2]]


def test_an_interrupted_build_goes_on_and_a_changed_file_is_read_again(tree, monkeypatch):
    monkeypatch.setattr("lib.data.verification.YOUNG", 0)
    real, read, most = prepare.scan.inspect, [], [12]

    def stopping(root, entry, how):
        read.append(entry.image)
        if len(read) > most[0]:
            raise KeyboardInterrupt
        return real(root, entry, how)

    monkeypatch.setattr(prepare.scan, "inspect", stopping)
    with pytest.raises(KeyboardInterrupt):
        build_manifest("folder", tree, workers=1)
    assert not (tree / "manifest.csv").exists()
    most[0] = 1000

    def again(**settings):
        """Builds; the images that were read for it."""
        read.clear()
        verify(build(tree, **settings))
        return list(read)

    assert 0 < len(again()) < 20
    write(tree / "cat/p0_0.png", 999, (9, 9), "RGB")
    assert again() == ["cat/p0_0.png"]
    assert load_manifest(tree / "dataset.yaml").set_index("image").loc["cat/p0_0.png", "width"] == 9
    assert len(again(size=4)) == 20
    (tree / "prepared/4/cat/p0_0.png").unlink()
    assert again(size=4) == ["cat/p0_0.png"]


def test_the_drawn_split_depends_on_images_and_seed_alone():
    def drawn(names, seed):
        rows = pd.DataFrame({"image": names, "patient": "", "label": [int(name[1:]) % 3 for name in names]})
        return dict(zip(names, draw_split(rows, (0.5, 0.3, 0.2), seed), strict=True))

    names = [f"i{number}" for number in range(90)]
    first = drawn(names, 0)
    assert first == drawn(names[::-1], 0) != drawn(names, 1)
    assert "".join(first[f"i{number}"][1] for number in range(12)) == "rrraeaarrrae"
    for label in range(3):
        found = [split for name, split in first.items() if int(name[1:]) % 3 == label]
        assert [found.count(split) for split in ("train", "val", "test")] == [15, 9, 6]


def test_a_root_is_needed_and_a_csv_beside_the_card_is_not_overwritten(tree):
    with pytest.raises(ValueError, match="root: expected the folder of your images, got None"):
        build_manifest("folder")
    (tree / "dataset.csv").write_text("image,label\n")
    with pytest.raises(ValueError, match=r"dataset.csv: expected no CSV beside a card"):
        build(tree)
    assert (tree / "dataset.csv").read_text() == "image,label\n"


@pytest.fixture
def ids(tree):
    """`tree`, the masks holding label ids."""
    for i in range(10):
        Image.fromarray(np.where(REGION, 1 + i, 0).astype(np.uint8)).save(tree / f"masks/dog/q{i // 2}_{i}.png")
    return tree


def test_label_ids_of_a_folder_are_found_by_reader_and_training_alike(ids):
    def regions(frame, size=None):
        return {int(sample["mask"].sum()) for sample in ImageDataset(frame, size=size) if sample["label"] == 1}

    for size, region in ((None, 6), (4, 2)):
        build(ids, size=size, shares=(0.5, 0.25, 0.25))
        frame = ready(ids / "dataset.yaml")
        assert (regions(frame), regions(frame, (4, 4))) == ({region}, {2})
        assert frame["mask_sha256"].nunique() == 2  # none, and that of the one region


def test_the_rule_is_an_option_of_the_build_and_a_line_of_the_card(ids):
    with pytest.raises(BadData, match=r"mask masks/dog/q0_0\.png: .*expected values above 127"):
        build(ids, mask_values="half")
    build(ids)
    card = ids / "dataset.yaml"
    card_of(ids, mask_values="half")
    with pytest.raises(ValueError, match=r"masks/dog/q0_0\.png: cannot be read: expected values above 127"):
        ready(card)
    with pytest.raises(ValueError, match="expected values above 127"):
        ImageDataset(load_manifest(card))[10]
    for name in ("folder", card):  # the card that is there counts in every later build
        with pytest.raises(BadData, match="expected values above 127"):
            build_manifest(name, ids)
    build(ids, mask_values="nonzero")
    assert (ready(card)["mask"] != "").sum() == 10
