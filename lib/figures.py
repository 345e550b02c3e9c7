"""The figures of `figures/`: each a function of evaluated runs that returns the figure and the data it shows."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from lib import plots
from lib.explain import METHODS
from lib.metrics import activation_precision
from lib.plots import VARIANTS
from lib.results import Results, data_hash
from lib.runs import versions, write_json, write_whole

Drawn = tuple[Figure, Any]
HERO = (
    ("gradcam", "black box"),
    ("integrated_gradients", "black box"),
    ("guided_backprop", "black box"),
    ("evidence", "SoftCAM dense"),
    ("evidence", "SoftCAM sparse"),
    ("explainer", "Explainer hybrid"),
)


def typical(results: Results, dataset: str) -> dict[str, Any]:
    """The typical test image of a data set: image, mask, id, and (method, variant) -> (map, activation precision).

    Of the test images with a mask that every model classifies correctly (or, without such, of all with a mask), the one
    whose activation precision, averaged over the maps shown, is the median: neither the best nor the worst case. Empty
    where there is none.
    """
    columns = {(m, v): results.of(dataset, v)[0] for m, v in HERO if results.of(dataset, v)}
    maps = {pair: run.maps.get(pair[0]) for pair, run in columns.items()}
    maps = {pair: values for pair, values in maps.items() if values is not None}
    if not maps:
        return {}
    n = min(len(values) for values in maps.values())
    batch = columns[next(iter(maps))].test_images(n)
    share = {pair: activation_precision(values[:n], batch["mask"].bool()) for pair, values in maps.items()}
    runs = {columns[pair].dir: columns[pair] for pair in maps}.values()
    right = torch.stack([run.predict(batch["image"]).argmax(1) == batch["label"] for run in runs]).all(0)
    score = torch.stack(list(share.values())).nanmean(0)
    usable = score.isfinite() & batch["has_mask"]
    candidates = (usable & right if (usable & right).any() else usable).nonzero()[:, 0]
    if not len(candidates):
        return {}
    i = int(candidates[score[candidates].argsort()[(len(candidates) - 1) // 2]])
    shown = {pair: (values[i], float(share[pair][i])) for pair, values in maps.items()}
    return {"image": batch["image"][i], "mask": batch["mask"][i], "id": batch["id"][i], "maps": shown}


def hero(results: Results) -> Drawn:
    """For each data set its typical image, the lesion, post-hoc and in-model maps, and a number under each."""
    rows = {dataset: found for dataset in results.datasets if (found := typical(results, dataset))}
    shown = [pair for pair in HERO if any(pair in row["maps"] for row in rows.values())]
    size = (1.55 * (2 + len(shown)), 2.0 * max(len(rows), 1) + 0.4)
    fig, axes = plt.subplots(max(len(rows), 1), 2 + len(shown), figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for line, (dataset, row) in zip(axes, rows.items(), strict=False):
        plots.show_image(line[0], row["image"], results.heading(dataset))
        plots.show_region(line[1], row["image"], row["mask"], "annotated region")
        for ax, (method, variant) in zip(line[2:], shown, strict=True):
            if (method, variant) not in row["maps"]:
                continue
            heatmap, number = row["maps"][method, variant]
            own = METHODS[method].family == "in-model"
            title = f"{plots.series_label(f'{method} | {variant}')}\n{'in-model' if own else 'of the black box'}"
            end = 1.0 if method == "explainer" else None
            plots.show_map(ax, row["image"], heatmap, METHODS[method].signed, row["mask"], title, end)
            weight = "bold" if own else "normal"
            ax.text(0.5, -0.03, f"{number:.0%} inside", transform=ax.transAxes, ha="center", va="top", weight=weight)
    data = {d: {"id": row["id"], "maps": {" | ".join(k): v for k, v in row["maps"].items()}} for d, row in rows.items()}
    return fig, data


def accuracy(results: Results) -> Drawn:
    """Test accuracy of each model with its interval, by data set."""
    labels = {variant for dataset in results.datasets for variant in results.variants(dataset)}
    present = sorted(labels, key=lambda label: (list(VARIANTS).index(label.partition(" (")[0]), label))
    size = (2.9 * len(results.datasets) + 1, 0.32 * len(present) + 1.0)
    fig, axes = plt.subplots(1, len(results.datasets), figsize=size, sharey=True, squeeze=False)
    data = {}
    for ax, dataset in zip(axes.flat, results.datasets, strict=True):
        for variant in results.variants(dataset):
            found = results.value(dataset, variant, "classification", "accuracy_interval")
            plots.dot(ax, present.index(variant), found, VARIANTS[variant.partition(" (")[0]])
            if variant == "black box":
                ax.axvspan(found["value"] - 0.02, found["value"] + 0.02, color="#EEEEEE", zorder=0)
            data[f"{dataset} | {variant}"] = found
        ax.set(xlabel="accuracy (test)", title=results.heading(dataset), ylim=(len(present) - 0.5, -0.7))
        ax.set_yticks(range(len(present)), present)
        ax.set_xlim(right=min(ax.get_xlim()[1], 1.004))
    return fig, data


def curve_figure(results: Results, name: str, y_label: str) -> Drawn:
    """One panel per data set: a curve of every method, each on the model it explains."""
    data = {dataset: results.series(dataset, name) for dataset in results.datasets}
    size = (max(3.1 * len(data), 5), 3.5)
    fig, axes = plt.subplots(1, len(data), figsize=size, squeeze=False, sharey=name != "aopc")
    for ax, (dataset, series) in zip(axes.flat, data.items(), strict=True):
        metrics = results.content(dataset)
        recipe = metrics["recipe"]
        if name == "topk_precision":
            plots.topk_panel(ax, series, metrics["reference"])
        for key, found in series.items() if name != "topk_precision" else ():
            plots.curve(ax, range(len(found["value"])), found, plots.series_label(key), **plots.series_style(key))
        if name == "aopc":
            ax.set_xlabel(f"L tiles of {recipe['aopc_tile']} px, {recipe['perturbation']}")
        elif name == "deletion_curve":
            patch = recipe["patch"] or results.description(dataset).patch
            ax.set_xlabel(f"patches of {patch} px occluded, {recipe['deletion_fill']} fill")
        used = next(iter(series.values()), {}).get("used")
        ax.set_title(results.heading(dataset) + (f", {used[0]} images" if used else ""))
        ax.set_ylabel("")
    axes.flat[0].set_ylabel(y_label)
    handles = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=7.5)
    return fig, data


def pompom_figure(results: Results) -> Drawn:
    """POMPOM, mean heatmap, activation precision and accuracy of the Explainers: unsupervised against hybrid."""
    found = [(d, v) for d in results.datasets for v in results.variants(d) if v.startswith("Explainer")]
    keys = {
        "POMPOM (lower is better)": ("explanations", "explainer", "pompom"),
        "mean heatmap": ("explanations", "explainer", "mean_heatmap"),
        "activation precision": ("explanations", "explainer", "activation_precision"),
        "accuracy (test)": ("classification", "accuracy_interval"),
    }
    size = (2.9 * len(keys), 0.36 * len(found) + 1.0)
    fig, axes = plt.subplots(1, len(keys), figsize=size, sharey=True, squeeze=False)
    data = {}
    for ax, (title, path) in zip(axes.flat, keys.items(), strict=True):
        for y, (dataset, variant) in enumerate(found):
            data[f"{title} | {dataset} | {variant}"] = results.value(dataset, variant, *path)
            plots.dot(ax, y, data[f"{title} | {dataset} | {variant}"], VARIANTS[variant.partition(" (")[0]])
        ax.margins(x=0.15)
        ax.set(xlabel=title, ylim=(len(found) - 0.4, -0.7))
        ax.set_yticks(range(len(found)), [f"{d}, {v.removeprefix('Explainer ')}" for d, v in found])
        if "accuracy" not in title:
            ax.set_xlim(left=0)
    return fig, data


def training_phases(results: Results) -> Drawn:
    """Losses of the three phases of each Explainer-Classifier, and its heatmap of one image after each phase."""
    pairs = [(d, v) for d in results.datasets for v in results.variants(d) if v.startswith("Explainer")]
    runs = [results.of(dataset, variant)[0] for dataset, variant in pairs]
    names = {"classification": "classification loss", "explanation": "explanation loss", "acc": "accuracy"}
    size, widths = (13, 1.9 * len(runs) + 0.3), [1.8] * 3 + [1] * 4
    fig, axes = plt.subplots(len(runs), 7, figsize=size, squeeze=False, width_ratios=widths)
    data = {}
    for row, run in zip(axes, runs, strict=True):
        history, top = run.history, run is runs[0]
        for ax, (key, label) in zip(row, names.items(), strict=False):
            for split, colour, style in plots.SPLITS:
                ax.plot(np.arange(len(history)), history[f"{split}_{key}"], style, color=colour, label=split)
            plots.epoch_axis(ax, history)
            ax.set(title=label if top else "", ylim=(0, None))
        row[0].set_ylabel(f"{run.description.name}\n{run.recipe.variant.removeprefix('Explainer ')}")
        for ax in row[3:]:
            ax.set_axis_off()
        data[run.dir.name] = {"history": history.drop(columns="phase").to_dict("list")}
        if run.recipe.evolution_count:
            images, frames = plots.evolution_frames(run.evolution)
            last = {key.split("/")[0]: maps[0] for key, maps in frames.items()}
            plots.show_image(row[3], images[0], "image" if top else "")
            for ax, heatmap, number in zip(row[4:], last.values(), (1, 2, 3), strict=True):
                plots.show_map(ax, images[0], heatmap, False, title=f"z after phase {number}" if top else "", limit=1.0)
            data[run.dir.name]["z"] = last
    axes[0, 0].legend(frameon=False, fontsize=7)
    return fig, data


FIGURES = {  # name -> (function of Results, caption)
    "hero": (
        hero,
        "One typical test image per data set: the annotated region, post-hoc maps of the black box, in-model maps; "
        "below each map its activation precision, the share of its positive mass inside the region.",
    ),
    "accuracy": (
        accuracy,
        "Test accuracy with 95 % interval (several seeds: mean and range); grey: the black box's accuracy +- 2 points.",
    ),
    "topk_precision": (
        lambda results: curve_figure(results, "topk_precision", "top-k precision"),
        "Of the k highest patches of a map, the share that touches the lesion or target, over images that have one.",
    ),
    "deletion": (
        lambda results: curve_figure(results, "deletion_curve", "accuracy, images with a target"),
        "Accuracy on images with a lesion or target while the highest patches are occluded; each map on its own model.",
    ),
    "aopc": (
        lambda results: curve_figure(results, "aopc", "AOPC, images with a target"),
        "Mean drop of the true class's probability over the first L perturbation steps; each map on its own model.",
    ),
    "pompom": (
        pompom_figure,
        "Explainer heatmaps, unsupervised against hybrid. POMPOM: the share of pixels outside the region left above 0.",
    ),
    "training_phases": (
        training_phases,
        "Explainer-Classifier: losses over the three phases, and one validation image's heatmap after each.",
    ),
}


def save(name: str, results: Results, folder: Path) -> None:
    """Draws a figure of `FIGURES`: NAME.png; caption, recipes, seeds and hash of the plotted data go to index.json."""
    figure, data = FIGURES[name][0](results)
    write_whole(folder / f"{name}.png", lambda path: figure.savefig(path, format="png", metadata={"Software": None}))
    index = json.loads((folder / "index.json").read_text()) if (folder / "index.json").exists() else {}
    own = name in ("pompom", "training_phases")
    recipes = {run.recipe.name for run in results.runs if not own or run.recipe.method == "explainer_classifier"}
    entry = {"caption": FIGURES[name][1], "recipes": sorted(recipes), "seeds": results.seeds}
    entry["data_sha256"] = data_hash(data)
    write_json(folder / "index.json", {**index, "schema": 1, "versions": versions(), f"{name}.png": entry})
