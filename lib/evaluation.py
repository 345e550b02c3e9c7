"""From a trained run to `maps.safetensors` and `metrics.json`: every metric of `lib.metrics` with its interval."""

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lib.explain import METHODS, explain
from lib.metrics import (
    activation_precision,
    activation_sensitivity,
    aopc,
    bootstrap_ci,
    classification_metrics,
    deletion_hits,
    negative_proportion,
    perturbation_curve,
    pointing_game,
    pompom,
    positive_proportion,
    topk_ceiling,
    topk_chance,
    topk_hits,
)
from lib.recipe import DEMO, Recipe
from lib.runs import Run, open_split, versions, write_json
from lib.training import load_or_train

Values = dict[str, Any]  # {"value", "low", "high", "used", "undefined"}, each a number or one per point of a curve


def interval(values: Tensor, groups: Sequence | None = None, resamples: int = 1000) -> Values:
    """Mean of values (N,) or of each column of (N, L), with its 95 % bootstrap interval; NaNs are left out, counted.

    A column without any value has value None.
    """
    columns = values.float().reshape(len(values), -1).T
    found = [bootstrap_ci(column, groups, resamples=resamples) for column in columns]
    parts = {"low": [f.low for f in found], "value": [f.point for f in found], "high": [f.high for f in found]}
    parts |= {"used": [f.used for f in found], "undefined": [f.dropped for f in found]}
    return {key: part[0] if values.ndim == 1 else part for key, part in parts.items()}


def auc(rows: Tensor) -> float:
    """Area under the ROC curve of rows (N, 1 + K) of label and probabilities, one against rest; NaN without a class."""
    labels, probabilities = rows[:, 0].long().numpy(), rows[:, 1:].numpy()
    if len(set(labels)) < probabilities.shape[1]:
        return float("nan")
    binary = probabilities.shape[1] == 2
    return float(roc_auc_score(labels, probabilities[:, 1] if binary else probabilities, multi_class="ovr"))


def explain_run(run: Run, batch: dict[str, Any], methods: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Maps (N, H, W) of each method for the label's class, raw and signed, of a batch from `Run.test_images`."""
    options = {"integrated_gradients": {"steps": run.recipe.ig_steps}, "random": {"seed": run.recipe.seed}}
    images = run.inputs(batch["image"])
    return {
        name: explain(name, run.model, images, batch["label"], **options.get(name, {}))
        for name in methods or run.recipe.methods
    }


def classification_summary(run: Run) -> Values:
    """`classification_metrics` on the whole test split; for three-phase models also of each earlier phase."""
    labels, probabilities = run.predict_split("test")
    patients = open_split(run.recipe, "test").frame["patient"].tolist()
    correct = (probabilities.argmax(1) == labels).float()
    result = {"count": len(labels), "accuracy_interval": interval(correct, patients, run.recipe.resamples)}
    rows = torch.cat([labels[:, None].double(), probabilities.double()], 1)
    area = bootstrap_ci(rows, patients, auc, resamples=run.recipe.resamples)
    result |= {"auc_interval": {"value": area.point, "low": area.low, "high": area.high}}
    result |= classification_metrics(labels, probabilities)
    for phase in run.recipe.phase_names[:-1]:
        earlier = classification_metrics(*run.predict_split("test", run.read_weights(phase)))
        result.setdefault("phases", {})[phase] = {key: earlier[key] for key in ("accuracy", "auc")}
    return result


def localisation_summary(run: Run, maps: Tensor, batch: dict[str, Any], method: str) -> Values:
    """Localisation metrics of one method's maps (N, H, W) on the images that have a mask."""
    masks, recipe = batch["mask"].bool(), run.recipe
    hits = topk_hits(maps, masks, recipe.topk, recipe.patch or run.description.patch)
    precision = hits.nan_to_num(0).cumsum(1) / hits.isfinite().cumsum(
        1
    )  # each image's share of hits among its K highest
    found = {
        "topk_precision": precision,
        "activation_precision": activation_precision(maps, masks),
        "activation_sensitivity": activation_sensitivity(maps, masks),
        "pointing_game": pointing_game(maps, masks),
    }
    if method == "explainer":
        found |= {"pompom": pompom(maps, masks), "mean_heatmap": maps.mean((1, 2))}
    if METHODS[method].signed:
        diseased = masks.flatten(1).any(1)
        for key, share in (("positive", positive_proportion(maps)), ("negative", negative_proportion(maps))):
            found[f"{key}_proportion_with_mask"] = share.where(diseased, torch.nan)
            found[f"{key}_proportion_without_mask"] = share.where(~diseased, torch.nan)
    return {key: interval(value, batch["patient"], recipe.resamples) for key, value in found.items()}


def faithfulness_summary(run: Run, maps: Tensor, batch: dict[str, Any]) -> Values:
    """Perturbation curve, AOPC and deletion curve of one method's maps; on images with a mask, else on all."""
    recipe = run.recipe
    chosen = batch["has_mask"] if batch["has_mask"].any() else torch.ones_like(batch["has_mask"])
    chosen = chosen.nonzero()[: recipe.faithfulness_count, 0]
    images, labels, maps = batch["image"][chosen], batch["label"][chosen], maps[chosen]
    groups = [batch["patient"][i] for i in chosen]
    steps = {"tile": recipe.aopc_tile, "steps": recipe.aopc_steps, "perturbation": recipe.perturbation}
    curve = perturbation_curve(run.predict, images, maps, labels, **steps, seed=recipe.seed)
    patch = recipe.patch or run.description.patch
    hits = deletion_hits(run.predict, images, maps, labels, recipe.deletion_steps, patch, recipe.deletion_fill)
    found = {"perturbation_curve": curve, "aopc": aopc(curve), "deletion_curve": hits}
    return {key: interval(v, groups, recipe.resamples) for key, v in found.items()}


def evaluate_run(run: Run) -> Values:
    """All metrics of a run whose maps are saved, written to its `metrics.json` and returned."""
    batch = run.test_images(run.recipe.explain_count)
    explanations = {
        method: localisation_summary(run, maps, batch, method) | faithfulness_summary(run, maps, batch)
        for method, maps in run.maps.items()
    }
    return write_metrics(run, classification_summary(run), explanations, localisation_reference(run, batch))


def localisation_reference(run: Run, batch: dict[str, Any]) -> Values:
    """What top-k precision is to be read against: the best that any map could reach, and chance."""
    masks, patch = batch["mask"].bool(), run.recipe.patch or run.description.patch
    return {"topk_ceiling": topk_ceiling(masks, run.recipe.topk, patch), "topk_chance": topk_chance(masks, patch)}


def write_metrics(run: Run, classification: Values, explanations: dict[str, Values], reference: Values) -> Values:
    """`metrics.json`: schema, recipe, versions and the three groups of numbers."""
    content = {"schema": 1, "recipe": run.recipe.model_dump(), "versions": versions(), "reference": reference}
    content |= {"classification": classification, "explanations": explanations}
    write_json(run.dir / "metrics.json", content)
    return run.metrics


def evaluate_demo(runs_dir: str) -> None:
    """Trains, explains and evaluates the demo recipe and its black-box twin."""
    demo = Recipe(runs_dir=runs_dir, **DEMO)
    for recipe in (demo.blackbox_twin(), demo):
        run = load_or_train(recipe)
        batch = run.test_images(recipe.explain_count)
        run.write_maps(explain_run(run, batch), batch["id"], batch["label"])
        evaluate_run(run)
