"""One training phase: what it minimises, how, and what is kept of each epoch.

`alpha C + (1 - alpha) L_expl` (Rio-Torto et al. 2020, eq. 1) or `C + l1 mean ||A||_1 + l2 mean ||A||_2` (Djoumessi &
Berens 2025, eq. 3), C the classification loss.
"""

import logging
import math
import warnings
from functools import partial
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
from torch.optim import Optimizer, lr_scheduler
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAUROC
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchmetrics.utilities import dim_zero_cat
from tqdm.auto import tqdm

from lib.losses import classification_loss, contiguity, evidence_penalty, explanation_loss, sparsity
from lib.models.weights import intact, read_checkpoint
from lib.recipe import Phase, Recipe
from lib.run import Run
from lib.writing import write_tensors, write_whole

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
KNOWN = "does not have many workers|The number of training|isinstance.treespec|Checkpoint directory|in eval mode"
warnings.filterwarnings("ignore", f".*({KNOWN})")
SPLITS = ("train", "val")  # that losses and scores are measured on


class Scores(MulticlassAUROC):
    """What `lib.metrics.classification_metrics` has of all batches seen, NaN where undefined (torchmetrics: 0).

    acc, auc (mean over the classes); sensitivity, specificity, precision: of class 1 of two, of more the mean over the
    classes where they are defined; kappa: quadratic weights (Cohen 1968).
    """

    def compute(self) -> dict[str, Tensor]:
        p, labels = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        matrix = multiclass_confusion_matrix(p, labels, self.num_classes).double()  # rows: truth
        hits, truth, predicted, n = matrix.diag(), matrix.sum(1), matrix.sum(0), matrix.sum()
        grades = torch.arange(len(matrix)).to(matrix)
        cost = (grades[:, None] - grades) ** 2
        found = {
            "acc": hits.sum() / n,
            "auc": super().compute() if truth.all() else torch.full_like(n, torch.nan),
            "sensitivity": hits / truth,
            "specificity": (n - truth - predicted + hits) / (n - truth),
            "precision": hits / predicted,
            "kappa": 1 - n * (cost * matrix).sum() / (truth @ cost @ predicted),
        }
        return {name: (x if x.ndim == 0 else x[1] if len(x) == 2 else x.nanmean()).float() for name, x in found.items()}


def make_optimizer(recipe: Recipe, phase: Phase, groups: list[dict]) -> Optimizer:
    """The optimiser of a phase; momentum and nesterov concern SGD only."""
    kinds = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "adadelta": "Adadelta"}
    own = {"momentum": recipe.momentum, "nesterov": recipe.nesterov} if phase.optimizer == "sgd" else {}
    return getattr(torch.optim, kinds[phase.optimizer])(groups, weight_decay=recipe.weight_decay, **own)


def make_schedule(recipe: Recipe, phase: Phase, optimizer: Optimizer, steps: int) -> dict[str, Any]:
    """The learning-rate schedule in Lightning's form; `steps` are all optimiser steps of the phase."""
    warmup, decay, floor, patience = recipe.warmup_epochs, recipe.decay, recipe.lr_floor, recipe.plateau_patience
    rest, rates = max(phase.epochs - warmup, 1), [group["lr"] for group in optimizer.param_groups]
    floors = [floor / rate if rate else 0.0 for rate in rates]
    cosine = [lambda e, f=f: max(0.5 * (1 + math.cos(math.pi * min(e, rest) / rest)), f) for f in floors]
    share = recipe.pct_start + 1e-9 * (recipe.pct_start * steps == 1)  # torch divides by 0 if one step is the rise
    cycle = {"pct_start": share, "cycle_momentum": phase.optimizer != "adadelta"}
    made = {
        "none": lambda: lr_scheduler.LambdaLR(optimizer, lambda e: 1.0),
        "plateau": lambda: lr_scheduler.ReduceLROnPlateau(optimizer, "min", decay, patience, min_lr=floor),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, rest),
        "clipped_cosine": lambda: lr_scheduler.LambdaLR(optimizer, cosine),
        "onecycle": lambda: lr_scheduler.OneCycleLR(optimizer, rates, max(steps, 1), **cycle),
        "multistep": lambda: lr_scheduler.MultiStepLR(optimizer, recipe.milestones, decay),
        "exponential": lambda: lr_scheduler.ExponentialLR(optimizer, decay),
    }[phase.schedule]()
    if warmup:
        ramp = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup)
        made = lr_scheduler.SequentialLR(optimizer, [ramp, made], [warmup])
    return {"scheduler": made, "interval": "step" if phase.schedule == "onecycle" else "epoch", "monitor": "val_loss"}


