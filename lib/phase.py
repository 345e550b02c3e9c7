"""One training phase: what it minimises, how, and what is kept of each epoch.

With C the classification loss: `alpha C + (1 - alpha) L_expl` (Rio-Torto et al. 2020, eq. 1), `C + l1 mean ||A||_1 + l2
mean ||A||_2` (Djoumessi & Berens 2025, eq. 3).
"""

import logging
import math
import warnings
from functools import partial
from typing import Any

import lightning.pytorch as L
import pandas as pd
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from lib.losses import classification_loss, contiguity, evidence_penalty, explanation_loss, sparsity
from lib.metrics import classification_metrics
from lib.models.weights import intact, read_checkpoint
from lib.recipe import Phase, Recipe
from lib.run import Run
from lib.writing import write_tensors, write_whole

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
KNOWN = "does not have many workers|The number of training|isinstance.treespec|Checkpoint directory|in eval mode"
warnings.filterwarnings("ignore", f".*({KNOWN})")
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "adadelta": "Adadelta"}


def make_schedule(recipe: Recipe, phase: Phase, optimizer: Optimizer, steps: int) -> dict[str, Any]:
    """The learning-rate schedule in Lightning's form; `steps` are all optimiser steps of the phase."""
    warmup, decay, floor, patience = recipe.warmup_epochs, recipe.decay, recipe.lr_floor, recipe.plateau_patience
    rest, rates = max(phase.epochs - warmup, 1), [group["lr"] for group in optimizer.param_groups]
    floors = [floor / rate if rate else 0.0 for rate in rates]
    cosine = [lambda e, f=f: max(0.5 * (1 + math.cos(math.pi * min(e, rest) / rest)), f) for f in floors]
    rise = recipe.pct_start + 1e-9 * (recipe.pct_start * steps == 1)  # torch divides by 0 if one step is the rise
    cycle = {"pct_start": rise, "cycle_momentum": phase.optimizer != "adadelta"}
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
        self.seen: dict[str, list] = {"train": [], "val": []}  # probabilities and labels of each measured batch
        self.kept, self.last = (run.dir / f"checkpoints/{phase.name}-{x}" for x in ("best.safetensors", "last.ckpt"))
        rates = {"classifier": phase.lr, "explainer": phase.lr_explainer}
        trained = [part for part in rates if phase.name in (part, "joint")] or [""]  # "": the whole model
        self.rates = {model.get_submodule(part): rates.get(part, phase.lr) for part in trained}
        model.requires_grad_(False)
        nn.ModuleList(self.rates).requires_grad_(True)

    def train(self, mode: bool = True) -> "PhaseModule":
        """A frozen part stays in eval mode, its batch statistics too, but for what `frozen_batchnorm` says of the
        classifier while the Explainer learns."""
        super().train(mode)
        self.model.eval()
        nn.ModuleList(self.rates).train(mode)
        if self.phase.name == "explainer" and self.recipe.frozen_batchnorm == "train":
            self.model.classifier.train(mode)
        return self

    @property
    def current_weights(self) -> Tensor | None:
        """Of the classes (K,), None: 1; in measuring 1; dynamic ones are `1 + decay^epoch (w - 1)`."""
        if self.class_weights is None or not self.training:
            return None
        dynamic = self.recipe.class_weights == "dynamic"
        return 1 + self.recipe.class_weights_decay ** (dynamic * self.current_epoch) * (self.class_weights - 1)

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
            annotated = batch["has_mask"] if recipe.penalised == "annotated" else None
            explanation = explanation_loss(z, recipe.beta, mask, recipe.gamma, has_mask=annotated)
            terms = {"explanation": explanation, "sparsity": sparsity(z).mean(), "contiguity": contiguity(z).mean()}
            return {"loss": alpha * ce + (1 - alpha) * explanation, "classification": ce, **terms}, logits
        return {"loss": ce, "classification": ce}, logits

    def finite_losses(self, batch: dict[str, Tensor], index: int, split: str) -> tuple[dict[str, Tensor], Tensor]:
        """`losses`; FloatingPointError where the total is not finite, since no step after it could be trusted."""
        terms, logits = self.losses(batch)
        if not terms["loss"].isfinite():
            epoch = self.current_epoch + 1 if self.trainer.state.fn == "fit" else 0
            at = f"{self.recipe.name}: phase {self.phase.name!r}, epoch {epoch}, batch {index + 1} of {split}"
            got = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
            left = f"last good state is kept in {self.last}" if self.last.is_file() else "phase has no good state yet"
            raise FloatingPointError(f"{at}: expected a finite loss, got {got}; the {left}, nothing counts as trained")
        return terms, logits

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self.finite_losses(batch, index, "train")[0]["loss"]

    def validation_step(self, batch: dict[str, Tensor], index: int, dataloader_idx: int = 0) -> None:
        split = list(self.seen)[dataloader_idx]
        terms, logits = self.finite_losses(batch, index, split)
        named = {f"{split}_{name}": value for name, value in terms.items()}
        self.log_dict(named, batch_size=len(logits), add_dataloader_idx=False)
        self.seen[split].append((logits.softmax(1), batch["label"]))

    def on_validation_epoch_end(self) -> None:
        for split, seen in self.seen.items():
            probabilities, labels = map(torch.cat, zip(*seen, strict=True))
            found = classification_metrics(labels, probabilities)
            self.log_dict({f"{split}_{k}": found[k] for k in {"accuracy", "auc", self.phase.checkpoint} - {"loss"}})
            seen.clear()

    def judged(self) -> pd.Series:
        """What `checkpoint` is after each epoch of the phase, so that the lowest is the best."""
        rows, name = self.run.history.query("phase == @self.phase.name and epoch > 0"), self.phase.checkpoint
        return rows["val_loss"] if name == "loss" else -rows[f"val_{name}"]

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        own, *gpus = [state.cpu() for state in checkpoint["random_states"]]
        torch.set_rng_state(own)
        torch.cuda.set_rng_state_all(gpus[: torch.cuda.device_count()])

    def configure_optimizers(self, steps: int | None = None) -> dict[str, Any]:
        recipe, name = self.recipe, self.phase.optimizer
        groups = [{"params": part.parameters(), "lr": rate} for part, rate in self.rates.items()]
        own = {"momentum": recipe.momentum, "nesterov": recipe.nesterov} if name == "sgd" else {}
        optimizer = getattr(torch.optim, OPTIMIZERS[name])(groups, weight_decay=recipe.weight_decay, **own)
        made = make_schedule(recipe, self.phase, optimizer, steps or int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": made}


class Recorder(L.callbacks.Checkpoint):
    """After each epoch: a row of history.csv, explanations of the fixed images, the best state (the first of equal
    ones) and the last. As Lightning's `Checkpoint`, it comes after what stops a training, whose state is kept too."""

    def __init__(self, images: Tensor, bar: tqdm):
        self.images, self.bar = images, bar

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_end(self, trainer: L.Trainer, module: PhaseModule) -> None:
        run, phase = module.run, module.phase.name
        epoch = trainer.current_epoch + 1 if trainer.state.fn == "fit" else 0
        row = {"phase": phase, "epoch": epoch, "lr": trainer.optimizers[0].param_groups[0]["lr"] if epoch else 0}
        row |= {key: value.item() for key, value in trainer.callback_metrics.items()}
        kept = [old for old in run.history.to_dict("records") if old["phase"] != phase or old["epoch"] < epoch]
        rows = pd.DataFrame(sorted([*kept, row], key=lambda one: run.recipe.phase_names.index(one["phase"])))
        write_whole(run.dir / "history.csv", lambda path: rows.to_csv(path, index=False, lineterminator="\n"))
        if len(self.images) and run.recipe.method != "blackbox":
            out = module.model(run.inputs(self.images))
            maps = {f"{phase}/{epoch:03d}": (out.evidence if hasattr(out, "evidence") else out.explanation).float()}
            write_tensors(run.dir / "evolution.safetensors", (run.evolution or {"images": self.images}) | maps)
        self.bar.set_postfix({key: f"{row[key]:.3f}" for key in ("train_loss", "val_loss", "val_accuracy")})

    def on_train_epoch_end(self, trainer: L.Trainer, module: PhaseModule) -> None:
        judged = module.judged().fillna(math.inf)
        if judged.argmin() == len(judged) - 1:
            write_tensors(module.kept, module.model.state_dict())
        random_states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        content = {**trainer._checkpoint_connector.dump_checkpoint(), "random_states": random_states}
        write_whole(module.last, partial(torch.save, content))  # Lightning's own writer fills $TMPDIR first


def fit_phase(module: PhaseModule, fixed: Tensor, batches: DataLoader, measured: list[DataLoader]) -> None:
    """Fits one phase, leaves its best state in the model and its final one in last.safetensors. measured: loaders of
    training and of validation images; fixed: images (n, C, H, W) explained after each epoch."""
    run, phase, gpu = module.run, module.phase, module.run.device.type == "cuda"
    bf16 = run.recipe.precision == "bf16"
    if run.recipe.precision == "auto":  # where there are instructions for it, without which it is slower
        bf16 = torch.cuda.is_bf16_supported() if gpu else getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)()
    stop = L.callbacks.EarlyStopping("val_loss", run.recipe.min_improvement, phase.patience or math.inf)
    goes_on = intact(module.last) and intact(module.kept)
    with tqdm(total=phase.epochs * len(batches), desc=phase.name, mininterval=1, unit="batch") as bar:
        trainer = L.Trainer(
            accelerator="gpu" if gpu else "cpu", devices=1, max_epochs=phase.epochs,
            precision="bf16-mixed" if bf16 else "32-true", num_sanity_val_steps=0, log_every_n_steps=1,
            deterministic="warn" if gpu else True,  # some poolings have no deterministic CUDA kernel
            plugins=[LightningEnvironment()], default_root_dir=module.last.parent,  # the same on a cluster as elsewhere
            callbacks=[stop, Recorder(fixed, bar)], enable_progress_bar=False, enable_model_summary=False,
            logger=L.loggers.TensorBoardLogger(run.dir, "tensorboard", phase.name),
        )  # fmt: skip
        module.train()  # Lightning keeps the mode that it finds
        if not goes_on:  # epoch 0
            trainer.validate(module, measured, verbose=False)
        trainer.fit(module, batches, measured, ckpt_path=module.last if goes_on else None, weights_only=True)
    write_tensors(run.dir / "last.safetensors", module.model.state_dict())
    if phase.epochs:
        if (judged := module.judged()).isna().all():
            warnings.warn(f"{judged.name}: undefined in every epoch of {phase.name!r}; the first is kept", stacklevel=2)
        module.model.load_state_dict(read_checkpoint(module.kept))
