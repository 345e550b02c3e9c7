"""Training: one phase (lib.phase), or three, each from the best state of the one before; whether it has been done."""

import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import DataLoader, Subset

from lib.data.sampling import EpochSampler, class_weights
from lib.identity import earlier, identity
from lib.models import load_reference_checkpoint
from lib.models.weights import intact, read_checkpoint
from lib.recipe import Recipe
from lib.run import Run, build_model, open_split, versions
from lib.writing import write_tensors, write_whole


def train(recipe: Recipe, again: bool = False) -> Run:
    """The trained run of a recipe, trained where it is not yet, or `again`, after all that can be checked; what was
    interrupted goes on, to the same bits. ValueError for a folder that is no run or that another process writes;
    FloatingPointError where the loss is not finite."""
    run, now, best = Run(recipe.run_dir, recipe), identity(recipe), recipe.run_dir / "best.safetensors"
    torch.set_num_threads(recipe.threads)
    stored, changed = earlier(recipe, run.dir, now)
    if stored and not (again or changed) and intact(best):
        if stored["recipe"] != recipe.model_dump():
            with run.writing():
                run.describe(stored, afresh=False)
        os.utime(best)  # as new as what it was checked against
        return run
    if "adopted" in stored and not again:
        why = "; ".join(changed.values()) or "its weights are damaged"
        said = f"{run.dir.name}: holds a checkpoint from elsewhere, {stored['adopted']}: {why}"
        raise ValueError(f"{said}; give the recipe another name, or train(recipe, again=True) in its place")
    if recipe.weights_from:
        return take_weights(run, now)
    data = {split: open_split(recipe, split) for split in ("train", "val")}
    augmented = open_split(recipe, "train", augmented=True) if recipe.augment != "none" else data["train"]
    labels = {split: torch.tensor(data[split].frame["label"].tolist()) for split in data}
    if recipe.hybrid and data["train"].frame[["mask", "boxes"]].isin(["", "[]"]).all(axis=None):
        raise ValueError(f"hybrid: expected training images with a mask or boxes, {recipe.dataset} has none")
    classes, val = run.description.classes, data["val"]
    absent = ", ".join(repr(name) for k, name in enumerate(classes) if k not in labels["val"])
    if absent and (scored := {phase.checkpoint for phase in recipe.phases} - {"loss", "accuracy"}):
        raise ValueError(f"checkpoint: {min(scored)!r} needs validation images of every class, got none of {absent}")
    workers = {"num_workers": recipe.num_workers, "pin_memory": run.device.type == "cuda"}
    part = Subset(data["train"], range(min(len(data["train"]), len(val))))  # measured on as many as of val
    measured = [DataLoader(images, 2 * recipe.batch_size, **workers) for images in (part, val)]
    samples = torch.stack([val[i]["image"] for i in range(min(max(recipe.evolution_count, 1), len(val)))])
    weights = class_weights(recipe.class_weights, labels["train"], len(classes))
    torch.manual_seed(recipe.stream("weights"))
    model = build_model(recipe)
    with torch.no_grad():
        model.eval()(run.normalise(samples[:1]))  # fails here for a size that the model does not take
    from lib.phase import PhaseModule, fit_phase  # with Lightning, which what explains and evaluates does not need

    with run.writing():
        stored, changed = earlier(recipe, run.dir, now)  # which another process may have changed meanwhile
        history, evolution = run.dir / "history.csv", run.dir / "evolution.safetensors"
        half = history.is_file() and not re.fullmatch(rb"phase,.*\n", history.read_bytes(), re.DOTALL)
        damaged = [history] * half + [evolution] * (evolution.is_file() and not intact(evolution))
        if said := [*changed.values(), *(f"{path} is damaged" for path in damaged)]:
            print(f"{run.dir.name}: trained anew: {'; '.join(said)}")
        afresh = again or bool(said) or not stored
        run.describe({**now, "versions": versions()} if afresh else stored, afresh)
        best.unlink(missing_ok=True)  # damaged, or there were nothing to go on with
        for phase in recipe.phases:
            done = run.dir / f"{phase.name}.safetensors"
            if not intact(done):
                torch.manual_seed(recipe.stream("training", phase.name))
                seeds = partial(recipe.stream, "order", phase.name)
                order = EpochSampler(labels["train"], seeds, recipe.sampling, recipe.sampling_decay)
                options = {"drop_last": len(augmented) > recipe.batch_size, **workers}
                batches = DataLoader(augmented, recipe.batch_size, sampler=order, **options)
                fit_phase(PhaseModule(run, phase, model, weights), samples[: recipe.evolution_count], batches, measured)
                write_tensors(done, model.state_dict())
            model.load_state_dict(read_checkpoint(done))
        write_tensors(best, model.state_dict())
        shutil.rmtree(run.dir / "checkpoints", ignore_errors=True)
    return run


