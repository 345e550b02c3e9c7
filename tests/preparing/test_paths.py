"""Paths that are written down have forward slashes on every system."""

import pathlib
from pathlib import PureWindowsPath

import numpy as np
import pytest
from PIL import Image
from source_trees import build, write

from prepare import own_data, published, tables
from prepare.tables import find_image


@pytest.fixture
def windows(monkeypatch):
    """What is relative to a root is spelt as on Windows; so is what is joined."""
    real = pathlib.PurePath.relative_to
    monkeypatch.setattr(pathlib.PosixPath, "relative_to", lambda *paths: PureWindowsPath(real(*paths)))
    for module in (tables, published, own_data):
        monkeypatch.setattr(module, "Path", PureWindowsPath)


def test_images_and_masks_of_a_folder(tmp_path, windows):
    for i in range(3):
        for name in "ab":
            write(tmp_path / f"{name}/deep/{i}.png", 10 * i + ord(name))
            write(tmp_path / f"masks/{name}/deep/{i}.png", 1)
    frame = build("folder", tmp_path)
    assert sorted(frame["image"]) == [f"{name}/deep/{i}.png" for name in "ab" for i in range(3)]
    assert (frame["mask"] == "masks/" + frame["image"]).all()


def test_images_and_masks_of_idrid(tmp_path, windows):
    write(tmp_path / "1. Original Images/a/IDRiD_01.jpg", 1)
    (tmp_path / "2. All Segmentation Groundtruths").mkdir()
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "2. All Segmentation Groundtruths/IDRiD_01_MA.tif")
    frame = build("idrid", tmp_path, crop=False)
    assert frame["image"].tolist() == ["1. Original Images/a/IDRiD_01.jpg"]
    assert frame["mask"].tolist() == ["2. All Segmentation Groundtruths/IDRiD_01_MA.tif"]


def test_an_image_under_another_suffix_and_one_that_is_missing(tmp_path):
    write(tmp_path / "a/b/c.png", 1)
    assert find_image(tmp_path, "c.jpg", "a/b") == "a/b/c.png"
    assert find_image(tmp_path, "c.jpg", "a", "a/b") == "a/b/c.png"
    assert find_image(tmp_path, "none.jpg", "a/b", "a") == "a/b/none.jpg"
    assert find_image(tmp_path, "", ".") == "."
