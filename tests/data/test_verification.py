"""What lies on disk is what the manifest says, and a file is decoded once."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from lib.data import load_manifest, prepare, read_mask, verify
from lib.data import verification as checks


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
        real = getattr(checks, name)
        monkeypatch.setattr(checks, name, lambda path, *rule, real=real: paths.append(path) or real(path, *rule))
    return paths


def first_mask(own):
    return next(path for path in load_manifest(own)["mask"] if path)


def test_a_mask_of_other_pixels_is_reported_with_its_own_path(own, root):
    mask = first_mask(own)
    Image.new("L", (64, 64), 255).save(root / mask)
    with pytest.raises(ValueError, match=rf"1 of .*\n  {mask}: pixels differ from the manifest \(the mask's "):
        prepare(own)


@pytest.mark.parametrize("drop", [[], ["mask_sha256"]])
def test_a_mask_of_another_size_is_reported(edit, own, root, drop):
    mask = first_mask(own)
    Image.new("L", (32, 64), 255).save(root / mask)
    with pytest.raises(ValueError, match=f"{mask}: size 32 x 64, the manifest says 64 x 64"):
        prepare(edit(drop=drop))


def test_files_that_cannot_be_read_are_named_all_of_them(own, root):
    image, mask = load_manifest(own)["image"][0], first_mask(own)
    (root / image).write_bytes((root / image).read_bytes()[:200])
    (root / mask).write_text("no image")
    with pytest.raises(ValueError, match="2 of the manifest's files") as error:
        prepare(own)
    lines = sorted(str(error.value).splitlines()[1:])
    assert re.fullmatch(rf"  {image}: cannot be read: .*truncated.*", lines[0])
    assert re.fullmatch(rf"  {mask}: cannot be read: cannot identify image file.*", lines[1])


def test_a_manifest_that_does_not_know_the_masks_gets_their_hashes(edit, own):
    whole = prepare(own)
    assert ((whole["mask_sha256"] != "") == (whole["mask"] != "")).all() and (whole["mask"] != "").any()
    table = own.with_suffix(".csv").read_text()
    filled = prepare(edit(drop=["mask_sha256"]))
    assert (load_manifest(own)["mask_sha256"] == "").all() and filled.equals(whole)
    assert table != own.with_suffix(".csv").read_text()


def test_a_mask_hash_is_of_zeros_and_ones_and_a_wrong_one_is_a_problem(edit, own):
    with pytest.raises(ValueError, match="line 2, column mask_sha256: 'abc': expected 64 hexadecimal digits, or none"):
        load_manifest(edit({(0, "mask_sha256"): "abc"}))


def test_files_are_decoded_once_and_again_where_one_changed(own, root, decoded):
    prepare(own)
    assert len(decoded) == len({*decoded}) == len(list(root.rglob("*.png")))
    decoded.clear()
    frame = prepare(own)
    assert decoded == [] and (frame["mask_sha256"] != "").any()
    image, mask = root / frame["image"][0], root / first_mask(own)
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
            prepare(own)
    assert decoded == [mask] * 2  # too young to be remembered: another change could have the same time


def test_another_rule_for_masks_is_another_reading(edit, own, root, decoded):
    prepare(own)
    decoded.clear()
    prepare(edit(mask_values="half"))
    assert sorted(decoded) == sorted(root / path for path in prepare(own)["mask"] if path)


@pytest.mark.parametrize("content", ['{"half', "[]", '{"image images/train/00000.png": 3}', b"\xff\xfe"])
def test_a_damaged_memory_is_none(own, root, decoded, content):
    prepare(own)
    before = (root / checks.CACHE).read_text()
    (root / checks.CACHE).write_bytes(content if isinstance(content, bytes) else content.encode())
    decoded.clear()
    prepare(own)
    assert len(decoded) == len(list(root.rglob("*.png")))
    assert json.loads((root / checks.CACHE).read_text()) == json.loads(before)


def test_a_root_that_cannot_be_written_to_is_checked_without_a_memory(own, root):
    (root / checks.CACHE).mkdir()  # cannot be read, and no file can take its place
    (root / checks.CACHE / "file").touch()
    assert len(prepare(own)) == len(prepare(own)) == 13
    assert not list(root.glob("*.part"))


def test_several_at_once_leave_a_whole_file(own, root):
    frame = load_manifest(own)
    verify(frame[:5]), verify(frame[5:])
    known = json.loads((root / checks.CACHE).read_text())
    assert len(known) == len(list(root.rglob("*.png")))
    (root / checks.CACHE).unlink()
    with ThreadPoolExecutor(8) as pool:
        assert all(found.equals(frame) for found in pool.map(lambda _: verify(frame), range(8)))
    assert json.loads((root / checks.CACHE).read_text()) == known
    assert not list(root.glob("*.part"))
