"""The pipeline: data -> train -> explain -> evaluate -> figures, one papermill run of a numbered notebook each.

    snakemake --cores 2                                           what `make figures` runs
    snakemake --cores 2 --config recipes=notebooks/recipes/smoke runs=runs/smoke    what `make smoke` runs
    snakemake --executor slurm --jobs 8 --cores 8                 the same on a cluster

An executed notebook is a `log`: Snakemake keeps it when a job fails, with the traceback inside.
"""

from pathlib import Path

import yaml

RECIPES = Path(config.get("recipes", "notebooks/recipes"))
RUNS = config.get("runs", "runs")
SEEDS = range(int(config.get("seeds", 1)))
recipes = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("*.yaml"))}
source = {name: RECIPES / f"{name}.yaml" for name in recipes}
change = {name: {} for name in recipes}  # what a point of a sweep changes in its base recipe
for path in sorted(RECIPES.glob("sweeps/*.yaml")):
    sweep = yaml.safe_load(path.read_text())
    if f"_{sweep['parameter']}_" not in f"_{path.stem}_":  # by which 05_figures knows what was swept
        raise ValueError(f"{path}: expected the parameter's name, {sweep['parameter']}, in the file's")
    for value in sweep["values"]:
        name = f"{path.stem}-{value:g}"  # such as softcam_l1-0.0001
        change[name] = {**sweep.get("set", {}), "name": name, sweep["parameter"]: value}
        source[name] = source[sweep["base"]]
        recipes[name] = {**recipes[sweep["base"]], **change[name]}
points = [name for name in recipes if change[name]]
for name, recipe in recipes.items():
    if recipe.get("name") != name:
        raise ValueError(f"{source[name]}: name: expected {name!r} as the file is called, got {recipe.get('name')!r}")
    if recipe.get("twin") and recipe["twin"] not in recipes:
        raise ValueError(f"{source[name]}: twin: no recipe {recipe['twin']!r} in {RECIPES}")
    dataset = str(recipe.get("dataset", "shapes"))
    recipe["card"] = Path(dataset) if dataset.endswith((".yaml", ".yml")) else Path(f"data_manifests/{dataset}.yaml")
    recipe["data"] = yaml.safe_load(recipe["card"].read_text())["name"]
first = {recipe["data"]: name for name, recipe in reversed(recipes.items())}  # data set -> a recipe that uses it

CORES = workflow.cores or 2  # none on a cluster, where `--set-threads` decides
PAPERMILL = "papermill --kernel python3 --no-progress-bar --start-timeout 180 "


def python(folder):
    return sorted(map(str, Path(folder).rglob("*.py")))


DATA_CODE = python("lib/data")
TRAIN_CODE = ["lib/recipe.py", "lib/runs.py", "lib/training.py", "lib/objective.py", "lib/optimisation.py", "lib/selection.py", "lib/losses.py", *python("lib/models")]


def suffix(seed):
    return "" if seed == 0 else f"-seed{seed}"


def twin(wildcards):
    name = recipes[wildcards.name].get("twin")
    return f"{RUNS}/{name}{wildcards.suffix}/best.safetensors" if name else []


def manifest(wildcards):
    """The data set's YAML, and its CSV: beside it, or in the root of a data set of one's own or of a published one."""
    card = recipes[first[wildcards.dataset]]["card"]
    root = yaml.safe_load(card.read_text()).get("root")
    root = card.parent / root if root else Path("datasets") / wildcards.dataset
    tables = (card.with_suffix(".csv"), root / f"manifest_{wildcards.dataset}.csv", root / "manifest.csv")
    return [card, *[path for path in tables if path.exists()][:1]]


wildcard_constraints:
    name="|".join(recipes),
    dataset="|".join(first),
    suffix=r"(-seed\d+)?",


