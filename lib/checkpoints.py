"""What is kept while a phase trains: a row of the history and explanations of each epoch, the best and last state."""

from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from tqdm.auto import tqdm

from lib.models.weights import read_checkpoint
from lib.objective import PhaseModule
from lib.recipe import Phase
from lib.runs import Run, write_tensors, write_whole


def intact(path: Path) -> bool:
    """Whether a file of tensors is there and can be read; one that cannot is said in a line, and counts as none."""
    try:
        return path.is_file() and read_checkpoint(path) is not None
    except ValueError as error:
        print(f"{error}; it counts as none")
        return False


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
            kept = read_checkpoint(path) if path.exists() else {"images": self.images}
            write_tensors(path, {**kept, f"{self.phase.name}/{epoch:03d}": maps.float()})