class PhaseModule(L.LightningModule):
    """One training phase of a run's model: its losses, its optimiser, its measurements after each epoch."""

    def __init__(self, run: Run, phase: Phase, model: nn.Module, weights: Tensor | None = None):
        super().__init__()
        self.run, self.recipe, self.phase, self.model = run, run.recipe, phase, model
        self.register_buffer("class_weights", weights, persistent=False)
        self.scores = nn.ModuleList(Scores(len(run.description.classes)) for _ in SPLITS)
        both = {"classifier": phase.lr, "explainer": phase.lr_explainer}
        one = {phase.name: both[phase.name]} if phase.name in both else {"": phase.lr}  # "": the whole model
        rates = both if phase.name == "joint" else one
        self.rates = {model.get_submodule(part): rate for part, rate in rates.items()}
        model.requires_grad_(False)
        for part in self.rates:
            part.requires_grad_(True)

    def train(self, mode: bool = True) -> "PhaseModule":
        """A frozen part stays in eval mode: its batch statistics are frozen too."""
        super().train(mode)
        self.model.eval()
        for part in self.rates:
            part.train(mode)
        return self

    @property
    def current_weights(self) -> Tensor | None:
        """Of the classes (K,), None: 1. Dynamic ones are `1 + decay^epoch (w - 1)` while training, as SoftCAM's
        reference code decays them, and 1 where losses are measured: those of different epochs are compared."""
        if self.recipe.class_weights != "dynamic":
            return self.class_weights
        rest = self.recipe.class_weights_decay**self.current_epoch
        return 1 + rest * (self.class_weights - 1) if self.training else None

    def losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The total loss and its terms (scalars), and the logits (N, K)."""
        recipe, alpha, out = self.recipe, self.phase.alpha, self.model(self.run.normalise(batch["image"]))
        logits = getattr(out, "logits", out).float()
        ce = classification_loss(logits, batch["label"], recipe.criterion, self.current_weights, recipe.focal_gamma)
        if hasattr(out, "evidence"):
            penalty = evidence_penalty(out.evidence.float(), recipe.l1, recipe.l2)
            return {"loss": ce + penalty, "classification": ce, "penalty": penalty}, logits
        if hasattr(out, "explanation"):
            z, mask = out.explanation.float(), batch["mask"][:, None].float() if recipe.hybrid else None
            explanation = explanation_loss(z, recipe.beta, mask, recipe.gamma, has_mask=batch["has_mask"])
            terms = {"explanation": explanation, "sparsity": sparsity(z).mean(), "contiguity": contiguity(z).mean()}
            return {"loss": alpha * ce + (1 - alpha) * explanation, "classification": ce, **terms}, logits
        return {"loss": ce, "classification": ce}, logits

    def finite_losses(self, batch: dict[str, Tensor], index: int, split: str) -> tuple[dict[str, Tensor], Tensor]:
        """`losses`; FloatingPointError where the total is not finite, since no step after it could be trusted."""
        terms, logits = self.losses(batch)
        if not terms["loss"].isfinite():
            epoch = self.current_epoch + 1 if self.trainer.state.fn == "fit" else 0
            last = self.run.dir / "checkpoints" / f"{self.phase.name}-last.ckpt"
            kept = f"the last good state is kept in {last}" if last.is_file() else "the phase has no good state yet"
            got = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
            where = f"{self.recipe.name}: phase {self.phase.name!r}, epoch {epoch}, batch {index + 1} of {split}"
            raise FloatingPointError(f"{where}: expected a finite loss, got {got}; {kept}, nothing counts as trained")
        return terms, logits

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self.finite_losses(batch, index, "train")[0]["loss"]

    def validation_step(self, batch: dict[str, Tensor], index: int, dataloader_idx: int = 0) -> None:
        split = SPLITS[dataloader_idx]
        terms, logits = self.finite_losses(batch, index, split)
        named = {f"{split}_{name}": value for name, value in terms.items()}
        self.log_dict(named, batch_size=len(logits), add_dataloader_idx=False)
        self.scores[dataloader_idx].update(logits.softmax(1), batch["label"])

    def on_validation_epoch_end(self) -> None:
        kept = "acc", "auc", self.phase.checkpoint
        for split, scores in zip(SPLITS, self.scores, strict=True):
            self.log_dict({f"{split}_{name}": x for name, x in scores.compute().items() if name in kept})
            scores.reset()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["random_states"] = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        own, *gpus = [state.cpu() for state in checkpoint["random_states"]]
        torch.set_rng_state(own)
        for device, state in enumerate(gpus[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)

    def configure_optimizers(self, steps: int | None = None) -> dict[str, Any]:
        groups = [{"params": part.parameters(), "lr": rate} for part, rate in self.rates.items()]
        optimizer = make_optimizer(self.recipe, self.phase, groups)
        steps = steps or int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": make_schedule(self.recipe, self.phase, optimizer, steps)}


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that appear whole, by a temporary file beside them: Lightning's own lies where $TMPDIR is."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_whole(Path(path), partial(torch.save, checkpoint))


class BestAndLast(ModelCheckpoint):
    """PHASE-best.ckpt, the first of the best epochs, and PHASE-last.ckpt; keeps its score in a moved folder."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = str(Path(self.dirpath, f"{self.filename}.ckpt"))
        paths = dict.fromkeys(("best_model_path", "kth_best_model_path"), best) | {"dirpath": self.dirpath}
        super().load_state_dict({**state_dict, **paths, "best_k_models": {best: state_dict["best_model_score"]}})


