"""The figures of `figures/`: each a function of evaluated runs that returns the figure and the data it shows."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from lib.figures.curves import aopc, deletion, grid_figure, insertion, topk_precision
from lib.figures.explainer import pompom, pompom_epsilon, training_phases
from lib.figures.methods import common_model, faithfulness, localisation, localisation_metrics, properties
from lib.figures.overview import accuracy, hero
from lib.figures.pairwise import comparison, comparison_table, published, wins
from lib.figures.randomisation import label_randomisation_figure, sanity
from lib.figures.sweeps import regularisation_path
from lib.results import Results, data_hash
from lib.runs import Run, versions
from lib.writing import write_json, write_whole

__all__ = ["FIGURES", "Entry", "comparison_table", "save", "wins"]


def every_run(results: Results) -> list[Run]:
    return results.runs


def explainer_runs(results: Results) -> list[Run]:
    return [run for run in results.runs if run.recipe.method == "explainer_classifier"]


def sanity_runs(results: Results) -> list[Run]:
    return [run for run in results.runs if results.metrics[run.dir.name].get("sanity")]


def grid_runs(results: Results) -> list[Run]:
    runs = [run for run in results.runs if (run.dir / "grid.safetensors").is_file()]
    first = next((d for d in results.datasets if any(results.group(run) == d for run in runs)), None)
    return [run for run in runs if results.group(run) == first]


def labelled_runs(results: Results) -> list[Run]:
    kinds = {(results.group(run), run.recipe.variant) for run in results.permuted}
    return results.permuted + [r for r in results.runs if (results.group(r), r.recipe.variant) in kinds]


def real_runs(results: Results) -> list[Run]:
    return [run for run in results.runs if not run.description.synthetic]


class Entry(NamedTuple):
    """`draw` gives the figure and its data, or None where the runs lack what it `needs`; `of`: the runs it shows."""

    draw: Callable[[Results], tuple[Figure, Any] | None]
    caption: str
    needs: str = "an evaluated run with maps of images that have a mask"
    of: Callable[[Results], list[Run]] = every_run


OWN_MODEL = "In-model maps on their own model, post-hoc maps on the black box."
FIGURES = {
    "hero": Entry(
        hero,
        "One typical test image per data set: the annotated region, post-hoc maps of the black box, in-model maps; "
        "below each map its activation precision, the share of its positive mass inside the region.",
    ),
    "accuracy": Entry(
        accuracy,
        "Test accuracy with 95 % interval (several seeds: mean and range); grey: the black box's accuracy +- 2 points.",
    ),
    "localisation": Entry(
        localisation,
        "Every method by the share of images whose highest patch touches the lesion or target, and by the share of the "
        "map's positive mass inside it.",
    ),
    "topk_precision": Entry(
        topk_precision,
        "Of the k highest patches of a map, the share that touches the lesion or target, over images that have one.",
    ),
    "localisation_metrics": Entry(
        localisation_metrics, "Every method by every localisation metric, means over the images that have a mask."
    ),
    "comparison": Entry(
        comparison,
        "Is A better than B? Mean difference on the same images, row less column; coloured where a Wilcoxon test, "
        "Holm-corrected, says so.",
    ),
    "faithfulness": Entry(faithfulness, f"Six metrics of faithfulness. {OWN_MODEL}"),
    "deletion": Entry(
        deletion,
        "Accuracy on images with a lesion or target while the highest patches are occluded, and the area under that "
        "part of the curve; each map on its own model.",
    ),
    "insertion": Entry(
        insertion,
        "Probability of the true class while the highest patches enter an empty image; each map on its own model.",
    ),
    "aopc": Entry(
        aopc,
        "Mean drop of the true class's probability over the first L perturbation steps; each map on its own model.",
    ),
    "common_model": Entry(
        common_model,
        "AOPC and deletion area where the black box judges every map; in-model maps also on their own model.",
        "an evaluated in-model run and its black box",
    ),
    "aopc_grid": Entry(
        lambda results: grid_figure(results, "AOPC"),
        f"AOPC for four tile sizes (rows) and five perturbations (columns). {OWN_MODEL}",
        "a run evaluated with aopc_grid: true",
        grid_runs,
    ),
    "mean_f_grid": Entry(
        lambda results: grid_figure(results, "mean f"),
        f"Mean probability of the true class for four tile sizes and five perturbations. {OWN_MODEL}",
        "a run evaluated with aopc_grid: true",
        grid_runs,
    ),
    "properties": Entry(
        properties,
        "Sparsity, stability under noise, equivariance under flips, completeness, and the share of positive evidence "
        "for the disease with and without a lesion.",
    ),
    "sanity": Entry(
        sanity,
        "Similarity to the trained model's maps as its layers are drawn anew; a map that stays the same is marked.",
        "a run evaluated with sanity_count above 0",
        sanity_runs,
    ),
    "label_randomisation": Entry(
        label_randomisation_figure,
        "Similarity of the maps of a model and of its twin trained on permuted labels, on the same test images. The "
        "twin saw fewer images for longer, to memorise them: part of a low similarity may be due to that.",
        "a run with random_labels: true beside the same recipe with true labels",
        labelled_runs,
    ),
    "pompom": Entry(
        pompom,
        "Explainer heatmaps, unsupervised against hybrid. POMPOM: the share of pixels outside the region left above 0.",
        "an evaluated Explainer-Classifier",
        explainer_runs,
    ),
    "pompom_epsilon": Entry(
        pompom_epsilon,
        "POMPOM against the value epsilon up to which a pixel of the heatmap counts as closed.",
        "an evaluated Explainer-Classifier",
        explainer_runs,
    ),
    "training_phases": Entry(
        training_phases,
        "Explainer-Classifier: losses over the three phases, and one validation image's heatmap after each.",
        "a trained Explainer-Classifier",
        explainer_runs,
    ),
    "regularisation_path": Entry(
        regularisation_path,
        "Performance and explanation on validation images against the weights of the penalties, each point a model "
        "trained with that value.",
        "the runs of a sweep (notebooks/recipes/sweeps)",
        lambda results: results.points,
    ),
    "published": Entry(
        published,
        "Own numbers beside those that the papers report, on the same data set.",
        "a run on a data set of the papers",
        real_runs,
    ),
}


def write_picture(figure: Figure, path: Path, photographs: bool = False) -> None:
    """The figure as PNG; in 255 colours, a third of the size, where it shows no photographs."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    picture = Image.open(drawn).convert("RGB")
    picture = picture if photographs else picture.quantize(255, dither=Image.Dither.NONE)
    picture.save(path, "PNG", optimize=True)


def save(name: str, results: Results, folder: Path) -> None:
    """Draws a figure of `FIGURES`: NAME.png; caption, recipes, seeds and hash of the plotted data go to index.json.

    Where the runs lack what it needs, it says so, and what an earlier run left under that name is removed.
    """
    entry, file = FIGURES[name], folder / f"{name}.png"
    index = json.loads((folder / "index.json").read_text(encoding="utf-8")) if (folder / "index.json").exists() else {}
    index = {key: said for key, said in index.items() if Path(key).stem in FIGURES and key != file.name}
    for stale in folder.glob("*.png"):
        if stale.stem not in FIGURES:
            stale.unlink()
    drawn = entry.draw(results)
    if drawn is None:
        print(f"{name}: not drawn; it needs {entry.needs}.")
        file.unlink(missing_ok=True)
    else:
        figure, data = drawn
        write_whole(file, lambda path: write_picture(figure, path, photographs=name == "hero"))
        runs = entry.of(results)
        said = {"caption": entry.caption, "recipes": sorted({run.recipe.name for run in runs})}
        index[file.name] = {**said, "seeds": sorted({run.recipe.seed for run in runs}), "data_sha256": data_hash(data)}
    write_json(folder / "index.json", {**index, "schema": 1, "versions": versions()})
