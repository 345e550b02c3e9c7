"""A run is valid for what it was made from: parameters, training images, code; for its maps, the images explained."""

import json
import shutil

import pytest
import torch
from own_images import (
    change_card,
    change_image,
    change_mask,
    edit_table,
    own_images,
    own_recipe,
    swap_labels,
    swap_splits,
)
from PIL import Image
from safetensors.torch import load_file
from tiny_recipes import PHASES

from lib import identity, phase
from lib.recipe import Recipe
from lib.run import Run
from lib.train import adopt_checkpoint, blackbox_twin, load_or_train, train, twin_differences
from lib.writing import write_tensors


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the images, and the trained run of `own_recipe`."""
    folder = tmp_path_factory.mktemp("own")
    own_images(folder)
    train(own_recipe(folder))
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of `finished`, that a test may change."""
    shutil.copytree(finished, tmp_path / "project")
    content = json.loads((path := tmp_path / "project/runs/own/recipe.json").read_text())
    content["recipe"] |= {"dataset": str(tmp_path / "project/own.yaml"), "runs_dir": str(tmp_path / "project/runs")}
    path.write_text(json.dumps(content))
    return tmp_path / "project"


def same_weights(one, two):
    one, two = (load_file(run.dir / "best.safetensors") for run in (one, two))
    return all(torch.equal(one[key], two[key]) for key in one)


def changed_code(monkeypatch):
    now = identity.code_hashes()
    monkeypatch.setattr(identity, "code_hashes", lambda: {**now, "lib/losses.py": "another"})


def test_a_finished_run_of_the_same_identity_is_kept(folder, capsys):
    recipe = own_recipe(folder)
    kept = (recipe.run_dir / "best.safetensors").stat()
    run = train(recipe.replace(topk=3, device="cpu"))
    found = (run.dir / "best.safetensors").stat()
    assert found.st_ino == kept.st_ino
    assert found.st_mtime_ns > kept.st_mtime_ns  # as new as what it was checked against
    assert Recipe.load(run.dir).topk == 3  # what 03_explain finds in the folder
    assert load_or_train(recipe).recipe == recipe
    again = train(recipe, again=True)
    assert (again.dir / "best.safetensors").stat().st_ino != kept.st_ino
    assert "anew" not in capsys.readouterr().out


@pytest.mark.parametrize("change", [swap_labels, swap_splits, change_mask, change_image, change_card])
@pytest.mark.parametrize("deleted", [False, True])  # as Snakemake deletes what it makes again
def test_other_data_is_refused_and_trained_anew(folder, change, deleted, capsys):
    recipe = own_recipe(folder)
    old = Run.load(recipe.run_dir).model.state_dict()
    change(folder)
    with pytest.raises(ValueError, match=r"^own: the training data .* changed; train again with 02"):
        load_or_train(recipe)
    if deleted:
        (recipe.run_dir / "best.safetensors").unlink()
    before = (recipe.run_dir / "softcam.safetensors").stat()
    run = train(recipe)
    assert (run.dir / "softcam.safetensors").stat() != before
    assert "own: trained anew: " in capsys.readouterr().out
    if change is not change_mask:  # which this loss does not see
        assert any(not torch.equal(old[key], value) for key, value in run.model.state_dict().items())
    assert load_or_train(recipe).dir == run.dir


def test_other_test_images_do_not_matter_to_the_weights(folder):
    edit_table(folder, "label", {20: "1"})
    assert load_or_train(own_recipe(folder)).finished


def test_another_limit_or_parameter_is_refused_with_both_values(folder):
    limit = {"train": 8}
    with pytest.raises(ValueError, match=r"^own: limit: \{'train': 8\} \(trained with None\); the training data .*"):
        load_or_train(own_recipe(folder, limit=limit))
    said = r'^own: l1: 0.5 \(trained with 0.0\); train again with 02_train, open the run itself .*\Wruns\Wown"\)'
    with pytest.raises(ValueError, match=said):
        load_or_train(own_recipe(folder, l1=0.5))
    assert train(own_recipe(folder, limit=limit)).recipe.limit == limit


def test_other_code_is_refused_by_file_and_trained_anew(folder, monkeypatch, capsys):
    recipe = own_recipe(folder)
    changed_code(monkeypatch)
    for asked in (recipe, Recipe.load(recipe.run_dir)):
        with pytest.raises(ValueError, match=r"own: code changed: lib/losses.py; train again with 02_train or give"):
            load_or_train(asked)
    train(recipe)
    assert "own: trained anew: code changed: lib/losses.py\n" in capsys.readouterr().out
    assert load_or_train(recipe).finished


