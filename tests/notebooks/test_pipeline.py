"""The notebooks as their users run them: the smoke pipeline by Snakemake."""

import json
import os
import re
import shutil
from datetime import datetime, timedelta

import nbformat
import pandas as pd
import pytest
import torch
from running import SMOKE, outputs, snakemake

from lib import PROJECT
from lib.recipe import Recipe
from lib.run import Run
from pipeline.experiments import experiments


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    runs = tmp_path_factory.mktemp("smoke")
    done = snakemake(runs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return runs


def test_smoke_runs_every_recipe_and_draws_every_figure(smoke):
    for recipe in SMOKE.glob("*.yaml"):
        run = smoke / recipe.stem
        assert {"method", "metric", "image", "k", "value"} <= set(Run.load(run).table)
        for name in ("02_train", "03_explain", "04_evaluate"):
            assert not [o for o in outputs(run / f"{name}.ipynb") if o.output_type == "error"]
        assert any("image/png" in o.get("data", {}) for o in outputs(run / "02_train.ipynb"))
    figures = smoke / "figures"
    drawn = "\n".join(cell.source for cell in nbformat.read(PROJECT / "notebooks/05_figures.ipynb", 4).cells)
    names = {path.stem for path in figures.glob("*.png")}
    assert len(names) == 11  # all but classes, more than two, and published: runs on real data
    assert all(f'"{name}"' in drawn for name in names)
    assert {f"{name}.png" for name in names} | {"run"} == set(json.loads((figures / "index.json").read_text()))
    assert {path.stem for path in figures.glob("*.csv")} == names | {"results", "claims", "comparison"}
    assert "| shapes" in (figures / "results.md").read_text(encoding="utf-8")


def test_a_second_run_has_nothing_to_do(smoke):
    done = snakemake(smoke, SMOKE, "--dry-run")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_changed_recipe_runs_only_what_depends_on_it(smoke, tmp_path):
    for recipe in SMOKE.glob("*.yaml"):
        shutil.copy(recipe, tmp_path)
        os.utime(tmp_path / recipe.name, (1, 1))
    changed = tmp_path / "smoke_softcam_elastic.yaml"
    changed.write_text(changed.read_text().replace("l1: 1.0e-4", "l1: 1.0e-3"))
    done = snakemake(smoke, tmp_path, "--dry-run", "--rerun-triggers", "mtime")
    made = re.findall(r"output: (\S+)", done.stdout + done.stderr)
    assert f"{smoke}/smoke_softcam_elastic/best.safetensors" in made
    assert f"{smoke}/smoke_blackbox/best.safetensors" not in made


def test_the_pipeline_says_how_long_each_rule_took_and_the_figures_which_run_made_them(smoke):
    table = pd.read_csv(smoke / "durations.csv", index_col="rule")
    points, others = 3, 4  # of the sweeps, each of which is one notebook
    jobs = {"data": 1, "train": others, "explain": others, "evaluate": others, "point": points, "figures": 1}
    assert table["jobs"].to_dict() == jobs
    assert (table["seconds in all"] >= table["longest job"]).all()
    run = json.loads((smoke / "figures/index.json").read_text())["run"]
    assert run["commit"] == "unknown" or re.fullmatch("[0-9a-f]{40}", run["commit"])
    assert run["clean"] in (True, False, "unknown") and run["in one piece"] is True
    assert datetime.fromisoformat(run["start"]).utcoffset() == timedelta(0)
    assert run["seconds"] == table["seconds in all"].to_dict()
    assert run["machine"]["processor"] and run["machine"]["cores"] == os.cpu_count()
    assert len(run["machine"]["GPUs"]) == torch.cuda.device_count()


def test_what_papermill_runs_is_what_the_recipe_says(smoke):
    for name, (path, changes) in experiments(SMOKE).items():
        stored = json.loads((smoke / name / "recipe.json").read_text())["recipe"]
        assert stored == Recipe.load(path, {**changes, "runs_dir": str(smoke)}).model_dump()
        executed = sorted((smoke / name).glob("*.ipynb"))
        assert len(executed) == (1 if changes else 3)
        for notebook in executed:
            cell = nbformat.read(notebook, as_version=4).cells[2]
            assert cell.metadata.tags == ["injected-parameters"]
            given = {}
            exec(cell.source, given)
            assert Recipe.load(given["recipe"], given["changes"]).model_dump() == stored
