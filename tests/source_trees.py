"""Files for the tests of the readers: images, DICOM, Excel sheets; and the true samples, where they are."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from prepare import build_manifest

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "samples"
with_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="no true samples here")


def write(path, value, size=(16, 16), mode="L"):
    """An image whose pixels no other value gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    pixels = np.random.default_rng(value).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def build(name, root, **settings):
    return build_manifest(name, root, workers=1, **{"partial": True, **settings})


def write_dicom(path, values, bits=8, syntax=ExplicitVRLittleEndian, data=None, **tags):
    """A grey DICOM file of one frame; `values` (H, W) uint8 or uint16."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * values.itemsize, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes() if data is None else data
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def biff2(cells):
    """The bytes of an Excel 2 worksheet (.xls) of text cells; `cells` is a list of rows."""
    records = [struct.pack("<HHHH", 0x0009, 4, 7, 0x10)]
    for r, row in enumerate(cells):
        for c, text in enumerate(row):
            if text != "":
                data = struct.pack("<HH3xB", r, c, len(str(text))) + str(text).encode("latin-1")
                records.append(struct.pack("<HH", 0x0004, len(data)) + data)
    return b"".join(records) + struct.pack("<HH", 0x000A, 0)
