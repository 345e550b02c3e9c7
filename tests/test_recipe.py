import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lib.explain import METHODS
from lib.recipe import PROJECT, FigureParameters, Recipe

EXPLAINER = {"method": "explainer_classifier", "alpha": 0.5, "lr_explainer": 0.1}
FOLDER = PROJECT / "notebooks/recipes"
SWEEPS = sorted(FOLDER.rglob("sweeps/*.yaml"))
RECIPES = sorted(set(FOLDER.rglob("*.yaml")) - set(SWEEPS))
PAPER = [Recipe.load(path) for path in sorted(FOLDER.glob("paper/*.yaml"))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_committed_recipe_loads_and_is_called_as_its_file(path):
    assert Recipe.load(path).name == path.stem


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_point_of_a_sweep_is_a_recipe(path):
    sweep = yaml.safe_load(path.read_text())
    assert set(sweep) - {"set"} == {"base", "parameter", "values"}
    base = Recipe.load(path.parents[1] / f"{sweep['base']}.yaml")
    points = [
        base.replace(**sweep.get("set", {}), name=f"{path.stem}-{value:g}", **{sweep["parameter"]: value})
        for value in sweep["values"]
    ]
    assert [getattr(point, sweep["parameter"]) for point in points] == sweep["values"]
    assert len(points) >= (5 if path.parent == FOLDER / "sweeps" and sweep["parameter"] != "random_labels" else 1)
    assert len({point.name for point in points}) == len(points)


def test_the_papers_recipes_are_complete():
    data = ("kaggle_dr", "kaggle_dr_levels", "oct2017", "oct2017_classes", "rsna")
    softcam = ("black box", "SoftCAM dense", "SoftCAM sparse", "SoftCAM ridge")
    expected = {(d, a, v) for d in data for a in ("resnet50", "vgg16") for v in softcam}
    explainer = ("black box", "Explainer unsupervised", "Explainer hybrid")
    expected |= {(d, "resnet18", v) for d in ("imagenet_hvz", "nih_nci") for v in explainer}
    assert {(r.dataset, r.architecture, r.variant) for r in PAPER} == expected
    assert len(PAPER) == len(expected)


def test_the_papers_recipes_have_their_twins():
    named = {recipe.name: recipe for recipe in PAPER}
    for recipe in PAPER:
        twin = named[recipe.twin] if recipe.twin else recipe
        assert twin.method == "blackbox"
        for key in ("dataset", "architecture", "image_size", "augment", "augment_probability", "batch_size", "weights"):
            assert getattr(twin, key) == getattr(recipe, key), (recipe.name, key)


@pytest.mark.parametrize("recipe", PAPER, ids=lambda recipe: recipe.name)
def test_the_papers_settings(recipe):
    def values(*keys):
        return tuple(getattr(recipe, key) for key in keys)

    sgd = values("optimizer", "momentum", "nesterov", "weight_decay")
    assert (recipe.seed, recipe.limit, recipe.sampling, recipe.class_weights) == (0, None, "instance", None)
    if recipe.architecture == "resnet18":
        epochs, alpha = {"imagenet_hvz": ([10, 10, 100], 0.9), "nih_nci": ([30, 10, 50], 0.99)}[recipe.dataset]
        assert sgd == ("sgd", 0.9, False, 1e-4)
        assert values("schedule", "decay", "plateau_patience", "lr_floor") == ("plateau", 0.2, 10, 1e-5)
        assert values("image_size", "batch_size", "augment", "augment_probability") == (224, 8, "xml", 0.2)
        if recipe.method == "explainer_classifier":
            assert values("epochs", "alpha") == (epochs, [1.0, 0.25, alpha])
            assert values("lr", "lr_explainer") == ([0.01, 0.0, 0.01], [0.0, 0.01, 0.01])
            assert values("beta", "gamma", "init_bias", "explainer_channels") == (0.9, 1.0, 3.0, [32, 64, 128])
    else:
        assert sgd == ("sgd", 0.9, True, 5e-4)
        assert values("epochs", "lr", "schedule", "lr_floor") == (50, 1e-3, "clipped_cosine", 1e-4)
        assert values("weights", "batch_size", "augment_probability") == ("imagenet", 12, 0.5)
        assert recipe.image_size == (496 if recipe.dataset.startswith("oct") else 512)
        assert recipe.augment == ("chest" if recipe.dataset == "rsna" else "fundus")


def test_unknown_parameter_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"x.yaml: unknown parameter 'epohcs'; known: .*\bepochs\b.*\bwidth\b"):
        Recipe.checked({"epohcs": 3}, "x.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "3e-3"}, r"lr: .* got '3e-3' \(in YAML write 3.0e-3"),
        ({"epochs": 2.5}, "epochs: .*integer.*got 2.5"),
        ({"epochs": "ten"}, "epochs: .*integer.*got 'ten'"),
        ({"method": "softcm"}, "method: .*'blackbox', 'softcam' or 'explainer_classifier', got 'softcm'"),
        ({"hybrid": 1}, "hybrid: .*boolean, got 1"),
        ({"name": "../up"}, "name: .*got '../up'"),
        ({"l1": -1.0}, "l1: .*greater than or equal to 0, got -1.0"),
        ({"method": "explainer_classifier", "epochs": [1, 2]}, r"epochs: expected one value or 3 for .*got \[1, 2\]"),
        ({"epochs": [1, 2, 3]}, r"epochs: expected one value or 1 for softcam, got \[1, 2, 3\]"),
        ({"epochs": -1}, "epochs: expected nothing below 0, got -1"),
        ({"lr": -0.1}, "lr: expected nothing below 0, got -0.1"),
        (
            {"method": "explainer_classifier"},
            "'explainer' would not train the Explainer with lr_explainer 0.0, alpha 1",
        ),
        ({"warmup_epochs": 2}, "warmup_epochs: expected 0 for the schedule 'onecycle', got 2"),
        ({"criterion": "hinge"}, "criterion: .*'cross_entropy', 'focal', .*got 'hinge'"),
        ({"sampling": "balanced"}, "sampling: .*'instance', 'class_balanced', 'progressive'.*got 'balanced'"),
        ({"sampling_decay": 1.0}, "sampling_decay: .*less than 1, got 1.0"),
        ({"criterion": "kappa", "class_weights": "balanced"}, "class_weights: expected none .*'kappa', got balanced"),
        ({"checkpoint": ["loss", "auc"]}, r"checkpoint: expected one value or 1 for softcam, got \['loss', 'auc'\]"),
        ({"checkpoint": "f1"}, "checkpoint: .*'sensitivity'.*got 'f1'"),
        ({"precision": 16}, "precision: .*'32' or 'bf16', got 16"),
        ({"alpha": 1.5}, "alpha: expected nothing above 1, got 1.5"),
        ({**EXPLAINER, "alpha": [1.0, 0.25, 1.01]}, r"alpha: expected nothing above 1, got \[1.0, 0.25, 1.01\]"),
        ({"lr": math.nan}, "lr: .*finite number, got nan"),
        ({**EXPLAINER, "lr": [0.1, math.inf, 0.1]}, "lr: .*finite number, got inf"),
        ({"l1": math.inf}, "l1: .*finite number, got inf"),
        ({"class_weights": [1.0, math.nan]}, "class_weights: .*finite number, got nan"),
        ({"limit": {"train": 5, "val": 0}}, "limit: .*greater than 0, got 0"),
        ({"limit": {"train": -3}}, "limit: .*greater than 0, got -3"),
        ({"limit": {"training": 3}}, "limit: .*'train', 'val' or 'test', got 'training'"),
        ({"explain_methods": ["evidence", "gradcan"]}, "explain_methods: expected names of .*gradcam, .*got 'gradcan'"),
    ],
)
def test_ill_typed_parameters_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Recipe.checked(values, "x.yaml")


