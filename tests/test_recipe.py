from pathlib import Path

import pytest

from lib.recipe import PROJECT, FigureParameters, Recipe

EXPLAINER = {"method": "explainer_classifier", "alpha": 0.5, "lr_explainer": 0.1}
RECIPES = sorted((PROJECT / "notebooks/recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_committed_recipe_loads_and_is_called_as_its_file(path):
    assert Recipe.load(path).name == path.stem


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
        ({"precision": 16}, "precision: .*'32' or 'bf16', got 16"),
    ],
)
def test_ill_typed_parameters_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Recipe.checked(values, "x.yaml")


def test_integer_where_a_number_is_expected_and_precision_as_number():
    recipe = Recipe.checked({"lr": 1, "precision": 32}, "x.yaml")
    assert recipe.lr == 1.0
    assert recipe.precision == "32"


def test_missing_recipe_file():
    with pytest.raises(FileNotFoundError, match=r"recipe: no file .*nowhere.yaml"):
        Recipe.load("notebooks/recipes/nowhere.yaml")


def test_phases_take_one_value_each():
    recipe = Recipe(
        method="explainer_classifier",
        epochs=[6, 2, 8],
        lr=0.1,
        optimizer=["adamw", "sgd", "sgd"],
        alpha=[1.0, 0.25, 0.9],
        lr_explainer=0.1,
    )
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
