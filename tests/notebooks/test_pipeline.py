"""The notebooks as their users run them: the smoke pipeline by Snakemake, and each notebook on its defaults."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

from lib.figures import FIGURES
from lib.recipe import PROJECT

SMOKE = PROJECT / "notebooks/recipes/smoke"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def snakemake(runs, recipes=SMOKE, *arguments):
    command = ["snakemake", "--cores", "2", "--nolock", *arguments, "--config", f"recipes={recipes}", f"runs={runs}"]
    return subprocess.run(command, cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)


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


def test_a_failed_notebook_survives_with_its_traceback(smoke, tmp_path):
    recipe = yaml.safe_load((SMOKE / "smoke_blackbox.yaml").read_text())
    (tmp_path / "smoke_blackbox.yaml").write_text(yaml.safe_dump({**recipe, "learning_rate": 0.1}))
    done = snakemake(tmp_path / "runs", tmp_path)
    assert done.returncode != 0
    assert "unknown parameter 'learning_rate'; known: " in done.stdout + done.stderr
    executed = tmp_path / "runs/smoke_blackbox/02_train.ipynb"
    errors = [o for o in outputs(executed) if o.output_type == "error"]
    assert "unknown parameter 'learning_rate'" in errors[0].evalue
    assert not (tmp_path / "runs/smoke_blackbox/best.safetensors").exists()


def test_recipes_are_checked_before_anything_runs(tmp_path):
    recipe = yaml.safe_load((SMOKE / "smoke_softcam_elastic.yaml").read_text())
    (tmp_path / "smoke_softcam_elastic.yaml").write_text(yaml.safe_dump(recipe))
    done = snakemake(tmp_path / "runs", tmp_path)
    assert "twin: no recipe 'smoke_blackbox'" in done.stdout + done.stderr
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(recipe))
    done = snakemake(tmp_path / "runs", tmp_path)
    assert "name: expected 'other' as the file is called, got 'smoke_softcam_elastic'" in done.stdout + done.stderr


def test_notebooks_run_on_their_default_parameters(tmp_path):
    runs = {"runs_dir": str(tmp_path / "runs")}
    for name in ("01_data", "02_train", "03_explain", "04_evaluate", "05_figures"):
        parameters = runs | ({"figures_dir": str(tmp_path / "figures")} if name == "05_figures" else {})
        source, executed = PROJECT / f"notebooks/{name}.ipynb", tmp_path / f"{name}.ipynb"
        papermill.execute_notebook(source, executed, parameters, kernel_name="python3", progress_bar=False)
    assert (tmp_path / "figures/hero.png").exists()