def test_integer_where_a_number_is_expected_and_precision_as_number():
    recipe = Recipe.checked({"lr": 1, "precision": 32}, "x.yaml")
    assert recipe.lr == 1.0
    assert recipe.precision == "32"
    assert Recipe.checked({"class_weights": "none"}, "x.yaml").class_weights is None
    assert Recipe.checked({"class_weights": [1, 2.5]}, "x.yaml").class_weights == [1.0, 2.5]


def test_missing_recipe_file():
    with pytest.raises(FileNotFoundError, match=r"recipe: no file .*nowhere.yaml"):
        Recipe.load("notebooks/recipes/nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- lr\n- 0.1\n", r"x.yaml: expected a line `name: value` per parameter, got \['lr', 0.1\]"),
        (b"lr\n", r"x.yaml: expected a line `name: value` per parameter, got 'lr'"),
        (b"3: 4\n", r"x.yaml: expected a line `name: value` per parameter, got {3: 4}"),
        (b"name: x\nlr: [0.1\n", r"x.yaml: expected YAML: .*x.yaml\", line 3"),
        (b"name: \xff\xfe\n", r"x.yaml: expected YAML: .*invalid start byte"),
    ],
)
def test_a_file_that_is_no_recipe_is_named_in_one_line(tmp_path, content, message):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Recipe.load(tmp_path / "x.yaml")
    assert "\n" not in str(error.value)


