"""What lies on disk is what the manifest says: made where it is missing, decoded once, remembered by size and time."""

import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from lib.data.manifest import fair_order, listing, load_description, load_manifest
from lib.data.pixels import pixel_hash, read_image, read_mask
from lib.writing import write_json

MEMORY = ".checked.json"
YOUNG = 2 * 10**9  # nanoseconds in which a file system may give two changes the same time


def ensure_manifest(name: str | Path, root: str | Path | None = None, **settings) -> pd.DataFrame:
    """The rows of a data set's manifest, built first where it is not there yet; `settings` as of `build_manifest`."""
    card = load_description(name)
    if card.source and not card.manifest(root).is_file() and card.folder(root).is_dir():
        from prepare import build_manifest

        build_manifest(name, root, **settings)
    return load_manifest(name, root=root)


def ready(name: str | Path, limit: dict[str, int] | None = None, root: str | Path | None = None) -> pd.DataFrame:
    """`verify`'d rows in `fair_order`, of each split that `limit` names the first so many. Missing images of a
    generated set are made; FileNotFoundError where files of another set are missing."""
    card, frame = load_description(name), load_manifest(name, root=root)
    number, folder = frame.groupby("split").cumcount(), Path(frame.attrs["root"])
    frame = fair_order(frame)
    frame = frame[frame.groupby("split").cumcount() < frame["split"].map(limit or {}).fillna(len(frame))]
    files = [(row, path) for row in frame.itertuples() for path in (row.image, row.mask) if path]
    lacking = [(row, path) for row, path in files if not (folder / path).is_file()]
    if lacking and card.generator is None:
        missing = f"{len(lacking)} files missing, the first {lacking[0][1]}; expected in {folder}"
        raise FileNotFoundError(f"data set {card.name!r}: {missing}; {card.how_to_get(root)}")
    if lacking:
        from prepare.generation import make

        make(card, folder, [(row.split, number[row.Index]) for row in dict(lacking)])
    return verify(frame).reset_index(drop=True)


def verify(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows, `mask_sha256` as found, whose images and masks lie in the root with the manifest's sizes and pixels;
    ValueError lists the files that do not. Each is decoded `once`."""
    root, values, lines = Path(frame.attrs["root"]), frame.attrs.get("mask_values"), []

    def decoded(key: str) -> dict | list[str]:
        kind, _, path = key.partition(" ")
        try:
            pixels = read_image(root / path) if kind == "image" else read_mask(root / path, values)
        except FileNotFoundError:
            return ["missing"]
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error ...
            return [f"cannot be read: {str(error).removeprefix(f'{root / path}: ')}"]
        return {"sha256": pixel_hash(pixels), "size": f"{pixels.shape[1]} x {pixels.shape[0]}"}

    images = [(f"image {row.image}", row.image, row.sha256, row) for row in frame.itertuples()]
    masks = [(f"{values or 'mask'} {row.mask}", row.mask, row.mask_sha256, row) for row in frame.itertuples()]
    files = [file for pair in zip(images, masks, strict=True) for file in pair if file[1]]
    found = once(root / MEMORY, {key: [root / path] for key, path, *_ in files}, decoded)
    for key, path, sha256, row in files:
        seen, size = found[key], f"{row.width} x {row.height}"
        if isinstance(seen, list):
            lines.append(f"{path}: {seen[0]}")
        elif seen["size"] != size:
            lines.append(f"{path}: size {seen['size']}, the manifest says {size}")
        elif sha256 and seen["sha256"] != sha256:
            lines.append(f"{path}: pixels differ from the manifest: {seen['sha256'][:9]}..., not {sha256[:9]}...")
    if lines:
        raise ValueError(listing(f"{root}: {len(lines)} of the manifest's files do not agree with it", lines))
    return frame.assign(mask_sha256=[found[key]["sha256"] if path else "" for key, path, *_ in masks])


def once(memory: Path, jobs: dict[str, list[Path]], work: Callable, workers=None, progress=False) -> dict:
    """`work(key)` of every job, in threads: a dict, or a list of what is wrong. jobs: key -> the files it depends on.
    A dict is remembered in the JSON `memory`, where that can be written, by the sizes and times of change of the job's
    files (and lasts while the files `image` and `mask` that it names do); also when the call is interrupted."""
    known, fresh = _remembered(memory), {}

    def result(key: str) -> dict | list[str]:
        stamps = [[file.stat().st_size, file.stat().st_mtime_ns] for file in jobs[key] if file.is_file()]
        before, found = known.get(key, (None, {}))
        made = [memory.parent / found[kind] for kind in ("image", "mask") if found.get(kind)]
        if before == stamps and all(map(Path.is_file, made)):
            return found
        found = work(key)
        if isinstance(found, dict) and time.time_ns() - max(changed for _, changed in stamps) > YOUNG:
            fresh[key] = [stamps, found]
            if len(fresh) % 1000 == 0:
                save()
        return found

    def save() -> None:
        with contextlib.suppress(OSError):
            write_json(memory, _remembered(memory) | fresh)  # with what another process has written meanwhile

    bar = {"desc": "reading images", "total": len(jobs), "unit": "image", "disable": not progress}
    try:
        with ThreadPoolExecutor(workers) as pool:  # whose map cancels what is left when it is interrupted
            return dict(zip(jobs, tqdm(pool.map(result, jobs), **bar), strict=True))
    finally:
        save()


def _remembered(memory: Path) -> dict:
    try:
        return dict(json.loads(memory.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
