"""The notebooks as their users run them: the smoke pipeline by Snakemake, and each notebook on its defaults."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import yaml

from lib.data import generate
from lib.execute import execute
from lib.experiments import experiments
from lib.figures import FIGURES
from lib.recipe import PROJECT, Recipe

SMOKE = PROJECT / "notebooks/recipes/smoke"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def command(runs, recipes=SMOKE, *arguments):
    return ["snakemake", "--cores", "2", "--nolock", *arguments, "--config", f"recipes={recipes}", f"runs={runs}"]


def snakemake(*arguments):
    return subprocess.run(
        command(*arguments), cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    runs = tmp_path_factory.mktemp("smoke")
    done = snakemake(runs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return runs


def outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]


def test_smoke_runs_every_recipe_and_draws_every_figure(smoke):
    for recipe in SMOKE.glob("*.yaml"):
        run = smoke / recipe.stem
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["recipe"]["name"] == recipe.stem
        assert 0 <= metrics["classification"]["accuracy"] <= 1
        for name in ("02_train", "03_explain", "04_evaluate"):
            assert not [o for o in outputs(run / f"{name}.ipynb") if o.output_type == "error"]
        assert any("image/png" in o.get("data", {}) for o in outputs(run / "02_train.ipynb"))
    figures = smoke / "figures"
    names = set(FIGURES) - {"label_randomisation", "published"}  # these need runs on permuted labels, on real data
    assert {path.stem for path in figures.glob("*.png")} == names
    assert {f"{name}.png" for name in names} <= set(json.loads((figures / "index.json").read_text()))
    assert "| shapes" in (figures / "results.md").read_text()


def test_a_second_run_has_nothing_to_do(smoke):
    done = snakemake(smoke, SMOKE, "--dry-run")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_changed_recipe_runs_only_what_depends_on_it(smoke, tmp_path):
    for recipe in SMOKE.glob("*.yaml"):
        (tmp_path / recipe.name).write_text(recipe.read_text())
        os.utime(tmp_path / recipe.name, (1, 1))
    changed = tmp_path / "smoke_softcam_elastic.yaml"
    changed.write_text(changed.read_text().replace("l1: 1.0e-4", "l1: 1.0e-3"))
    done = snakemake(smoke, tmp_path, "--dry-run", "--rerun-triggers", "mtime")
    said = done.stdout + done.stderr
    assert "smoke_softcam_elastic/best.safetensors" in said
    assert "output: " in said
    assert f"{smoke}/smoke_blackbox/best.safetensors" not in [
        line.split("output: ")[1].strip() for line in said.splitlines() if "output: " in line
    ]


def test_the_pipeline_says_how_long_each_rule_took(smoke):
    table = pd.read_csv(smoke / "figures/durations.csv", index_col="rule")
    points = len(experiments(SMOKE))
    assert table["jobs"].to_dict() == {"data": 1, "train": points, "explain": points, "evaluate": points}
    assert (table["seconds in all"] >= table["longest job"]).all()


def test_what_papermill_runs_is_what_the_recipe_says(smoke):
    for name, (path, changes) in experiments(SMOKE).items():
        stored = json.loads((smoke / name / "recipe.json").read_text())["recipe"]
        assert stored == Recipe.load(path, {**changes, "runs_dir": str(smoke)}).model_dump()
        for notebook in ("02_train", "03_explain", "04_evaluate"):
            cell = nbformat.read(smoke / name / f"{notebook}.ipynb", as_version=4).cells[2]
            assert cell.metadata.tags == ["injected-parameters"]
            given = {}
            exec(cell.source, given)
            assert Recipe.load(given["recipe"], given["changes"]).model_dump() == stored


def test_a_failed_notebook_survives_with_its_traceback(tmp_path):
    recipe = yaml.safe_load((SMOKE / "smoke_blackbox.yaml").read_text())
    (tmp_path / "smoke_blackbox.yaml").write_text(yaml.safe_dump({**recipe, "class_weights": [1.0, 2.0, 3.0]}))
    done = snakemake(tmp_path / "runs", tmp_path)
    assert done.returncode != 0
    executed = tmp_path / "runs/smoke_blackbox/02_train.ipynb"
    said = "ValueError: class_weights: expected 2 values, got [1.0, 2.0, 3.0]"
    assert any(line.startswith(f"{executed}: cell ") and said in line for line in done.stderr.splitlines())
    errors = [o for o in outputs(executed) if o.output_type == "error"]
    assert said.endswith(errors[0].evalue)
    assert not (tmp_path / "runs/smoke_blackbox/best.safetensors").exists()


HONEST = "Ann's Bilder [ü] (2024)"


def test_names_are_names_and_no_shell_sees_them(tmp_path):
    card = yaml.safe_load((PROJECT / "data_manifests/shapes.yaml").read_text())
    folder = tmp_path / HONEST
    generate("shapes", folder, 5, {"train": 16, "val": 8, "test": 8})
    name = f"{HONEST}; touch {tmp_path}".replace("/", "_") + "_$(touch PWN)"
    card |= {"name": name, "root": ".", "counts": None, "generator": None}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(card, allow_unicode=True), encoding="utf-8")
    tiny = {"epochs": 1, "width": 4, "batch_size": 8, "evolution_count": 1}
    recipe = {"name": HONEST, "method": "blackbox", "dataset": str(folder / "dataset.yaml"), **tiny}
    recipes = tmp_path / "recipes; touch PWN"
    recipes.mkdir()
    (recipes / f"{HONEST}.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    before = set(PROJECT.iterdir())
    weights = tmp_path / "runs" / HONEST / "best.safetensors"
    done = snakemake(tmp_path / "runs", recipes, str(weights))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert weights.exists()
    assert (tmp_path / "runs/data" / f"{name}.json").exists()
    assert set(PROJECT.iterdir()) - before <= {PROJECT / "datasets", PROJECT / ".snakemake"}


def test_a_killed_pipeline_leaves_no_notebook_running(tmp_path):
    pipeline = subprocess.Popen(command(tmp_path, SMOKE), cwd=PROJECT, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)  # fmt: skip
    started = []
    for _ in range(600):
        started = [
            p for p in psutil.Process(pipeline.pid).children(recursive=True) if "ipykernel_launcher" in p.cmdline()
        ]
        if started:
            break
        time.sleep(0.1)
    assert started
    children = psutil.Process(pipeline.pid).children(recursive=True)
    pipeline.kill()
    pipeline.wait()
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_recipes_are_checked_before_anything_runs(tmp_path):
    recipe = yaml.safe_load((SMOKE / "smoke_softcam_elastic.yaml").read_text())
    (tmp_path / "smoke_softcam_elastic.yaml").write_text(yaml.safe_dump(recipe))
    done = snakemake(tmp_path / "runs", tmp_path)
    assert "twin: no recipe 'smoke_blackbox'" in done.stdout + done.stderr
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(recipe))
    done = snakemake(tmp_path / "runs", tmp_path)
    assert "name: expected 'other' as the file is called, got 'smoke_softcam_elastic'" in done.stdout + done.stderr


def test_notebooks_run_on_their_default_parameters(tmp_path):
    for name in ("01_data", "02_train", "03_explain", "04_evaluate", "05_figures"):
        runs_dir = {"runs_dir": str(tmp_path / "runs")}
        parameters = runs_dir if name == "05_figures" else {"changes": runs_dir}
        execute(PROJECT / f"notebooks/{name}.ipynb", tmp_path / f"{name}.ipynb", parameters, cell_timeout=600)
    assert (tmp_path / "runs/figures/hero.png").exists()


def test_a_value_changed_in_02_is_found_by_03_and_04_in_the_run_folder(tmp_path):
    tiny = {"runs_dir": str(tmp_path), "name": "mine", "limit": {"train": 16, "val": 8, "test": 8}, "epochs": 1}
    tiny |= {"method": "blackbox", "explain_methods": ["gradcam"], "explain_count": 8, "faithfulness_count": 2}
    tiny |= {"sanity_count": 0, "aopc_steps": 2, "deletion_steps": 2, "resamples": 10, "width": 8}
    execute(PROJECT / "notebooks/02_train.ipynb", tmp_path / "02.ipynb", {"changes": tiny}, cell_timeout=600)
    for name in ("03_explain", "04_evaluate"):
        given = {"recipe": str(tmp_path / "mine")}
        execute(PROJECT / f"notebooks/{name}.ipynb", tmp_path / f"{name}.ipynb", given, cell_timeout=600)
    assert json.loads((tmp_path / "mine/metrics.json").read_text())["recipe"]["width"] == 8