def test_an_empty_file_has_every_default(tmp_path):
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert Recipe.load(tmp_path / "x.yaml") == Recipe()


def test_every_registered_method_can_be_asked_for_and_known_ones_without_the_register():
    assert Recipe(explain_methods=list(METHODS)).methods == list(METHODS)
    known = "import sys; from lib.recipe import *; Recipe(explain_methods=['lrp']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", known], cwd=PROJECT, check=True)


def test_parameters_say_what_their_names_do_not():
    plain = {name for name, field in Recipe.model_fields.items() if not field.description}
    assert plain == {"seed", "method", "epochs", "lr_explainer", "optimizer", "schedule", "weight_decay", "device"}


def test_phases_take_one_value_each():
    recipe = Recipe(
        method="explainer_classifier",
        epochs=[6, 2, 8],
        lr=0.1,
        optimizer=["adamw", "sgd", "sgd"],
        alpha=[1.0, 0.25, 0.9],
        lr_explainer=0.1,
        checkpoint=["accuracy", "loss", "loss"],
    )
    assert [p.checkpoint for p in recipe.phases] == ["accuracy", "loss", "loss"]
    assert recipe.blackbox_twin().checkpoint == "accuracy"
    assert [(p.name, p.epochs, p.lr, p.optimizer, p.alpha) for p in recipe.phases] == [
        ("classifier", 6, 0.1, "adamw", 1.0),
        ("explainer", 2, 0.1, "sgd", 0.25),
        ("joint", 8, 0.1, "sgd", 0.9),
    ]
    assert [p.name for p in Recipe(method="blackbox").phases] == ["blackbox"]


@pytest.mark.parametrize(
    ("values", "variant"),
    [
        ({"method": "blackbox"}, "black box"),
        ({}, "SoftCAM dense"),
        ({"l1": 0.1}, "SoftCAM sparse"),
        ({"l2": 0.1}, "SoftCAM ridge"),
        ({"l1": 0.1, "l2": 0.1}, "SoftCAM elastic net"),
        ({**EXPLAINER}, "Explainer unsupervised"),
        ({**EXPLAINER, "hybrid": True}, "Explainer hybrid"),
    ],
)
def test_variant_names(values, variant):
    assert Recipe(**values).variant == variant


def test_blackbox_twin_has_the_data_and_the_first_phase_of_its_model():
    recipe = Recipe(name="x", **EXPLAINER, hybrid=True, seed=3, epochs=[6, 2, 8], lr=[0.1, 0.0, 0.2], width=8)
    twin = recipe.blackbox_twin()
    assert (twin.name, twin.method, twin.seed, twin.width, twin.epochs, twin.lr) == (
        "x-blackbox",
        "blackbox",
        3,
        8,
        6,
        0.1,
    )
    assert recipe.replace(twin="y").blackbox_twin().name == "y"
    assert twin.blackbox_twin() is twin


def test_run_dir_carries_the_seed():
    assert Recipe(name="x", runs_dir="runs").run_dir == PROJECT / "runs/x"
    assert Recipe(name="x", runs_dir="runs", seed=2).run_dir == PROJECT / "runs/x-seed2"


def test_from_notebook_takes_plain_variables_only():
    def function():
        pass

    namespace = {
        "__name__": "__main__",
        "_i1": "x",
        "lr": 0.01,
        "Recipe": Recipe,
        "pytest": pytest,
        "function": function,
    }
    assert Recipe.from_notebook(namespace) == Recipe(lr=0.01)
    with pytest.raises(ValueError, match="notebook parameters: unknown parameter 'learning_rate'"):
        Recipe.from_notebook({"learning_rate": 0.01})
    again = {**namespace, "lr": 0.02}
    Recipe.from_notebook(again)
    again.update(run="defined by a later cell", l1=0.5)
    assert Recipe.from_notebook(again) == Recipe(lr=0.02, l1=0.5)  # cells run again in the same kernel
    with pytest.raises(ValueError, match="unknown parameter 'figure_dir'; known: figures_dir, recipes, runs_dir"):
        FigureParameters.from_notebook({"figure_dir": "x"})


def test_project_is_the_repository():
    assert (Path(PROJECT) / "pyproject.toml").is_file()
