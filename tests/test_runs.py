import json

import pytest
import torch

from lib.data import load_manifest
from lib.runs import Run, open_split, pick_device
from lib.writing import plain, write_json, write_tensors, write_whole


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


def test_plain_turns_what_is_not_finite_into_null():
    content = {"a": torch.tensor([1.0, float("nan")]), 2: (float("inf"), 3), "b": {"c": "x", "d": True}}
    assert plain(content) == {"a": [1.0, None], "2": [None, 3], "b": {"c": "x", "d": True}}


def test_load_says_what_is_missing(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match=r"holds no trained model; train it with notebooks/02_train.ipynb"):
        Run.load(tmp_path)
    run = Run.load(trained["blackbox"].dir)
    (run.dir / "maps.safetensors").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"maps: no file .*03_explain"):
        _ = run.maps


def test_a_run_reads_back_its_recipe_and_model(trained):
    for run in trained.values():
        again = Run.load(run.dir)
        assert again.recipe == run.recipe
        batch = again.images(3)
        assert torch.equal(again.predict(batch["image"]), run.predict(batch["image"]))
        assert not again.model.training


def test_predict_gives_probabilities_whatever_the_batch_size(trained):
    for run in trained.values():
        images = run.images(5)["image"]
        one = run.predict(images)
        assert torch.allclose(one.sum(1), torch.ones(5))
        assert torch.allclose(one, run.predict(images, batch_size=2), atol=1e-6)


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
    assert sorted(found["train"]["label"]) == sorted(frames["train"]["label"])
    for column in ("image", "label"):
        assert found["val"][column].tolist() == found["train"][column].tolist()
        assert found["test"][column].tolist() == frames["test"][column].tolist()
    permutation = frames["train"]["label"].sample(frac=1, random_state=permuted.stream("labels"))
    assert found["train"]["label"].tolist() == permutation.tolist()
    again, other = (open_split(tiny(random_labels=True, seed=seed), "train").frame for seed in (0, 1))
    assert again["label"].tolist() == found["train"]["label"].tolist()
    assert other["label"].tolist() != again["label"].tolist()
    sample = open_split(permuted, "train")[0]
    assert sample["label"].item() == found["train"]["label"].iloc[0]


def test_maps_round_trip_raw_and_signed(trained, tmp_path):
    run = Run(tmp_path, trained["softcam"].recipe)
    write_tensors(tmp_path / "best.safetensors", trained["softcam"].model.state_dict())
    maps, batch = {"evidence": torch.randn(2, 8, 8)}, run.images(2)
    run.write_maps(maps, batch)
    assert torch.equal(run.maps["evidence"], maps["evidence"])
    described = json.loads((tmp_path / "maps.json").read_text())
    assert (described["ids"], described["targets"]) == (batch["id"], batch["label"].tolist())
    assert "torch" in described


def test_shared_tensors_can_be_written(tmp_path):
    t = torch.zeros(3)
    write_tensors(tmp_path / "x.safetensors", {"a": t, "b": t})
    assert (tmp_path / "x.safetensors").exists()


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