def test_the_code_is_what_trains_and_nothing_that_draws():
    files = identity.code_hashes()
    assert {
        "lib/train.py",
        "lib/phase.py",
        "lib/losses.py",
        "lib/models/softcam.py",
        "lib/data/dataset.py",
    } <= files.keys()
    others = [file for file in files if any(name in file for name in ("plots", "figures", "metrics", "explain/"))]
    assert others == ["lib/metrics/classification.py"]  # which says what epoch is the best


def test_another_file_of_first_weights_is_trained_anew(folder):
    start = folder / "start.safetensors"
    shutil.copy(folder / "runs/own/best.safetensors", start)
    recipe = own_recipe(folder, name="fine", weights=str(start), method="blackbox")
    own = train(own_recipe(folder, name="bb", method="blackbox"))
    shutil.copy(own.dir / "best.safetensors", start)
    train(recipe)
    shutil.copy(own.dir / "last.safetensors", start)
    load_or_train(recipe)  # one epoch: the last state is the best
    train(own_recipe(folder, name="bb", method="blackbox", seed=1))
    shutil.copy(folder / "runs/bb-seed1/best.safetensors", start)
    with pytest.raises(ValueError, match=r"fine: the file .*start.safetensors changed; train again"):
        load_or_train(recipe)
    start.unlink()
    assert load_or_train(recipe).finished


def test_a_damaged_recipe_is_said_and_trained_anew(folder, capsys):
    recipe = own_recipe(folder)
    (recipe.run_dir / "recipe.json").write_text('{"recipe": {"na')
    with pytest.raises(ValueError, match=r"recipe.json: expected JSON with a recipe"):
        Run.load(recipe.run_dir)
    assert train(recipe).finished
    assert "expected JSON with a recipe" in capsys.readouterr().out


