"""What is read of image and mask files, which values of a mask are region, and how masks are resized."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from lib.data import pixel_hash, read_image, read_mask
from lib.data.pixels import box_mask, resized_mask

REGION = np.zeros((16, 16), bool)
REGION[4:12, 2:8] = True


def mask_of(value):
    return Image.fromarray(np.where(REGION, value, 0).astype(np.uint8))


def palette_of(region, colours):
    mask = Image.fromarray(region.astype(np.uint8), "P")
    mask.putpalette(colours)
    return mask


def test_pixel_hash_is_that_of_shape_type_and_bytes():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert pixel_hash(pixels) == hashlib.sha256(b"(2, 3)|u1" + bytes(range(6))).hexdigest()
    assert pixel_hash(pixels > 2) == pixel_hash(np.array([[0, 0, 0], [1, 1, 1]], np.uint8))
    assert pixel_hash(pixels.T.copy().T) == pixel_hash(pixels) != pixel_hash(pixels.reshape(3, 2))


def test_images_of_other_modes(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(grey.astype(np.uint16) * 100).save(tmp_path / "deep.png")
    assert (read_image(tmp_path / "grey.png") == grey).all()
    assert read_image(tmp_path / "palette.png").shape == (3, 4, 3)
    with pytest.raises(ValueError, match="expected an 8-bit grey or colour image, got mode 'I;16'"):
        read_image(tmp_path / "deep.png")


MASKS = {f"grey {value}": mask_of(value) for value in (1, 2, 5, 127, 128, 255)}
MASKS |= {f"colour {value}": mask_of(value).convert("RGB") for value in (1, 128)}
PALETTES = ([255, 255, 255, 9, 9, 9], [0, 0, 0, 128, 0, 0], [0, 0, 0, 0, 0, 0], [9, 9, 9, 8, 8, 8, 0, 0, 0])
MASKS |= {f"palette {colours}": palette_of(REGION, colours) for colours in PALETTES}  # its index counts, not its colour
MASKS |= {"one bit": Image.fromarray(REGION)}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_any_value_but_zero_is_region(tmp_path, mask):
    mask.save(tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").mode == mask.mode
    assert (read_mask(tmp_path / "m.png") == REGION).all()


@pytest.mark.parametrize("values", [None, "nonzero", "half"])
def test_a_palette_whose_background_is_not_its_first_colour_is_refused(tmp_path, values):
    palette_of(~REGION, [255, 255, 255, 0, 0, 0]).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png: expected black, .*, got index 1; save the mask as grey, 0 for"):
        read_mask(tmp_path / "m.png", values)


def test_the_noise_of_a_jpeg_is_no_region_unless_the_card_says_so(tmp_path):
    mask_of(255).save(tmp_path / "m.jpg", quality=40)
    values = np.array(Image.open(tmp_path / "m.jpg"))
    assert ((values > 0) & ~REGION).any()
    assert (read_mask(tmp_path / "m.jpg") == REGION).all()
    assert (read_mask(tmp_path / "m.jpg", "nonzero") == (values > 0)).all()


def test_half_leaves_the_soft_edge_out(tmp_path):
    Image.fromarray(np.array([[0, 60, 127, 128, 255]], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", "half").tolist() == [[False, False, False, True, True]]
    Image.fromarray(REGION).save(tmp_path / "one_bit.png")
    assert (read_mask(tmp_path / "one_bit.png", "half") == REGION).all()


@pytest.mark.parametrize(("file", "rule"), [("m.png", "half"), ("m.jpg", None)])
def test_a_mask_that_the_rule_empties_is_reported(tmp_path, file, rule):
    mask_of(90).save(tmp_path / file, quality=100)
    with pytest.raises(ValueError, match=rf"{file}: expected values above 127 .*mask_values.*, the highest is 9\d"):
        read_mask(tmp_path / file, rule)
    Image.new("L", (16, 16)).save(tmp_path / file)
    assert not read_mask(tmp_path / file, rule).any()


def test_no_region_is_too_small_to_stay():
    for size, pixel, to, expected in (
        ((20_000, 8), (12_345, 3), (2, 1), [[1, 0]]),
        ((64, 64), (17, 42), (8, 8), [[2, 5]]),
        ((64, 64), (17, 42), (128, 128), [[34, 84], [34, 85], [35, 84], [35, 85]]),
    ):
        mask = np.zeros(size, bool)
        mask[pixel] = True
        assert np.argwhere(resized_mask(mask, to)).tolist() == expected
    assert resized_mask(np.ones((3, 5), bool), (7, 4)).all() and not resized_mask(np.zeros((3, 5), bool), (7, 4)).any()


def test_a_box_covers_every_pixel_that_it_touches():
    expected = np.zeros((4, 5), dtype=bool)
    expected[1:3, :2] = expected[0, 4] = True
    assert (box_mask([[0, 1.5, 2, 1], [4, 0, 1, 1]], 4, 5) == expected).all()
