"""From the maps of a run to its table (columns: lib.table): every metric of `lib.metrics`, a row per image and number.
`evaluate` measures all that a recipe asks for, 04_evaluate one part after the other."""

from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from lib import metrics as m
from lib import sanity, table
from lib.explain import METHODS, explain, upsample
from lib.maps import Batch, Maps, explain_run, explainer_of, part_of, patch_of, perturbed
from lib.metrics.perturbation import Predict, Remembering
from lib.run import Run, open_split

Values = dict[str, Tensor | tuple[Tensor, Sequence[float]]]  # as `lib.table.rows` takes them
ROAD_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
KEPT_SHARES = (0.05, 0.1, 0.2, 0.5)
LOCALISATION = "activation_sensitivity", "weighting_game", "pointing_game", "relevance_rank_accuracy", "best_iou"
CHOICE = {"topk_precision": 1, "activation_precision": 0, "deletion_area": 0, "pompom": 0}  # and aopc: metric -> k
POMPOM_EPS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.5)


def rows(
    run: Run, values: Values, batch: Batch | None = None, method: str = "classification", **more: str
) -> pd.DataFrame:
    """`lib.table.rows` of the images of a batch, or without one of all images."""
    given = {"images": batch["id"], "patients": batch["patient"]} if batch else {}
    split = "test" if run.recipe.test_dataset else run.recipe.split
    return table.rows(values, **given, method=method, split=split, **more)


def classification(run: Run) -> pd.DataFrame:
    """Is the model right? On the whole evaluated split: `correct` (and after each earlier phase), `label`,
    `probability` by class; the scalars of `classification_metrics`."""
    frame, (labels, probabilities) = open_split(run.recipe, "evaluated").frame, run.predictions()
    batch = {"id": frame["image"].tolist(), "patient": frame["patient"].tolist()}
    images = {"label": labels, "probability": probabilities, "correct": probabilities.argmax(1) == labels}
    scores = m.classification_metrics(labels, probabilities)
    scalars = {key: value for key, value in scores.items() if isinstance(value, float)}
    for phase in run.earlier_phases:
        _, earlier = run.predictions(phase)
        images[f"correct_{phase}"] = earlier.argmax(1) == labels
        scalars[f"auc_{phase}"] = m.classification_metrics(labels, earlier)["auc"]
    return pd.concat([rows(run, images, batch), rows(run, scalars)])


def localisation(run: Run, maps: Maps, batch: Batch) -> pd.DataFrame:
    """Does the map point at the annotated region? NaN on images without one; what top-k precision is read against. The
    precisions also of the map as it is at the resolution of the evidence."""
    masks, k, patch = batch["mask"].bool(), run.recipe.topk, patch_of(run)
    best = {"topk_ceiling": (m.topk_ceiling(masks, k, patch), range(1, k + 1))}
    found = [rows(run, best | {"topk_chance": m.topk_chance(masks, patch)}, method="masks")]
    for method, one in maps.items():
        for resolution, read in {"image": one, "evidence": at_evidence(run, one)}.items():
            topk = precision(m.topk_hits(read, masks, k, patch, run.recipe.topk_threshold)), range(1, k + 1)
            both: Values = {"topk_precision": topk, "activation_precision": m.activation_precision(read, masks)}
            found.append(rows(run, both, batch, method, resolution=resolution))
        values: Values = {name: getattr(m, name)(one, masks) for name in LOCALISATION}
        values["pompom"] = m.pompom(one.clamp(min=0), masks)
        if method == "explainer":
            values |= {"mean_heatmap": one.mean((1, 2))}
            values["pompom_curve"] = m.pompom_curve(one, masks, POMPOM_EPS), POMPOM_EPS
        found.append(rows(run, values, batch, method))
    return pd.concat(found, ignore_index=True)


def at_evidence(run: Run, maps: Tensor) -> Tensor:
    """Maps (N, H, W) made as small as the model's last features, by antialiased bicubic interpolation, and large again:
    SoftCAM's protocol, in which every map is read at the resolution of the evidence (arXiv 2505.17748)."""
    found, size = [], maps.shape[1:]
    with run.model.last_features.register_forward_hook(lambda *given: found.append(given[-1].shape[2:])):
        run.predict(torch.zeros(1, run.description.channels, *size), run.model)
    small = F.interpolate(maps[:, None], found[0], mode="bicubic", antialias=True)[:, 0]
    return upsample(small, size)


def fill_of(run: Run) -> str | tuple[float, ...]:
    """What deleted pixels become: a name, or the data set's mean per channel."""
    return tuple(run.description.mean) if run.recipe.deletion_fill == "dataset" else run.recipe.deletion_fill


def precision(hits: Tensor) -> Tensor:
    """(N, k): share of hits among each image's 1..k highest patches, of `topk_hits`."""
    return hits.nan_to_num(0).cumsum(1) / hits.isfinite().cumsum(1)


