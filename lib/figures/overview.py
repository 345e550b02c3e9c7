"""What a reader sees first: a typical image of each data set, and what the explanation costs in accuracy."""

from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from lib import plots
from lib.explain import METHODS
from lib.metrics import activation_precision
from lib.plots import VARIANTS
from lib.results import Results

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
    batch = columns[next(iter(maps))].images(n)
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


def hero(results: Results) -> Drawn | None:
    """For each data set its typical image, the lesion, post-hoc and in-model maps, and a number under each."""
    rows = {dataset: found for dataset in results.datasets if (found := typical(results, dataset))}
    if not rows:
        return None
    shown = [pair for pair in HERO if any(pair in row["maps"] for row in rows.values())]
    size = (1.55 * (2 + len(shown)), 2.0 * len(rows) + 0.4)
    fig, axes = plt.subplots(len(rows), 2 + len(shown), figsize=size, squeeze=False)
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
        count = results.content(dataset)["classification"]["count"]
        for variant in results.variants(dataset):
            found = results.value(dataset, variant, "classification", "accuracy_interval")
            plots.dot(ax, present.index(variant), found, VARIANTS[variant.partition(" (")[0]])
            if variant == "black box":
                ax.axvspan(found["value"] - 0.02, found["value"] + 0.02, color="#EEEEEE", zorder=0)
            data[f"{dataset} | {variant}"] = found
        ax.set(xlabel="accuracy (test)", ylim=(len(present) - 0.5, -0.7))
        ax.set_title(f"{results.heading(dataset)}, n = {count}")
        ax.set_yticks(range(len(present)), present)
        ax.set_xlim(right=min(ax.get_xlim()[1], 1.004))
    plots.footnote(fig, f"Line: {results.band()}. Grey: the accuracy of the black box ± 2 points.")
    return fig, data
