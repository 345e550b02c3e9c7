"""The maps of a run: every explanation method of its recipe on the evaluated images."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lib.data import load_description
from lib.explain import METHODS, explain
from lib.run import Run

Batch = dict[str, Any]  # as `Run.images` gives it
Maps = dict[str, Tensor]  # method -> (N, H, W)


def part_of(batch: Batch, chosen: Tensor) -> Batch:
    """The images `chosen` (indices) of a batch."""
    return {k: v[chosen] if isinstance(v, Tensor) else [v[i] for i in chosen] for k, v in batch.items()}


def explainer_of(run: Run, method: str, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """images (N, C, H, W) in [0, 1] -> maps (N, H, W) of the classes `labels` (N,), with the run's options."""
    model = run.model if METHODS[method].needs_grad else run.judge
    steps, seed = {"steps": run.recipe.ig_steps}, {"seed": run.recipe.stream("random map")}
    options = {"integrated_gradients": steps, "random": seed}.get(method, {})
    return lambda images: explain(method, model, run.inputs(images), labels, **options)


def explain_run(run: Run, batch: Batch, methods: Sequence[str] | None = None) -> Maps:
    """Maps of each method for the label's class, raw and signed, of a batch from `Run.images`.

    Of the usual methods (none named here or in the recipe) those that cannot explain the model are left out with a
    warning that says why; a method that was named raises its TypeError.
    """
    maps = {}
    for name in methods or run.recipe.methods:
        try:
            maps[name] = explainer_of(run, name, batch["label"])(batch["image"])
        except TypeError as error:
            if methods or run.recipe.explain_methods:
                raise
            warnings.warn(f"{run.recipe.architecture}: without {error}", stacklevel=2)
    return maps


def patch_of(run: Run) -> int:
    """Side in pixels of the localisation patches: the recipe's, else that of the data set evaluated on, which is in
    pixels of its files, scaled as the recipe scales them."""
    if run.recipe.patch:
        return run.recipe.patch
    card, size = load_description(run.recipe.test_dataset or run.recipe.dataset), run.recipe.image_size
    return max(1, round(card.patch * size / min(card.image_size))) if size else card.patch


def perturbed(run: Run, batch: Batch) -> Tensor:
    """Indices of the images that are perturbed: `faithfulness_count` of those with a mask; without any, of all."""
    chosen = batch["has_mask"] if batch["has_mask"].any() else torch.ones_like(batch["has_mask"])
    return chosen.nonzero()[: run.recipe.faithfulness_count, 0]


def explain_and_keep(run: Run) -> None:
    """All that 03_explain keeps of a run: the maps of the recipe's methods."""
    batch = run.images(run.recipe.explain_count)
    run.write_maps(explain_run(run, batch), batch)
