"""Each notebook on its defaults, and the pipeline where something is odd: a failure, a name, a killed process."""

import subprocess
import time

import psutil
import yaml
from running import ENVIRONMENT, SMOKE, command, outputs, snakemake

from lib import PROJECT
from lib.recipe import Recipe
from lib.run import Run
from lib.train import blackbox_twin
from pipeline.execute import execute
from prepare import generate


def write_yaml(path, values):
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")


def test_a_failed_notebook_survives_with_its_traceback(tmp_path):
    recipe = yaml.safe_load((SMOKE / "smoke_blackbox.yaml").read_text())
    write_yaml(tmp_path / "smoke_blackbox.yaml", {**recipe, "class_weights": [1.0, 2.0, 3.0]})
    done = snakemake(tmp_path / "runs", tmp_path)
    assert done.returncode != 0
    executed = tmp_path / "runs/smoke_blackbox/02_train.ipynb"
    said = "ValueError: class_weights: expected 2 values, got [1.0, 2.0, 3.0]"
    line = f"02_train.ipynb, cell 12, recipe smoke_blackbox: {said}; the notebook: {executed}"
    assert line in done.stderr.splitlines(), done.stderr[-3000:]
    errors = [o for o in outputs(executed) if o.output_type == "error"]
    assert said.endswith(errors[0].evalue)
    assert not (tmp_path / "runs/smoke_blackbox/best.safetensors").exists()


HONEST = "Ann's Bilder [ü] (2024)"


def test_names_are_names_and_a_model_is_tested_on_the_images_of_another_set(tmp_path):
    name = f"{HONEST}; touch {tmp_path}".replace("/", "_") + "_$(touch PWN)"
    card = yaml.safe_load((PROJECT / "data_manifests/shapes.yaml").read_text())
    card |= {"name": name, "root": ".", "counts": None, "generator": None}
    own, other = tmp_path / HONEST / "dataset.yaml", tmp_path / "other/dataset.yaml"
    generate("shapes", own.parent, 5, {"train": 16, "val": 8, "test": 8})
    elsewhere = generate("shapes", other.parent, 6, {"test": 8})
    write_yaml(own, card)
    write_yaml(other, card | {"name": "other"})
    recipe = {"name": HONEST, "method": "blackbox", "dataset": str(own), "epochs": 1, "width": 8, "batch_size": 8}
    recipe |= {"explain_methods": ["gradcam"], "explain_count": 8, "faithfulness_count": 2, "sanity_count": 0}
    again = {"name": "again", "weights_from": HONEST, "test_dataset": str(other)}
    recipes = tmp_path / "recipes; touch PWN"
    for one in (recipe, recipe | again):
        write_yaml(recipes / f"{one['name']}.yaml", one)
    before = set(PROJECT.iterdir())
    done = snakemake(tmp_path / "runs", recipes, str(tmp_path / "runs/again/table.parquet"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (tmp_path / "runs/data" / f"{name}.json").exists()
    assert set(PROJECT.iterdir()) - before <= {PROJECT / "datasets", PROJECT / ".snakemake"}
    measured = set(Run.load(tmp_path / "runs/again").table["image"])
    assert measured - {"", None} == set(elsewhere["image"])
    weights = [(tmp_path / "runs" / run / "best.safetensors").read_bytes() for run in (HONEST, "again")]
    assert weights[0] == weights[1]


def test_a_killed_pipeline_leaves_no_notebook_running(tmp_path):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    pipeline = subprocess.Popen(command(tmp_path, SMOKE), cwd=PROJECT, env=ENVIRONMENT, **quiet)
    for _ in range(600):
        children = psutil.Process(pipeline.pid).children(recursive=True)
        if started := any("ipykernel_launcher" in child.cmdline() for child in children):
            break
        time.sleep(0.1)
    pipeline.kill()
    pipeline.wait()
    assert started
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_recipes_are_checked_before_anything_runs(tmp_path):
    recipe = yaml.safe_load((SMOKE / "smoke_softcam_elastic.yaml").read_text())
    write_yaml(tmp_path / "smoke_softcam_elastic.yaml", recipe)
    done = snakemake(tmp_path / "runs", tmp_path)
    assert "twin: no recipe 'smoke_blackbox'" in done.stdout + done.stderr and not (tmp_path / "runs").exists()


def test_notebooks_run_on_their_default_parameters(tmp_path):
    for name in ("01_data", "02_train", "03_explain", "04_evaluate", "05_figures"):
        runs_dir = {"runs_dir": str(tmp_path / "runs")}
        parameters = runs_dir if name == "05_figures" else {"changes": runs_dir}
        execute(PROJECT / f"notebooks/{name}.ipynb", tmp_path / f"{name}.ipynb", parameters, cell_timeout=600)
    assert (tmp_path / "runs/figures/hero.png").exists()


def test_a_value_changed_in_02_is_found_by_03_in_the_run_folder(tmp_path):
    tiny = {"runs_dir": str(tmp_path), "name": "mine", "limit": {"train": 16, "val": 8, "test": 8}, "epochs": 1}
    tiny |= {"explain_methods": ["evidence"], "explain_count": 8, "width": 8}
    blackbox_twin(Recipe(**tiny))  # as an earlier 03 has trained it
    for name, parameters in {
        "02_train": {"changes": {**tiny, "width": 12, "l1": 1e-4}},
        "03_explain": {"recipe": str(tmp_path / "mine")},
    }.items():
        execute(PROJECT / f"notebooks/{name}.ipynb", tmp_path / f"{name}.ipynb", parameters, cell_timeout=600)
    assert Recipe.load(tmp_path / "mine-blackbox").width == 12
    assert (tmp_path / "mine/maps.safetensors").exists()
