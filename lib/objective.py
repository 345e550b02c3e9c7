"""What a training phase minimises: `alpha * C + (1 - alpha) * L_expl` (Rio-Torto et al. 2020, eq. 1) or `C + l1 * mean
||A||_1 + l2 * mean ||A||_2` (Djoumessi & Berens 2025, eq. 3), the classification loss C being cross entropy in both."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC
from torchmetrics.utilities import dim_zero_cat

from lib.losses import contiguity, evidence_penalty, explanation_loss, focal_loss, grade_loss, kappa_loss, sparsity
from lib.optimisation import PHASE_PARTS, decayed, make_optimizer, make_schedule, parameter_groups
from lib.recipe import Phase, Recipe
from lib.runs import Run
from lib.selection import COUNTED, ConfusionScore


def classification_loss(recipe: Recipe, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """The recipe's criterion of logits (N, K), labels (N,) and class weights (K,) or None; a scalar."""
    if recipe.criterion == "cross_entropy":
        return F.cross_entropy(logits, labels, weights)
    if recipe.criterion == "focal":
        return focal_loss(logits, labels, recipe.focal_gamma, weights)
    if recipe.criterion == "kappa":
        return kappa_loss(logits, labels)
    return grade_loss(logits, labels, recipe.criterion, weights)


class AreaUnderCurve(MulticlassAUROC):
    """Area under the ROC curve, mean over the classes; NaN where one has no image, which torchmetrics counts as 0."""

    def compute(self) -> Tensor:
        found = torch.bincount(dim_zero_cat(self.target), minlength=self.num_classes)
        return super().compute() if found.all() else torch.full((), torch.nan, device=self.device)


class PhaseModule(L.LightningModule):
    """One training phase of one model: its losses, its optimiser, its measurements after each epoch."""

    def __init__(self, recipe: Recipe, phase: Phase, model: nn.Module, run: Run, class_weights: Tensor | None):
        super().__init__()
        self.recipe, self.phase, self.model, self.run = recipe, phase, model, run
        self.register_buffer("class_weights", class_weights, persistent=False)
        classes = len(run.description.classes)
        make = {"acc": lambda: MulticlassAccuracy(classes, average="micro"), "auc": lambda: AreaUnderCurve(classes)}
        if phase.checkpoint in COUNTED:
            make[phase.checkpoint] = lambda: ConfusionScore(phase.checkpoint, classes)
        self.scores = nn.ModuleDict({f"{s}_{k}": f() for s in ("train", "val") for k, f in make.items()})
        if phase.name in PHASE_PARTS:
            for part in ("classifier", "explainer"):
                getattr(model, part).requires_grad_(part in PHASE_PARTS[phase.name])

    def train(self, mode: bool = True) -> "PhaseModule":
        """A frozen part stays in eval mode: its batch statistics are frozen too."""
        super().train(mode)
        for part in {"classifier", "explainer"} - set(PHASE_PARTS.get(self.phase.name, ("classifier", "explainer"))):
            getattr(self.model, part).eval()
        return self

    @property
    def current_weights(self) -> Tensor | None:
        """Of the classes (K,), None: 1. Dynamic ones decay while training, and are 1 where losses are measured: those
        of different epochs are compared."""
        if self.recipe.class_weights != "dynamic":
            return self.class_weights
        if not self.training:
            return None
        return decayed(self.class_weights, self.recipe.class_weights_decay, self.current_epoch)

    def losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The total loss and its terms (scalars), and the logits (N, K)."""
        recipe, out = self.recipe, self.model(self.run.normalise(batch["image"]))
        logits = (out if isinstance(out, Tensor) else out.logits).float()
        ce = classification_loss(recipe, logits, batch["label"], self.current_weights)
        if hasattr(out, "evidence"):
            penalty = evidence_penalty(out.evidence.float(), recipe.l1, recipe.l2)
            return {"loss": ce + penalty, "classification": ce, "penalty": penalty}, logits
        if hasattr(out, "explanation"):
            z, mask = out.explanation.float(), batch["mask"][:, None].float() if recipe.hybrid else None
            explanation = explanation_loss(z, recipe.beta, mask, recipe.gamma, has_mask=batch["has_mask"])
            terms = {"sparsity": sparsity(z).mean(), "contiguity": contiguity(z).mean()}
            total = self.phase.alpha * ce + (1 - self.phase.alpha) * explanation
            return {"loss": total, "classification": ce, "explanation": explanation, **terms}, logits
        return {"loss": ce, "classification": ce}, logits

    def finite_losses(self, batch: dict[str, Tensor], index: int, split: str) -> tuple[dict[str, Tensor], Tensor]:
        """`losses`; FloatingPointError where the total is not finite, since no step after it could be trusted."""
        terms, logits = self.losses(batch)
        if not terms["loss"].isfinite():
            epoch = self.current_epoch + 1 if self.trainer.state.fn == "fit" else 0
            last = self.run.dir / "checkpoints" / f"{self.phase.name}-last.ckpt"
            kept = f"the last good state is kept in {last}" if last.is_file() else "the phase has no good state yet"
            got = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
            where = f"phase {self.phase.name!r}, epoch {epoch}, batch {index + 1} of {split}"
            said = f"{where}: expected a finite loss, got {got}; {kept}, nothing counts as trained"
            raise FloatingPointError(f"{self.recipe.name}: {said}")
        return terms, logits

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self.finite_losses(batch, index, "train")[0]["loss"]

    def validation_step(self, batch: dict[str, Tensor], index: int, dataloader_idx: int = 0) -> None:
        split, n = ("train", "val")[dataloader_idx], len(batch["label"])
        terms, logits = self.finite_losses(batch, index, split)
        named = {f"{split}_{name}": value for name, value in terms.items()}
        self.log_dict(named, on_epoch=True, batch_size=n, sync_dist=True, add_dataloader_idx=False)
        for name, score in self.scores.items():
            if name.startswith(split):
                score.update(logits.softmax(1), batch["label"])

    def on_validation_epoch_end(self) -> None:
        for name, score in self.scores.items():
            self.log(name, score.compute())
            score.reset()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["random_state"] = torch.get_rng_state()
        checkpoint["gpu_random_states"] = torch.cuda.get_rng_state_all()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        torch.set_rng_state(checkpoint["random_state"].cpu())
        for device, state in enumerate(checkpoint["gpu_random_states"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state.cpu(), device)

    def configure_optimizers(self) -> dict:
        groups = parameter_groups(self.model, self.phase)
        optimizer = make_optimizer(self.recipe, self.phase, groups)
        scheduler = make_schedule(self.recipe, self.phase, optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, **({"lr_scheduler": scheduler} if scheduler else {})}
