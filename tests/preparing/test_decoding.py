import struct

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit
from source_trees import write, write_dicom

from lib.data import ready
from prepare import build_manifest
from prepare.scan import decode, fundus_window

GREY = np.array([0, 50, 100, 255], np.uint8)
TWELVE = np.array([0, 1365, 2730, 4095], np.uint16)
WINDOW = {"RescaleSlope": "1", "RescaleIntercept": "-1000", "WindowCenter": "100", "WindowWidth": "201"}
TABLE = Dataset()
TABLE.LUTDescriptor, TABLE.LUTData, TABLE.ModalityLUTType = [4, 0, 16], struct.pack("<4H", 0, 65535, 257, 514), "US"


@pytest.mark.parametrize(
    ("values", "tags", "expected"),
    [
        (GREY, {}, GREY),
        (GREY, {"PhotometricInterpretation": "MONOCHROME1"}, 255 - GREY),
        (TWELVE, {"bits": 12}, [0, 85, 170, 255]),  # the range is that of the stored bits
        ((TWELVE - 2048).astype(np.int16), {"bits": 12}, [0, 85, 170, 255]),
        (TWELVE, {"bits": 12, "RescaleSlope": "2", "RescaleIntercept": "-1000"}, [0, 85, 170, 255]),
        # after the rescaling, DICOM PS3.3 C.11.2.1.2.1: y = ((x - (c - 0.5)) / (w - 1) + 0.5) * range, clipped
        (np.uint16([0, 1000, 1100, 4000]), {"bits": 12, **WINDOW}, [0, round(255 * 0.0025), round(255 * 0.5025), 255]),
        (np.uint8([0, 1, 2, 3]), {"ModalityLUTSequence": [TABLE]}, [0, 255, 1, 2]),
    ],
)
def test_grey_values_of_dicom_by_hand(tmp_path, values, tags, expected):
    file = write_dicom(tmp_path / "a.dcm", values.reshape(2, 2), **tags)
    assert decode(file).ravel().tolist() == list(expected)


def test_jpeg_compressed_dicom(tmp_path):
    values = np.full((16, 16), 77, dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.jpg", quality=100)
    data = encapsulate([(tmp_path / "a.jpg").read_bytes()])
    file = write_dicom(tmp_path / "a.dcm", values, syntax=JPEGBaseline8Bit, data=data)
    assert (decode(file) == 77).all()


def test_a_mask_in_dicom_is_written_so_that_it_can_be_read(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}/x.png", ord(name), (2, 2))
    (tmp_path / "masks/b").mkdir(parents=True)
    write_dicom(tmp_path / "masks/b/x.dcm", GREY.reshape(2, 2))
    build_manifest("folder", tmp_path)
    assert ready(tmp_path / "dataset.yaml")["mask"].str.endswith(".png").sum() == 1


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"NumberOfFrames": 2}, "expected one grey picture, got MONOCHROME2"),
        ({"PhotometricInterpretation": "RGB"}, "expected one grey picture, got RGB"),
        ({"data": b"\0\0"}, "The number of bytes"),
        ({"Rows": 60000, "Columns": 60000}, "decompression bomb: 60000 x 60000"),
    ],
)
def test_unusable_dicom(tmp_path, tags, message):
    with pytest.raises(ValueError, match=f"cannot be read: {message}"):
        decode(write_dicom(tmp_path / "a.dcm", GREY.reshape(2, 2), **tags))


def test_unusable_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    for name in ("cut.png", "cut.jpg"):
        image.save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("text.png", "text.dcm"):
        (tmp_path / name).write_text("hello")
    image.convert("CMYK").save(tmp_path / "four.jpg")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    image.save(tmp_path / "two.tif", save_all=True, append_images=[image])
    for name, message in {
        "cut.png": "cannot be read: ",
        "cut.jpg": "cannot be read: ",
        "empty.png": "cannot be read: cannot identify image file",
        "text.png": "cannot be read: cannot identify image file",
        "text.dcm": "cannot be read: File is missing DICOM",
        "four.jpg": "cannot be read: expected an 8-bit grey or colour image, got mode 'CMYK'",
        "bomb.png": "could be decompression bomb DOS attack",
        "two.tif": "cannot be read: expected one picture, got 2",
        "none.png": "missing",
    }.items():
        with pytest.raises(ValueError, match=message):
            decode(tmp_path / name)


def disc(height, width, x, y, radius):
    rows, columns = np.mgrid[:height, :width] + 0.5
    inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    noise = np.random.default_rng(0).integers(0, 8, (height, width))
    return np.where(inside, 120, noise)[..., None].repeat(3, 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "x", "y", "radius"),
    [(300, 400, 200, 150, 120), (200, 400, 210, 100, 150), (240, 300, 150, 130, 140), (1500, 2200, 1100, 740, 900)],
    ids=["whole", "top and bottom cut", "rim just cut", "large"],
)
def test_the_circle_of_a_fundus_is_found_also_where_its_rim_is_cut(height, width, x, y, radius):
    found = fundus_window(disc(height, width, x, y, radius))
    assert np.allclose(found, (x - radius, y - radius, x + radius, y + radius), atol=0.03 * radius)


def test_a_notch_and_a_reflection_do_not_move_the_circle():
    pixels = disc(300, 400, 200, 150, 120)
    pixels[140:160, 310:335] = 120
    pixels[5:9, 5:9] = 200
    assert np.allclose(fundus_window(pixels), (80, 30, 320, 270), atol=4)


def test_cropped_images_stay_and_dark_ones_are_refused():
    assert fundus_window(np.full((64, 64, 3), 90, np.uint8)) == (0, 0, 64, 64)
    with pytest.raises(ValueError, match="no fundus: the image is dark"):
        fundus_window(np.zeros((64, 64, 3), np.uint8))
