import json
import math
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data import read_image
from prepare import generate
from prepare.shapes import draw, star_coverage


def _draw(label=1, seed=0, **parameters):
    return draw(label, np.random.default_rng(seed), **parameters)


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
def test_the_mask_is_where_both_labels_differ_and_shapes_stay_in_their_places(seed):
    image, mask, extras = _draw(1, seed, noise=0)
    other, none, nothing = _draw(0, seed, noise=0)
    assert not none.any() and nothing["boxes"] == []
    assert mask.any() and not (mask & (image == 255).all(-1)).any()
    assert not ((image != other).any(-1) & ~mask & (other == 255).all(-1)).any()
    for x, y, w, h in extras["boxes"]:
        assert mask[y].any() and mask[y + h - 1].any() and mask[:, x].any() and mask[:, x + w - 1].any()
    if len(extras["boxes"]) == 1:
        y, x = (int(v.mean()) for v in np.nonzero(mask))
        assert (image[y, x] == other[y, x]).all()


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
