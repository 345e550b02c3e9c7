"""Every metric of `lib.metrics` on the maps of a run, image by image: what 04_evaluate shows and keeps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lib import metrics as m
from lib import sanity
from lib.data import load_description
from lib.explain import METHODS, explain
from lib.metrics.perturbation import Predict, tile_count
from lib.plots import MAIN
from lib.runs import Run
from lib.training import blackbox_twin
from lib.writing import write_tensors

Values = dict[str, Tensor]  # metric -> (n,) or, for curves, (n, L): one row per image
Batch = dict[str, Any]  # as `Run.images` gives it
ON_PERTURBED = {  # metrics that are measured on the images of `perturbed` alone
    "perturbation_curve", "aopc", "deletion_curve", "deletion_area", "road", "lerf_curve", "aopc_lerf",
    "insertion_curve", "insertion_area", "sufficiency", "faithfulness_correlation", "stability", "flip_equivariance",
    "completeness",
}  # fmt: skip
ROAD_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
POMPOM_EPS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.5)


def explainer_of(run: Run, method: str, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """images (N, C, H, W) in [0, 1] -> maps (N, H, W) of the classes `labels` (N,), with the run's options."""
    options = {
        "integrated_gradients": {"steps": run.recipe.ig_steps},
        "random": {"seed": run.recipe.stream("random map")},
    }
    return lambda images: explain(method, run.model, run.inputs(images), labels, **options.get(method, {}))


def patch_of(run: Run) -> int:
    """Side in pixels of the localisation patches: the recipe's, else that of the data set evaluated on, which is in
    pixels of its files, scaled as the recipe scales them."""
    if run.recipe.patch:
        return run.recipe.patch
    card, size = load_description(run.recipe.test_dataset or run.recipe.dataset), run.recipe.image_size
    return max(1, round(card.patch * size / min(card.image_size))) if size else card.patch


