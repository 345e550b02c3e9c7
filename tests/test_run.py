import json

import pandas as pd
import pytest
import torch

from lib.data import load_manifest
from lib.run import Run, open_split, pick_device
from lib.writing import write_json, write_tensors, write_whole


def test_write_whole_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"value": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_whole(path, fail)
    assert json.loads(path.read_text()) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_finite_is_null_in_json(tmp_path):
    content = {"a": torch.tensor([1.0, float("nan")]), 2: (float("inf"), 3), "b": {"c": "x", "d": True}}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": [1.0, None],
        "2": [None, 3],
        "b": {"c": "x", "d": True},
    }


def test_shared_tensors_can_be_written(tmp_path):
    t = torch.zeros(3)
    write_tensors(tmp_path / "x.safetensors", {"a": t, "b": t})
    assert (tmp_path / "x.safetensors").exists()


def test_what_is_missing_is_said(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match=r"holds no trained model; train it with notebooks/02_train.ipynb"):
        Run.load(tmp_path)
    run = Run(tmp_path, trained["blackbox"].recipe)
    with pytest.raises(FileNotFoundError, match=r"maps: no file .*03_explain"):
        _ = run.maps
    with pytest.raises(FileNotFoundError, match=r"table: no file .*04_evaluate"):
        _ = run.table


def test_a_table_comes_back_as_it_was_written(tmp_path, trained):
    run = Run(tmp_path, trained["blackbox"].recipe)
    table = pd.DataFrame(
        {"method": ["gradcam", "lrp"], "image": ["a.png", ""], "k": [0, 3], "value": [0.1, float("nan")]}
    )
    run.write_table(table)
    pd.testing.assert_frame_equal(run.table, table)
    assert {path.name for path in tmp_path.iterdir()} == {"table.parquet", ".lock"}


def test_a_run_reads_back_its_recipe_and_model(trained):
    for run in trained.values():
        again = Run.load(run.dir)
        assert again.recipe == run.recipe and not again.model.training
        images = again.images(5)["image"]
        found = again.predict(images)
        assert torch.equal(found, run.predict(images))
        assert torch.allclose(found.sum(1), torch.ones(5))
        assert torch.allclose(found, run.predict(images, batch_size=2), atol=1e-6)


def test_the_images_are_the_first_of_the_test_split(trained):
    batch = trained["blackbox"].images(4)
    assert batch["image"].shape == (4, 3, 64, 64)
    assert batch["mask"].shape == (4, 64, 64)
    assert all("test" in name for name in batch["id"])
    assert batch["id"] == trained["softcam"].images(6)["id"][:4]
    assert ((batch["image"] >= 0) & (batch["image"] <= 1)).all()


def test_image_size_resizes_image_and_mask(tiny):
    recipe = tiny(image_size=32)
    batch = Run(recipe.run_dir, recipe).images(2)
    assert batch["image"].shape[2:] == batch["mask"].shape[1:] == (32, 32)


def test_random_labels_permute_train_make_val_of_it_and_leave_test(tiny):
    plain_recipe, permuted = tiny(), tiny(random_labels=True)
    frames = {split: open_split(plain_recipe, split).frame for split in ("train", "val", "test")}
    found = {split: open_split(permuted, split).frame for split in frames}
    assert found["train"]["image"].tolist() == frames["train"]["image"].tolist()
    assert found["train"]["label"].tolist() != frames["train"]["label"].tolist()
    for column in ("image", "label"):
        assert found["val"][column].tolist() == found["train"][column].tolist()
        assert found["test"][column].tolist() == frames["test"][column].tolist()
    permutation = frames["train"]["label"].sample(frac=1, random_state=permuted.stream("labels"))
    assert found["train"]["label"].tolist() == permutation.tolist()
    other = open_split(tiny(random_labels=True, seed=1), "train").frame
    assert other["label"].tolist() != found["train"]["label"].tolist()
    assert open_split(permuted, "train")[0]["label"].item() == found["train"]["label"].iloc[0]


def test_gpu_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(RuntimeError, match="device: 'gpu' was asked for, but torch sees no GPU"):
        pick_device("gpu")


def test_a_model_can_be_tested_on_another_data_set(tiny):
    recipe = tiny(test_dataset="digits")
    for split in ("train", "test"):
        own = open_split(recipe, split).frame
        assert own["image"].tolist() == open_split(tiny(), split).frame["image"].tolist()
    other = open_split(recipe, "evaluated")
    assert sorted(other.frame["image"]) == sorted(load_manifest("digits", "test")["image"])
    assert len(other[0]["image"]) == 3  # in the channels that the model takes
