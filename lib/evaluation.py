"""From a trained run to `maps.safetensors`, `metrics.json` and `values.safetensors`: every metric of `lib.metrics`.

metrics.json         means with 95 % bootstrap intervals, over patients where they are known, else over images
values.safetensors   METHOD/METRIC -> (N,), the same metrics image by image, NaN where undefined: for paired comparison
grid.safetensors     METHOD -> (tiles * perturbations, steps + 1), mean perturbation curves (recipes with `aopc_grid`)
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib import metrics as m
from lib.measures import (
    ON_PERTURBED,
    Values,
    explainer_of,
    faithfulness,
    grid_pointing_game,
    localisation,
    patch_of,
    perturbation_grids,
    perturbed,
    properties,
    removal,
    sanity_summary,
)
from lib.recipe import PROJECT, Measure, Recipe
from lib.runs import Run, open_split, versions
from lib.training import load_or_train
from lib.writing import write_json, write_tensors

Summary = dict[str, Any]  # {"value", "low", "high", "used", "undefined"}, each a number or one per point of a curve


def interval(values: Tensor, groups: Sequence | None = None, resamples: int = 1000) -> Summary:
    """Mean of values (N,) or of each column of (N, L), with its 95 % bootstrap interval; NaNs are left out, counted.

    A column without any value has value None.
    """
    found = m.bootstrap_means(values.double().reshape(len(values), -1), groups, resamples=resamples)
    parts = {key: part.tolist() for key, part in found._asdict().items()}
    return {key: part[0] if values.ndim == 1 else part for key, part in parts.items()}


def auc(rows: Tensor) -> float:
    """Area under the ROC curve of rows (N, 1 + K) of label and probabilities, one against rest; NaN without a class."""
    from sklearn.metrics import roc_auc_score

    labels, probabilities = rows[:, 0].long().numpy(), rows[:, 1:].numpy()
    if len(set(labels)) < probabilities.shape[1]:
        return float("nan")
    binary = probabilities.shape[1] == 2
    return float(roc_auc_score(labels, probabilities[:, 1] if binary else probabilities, multi_class="ovr"))


def explain_run(run: Run, batch: dict[str, Any], methods: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Maps (N, H, W) of each method for the label's class, raw and signed, of a batch from `Run.images`.

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


def classification_summary(run: Run) -> Summary:
    """`classification_metrics` on the whole evaluated split; for three-phase models also of each earlier phase."""
    labels, probabilities = run.predictions()
    patients = open_split(run.recipe, "evaluated").frame["patient"].tolist()
    correct = (probabilities.argmax(1) == labels).float()
    result = {"count": len(labels), "accuracy_interval": interval(correct, patients, run.recipe.resamples)}
    rows = torch.cat([labels[:, None].double(), probabilities.double()], 1)
    area = m.bootstrap_ci(rows, patients, auc, resamples=run.recipe.resamples)
    result |= {"auc_interval": {"value": area.point, "low": area.low, "high": area.high}}
    result |= m.classification_metrics(labels, probabilities)
    for phase in run.earlier_phases:
        earlier = m.classification_metrics(*run.predictions(phase))
        result.setdefault("phases", {})[phase] = {key: earlier[key] for key in ("accuracy", "auc")}
    return result


def correctness(run: Run) -> Values:
    """Whether each evaluated image is classified correctly; for three-phase models also after each earlier phase."""
    names = {"correct": "best", **{f"correct_{phase}": phase for phase in run.earlier_phases}}
    predicted = {key: run.predictions(name) for key, name in names.items()}
    return {key: (probabilities.argmax(1) == labels).float() for key, (labels, probabilities) in predicted.items()}


def explanation_summary(run: Run, values: Values, batch: dict[str, Any]) -> Summary:
    """Means with intervals; of the perturbation metrics over the images that were perturbed."""
    chosen, found = perturbed(run, batch), {}
    for key, rows in values.items():
        kept = chosen if key.removeprefix("common_") in ON_PERTURBED else torch.arange(len(rows))
        found[key] = interval(rows[kept], [batch["patient"][i] for i in kept], run.recipe.resamples)
    return found


def summaries(run: Run, values: dict[str, Values], batch: dict[str, Any]) -> dict[str, Summary]:
    """method -> `explanation_summary` of its values."""
    return {method: explanation_summary(run, found, batch) for method, found in values.items()}


def measured(run: Run, maps: dict[str, Tensor], batch: dict[str, Any], what: Measure) -> dict[str, Values]:
    """method -> a group of metrics of its maps, image by image; nothing where the recipe does not `measure` it."""
    groups = {"localisation": localisation, "removal": removal, "faithfulness": faithfulness, "properties": properties}
    group = groups[what]
    return {method: group(run, m, batch, method) for method, m in maps.items()} if what in run.recipe.measure else {}


def explain_and_keep(run: Run) -> None:
    """All that 03_explain keeps of a run: the maps of the recipe's methods."""
    batch = run.images(run.recipe.explain_count)
    run.write_maps(explain_run(run, batch), batch)


