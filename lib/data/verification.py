"""What lies on disk is what the manifest says: made where it is missing, decoded once, remembered by size and time."""

import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from lib.data.manifest import SPLITS, fair_order, listing, load_description, load_manifest
from lib.data.pixels import pixel_hash, read_image, read_mask
from lib.writing import write_json

MEMORY = ".checked.json"
YOUNG = 2 * 10**9  # nanoseconds in which a file system may give two changes the same time
SAVE_SECONDS = 20


def ensure_manifest(name: str | Path, root: str | Path | None = None, **settings) -> pd.DataFrame:
    """The rows of a data set's manifest, built first where it is not there yet; `settings` as of `build_manifest`."""
    card = load_description(name)
    if card.source and not card.manifest(root).is_file() and card.folder(root).is_dir():
        from prepare import build_manifest

        build_manifest(name, root, **settings)
    return load_manifest(name, root=root)


def ready(name: str | Path, limit: dict[str, int] | None = None, root: str | Path | None = None) -> pd.DataFrame:
    """Manifest rows whose images and masks are on disk with the manifest's pixels, in `fair_order`.

    limit: the most rows of each split it names, the first ones in that order; fewer are the first of more. Missing
    images of a generated set are made; `mask_sha256` is that of the files. Raises FileNotFoundError where files of
    another set are missing, and ValueError naming the files that differ from the manifest.
    """
    card, frame = load_description(name), load_manifest(name, root=root)
    number, folder = frame.groupby("split").cumcount(), Path(frame.attrs["root"])
    frame = fair_order(frame)
    most = frame["split"].map({split: (limit or {}).get(split, len(frame)) for split in SPLITS})
    frame = frame[frame.groupby("split").cumcount() < most]
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
    """The rows, `mask_sha256` as found, whose images and masks lie in the root with the manifest's sizes and pixels.

    ValueError lists the files that are missing, cannot be read, or have another size or other pixels. Each file is
    decoded `once`.
    """
    folder, rule = Path(frame.attrs["root"]), frame.attrs.get("mask_values") or "mask"

    def decoded(key: str) -> dict | list[str]:
        kind, _, path = key.partition(" ")
        try:
            values = None if kind == "mask" else kind
            pixels = read_image(folder / path) if kind == "image" else read_mask(folder / path, values)
        except FileNotFoundError:
            return ["missing"]
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error ...
            return [f"cannot be read: {str(error).removeprefix(f'{folder / path}: ')}"]
        return {"sha256": pixel_hash(pixels), "size": f"{pixels.shape[1]} x {pixels.shape[0]}"}

    jobs = {f"image {path}": [folder / path] for path in frame["image"]}
    jobs |= {f"{rule} {path}": [folder / path] for path in frame["mask"] if path}
    found, lines = once(folder / MEMORY, jobs, decoded), []
    for row in frame.itertuples():
        size = f"{row.width} x {row.height}"
        for kind, path, expected in (("image", row.image, row.sha256), ("mask", row.mask, row.mask_sha256)):
            seen = found.get(f"{kind if kind == 'image' else rule} {path}", {"sha256": "", "size": size})
            if isinstance(seen, list):
                lines.append(f"{path}: {seen[0]}")
            elif seen["size"] != size:
                lines.append(f"{path}: size {seen['size']}, the manifest says {size}")
            elif expected and seen["sha256"] != expected:
                said = f"the {kind}'s sha256 is {seen['sha256'][:12]}..., not {expected[:12]}..."
                lines.append(f"{path}: pixels differ from the manifest ({said})")
    if lines:
        raise ValueError(listing(f"{folder}: {len(lines)} of the manifest's files do not agree with it", lines))
    return frame.assign(mask_sha256=[found[f"{rule} {path}"]["sha256"] if path else "" for path in frame["mask"]])


def once(
    memory: Path, jobs: dict[str, list[Path]], work: Callable, workers: int | None = None, progress: bool = False
) -> dict[str, dict | list[str]]:
    """`work(key)` of every job, in threads: a dict, or a list of what is wrong.

    jobs: key -> the files that it depends on. A dict is remembered in the JSON `memory`, where that can be written, by
    the sizes and times of change of the job's files (and lasts while the files `image` and `mask` that it names do);
    also when the call is interrupted.
    """
    known, fresh, results, saved = _remembered(memory), {}, {}, time.monotonic()

    def result(key: str) -> dict | list[str]:
        try:
            stamps = [[stat.st_size, stat.st_mtime_ns] for stat in map(Path.stat, jobs[key])]
        except (OSError, ValueError):
            return work(key)
        before, found = known.get(key, (None, {}))
        there = (memory.parent / found[kind] for kind in ("image", "mask") if found.get(kind))
        if before == stamps and all(map(Path.is_file, there)):
            return found
        found = work(key)
        if isinstance(found, dict) and time.time_ns() - max(stamp[1] for stamp in stamps) > YOUNG:
            fresh[key] = [stamps, found]
        return found

    def save() -> None:
        with contextlib.suppress(OSError):
            if fresh:
                write_json(memory, _remembered(memory) | fresh)  # with what another process has written meanwhile

    pool = ThreadPoolExecutor(workers)
    try:
        bar = tqdm(jobs, desc="reading images", unit="image", disable=not progress)
        for key, found in zip(bar, pool.map(result, jobs), strict=True):
            results[key] = found
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)
        save()
    return results


def _remembered(memory: Path) -> dict[str, list]:
    try:
        entries = json.loads(memory.read_text(encoding="utf-8")).items()
    except (OSError, ValueError, AttributeError):
        return {}
    return {key: entry for key, entry in entries if isinstance(entry, list) and [*map(type, entry)] == [list, dict]}
