"""Making the synthetic data sets, and making sure that what lies on disk is what the manifest says.

Image i of a split depends on (seed, generator, split, i) alone, so that fewer images are the first rows of more.
Run `python -m lib.data.generation` to make the committed manifests again.
"""

import json
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from lib.data import chest, digits, fundus, shapes
from lib.data.manifest import (
    COLUMNS,
    MANIFESTS,
    SPLITS,
    data_root,
    fair_order,
    how_to_get,
    load_description,
    load_manifest,
    write_manifest,
)
from lib.data.pixels import pixel_hash, read_image
from lib.data.verification import verify
from lib.writing import write_png, write_text

GENERATORS = {"chest": chest, "digits": digits, "fundus": fundus, "shapes": shapes}


def generate(name: str, root: str | Path, seed: int, counts: dict[str, int], **parameters) -> pd.DataFrame:
    """Generate `counts` images per split under `root`, with masks, manifest.csv (shapes: Pascal VOC XML); its rows.

    Labels are balanced in every prefix of a split. ValueError for an unknown generator, split, count or parameter.
    """
    if name not in GENERATORS:
        raise ValueError(f"name: expected one of {', '.join(GENERATORS)}, got {name!r}")
    _check_counts("counts", counts)
    settings = GENERATORS[name].Parameters(**parameters)
    rows = [_sample(name, root, seed, split, i, settings) for split in SPLITS for i in range(counts.get(split, 0))]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    write_manifest(frame, Path(root) / "manifest.csv")
    frame.attrs.update(name=name, root=str(Path(root).resolve()))
    return frame


def prepare(name: str | Path, limit: dict[str, int] | None = None, root: str | Path | None = None) -> pd.DataFrame:
    """Manifest rows whose images and masks are on disk with the manifest's pixels, in `fair_order`.

    limit: the most rows of each split it names, the first ones in that order; fewer are the first of more. Missing
    images of a generated set are made; `mask_sha256` is that of the files. Raises FileNotFoundError where files of
    another set are missing, and ValueError naming the files that differ from the manifest.
    """
    _check_counts("limit", limit or {})
    description, frame = load_description(name), load_manifest(name, root=root)
    number, folder = frame.groupby("split").cumcount(), Path(frame.attrs["root"])
    frame = fair_order(frame)
    most = frame["split"].map({split: (limit or {}).get(split, len(frame)) for split in SPLITS})
    frame = frame[frame.groupby("split").cumcount() < most]
    lacking = [
        (row, path)
        for row in frame.itertuples()
        for path in (row.image, row.mask)
        if path and not (folder / path).is_file()
    ]
    if lacking and description.generator is None:
        way = (
            how_to_get(name, root) if description.source else f"to be had from {description.homepage or 'their owner'}"
        )
        raise FileNotFoundError(
            f"data set {description.name!r}: {len(lacking)} files missing, the first {lacking[0][1]}; "
            f"expected in {folder}; {way}"
        )
    if lacking:
        made = dict(description.generator)
        kind, seed = made.pop("generator", description.name), made.pop("seed")
        if kind not in GENERATORS:
            raise ValueError(
                f"data set {description.name!r}: generator: expected one of {', '.join(GENERATORS)}, got {kind!r}"
            )
        settings = GENERATORS[kind].Parameters(**made)
        for row in dict(lacking):
            _sample(kind, folder, seed, row.split, number[row.Index], settings)
    return verify(frame).reset_index(drop=True)


def write_shapes(parameters: "shapes.ShapesParameters | str | Path", folder: str | Path, seed: int = 0) -> pd.DataFrame:
    """The paper's generator: nr_images images, nr_targets of them with the target, as one unsplit folder of files.

    Writes N.png from start_index on, masks/N.png, annotations/N.xml and parameters.json, which `parameters` may be the
    path of; returns image, label, mask, boxes (JSON) of each. ValueError for settings that cannot be met.
    """
    if not isinstance(parameters, shapes.ShapesParameters):
        parameters = shapes.ShapesParameters.from_json(parameters)
    folder, count, targets = Path(folder), parameters.nr_images, parameters.nr_targets
    coins = _stream(seed, "labels", count)
    labels = coins.integers(0, 2, count) if targets is None else coins.permutation(np.arange(count) < targets)
    rows = []
    for i, label in enumerate(labels, parameters.start_index):
        image, mask, extras = shapes.draw(parameters, int(label), _stream(seed, "shapes", i))
        rows.append({"image": f"{i}.png", "label": int(label), "mask": f"masks/{i}.png" if label else ""})
        rows[-1]["boxes"] = json.dumps(extras["boxes"])
        _write_files(folder, rows[-1], image, mask)
        write_text(folder / f"annotations/{i}.xml", shapes.voc_xml(parameters, f"{i}.png", extras["boxes"]))
    write_text(folder / "parameters.json", json.dumps(asdict(parameters), indent=2) + "\n")
    return pd.DataFrame(rows, columns=["image", "label", "mask", "boxes"])


def _check_counts(name: str, counts: dict[str, int]) -> None:
    for split, count in counts.items():
        if split not in SPLITS or count < 0:
            raise ValueError(f"{name}: expected numbers from 0 for {', '.join(SPLITS)}, got {split!r}: {count!r}")


def _stream(*key: int | str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in key])


def _sample(name: str, root: str | Path, seed: int, split: str, i: int, parameters) -> dict:
    """Draw and write one image with its mask; its manifest row. Of each pair of images one has label 1."""
    which = {"split": split} if name == "digits" else {}
    label = int(i + _stream(seed, name, SPLITS.index(split), i // 2, 1).integers(2)) % 2
    image, mask, extras = GENERATORS[name].draw(parameters, label, _stream(seed, name, SPLITS.index(split), i), **which)
    boxes = extras.get("boxes")
    row = {
        "image": f"images/{split}/{i:05d}.png",
        "label": label,
        "split": split,
        "patient": extras.get("patient", ""),
        "mask": f"masks/{split}/{i:05d}.png" if mask.any() else "",
        "boxes": json.dumps(boxes) if boxes else "",
        "width": image.shape[1],
        "height": image.shape[0],
        "sha256": pixel_hash(image),
        "mask_sha256": pixel_hash(mask) if mask.any() else "",
    }
    _write_files(Path(root), row, image, mask)
    if name == "shapes":
        xml = shapes.voc_xml(parameters, f"{i:05d}.png", boxes)
        write_text(Path(root) / f"annotations/{split}/{i:05d}.xml", xml)
    return row


def _write_files(root: Path, row: dict, image: np.ndarray, mask: np.ndarray) -> None:
    write_png(root / row["image"], image)
    if row["mask"]:
        write_png(root / row["mask"], mask)


def main() -> None:
    """Make the committed manifests again, and write the channels' mean and std over the training images."""
    for name in GENERATORS:
        description = load_description(name)
        made = {key: value for key, value in description.generator.items() if key not in ("generator", "seed")}
        frame = generate(name, data_root(name), description.generator["seed"], description.counts, **made)
        write_manifest(frame, MANIFESTS / f"{name}.csv")
        pixels = [read_image(data_root(name) / path) for path in frame.loc[frame["split"] == "train", "image"]]
        values = np.stack(pixels).reshape(-1, description.channels) / 255
        card = yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8"))
        card.update(mean=values.mean(0).round(4).tolist(), std=values.std(0).round(4).tolist())
        write_text(MANIFESTS / f"{name}.yaml", yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=120))
        print(f"{name}: {len(frame)} images, mean {card['mean']}, std {card['std']}")


if __name__ == "__main__":
    main()
