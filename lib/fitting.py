"""Fitting one phase with Lightning: what is kept meanwhile, a row of the history and explanations of each epoch, the
best and the last state."""

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from lib.models.weights import intact, read_checkpoint
from lib.objective import PhaseModule
from lib.recipe import Phase
from lib.runs import Run
from lib.selection import monitor
from lib.writing import write_tensors, write_whole

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
for _message in (
    "does not have many workers",
    "The number of training",
    "isinstance.treespec",
    "Checkpoint directory",
    "in eval mode",
):
    warnings.filterwarnings("ignore", f".*{_message}.*")


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that appear whole, by a temporary file beside them: Lightning's own lies where $TMPDIR is."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_whole(Path(path), lambda temporary: torch.save(checkpoint, temporary))


class BestAndLast(ModelCheckpoint):
    """PHASE-best.ckpt and PHASE-last.ckpt, which knows its best score also where the folder has been moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return path and str(Path(self.dirpath, Path(path).name))

        paths = {key: here(path) for key, path in state_dict.items() if key.endswith("_path")}
        scores = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath})


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
        new = new.sort_values("phase", key=lambda names: names.map(self.run.recipe.phase_names.index), kind="stable")
        write_whole(path, lambda p: new.to_csv(p, index=False, lineterminator="\n"))
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
            kept = read_checkpoint(path) if path.exists() else {"images": self.images}
            write_tensors(path, {**kept, f"{self.phase.name}/{epoch:03d}": maps.float()})


def computes_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether a training of this `precision` uses bf16; auto: where the device has instructions for it, which halve the
    time of a step (a processor without them would take several times as long)."""
    if precision != "auto":
        return precision == "bf16"
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fit_phase(
    run: Run,
    phase: Phase,
    model: nn.Module,
    class_weights: Tensor | None,
    fixed: Tensor,
    batches: DataLoader,
    measured: list[DataLoader],
) -> None:
    """Fits one phase and leaves its best state in the model; last.safetensors: the final state. Stops by the loss.

    measured: loaders of training and of validation images; fixed: images (n, C, H, W) explained after each epoch.
    """
    recipe, folder = run.recipe, run.dir / "checkpoints"
    module, recorder = PhaseModule(recipe, phase, model, run, class_weights), Recorder(run, phase, fixed)
    name, mode = monitor(phase.checkpoint)
    kept, last = (folder / f"{phase.name}-{which}.ckpt" for which in ("best", "last"))
    best = BestAndLast(folder, kept.stem, monitor=name, mode=mode, save_last=True, enable_version_counter=False)
    best.CHECKPOINT_NAME_LAST = last.stem
    stop = [EarlyStopping("val_loss", patience=phase.patience)] if phase.patience else []
    trainer = L.Trainer(
        accelerator={"cuda": "gpu"}.get(run.device.type, "cpu"), devices=1, max_epochs=phase.epochs,
        precision="bf16-mixed" if computes_in_bf16(recipe.precision, run.device) else "32-true",
        deterministic="warn" if run.device.type == "cuda" else True,  # some poolings have no deterministic CUDA kernel
        default_root_dir=folder, plugins=[LightningEnvironment(), WholeFiles()],  # the same on a cluster as elsewhere
        logger=TensorBoardLogger(run.dir, "tensorboard", phase.name), callbacks=[recorder, best, *stop],
        num_sanity_val_steps=0, log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    goes_on = intact(last) and intact(kept)
    module.train()  # Lightning keeps the mode that it finds
    if not goes_on:
        trainer.validate(module, measured, verbose=False)
    trainer.fit(module, batches, measured, ckpt_path=last if goes_on else None, weights_only=True)
    write_tensors(run.dir / "last.safetensors", module.model.state_dict())
    if phase.epochs:
        if not torch.isfinite(best.best_model_score):
            said = f"{name}: undefined in every epoch of phase {phase.name!r}; the first is kept"
            warnings.warn(said, stacklevel=2)
        module.load_state_dict(read_checkpoint(kept)["state_dict"])
