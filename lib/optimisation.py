"""What a training phase optimises, and how: parameter groups, optimisers, schedules, class weights, order of images."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import Sampler

from lib.recipe import Checkpoint, Phase, Recipe, Sampling


class ShuffledByEpoch(Sampler):
    """A random order, of the seed `seeds(epoch)` only: a continued training sees what an unbroken one would."""

    def __init__(self, count: int, seeds: Callable[[int], int]):
        self.count, self.seeds, self.epoch = count, seeds, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seeds(self.epoch))
        return iter(torch.randperm(self.count, generator=generator).tolist())

    def __len__(self) -> int:
        return self.count


class Rebalanced(Sampler):
    """As many images as there are, drawn with replacement; the draw depends on `seeds(epoch)` only, as above.

    An image of class y is drawn with probability `(1 - s) / N + s / (K n_y)`, K the classes present. The share s is
    class_balanced          1
    progressive             1 - decay^epoch, from instance- to class-balanced: Kang et al. 2020 (arXiv 1910.09217), with
                            a decay where they have epoch / epochs
    progressive_reversed    decay^epoch, from class- to instance-balanced, as SoftCAM's reference code has it
    Epochs count from 0 in every phase.
    """

    def __init__(self, labels: Tensor, seeds: Callable[[int], int], sampling: Sampling, decay: float):
        self.labels, self.seeds, self.epoch = labels, seeds, 0
        self.sampling, self.decay = sampling, decay

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def probabilities(self) -> Tensor:
        """Of each image in the current epoch: (N,), sum 1."""
        rest = self.decay**self.epoch
        share = {"class_balanced": 1.0, "progressive": 1 - rest, "progressive_reversed": rest}[self.sampling]
        counts = torch.bincount(self.labels).double()
        return (1 - share) / len(self) + share / ((counts > 0).sum() * counts[self.labels])

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seeds(self.epoch))
        return iter(torch.multinomial(self.probabilities, len(self), True, generator=generator).tolist())

    def __len__(self) -> int:
        return len(self.labels)


def make_sampler(recipe: Recipe, phase: str, labels: Tensor) -> Sampler:
    """The order of the training images with labels (N,) in a phase: each once ('instance'), or as `Rebalanced` draws
    them; another one in each phase and epoch."""
    seeds = partial(recipe.stream, "order", phase)
    if recipe.sampling == "instance":
        return ShuffledByEpoch(len(labels), seeds)
    return Rebalanced(labels, seeds, recipe.sampling, recipe.sampling_decay)


PHASE_PARTS = {"classifier": ("classifier",), "explainer": ("explainer",), "joint": ("classifier", "explainer")}


def parameter_groups(model: nn.Module, phase: Phase) -> list[dict]:
    """What a phase optimises, with its learning rates: all, or Classifier and Explainer each with its own."""
    if phase.name not in PHASE_PARTS:
        return [{"params": list(model.parameters()), "lr": phase.lr}]
    rates = {"classifier": phase.lr, "explainer": phase.lr_explainer}
    parts = PHASE_PARTS[phase.name]
    return [{"params": list(getattr(model, part).parameters()), "lr": rates[part]} for part in parts]


def make_optimizer(recipe: Recipe, phase: Phase, groups: list[dict]) -> torch.optim.Optimizer:
    """The optimiser of a phase; momentum and nesterov concern SGD only."""
    if phase.optimizer == "sgd":
        extra = {"momentum": recipe.momentum, "nesterov": recipe.nesterov, "weight_decay": recipe.weight_decay}
        return torch.optim.SGD(groups, **extra)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adadelta": torch.optim.Adadelta}
    return kinds[phase.optimizer](groups, weight_decay=recipe.weight_decay)


def make_schedule(recipe: Recipe, phase: Phase, optimizer: torch.optim.Optimizer, steps: int) -> dict | None:
    """The learning-rate schedule in Lightning's form; `steps` are all optimiser steps of the phase."""
    decay, epochs, warmup = recipe.decay, phase.epochs, recipe.warmup_epochs
    if phase.schedule == "onecycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        one = lr_scheduler.OneCycleLR(
            optimizer, rates, max(steps, 1), pct_start=recipe.pct_start, cycle_momentum=phase.optimizer != "adadelta"
        )
        return {"scheduler": one, "interval": "step"}
    if phase.schedule == "plateau":
        plateau = lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=decay, patience=recipe.plateau_patience, min_lr=recipe.lr_floor
        )
        return {"scheduler": plateau, "monitor": "val_loss"}
    rest = max(epochs - warmup, 1)
    floors = [recipe.lr_floor / group["lr"] if group["lr"] else 0.0 for group in optimizer.param_groups]
    cosine = [lambda e, f=f: max(0.5 * (1 + math.cos(math.pi * min(e, rest) / rest)), f) for f in floors]
    after = {
        "none": lambda: lr_scheduler.LambdaLR(optimizer, lambda e: 1.0),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, rest),
        "clipped_cosine": lambda: lr_scheduler.LambdaLR(optimizer, cosine),
        "multistep": lambda: lr_scheduler.MultiStepLR(optimizer, recipe.milestones, decay),
        "exponential": lambda: lr_scheduler.ExponentialLR(optimizer, decay),
    }[phase.schedule]()
    if warmup:
        ramp = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup)
        after = lr_scheduler.SequentialLR(optimizer, [ramp, after], [warmup])
    return {"scheduler": after}


def class_weights(recipe: Recipe, labels: Tensor, classes: int) -> Tensor | None:
    """None, N / (K n_k) per class ('balanced', and 'dynamic' at its start), or the recipe's list.

    ValueError if the length of the list is not K.
    """
    if recipe.class_weights in ("balanced", "dynamic"):
        return len(labels) / (classes * torch.bincount(labels, minlength=classes).clamp(min=1)).float()
    if recipe.class_weights is not None and len(recipe.class_weights) != classes:
        raise ValueError(f"class_weights: expected {classes} values, got {recipe.class_weights}")
    return None if recipe.class_weights is None else torch.tensor(recipe.class_weights)


def decayed(weights: Tensor, decay: float, epoch: int) -> Tensor:
    """`1 + decay^epoch (weights - 1)`: from `weights` in epoch 0 towards 1, as SoftCAM's reference code decays them."""
    return 1 + decay**epoch * (weights - 1)


def check_classes(checkpoint: Checkpoint, labels: Tensor, classes: list[str]) -> None:
    """ValueError if the validation images, of labels (N,), lack a class that the score needs."""
    missing = sorted(set(range(len(classes))) - set(labels.tolist()))
    if missing and checkpoint not in ("loss", "accuracy"):
        names = ", ".join(repr(classes[k]) for k in missing)
        raise ValueError(f"checkpoint: {checkpoint!r} needs validation images of every class, there is none of {names}")