def localisation(run: Run, maps: Tensor, batch: dict[str, Any], method: str) -> Values:
    """Localisation metrics of one method's maps (N, H, W); NaN on images without a mask."""
    masks, k, patch = batch["mask"].bool(), run.recipe.topk, patch_of(run)
    if "correct" not in batch:
        batch["correct"] = run.predict(batch["image"]).argmax(1) == batch["label"]

    def precision(stride: int | None = None) -> Tensor:
        """(N, k): share of hits among each image's K highest patches."""
        hits = m.topk_hits(maps, masks, k, patch, stride=stride)
        return hits.nan_to_num(0).cumsum(1) / hits.isfinite().cumsum(1)

    side_by_side = precision()
    found = {
        "topk_precision": side_by_side,
        "topk_precision_true_positives": side_by_side.where(batch["correct"][:, None], torch.nan),
        "topk_precision_overlapping": precision(max(1, patch // 2)),
        "activation_precision": m.activation_precision(maps, masks),
        "activation_sensitivity": m.activation_sensitivity(maps, masks),
        "weighting_game": m.weighting_game(maps, masks),
        "pointing_game": m.pointing_game(maps, masks),
        "relevance_rank_accuracy": m.relevance_rank_accuracy(maps, masks),
        "best_iou": m.best_iou(maps, masks),
        "shared_iou": m.best_shared_iou(maps, masks).iou,
    }
    if method == "explainer":
        found |= {"pompom": m.pompom(maps, masks), "pompom_curve": m.pompom_curve(maps, masks, POMPOM_EPS)}
        found["mean_heatmap"] = maps.mean((1, 2))
    return found


def perturbed(run: Run, batch: dict[str, Any]) -> Tensor:
    """Indices of the images that are perturbed: `faithfulness_count` of those with a mask; without any, of all."""
    chosen = batch["has_mask"] if batch["has_mask"].any() else torch.ones_like(batch["has_mask"])
    return chosen.nonzero()[: run.recipe.faithfulness_count, 0]


def removed(predict: Predict, run: Run, maps: Tensor, images: Tensor, labels: Tensor) -> Values:
    """What a classifier predicts as the highest tiles and patches of maps (n, H, W) of images (n, C, H, W) go."""
    recipe, given = run.recipe, (predict, images, maps, labels)
    morf = m.perturbation_curve(
        *given, recipe.aopc_tile, recipe.aopc_steps, recipe.perturbation, seed=recipe.stream("perturbation")
    )
    deletion = m.deletion_hits(*given, recipe.deletion_steps, patch_of(run), recipe.deletion_fill)
    return {
        "perturbation_curve": morf,
        "aopc": m.aopc(morf),
        "deletion_curve": deletion,
        "deletion_area": m.area_under_curve(deletion),
    }


def kept(run: Run, maps: Tensor, images: Tensor, labels: Tensor) -> Values:
    """What the run's model predicts as the lowest tiles of the maps go, the highest come back, or they alone stay."""
    recipe, given = run.recipe, (run.predict, images, maps, labels)
    tile, fill = recipe.aopc_tile, "black" if recipe.deletion_fill == "zero" else recipe.deletion_fill
    lerf = m.perturbation_curve(
        *given, tile, recipe.aopc_steps, recipe.perturbation, seed=recipe.stream("perturbation"), order="lerf"
    )
    insertion = m.insertion_curve(*given, tile=patch_of(run), steps=recipe.deletion_steps, start=fill)
    subset = max(1, min(8, tile_count(images, tile) // 4))
    return {
        "lerf_curve": lerf,
        "aopc_lerf": m.aopc(lerf),
        "insertion_curve": insertion,
        "insertion_area": m.area_under_curve(insertion),
        "sufficiency": m.sufficiency(*given, tile=tile, fill=fill),
        "faithfulness_correlation": m.faithfulness_correlation(
            *given, subset, 30, tile, fill, seed=recipe.stream("correlation")
        ),
    }


def removal(run: Run, maps: Tensor, batch: dict[str, Any], method: str) -> Values:
    """The part of `faithfulness` that `removed` measures, on the run's own model alone."""
    chosen = perturbed(run, batch)
    found = removed(run.predict, run, maps[chosen], batch["image"][chosen], batch["label"][chosen])
    return {key: spread(value.float(), chosen, len(maps)) for key, value in found.items()}


def faithfulness(run: Run, maps: Tensor, batch: dict[str, Any], method: str) -> Values:
    """Faithfulness metrics of one method's maps (N, H, W); NaN on images that are not perturbed.

    What is removed from an in-model map is also judged by the black-box twin (`common_...`), the model that all maps
    have in common; the images of ROAD are imputed once for both.
    """
    chosen = perturbed(run, batch)
    images, shown, labels = batch["image"][chosen], maps[chosen], batch["label"][chosen]
    in_model = METHODS[method].family == "in-model" and run.recipe.method != "blackbox"
    judges = [run.predict, *([blackbox_twin(run.recipe).predict] if in_model else [])]
    roads = m.road(judges, images, shown, labels, shares=ROAD_SHARES, seed=run.recipe.stream("road"))
    found, *others = [
        removed(predict, run, shown, images, labels) | {"road": road}
        for predict, road in zip(judges, roads, strict=True)
    ]
    found |= kept(run, shown, images, labels)
    for common in others:
        found |= {f"common_{key}": value for key, value in common.items()}
    return {key: spread(value.float(), chosen, len(maps)) for key, value in found.items()}


def properties(run: Run, maps: Tensor, batch: dict[str, Any], method: str) -> Values:
    """Sparsity of all maps, sign of SoftCAM's evidence for the disease (class 1 of two), on each image; stability,
    equivariance and completeness on the images that are perturbed, NaN elsewhere."""
    chosen = perturbed(run, batch)
    found = {"gini": m.gini(maps)}
    if method == "evidence" and len(run.description.classes) == 2:
        disease, diseased = native_evidence(run, batch)[:, 1], batch["label"] == 1
        found["disease_positive_proportion"] = m.positive_proportion(disease)
        shares = m.local_to_global_consistency(disease, diseased)
        found |= {"positive_share_diseased": shares.positive, "negative_share_healthy": shares.negative}
    images, again = batch["image"][chosen], explainer_of(run, method, batch["label"][chosen])
    part = {
        "stability": m.stability(again, images, maps[chosen], samples=2, seed=run.recipe.stream("stability")),
        "flip_equivariance": m.flip_equivariance(again, images, maps[chosen]),
    }
    if method in ("evidence", "integrated_gradients", "lrp"):
        given = {key: batch[key][chosen] for key in ("image", "label")}
        part["completeness"] = completeness(run, method, maps[chosen], given)
    return found | {key: spread(value, chosen, len(maps)) for key, value in part.items()}


@torch.no_grad()
def native_evidence(run: Run, batch: dict[str, Any]) -> Tensor:
    """(N, K, h, w): SoftCAM's evidence of every class at its own resolution."""
    return torch.cat([run.model(part).evidence.float().cpu() for part in run.inputs(batch["image"]).split(128)])


@torch.no_grad()
def completeness(run: Run, method: str, maps: Tensor, batch: dict[str, Any]) -> Tensor:
    """(N,): relative error of the sum of a map against what it should sum to, NaN where that is 0; SoftCAM's at its
    native resolution, an Explainer-Classifier's with the classifier's path at the heatmap z of the image."""
    images, rows, model = run.inputs(batch["image"]), torch.arange(len(maps)), run.model
    gated = hasattr(model, "explainer")

    def logits_at(share: float) -> Tensor:
        """Logits (N, K) of the images times `share`; where the model has a heatmap z, at that of the images."""
        parts = images.split(128)
        outputs = [model.classifier(x * share, model.explainer(x)) if gated else model(x * share) for x in parts]
        return torch.cat([getattr(output, "logits", output) for output in outputs]).float().cpu()

    logits = logits_at(1)
    if method == "evidence":
        evidence = native_evidence(run, batch)[rows, batch["label"]]
        maps = evidence / evidence[0].numel()
    elif method == "integrated_gradients":
        logits = logits - logits_at(0)
    target = logits[rows, batch["label"]]
    return (m.completeness(maps, target) / target.abs()).masked_fill(target == 0, torch.nan)


def perturbation_grids(run: Run, maps: dict[str, Tensor], batch: dict[str, Any], count: int = 6) -> dict[str, Values]:
    """method -> 'tile perturbation' -> mean curve (steps + 1,) of the first `count` perturbed images; kept on disk.

    Of the methods that are drawn: the main ones, and in-model ones. Nothing where the recipe does not ask for it.
    """
    if not run.recipe.aopc_grid or run.recipe.seed:
        (run.dir / "grid.safetensors").unlink(missing_ok=True)
        return {}
    chosen = perturbed(run, batch)[:count]
    given = batch["image"][chosen], batch["label"][chosen]
    grids = {}
    drawn = {name: maps[name] for name in maps if name in MAIN or METHODS[name].family == "in-model"}
    for method, values in drawn.items():
        found = m.perturbation_grid(
            run.predict, given[0], values[chosen], given[1], seed=run.recipe.stream("perturbation")
        )
        grids[method] = {f"{tile} {kind}": curve.nanmean(0) for (tile, kind), curve in found.items()}
    kept = {f"{method}/{cell}": curve for method, found in grids.items() for cell, curve in found.items()}
    with run.writing():
        write_tensors(run.dir / "grid.safetensors", kept)
    return grids


def sanity_summary(run: Run, batch: Batch) -> dict[str, Any]:
    """method -> 'cascading' and 'independent' randomisation, layer -> mean similarity; 'unchanged' marks a failure."""
    chosen = perturbed(run, batch)[: run.recipe.sanity_count]
    images, labels = run.inputs(batch["image"][chosen]), batch["label"][chosen]
    checked = {}
    for method in run.maps:
        options = {"steps": run.recipe.ig_steps} if method == "integrated_gradients" else {}
        made = partial(explain, method, images=images, targets=labels, **options)
        seed = run.recipe.stream("sanity")
        found = {mode: sanity.parameter_randomisation(made, run.model, mode, seed=seed) for mode in sanity.MODES}
        checked[method] = {
            mode: {layer: {key: float(v.nanmean()) for key, v in scores.items()} for layer, scores in by.items()}
            for mode, by in found.items()
        }
        checked[method]["unchanged"] = sanity.unchanged(found["cascading"])
    return checked


def grid_pointing_game(run: Run, batch: Batch) -> float | None:
    """SoftCAM's grid pointing game on the evidence for the disease (class 1 of two); None for other models."""
    sick = batch["label"] == 1
    if run.recipe.method != "softcam" or len(run.description.classes) != 2 or not sick.any() or (~sick).sum() < 3:
        return None
    disease = native_evidence(run, batch)[:, 1]
    return m.grid_pointing_game(disease[sick], disease[~sick], seed=run.recipe.stream("grid"))


def spread(values: Tensor, chosen: Tensor, count: int) -> Tensor:
    """values (n, ...) of the chosen images in (count, ...), NaN elsewhere."""
    return values.new_full((count, *values.shape[1:]), torch.nan).index_copy(0, chosen, values)
