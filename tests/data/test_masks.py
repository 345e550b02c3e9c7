"""Which values of a mask file are region, and how masks are resized."""

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from source_trees import build, write

from lib.data import ImageDataset, load_manifest, prepare, read_mask
from lib.data.pixels import resized_mask
from lib.data.sources import BadData

REGION = np.zeros((16, 16), bool)
REGION[4:12, 2:8] = True


def mask_of(value, *, dtype=np.uint8):
    return Image.fromarray(np.where(REGION, value, 0).astype(dtype))


@pytest.mark.parametrize("value", [1, 2, 5, 127, 128, 255])
def test_any_value_but_zero_is_region(tmp_path, value):
    mask_of(value).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png") == REGION).all()
    mask_of(value).convert("RGB").save(tmp_path / "c.bmp")
    assert (read_mask(tmp_path / "c.bmp") == REGION).all()


def test_a_palette_counts_by_its_index_and_not_by_its_colours(tmp_path):
    for palette in ([255, 255, 255, 9, 9, 9], [0, 0, 0, 128, 0, 0], [0, 0, 0, 0, 0, 0], [9, 9, 9, 8, 8, 8, 0, 0, 0]):
        mask = Image.fromarray(REGION.astype(np.uint8), "P")
        mask.putpalette(palette)
        mask.save(tmp_path / "m.png")
        assert Image.open(tmp_path / "m.png").mode == "P"
        assert (read_mask(tmp_path / "m.png") == REGION).all()
    Image.fromarray(REGION).save(tmp_path / "one_bit.png")
    assert (read_mask(tmp_path / "one_bit.png") == REGION).all()
    assert (read_mask(tmp_path / "one_bit.png", "half") == REGION).all()


@pytest.mark.parametrize("values", [None, "nonzero", "half"])
def test_a_palette_whose_background_is_not_its_first_colour_is_refused(tmp_path, values):
    mask = Image.fromarray((~REGION).astype(np.uint8), "P")
    mask.putpalette([255, 255, 255, 0, 0, 0])
    mask.save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png: expected black, .*, got index 1; save the mask as grey, 0 for"):
        read_mask(tmp_path / "m.png", values)
    mask.convert("L").save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png") == REGION).all()


def test_the_noise_of_a_jpeg_is_no_region_unless_the_card_says_so(tmp_path):
    mask_of(255).save(tmp_path / "m.jpg", quality=40)
    values = np.array(Image.open(tmp_path / "m.jpg"))
    assert ((values > 0) & ~REGION).any()
    assert (read_mask(tmp_path / "m.jpg") == REGION).all()
    assert (read_mask(tmp_path / "m.jpg", "nonzero") == (values > 0)).all()


def test_half_leaves_the_soft_edge_out(tmp_path):
    soft = Image.fromarray(np.array([[0, 60, 127, 128, 255]], np.uint8))
    soft.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", "half").tolist() == [[False, False, False, True, True]]
    assert read_mask(tmp_path / "m.png").tolist() == [[False, True, True, True, True]]


@pytest.mark.parametrize(("file", "rule"), [("m.png", "half"), ("m.jpg", None)])
def test_a_mask_that_the_rule_empties_is_reported(tmp_path, file, rule):
    mask_of(90).save(tmp_path / file, quality=100)
    with pytest.raises(ValueError, match=rf"{file}: expected values above 127 .*mask_values.*, the highest is 9\d"):
        read_mask(tmp_path / file, rule)
    Image.new("L", (16, 16)).save(tmp_path / file)
    assert not read_mask(tmp_path / file, rule).any()


@pytest.fixture
def tree(tmp_path):
    """Two classes of four; the masks of the second hold label ids."""
    for i in range(4):
        write(tmp_path / f"healthy/{i}.png", i)
        write(tmp_path / f"lesion/{i}.png", 10 + i)
        (tmp_path / "masks/lesion").mkdir(parents=True, exist_ok=True)
        mask_of(1 + i).save(tmp_path / f"masks/lesion/{i}.png")
    return tmp_path


def test_label_ids_of_a_folder_are_found_by_reader_and_training_alike(tree):
    found = {}
    for size in (None, 8):
        build("folder", tree, size=size, shares=(0.5, 0.25, 0.25))
        frame = prepare(tree / "dataset.yaml")
        masks = {int(sample["mask"].sum()) for sample in ImageDataset(frame) if sample["label"] == 1}
        small = {int(s["mask"].sum()) for s in ImageDataset(frame, size=(8, 8)) if s["label"] == 1}
        found[size] = (masks, small)
        assert frame["mask_sha256"].nunique() == 2  # none, and that of the one region
    assert found == {None: ({48}, {12}), 8: ({12}, {12})}


def test_the_rule_is_an_option_of_the_build_and_a_line_of_the_card(tree):
    with pytest.raises(BadData, match=r"mask masks/lesion/0\.png: .*expected values above 127"):
        build("folder", tree, mask_values="half")
    build("folder", tree)
    card = tree / "dataset.yaml"
    card.write_text(yaml.safe_dump({**yaml.safe_load(card.read_text()), "mask_values": "half"}))
    with pytest.raises(ValueError, match=r"masks/lesion/0\.png: cannot be read: expected values above 127"):
        prepare(card)
    with pytest.raises(ValueError, match="expected values above 127"):
        ImageDataset(load_manifest(card))[4]
    for name in ("folder", card):  # the card that is there counts in every later build
        with pytest.raises(BadData, match="expected values above 127"):
            build(name, tree)
    build("folder", tree, mask_values="nonzero")
    assert (prepare(card)["mask"] != "").sum() == 4


def test_a_small_region_is_kept_by_reader_and_training_alike(tmp_path):
    for i, name in enumerate(("a", "b")):
        write(tmp_path / f"{name}/x.png", i, (64, 64))
    mask = np.zeros((64, 64), np.uint8)
    mask[17, 42] = 255
    (tmp_path / "masks/b").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "masks/b/x.png")
    pd.DataFrame(
        {"image": ["a/x.png", "b/x.png"], "label": ["a", "b"], "split": ["train"] * 2, "mask": ["", "masks/b/x.png"]}
    ).to_csv(tmp_path / "data.csv", index=False)
    expected = np.zeros((8, 8), bool)
    expected[2, 5] = True
    for built, read in ((8, None), (None, (8, 8))):
        build("folder", tmp_path, size=built)
        samples = ImageDataset(prepare(tmp_path / "dataset.yaml"), size=read)
        (found,) = [sample["mask"].numpy() for sample in samples if sample["label"] == 1]
        assert (found == expected).all()


def test_no_region_is_too_small_to_stay():
    mask = np.zeros((20_000, 8), bool)
    mask[12_345, 3] = True
    assert np.argwhere(resized_mask(mask, (2, 1))).tolist() == [[1, 0]]
    assert resized_mask(np.ones((3, 5), bool), (7, 4)).all() and not resized_mask(np.zeros((3, 5), bool), (7, 4)).any()
