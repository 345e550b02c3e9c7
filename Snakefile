"""The pipeline: data -> train -> explain -> evaluate -> figures, one papermill run of a numbered notebook each.

    snakemake --cores 2                                           what `make figures` runs
    snakemake --cores 2 --config recipes=notebooks/recipes/smoke runs=runs/smoke    what `make smoke` runs
    snakemake --cores 16 --resources gpu=4                        four GPUs: each takes one job at a time
    snakemake --executor slurm --jobs 8 --cores 8                 the same on a cluster

An executed notebook is a `log`: Snakemake keeps it when a job fails, with the traceback inside. How long each rule took is
in RUNS/durations.csv, and under "run" in RUNS/figures/index.json, with the commit and the machine that made the figures.
"""

import csv
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

sys.modules.setdefault("rfc3987_syntax", None)  # of jsonschema, for URIs that no notebook has: 1.3 s at each import

from pipeline.experiments import experiments
from lib.identity import code_hashes
from lib.recipe import Recipe, read_yaml

RECIPES = config.get("recipes", "notebooks/recipes")
RUNS = str(config.get("runs", "runs"))
SEEDS = range(int(config.get("seeds", 1)))
CORES = workflow.cores or 2  # none on a cluster, where `--set-threads` decides
START, EMPTY = datetime.now(UTC), not any(Path(RUNS).glob("*/recipe.json"))


def said(*command):
    """What a command prints; None where there is no such program, or it fails."""
    done = subprocess.run(command, capture_output=True, text=True) if shutil.which(command[0]) else None
    return done.stdout.strip() if done and not done.returncode else None


COMMIT, CHANGES = said("git", "rev-parse", "HEAD"), said("git", "status", "--porcelain")  # as the run begins
GPUS = re.findall(r"^GPU \d+: (.*?) \(", said("nvidia-smi", "-L") or "", re.MULTILINE)
config["gpus"] = int(config.get("gpus", len(GPUS)))
config["pid"] = os.getpid()  # jobs end with it


def card(dataset):
    return Path(dataset) if dataset.endswith((".yaml", ".yml")) else Path(f"data_manifests/{dataset}.yaml")


def data_of(recipe):
    """name -> card of the data sets that a recipe needs; ValueError where a card has no name."""
    paths = [card(one) for one in (recipe.dataset, recipe.test_dataset) if one]
    found = [(str(read_yaml(path).get("name")), path) for path in paths]
    for name, path in found:
        if cards.setdefault(name, path) != path:
            raise ValueError(f"{path}: name: also that of {cards[name]}")
    return dict(found)


cards = {}
try:
    planned = experiments(RECIPES)
    recipes = {name: Recipe.load(*one) for name, one in planned.items()}
    data = {name: data_of(recipe) for name, recipe in recipes.items()}
except (ValueError, OSError) as error:
    raise SystemExit(str(error))
first = {name: one for one, recipe in reversed(recipes.items()) for name in data[one]}  # a recipe that uses it


def suffix(seed):
    return "" if seed == 0 else f"-seed{seed}"


def seed_of(wildcards):
    return int(wildcards.suffix.removeprefix("-seed") or 0)


def parameters(wildcards):
    """What the notebooks 02 to 04 get: the same as `Recipe.load` does."""
    path, changes = planned[wildcards.name]
    return {"recipe": str(path), "changes": {**changes, "seed": seed_of(wildcards), "runs_dir": RUNS}}


def data_parameters(wildcards):
    """What 01 gets: a recipe that uses the data set; one that only tests on it says nothing of how many images."""
    name = first[wildcards.dataset]
    path, changes = planned[name]
    changes = {**changes, "runs_dir": RUNS, "test_dataset": None, "dataset": str(cards[wildcards.dataset])}
    foreign = card(recipes[name].dataset) != cards[wildcards.dataset]
    return {"recipe": str(path), "changes": {**changes, **({"split": "test", "limit": None} if foreign else {})}}


