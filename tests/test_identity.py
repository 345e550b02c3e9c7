"""A run is valid for what it was made from: parameters, training images, code; for its maps, the images explained."""

import json
import re
import shutil

import own_images as own
import pytest
import torch
from own_images import edit_table, own_images, own_recipe, same_weights, swap_labels
from PIL import Image
from tiny_recipes import PHASES

from lib import identity, phase
from lib.recipe import Recipe
from lib.run import Run
from lib.train import adopt_checkpoint, blackbox_twin, load_or_train, train
from lib.writing import write_tensors


def edit_json(path, key, **values):
    """Writes the values into one part of a JSON."""
    content = json.loads(path.read_text())
    content[key] |= values
    path.write_text(json.dumps(content))


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
    copy = tmp_path / "project"
    shutil.copytree(finished, copy)
    edit_json(copy / "runs/own/recipe.json", "recipe", dataset=str(copy / "own.yaml"), runs_dir=str(copy / "runs"))
    return copy


@pytest.fixture
def elsewhere(folder):
    """Another data set of such images, its labels the other way round."""
    own_images(folder / "other")
    swap_labels(folder / "other")
    return {"test_dataset": str(folder / "other/own.yaml")}


def test_a_finished_run_of_the_same_identity_is_kept(folder, capsys):
    recipe = own_recipe(folder)
    kept = (recipe.run_dir / "best.safetensors").stat()
    edit_table(folder, "label", {20: "1"})  # a test image, which does not matter to the weights
    run = train(recipe.replace(topk=3, device="cpu"))
    found = (run.dir / "best.safetensors").stat()
    assert found.st_ino == kept.st_ino
    assert found.st_mtime_ns > kept.st_mtime_ns  # as new as what it was checked against
    assert Recipe.load(run.dir).topk == 3  # what 03_explain finds in the folder
    load_or_train(recipe)
    again = train(recipe, again=True)
    assert (again.dir / "best.safetensors").stat().st_ino != kept.st_ino
    assert "anew" not in capsys.readouterr().out


def other_code(folder):
    edit_json(folder / "runs/own/recipe.json", "code", **{"lib/losses.py": "another"})


def half_a_recipe(folder):
    (folder / "runs/own/recipe.json").write_text('{"recipe": {"na')


DATA = r"the training data \(images, labels, masks or card\) changed"


@pytest.mark.parametrize("deleted", [False, True])  # as Snakemake deletes what it makes again
@pytest.mark.parametrize(
    ("change", "changes", "said"),
    [
        (own.swap_labels, {}, DATA),
        (own.swap_splits, {}, DATA),
        (own.change_image, {}, DATA),
        (own.change_card, {}, DATA),
        (own.change_mask, {}, DATA),
        (other_code, {}, "code changed: lib/losses.py"),
        (half_a_recipe, {}, ".*recipe.json: expected JSON with a recipe, got .*; train again with 02_train"),
        (None, {"limit": {"train": 8}}, rf"limit: \{{'train': 8\}} \(trained with None\); {DATA}"),
        (None, {"l1": 0.5}, r"l1: 0.5 \(trained with 0.0\)"),
    ],
)
def test_a_run_of_anything_else_is_refused_and_trained_anew(folder, change, changes, said, deleted, capsys):
    recipe, run = own_recipe(folder, **changes), Run.load(folder / "runs/own")
    old, before = run.model.state_dict(), (run.dir / "softcam.safetensors").stat()
    run.write_maps({"random": torch.zeros(1, 32, 32)}, run.images(1))
    (run.dir / "table.parquet").write_bytes(b"")
    if change:
        change(folder)
    with pytest.raises(ValueError, match=rf"^own: {said}; train again with 02_train.* or give the recipe") as error:
        load_or_train(recipe)
    assert ('open the run itself (recipe = "' in str(error.value)) == ("l1" in changes)
    if deleted:
        (run.dir / "best.safetensors").unlink()
    new = train(recipe)
    assert re.search(f"own: trained anew: {said}\n", capsys.readouterr().out)
    assert (run.dir / "softcam.safetensors").stat() != before
    assert not [name for name in ("maps.safetensors", "maps.json", "table.parquet") if (run.dir / name).exists()]
    same = change in (own.change_mask, other_code, half_a_recipe)  # of which the loss sees nothing
    assert all(torch.equal(old[key], value) for key, value in new.model.state_dict().items()) == same
    load_or_train(recipe)


def test_the_code_is_what_trains_and_nothing_that_draws():
    files = set(identity.code_hashes())
    assert files >= {"lib/train.py", "lib/phase.py", "lib/losses.py", "lib/models/softcam.py", "lib/data/dataset.py"}
    others = [file for file in files if any(name in file for name in ("plots", "figures", "metrics", "explain/"))]
    assert others == ["lib/metrics/classification.py"]  # which says what epoch is the best


