"""Making the synthetic data sets; run, it makes the committed manifests again. Image i of a split depends on (seed,
generator, split, i) alone, so that fewer images are the first rows of more."""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import validate_call

from lib.data.manifest import COLUMNS, MANIFESTS, SPLITS, Description, load_description
from lib.data.pixels import pixel_hash
from lib.writing import write_png, write_text
from prepare import chest, digits, fundus, shapes

GENERATORS = {"chest": chest, "digits": digits, "fundus": fundus, "shapes": shapes}


def generate(name: str, root: str | Path, seed: int, counts: dict[str, int], **parameters) -> pd.DataFrame:
    """Generate `counts` images per split under `root`, with masks, manifest.csv (shapes: Pascal VOC XML); its rows.

    Labels are balanced in every prefix of a split. ValueError for an unknown generator, split, count or parameter.
    """
    for split, count in counts.items():
        if split not in SPLITS or count < 0:
            raise ValueError(f"counts: expected numbers from 0 for {', '.join(SPLITS)}, got {split!r}: {count!r}")
    frame = _samples(name, Path(root), seed, parameters, [(s, i) for s in SPLITS for i in range(counts.get(s, 0))])
    write_text(Path(root) / "manifest.csv", frame.to_csv(index=False, lineterminator="\n"))
    frame.attrs.update(name=name, root=str(Path(root).resolve()))
    return frame


def make(card: Description, root: Path, wanted: Iterable[tuple[str, int]]) -> pd.DataFrame:
    """Make images of a generated data set, given by split and number, as its card says; their rows."""
    parameters = {"generator": card.name, **card.generator}
    return _samples(parameters.pop("generator"), root, parameters.pop("seed"), parameters, wanted)


def _samples(name: str, root: Path, seed: int, parameters: dict, wanted: Iterable[tuple[str, int]]) -> pd.DataFrame:
    """Draw and write images (split, number), with masks and (shapes) XML. Of K labels, K in a row have each once."""
    if name not in GENERATORS:
        raise ValueError(f"generator's name: expected one of {', '.join(GENERATORS)}, got {name!r}")
    draw, rows = validate_call(GENERATORS[name].draw, config={"arbitrary_types_allowed": True}), []
    classes = len(np.atleast_1d(parameters.get("digits") or parameters.get("grades") or (0, 1)))
    for split, i in wanted:
        key, file = [seed, zlib.crc32(name.encode()), SPLITS.index(split)], f"{split}/{i:05d}"
        order, left = np.random.default_rng([*key, i // classes, 1]), list(range(classes))
        label = [left.pop(order.integers(len(left))) for _ in range(i % classes + 1)][-1]
        which = {"split": split} if name == "digits" else {}
        pixels, mask, extras = draw(label, np.random.default_rng([*key, i]), **which, **parameters)
        boxes = extras.get("boxes")
        write_png(root / f"images/{file}.png", pixels)
        if mask.any():
            write_png(root / f"masks/{file}.png", mask)
        if name == "shapes":
            xml = shapes.voc_xml(parameters.get("polygon", (5, 2)), f"{i:05d}.png", boxes)
            write_text(root / f"annotations/{file}.xml", xml)
        rows.append({
            "image": f"images/{file}.png", "label": label, "split": split, "patient": extras.get("patient", ""),
            "mask": f"masks/{file}.png" if mask.any() else "", "boxes": json.dumps(boxes) if boxes else "",
            "width": pixels.shape[1], "height": pixels.shape[0], "sha256": pixel_hash(pixels),
            "mask_sha256": pixel_hash(mask) if mask.any() else "",
        })  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


if __name__ == "__main__":
    for card in (load_description(path.stem) for path in sorted(MANIFESTS.glob("*.yaml"))):
        if card.generator:
            made = make(card, card.folder(), [(s, i) for s in SPLITS for i in range(card.counts[s])])
            write_text(MANIFESTS / f"{card.name}.csv", made.to_csv(index=False, lineterminator="\n"))
            print(f"{card.name}: {len(made)} images")