def recipe_file(wildcards):
    return planned[wildcards.name][0]


def weights(kind):
    """The weights of the run that a recipe names as its `twin`, or as the one to take `weights_from`; none: nothing."""

    def file(wildcards):
        name = getattr(recipes[wildcards.name], kind)
        return f"{RUNS}/{name}{wildcards.suffix}/best.safetensors" if name else []

    return file


def manifest(wildcards):
    """The data set's YAML, and its CSV: beside it, or in the root of a data set of one's own or of a published one."""
    path = cards[wildcards.dataset]
    root = read_yaml(path).get("root")
    root = path.parent / root if root else Path("datasets") / wildcards.dataset
    tables = (path.with_suffix(".csv"), root / f"manifest_{wildcards.dataset}.csv", root / "manifest.csv")
    return [path, *[table for table in tables if table.exists()][:1]]


def python(*places):
    """Every source file in these folders, and these files."""
    return [str(file) for place in map(Path, places) for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]


EXPLAINS = python("lib/maps.py", "lib/explain")
EVALUATES = python("lib/maps.py", "lib/evaluate.py", "lib/table/loading.py", "lib/sanity.py", "lib/metrics")


def one_of(names):
    return "|".join(map(re.escape, names)) or "(?!)"  # which nothing matches


points = [name for name, recipe in recipes.items() if recipe.sweep]  # of sweeps: 04 trains and explains, too
others = [name for name in recipes if name not in points]


wildcard_constraints:
    name=one_of(recipes),
    dataset=one_of(first),
    suffix=r"(-seed\d+)?",


rule figures:
    input:
        metrics=[f"{RUNS}/{name}{suffix(seed)}/table.parquet" for name in recipes for seed in SEEDS
                 if not (seed and recipes[name].sweep)],
        code=python("lib/table", "lib/plots.py", "lib/figures.py", "notebooks/claims.yaml", "data_manifests/published/numbers.yaml"),
        notebook="notebooks/05_figures.ipynb",
    output:
        RUNS + "/figures/index.json",
        RUNS + "/figures/results.md",
    log:
        RUNS + "/05_figures.ipynb",
    benchmark:
        RUNS + "/benchmarks/figures/all.tsv"
    params:
        parameters={"runs_dir": RUNS, "recipes": list(recipes), "seeds": len(SEEDS)},
        cell_timeout=int(config.get("cell_timeout", 3600)),
    threads: CORES
    script:
        "pipeline/execute.py"


rule data:
    input:
        manifest,
        code=python("lib/data", "prepare"),
        notebook="notebooks/01_data.ipynb",
    output:
        RUNS + "/data/{dataset}.json",
    log:
        RUNS + "/data/{dataset}.ipynb",
    benchmark:
        RUNS + "/benchmarks/data/{dataset}.tsv"
    params:
        parameters=data_parameters,
        cell_timeout=lambda wildcards: recipes[first[wildcards.dataset]].cell_timeout,
    priority: 2
    script:
        "pipeline/execute.py"


rule train:  # and what follows; of sweeps, which are many and short, last: so that a run does not end with one long job
    wildcard_constraints:
        name=one_of(others),
        suffix="(?:)",  # none
    priority: 1
    input:
        lambda wildcards: [f"{RUNS}/data/{name}.json" for name in data[wildcards.name]],
        weights("weights_from"),
        recipe_file,
        code=sorted(code_hashes()),
        notebook="notebooks/02_train.ipynb",
    output:
        update(RUNS + "/{name}{suffix}/best.safetensors"),  # 02 itself says whether a finished run is still the recipe's
    log:
        RUNS + "/{name}{suffix}/02_train.ipynb",
    benchmark:
        RUNS + "/benchmarks/train/{name}{suffix}.tsv"
    params:
        parameters=parameters,
        cell_timeout=lambda wildcards: recipes[wildcards.name].cell_timeout,
    threads: lambda wildcards: recipes[wildcards.name].threads
    resources:
        gpu=min(1, config["gpus"]),
    script:
        "pipeline/execute.py"


