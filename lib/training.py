"""Training: one phase for a black box and for SoftCAM, three for the Explainer-Classifier; whether it has been done.

Each phase starts from the best state of the one before: that of the lowest validation loss, unless the recipe's
`checkpoint` says otherwise. What a phase minimises is in lib.objective, how in lib.fitting.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import DataLoader, Subset

from lib.identity import differences, differing, identity
from lib.models import load_reference_checkpoint
from lib.models.weights import intact, read_checkpoint
from lib.optimisation import check_classes, class_weights, make_sampler
from lib.reading import stored_run
from lib.recipe import EXPLAINED, Recipe
from lib.runs import Run, build_model, open_split, versions
from lib.writing import plain, write_json, write_tensors


def check_folder(folder: Path) -> None:
    """ValueError where a folder holds what no run does: nothing in it is touched then."""
    paths = [] if (folder / "recipe.json").is_file() or not folder.is_dir() else sorted(folder.iterdir())
    foreign = [p.name for p in paths if not p.name.startswith(".") and p.suffix not in (".ipynb", ".tsv")]
    if foreign:
        raise ValueError(f"{folder}: expected a run or an empty folder, found {foreign[0]} and no recipe.json")


def clear(folder: Path) -> None:
    """Deletes what a run has left; the weights first, so that what is left of it is at no time a finished run."""
    files = "*.safetensors", "history.csv", "maps.json", "metrics.json"
    for name in ("best.safetensors", "checkpoints", "tensorboard", *files):
        for path in folder.glob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def adopted(folder: Path) -> str | None:
    """The checkpoint from elsewhere that a folder's weights are, or were; None of a run that was trained here."""
    try:
        return stored_run(folder).get("adopted")
    except (OSError, ValueError):
        return None


def describe(run: Run, **more: Any) -> None:
    """recipe.json: the recipe, and what else the weights came from."""
    write_json(run.dir / "recipe.json", {"schema": 2, **more, "recipe": run.recipe.model_dump()})


def begin(run: Run, now: dict[str, Any], again: bool) -> None:
    """Opens the folder: an unfinished training of the same identity goes on, anything else starts afresh."""
    path, said = run.dir / "recipe.json", []
    if path.is_file():
        history, evolution = run.dir / "history.csv", run.dir / "evolution.safetensors"
        said = list(differences(run.recipe, run.dir, now).values())
        text = history.read_bytes() if history.is_file() else b"phase,\n"
        if not (text.startswith(b"phase,") and text.endswith(b"\n")):
            said.append(f"{history} is damaged")  # later epochs alone would be half a history
        if evolution.is_file() and not intact(evolution):
            said.append(f"{evolution} is damaged")
    if said:
        print(f"{run.dir.name}: trained anew: {'; '.join(said)}")
    if again or said or not path.is_file():
        clear(run.dir)
        describe(run, **now, versions=versions())
    else:
        (run.dir / "best.safetensors").unlink(missing_ok=True)  # damaged, or there were nothing to go on with
        describe(run, **stored_run(run.dir))


