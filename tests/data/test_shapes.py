import json
import math
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.generation import generate, write_shapes
from lib.data.pixels import read_image
from lib.data.shapes import ShapesParameters, draw, other_kinds, star_coverage

PUBLISHED = {
    "folder": "train",
    "nr_images": 4,
    "nr_targets": 2,
    "polygon": [{"p": 4, "q": 1}],
    "outside_polygon": [{"p": -1, "q": 0}],
    "background_color": 255,
    "nr_shapes_per_img": 3,
    "rad_min": 8.0,
    "rad_max": 10.0,
    "noise": True,
    "poly_colour": [0, 0, 0],
}


def _draw(label=1, seed=0, **parameters):
    return draw(ShapesParameters(**parameters), label, np.random.default_rng(seed))


def _winding(x, y, vertices):
    """Winding number of a point by summing the angles of a closed path's edges."""
    total = 0.0
    for (x0, y0), (x1, y1) in zip(vertices, [*vertices[1:], vertices[0]], strict=True):
        a, b = math.atan2(y0 - y, x0 - x), math.atan2(y1 - y, x1 - x)
        total += (b - a + math.pi) % (2 * math.pi) - math.pi
    return round(total / (2 * math.pi))


@settings(max_examples=12)
@given(st.integers(3, 9), st.data())
def test_coverage_is_that_of_the_path_from_vertex_to_vertex(p, data):
    q = data.draw(st.integers(1, (p - 1) // 2).filter(lambda q: math.gcd(p, q) == 1))
    turn, radius = data.draw(st.floats(0.01, 6.2)), data.draw(st.floats(4.1, 6.4))
    cy, cx, corner = 7.3, 6.9, 2 * math.pi / p
    path = [
        (cx + radius * math.sin(turn + k * q * corner), cy - radius * math.cos(turn + k * q * corner)) for k in range(p)
    ]
    expected = np.zeros((14, 14))
    for row in range(56):
        for column in range(56):
            expected[row // 4, column // 4] += (_winding((column + 0.5) / 4, (row + 0.5) / 4, path) != 0) / 16
    assert np.abs(star_coverage((p, q), (cy, cx), radius, turn, 14, 14) - expected).max() <= 1 / 16
    assert np.isclose(star_coverage((p, q), (cy, cx), radius, turn, 14, 14).sum(), expected.sum(), atol=0.2)


def test_coverage_of_a_circle_and_of_an_upright_square():
    assert np.isclose(star_coverage((-1, 0), (20, 20), 15, 0, 40, 40).sum(), math.pi * 15**2, rtol=2e-3)
    square = star_coverage((4, 1), (8, 8), 4 * math.sqrt(2), math.pi / 4, 16, 16)
    assert (square[4:12, 4:12] == 1).all() and square.sum() == 64


@pytest.mark.parametrize("seed", range(10))
def test_mask_holds_every_pixel_of_the_target_and_no_other(seed):
    image, mask, extras = _draw(
        seed=seed, noise=0, poly_colour=(0, 0, 255), background_colour=(255, 255, 0), nr_shapes=1
    )
    assert ((image != [255, 255, 0]).any(-1) == mask).all()
    x, y, w, h = extras["boxes"][0]
    assert mask[y : y + h, x : x + w].sum() == mask.sum() and mask[y].any() and mask[:, x + w - 1].any()


@pytest.mark.parametrize("seed", range(10))
def test_the_other_label_has_other_shapes_in_the_same_places(seed):
    image, mask, extras = _draw(1, seed, noise=0)
    other, none, nothing = _draw(0, seed, noise=0)
    assert mask.any() and len(extras["boxes"]) >= 1 and not none.any() and nothing["boxes"] == []
    y, x = (int(v.mean()) for v in np.nonzero(mask)) if len(extras["boxes"]) == 1 else (None, None)
    assert y is None or (image[y, x] == other[y, x]).all()


def test_later_shapes_hide_the_mask():
    crowded = {"overlap": True, "noise": 0, "nr_shapes": 12, "poly_colour": (0, 0, 0), "no_circles": True}
    hidden = 0
    for seed in range(10):
        image, mask, _ = _draw(seed=seed, **crowded)
        black = (image == 0).all(-1)
        assert not (black & ~mask).any()
        hidden += mask.sum() < 100
    assert hidden


EFFECTS = {
    "polygon": ({"polygon": (7, 3)}, {}),
    "outside_polygon": ({"outside_polygon": (4, 1)}, {}),
    "background_colour": ({"background_colour": 20}, {}),
    "poly_colour": ({"poly_colour": (255, 0, 0)}, {}),
    "img_height": ({"img_height": 80}, {}),
    "img_width": ({"img_width": 80}, {}),
    "nr_channels": ({"nr_channels": 1}, {}),
    "nr_shapes": ({"nr_shapes": 1}, {"nr_shapes": 3}),
    "min_nr_shapes": ({"min_nr_shapes": 4}, {"min_nr_shapes": 1}),
    "max_nr_shapes": ({"max_nr_shapes": 2}, {}),
    "rad_min": ({"rad_min": 11}, {}),
    "rad_max": ({"rad_max": 8}, {}),
    "overlap": ({"overlap": True}, {"nr_shapes": 4}),
    "occlusion": ({"occlusion": True}, {}),
    "rotation": ({"rotation": False}, {}),
    "noise": ({"noise": 0}, {}),
    "min_nr_vertices": ({"min_nr_vertices": 6}, {}),
    "max_nr_vertices": ({"max_nr_vertices": 4}, {}),
    "simplified": ({"simplified": True}, {}),
    "no_circles": ({"no_circles": True}, {"max_nr_vertices": 3}),
}


@pytest.mark.parametrize(("change", "base"), EFFECTS.values(), ids=EFFECTS)
def test_each_parameter_of_the_picture_has_an_effect(change, base):
    pairs = [(_draw(seed=s, **{**base, **change})[0], _draw(seed=s, **base)[0]) for s in range(6)]
    assert any(a.shape != b.shape or (a != b).any() for a, b in pairs)


def test_what_the_parameters_mean():
    assert _draw(nr_channels=1)[0].shape == (64, 64)
    assert (_draw(noise=0, background_colour=(1, 2, 3))[0][0, 0] == [1, 2, 3]).all()
    assert other_kinds(ShapesParameters(simplified=True)) == [(-1, 0)]
    assert other_kinds(ShapesParameters(max_nr_vertices=5)) == [(3, 1), (4, 1), (5, 1), (-1, 0)]
    assert other_kinds(ShapesParameters(max_nr_vertices=4, no_circles=True, polygon=(3, 1))) == [(4, 1)]
    upright = [_draw(seed=s, rotation=False, noise=0, nr_shapes=1, polygon=(3, 1))[1] for s in range(4)]
    assert all(m[np.flatnonzero(m.any(1))[0]].sum() <= 2 for m in upright)
    borders = [
        np.r_[m[0], m[-1], m[:, 0], m[:, -1]].any() for s in range(30) for m in [_draw(seed=s, occlusion=True)[1]]
    ]
    assert any(borders) and not any(np.r_[m[0], m[:, 0]].any() for s in range(9) for m in [_draw(seed=s)[1]])
    counted = [len(_draw(seed=s, simplified=True, nr_shapes=4)[2]["boxes"]) for s in range(12)]
    assert min(counted) >= 1 and max(counted) > 1
    wide = _draw(seed=1, outside_polygon=(-1, 0), nr_shapes=1, rad_min=11)[2]["boxes"][0]
    assert max(wide[2:]) <= 2 * 0.85 * 11 + 2


REFUSED = {
    "star": ({"polygon": (5, 3)}, r"polygon: expected p = -1 \(circle\), or p >= 3 and 1 <= q < p / 2, got \(5, 3\)"),
    "half": ({"polygon": (6, 3)}, r"polygon: .* got \(6, 3\)"),
    "two": ({"polygon": (2, 1)}, r"polygon: .* got \(2, 1\)"),
    "outside": ({"outside_polygon": (4, 2)}, r"outside_polygon: .* got \(4, 2\)"),
    "narrow": ({"outside_polygon": (8, 3)}, r"outside_polygon: expected a target radius >= 4 inside it, not 2.6"),
    "large": ({"rad_max": 40}, r"rad_max: expected shapes that fit into the image's 64 pixels, got 40.0"),
    "order": ({"rad_max": 7}, "rad_max: expected at least rad_min, got 7"),
    "small": ({"rad_min": 1}, "rad_min"),
    "many": ({"nr_shapes": 90}, "nr_shapes: expected shapes that fit into the image together, got 90"),
    "most": ({"min_nr_shapes": 5}, "max_nr_shapes: expected at least min_nr_shapes, got 4"),
    "vertices": ({"max_nr_vertices": 2}, "max_nr_vertices: expected at least min_nr_vertices, got 2"),
    "targets": ({"nr_images": 2, "nr_targets": 3}, "nr_targets: expected at most nr_images, got 3"),
    "simple": ({"simplified": True, "outside_polygon": (4, 1)}, "outside_polygon: expected none where simplified"),
    "circle": ({"simplified": True, "polygon": (-1, 0)}, "polygon: expected no circle where simplified"),
    "nothing": (
        {"max_nr_vertices": 3, "no_circles": True, "polygon": (3, 1)},
        "no_circles: expected some shape besides",
    ),
    "grey": (
        {"nr_channels": 1, "poly_colour": (1, 2, 3)},
        "nr_channels: expected 3, as a colour has three values, got 1",
    ),
    "faint": ({"poly_colour": 250}, "poly_colour: expected a colour 20 grey values off the background, got 250"),
    "colour": ({"poly_colour": 300}, "poly_colour"),
    "channels": ({"nr_channels": 2}, "nr_channels"),
    "tries": ({"nr_tries": 0}, "nr_tries"),
    "noise": ({"noise": -1}, "noise"),
    "unknown": ({"colour": 1}, "colour"),
}


@pytest.mark.parametrize(("parameters", "message"), REFUSED.values(), ids=REFUSED)
def test_impossible_settings_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        ShapesParameters(**parameters)


def test_giving_up_after_the_tries():
    with pytest.raises(ValueError, match=r"nr_shapes: 11 shapes of radius 8 to 11 found no room .* in 3 tries"):
        _draw(nr_shapes=11, nr_tries=3)


def test_published_json_and_the_papers_folder_of_files(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    parameters = ShapesParameters.from_json(tmp_path / "config.json")
    assert parameters.polygon == (4, 1) and parameters.outside_polygon == (-1, 0) and parameters.noise == 10
    assert parameters.nr_shapes == 3 and parameters.poly_colour == (0, 0, 0)
    rows = write_shapes(tmp_path / "config.json", tmp_path / "a", seed=4)
    assert len(rows) == 4 and rows["label"].sum() == 2
    again = write_shapes(tmp_path / "a" / "parameters.json", tmp_path / "b", seed=4)
    assert rows.equals(again)
    assert (tmp_path / "a" / "3.png").read_bytes() == (tmp_path / "b" / "3.png").read_bytes()
    for value, none in ((False, None), (-1, None)):
        (tmp_path / "none.json").write_text(json.dumps({"outside_polygon": value, "nr_targets": value}))
        assert ShapesParameters.from_json(tmp_path / "none.json").outside_polygon is none
    (tmp_path / "wrong.json").write_text(json.dumps({"radius": 3}))
    with pytest.raises(ValueError, match=r"wrong\.json: radius: not a parameter; expected background_colour"):
        ShapesParameters.from_json(tmp_path / "wrong.json")


@pytest.mark.parametrize("targets", [None, 0, 3])
def test_numbers_of_images_and_targets_and_start_index(tmp_path, targets):
    rows = write_shapes(ShapesParameters(nr_images=8, nr_targets=targets, start_index=20), tmp_path)
    assert list(rows["image"]) == [f"{i}.png" for i in range(20, 28)]
    assert rows["label"].sum() == targets if targets is not None else 0 < rows["label"].sum() < 8
    assert len(list(tmp_path.glob("masks/*.png"))) == rows["label"].sum()


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
