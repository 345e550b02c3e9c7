import hashlib
import json
import math
import zlib
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lib.data import load_description, load_manifest, read_image, verify
from lib.data.manifest import MANIFESTS
from lib.data.pixels import box_mask
from prepare import generate
from prepare.digits import sources
from prepare.drawing import bounding_box, smooth_noise, soft, to_uint8
from prepare.generation import GENERATORS
from prepare.shapes import star_coverage

NAMES = list(GENERATORS)
EMBEDDED = [*NAMES, "digits10", "fundus_grades"]
FEW = {"train": 3, "val": 2, "test": 2}
TEN = tuple(range(10))
GRADES = load_description("fundus_grades").generator["grades"]


def _draw(name, label, seed, **parameters):
    return GENERATORS[name].draw(label, np.random.default_rng(seed), **parameters)


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_committed_manifest_is_what_the_generator_makes_and_its_files_what_the_card_says(name, tmp_path):
    description = load_description(name)
    made = {"generator": name, **description.generator}
    frame = generate(made.pop("generator"), tmp_path, made.pop("seed"), FEW, **made)
    committed = load_manifest(name)
    committed = committed[committed.groupby("split").cumcount() < committed["split"].map(FEW)].reset_index(drop=True)
    assert frame.to_csv() == committed.to_csv()
    verify(frame)
    for row in frame.itertuples():
        colours = () if description.channels == 1 else (3,)
        assert read_image(tmp_path / row.image).shape == (*description.image_size[::-1], *colours)
        if row.mask:
            mask = read_image(tmp_path / row.mask)
            assert set(np.unique(mask)) == {0, 255}
            if row.boxes and name != "shapes":
                assert (box_mask(json.loads(row.boxes), row.height, row.width) == (mask > 0)).all()


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