class Recorder(Callback):
    """After each epoch: one row of history.csv, the explanations of the fixed images, one step of the progress bar."""

    def __init__(self, images: Tensor):
        self.images = images

    def on_train_start(self, trainer: L.Trainer, module: PhaseModule) -> None:
        steps, name = trainer.estimated_stepping_batches, module.phase.name
        self.bar = tqdm(total=steps, initial=trainer.global_step, desc=name, mininterval=1, unit="batch")

    def on_train_batch_end(self, *_: object) -> None:
        self.bar.update(1)

    def on_train_end(self, *_: object) -> None:
        self.bar.close()

    def on_validation_end(self, trainer: L.Trainer, module: PhaseModule) -> None:
        epoch, phase = trainer.current_epoch + 1 if trainer.state.fn == "fit" else 0, module.phase.name
        row = {"phase": phase, "epoch": epoch, "lr": trainer.optimizers[0].param_groups[0]["lr"] if epoch else 0}
        row |= {key: value.item() for key, value in trainer.callback_metrics.items()}
        old = module.run.history
        old = old[~((old["phase"] == phase) & (old["epoch"] >= epoch))]
        new = pd.concat([old, pd.DataFrame([row])]) if len(old) else pd.DataFrame([row])
        new = new.sort_values("phase", key=lambda names: names.map(module.recipe.phase_names.index), kind="stable")
        write_whole(module.run.dir / "history.csv", lambda p: new.to_csv(p, index=False, lineterminator="\n"))
        self.keep_explanations(module, f"{phase}/{epoch:03d}")
        if epoch:
            self.bar.set_postfix({key: f"{row[key]:.3f}" for key in ("train_loss", "val_loss", "val_acc")})

    @torch.no_grad()
    def keep_explanations(self, module: PhaseModule, name: str) -> None:
        if len(self.images) and module.recipe.method != "blackbox":
            out = module.model(module.run.inputs(self.images))
            maps = out.evidence if hasattr(out, "evidence") else out.explanation
            kept = module.run.evolution or {"images": self.images}
            write_tensors(module.run.dir / "evolution.safetensors", {**kept, name: maps.float()})


def computes_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether a training uses bf16; auto: where the device has instructions for it, without which it is slower."""
    if precision != "auto":
        return precision == "bf16"
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fit_phase(module: PhaseModule, fixed: Tensor, batches: DataLoader, measured: list[DataLoader]) -> None:
    """Fits one phase and leaves its best state in the model; last.safetensors: the final state. Stops by the loss.

    measured: loaders of training and of validation images; fixed: images (n, C, H, W) explained after each epoch.
    """
    run, phase, folder = module.run, module.phase, module.run.dir / "checkpoints"
    name, mode = f"val_{phase.checkpoint.replace('accuracy', 'acc')}", "min" if phase.checkpoint == "loss" else "max"
    kept, last = (folder / f"{phase.name}-{which}.ckpt" for which in ("best", "last"))
    best = BestAndLast(folder, kept.stem, monitor=name, mode=mode, save_last=True, enable_version_counter=False)
    best.CHECKPOINT_NAME_LAST = last.stem
    stop = [EarlyStopping("val_loss", patience=phase.patience)] if phase.patience else []
    trainer = L.Trainer(
        accelerator={"cuda": "gpu"}.get(run.device.type, "cpu"), devices=1, max_epochs=phase.epochs,
        precision="bf16-mixed" if computes_in_bf16(run.recipe.precision, run.device) else "32-true",
        deterministic="warn" if run.device.type == "cuda" else True,  # some poolings have no deterministic CUDA kernel
        default_root_dir=folder, plugins=[LightningEnvironment(), WholeFiles()],  # the same on a cluster as elsewhere
        logger=TensorBoardLogger(run.dir, "tensorboard", phase.name), callbacks=[Recorder(fixed), best, *stop],
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
            warnings.warn(f"{name}: undefined in every epoch of phase {phase.name!r}; the first is kept", stacklevel=2)
        module.load_state_dict(read_checkpoint(kept)["state_dict"])
