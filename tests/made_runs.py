"""Evaluated runs without a model: what `Results` reads, made by hand."""

from pathlib import Path
from types import SimpleNamespace

import torch

from lib.data import load_description
from lib.recipe import Recipe

METHOD = {"blackbox": "gradcam", "softcam": "evidence", "explainer_classifier": "explainer"}


def summary(value, spread=0.1, used=4):
    """A number, or a curve, with bounds `spread` away."""
    if isinstance(value, list):
        low, high = [v - spread for v in value], [v + spread for v in value]
        return {"value": value, "low": low, "high": high, "used": [used] * len(value)}
    return {"value": value, "low": value - spread, "high": value + spread, "used": used, "undefined": 0}


def made_run(
    name,
    method="blackbox",
    seed=0,
    values=None,
    explanations=None,
    patients=(),
    images="abcd",
    folder="runs",
    **changes,
):
    """A run of a recipe. values: 'METHOD/METRIC' -> list; explanations: method -> metric -> summary."""
    given = {"lr_explainer": [0.0, 0.1, 0.1], "alpha": [1.0, 0.5, 0.5]} if method == "explainer_classifier" else {}
    recipe = Recipe(name=name, method=method, seed=seed, **given, **changes)
    explanations = explanations or {METHOD[method]: {}}
    found = {key: torch.tensor(one, dtype=torch.float32) for key, one in (values or {}).items()}
    found.setdefault("images/has_mask", torch.ones(4, dtype=torch.bool))
    found.setdefault("images/label", torch.ones(4, dtype=torch.long))
    metrics = {
        "recipe": recipe.model_dump(), "explanations": explanations, "patients": list(patients) or [""] * 4,
        "images": list(images),
        "classification": {"count": 4, "accuracy_interval": summary(0.9), "auc_interval": summary(0.95)},
        "reference": {"topk_ceiling": [1.0, 0.9], "topk_chance": 0.2},
    }  # fmt: skip
    directory = Path(folder) / (f"{name}-seed{seed}" if seed else name)
    description = load_description(recipe.dataset)
    return SimpleNamespace(recipe=recipe, dir=directory, metrics=metrics, values=found, description=description)