def evaluate_run(run: Run) -> Summary:
    """All that 04_evaluate measures of a run whose maps are saved, written to its folder and returned."""
    maps, batch = run.explained()
    values: dict[str, Values] = {method: {} for method in maps}
    for group in run.recipe.measure:
        for method, found in measured(run, maps, batch, group).items():
            values[method] |= found
    perturbation_grids(run, maps, batch)
    sanity = sanity_summary(run, batch) if run.recipe.sanity_count else {}
    return write_metrics(run, classification_summary(run), values, batch, sanity=sanity)


def reference(run: Run, batch: dict[str, Any]) -> Summary:
    """What top-k precision is to be read against: the best that any map could reach, and chance."""
    masks, patch = batch["mask"].bool(), patch_of(run)
    return {"topk_ceiling": m.topk_ceiling(masks, run.recipe.topk, patch), "topk_chance": m.topk_chance(masks, patch)}


def write_metrics(
    run: Run, classification: Summary, values: dict[str, Values], batch: dict[str, Any], **more: Any
) -> Summary:
    """`metrics.json` (schema, recipe, versions, the groups of numbers, `more`) and `values.safetensors`."""
    kept = {f"{method}/{key}": v.float() for method, found in values.items() for key, v in found.items() if v.ndim == 1}
    ends = {"top1": ("topk_precision", 0), "aopc": ("aopc", -1), "aopc_lerf": ("aopc_lerf", -1),
            "common_aopc": ("common_aopc", -1)}  # fmt: skip
    kept |= {f"{method}/{name}": found[key][:, at] for method, found in values.items()
             for name, (key, at) in ends.items() if key in found}  # fmt: skip
    kept |= {f"classification/{key}": found for key, found in correctness(run).items()}
    kept |= {"images/has_mask": batch["has_mask"], "images/label": batch["label"]}
    frame = open_split(run.recipe, "evaluated").frame
    content = {"schema": 3, "recipe": run.recipe.model_dump(), "versions": versions()}
    content |= {"reference": reference(run, batch), "grid_pointing_game": grid_pointing_game(run, batch)}
    content |= {"classification": classification, "patients": frame["patient"].tolist()}
    content |= {"images": frame["image"].tolist()} | more
    content["explanations"] = summaries(run, values, batch)
    with run.writing():
        write_tensors(run.dir / "values.safetensors", kept)
        write_json(run.dir / "metrics.json", content)
    return run.metrics


def evaluate_demo(runs_dir: str) -> None:
    """Trains, explains and evaluates the demo recipe and its black-box twin."""
    demo = Recipe.load(PROJECT / "notebooks/recipes/demo.yaml", {"runs_dir": runs_dir})
    for recipe in (demo.blackbox_twin(), demo):
        run = load_or_train(recipe)
        explain_and_keep(run)
        evaluate_run(run)