use rule train as explain with:
    input:
        RUNS + "/{name}{suffix}/best.safetensors",
        weights("twin"),
        recipe_file,
        code=EXPLAINS,
        notebook="notebooks/03_explain.ipynb",
    output:
        RUNS + "/{name}{suffix}/maps.safetensors",
        RUNS + "/{name}{suffix}/maps.json",
    log:
        RUNS + "/{name}{suffix}/03_explain.ipynb",
    benchmark:
        RUNS + "/benchmarks/explain/{name}{suffix}.tsv"


use rule train as evaluate with:
    input:
        RUNS + "/{name}{suffix}/maps.safetensors",
        weights("twin"),
        recipe_file,
        code=EVALUATES,
        notebook="notebooks/04_evaluate.ipynb",
    output:
        RUNS + "/{name}{suffix}/table.parquet",
    log:
        RUNS + "/{name}{suffix}/04_evaluate.ipynb",
    benchmark:
        RUNS + "/benchmarks/evaluate/{name}{suffix}.tsv"


use rule train as point with:  # what 04 finds trained or explained, it takes: so all of it is an output
    wildcard_constraints:
        name=one_of(points),
        suffix="(?:)",  # none
    priority: 0
    input:
        lambda wildcards: [f"{RUNS}/data/{name}.json" for name in data[wildcards.name]],
        weights("weights_from"),
        weights("twin"),
        recipe_file,
        code=sorted({*code_hashes(), *EXPLAINS, *EVALUATES}),
        notebook="notebooks/04_evaluate.ipynb",
    output:
        RUNS + "/{name}{suffix}/best.safetensors",
        RUNS + "/{name}{suffix}/maps.safetensors",
        RUNS + "/{name}{suffix}/maps.json",
        RUNS + "/{name}{suffix}/table.parquet",
    log:
        RUNS + "/{name}{suffix}/04_evaluate.ipynb",
    benchmark:
        RUNS + "/benchmarks/point/{name}{suffix}.tsv"


use rule point as seed with:  # a further seed of a recipe is one notebook as well
    wildcard_constraints:
        name=one_of(others),
        suffix=r"-seed\d+",
    priority: 1
    benchmark:
        RUNS + "/benchmarks/seed/{name}{suffix}.tsv"


onsuccess:
    took = defaultdict(list)
    jobs = [*(("data", name) for name in first), ("figures", "all")]
    for name in recipes:
        jobs += [(rule, name) for rule in (["point"] if name in points else ["train", "explain", "evaluate"])]
        jobs += [("seed", f"{name}{suffix(seed)}") for seed in SEEDS[1:] if name in others]
    for file in [Path(RUNS, "benchmarks", rule, f"{name}.tsv") for rule, name in jobs]:
        if not file.exists():  # only a part was asked for
            continue
        took[file.parent.name].append(float(next(csv.DictReader(file.open(), delimiter="\t"))["s"]))
    with Path(RUNS, "durations.csv").open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["rule", "jobs", "seconds in all", "longest job"])
        rows.writerows([rule, len(s), round(sum(s)), round(max(s))] for rule, s in took.items())
    if (index := Path(RUNS, "figures/index.json")).exists() and index.stat().st_mtime > START.timestamp():
        cpu = Path("/proc/cpuinfo")
        named = re.search(r"model name\s*: (.*)", cpu.read_text() if cpu.exists() else "")
        run = {
            "commit": COMMIT or "unknown",
            "clean": "unknown" if CHANGES is None else not CHANGES,
            "start": START.isoformat(timespec="seconds"),
            "seconds": {rule: round(sum(s)) for rule, s in took.items()},
            "machine": {"processor": named[1] if named else platform.processor() or platform.machine(),
                        "cores": os.cpu_count(), "GPUs": GPUS},
            "in one piece": EMPTY,
        }
        index.write_text(json.dumps({**json.loads(index.read_text()), "run": run}, indent=1) + "\n")