def train(recipe: Recipe, again: bool = False) -> Run:
    """The trained run of a recipe, trained into its folder where it is not yet, or `again`; an interrupted training
    goes on.

    The same recipe on the same machine gives the same weights to the last bit, interrupted or not. What else is in the
    folder is deleted when all that can be checked has been. ValueError for a folder that is no run, or where another
    process writes it; FloatingPointError where the loss is not finite.
    """
    run = Run(recipe.run_dir, recipe)
    torch.set_num_threads(recipe.threads)
    check_folder(run.dir)
    now = identity(recipe)
    if not again and intact(run.dir / "best.safetensors") and not differences(recipe, run.dir, now):
        stored = stored_run(run.dir)
        if stored["recipe"] != plain(recipe.model_dump()):
            with run.writing():
                describe(run, **stored)
        os.utime(run.dir / "best.safetensors")  # as new as what it was checked against
        return run
    if not again and (source := adopted(run.dir)):
        changed = "; ".join(differences(recipe, run.dir, now).values()) or "its weights are damaged"
        said = f"{run.dir.name}: holds a checkpoint from elsewhere, {source}: {changed}"
        raise ValueError(f"{said}; give the recipe another name, or train(recipe, again=True) in its place")
    if recipe.weights_from:
        return take_weights(run, now)
    data = {split: open_split(recipe, split) for split in ("train", "val")}
    augmented = open_split(recipe, "train", augmented=True) if recipe.augment != "none" else data["train"]
    workers = {"num_workers": recipe.num_workers, "pin_memory": run.device.type == "cuda"}
    labels = {split: torch.tensor(data[split].frame["label"].tolist()) for split in data}
    for phase in recipe.phases:
        check_classes(phase.checkpoint, labels["val"], run.description.classes)
    part = Subset(data["train"], range(min(len(data["train"]), len(data["val"]))))  # measured on as many as of val
    measured = [DataLoader(images, 2 * recipe.batch_size, **workers) for images in (part, data["val"])]
    samples = [data["val"][i]["image"] for i in range(min(max(recipe.evolution_count, 1), len(data["val"])))]
    fixed = torch.stack(samples)[: recipe.evolution_count]
    weights = class_weights(recipe, labels["train"], len(run.description.classes))
    torch.manual_seed(recipe.stream("weights"))
    model = build_model(recipe)
    with torch.no_grad():
        model.eval()(run.normalise(samples[0][None]))  # fails here for a size that the model does not take
    from lib.fitting import fit_phase  # Lightning takes seconds to import; what explains and evaluates needs none of it

    with run.writing():
        begin(run, now, again)
        for phase in recipe.phases:
            done = run.dir / f"{phase.name}.safetensors"
            if not intact(done):
                torch.manual_seed(recipe.stream("training", phase.name))
                sampler, full = make_sampler(recipe, phase.name, labels["train"]), len(augmented) > recipe.batch_size
                batches = DataLoader(augmented, recipe.batch_size, sampler=sampler, drop_last=full, **workers)
                fit_phase(run, phase, model, weights, fixed, batches, measured)
                write_tensors(done, model.state_dict())
            model.load_state_dict(read_checkpoint(done))
        write_tensors(run.dir / "best.safetensors", model.state_dict())
        shutil.rmtree(run.dir / "checkpoints", ignore_errors=True)
    return run


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
        begin(run, now, again=True)
        describe(run, **stored_run(source.dir))
        for name in ("history.csv", *(f"{part}.safetensors" for part in ("evolution", "last", *recipe.phase_names))):
            if (source.dir / name).is_file():
                shutil.copy(source.dir / name, run.dir)
        write_tensors(run.dir / "best.safetensors", read_checkpoint(source.dir / "best.safetensors"))
    return run


def adopt_checkpoint(recipe: Recipe, path: str | Path) -> Run:
    """The run of a model trained elsewhere, from a checkpoint that `load_reference_checkpoint` reads.

    The recipe names the data set, the method, the architecture and the run; 03_explain and 04_evaluate then take the
    run as one trained here (without a history). Raises as `load_reference_checkpoint` where the file does not fit the
    model; what the run folder held is kept then.
    """
    run = Run(recipe.run_dir, recipe)
    check_folder(run.dir)
    model = load_reference_checkpoint(path, build_model(recipe.replace(weights=None)))
    with run.writing():
        clear(run.dir)
        describe(run, adopted=str(path), versions=versions())
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
    """The recipe of the black-box run that a recipe names as its twin, as it was trained.

    FileNotFoundError where that is not trained; ValueError where it cannot be one, being the run itself, no black box,
    or a black box of other images.
    """
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
    return {key: v for key, v in differing(recipe.blackbox_twin(), stored_twin(recipe)).items() if key not in EXPLAINED}


def phase_warnings(history: pd.DataFrame) -> list[str]:
    """What the Explainer-Classifier's authors ask of its phases and this training did not do (empty: nothing).

    Phase 1 should end early, with the classification loss at about 25 % of its first value (here: 15 to 35 %); phase 2
    with the explanation loss below 20 % of its first value, but not at 0. Judged at the state that is carried over.
    """
    found = []
    for phase, loss, low, high in (
        ("classifier", "classification", 0.15, 0.35),
        ("explainer", "explanation", 0.0, 0.2),
    ):
        rows = history[history["phase"] == phase]
        if len(rows) < 2:
            continue
        first, kept = rows.iloc[0], rows.iloc[1:].loc[rows["val_loss"].iloc[1:].idxmin()]
        share, asked = kept[f"train_{loss}"] / first[f"train_{loss}"], f"{low:.0%} to {high:.0%}"
        if not low <= share <= high:
            found.append(
                f"phase {phase!r} ended with the {loss} loss at {share:.0%} of its first value (asked: {asked})"
            )
        if phase == "explainer" and kept[f"train_{loss}"] < 1e-3:
            found.append(f"phase {phase!r} ended with the {loss} loss at {kept[f'train_{loss}']:.1e}: an empty heatmap")
    return found
