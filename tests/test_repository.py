"""The files around the code: environment, notebooks, README, figures; and what importing the code costs."""

import ast
import json
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from nbstripout import strip_output
from packaging.requirements import Requirement
from packaging.version import Version

from lib import PROJECT
from lib.recipe import Recipe
from pipeline.experiments import experiments

NOTEBOOKS = ("01_data", "02_train", "03_explain", "04_evaluate", "05_figures")
README = (PROJECT / "README.md").read_text(encoding="utf-8")


def read(notebook):
    return nbformat.read(PROJECT / f"notebooks/{notebook}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in read(notebook).cells if cell.cell_type == "code"]


def test_environment_pins_exactly_what_pyproject_asks_for():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    pins = dict(line.split("==") for line in environment["dependencies"][-1]["pip"])
    assert set(pins) == {requirement.name for requirement in asked}
    for requirement in asked:
        assert Version(pins[requirement.name]) in requirement.specifier, requirement.name


def test_five_numbered_notebooks():
    assert sorted(path.stem for path in (PROJECT / "notebooks").glob("0*.ipynb")) == [*NOTEBOOKS]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_committed_clean(name):
    keys = ["metadata.papermill", "cell.metadata.papermill"]
    clean = strip_output(read(name), False, False, False, extra_keys=keys)
    assert read(name) == clean, "run nbstripout --extra-keys 'metadata.papermill cell.metadata.papermill'"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_takes_a_recipe_and_changes_and_nothing_else(name):
    first, second, *_ = code_cells(name)
    assert first.metadata.tags == ["parameters"]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(first.source).body}
    if name == "05_figures":
        assert values == {"runs_dir": "runs", "recipes": None, "seeds": None}
    else:
        assert values == {"recipe": "notebooks/recipes/demo.yaml", "changes": {}}
        assert second.source.endswith("settings = Recipe.load(recipe, changes)")
        assert Recipe.load(values["recipe"], values["changes"]).name == "demo"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_have_short_cells(name):
    """Data and training define no function either; the others hold what they show and draw in the open."""
    for cell in code_cells(name):
        assert len(cell.source.splitlines()) <= (20 if name < "04" else 50)
        assert not (name < "03" and re.search(r"^(def|class) ", cell.source, re.MULTILINE))


def test_committed_figures_are_indexed_and_shown_in_the_readme():
    index = json.loads((PROJECT / "figures/index.json").read_text())
    pictures = {path.name for path in (PROJECT / "figures").glob("*.png")}
    assert pictures == {name for name in index if name.endswith(".png")}
    planned = {name: Recipe.load(*one) for name, one in experiments(PROJECT / "notebooks/recipes").items()}
    names = {name for name, recipe in planned.items() if not recipe.sweep}
    assert set(index["accuracy.png"]["recipes"]) == names
    for name in pictures:
        assert set(index[name]["recipes"]) <= set(planned)
        assert re.fullmatch(r"[0-9a-f]{64}", index[name]["data_sha256"])
        assert f"figures/{name}" in README


def test_readme_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http|#)([^)#]+)\)", README):
        assert (PROJECT / link).exists(), link


HEAVY = ("sklearn", "scipy.stats", "lightning", "torchmetrics", "matplotlib", "captum", "IPython")
NEEDED = {
    "lib.losses": (),
    "lib.models": (),
    "lib.metrics": (),
    "lib.sanity": (),
    "lib.explain": ("matplotlib", "captum", "IPython"),
    "lib.train": (),
    "lib.evaluate": ("matplotlib", "captum", "IPython", "scipy.stats"),
    "lib.plots": ("matplotlib", "captum", "IPython"),
}


@pytest.mark.parametrize("module", NEEDED)
def test_what_an_import_brings_along(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(made.stdout.split()) <= set(NEEDED[module])