def test_another_file_of_first_weights_is_trained_anew(folder):
    start = folder / "start.safetensors"
    recipe = own_recipe(folder, name="fine", weights=str(start), method="blackbox")
    one, other = (train(own_recipe(folder, name="bb", method="blackbox", seed=seed)).dir for seed in (0, 1))
    shutil.copy(one / "best.safetensors", start)
    train(recipe)
    shutil.copy(one / "last.safetensors", start)
    load_or_train(recipe)  # one epoch: the last state is the best
    shutil.copy(other / "best.safetensors", start)
    with pytest.raises(ValueError, match=r"fine: the file .*start.safetensors changed; train again"):
        load_or_train(recipe)
    start.unlink()
    assert (load_or_train(recipe).dir / "best.safetensors").is_file()


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


def test_maps_made_from_anything_else_are_refused_by_its_name(folder):
    run = load_or_train(own_recipe(folder))
    run.write_maps({"random": torch.rand(6, 32, 32)}, run.images())

    def refused(said, **changes):
        with pytest.raises(ValueError, match=f"own: maps were made from other {said}; make them again with 03_explain"):
            Run(run.dir, run.recipe.replace(**changes)).explained()

    refused("ids, images", split="val")
    refused("ig_steps", ig_steps=64)
    refused("methods, explain_count", explain_count=7, explain_methods=["gradcam"])
    Image.new("L", (32, 32), 255).save(folder / "images/19-mask.png")
    refused("images")
    edit_table(folder, "label", {19: "0"})  # and so the order
    refused("ids, images")
    edit_table(folder, "label", {19: "1"})
    run.write_maps({"random": torch.rand(6, 32, 32)}, run.images())
    assert list(run.explained()[0]) == ["random"]
    write_tensors(run.dir / "best.safetensors", {name: one + 1 for name, one in run.model.state_dict().items()})
    refused("weights")


