"""The files around the code: environment, notebooks, README, figures."""

import ast
import json
import re
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

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("0*.ipynb"))


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_environment_pins_exactly_what_pyproject_asks_for():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    pins = dict(line.split("==") for line in environment["dependencies"][-1]["pip"])
    assert set(pins) == {requirement.name for requirement in asked}
    for requirement in asked:
        assert Version(pins[requirement.name]) in requirement.specifier, requirement.name


def test_five_numbered_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["01_data", "02_train", "03_explain", "04_evaluate", "05_figures"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_clean(path):
    before = nbformat.read(path, as_version=4)
    after = strip_output(
        nbformat.read(path, as_version=4),
        False,
        False,
        False,
        extra_keys=["metadata.papermill", "cell.metadata.papermill"],
    )
    assert before == after, "run nbstripout --extra-keys 'metadata.papermill cell.metadata.papermill'"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_takes_a_recipe_and_changes_and_nothing_else(path):
    cell = code_cells(path)[0]
    assert cell.metadata.tags == ["parameters"]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    if path.stem == "05_figures":
        assert values == {"runs_dir": "runs", "recipes": None, "seeds": None}
    else:
        assert values == {"recipe": "notebooks/recipes/demo.yaml", "changes": {}}
        assert code_cells(path)[1].source.endswith("settings = Recipe.load(recipe, changes)")
        assert Recipe.load(**{"path": values["recipe"], "changes": values["changes"]}).name == "demo"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_short_cells(path):
    """Those of the method define no function either; 04 and 05 hold what they show and draw in the open."""
    method = path.stem < "04"
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= (20 if method else 50)
        assert not (method and re.search(r"^(def|class) ", cell.source, re.MULTILINE))


def test_every_recipe_in_the_pipeline_has_its_twin():
    for path, changes in experiments(PROJECT / "notebooks/recipes").values():
        recipe = Recipe.load(path, changes)
        if recipe.method != "blackbox":
            twin = Recipe.load(path.with_name(f"{recipe.twin}.yaml"))
            assert (twin.method, twin.dataset) == ("blackbox", recipe.dataset)


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
        assert f"figures/{name}" in (PROJECT / "README.md").read_text(encoding="utf-8")


def test_readme_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http|#)([^)#]+)\)", (PROJECT / "README.md").read_text(encoding="utf-8")):
        assert (PROJECT / link).exists(), link
