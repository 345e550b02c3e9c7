import json
import zlib

import numpy as np
import pytest
from PIL import Image

from lib.data import load_description, load_manifest, pixel_hash, read_image, read_mask
from lib.data.pixels import box_mask
from prepare import generate
from prepare.digits import sources
from prepare.drawing import bounding_box, smooth_noise, soft, to_uint8
from prepare.generation import GENERATORS

NAMES = list(GENERATORS)
FEW = {"train": 3, "val": 2, "test": 2}


def _draw(name, label, seed, **parameters):
    return GENERATORS[name].draw(label, np.random.default_rng(seed), **parameters)


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_manifest_is_what_the_generator_makes(name, tmp_path):
    made = dict(load_description(name).generator)
    frame = generate(name, tmp_path, made.pop("seed"), FEW, **made)
    committed = load_manifest(name)
    committed = committed[committed.groupby("split").cumcount() < committed["split"].map(FEW)].reset_index(drop=True)
    assert frame.to_csv() == committed.to_csv()


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_pixels_and_fewer_are_the_first_of_more(name, tmp_path):
    few = generate(name, tmp_path / "few", 7, {"train": 3})
    more = generate(name, tmp_path / "more", 7, {"train": 5, "test": 2})
    other = generate(name, tmp_path / "other", 8, {"train": 3})
    assert few.to_csv() == more.head(3).to_csv()
    assert not set(few["sha256"]) & set(other["sha256"])
    assert more["sha256"].is_unique
    for path in few["image"]:
        assert (tmp_path / "few" / path).read_bytes() == (tmp_path / "more" / path).read_bytes()
    row, key = more.iloc[-1], [7, zlib.crc32(name.encode()), 2, 1]  # of seed, name, split and number alone
    pixels = _draw(name, row["label"], key, **({"split": "test"} if name == "digits" else {}))[0]
    assert (read_image(tmp_path / "more" / row["image"]) == pixels).all()


@pytest.mark.parametrize("name", NAMES)
def test_files_are_what_the_description_says(name, tmp_path):
    description, frame = load_description(name), generate(name, tmp_path, 1, {"train": 6})
    for row in frame.itertuples():
        with Image.open(tmp_path / row.image) as image:
            assert image.mode == ("L" if description.channels == 1 else "RGB")
            assert image.size == (row.width, row.height) == tuple(description.image_size)
        if row.mask:
            mask = read_image(tmp_path / row.mask)
            assert set(np.unique(mask)) == {0, 255}
            assert row.mask_sha256 == pixel_hash(read_mask(tmp_path / row.mask)) == pixel_hash(mask > 0)
        if row.boxes and name != "shapes":
            assert (box_mask(json.loads(row.boxes), row.height, row.width) == (mask > 0)).all()


@pytest.mark.parametrize("seed", range(25))
def test_fundus_mask_is_exactly_what_the_disease_changed(seed):
    diseased, mask, _ = _draw("fundus", 1, seed)
    healthy, none, _ = _draw("fundus", 0, seed)
    assert ((diseased != healthy).any(-1) == mask).all()
    assert mask.sum() > 20 and not none.any()


@pytest.mark.parametrize("seed", range(25))
def test_chest_box_is_the_smallest_around_what_the_opacity_changed(seed):
    ill, mask, extras = _draw("chest", 1, seed)
    clear, none, no_boxes = _draw("chest", 0, seed)
    assert extras["boxes"] == [bounding_box(ill != clear)]
    assert (box_mask(extras["boxes"], 96, 96) == mask).all()
    assert (ill.astype(int) - clear).min() >= 0 and not none.any() and no_boxes["boxes"] == []


@pytest.mark.parametrize("seed", range(25))
def test_digits_differ_only_inside_their_boxes(seed):
    first, mask_first, _ = _draw("digits", 0, seed)
    second, mask_second, _ = _draw("digits", 1, seed)
    changed = first != second
    assert changed.any() and not (changed & ~(mask_first | mask_second)).any()


def test_digits_of_the_splits_are_disjoint():
    used = [set(np.concatenate(list(sources(split)[0].values())).tolist()) for split in ("train", "val", "test")]
    assert set.union(*used) == set(range(1797)) and sum(map(len, used)) == 1797
    frame = load_manifest("digits")
    for rows, split in zip(used, ("train", "val", "test"), strict=True):
        assert {int(p.removeprefix("source-")) for p in frame.loc[frame["split"] == split, "patient"]} <= rows


def test_brightness_does_not_give_the_label_away():
    for name in ("digits", "shapes"):
        means = [[_draw(name, label, seed)[0].mean() for seed in range(80)] for label in (0, 1)]
        spread = np.std(means[0])
        assert abs(np.mean(means[0]) - np.mean(means[1])) < 0.6 * spread, name


IMPOSSIBLE = [
    ("fundus", "size", 10, "size"),
    ("fundus", "lesion_scale", 9, "lesion_scale"),
    ("fundus", "lesions", 9, "lesions"),
    ("chest", "contrast", 0, "contrast"),
    ("digits", "digits", [4, 4], r"digits: expected two different digits, got \(4, 4\)"),
    ("digits", "digits", [4, 12], "digits"),
    ("shapes", "noise", -1, "noise"),
    ("shapes", "polygon", (5, 3), r"polygon: expected p >= 3 and 1 <= q < p / 2, got \(5, 3\)"),
    ("shapes", "polygon", (6, 3), r"polygon: .* got \(6, 3\)"),
    ("shapes", "polygon", (2, 1), r"polygon: .* got \(2, 1\)"),
]
EFFECTIVE = [
    ("fundus", "lesion_scale", 2.0), ("fundus", "size", 64), ("chest", "contrast", 3.0), ("chest", "size", 128),
    ("digits", "digits", (3, 8)), ("shapes", "polygon", (7, 3)), ("shapes", "noise", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameter", "value", "message"), IMPOSSIBLE)
def test_impossible_parameters_are_refused(name, parameter, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        generate(name, tmp_path, 0, {"train": 1}, **{parameter: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "parameter", "value"), EFFECTIVE)
def test_every_parameter_has_an_effect(name, parameter, value):
    changed, default = _draw(name, 1, 1, **{parameter: value})[0], _draw(name, 1, 1)[0]
    assert changed.shape != default.shape or (changed != default).any()


def test_generate_refuses_names_splits_and_counts(tmp_path):
    with pytest.raises(ValueError, match="name: expected one of chest, digits, fundus, shapes, got 'retina'"):
        generate("retina", tmp_path, 0, {"train": 1})
    with pytest.raises(ValueError, match="counts: expected numbers from 0 for train, val, test, got 'dev': 1"):
        generate("shapes", tmp_path, 0, {"dev": 1})
    with pytest.raises(ValueError, match="got 'train': -1"):
        generate("shapes", tmp_path, 0, {"train": -1})


def test_drawing_by_hand():
    assert to_uint8(np.array([-1.0, 0.0, 0.5, 127.4999999999 / 255, 1.0, 2.0])).tolist() == [0, 0, 128, 128, 255, 255]
    assert soft(np.array([-1.0, -0.5, 0.0, 0.25, 0.5])).tolist() == [1, 1, 0.5, 0.25, 0]
    mask = np.zeros((5, 6), dtype=bool)
    mask[1, 4] = mask[3, 2] = True
    assert bounding_box(mask) == [2, 1, 3, 3]
    noise = smooth_noise(np.random.default_rng(0), 400, 40)
    assert noise.shape == (400, 400) and abs(noise.mean()) < 0.05 and 0.35 < noise.std() < 0.65
    assert np.abs(np.diff(noise, axis=0)).max() < 0.5