def take_weights(run: Run, now: dict[str, Any]) -> Run:
    """The run of a recipe that names `weights_from`: a copy of that run's weights and history, and of what it says
    they depend on. ValueError where that run was trained otherwise."""
    recipe, source = run.recipe, Run.load(run.recipe.replace(name=run.recipe.weights_from).run_dir)
    stored, changed = earlier(recipe, source.dir, identity(recipe.replace(weights_from=None)))
    if changed:
        raise ValueError(f"weights_from: {source.dir.name}: {'; '.join(changed.values())}")
    with run.writing():
        run.describe({**stored, "start": now["start"]})
        for name in ("history.csv", "evolution", "last", *recipe.phase_names, "best"):
            path = source.dir / (name if "." in name else f"{name}.safetensors")
            if path.is_file():
                write_whole(run.dir / path.name, partial(shutil.copy, path))
    return run


def adopt_checkpoint(recipe: Recipe, path: str | Path) -> Run:
    """The run of a model trained elsewhere, from a checkpoint that `load_reference_checkpoint` reads: 03_explain and
    04_evaluate take it as one trained here. Where the file does not fit the model, the folder is left as it was."""
    run = Run(recipe.run_dir, recipe)
    with run.writing():
        model = load_reference_checkpoint(path, build_model(recipe.replace(weights=None)))
        run.describe({"adopted": str(path), "versions": versions()})
        write_tensors(run.dir / "best.safetensors", model.state_dict())
    return run


def load_or_train(recipe: Recipe) -> Run:
    """The trained run of a recipe, trained where there is none. ValueError if it was trained otherwise."""
    run = Run(recipe.run_dir, recipe)
    if not (run.dir / "best.safetensors").is_file():
        return train(recipe)
    torch.set_num_threads(recipe.threads)
    if changed := earlier(recipe, run.dir, identity(recipe))[1]:
        itself = f', open the run itself (recipe = "{recipe.runs_dir}/{run.dir.name}")'
        others = itself if set(changed) <= recipe.training.keys() else ""
        said = f"{'; '.join(changed.values())}; train again with 02_train{others} or give the recipe another name"
        raise ValueError(f"{run.dir.name}: {said}")
    return run


def blackbox_twin(recipe: Recipe) -> Run:
    """The black-box run that a recipe names as its twin, evaluated on the recipe's own images; without a name, one of
    the recipe's settings, trained where there is none. FileNotFoundError where the named one is not trained."""
    if recipe.method == "blackbox":
        return load_or_train(recipe)
    if not recipe.twin:
        return train(recipe.blackbox_twin())
    twin = Run.load(recipe.blackbox_twin().run_dir).recipe
    recipe.check_twin(twin)
    run = load_or_train(twin)
    run.recipe = twin.replace(split=recipe.split, test_dataset=recipe.test_dataset, limit=recipe.limit)
    return run


def phase_conditions(history: pd.DataFrame) -> pd.DataFrame:
    """What the Explainer-Classifier's authors ask of its first two phases: of the state carried over the classification
    loss at about 25 % of its first value, then the explanation loss below 20 %, but not at 0 (an empty heatmap).

    A row per phase with its loss: share (of the first value), asked, met."""
    found = []
    for phase, loss, low, high in (("classifier", "classification", 0.15, 0.35), ("explainer", "explanation", 0, 0.2)):
        rows = history[history["phase"] == phase].reset_index()
        if len(rows) > 1:
            first, kept = rows[f"train_{loss}"][[0, rows["val_loss"][1:].idxmin()]]
            met = low <= kept / first <= high and kept >= 1e-3
            found.append((phase, loss, kept / first, f"{low:.0%} to {high:.0%}", met))
    return pd.DataFrame(found, columns=["phase", "loss", "share", "asked", "met"])
