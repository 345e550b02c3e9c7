import json
import math
import subprocess
import sys

import pytest

from lib import PROJECT
from lib.explain import METHODS
from lib.recipe import Recipe, checked
from pipeline.experiments import DEMO, experiments, points

EXPLAINER = {"method": "explainer_classifier", "alpha": 0.5, "lr_explainer": 0.1}
FOLDER = PROJECT / "notebooks/recipes"
PAPER = [Recipe.load(path) for path in sorted(FOLDER.glob("paper/*.yaml"))]


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "paper", FOLDER / "smoke"])
def test_every_committed_recipe_and_point_of_a_sweep_is_an_experiment_with_a_twin(folder):
    recipes = {name: Recipe.load(*one) for name, one in experiments(folder).items()}
    assert set(recipes) >= {path.stem for path in set(folder.glob("*.yaml")) - {DEMO}}
    assert all(recipe.twin for recipe in recipes.values() if recipe.method != "blackbox")
    for path in folder.glob("sweeps/*.yaml"):
        found = points(path)
        swept = [recipes[name] for name in found]
        parameter = swept[0].sweep.parameter
        assert [getattr(recipe, parameter) for recipe in swept] == [point[parameter] for point in found.values()]
        assert len(swept) >= (5 if folder == FOLDER and parameter != "random_labels" else 1)


def test_the_papers_recipes_are_complete():
    data = ("kaggle_dr", "kaggle_dr_levels", "oct2017", "oct2017_classes", "rsna")
    softcam = ("black box", "SoftCAM dense", "SoftCAM sparse", "SoftCAM ridge")
    expected = {(d, a, v) for d in data for a in ("resnet50", "vgg16") for v in softcam}
    explainer = ("black box", "Explainer unsupervised", "Explainer hybrid")
    expected |= {(d, "resnet18", v) for d in ("imagenet_hvz", "nih_nci") for v in explainer}
    assert {(r.dataset, r.architecture, r.variant) for r in PAPER} == expected
    assert len(PAPER) == len(expected)