def removed(predict: Predict, run: Run, maps: Tensor, batch: Batch) -> dict[str, Tensor]:
    """What a classifier predicts as the highest tiles and patches of the maps go."""
    recipe, given = run.recipe, (predict, batch["image"], maps, batch["label"])
    seed = recipe.stream("perturbation")
    morf = m.perturbation_curve(*given, recipe.aopc_tile, recipe.aopc_steps, recipe.perturbation, seed=seed)
    deletion = m.deletion_hits(*given, recipe.deletion_steps, patch_of(run), fill_of(run))
    areas = {"aopc": m.aopc(morf), "deletion_area": m.area_under_curve(deletion)}
    return {"perturbation_curve": morf, "deletion_curve": deletion, **areas}


def kept(predict: Predict, run: Run, maps: Tensor, batch: Batch) -> Values:
    """What a classifier predicts as the lowest tiles of the maps go, the highest come back, or they alone stay."""
    recipe, given = run.recipe, (predict, batch["image"], maps, batch["label"])
    tile, fill, seed = recipe.aopc_tile, fill_of(run), recipe.stream("perturbation")
    lerf = m.perturbation_curve(*given, tile, recipe.aopc_steps, recipe.perturbation, seed, "lerf")
    insertion = m.insertion_curve(*given, tile=patch_of(run), steps=recipe.deletion_steps, start=fill)
    return {
        "lerf_curve": lerf,
        "aopc_lerf": m.aopc(lerf),
        "insertion_curve": insertion,
        "insertion_area": m.area_under_curve(insertion),
        "sufficiency": (m.sufficiency(*given, KEPT_SHARES, tile, fill), KEPT_SHARES),
    }


def faithfulness(run: Run, maps: Maps, batch: Batch, twin: Run | None = None, whole: bool = True) -> pd.DataFrame:
    """Does the model use what the map points at? On the images of `perturbed`.

    What is removed from an in-model map is also judged by the black-box `twin`, the model that all maps have in common;
    the images of ROAD are imputed once for both. Not `whole`: only what `removed` gives.
    """
    chosen, found = perturbed(run, batch), []
    part, judges = part_of(batch, chosen), {"own": Remembering(run.predict)}
    judges |= {"twin": Remembering(twin.predict)} if twin else {}
    for method, one in maps.items():
        one, shown = one[chosen], judges if METHODS[method].family == "in-model" else {"own": judges["own"]}
        by = {judge: removed(predict, run, one, part) for judge, predict in shown.items()}
        if whole:
            given = list(shown.values()), part["image"], one, part["label"]
            roads = m.road(*given, shares=ROAD_SHARES, seed=run.recipe.stream("road"))
            by = {judge: {**by[judge], "road": (road, ROAD_SHARES)} for judge, road in zip(shown, roads, strict=True)}
            by["own"] |= kept(judges["own"], run, one, part)
            by["own"]["abpc"] = by["own"]["aopc"][:, -1] - by["own"]["aopc_lerf"][:, -1]
        found += [rows(run, values, part, method, judge=judge) for judge, values in by.items()]
    return pd.concat(found, ignore_index=True)


def grids(run: Run, maps: Maps, batch: Batch, count: int = 4) -> pd.DataFrame:
    """The papers' grid of tile sizes and perturbations, `perturbation_curve TILE KIND`, of the first `count` perturbed
    images; of in-model maps and the papers' own comparison."""
    chosen, found = perturbed(run, batch)[:count], []
    part = part_of(batch, chosen)
    for method in [name for name in maps if name in table.MAIN or METHODS[name].family == "in-model"]:
        given = run.predict, part["image"], maps[method][chosen], part["label"]
        curves = m.perturbation_grid(*given, seed=run.recipe.stream("perturbation"))
        named = {f"perturbation_curve {tile} {kind}": curve for (tile, kind), curve in curves.items()}
        found.append(rows(run, named, part, method))
    return pd.concat(found, ignore_index=True)


def properties(run: Run, maps: Maps, batch: Batch) -> pd.DataFrame:
    """What are the maps like? Sparsity of all maps; stability, equivariance and completeness on the images that are
    perturbed; of SoftCAM's evidence for class k, of two for the disease alone, at its own resolution the positive share
    and the grid pointing game."""
    chosen, found = perturbed(run, batch), []
    part = part_of(batch, chosen)
    for method, one in maps.items():
        found.append(rows(run, {"gini": m.gini(one)}, batch, method))
        again, seed = explainer_of(run, method, part["label"]), run.recipe.stream("stability")
        values = {
            "stability": m.stability(again, part["image"], one[chosen], samples=2, seed=seed),
            "flip_equivariance": m.flip_equivariance(again, part["image"], one[chosen]),
        }
        if method in ("evidence", "integrated_gradients", "lrp"):
            values["completeness"] = completeness(run, method, one[chosen], part)
        found.append(rows(run, values, part, method))
    evidence = native_evidence(run, batch) if "evidence" in maps else torch.empty(0, 0)
    for k in range(evidence.shape[1] == 2, evidence.shape[1]):
        one, sick, native = evidence[:, k], batch["label"] == k, {"method": "evidence", "resolution": "evidence"}
        found.append(rows(run, {"positive_proportion": (m.positive_proportion(one), [k])}, batch, **native))
        if sick.any() and (~sick).sum() >= 3:
            game = torch.tensor(m.grid_pointing_game(one[sick], one[~sick], seed=run.recipe.stream("grid")))
            found.append(rows(run, {"grid_pointing_game": (game, [k])}, **native))
    return pd.concat(found, ignore_index=True)


