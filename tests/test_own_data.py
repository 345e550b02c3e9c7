"""A user's own data set: a YAML and a CSV somewhere on disk, three classes, no annotated regions."""

import numpy as np
import pandas as pd
import pytest
import yaml
from own_images import CARD as OWN
from PIL import Image

from lib.data import pixel_hash, read_image
from lib.evaluate import evaluate
from lib.maps import explain_and_keep
from lib.recipe import Recipe
from lib.run import Run, open_split
from lib.table import at, load, summary
from lib.train import train

CARD = OWN | {"name": "mine", "title": "Mine", "classes": ["a", "b", "c"], "annotation": "none"}


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    folder, rng, rows = tmp_path_factory.mktemp("own"), np.random.default_rng(0), []
    (folder / "images").mkdir()
    for i in range(36):
        label, split = i % 3, ("train", "train", "val", "test")[i // 9]
        pixels = rng.integers(0, 120, (32, 32, 3)).astype(np.uint8)
        pixels[..., label] += 100
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
        found = pixel_hash(read_image(folder / f"images/{i}.png"))
        row = {"image": f"{i}.png", "label": label, "split": split, "patient": f"p{i // 3}", "mask": "", "boxes": ""}
        rows.append(row | {"width": 32, "height": 32, "sha256": found})
    pd.DataFrame(rows).to_csv(folder / "mine.csv", index=False)
    (folder / "mine.yaml").write_text(yaml.safe_dump(CARD))
    return folder / "mine.yaml"


def test_three_classes_without_masks_are_trained_explained_evaluated_and_drawn(card, tmp_path):
    recipe = Recipe(
        name="mine", dataset=str(card), runs_dir=str(tmp_path), width=8, epochs=3, batch_size=6, explain_count=9,
        faithfulness_count=3, aopc_steps=4, deletion_steps=3, resamples=30, ig_steps=4, lr=0.01,
    )  # fmt: skip
    run = train(recipe)
    assert not run.images(9)["has_mask"].any()
    explain_and_keep(run)
    evaluate(run)
    table = load(tmp_path)
    assert not table["synthetic"].any()
    assert at(table, "probability", "all")["k"].unique().tolist() == [0, 1, 2]
    auc = {name: at(table, name)["value"].item() for name in ("auc_low", "auc", "auc_high")}
    assert auc["auc_low"] <= auc["auc"] <= auc["auc_high"]
    (found,) = summary(at(table[table["method"] == "evidence"], "activation_precision")).itertuples()
    assert (np.isnan(found.value), found.used, found.undefined) == (True, 0, 9)
    assert len(summary(at(table[table["method"] == "evidence"], "aopc", "all"))) == 5


def test_images_of_different_sizes_need_an_image_size(card, tmp_path):
    rows = pd.read_csv(card.with_suffix(".csv"), keep_default_na=False)
    wide = np.zeros((32, 40, 3), np.uint8)
    Image.fromarray(wide).save(card.parent / "images/wide.png")
    rows.loc[0, ["image", "width", "sha256"]] = ["wide.png", 40, pixel_hash(wide)]
    rows.to_csv(card.parent / "sizes.csv", index=False)
    (card.parent / "sizes.yaml").write_text(yaml.safe_dump({**CARD, "name": "sizes"}))
    recipe = Recipe(name="x", dataset=str(card.parent / "sizes.yaml"), runs_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"image_size: expected a number, since the images of .*sizes.yaml differ"):
        open_split(recipe, "train")
    batch = Run(tmp_path, recipe.replace(image_size=16)).images(2)
    assert batch["image"].shape == (2, 3, 16, 16)


def test_masks_of_zero_and_one_count(card, tmp_path):
    rows = pd.read_csv(card.with_suffix(".csv"), keep_default_na=False)
    mask = np.zeros((32, 32), np.uint8)
    mask[4:8, 4:8] = 1
    Image.fromarray(mask).save(card.parent / "images/mask.png")
    first = rows.index[rows["split"] == "test"][0]
    rows.loc[first, "mask"] = "mask.png"
    rows.loc[first + 1, "boxes"] = "[]"
    rows.to_csv(card.parent / "masks.csv", index=False)
    (card.parent / "masks.yaml").write_text(yaml.safe_dump({**CARD, "name": "masks", "annotation": "mask"}))
    recipe = Recipe(name="x", dataset=str(card.parent / "masks.yaml"), runs_dir=str(tmp_path))
    batch = Run(tmp_path, recipe).images(9)
    expected = [16 if image == rows.loc[first, "image"] else 0 for image in batch["id"]]
    assert batch["mask"].sum((1, 2)).tolist() == expected and sum(expected) == 16
    assert batch["has_mask"].tolist() == [bool(pixels) for pixels in expected]