@pytest.mark.parametrize("seed", range(25))
def test_the_labels_of_fundus_chest_and_digits_differ_in_their_regions_alone(seed):
    healthy, none, _ = _draw("fundus", 0, seed)
    diseased, mask, _ = _draw("fundus", 1, seed)
    assert ((diseased != healthy).any(-1) == mask).all() and mask.sum() > 20 and not none.any()
    clear, none, no_boxes = _draw("chest", 0, seed)
    ill, mask, extras = _draw("chest", 1, seed)
    assert extras["boxes"] == [bounding_box(ill != clear)]
    assert (box_mask(extras["boxes"], 96, 96) == mask).all()
    assert (ill.astype(int) - clear).min() >= 0 and not none.any() and no_boxes["boxes"] == []
    (first, mask, _), (second, other, _) = (_draw("digits", label, seed) for label in (0, 1))
    assert (first != second).any() and not ((first != second) & ~(mask | other)).any()


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("chest", "83c69d6d75739e4a382aa1278b873f1fcabff5d7f43ca3b1d30f5e516a15dfc5"),
        ("digits", "a1bddf707567165c9364f722a3d5e050ae0e810c642eb08421c20483700e4764"),
        ("fundus", "4a5725c01a195ce6651d0c2fc94e9dd232c378f7baa8dc51acb1761c6ec5ad6d"),
        ("shapes", "3b691453dffa87dfe8330476f8be3252e280fe04e2eebc4f524b0314c3d44c93"),
    ],
)
def test_the_first_four_data_sets_are_what_they_always_were(name, sha256):
    assert hashlib.sha256((MANIFESTS / f"{name}.csv").read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize(("name", "classes"), [("shapes", 2), ("fundus", 2), ("digits10", 10), ("fundus_grades", 5)])
def test_every_k_images_in_a_row_have_each_of_k_classes_once_in_an_order_of_chance(name, classes):
    for _, labels in load_manifest(name).groupby("split")["label"]:
        blocks = labels.to_numpy()[: len(labels) // classes * classes].reshape(-1, classes)
        assert (np.sort(blocks, 1) == np.arange(classes)).all()
        assert (blocks == 0).any(0).all()


@pytest.mark.parametrize("seed", range(10))
def test_of_ten_digits_one_is_whole_and_the_clutter_is_the_same_whichever_it_is(seed):
    drawn = [_draw("digits", label, seed, digits=TEN) for label in range(10)]
    union = np.any([mask for _, mask, _ in drawn], axis=0)
    assert all((pixels == drawn[0][0])[~union].all() for pixels, *_ in drawn) and not union.all()
    for label, (_, mask, extras) in enumerate(drawn):
        (x, y, w, h), source = extras["boxes"][0], int(extras["patient"].removeprefix("source-"))
        assert source in sources("train")[0][label] and mask.sum() == w * h and mask[y : y + h, x : x + w].all()
        assert h >= 14


@pytest.mark.parametrize("seed", range(10))
def test_grades_differ_in_the_number_of_lesions_alone(seed):
    """The number of connected regions is in the grade's range, each lesion of one size; those of a grade are among
    those of the next, and nothing else changes."""
    (healthy, before, _), *others = [_draw("fundus", grade, seed, grades=GRADES) for grade in range(5)]
    assert not before.any() and (healthy == _draw("fundus", 0, seed)[0]).all()
    for (low, high), (pixels, mask, extras) in zip(GRADES[1:], others, strict=True):
        regions, number = ndimage.label(mask)
        areas = np.bincount(regions.ravel())[1:]
        assert low <= number <= high and areas.min() >= 12 and areas.max() <= 45
        assert ((pixels != healthy).any(-1) == mask).all() and not (before & ~mask).any() and extras == {}
        before = mask


@pytest.mark.parametrize("seed", range(10))
def test_the_mask_of_shapes_is_where_both_labels_differ_and_shapes_stay_in_their_places(seed):
    image, mask, extras = _draw("shapes", 1, seed, noise=0)
    other, none, nothing = _draw("shapes", 0, seed, noise=0)
    assert not none.any() and nothing["boxes"] == []
    assert mask.any() and not (mask & (image == 255).all(-1)).any()
    assert not ((image != other).any(-1) & ~mask & (other == 255).all(-1)).any()
    for x, y, w, h in extras["boxes"]:
        assert mask[y].any() and mask[y + h - 1].any() and mask[:, x].any() and mask[:, x + w - 1].any()
    if len(extras["boxes"]) == 1:
        y, x = (int(v.mean()) for v in np.nonzero(mask))
        assert (image[y, x] == other[y, x]).all()


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


ONE = {"train": 1}


@pytest.mark.parametrize(
    ("name", "counts", "parameters", "message"),
    [
        ("fundus", ONE, {"size": 10}, "size\n.*greater than or equal to 48"),
        ("fundus", ONE, {"lesion_scale": 9}, "lesion_scale\n.*less than or equal to 3"),
        ("fundus", ONE, {"lesions": 9}, "lesions\n.*Unexpected keyword argument"),
        ("chest", ONE, {"contrast": 0}, "contrast\n.*greater than or equal to 0.2"),
        ("digits", ONE, {"digits": [4, 4]}, r"digits: expected different digits, got \(4, 4\)"),
        ("digits", ONE, {"digits": [4]}, "digits\n.*at least 2 items"),
        ("digits", ONE, {"digits": 4}, "digits\n.*valid tuple"),
        ("fundus", ONE, {"grades": [[0, 0]]}, "grades\n.*at least 2 items"),
        ("fundus", ONE, {"grades": [[0, 0], [3, 99]]}, r"grades: .* up to 55, got \[\(0, 0\), \(3, 99\)\]"),
        ("fundus", ONE, {"grades": [[0, 0], [3, 2]]}, r"grades: expected the least .* got \[\(0, 0\), \(3, 2\)\]"),
        ("digits", ONE, {"digits": [4, 12]}, r"digits\.1\n.*less than or equal to 9"),
        ("shapes", ONE, {"noise": -1}, "noise\n.*greater than or equal to 0"),
        ("shapes", ONE, {"polygon": (5, 3)}, r"polygon: expected p >= 3 and 1 <= q < p / 2, got \(5, 3\)"),
        ("shapes", ONE, {"polygon": (6, 3)}, r"polygon: .* got \(6, 3\)"),
        ("shapes", ONE, {"polygon": (2, 1)}, r"polygon: .* got \(2, 1\)"),
        ("retina", ONE, {}, "generator's name: expected one of chest, digits, fundus, shapes, got 'retina'"),
        ("shapes", {"dev": 1}, {}, "counts: expected numbers from 0 for train, val, test, got 'dev': 1"),
        ("shapes", {"train": -1}, {}, "got 'train': -1"),
    ],
)
def test_what_cannot_be_made_is_refused(name, counts, parameters, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        generate(name, tmp_path, 0, counts, **parameters)
    assert not list(tmp_path.iterdir())


EFFECTIVE = [
    ("fundus", "lesion_scale", 2.0), ("fundus", "size", 64), ("chest", "contrast", 3.0), ("chest", "size", 128),
    ("digits", "digits", (3, 8)), ("shapes", "polygon", (7, 3)), ("shapes", "noise", 0),
    ("digits", "digits", TEN), ("fundus", "grades", GRADES),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameter", "value"), EFFECTIVE)
def test_every_parameter_has_an_effect(name, parameter, value):
    changed, default = _draw(name, 1, 1, **{parameter: value})[0], _draw(name, 1, 1)[0]
    assert changed.shape != default.shape or (changed != default).any()


def test_drawing_by_hand():
    assert to_uint8(np.array([-1.0, 0.0, 0.5, 127.4999999999 / 255, 1.0, 2.0])).tolist() == [0, 0, 128, 128, 255, 255]
    assert soft(np.array([-1.0, -0.5, 0.0, 0.25, 0.5])).tolist() == [1, 1, 0.5, 0.25, 0]
    mask = np.zeros((5, 6), dtype=bool)
    mask[1, 4] = mask[3, 2] = True
    assert bounding_box(mask) == [2, 1, 3, 3]
    noise = smooth_noise(np.random.default_rng(0), 400, 40)
    assert noise.shape == (400, 400) and abs(noise.mean()) < 0.05 and 0.35 < noise.std() < 0.65
    assert np.abs(np.diff(noise, axis=0)).max() < 0.5
    assert np.isclose(star_coverage((-1, 0), (20, 20), 15, 0, 40, 40).sum(), math.pi * 15**2, rtol=2e-3)  # a circle
    square = star_coverage((4, 1), (8, 8), 4 * math.sqrt(2), math.pi / 4, 16, 16)
    assert (square[4:12, 4:12] == 1).all() and square.sum() == 64


@settings(max_examples=12)
@given(st.integers(3, 9), st.data())
def test_the_coverage_of_a_star_is_where_the_path_from_vertex_to_vertex_turns_around(p, data):
    q = data.draw(st.integers(1, (p - 1) // 2).filter(lambda q: math.gcd(p, q) == 1))
    turn, radius = data.draw(st.floats(0.01, 6.2)), data.draw(st.floats(4.1, 6.4))
    found = star_coverage((p, q), (7.3, 6.9), radius, turn, 14, 14)
    vertices = 6.9 + 7.3j - 1j * radius * np.exp(1j * (turn + 2 * math.pi * q / p * np.arange(p)))  # x + iy
    y, x = (np.mgrid[:56, :56] + 0.5) / 4
    edges = vertices[:, None, None] - (x + 1j * y)
    turns = np.angle(np.roll(edges, -1, axis=0) / edges).sum(0) / (2 * math.pi)
    expected = (turns.round() != 0).reshape(14, 4, 14, 4).mean((1, 3))
    assert np.abs(found - expected).max() <= 1 / 16
    assert np.isclose(found.sum(), expected.sum(), atol=0.2)


def test_xml_boxes_are_the_masks_boxes(tmp_path):
    frame = generate("shapes", tmp_path, 2, {"train": 10})
    for row in frame.itertuples():
        root = ET.parse(tmp_path / row.image.replace("images", "annotations").replace(".png", ".xml")).getroot()
        objects = root.findall("object")
        assert root.findtext("exists") == str(row.label) and root.findtext("count") == str(len(objects))
        assert [root.findtext(f"size/{k}") for k in ("width", "height", "depth")] == ["64", "64", "3"]
        assert (root.findtext("polygon/p"), root.findtext("polygon/q")) == ("5", "2")
        boxes = [[int(o.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        assert [[x - 1, y - 1, u - x + 1, v - y + 1] for x, y, u, v in boxes] == json.loads(row.boxes or "[]")
        if len(boxes) == 1:
            rows, columns = np.nonzero(read_image(tmp_path / row.mask))
            assert boxes[0] == [columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1]