def test_maps_belong_to_their_images(folder):
    run = load_or_train(own_recipe(folder))
    batch = run.images(4)
    maps = {"random": torch.full((4, 32, 32), float("nan")), "evidence": torch.rand(4, 32, 32)}
    run.write_maps(maps, batch)
    found, images = Run.load(run.dir).explained()
    assert torch.equal(found["evidence"], maps["evidence"]) and found["random"].isnan().all()
    assert images["id"] == batch["id"] and torch.equal(images["image"], batch["image"])
    for ids in ([*batch["id"][:3], "x.png"], batch["id"][::-1]):
        with pytest.raises(ValueError, match=r"own: expected maps of the first evaluated images, got one of \w+.png"):
            run.write_maps(maps, {**batch, "id": ids})
    assert run.explained()[1]["id"] == batch["id"]
    other = run.recipe.replace(split="val")
    with pytest.raises(ValueError, match=r"own: maps were made from other ids, images; make them again with 03"):
        Run(run.dir, other).explained()
    shutil.copy(run.dir / "maps.safetensors", folder / "kept")
    run.write_maps({"evidence": torch.rand(2, 32, 32)}, {**batch, "id": batch["id"][:2], "label": batch["label"][:2]})
    shutil.copy(folder / "kept", run.dir / "maps.safetensors")
    with pytest.raises(ValueError, match="maps were made from other ids, images;"):
        run.explained()
    (run.dir / "maps.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"maps: no file .*maps.json; make it with notebooks/03_explain"):
        run.explained()
    (run.dir / "maps.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"^.+maps.safetensors: damaged"):
        run.explained()


def test_maps_made_otherwise_are_refused(folder):
    run = Run.load(own_recipe(folder).run_dir)
    run.write_maps({"random": torch.rand(2, 32, 32)}, run.images(2))
    assert list(run.explained()[0]) == ["random"]
    for changes, said in (
        ({"ig_steps": 64}, "ig_steps"),
        ({"explain_count": 7, "explain_methods": ["gradcam"]}, "methods, explain_count"),
    ):
        with pytest.raises(ValueError, match=f"own: maps were made from other {said}; make them again with 03"):
            Run(run.dir, run.recipe.replace(**changes)).explained()
    other = {name: values + 1 for name, values in run.model.state_dict().items()}
    write_tensors(run.dir / "best.safetensors", other)
    with pytest.raises(ValueError, match=r"own: maps were made from other weights; make them again with 03_explain"):
        run.explained()


def test_maps_of_changed_images_are_refused(folder):
    run = load_or_train(own_recipe(folder))
    run.write_maps({"evidence": torch.rand(6, 32, 32)}, run.images())
    Image.new("L", (32, 32), 255).save(folder / "images/19-mask.png")
    with pytest.raises(ValueError, match=r"own: maps were made from other images; make them again"):
        Run.load(run.dir).explained()
    edit_table(folder, "label", {19: "0"})  # and so the order
    with pytest.raises(ValueError, match=r"own: maps were made from other ids, images; make them again"):
        Run.load(run.dir).explained()


def test_the_evaluated_images_are_those_of_the_split_or_of_the_other_data_set(folder):
    recipe = own_recipe(folder)
    test, val = (load_or_train(recipe.replace(split=split)) for split in ("test", "val"))
    assert sorted(test.images()["id"]) == [f"{i}.png" for i in range(18, 24)]
    assert sorted(val.images()["id"]) == [f"{i}.png" for i in range(12, 18)]
    assert val.images(2)["id"] == val.images()["id"][:2]
    for run in (test, val):
        labels, probabilities = run.predictions()
        assert labels.tolist() == run.images()["label"].tolist()
        torch.testing.assert_close(probabilities, run.predict(run.images()["image"]))
    other = folder / "other"
    own_images(other)
    swap_labels(other)
    run = load_or_train(recipe.replace(split="val", test_dataset=str(other / "own.yaml")))
    assert sorted(run.images()["id"]) == [f"{i}.png" for i in range(18, 24)]
    assert sorted(run.predictions()[0].tolist()) == [0, 0, 0, 1, 1, 1]
    shuffled = own_recipe(folder, random_labels=True, split="val")
    assert sorted(Run(folder, shuffled).images()["id"]) == sorted(val.images()["id"])  # true images and labels


def test_another_number_of_classes_is_refused(folder):
    other = folder / "other"
    own_images(other)
    (other / "own.yaml").write_text((other / "own.yaml").read_text().replace("- diseased", "- diseased\n- worse"))
    recipe = own_recipe(folder, test_dataset=str(other / "own.yaml"))
    with pytest.raises(ValueError, match=r"test_dataset: expected 2 classes .*, got healthy, diseased, worse"):
        load_or_train(recipe).images()


def test_a_split_without_images_is_said(folder):
    edit_table(folder, "split", dict.fromkeys(range(12, 18), "test"))
    with pytest.raises(ValueError, match=r"own.yaml: expected images of the split 'val', got none"):
        train(own_recipe(folder, name="other"))
    assert not (folder / "runs/other").exists()


def test_weights_from_another_run(folder, monkeypatch):
    source = train(own_recipe(folder, name="ec", hybrid=True, **PHASES, seed=2))
    other = folder / "other"
    own_images(other)
    there = {"test_dataset": str(other / "own.yaml"), "weights_from": "ec", "seed": 2}
    recipe = own_recipe(folder, name="elsewhere", hybrid=True, **PHASES, **there)
    monkeypatch.setattr(phase, "fit_phase", None)  # nothing is trained
    run = load_or_train(recipe)
    assert run.dir.name == "elsewhere-seed2" and same_weights(run, source)
    assert run.history.equals(source.history) and run.earlier_phases == ["classifier", "explainer"]
    assert Run.load(run.dir).recipe.replace(device=recipe.device) == recipe
    run.write_maps({"random": torch.rand(2, 32, 32)}, run.images(2))
    assert train(recipe).maps and load_or_train(recipe).maps  # kept
    with pytest.raises(ValueError, match=r"weights_from: ec-seed2: beta: 0.5 \(trained with 0.9\)"):
        train(recipe.replace(name="more", beta=0.5))
    with pytest.raises(FileNotFoundError, match="nobody-seed2 holds no trained model"):
        train(recipe.replace(name="more", weights_from="nobody"))
    with pytest.raises(FileNotFoundError, match="more-seed2 holds no trained model"):
        train(recipe.replace(name="more", weights_from="more"))
    assert not (folder / "runs/more-seed2/recipe.json").exists()
    write_tensors(source.dir / "best.safetensors", {k: v * 2 for k, v in source.model.state_dict().items()})
    with pytest.raises(ValueError, match="elsewhere-seed2: the weights of ec changed; train again"):
        load_or_train(recipe)
    assert same_weights(train(recipe), Run.load(source.dir))


def save(model, path):
    torch.save({"classifier": model.classifier.state_dict(), "explainer": model.explainer.state_dict()}
               if hasattr(model, "explainer") else model.state_dict(), path)  # fmt: skip
    return path


def test_an_adopted_checkpoint_says_so_and_is_compared_by_parameters(folder, monkeypatch):
    recipe = own_recipe(folder, name="adopted", method="blackbox")
    theirs = train(own_recipe(folder, name="bb", method="blackbox"))
    run = adopt_checkpoint(recipe, save(theirs.model, folder / "theirs.pt"))
    assert json.loads((run.dir / "recipe.json").read_text())["adopted"].endswith("theirs.pt")
    changed_code(monkeypatch)
    swap_labels(folder)
    assert same_weights(load_or_train(recipe), theirs) and same_weights(train(recipe), theirs)
    with pytest.raises(ValueError, match=r"adopted: width: 5 \(trained with 4\)"):
        load_or_train(recipe.replace(width=5))
    for lost in (False, True):
        with pytest.raises(ValueError, match=r"adopted: holds a checkpoint from elsewhere, .*theirs.pt: "):
            train(recipe.replace(width=5))
        (run.dir / "best.safetensors").unlink(missing_ok=lost)
    assert not same_weights(train(recipe, again=True), theirs)
    assert "adopted" not in json.loads((run.dir / "recipe.json").read_text())


def test_a_checkpoint_that_is_adopted_leaves_nothing_of_an_interrupted_training_and_a_damaged_one_leaves_all(folder):
    source = train(own_recipe(folder, name="ec", **PHASES))
    weights = save(source.model, folder / "ec.pt")
    (source.dir / "best.safetensors").unlink()
    run = adopt_checkpoint(source.recipe, weights)
    assert run.earlier_phases == [] and not (run.dir / "history.csv").exists()
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        adopt_checkpoint(source.recipe, weights)
    images = run.images(4)["image"]
    assert torch.equal(Run.load(run.dir).predict(images), source.predict(images))


def test_a_twin_is_a_black_box_of_the_same_images(folder):
    own = own_recipe(folder, twin="bb", limit={"train": 10})
    with pytest.raises(FileNotFoundError, match="bb holds no trained model"):
        blackbox_twin(own)
    train(own_recipe(folder, name="bb", method="blackbox", width=5, l1=0.0))
    other = folder / "other"
    own_images(other)
    swap_labels(other)
    asked = own.replace(split="val", test_dataset=str(other / "own.yaml"))
    twin = blackbox_twin(asked)
    assert twin.dir.name == "bb" and twin.recipe.method == "blackbox"
    images, theirs = Run(folder, asked).images(), twin.images()
    assert images["id"] == theirs["id"] and torch.equal(images["label"], theirs["label"])
    assert twin_differences(asked) == {"limit": ({"train": 10}, None), "width": (4, 5)}
    with pytest.raises(ValueError, match="twin: own: expected a run with method 'blackbox', got 'softcam'"):
        blackbox_twin(own.replace(twin="own"))
    train(own_recipe(folder, name="sc"))
    with pytest.raises(ValueError, match="twin: sc: expected a run with method 'blackbox', got 'softcam'"):
        blackbox_twin(own.replace(twin="sc"))
    with pytest.raises(ValueError, match="twin: bb: expected a run with image_size 16, got None"):
        blackbox_twin(own.replace(image_size=16))
    with pytest.raises(ValueError, match=r"twin: bb: expected a run with dataset 'shapes', got '.*own.yaml'"):
        blackbox_twin(own.replace(dataset="shapes"))
    swap_labels(folder)
    with pytest.raises(ValueError, match=r"bb: the training data \(images, labels, masks or card\) changed"):
        blackbox_twin(own)


def test_a_run_stored_on_a_gpu_loads_without_one(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = folder / "runs/own/recipe.json"
    content = json.loads(path.read_text())
    content["recipe"]["device"] = "gpu"
    path.write_text(json.dumps(content))
    assert Run.load(path.parent).predict(torch.rand(1, 3, 32, 32)).shape == (1, 2)
    assert load_or_train(own_recipe(folder, device="cpu")).device.type == "cpu"
