import json

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from lib import models
from lib.data import load_manifest
from lib.run import Run, folded, open_split
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


def test_what_is_not_finite_is_null_in_json_and_shared_tensors_can_be_written(tmp_path):
    tensor = torch.tensor([1.0, float("nan")])
    write_json(tmp_path / "x.json", {"a": tensor, 2: (float("inf"), 3), "b": {"c": "x", "d": True}})
    expected = {"a": [1.0, None], "2": [None, 3], "b": {"c": "x", "d": True}}
    assert json.loads((tmp_path / "x.json").read_text()) == expected
    write_tensors(tmp_path / "x.safetensors", {"a": tensor, "b": tensor})
    assert (tmp_path / "x.safetensors").exists()


def test_what_is_missing_is_said(tmp_path, trained):
    run = Run(tmp_path, trained["blackbox"].recipe)
    for name, notebook in (("maps", "03_explain"), ("table", "04_evaluate")):
        with pytest.raises(FileNotFoundError, match=rf"{name}: no file .*{notebook}"):
            getattr(run, name)


def test_a_run_reads_back_its_recipe_and_model(trained):
    for run in trained.values():
        again = Run.load(run.dir)
        assert again.recipe == run.recipe and not again.model.training
        images = again.images(5)["image"]
        found = again.predict(images)
        assert torch.equal(found, run.predict(images))
        assert torch.allclose(found.sum(1), torch.ones(5))
        assert torch.allclose(found, run.predict(images, batch_size=2), atol=1e-6)


@pytest.mark.parametrize(
    "architecture", ["compact", "resnet50", "vgg11", "densenet121", "efficientnet_v2_s", "vgg-gated"]
)
@pytest.mark.parametrize("kind", [models.blackbox, models.softcam, models.explainer_classifier])
def test_a_folded_model_is_the_same_function(kind, architecture):
    if (kind, architecture) in ((models.softcam, "vgg-gated"), (models.softcam, "vgg11")):
        return  # of which there is none, or which is slow to build
    torch.manual_seed(0)
    model, images = kind(architecture, 3).eval().double(), torch.rand(2, 3, 32, 32).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    before, copy = {key: value.clone() for key, value in model.state_dict().items()}, folded(model)
    with torch.inference_mode():
        for found, expected in zip(tree_leaves(copy(images)), tree_leaves(model(images)), strict=True):
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    left = [name for name, module in copy.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if architecture == "densenet121":  # after a concatenation there is no convolution to merge into
        assert all(name.endswith(("norm1", "norm", "norm5")) for name in left)
    else:
        assert not left


def test_random_labels_permute_train_make_val_of_it_and_leave_test(tiny):
    def rows(split, **changes):
        return open_split(tiny(**changes), split).frame[["image", "label"]]

    train, permuted = rows("train"), tiny(random_labels=True)
    expected = train["label"].sample(frac=1, random_state=permuted.stream("labels")).tolist()
    assert expected != train["label"].tolist()
    for split in ("train", "val"):
        found = rows(split, random_labels=True)
        assert found.equals(train.assign(label=expected))
    assert rows("test", random_labels=True).equals(rows("test"))
    assert rows("train", random_labels=True, seed=1)["label"].tolist() != expected
    assert [int(one["label"]) for one in open_split(permuted, "train")] == expected


def test_a_model_can_be_tested_on_another_data_set(tiny):
    recipe = tiny(test_dataset="digits")
    for split in ("train", "test"):
        assert open_split(recipe, split).frame.equals(open_split(tiny(), split).frame)
    other = open_split(recipe, "evaluated")
    assert sorted(other.frame["image"]) == sorted(load_manifest("digits", "test")["image"])
    assert len(other[0]["image"]) == 3  # in the channels that the model takes