@torch.no_grad()
def native_evidence(run: Run, batch: Batch) -> Tensor:
    """(N, K, h, w): SoftCAM's evidence of every class at its own resolution."""
    return torch.cat([run.judge(part).evidence.float().cpu() for part in run.inputs(batch["image"]).split(128)])


@torch.no_grad()
def completeness(run: Run, method: str, maps: Tensor, batch: Batch) -> Tensor:
    """(N,): relative error of the sum of a map against what it should sum to, NaN where that is 0; SoftCAM's at its
    native resolution, an Explainer-Classifier's with the classifier's path at the heatmap z of the image."""
    images, at, model = run.inputs(batch["image"]), torch.arange(len(maps)), run.model

    def logits(share: float) -> Tensor:
        """Logits (N, K) of the images times `share`; where the model has a heatmap z, at that of the images."""
        gated = hasattr(model, "explainer")
        outputs = [
            model.classifier(x * share, model.explainer(x)) if gated else model(x * share) for x in images.split(128)
        ]
        return torch.cat([getattr(output, "logits", output) for output in outputs]).float().cpu()

    target = logits(1)
    if method == "evidence":
        evidence = native_evidence(run, batch)[at, batch["label"]]
        maps = evidence / evidence[0].numel()
    elif method == "integrated_gradients":
        target = target - logits(0)
    target = target[at, batch["label"]]
    return (m.completeness(maps, target) / target.abs()).masked_fill(target == 0, torch.nan)


def sanity_checks(run: Run, maps: Maps, batch: Batch) -> pd.DataFrame:
    """Do the maps need the model? SIMILARITY cascading, at step k = 0, 1 ... of `lib.sanity.layers`, from the output
    that is the map (Explainer) or is explained, of `sanity_count` perturbed images; `unchanged`: 1 marks a failure."""
    part, found = part_of(batch, perturbed(run, batch)[: run.recipe.sanity_count]), []
    for method in maps:
        steps = {"steps": run.recipe.ig_steps} if method == "integrated_gradients" else {}
        made = partial(explain, method, images=run.inputs(part["image"]), targets=part["label"], **steps)
        given = {"seed": run.recipe.stream("sanity"), "first": "explainer" if method == "explainer" else "classifier"}
        steps, similar = sanity.parameter_randomisation(made, run.model, **given), ("spearman", "spearman_abs", "ssim")
        values = {f"{name} cascading": torch.stack([step[name] for step in steps.values()], 1) for name in similar}
        same = sanity.unchanged(steps)
        found.append(rows(run, values, part, method))
        found.append(rows(run, {"unchanged": torch.tensor(torch.nan if same is None else float(same))}, method=method))
    return pd.concat(found, ignore_index=True)


def choice(run: Run) -> pd.DataFrame:
    """Rows of choice, split val: what CHOICE names, of `choose_count` validation images, to choose a method by."""
    batch = run.images(run.recipe.choose_count, "val")
    given = run, explain_run(run, batch), batch
    table = pd.concat([localisation(*given), faithfulness(*given, whole=False)], ignore_index=True)
    kept = table["metric"].map(CHOICE | {"aopc": run.recipe.aopc_steps}) == table["k"]
    return table[kept].assign(split="val")


def evaluate(run: Run, twin: Run | None = None) -> pd.DataFrame:
    """All that 04_evaluate measures of a run whose maps are saved, written to its folder and returned; `twin`: of an
    in-model run the black box that judges its maps, too."""
    maps, batch = run.explained()
    asked, found = run.recipe.measure, [classification(run)]
    if "localisation" in asked:
        found.append(localisation(run, maps, batch))
    if {"removal", "faithfulness"} & set(asked):
        whole = "faithfulness" in asked and not run.recipe.seed
        found.append(faithfulness(run, maps, batch, twin, whole))
    if run.recipe.aopc_grid and not run.recipe.seed:
        found.append(grids(run, maps, batch))
    if "properties" in asked:
        found.append(properties(run, maps, batch))
    if run.recipe.sanity_count:
        found.append(sanity_checks(run, maps, batch))
    if run.recipe.choose_count and run.recipe.split == "test":
        found.append(choice(run))
    run.write_table(pd.concat(found, ignore_index=True))
    return run.table
