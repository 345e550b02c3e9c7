"""The card of a data set of one's own: written once, kept in step with its images afterwards."""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from pydantic import ValidationError

from lib.data.manifest import Description, load_description
from lib.data.pixels import read_image
from lib.writing import write_text

FILE = "dataset.yaml"
MOST_MEASURED = 500


def own_card(root: Path, frame: pd.DataFrame, classes: list[str], counts: dict[str, int]) -> tuple[Path, Description]:
    """Write or renew ROOT/dataset.yaml; its path and content.

    Classes, channels, sizes, counts, mean and standard deviation (of at most 500 training images, evenly chosen) are
    measured; what else stands in a card that is there already stays. The patch of the localisation metrics is
    33 of 512 pixels, and stays where the size of the images does.
    """
    path, kept = root / FILE, kept_card(root)
    rows = frame[frame["split"] == "train"] if counts["train"] else frame
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(MOST_MEASURED, len(rows))).astype(int))
    channels, mean, std = _statistics([root / image for image in rows["image"].iloc[chosen]])
    width, height = (int(rows[key].median()) for key in ("width", "height"))
    if kept.get("image_size") != [height, width]:
        kept.pop("patch", None)
    annotation = "mask" if (frame["mask"] != "").any() else "box" if (frame["boxes"] != "").any() else "none"
    card = {
        "name": root.name, "title": root.name, "synthetic": False, "homepage": "", "licence": "", "citation": "",
        "modality": "image", "patch": max(2, round(33 / 512 * min(width, height))), "root": ".", "source": "folder",
    } | kept | {
        "classes": classes, "image_size": [height, width], "channels": channels, "mean": mean, "std": std,
        "counts": counts, "annotation": annotation,
    }  # fmt: skip
    try:
        Description.model_validate(card)
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from None
    write_text(path, yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=120))
    return path, load_description(path)


def kept_card(root: Path) -> dict:
    """What stands in the card that is there already, unchecked; nothing where none is."""
    path = root / FILE
    if not path.is_file():
        return {}
    try:
        card = yaml.safe_load(path.read_bytes()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML: {' '.join(str(error).split())}") from None
    if not isinstance(card, dict):
        raise ValueError(f"{path}: expected a line `name: value` per key, got {card!r}")
    return card


def _statistics(paths: list[Path]) -> tuple[int, list[float], list[float]]:
    """Channels (3 where any image has colour), mean and standard deviation per channel of images in [0, 1]."""
    sums = []
    for path in paths:
        pixels = read_image(path) / 255
        colour = pixels.ndim == 3
        pixels = pixels if colour else np.repeat(pixels[..., None], 3, 2)
        sums.append((colour, pixels.mean((0, 1)), (pixels**2).mean((0, 1))))
    channels = 3 if any(colour for colour, *_ in sums) else 1
    mean, square = (np.mean([values[k] for values in sums], axis=0)[:channels] for k in (1, 2))
    std = np.sqrt(np.maximum(square - mean**2, 1e-8))
    return channels, mean.round(4).tolist(), np.maximum(std, 1e-4).round(4).tolist()
