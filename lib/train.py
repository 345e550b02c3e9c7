"""Training: one phase for a black box and for SoftCAM, three for the Explainer-Classifier; whether it has been done.

Each phase (lib.phase) starts from the best state of the one before: that of the lowest validation loss, unless the
recipe's `checkpoint` says otherwise.
"""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import DataLoader, Subset

from lib.data.sampling import EpochSampler, class_weights
from lib.identity import differences, identity
from lib.models import load_reference_checkpoint
from lib.models.weights import intact, read_checkpoint
from lib.recipe import EXPLAINED, Recipe, stored_run
from lib.run import Run, build_model, open_split, versions
from lib.writing import write_tensors, write_whole


def train(recipe: Recipe, again: bool = False) -> Run:
    """The trained run of a recipe, trained into its folder where it is not yet, or `again`; an interrupted one goes on.

    The same recipe on the same machine gives the same weights to the last bit, interrupted or not. What else is in the
    folder is deleted when all that can be checked has been. ValueError for a folder that is no run or that another
    process writes; FloatingPointError where the loss is not finite.
    """
    run, best = Run(recipe.run_dir, recipe), recipe.run_dir / "best.safetensors"
    torch.set_num_threads(recipe.threads)
    run.check_folder()
    now = identity(recipe)
    stored, changed = left(run, now)
    if stored and not (again or changed) and intact(best):
        if stored["recipe"] != recipe.model_dump():
            with run.writing():
                run.describe(**stored)
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
    workers = {"num_workers": recipe.num_workers, "pin_memory": run.device.type == "cuda"}
    labels = {split: torch.tensor(data[split].frame["label"].tolist()) for split in data}
    classes = run.description.classes
    absent = ", ".join(repr(name) for k, name in enumerate(classes) if k not in labels["val"])
    for phase in recipe.phases:
        if absent and phase.checkpoint not in ("loss", "accuracy"):
            said = f"checkpoint: {phase.checkpoint!r} needs validation images of every class"
            raise ValueError(f"{said}, there is none of {absent}")
    part = Subset(data["train"], range(min(len(data["train"]), len(data["val"]))))  # measured on as many as of val
    measured = [DataLoader(images, 2 * recipe.batch_size, **workers) for images in (part, data["val"])]
    samples = [data["val"][i]["image"] for i in range(min(max(recipe.evolution_count, 1), len(data["val"])))]
    weights = class_weights(recipe.class_weights, labels["train"], len(classes))
    torch.manual_seed(recipe.stream("weights"))
    model = build_model(recipe)
    with torch.no_grad():
        model.eval()(run.normalise(samples[0][None]))  # fails here for a size that the model does not take
    from lib.phase import PhaseModule, fit_phase  # with Lightning, which what explains and evaluates does not need

    with run.writing():
        begin(run, now, again)
        for phase in recipe.phases:
            done = run.dir / f"{phase.name}.safetensors"
            if not intact(done):
                torch.manual_seed(recipe.stream("training", phase.name))
                seeds = partial(recipe.stream, "order", phase.name)
                order = EpochSampler(labels["train"], seeds, recipe.sampling, recipe.sampling_decay)
                full = len(augmented) > recipe.batch_size
                batches = DataLoader(augmented, recipe.batch_size, sampler=order, drop_last=full, **workers)
                fixed = torch.stack(samples)[: recipe.evolution_count]
                fit_phase(PhaseModule(run, phase, model, weights), fixed, batches, measured)
                write_tensors(done, model.state_dict())
            model.load_state_dict(read_checkpoint(done))
        write_tensors(best, model.state_dict())
        shutil.rmtree(run.dir / "checkpoints", ignore_errors=True)
    return run