@pytest.mark.parametrize("recipe", PAPER, ids=lambda recipe: recipe.name)
def test_the_papers_settings(recipe):
    twin = next(one for one in PAPER if one.name == (recipe.twin or recipe.name))
    shared = "dataset", "architecture", "image_size", "augment", "augment_probability", "batch_size", "weights"
    expected = {key: getattr(twin, key) for key in shared}
    expected |= {"seed": 0, "limit": None, "sampling": "instance", "class_weights": None, "optimizer": "sgd"}
    if recipe.architecture == "resnet18":
        expected |= {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "image_size": 224, "batch_size": 8}
        expected |= {"schedule": "plateau", "decay": 0.2, "plateau_patience": 10, "lr_floor": 1e-5}
        expected |= {"augment": "xml", "augment_probability": 0.2}
        if recipe.method == "explainer_classifier":
            epochs, alpha = {"imagenet_hvz": ([10, 10, 100], 0.9), "nih_nci": ([30, 10, 50], 0.99)}[recipe.dataset]
            expected |= {"epochs": epochs, "alpha": [1.0, 0.25, alpha], "beta": 0.9, "gamma": 1.0, "init_bias": 3.0}
            expected |= {"lr": [0.01, 0.0, 0.01], "lr_explainer": [0.0, 0.01, 0.01]}
            expected |= {"explainer_channels": [32, 64, 128]}
    else:
        expected |= {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "epochs": 50, "lr": 1e-3}
        expected |= {"schedule": "clipped_cosine", "lr_floor": 1e-4, "weights": "imagenet", "batch_size": 12}
        expected |= {"image_size": 496 if recipe.dataset.startswith("oct") else 512, "augment_probability": 0.5}
        expected |= {"augment": "chest" if recipe.dataset == "rsna" else "fundus"}
    assert {key: getattr(recipe, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epohcs": 3}, r"unknown parameter 'epohcs'; known: .*\bepochs\b.*\bwidth\b"),
        ({"lr": "3e-3"}, r"lr: .* got '3e-3' \(in YAML write 3.0e-3"),
        ({"epochs": 2.5}, "epochs: .*integer.*got 2.5"),
        ({"method": "softcm"}, "method: .*'blackbox', 'softcam' or 'explainer_classifier', got 'softcm'"),
        ({"name": "../up"}, "name: expected a letter or digit, .*got '../up'"),
        ({"name": "x; touch y"}, "name: expected .*got 'x; touch y'"),
        ({"name": "a.. "}, "name: expected .*got 'a.. '"),
        ({"twin": "../x"}, r"twin: expected a letter .*got '../x'"),
        ({"weights_from": "a/b"}, "weights_from: expected a letter .*got 'a/b'"),
        ({"width": 7}, "width: .*greater than or equal to 8, got 7"),  # fewer channels crash torch 2.15 on AVX2
        ({"class_weights": [1.0, 0.0]}, "class_weights: .*greater than 0, got 0.0"),
        ({"class_weights": [1.0, math.nan]}, "class_weights: .*finite number, got nan"),
        ({"seed": 2**32}, "seed: .*less than 4294967296, got 4294967296"),
        ({"sweep": {"name": "x"}}, "sweep: Field required"),
        ({"l1": -1.0}, "l1: .*greater than or equal to 0, got -1.0"),
        ({"l1": math.inf}, "l1: .*finite number, got inf"),
        ({**EXPLAINER, "lr": [0.1, math.inf, 0.1]}, "lr: .*finite number, got inf"),
        ({**EXPLAINER, "epochs": [1, 2]}, r"epochs: expected one value or 3 for .*got \[1, 2\]"),
        ({**EXPLAINER, "alpha": [1.0, 0.25, 1.01]}, "alpha: .*less than or equal to 1, got 1.01"),
        ({**EXPLAINER, "alpha": 1.0}, "'explainer' would not train with lr_explainer 0.1, alpha 1"),
        ({"checkpoint": ["loss", "auc"]}, r"checkpoint: expected one value or 1 for softcam, got \['loss', 'auc'\]"),
        ({"warmup_epochs": 2}, "warmup_epochs: expected 0 for 'onecycle', got 2"),
        ({"criterion": "kappa", "class_weights": "balanced"}, "class_weights: expected none .*'kappa', got balanced"),
        ({"limit": {"train": 5, "val": 0}}, "limit: .*greater than 0, got 0"),
        ({"limit": {"training": 3}}, "limit: .*'train', 'val' or 'test', got 'training'"),
        ({"explain_methods": ["evidence", "gradcan"]}, "explain_methods: expected names of .*gradcam, .*got 'gradcan'"),
    ],
)
def test_wrong_parameters_are_named_with_what_was_expected(values, message):
    with pytest.raises(ValueError, match=f"^x.yaml: .*{message}"):
        checked(values, "x.yaml")


def test_values_as_yaml_spells_them():
    recipe = checked({"lr": 1, "precision": 32, "class_weights": "none"}, "x.yaml")
    assert (recipe.lr, recipe.precision, recipe.class_weights) == (1.0, "32", None)
    assert checked({"class_weights": [1, 2.5]}, "x.yaml").class_weights == [1.0, 2.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- lr\n- 0.1\n", r"x.yaml: expected a line `name: value` per parameter, got \['lr', 0.1\]"),
        (b"3: 4\n", r"x.yaml: expected a line `name: value` per parameter, got {3: 4}"),
        (b"name: x\nlr: [0.1\n", "x.yaml: expected YAML: .* line 3"),
        (b"name: \xff\xfe\n", r"x.yaml: expected YAML: .*invalid start byte"),
    ],
)
def test_a_file_that_is_no_recipe_is_named_in_one_line(tmp_path, content, message):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Recipe.load(tmp_path / "x.yaml")
    assert "\n" not in str(error.value)


def test_every_registered_method_can_be_asked_for_and_known_ones_without_the_register():
    assert Recipe(explain_methods=list(METHODS)).methods == list(METHODS)
    known = "import sys; from lib.recipe import *; Recipe(explain_methods=['lrp']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", known], cwd=PROJECT, check=True)


def test_parameters_say_what_their_names_do_not():
    plain = {name for name, field in Recipe.model_fields.items() if not field.description}
    assert plain == {"method", "epochs", "lr_explainer", "optimizer", "schedule", "weight_decay", "device"}


