"""Does a map depend on what the model has learnt? Randomised weights and permuted labels (Adebayo et al. 2018)."""

import json
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lib import plots
from lib.plots.style import in_model
from lib.results import Results, Shown, mean_interval, pooled
from lib.runs import Run
from lib.sanity import label_randomisation

Drawn = tuple[Figure, Any]
FAILED = "#AA3377"
SEEDED = ("random", "centre_gaussian")  # they never look at the model


def cascades(results: Results, dataset: str) -> dict[str, dict[str, Any]]:
    """'method | variant' -> similarity at each step, means over seeds, and whether every seed calls it unchanged."""
    found = {}
    for method, variant in results.shown(dataset, every=True):
        stored = [results.metrics[run.dir.name].get("sanity", {}).get(method) for run in results.of(dataset, variant)]
        stored = [one for one in stored if one]
        if not stored or method in SEEDED:
            continue
        steps = [[scores["spearman_abs"] for scores in one["cascading"].values()] for one in stored]
        curve = [1.0, *np.array(steps, dtype=float).mean(0)]
        found[f"{method} | {variant}"] = {"curve": curve, "unchanged": all(one["unchanged"] for one in stored)}
    return found


def sanity(results: Results) -> Drawn | None:
    """Similarity to the trained model's maps as its layers are drawn anew from the output to the input."""
    data = {dataset: found for dataset in results.datasets if (found := cascades(results, dataset))}
    if not data:
        return None
    most = max(map(len, data.values()))
    fig, axes = plots.panels(len(data), 5.2, max(2.6, 0.145 * most + 0.5))
    for ax, (dataset, found) in zip(axes, data.items(), strict=True):
        for key, one in reversed(found.items()):
            style = plots.contrast_style(key)
            style |= {"color": FAILED, "linewidth": 1.6} if one["unchanged"] and not in_model(key) else {}
            ax.plot(one["curve"], label=key, **style)
        steps = max(len(one["curve"]) for one in found.values())
        ends = {key: {"value": one["curve"][-1]} for key, one in found.items()}
        marks = {key: "  ✗ unchanged" for key, one in found.items() if one["unchanged"]}
        plots.ranked_legend(ax, ends, "lower", "all layers random", **marks)
        for key, text in zip(plots.ranked(ends, "lower"), ax.get_legend().get_texts(), strict=True):
            text.set_color(FAILED if found[key]["unchanged"] else text.get_color())
        ax.axhline(0, color="#DDDDDD", linewidth=0.8, zorder=0)
        ax.set_xticks(range(steps), ["trained", *(str(i) for i in range(1, steps))])
        count = max(
            results.metrics[run.dir.name]["recipe"]["sanity_count"]
            for run in results.runs
            if results.group(run) == dataset
        )
        ax.set(title=f"{results.heading(dataset)}, n = {count}", xlabel="layers drawn anew, from output to input")
        ax.set(ylabel="rank correlation of |map|", ylim=(min(-0.2, ax.get_ylim()[0]), 1.05))
    plots.footnote(
        fig, "Lower is better: the map forgets with its model. In colour: in-model maps. Grey: post-hoc maps of the "
        "black box.\nPurple, ✗: correlation above 0.5 at every step, signed or unsigned: it needs no trained model.",
    )  # fmt: skip
    return fig, data


def partners(results: Results) -> list[tuple[Run, Run]]:
    """(run of true labels, its twin of permuted labels), of one data set and variant, of the same seed if there is."""

    def kind(run: Run) -> tuple[str, str]:
        return results.group(run), run.recipe.variant

    found = []
    for twin in results.permuted:
        runs = [run for run in results.runs if kind(run) == kind(twin)]
        same = [run for run in runs if run.recipe.seed == twin.recipe.seed]
        found += [((same or runs)[0], twin)] if runs else []
    return found


def label_similarities(results: Results) -> dict[str, dict[str, Shown]]:
    """data set -> 'method | variant' -> similarity of a model's maps and of its twin's, trained on permuted labels.

    On the first 60 images, at most, that both have explained.
    """
    gathered: dict[str, dict[str, list[Shown]]] = {}
    for run, twin in partners(results):
        dataset, variant = results.group(run), results.label(run)
        maps, others = run.maps, twin.maps
        n = common_images(run, twin)
        for method, of in results.shown(dataset, every=True):
            if of == variant and method in maps and method in others and method not in SEEDED and n:
                alike = label_randomisation(maps[method][:n], others[method][:n])["spearman_abs"]
                key = f"{method} | {variant}"
                gathered.setdefault(dataset, {}).setdefault(key, []).append(mean_interval(alike))
    return {d: {key: pooled(found) for key, found in by.items()} for d, by in gathered.items()}


def common_images(run: Run, twin: Run, most: int = 60) -> int:
    """How many images from the first on both runs have explained."""
    a, b = (json.loads((one.dir / "maps.json").read_text(encoding="utf-8"))["ids"] for one in (run, twin))
    alike = [x == y for x, y in zip(a, b, strict=False)]
    return min(most, alike.index(False) if False in alike else len(alike))


def label_randomisation_figure(results: Results) -> Drawn | None:
    """Similarity of the maps of a model and of its twin that has memorised permuted labels."""
    data = label_similarities(results)
    if not data:
        return None
    kinds = [(results.group(twin), twin.recipe.variant) for twin in results.permuted]
    one = len(kinds) == len(set(kinds))
    fig, axes = plots.panels(len(data), 4.6, 0.18 * max(map(len, data.values())) + 1.1)
    for ax, (dataset, series) in zip(axes, data.items(), strict=True):
        order = plots.ranked(series, "lower")
        plots.dot_rows(ax, series, order)
        plots.name_rows(ax, order)
        ax.axvline(0.5, color=FAILED, linestyle=":", linewidth=1)
        ax.set(xlim=(-0.3, 1.05), xlabel="rank correlation of |map|  (← better)")
        ax.set_title(f"{results.heading(dataset)}, n = {next(iter(series.values()))['used']}")
    plots.footnote(
        fig, "Maps of the same images by two models, trained on true and on permuted labels. In colour: in-model maps. "
        "Grey: post-hoc maps of the black box.\nBeyond the dotted line a map hardly depends on the labels. "
        f"Line: {'95 % bootstrap interval over images' if one else 'mean and range of several seeds'}.",
    )  # fmt: skip
    return fig, data
