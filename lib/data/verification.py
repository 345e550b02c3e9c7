"""What lies on disk is what the manifest says: each file is decoded once, and remembered by its size and time."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from lib.data.manifest import listing
from lib.data.pixels import pixel_hash, read_image, read_mask
from lib.writing import write_json

CACHE = ".checked.json"
YOUNG = 2 * 10**9  # nanoseconds in which a file system may give two changes the same time


def verify(frame: pd.DataFrame, root: str | Path | None = None) -> pd.DataFrame:
    """The rows, `mask_sha256` as found, whose images and masks lie in the root with the manifest's sizes and pixels.

    ValueError lists the files that are missing, cannot be read, or have another size or other pixels. What was decoded
    is remembered in the root's .checked.json, where the root can be written to, by the file's size and time of change.
    """
    folder, rule = Path(frame.attrs["root"] if root is None else root), frame.attrs.get("mask_values")
    files = [(path, "image") for path in frame["image"]] + [(path, "mask") for path in frame["mask"] if path]
    contents, lines = _contents(folder, files, rule), []
    for row in frame.itertuples():
        for path, kind, expected in ((row.image, "image", row.sha256), (row.mask, "mask", row.mask_sha256)):
            problem, found, height, width = contents.get((path, kind), ("", "", row.height, row.width))
            if problem:
                lines.append(f"{path}: {problem}")
            elif (height, width) != (row.height, row.width):
                lines.append(f"{path}: size {width} x {height}, the manifest says {row.width} x {row.height}")
            elif path and found != (expected or found):
                said = f"the {kind}'s sha256 is {found[:12]}..., not {expected[:12]}..."
                lines.append(f"{path}: pixels differ from the manifest ({said})")
    if lines:
        raise ValueError(listing(f"{folder}: {len(lines)} of the manifest's files do not agree with it", lines))
    return frame.assign(mask_sha256=[contents[path, "mask"][1] if path else "" for path in frame["mask"]])


def _contents(folder: Path, files: list[tuple[str, str]], rule: str | None) -> dict[tuple[str, str], tuple]:
    """What is wrong (or ""), the pixels' hash, height and width of each (path, image or mask)."""
    known, fresh = _remembered(folder), {}

    def content(file: tuple[str, str]) -> tuple[str, str, int, int]:
        path, kind = file
        try:
            stat = (folder / path).stat()
            stamp, key = [stat.st_size, stat.st_mtime_ns], f"{kind if kind == 'image' else rule or kind} {path}"
            if known.get(key, [])[:2] == stamp:
                return "", *known[key][2:]
            pixels = read_image(folder / path) if kind == "image" else read_mask(folder / path, rule)
        except FileNotFoundError:
            return "missing", "", 0, 0
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error ...
            return f"cannot be read: {str(error).removeprefix(f'{folder / path}: ')}", "", 0, 0
        found = [pixel_hash(pixels), *pixels.shape[:2]]
        if time.time_ns() - stat.st_mtime_ns > YOUNG:
            fresh[key] = [*stamp, *found]
        return "", *found

    pool = ThreadPoolExecutor()
    try:
        return dict(zip(files, pool.map(content, files), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
        _remember(folder, fresh)


def _remembered(folder: Path) -> dict[str, list]:
    try:
        entries = json.loads((folder / CACHE).read_text(encoding="utf-8")).items()
    except (OSError, ValueError, AttributeError):
        return {}
    return {key: entry for key, entry in entries if isinstance(entry, list) and len(entry) == 5}


def _remember(folder: Path, fresh: dict[str, list]) -> None:
    """Add what was found to the memory, and to what another process has written meanwhile."""
    try:
        if fresh:
            write_json(folder / CACHE, _remembered(folder) | fresh)
    except OSError:
        pass  # a root that cannot be written to is checked every time