def test_phases_take_one_value_each():
    three = {"epochs": [6, 2, 8], "optimizer": ["adamw", "sgd", "sgd"], "checkpoint": ["accuracy", "loss", "loss"]}
    recipe = Recipe(method="explainer_classifier", lr=0.1, alpha=[1.0, 0.25, 0.9], lr_explainer=0.1, **three)
    assert [(p.name, p.epochs, p.lr, p.optimizer, p.alpha, p.checkpoint) for p in recipe.phases] == [
        ("classifier", 6, 0.1, "adamw", 1.0, "accuracy"),
        ("explainer", 2, 0.1, "sgd", 0.25, "loss"),
        ("joint", 8, 0.1, "sgd", 0.9, "loss"),
    ]
    assert recipe.blackbox_twin().checkpoint == "accuracy"
    assert [p.name for p in Recipe(method="blackbox").phases] == ["blackbox"]
    first, second, third = Recipe(method="explainer_classifier").phases  # needs no settings
    assert (first.lr_explainer, second.alpha < 1, third.lr_explainer > 0) == (0, True, True)


def test_variant_names():
    softcam = [Recipe(l1=l1, l2=l2).variant for l1, l2 in ((0, 0), (0.1, 0), (0, 0.1), (0.1, 0.1))]
    assert softcam == ["SoftCAM dense", "SoftCAM sparse", "SoftCAM ridge", "SoftCAM elastic net"]
    others = Recipe(method="blackbox"), Recipe(**EXPLAINER), Recipe(**EXPLAINER, hybrid=True)
    assert [one.variant for one in others] == ["black box", "Explainer unsupervised", "Explainer hybrid"]


def test_blackbox_twin_has_the_data_and_the_first_phase_of_its_model_and_nothing_that_explains():
    recipe = Recipe(name="x", **EXPLAINER, hybrid=True, seed=3, epochs=[6, 2, 8], lr=[0.1, 0.0, 0.2], width=8)
    twin = recipe.blackbox_twin()
    found = twin.name, twin.method, twin.seed, twin.width, twin.epochs, twin.lr
    assert found == ("x-blackbox", "blackbox", 3, 8, 6, 0.1)
    assert recipe.replace(twin="y").blackbox_twin().name == "y"
    assert twin.blackbox_twin() is twin
    twins = [Recipe(**changes).blackbox_twin() for changes in ({}, {"l1": 0.5}, {"output_stride": 16}, {"beta": 0.1})]
    assert len({twin.model_dump_json() for twin in twins}) == 1


def test_changes_are_over_what_the_file_says(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("name: one\nlr: 0.1\nepochs: 3\n")
    assert Recipe.load(path, {"lr": 0.2}) == Recipe(name="one", lr=0.2, epochs=3)
    with pytest.raises(ValueError, match=r"one.yaml with changes: unknown parameter 'learning_rate'; known: "):
        Recipe.load(path, {"learning_rate": 0.2})
    with pytest.raises(ValueError, match="changes: expected a dict of parameters, got 'lr'"):
        Recipe.load(path, "lr")
    path.write_text("# nothing\n")
    assert Recipe.load(path) == Recipe()


def test_a_run_folder_is_a_recipe(tmp_path):
    folder = tmp_path / "moved/one-seed2"
    with pytest.raises(FileNotFoundError, match=r"No such file .*one-seed2"):
        Recipe.load(folder)
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"No such file .*recipe.json"):
        Recipe.load(folder)
    for content in ("", "[]", "{}", '{"recipe": 3}', '{"recipe": {'):
        (folder / "recipe.json").write_text(content)
        with pytest.raises(ValueError, match=r"recipe.json: expected JSON with a recipe, got .*; train again"):
            Recipe.load(folder)
    stored = Recipe(name="one", seed=2, lr=0.2, device="gpu", runs_dir="elsewhere")
    (folder / "recipe.json").write_text(json.dumps({"recipe": stored.model_dump()}))
    recipe = Recipe.load(folder)
    assert recipe == stored.replace(device="auto", runs_dir=(tmp_path / "moved").as_posix())
    assert recipe.run_dir == folder
    assert Recipe.load(folder, {"name": "two", "device": "cpu"}).run_dir == tmp_path / "moved/two-seed2"
    folder.rename(folder.with_name("three"))
    with pytest.raises(ValueError, match="three: expected the folder's name to be its run's, one-seed2"):
        Recipe.load(folder.with_name("three"))


@pytest.mark.parametrize("name", ["Ann's data (2024)", "Größe [3]", "a+b=c", "x-1e+06", "my images", "Ä"])
def test_a_run_folder_is_called_as_its_recipe_and_seed(name):
    assert Recipe(name=name, runs_dir="runs").run_dir == PROJECT / "runs" / name
    assert Recipe(name=name, runs_dir="runs", seed=2).run_dir == PROJECT / f"runs/{name}-seed2"


