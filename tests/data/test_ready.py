"""What lies on disk is what the manifest says: what is missing is made, and a file is decoded once."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from lib.data import load_manifest, read_image, read_mask, ready, verification, verify

MEMORY = verification.MEMORY


@pytest.fixture
def root(own):
    """The images of `own`, written a minute ago."""
    folder = own.parent / "images_of_own"
    for path in folder.rglob("*.png"):
        age(path, 60)
    return folder


def age(path, seconds):
    time = path.stat().st_mtime_ns - seconds * 10**9
    os.utime(path, ns=(time, time))


@pytest.fixture
def decoded(monkeypatch):
    """The paths that are decoded from now on."""
    paths = []
    for name in ("read_image", "read_mask"):
        real = getattr(verification, name)
        monkeypatch.setattr(verification, name, lambda path, *rule, real=real: paths.append(path) or real(path, *rule))
    return paths


def masks_of(own):
    return [path for path in load_manifest(own)["mask"] if path]


def test_what_is_missing_is_made_and_no_more(own, root):
    for path in root.rglob("*.png"):
        path.unlink()
    frame = ready(own, limit={"train": 2, "val": 0})
    assert frame.groupby("split").size().to_dict() == {"test": 4, "train": 2}
    assert frame.attrs["root"] == str(root) and list(frame.index) == list(range(6))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    assert len([path for path in before if "images" in path.parts]) == 6
    ready(own, limit={"train": 2, "val": 0})
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    assert len(ready(own)) == 13


def test_what_has_no_generator_cannot_be_made(edit, own, root):
    path = edit(generator=None, homepage="https://example.org/own")
    assert len(ready(path)) == 13
    (root / "images/val/00001.png").unlink()
    mask = masks_of(own)[0]
    (root / mask).unlink()
    with pytest.raises(FileNotFoundError, match=f"2 files missing, the first {mask}; .*https://example.org"):
        ready(path)


@pytest.mark.parametrize("drop", [[], ["mask_sha256"]])
def test_every_file_that_is_not_the_manifests_is_named(edit, own, root, drop):
    images, masks = list(verify(load_manifest(edit(drop=drop)))["image"]), masks_of(own)
    pixels = read_image(root / images[0])
    pixels[5, 7, 1] ^= 1
    Image.fromarray(pixels).save(root / images[0])
    Image.fromarray(pixels[:32]).save(root / images[1])
    (root / images[2]).unlink()
    (root / images[3]).write_bytes((root / images[3]).read_bytes()[:200])
    Image.new("L", (32, 64), 255).save(root / masks[0])
    (root / masks[1]).write_text("no image")
    Image.new("L", (64, 64), 255).save(root / masks[2])
    expected = [
        f"{images[0]}: pixels differ from the manifest: ",
        f"{images[1]}: size 64 x 32, the manifest says 64 x 64",
        f"{images[2]}: missing",
        f"{images[3]}: cannot be read: .*truncated",
        f"{masks[0]}: size 32 x 64, the manifest says 64 x 64",
        f"{masks[1]}: cannot be read: cannot identify image file",
        *([] if drop else [f"{masks[2]}: pixels differ from the manifest: "]),
    ]
    with pytest.raises(ValueError, match=f"{len(expected)} of the manifest's files") as error:
        verify(load_manifest(own))
    for line in expected:
        assert re.search(f"\n  {line}", str(error.value)), line


def test_an_image_that_is_made_otherwise_is_named(edit, root):
    path = edit({(2, "sha256"): "f" * 64})
    (root / "images/train/00002.png").unlink()
    with pytest.raises(ValueError, match=r"images/train/00002\.png: pixels differ from the manifest"):
        ready(path)
    ready(path, limit={"train": 2})


def test_files_are_decoded_once_and_again_where_one_changed(own, root, decoded):
    ready(own)
    assert len(decoded) == len({*decoded}) == len(list(root.rglob("*.png")))
    decoded.clear()
    frame = ready(own)
    assert decoded == [] and (frame["mask_sha256"] != "").any()
    image, mask = root / frame["image"][0], root / masks_of(own)[0]
    for path in (image, mask):
        age(path, 5)
    verify(load_manifest(own))
    assert sorted(decoded) == sorted([image, mask])
    decoded.clear()
    pixels = 255 * read_mask(mask).astype(np.uint8)
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(mask)
    for _ in range(2):
        with pytest.raises(ValueError, match="pixels differ"):
            ready(own)
    assert decoded == [mask] * 2  # too young to be remembered: another change could have the same time


def test_another_rule_for_masks_is_another_reading(edit, own, root, decoded):
    ready(own)
    decoded.clear()
    ready(edit(mask_values="half"))
    assert sorted(decoded) == sorted(root / path for path in masks_of(own))


@pytest.mark.parametrize("content", [b'{"half', b"[]", b"\xff\xfe"])
def test_a_damaged_memory_is_none(own, root, decoded, content):
    ready(own)
    before = json.loads((root / MEMORY).read_text())
    (root / MEMORY).write_bytes(content)
    decoded.clear()
    ready(own)
    assert len(decoded) == len(before) == len(list(root.rglob("*.png")))
    assert json.loads((root / MEMORY).read_text()) == before


def test_a_root_that_cannot_be_written_to_is_checked_without_a_memory(own, root):
    (root / MEMORY).mkdir()  # cannot be read, and no file can take its place
    (root / MEMORY / "file").touch()
    assert len(ready(own)) == len(ready(own)) == 13


def test_several_at_once_leave_a_whole_file(own, root):
    frame = load_manifest(own)
    verify(frame[:5]), verify(frame[5:])
    known = json.loads((root / MEMORY).read_text())
    assert len(known) == len(list(root.rglob("*.png")))
    (root / MEMORY).unlink()
    with ThreadPoolExecutor(8) as pool:
        assert all(found.equals(frame) for found in pool.map(lambda _: verify(frame), range(8)))
    assert json.loads((root / MEMORY).read_text()) == known
    assert not [path for path in root.iterdir() if path.name.startswith(f".{MEMORY}")]
