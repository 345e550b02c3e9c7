import pandas as pd
import pytest
import yaml

from prepare import generate

COUNTS = {"train": 6, "val": 3, "test": 4}
CARD = {
    "name": "own", "title": "Own data", "synthetic": True, "classes": ["other shapes", "target"], "modality": "drawing",
    "image_size": [64, 64], "channels": 3, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "counts": COUNTS,
    "annotation": "mask", "patch": 8, "root": "images_of_own", "generator": {"generator": "shapes", "seed": 3},
}  # fmt: skip


@pytest.fixture
def own(tmp_path):
    """A data set of one's own: a YAML with its CSV beside it, images under images_of_own."""
    frame = generate("shapes", tmp_path / "images_of_own", 3, COUNTS)
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(CARD))
    frame.to_csv(path.with_suffix(".csv"), index=False)
    return path


@pytest.fixture
def edit(own):
    """Change cells of the CSV: edit({(row, column): value}, drop=[column], **card) -> the YAML's path."""

    def change(cells=(), drop=(), **card):
        table = pd.read_csv(own.with_suffix(".csv"), dtype=str, keep_default_na=False)
        for (row, column), value in dict(cells).items():
            table.loc[row, column] = value
        table.drop(columns=list(drop)).to_csv(own.with_suffix(".csv"), index=False)
        own.write_text(yaml.safe_dump({**yaml.safe_load(own.read_text()), **card}))
        return own

    return change
