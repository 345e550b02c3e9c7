"""Training with Lightning: one phase for a black box and for SoftCAM, three for the Explainer-Classifier.

Each phase starts from the best state of the one before: that of the lowest validation loss, unless the recipe's
`checkpoint` says otherwise. What a phase minimises is in lib.objective.
"""

import json
import logging
import shutil
import warnings
from pathlib import Path

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from lib.models import load_reference_checkpoint
from lib.objective import PhaseModule
from lib.optimisation import class_weights, make_sampler
from lib.recipe import Phase, Recipe
from lib.runs import (
    Run,
    build_model,
    code_hash,
    differences,
    open_split,
    versions,
    write_json,
    write_tensors,
    write_whole,
)
from lib.selection import check_classes, monitor

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
for _message in (
    "does not have many workers",
    "The number of training",
    "isinstance.treespec",
    "Checkpoint directory",
    "in eval mode",
):
    warnings.filterwarnings("ignore", f".*{_message}.*")


class Recorder(Callback):
    """After each epoch: one row of history.csv, the explanations of the fixed images, one step of the progress bar."""

    def __init__(self, run: Run, phase: Phase, images: Tensor):
        self.run, self.phase, self.images = run, phase, images

    def on_train_start(self, trainer: L.Trainer, module: PhaseModule) -> None:
        self.bar = tqdm(total=trainer.estimated_stepping_batches, desc=self.phase.name, mininterval=1, unit="batch")
        self.bar.update(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.bar.update(1)

    def on_validation_end(self, trainer: L.Trainer, module: PhaseModule) -> None:
        epoch = trainer.current_epoch + 1 if trainer.state.fn == "fit" else 0
        row = {
            "phase": self.phase.name,
            "epoch": epoch,
            "lr": trainer.optimizers[0].param_groups[0]["lr"] if epoch else 0,
        }
        row |= {key: value.item() for key, value in trainer.callback_metrics.items()}
        path = self.run.dir / "history.csv"
        old = pd.read_csv(path) if path.exists() else pd.DataFrame({"phase": [], "epoch": []})
        old = old[~((old["phase"] == self.phase.name) & (old["epoch"] >= epoch))]
        new = pd.concat([old, pd.DataFrame([row])]) if len(old) else pd.DataFrame([row])
        write_whole(path, lambda p: new.to_csv(p, index=False))
        self.keep_explanations(module, epoch)
        if epoch:
            self.bar.set_postfix({key: f"{row[key]:.3f}" for key in ("train_loss", "val_loss", "val_acc")})

    def on_train_end(self, trainer: L.Trainer, module: PhaseModule) -> None:
        self.bar.close()

    @torch.no_grad()
    def keep_explanations(self, module: PhaseModule, epoch: int) -> None:
        out = module.model(self.run.normalise(self.images.to(module.device))) if len(self.images) else None
        maps = getattr(out, "evidence", None) if hasattr(out, "evidence") else getattr(out, "explanation", None)
        if maps is not None:
            path = self.run.dir / "evolution.safetensors"
            kept = load_file(path) if path.exists() else {"images": self.images}
            write_tensors(path, {**kept, f"{self.phase.name}/{epoch:03d}": maps.float()})


def begin(recipe: Recipe, run_dir: Path) -> Run:
    """Opens the run folder: an unfinished training of the same recipe and code goes on, anything else starts afresh."""
    identity = {"recipe": recipe.model_dump(), "code": code_hash()}
    path = run_dir / "recipe.json"
    unfinished = path.is_file() and not (run_dir / "best.safetensors").exists()
    stored = json.loads(path.read_text()) if unfinished else {}
    if {key: stored.get(key) for key in identity} != identity:
        for old in ("checkpoints", "tensorboard"):
            shutil.rmtree(run_dir / old, ignore_errors=True)
        for old in [
            *run_dir.glob("*.safetensors"),
            run_dir / "history.csv",
            run_dir / "maps.json",
            run_dir / "metrics.json",
        ]:
            old.unlink(missing_ok=True)
        write_json(path, {"schema": 1, **identity, "versions": versions()})
    return Run(run_dir, recipe)


def train(recipe: Recipe, run_dir: Path | None = None) -> Run:
    """Trains a recipe's model into its run folder, continuing an interrupted training, and returns the run.

    The same recipe on the same machine gives the same weights to the last bit, interrupted or not.
    """
    run = begin(recipe, Path(run_dir or recipe.run_dir))
    torch.set_num_threads(recipe.threads)
    L.seed_everything(recipe.seed, verbose=False)
    data = {split: open_split(recipe, split) for split in ("train", "val")}
    augmented = open_split(recipe, "train", augmented=True) if recipe.augment != "none" else data["train"]
    workers = {"num_workers": recipe.num_workers, "pin_memory": run.device.type == "cuda"}
    labels = {split: torch.tensor(data[split].frame["label"].tolist()) for split in data}
    for phase in recipe.phases:
        check_classes(phase.checkpoint, labels["val"], run.description.classes)
    sampler = make_sampler(recipe, labels["train"])
    batches = DataLoader(
        augmented, recipe.batch_size, sampler=sampler, drop_last=len(augmented) > recipe.batch_size, **workers
    )
    part = Subset(data["train"], range(min(len(data["train"]), len(data["val"]))))  # measured on as many as of val
    measured = [DataLoader(images, 2 * recipe.batch_size, **workers) for images in (part, data["val"])]
    fixed = [data["val"][i]["image"] for i in range(min(recipe.evolution_count, len(data["val"])))]
    fixed = torch.stack(fixed) if fixed else torch.empty(0)
    weights = class_weights(recipe, labels["train"], len(run.description.classes))
    model = build_model(recipe)
    for number, phase in enumerate(recipe.phases):
        done = run.dir / f"{phase.name}.safetensors"
        if not done.exists():
            L.seed_everything(recipe.seed + number, verbose=False)
            module = PhaseModule(recipe, phase, model, run, weights)
            fit_phase(run, module, Recorder(run, phase, fixed), batches, measured)
            write_tensors(done, model.state_dict())
        model.load_state_dict(load_file(done))
    shutil.copy(done, run.dir / ".best")
    (run.dir / ".best").rename(run.dir / "best.safetensors")
    shutil.rmtree(run.dir / "checkpoints", ignore_errors=True)
    return Run.load(run.dir)


def fit_phase(
    run: Run, module: PhaseModule, recorder: Recorder, batches: DataLoader, measured: list[DataLoader]
) -> None:
    """Fits one phase and leaves its best state in the model; last.safetensors: the final state. Stops by the loss."""
    recipe, phase, folder = run.recipe, module.phase, run.dir / "checkpoints"
    name, mode = monitor(phase.checkpoint)
    best = ModelCheckpoint(
        folder, f"{phase.name}-best", monitor=name, mode=mode, save_last=True, enable_version_counter=False
    )
    best.CHECKPOINT_NAME_LAST = f"{phase.name}-last"
    stop = [EarlyStopping("val_loss", patience=phase.patience)] if phase.patience else []
    trainer = L.Trainer(
        accelerator={"cuda": "gpu"}.get(run.device.type, "cpu"), devices=1, max_epochs=phase.epochs,
        precision="bf16-mixed" if recipe.precision == "bf16" else "32-true",
        deterministic="warn" if run.device.type == "cuda" else True,  # some poolings have no deterministic CUDA kernel
        logger=TensorBoardLogger(run.dir, "tensorboard", phase.name), callbacks=[recorder, best, *stop],
        num_sanity_val_steps=0, log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    last = folder / f"{phase.name}-last.ckpt"
    module.train()  # Lightning keeps the mode that it finds
    if not last.exists():
        trainer.validate(module, measured, verbose=False)
    trainer.fit(module, batches, measured, ckpt_path=last if last.exists() else None, weights_only=True)
    write_tensors(run.dir / "last.safetensors", module.model.state_dict())
    if phase.epochs:
        if not torch.isfinite(best.best_model_score):
            said = f"{name}: undefined in every epoch of phase {phase.name!r}; the first is kept"
            warnings.warn(said, stacklevel=2)
        state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
        module.load_state_dict(state)


def adopt_checkpoint(recipe: Recipe, path: str | Path) -> Run:
    """The run of a model trained elsewhere, from a checkpoint that `load_reference_checkpoint` reads.

    The recipe names the data set, the method, the architecture and the run; 03_explain and 04_evaluate then take the
    run as one trained here (without a history). Raises as `load_reference_checkpoint` where the file does not fit the
    model; what the run folder held is kept then.
    """
    model = load_reference_checkpoint(path, build_model(recipe.replace(weights=None)))
    run = begin(recipe, recipe.run_dir)
    write_tensors(run.dir / "best.safetensors", model.state_dict())
    return Run.load(run.dir)


def load_or_train(recipe: Recipe) -> Run:
    """The trained run of a recipe, trained where there is none. ValueError if it was trained with other parameters."""
    if not (recipe.run_dir / "best.safetensors").exists():
        return train(recipe)
    torch.set_num_threads(recipe.threads)
    run = Run.load(recipe.run_dir)
    changed = differences(recipe, run.recipe)
    if changed:
        raise ValueError(f"{recipe.run_dir.name}: {changed}; train again with 02_train or give the recipe another name")
    run.recipe = recipe
    return run


def blackbox_twin(recipe: Recipe) -> Run:
    """The black-box run that a recipe names as its twin; without a name, one of its settings, trained if missing."""
    if recipe.method != "blackbox" and recipe.twin:
        return Run.load(recipe.blackbox_twin().run_dir)
    return load_or_train(recipe.blackbox_twin())


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
