"""The order in which rows are given out, and the hash by which a run knows its rows."""

import numpy as np
import pandas as pd
import pytest
from source_trees import build, write

from lib.data import fair_order, load_manifest, manifest_hash, ready
from lib.data.manifest import COLUMNS

COUNTS = {"healthy": 30, "mild": 9, "severe": 1}


def test_every_limit_of_a_listing_by_class_has_the_classes_in_proportion(tmp_path):
    number = 0
    for split, counts in {"train": COUNTS, "val": dict.fromkeys(COUNTS, 1), "test": dict.fromkeys(COUNTS, 1)}.items():
        for name, count in counts.items():
            for i in range(count):
                write(tmp_path / f"{split}/{name}/{i:02d}.png", number, (8, 8))
                number += 1
    build("folder", tmp_path)
    card = tmp_path / "dataset.yaml"
    assert load_manifest(card, "train")["label"].is_monotonic_increasing
    whole = ready(card)
    assert list(whole["split"].unique()) == ["train", "val", "test"]
    share = np.array(list(COUNTS.values())) / 40
    for most in (1, 2, 5, 10, 21, 39, 40):
        frame = ready(card, limit={"train": most, "val": 0})
        train = frame[frame["split"] == "train"]
        assert np.abs(np.bincount(train["label"], minlength=3) - most * share).max() < 1, most
        assert train["image"].tolist() == whole["image"].tolist()[:most]
        assert (frame["split"] == "test").sum() == 3
    assert whole["label"].tolist().index(2) in (19, 20)  # the only one of its class, in the middle


@pytest.mark.parametrize("count", [1, 2, 7, 100, 401])
def test_the_order_is_that_of_the_definition_and_any_prefix_is_fair(count):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame("", index=range(count), columns=COLUMNS)
    hashes = [rng.bytes(32).hex() for _ in range(count)]
    frame = frame.assign(label=rng.choice(3, count, p=[0.7, 0.25, 0.05]), split="train", sha256=hashes)
    found = fair_order(frame)
    keys = {}
    for row in frame.itertuples():
        of_class = sorted(frame.loc[frame["label"] == row.label, "sha256"])
        keys[row.sha256] = ((of_class.index(row.sha256) + 0.5) / len(of_class), row.sha256)
    assert found["sha256"].tolist() == sorted(keys, key=keys.get)
    taken = np.cumsum(np.eye(3)[found["label"]], axis=0)
    assert np.abs(taken - taken[-1] / count * np.arange(1, count + 1)[:, None]).max() < 1


def test_the_order_does_not_depend_on_that_of_the_csv_and_rows_keep_their_index(own):
    first, frame = ready(own), load_manifest(own)
    ordered = fair_order(frame)
    pd.testing.assert_frame_equal(ordered.sort_index(), frame)
    assert ordered.attrs == frame.attrs and list(ordered.index) != list(frame.index)
    table = pd.read_csv(own.with_suffix(".csv"), dtype=str, keep_default_na=False)
    table.sample(frac=1, random_state=1).to_csv(own.with_suffix(".csv"), index=False)
    assert load_manifest(own)["image"].tolist() != load_manifest(own)["image"].sort_values().tolist()
    assert ready(own)["image"].tolist() == first["image"].tolist()
    assert fair_order(first)["image"].tolist() == first["image"].tolist()


def test_the_hash_is_of_content_and_not_of_order(own):
    frame = ready(own)
    found = manifest_hash(frame)
    assert len(found) == 16 and int(found, 16) >= 0
    assert manifest_hash(frame.sample(frac=1, random_state=0)) == found == manifest_hash(ready(own))
    assert manifest_hash(frame[:-1]) != found
    other = {"label": 1 - frame["label"], "split": frame["split"][::-1].to_numpy(), "width": 63, "height": 63}
    for column in COLUMNS:
        assert manifest_hash(frame.assign(**{column: other.get(column, "x")})) != found, column
