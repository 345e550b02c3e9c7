"""A small data set of one's own, whose images, masks, labels and splits a test can change, and what is asked of it."""

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from lib.data import pixel_hash, read_image
from lib.recipe import Recipe

CARD = {"name": "own", "title": "Own", "synthetic": False, "classes": ["healthy", "diseased"], "modality": "photograph",
        "image_size": [32, 32], "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "annotation": "mask", "patch": 8,
        "root": "images"}  # fmt: skip
SPLITS = ["train"] * 12 + ["val"] * 6 + ["test"] * 6


def own_images(folder):
    """Writes 24 images, their table and their card."""
    rng, rows = np.random.default_rng(0), []
    (folder / "images").mkdir(parents=True)
    for i, split in enumerate(SPLITS):
        pixels = rng.integers(0, 200, (32, 32, 3)).astype(np.uint8)
        mask = np.zeros((32, 32), np.uint8)
        if i % 2:
            pixels[8:16, 8:16], mask[8:16, 8:16] = 250, 255
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
        Image.fromarray(mask).save(folder / f"images/{i}-mask.png")
        row = {"image": f"{i}.png", "label": i % 2, "split": split, "patient": "", "boxes": "", "width": 32}
        row |= {"mask": f"{i}-mask.png" if i % 2 else "", "height": 32, "sha256": pixel_hash(pixels)}
        rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "own.csv", index=False)
    edit_card(folder)


def own_recipe(folder, **changes):
    """A recipe on the images of a folder that trains in half a second."""
    given = {"name": "own", "dataset": str(folder / "own.yaml"), "runs_dir": (folder / "runs").as_posix(), "width": 8}
    given |= {"batch_size": 4, "epochs": 1, "evolution_count": 1, "explain_count": 4}
    return Recipe(**{**given, **changes})


def edit_card(folder, **changes):
    (folder / "own.yaml").write_text(yaml.safe_dump({**CARD, **changes}))


def edit_table(folder, column, values):
    """Writes row -> value into a column of the table."""
    rows = pd.read_csv(folder / "own.csv", dtype=str, keep_default_na=False)
    rows.loc[list(values), column] = list(values.values())
    rows.to_csv(folder / "own.csv", index=False)


def swap_labels(folder):
    edit_table(folder, "label", {i: str(1 - i % 2) for i in range(len(SPLITS))})


def swap_splits(folder):
    """Two images of train change places with two of val."""
    edit_table(folder, "split", {0: "val", 1: "val", 12: "train", 13: "train"})


def change_mask(folder):
    Image.new("L", (32, 32), 255).save(folder / "images/1-mask.png")


def change_image(folder, size=(32, 32)):
    Image.new("RGB", size, (9, 9, 9)).save(folder / "images/0.png")
    edit_table(folder, "sha256", {0: pixel_hash(read_image(folder / "images/0.png"))})
    edit_table(folder, "width", {0: str(size[0])})


def change_card(folder):
    edit_card(folder, mean=[0.4] * 3)


def same_weights(run, other, *names):
    """Whether best.safetensors, and others of their files, hold the same tensors in both runs, to the last bit."""
    for name in ("best", *names):
        one, two = (load_file(folder / f"{name}.safetensors") for folder in (run.dir, other.dir))
        if one.keys() != two.keys() or not all(torch.equal(one[key], two[key]) for key in one):
            return False
    return True
