import struct

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit
from source_trees import write, write_dicom

from lib.data import ready
from prepare import build_manifest
from prepare.scan import decode, fundus_window

GREY = np.array([[0, 50], [100, 255]], dtype=np.uint8)


def test_eight_bits_pass_unchanged_and_monochrome1_is_inverted(tmp_path):
    assert (decode(write_dicom(tmp_path / "a.dcm", GREY)) == GREY).all()
    inverted = write_dicom(tmp_path / "b.dcm", GREY, PhotometricInterpretation="MONOCHROME1")
    assert (decode(inverted) == 255 - GREY).all()


def test_stored_bits_set_the_range(tmp_path):
    values = np.array([[0, 1365], [2730, 4095]], dtype=np.uint16)
    expected = np.array([[0, 85], [170, 255]])
    assert (decode(write_dicom(tmp_path / "a.dcm", values, bits=12)) == expected).all()
    signed = write_dicom(tmp_path / "b.dcm", (values.astype(int) - 2048).astype(np.int16), bits=12)
    assert (decode(signed) == expected).all()
    rescaled = write_dicom(tmp_path / "c.dcm", values, bits=12, RescaleSlope="2", RescaleIntercept="-1000")
    assert (decode(rescaled) == expected).all()


def test_the_window_is_applied_after_the_rescaling(tmp_path):
    """DICOM PS3.3 C.11.2.1.2.1: y = ((x - (c - 0.5)) / (w - 1) + 0.5) * range, clipped."""
    values = np.array([[0, 1000], [1100, 4000]], dtype=np.uint16)
    window = {"RescaleSlope": "1", "RescaleIntercept": "-1000", "WindowCenter": "100", "WindowWidth": "201"}
    found = decode(write_dicom(tmp_path / "a.dcm", values, bits=12, **window))
    expected = [0, 255 * ((0 - 99.5) / 200 + 0.5), 255 * ((100 - 99.5) / 200 + 0.5), 255]
    assert found.ravel().tolist() == [round(value) for value in expected]


def test_a_modality_table_is_looked_up(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [4, 0, 16], struct.pack("<4H", 0, 65535, 257, 514), "US"
    values = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    found = decode(write_dicom(tmp_path / "a.dcm", values, ModalityLUTSequence=[table]))
    assert found.ravel().tolist() == [0, 255, 1, 2]


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
    write_dicom(tmp_path / "masks/b/x.dcm", GREY)
    build_manifest("folder", tmp_path)
    assert ready(tmp_path / "dataset.yaml")["mask"].str.endswith(".png").sum() == 1


def test_unusable_dicom(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read: expected one grey picture, got MONOCHROME2"):
        decode(write_dicom(tmp_path / "a.dcm", np.zeros((4, 2), np.uint8), NumberOfFrames=2))
    with pytest.raises(ValueError, match="expected one grey picture, got RGB"):
        decode(write_dicom(tmp_path / "b.dcm", GREY, PhotometricInterpretation="RGB"))
    (tmp_path / "c.dcm").write_bytes(b"no dicom")
    with pytest.raises(ValueError, match="cannot be read: File is missing DICOM"):
        decode(tmp_path / "c.dcm")
    with pytest.raises(ValueError, match="cannot be read: The number of bytes"):
        decode(write_dicom(tmp_path / "d.dcm", GREY, data=b"\0\0"))
    with pytest.raises(ValueError, match="decompression bomb: 60000 x 60000"):
        decode(write_dicom(tmp_path / "e.dcm", GREY, Rows=60000, Columns=60000))
    assert pydicom.dcmread(tmp_path / "e.dcm").Rows == 60000


def test_unusable_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    for suffix in ("png", "jpg"):
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
        data = (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"a.{suffix}").write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match="cannot be read: "):
            decode(tmp_path / f"a.{suffix}")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_text("hello")
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "d.jpg")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "e.png")
    Image.fromarray(pixels).save(tmp_path / "g.tif", save_all=True, append_images=[Image.fromarray(pixels)])
    expected = {
        "b.png": "cannot be read: cannot identify image file",
        "c.png": "cannot be read: cannot identify image file",
        "d.jpg": "cannot be read: expected an 8-bit grey or colour image, got mode 'CMYK'",
        "e.png": "could be decompression bomb DOS attack",
        "g.tif": "cannot be read: expected one picture, got 2",
        "h.png": "missing",
    }
    for name, message in expected.items():
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