def test_streams_differ_by_seed_phase_and_purpose():
    orders = [("order", "classifier", 0), ("order", "classifier", 1), ("order", "explainer", 0)]
    purposes = [("weights",), *orders, ("train", "joint")]
    seeds = [Recipe(seed=seed).stream(*purpose) for seed in range(50) for purpose in purposes]
    assert len(set(seeds)) == len(seeds)
    assert Recipe(seed=3).stream("weights") == Recipe(seed=3, name="other", lr=0.1).stream("weights")


def test_training_parameters_are_those_that_weights_depend_on():
    same = {"name": "x", "runs_dir": "y", "topk": 3, "device": "cpu", "num_workers": 2, "split": "val", "twin": "z"}
    assert Recipe(**same).training == Recipe().training
    for key, value in {"lr": 0.1, "seed": 1, "threads": 2, "precision": "bf16", "limit": {"train": 1}}.items():
        assert Recipe(**{key: value}).training != Recipe().training


def folder_of(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_experiments_are_recipes_and_points_of_sweeps_and_what_is_trained_alike_is_trained_once(tmp_path):
    path = "base: one\nparameter: l1\nvalues: [0.0, 1.0e+6]\nset: {epochs: 2}\n"
    alike = {f"sweeps__{key}": f"base: one\nparameter: {key}\nvalues: [0, 1]\n" for key in ("l1", "l2")}
    found = experiments(folder_of(tmp_path, one="name: one\nepochs: 9\nl1: 1.0\n", sweeps__a=path, **alike))
    recipes = {name: Recipe.load(*one) for name, one in found.items()}
    point = recipes["a-1e+06"]
    assert (point.l1, point.epochs, point.sweep.name, point.sweep.parameter) == (1e6, 2, "a", "l1")
    taken = {name: recipe.weights_from for name, recipe in recipes.items()}
    none = dict.fromkeys(("one", "a-0", "a-1e+06", "l1-0", "l2-1"))
    assert taken == {**none, "l1-1": "one", "l2-0": "one"} and recipes["one"].sweep is None
    assert "demo" not in experiments("notebooks/recipes")  # which is no experiment


ONE, SWEEP = {"one": "name: one\n"}, "base: one\nparameter: l1\nvalues: [1]\n"
TWIN = {"one": "name: one\ntwin: two\n"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"one": "name: two\n"}, "one.yaml: name: expected 'one' as the file is called, got 'two'"),
        (TWIN, "one.yaml: twin: no recipe 'two' in"),
        ({"one": "name: one\nweights_from: two\n"}, "one.yaml: weights_from: no recipe 'two' in"),
        ({"one": "name: one\nlearning: 1\n"}, "one.yaml: unknown parameter 'learning'"),
        ({**ONE, "sweeps__s": "base: one\n"}, "s.yaml: expected base, parameter, values .*got base"),
        ({**ONE, "sweeps__s": SWEEP.replace("one", "two")}, "s.yaml: base: expected a recipe of .*got 'two'"),
        ({**ONE, "sweeps__s": SWEEP.replace("l1", "l3")}, r"s.yaml: .*unknown parameter 'l3'"),
        ({**ONE, "sweeps__s": SWEEP.replace("[1]", "0.1")}, r"s.yaml: values: expected a list of numbers, got 0.1"),
        ({**ONE, "sweeps__s": SWEEP + "set: [2]\n"}, r"s.yaml: set: expected lines `name: value`, got \[2\]"),
        ({**ONE, "s-1": "name: s-1\n", "sweeps__s": SWEEP}, r"s.yaml: s-1 is the name of another recipe, .*s-1.yaml"),
        ({**TWIN, "two": "name: two\n"}, "one.yaml: twin: two: .* 'blackbox', got 'softcam'"),
        ({**TWIN, "two": "name: two\nmethod: blackbox\ndataset: x\n"}, "one.yaml: twin: two: .*'shapes', got 'x'"),
        (
            {"one": "name: one\nweights_from: two\n", "two": "name: two\nlr: 0.5\n"},
            r"one.yaml: weights_from: two is trained with another lr",
        ),
    ],
)
def test_experiments_that_cannot_be_are_named(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        experiments(folder_of(tmp_path, **files))