def test_maps_without_their_own_record_are_refused(folder):
    run = load_or_train(own_recipe(folder))
    run.write_maps({"evidence": torch.rand(4, 32, 32)}, run.images(4))
    shutil.copy(run.dir / "maps.safetensors", folder / "kept")
    run.write_maps({"evidence": torch.rand(2, 32, 32)}, run.images(2))
    shutil.copy(folder / "kept", run.dir / "maps.safetensors")
    with pytest.raises(ValueError, match="maps were made from other ids, images;"):
        run.explained()
    (run.dir / "maps.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"maps: no file .*maps.json; make it with notebooks/03_explain"):
        run.explained()
    (run.dir / "maps.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"^.+maps.safetensors: damaged"):
        run.explained()


def test_the_evaluated_images_are_those_of_the_split_or_of_the_other_data_set(folder, elsewhere):
    recipe = own_recipe(folder)
    test, val = (load_or_train(recipe.replace(split=split)) for split in ("test", "val"))
    for run, numbers in ((test, range(18, 24)), (val, range(12, 18))):
        batch, (labels, probabilities) = run.images(), run.predictions()
        assert sorted(batch["id"]) == [f"{i}.png" for i in numbers] and run.images(2)["id"] == batch["id"][:2]
        assert labels.tolist() == batch["label"].tolist()
        torch.testing.assert_close(probabilities, run.predict(batch["image"]))
    run = load_or_train(recipe.replace(split="val", **elsewhere))
    assert sorted(run.images()["id"]) == [f"{i}.png" for i in range(18, 24)]
    assert sorted(run.predictions()[0].tolist()) == [0, 0, 0, 1, 1, 1]
    shuffled = own_recipe(folder, random_labels=True, split="val")
    assert sorted(Run(folder, shuffled).images()["id"]) == sorted(val.images()["id"])  # true images and labels


def test_another_number_of_classes_is_refused(folder, elsewhere):
    own.edit_card(folder / "other", classes=["healthy", "diseased", "worse"])
    with pytest.raises(ValueError, match=r"test_dataset: expected 2 classes .*, got healthy, diseased, worse"):
        load_or_train(own_recipe(folder, **elsewhere)).images()


def test_a_split_without_images_is_said(folder):
    edit_table(folder, "split", dict.fromkeys(range(12, 18), "test"))
    with pytest.raises(ValueError, match=r"own.yaml: expected images of the split 'val', got none"):
        train(own_recipe(folder, name="other"))
    assert not (folder / "runs/other").exists()


def test_images_of_different_sizes_need_an_image_size(folder):
    own.change_image(folder, size=(40, 32))
    with pytest.raises(ValueError, match=r"image_size: expected a number, since the images of .*own.yaml differ"):
        train(own_recipe(folder, name="other"))
    batch = train(own_recipe(folder, name="other", image_size=16)).images(2)
    assert batch["image"].shape[2:] == batch["mask"].shape[1:] == (16, 16)


def test_weights_from_another_run(folder, elsewhere, monkeypatch):
    source = train(own_recipe(folder, name="ec", hybrid=True, **PHASES, seed=2))
    recipe = source.recipe.replace(name="elsewhere", weights_from="ec", **elsewhere)
    monkeypatch.setattr(phase, "fit_phase", None)  # nothing is trained
    run = load_or_train(recipe)
    assert run.dir.name == "elsewhere-seed2" and same_weights(run, source)
    assert run.history.equals(source.history) and run.earlier_phases == ["classifier", "explainer"]
    assert Run.load(run.dir).recipe.replace(device=recipe.device) == recipe
    run.write_maps({"random": torch.rand(2, 32, 32)}, run.images(2))
    assert train(recipe).maps and load_or_train(recipe).maps  # kept
    with pytest.raises(ValueError, match=r"weights_from: ec-seed2: beta: 0.5 \(trained with 0.9\)"):
        train(recipe.replace(name="more", beta=0.5))
    for nobody in ("nobody", "more"):
        with pytest.raises(FileNotFoundError, match=f"{nobody}-seed2 holds no trained model"):
            train(recipe.replace(name="more", weights_from=nobody))
    assert not (folder / "runs/more-seed2/recipe.json").exists()
    write_tensors(source.dir / "best.safetensors", {k: v * 2 for k, v in source.model.state_dict().items()})
    with pytest.raises(ValueError, match="elsewhere-seed2: the weights of ec changed; train again"):
        load_or_train(recipe)
    assert same_weights(train(recipe), source)


def test_an_adopted_checkpoint_says_so_and_is_compared_by_parameters(folder, monkeypatch):
    recipe = own_recipe(folder, name="adopted", method="blackbox")
    theirs = train(own_recipe(folder, name="bb", method="blackbox"))
    torch.save(theirs.model.state_dict(), folder / "theirs.pt")
    run = adopt_checkpoint(recipe, folder / "theirs.pt")
    assert json.loads((run.dir / "recipe.json").read_text())["adopted"].endswith("theirs.pt")
    monkeypatch.setattr(identity, "code_hashes", dict)
    swap_labels(folder)
    assert same_weights(load_or_train(recipe), theirs) and same_weights(train(recipe), theirs)
    with pytest.raises(ValueError, match=r"adopted: width: 9 \(trained with 8\)"):
        load_or_train(recipe.replace(width=9))
    for lost in (False, True):
        with pytest.raises(ValueError, match=r"adopted: holds a checkpoint from elsewhere, .*theirs.pt: "):
            train(recipe.replace(width=9))
        (run.dir / "best.safetensors").unlink(missing_ok=lost)
    assert not same_weights(train(recipe, again=True), theirs)
    assert "adopted" not in json.loads((run.dir / "recipe.json").read_text())


def test_a_checkpoint_that_is_adopted_leaves_nothing_of_an_interrupted_training_and_a_damaged_one_leaves_all(folder):
    source = train(own_recipe(folder, name="ec", **PHASES))
    state = {part: getattr(source.model, part).state_dict() for part in ("classifier", "explainer")}
    torch.save(state, weights := folder / "ec.pt")
    (source.dir / "best.safetensors").unlink()
    run = adopt_checkpoint(source.recipe, weights)
    assert run.earlier_phases == [] and not (run.dir / "history.csv").exists()
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        adopt_checkpoint(source.recipe, weights)
    images = run.images(4)["image"]
    assert torch.equal(Run.load(run.dir).predict(images), source.predict(images))


def test_a_twin_is_a_black_box_of_the_same_images(folder, elsewhere):
    recipe = own_recipe(folder, twin="bb")
    with pytest.raises(FileNotFoundError, match=r"bb holds no trained model; train it with notebooks/02_train.ipynb"):
        blackbox_twin(recipe)
    train(own_recipe(folder, name="bb", method="blackbox", l1=0.0))
    asked = recipe.replace(split="val", **elsewhere)
    twin = blackbox_twin(asked)
    assert twin.dir.name == "bb" and twin.recipe.method == "blackbox"
    images, theirs = Run(folder, asked).images(), twin.images()
    assert images["id"] == theirs["id"] and torch.equal(images["label"], theirs["label"])
    for changes, said in (
        ({"twin": "own"}, "own and own differ in method 'blackbox' and 'softcam'"),
        ({"image_size": 16}, "own and bb differ in image_size 16 and None"),
        ({"dataset": "shapes", "width": 9}, r"own and bb differ in dataset 'shapes' and '.*own.yaml', width 9 and 8"),
    ):
        with pytest.raises(ValueError, match=f"twin: {said}"):
            blackbox_twin(recipe.replace(**changes))
    swap_labels(folder)
    with pytest.raises(ValueError, match=r"bb: the training data \(images, labels, masks or card\) changed"):
        blackbox_twin(recipe)