def left(run: Run, now: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the folder's recipe.json says, and how that run differs from the recipe `now`; both empty without one."""
    known = (run.dir / "recipe.json").is_file()
    changed = differences(run.recipe, run.dir, now) if known else {}
    return stored_run(run.dir) if known and "recipe.json" not in changed else {}, changed


def begin(run: Run, now: dict[str, Any], again: bool) -> None:
    """Opens the folder: an unfinished training of the same identity goes on, anything else starts afresh."""
    stored, changed = left(run, now)
    history, evolution = run.dir / "history.csv", run.dir / "evolution.safetensors"
    text = history.read_bytes() if history.is_file() else b"phase,\n"
    damaged = [] if text.startswith(b"phase,") and text.endswith(b"\n") else [history]  # later epochs: half a history
    damaged += [evolution] if evolution.is_file() and not intact(evolution) else []
    if said := [*changed.values(), *(f"{path} is damaged" for path in damaged)]:
        print(f"{run.dir.name}: trained anew: {'; '.join(said)}")
    if again or said or not stored:
        run.clear()
        run.describe(**now, versions=versions())
    else:
        (run.dir / "best.safetensors").unlink(missing_ok=True)  # damaged, or there were nothing to go on with
        run.describe(**stored)


def take_weights(run: Run, now: dict[str, Any]) -> Run:
    """The run of a recipe that names `weights_from`: a copy of that run's weights and history, and of what it says
    they depend on. ValueError where that run was trained otherwise."""
    recipe = run.recipe
    if recipe.weights_from == recipe.name:
        raise ValueError(f"weights_from: expected the name of another run than {recipe.name}")
    source = Run.load(recipe.replace(name=recipe.weights_from).run_dir)
    if changed := differences(recipe, source.dir, now):
        raise ValueError(f"weights_from: {source.dir.name}: {'; '.join(changed.values())}")
    with run.writing():
        run.clear()
        run.describe(**stored_run(source.dir))
        weights = [f"{part}.safetensors" for part in ("evolution", "last", *recipe.phase_names, "best")]
        for path in [path for name in ("history.csv", *weights) if (path := source.dir / name).is_file()]:
            write_whole(run.dir / path.name, partial(shutil.copy, path))
    return run


def adopt_checkpoint(recipe: Recipe, path: str | Path) -> Run:
    """The run of a model trained elsewhere, from a checkpoint that `load_reference_checkpoint` reads: 03_explain and
    04_evaluate take it as one trained here. Where the file does not fit the model, the folder is left as it was."""
    run = Run(recipe.run_dir, recipe)
    run.check_folder()
    model = load_reference_checkpoint(path, build_model(recipe.replace(weights=None)))
    with run.writing():
        run.clear()
        run.describe(adopted=str(path), versions=versions())
        write_tensors(run.dir / "best.safetensors", model.state_dict())
    return run


def load_or_train(recipe: Recipe) -> Run:
    """The trained run of a recipe, trained where there is none. ValueError if it was trained otherwise."""
    run = Run(recipe.run_dir, recipe)
    if not run.finished:
        return train(recipe)
    torch.set_num_threads(recipe.threads)
    if changed := differences(recipe, run.dir, identity(recipe)):
        said = f"{run.dir.name}: {'; '.join(changed.values())}; train again with 02_train"
        if set(changed) <= recipe.training.keys():
            said += f', open the run itself (recipe = "{recipe.runs_dir}/{run.dir.name}")'
        raise ValueError(f"{said} or give the recipe another name")
    return run


def stored_twin(recipe: Recipe) -> Recipe:
    """The recipe of the black-box run that a recipe names as its twin, as it was trained. FileNotFoundError where it is
    not; ValueError where it cannot be one."""
    twin = Run.load(recipe.blackbox_twin().run_dir).recipe
    recipe.check_twin(twin)
    return twin


def blackbox_twin(recipe: Recipe) -> Run:
    """The black-box run that a recipe names as its twin (see `stored_twin`), evaluated on the recipe's own images;
    without a name, one of the recipe's settings, trained where there is none yet."""
    if recipe.method == "blackbox":
        return load_or_train(recipe)
    if not recipe.twin:
        return train(recipe.blackbox_twin())
    run = load_or_train(stored_twin(recipe))
    run.recipe = run.recipe.replace(split=recipe.split, test_dataset=recipe.test_dataset, limit=recipe.limit)
    return run


def twin_differences(recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Training parameter -> (the recipe's value, its named twin's), where they differ and concern a black box."""
    own, theirs = recipe.blackbox_twin().training, stored_twin(recipe).training
    return {key: (own[key], theirs[key]) for key in own if own[key] != theirs[key] and key not in EXPLAINED}


def phase_warnings(history: pd.DataFrame) -> list[str]:
    """What the Explainer-Classifier's authors ask of its first two phases and did not come (empty: all did), judged at
    the state that is carried over. After the first: the classification loss at about 25 % of its first value (here: 15
    to 35 %); after the second: the explanation loss below 20 % of its first value, but not at 0."""
    found = []
    for phase, loss, low, high in (("classifier", "classification", 0.15, 0.35), ("explainer", "explanation", 0, 0.2)):
        rows = history[history["phase"] == phase]
        if len(rows) > 1:
            values, said = rows[f"train_{loss}"], f"phase {phase!r} ended with the {loss} loss at"
            kept = values[rows["val_loss"].iloc[1:].idxmin()]
            if not low <= kept / values.iloc[0] <= high:
                share = f"{kept / values.iloc[0]:.0%} of its first value"
                found.append(f"{said} {share} (asked: {low:.0%} to {high:.0%})")
            if phase == "explainer" and kept < 1e-3:
                found.append(f"{said} {kept:.1e}: an empty heatmap")
    return found