rule figures:
    input:
        metrics=[f"{RUNS}/{name}{suffix(seed)}/metrics.json" for name in recipes for seed in SEEDS if not (seed and change[name])],
        code=["notebooks/05_figures.ipynb", "lib/results.py", "lib/claims.py", "lib/published.py", *python("lib/plots"), *python("lib/figures"), "data_manifests/published/numbers.yaml"],
    output:
        f"{RUNS}/figures/index.json",
        f"{RUNS}/figures/results.md",
    log:
        f"{RUNS}/05_figures.ipynb",
    params:
        recipes=", ".join(recipes),
        seeds=len(SEEDS),
    threads: CORES
    shell:
        PAPERMILL + "notebooks/05_figures.ipynb {log} -p runs_dir {RUNS} -y 'recipes: [{params.recipes}]' "
        "-p seeds {params.seeds} -p figures_dir {RUNS}/figures"


rule data:
    input:
        manifest,
        "notebooks/01_data.ipynb",
        DATA_CODE,
    output:
        RUNS + "/data/{dataset}.json",
    log:
        RUNS + "/data/{dataset}.ipynb",
    params:
        values=lambda wildcards: yaml.safe_dump(
            {key: recipes[first[wildcards.dataset]].get(key) for key in ("dataset", "limit", "image_size", "patch")}, default_flow_style=True
        ).strip(),
    threads: CORES
    shell:
        PAPERMILL + "notebooks/01_data.ipynb {log} -y '{params.values}' -p runs_dir {RUNS}"


rule train:
    input:
        lambda wildcards: f"{RUNS}/data/{recipes[wildcards.name]['data']}.json",
        "notebooks/02_train.ipynb",
        TRAIN_CODE,
        recipe=lambda wildcards: source[wildcards.name],
    output:
        RUNS + "/{name}{suffix}/best.safetensors",
    log:
        RUNS + "/{name}{suffix}/02_train.ipynb",
    params:
        seed=lambda wildcards: int(wildcards.suffix.removeprefix("-seed") or 0),
        change=lambda wildcards: yaml.safe_dump(change[wildcards.name], default_flow_style=True, width=1000).strip(),
    threads: lambda wildcards: recipes[wildcards.name].get("threads", 1)
    shell:
        PAPERMILL + "notebooks/02_train.ipynb {log} -f {input.recipe} -y '{params.change}' -p runs_dir {RUNS} -p seed {params.seed}"


rule explain:
    input:
        RUNS + "/{name}{suffix}/best.safetensors",
        twin,
        "notebooks/03_explain.ipynb",
        "lib/evaluation.py",
        "lib/measures.py",
        *python("lib/explain"),
        recipe=lambda wildcards: source[wildcards.name],
    output:
        RUNS + "/{name}{suffix}/maps.safetensors",
        RUNS + "/{name}{suffix}/maps.json",
    log:
        RUNS + "/{name}{suffix}/03_explain.ipynb",
    params:
        seed=rules.train.params.seed,
        change=rules.train.params.change,
    threads: lambda wildcards: recipes[wildcards.name].get("threads", 1)
    shell:
        PAPERMILL + "notebooks/03_explain.ipynb {log} -f {input.recipe} -y '{params.change}' -p runs_dir {RUNS} -p seed {params.seed}"


rule evaluate:
    input:
        RUNS + "/{name}{suffix}/maps.safetensors",
        "notebooks/04_evaluate.ipynb",
        "lib/evaluation.py",
        "lib/measures.py",
        "lib/sanity.py",
        *python("lib/metrics"),
        recipe=lambda wildcards: source[wildcards.name],
    output:
        RUNS + "/{name}{suffix}/metrics.json",
        RUNS + "/{name}{suffix}/values.safetensors",
    log:
        RUNS + "/{name}{suffix}/04_evaluate.ipynb",
    params:
        seed=rules.train.params.seed,
        change=rules.train.params.change,
    threads: lambda wildcards: recipes[wildcards.name].get("threads", 1)
    shell:
        PAPERMILL + "notebooks/04_evaluate.ipynb {log} -f {input.recipe} -y '{params.change}' -p runs_dir {RUNS} -p seed {params.seed}"
