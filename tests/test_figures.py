import json
import math
import shutil

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from lib import figures, plots
from lib.evaluation import evaluate_run, explain_and_keep
from lib.figures import explainer, overview
from lib.results import Results, data_hash, deviations, markdown, table
from lib.runs import Run
from lib.writing import write_json, write_tensors

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


SHOWN = {  # recipes of a figure, where it does not show every run
    **{name: ["ec"] for name in ("pompom", "pompom_epsilon", "training_phases")},
    **{name: ["bb", "sc"] for name in ("aopc_grid", "mean_f_grid", "sanity")},
    "label_randomisation": ["random_labels_sc-1", "sc"],
    "regularisation_path": ["ec_beta-0.5", "ec_beta-0.9", "sc_l1-0", "sc_l1-0.0001"],
}


def copied(run, **changes):
    """A copy of a run's folder under the recipe's new name."""
    recipe = run.recipe.replace(**changes)
    folder = run.dir.with_name(recipe.name)
    shutil.copytree(run.dir, folder, dirs_exist_ok=True)
    return Run(folder, recipe)


@pytest.fixture(scope="module")
def results(trained):
    for run in trained.values():
        explain_and_keep(run)
        evaluate_run(run)
    for name in ("blackbox", "softcam"):
        run = trained[name]
        cells = [f"{method}/{tile} {kind}" for method in run.maps for tile in (16, 4) for kind in ("black", "blur")]
        write_tensors(run.dir / "grid.safetensors", {cell: torch.linspace(1, 0, 4) for cell in cells})
        steps = {"last": {"spearman_abs": 0.8, "spearman": 0.1}, "first": {"spearman_abs": None, "spearman": None}}
        sanity = {method: {"cascading": steps, "independent": steps, "unchanged": False} for method in run.maps}
        write_json(run.dir / "metrics.json", {**run.metrics, "sanity": sanity})
    return Results(trained.values())


@pytest.fixture(scope="module")
def everything(results, trained):
    """The runs, points of two sweeps and a run on permuted labels."""

    def swept(run, parameter, value):
        name = f"{run.recipe.name}_{parameter}"
        changes = {"name": f"{name}-{value:g}", parameter: value, "sweep": {"name": name, "parameter": parameter}}
        return copied(run, **changes)

    points = [swept(trained["softcam"], "l1", l1) for l1 in (0.0, 1e-4)]
    points += [swept(trained["explainer"], "beta", beta) for beta in (0.5, 0.9)]
    permuted = copied(trained["softcam"], name="random_labels_sc-1", random_labels=True)
    return Results([*trained.values(), *points, permuted])


@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name != "published"])
def test_every_figure_is_drawn_and_indexed(name, everything, tmp_path):
    figures.save(name, everything, tmp_path)
    picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
    assert picture.shape[0] > 150
    assert picture.std() > 5
    index = json.loads((tmp_path / "index.json").read_text())
    assert index[f"{name}.png"]["recipes"] == SHOWN.get(name, ["bb", "ec", "sc"])
    assert index[f"{name}.png"]["caption"] == figures.FIGURES[name].caption


def test_sweeps_and_permuted_labels_change_no_other_figure(results, everything):
    for name in ("accuracy", "localisation", "faithfulness"):
        assert data_hash(figures.FIGURES[name].draw(everything)[1]) == data_hash(figures.FIGURES[name].draw(results)[1])


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("regularisation_path", "the runs of a sweep"),
        ("label_randomisation", "random_labels: true"),
        ("published", "a run on a data set of the papers"),
    ],
)
def test_a_figure_without_its_runs_is_left_out_and_its_leftovers_removed(name, needs, results, tmp_path, capsys):
    for old in (name, "forgotten"):
        (tmp_path / f"{old}.png").write_bytes(b"old")
    (tmp_path / "index.json").write_text(json.dumps({f"{name}.png": {}, "hero.png": {}, "forgotten.png": {}}))
    figures.save(name, results, tmp_path)
    assert f"{name}: not drawn; it needs" in capsys.readouterr().out
    assert needs in figures.FIGURES[name].needs
    assert not (tmp_path / f"{name}.png").exists()
    index = json.loads((tmp_path / "index.json").read_text())
    assert f"{name}.png" not in index
    assert "hero.png" in index
    assert "forgotten.png" not in index  # no figure is called so any more
    assert not (tmp_path / "forgotten.png").exists()


def test_only_a_black_box_and_a_softcam_are_enough(results, trained, tmp_path, capsys):
    demo = Results([trained["blackbox"], trained["softcam"]])
    for name in figures.FIGURES:
        figures.save(name, demo, tmp_path)
    said = {line.partition(":")[0] for line in capsys.readouterr().out.splitlines()}
    assert said == {
        "pompom", "pompom_epsilon", "training_phases", "regularisation_path", "label_randomisation", "published",
    }  # fmt: skip
    assert {path.stem for path in tmp_path.glob("*.png")} == set(figures.FIGURES) - said


def test_figures_are_functions_of_the_files(results, tmp_path):
    hashes = []
    for folder in ("one", "two"):
        figures.save("accuracy", results, tmp_path / folder)
        hashes.append(json.loads((tmp_path / folder / "index.json").read_text())["accuracy.png"]["data_sha256"])
    assert hashes[0] == hashes[1]
    assert (tmp_path / "one/accuracy.png").read_bytes() == (tmp_path / "two/accuracy.png").read_bytes()


def test_data_hash_ignores_the_seventh_digit_and_sees_the_fifth():
    assert data_hash({"a": [1.00000001, math.nan]}) == data_hash({"a": [1.0, math.nan]})
    assert data_hash({"a": 1.0001}) != data_hash({"a": 1.0})


def test_several_seeds_give_mean_and_range(results, trained):
    run = trained["blackbox"]
    other = type(run)(run.dir.with_name("bb-seed1"), run.recipe.replace(seed=1))
    other.dir.mkdir(exist_ok=True)
    metrics = run.metrics
    metrics["classification"]["accuracy_interval"]["value"] = 0.0
    (other.dir / "metrics.json").write_text(json.dumps(metrics))
    both = Results([run, other])
    found = both.value("shapes", "black box", "classification", "accuracy_interval")
    accuracy = run.metrics["classification"]["accuracy"]
    assert (found["low"], found["value"], found["high"]) == pytest.approx((0.0, accuracy / 2, accuracy))
    assert both.seeds == [0, 1]


def test_post_hoc_methods_are_shown_on_the_black_box_and_in_model_ones_on_their_own(results):
    pairs = results.explained("shapes")
    assert ("gradcam", "black box") in pairs
    assert ("explainer", "Explainer hybrid") in pairs
    assert ("evidence", "SoftCAM sparse") in pairs
    assert ("integrated_gradients", "Explainer hybrid") not in pairs


def test_two_recipes_of_one_variant_are_kept_apart(results, trained):
    run = trained["blackbox"]
    other = type(run)(run.dir, run.recipe.replace(name="other"))
    both = Results([run, other])
    assert both.variants("shapes") == ["black box (bb)", "black box (other)"]
    assert len(both.of("shapes", "black box (bb)")) == 1
    overview.accuracy(both)


def test_undefined_values_and_missing_evolution_are_drawn(trained):
    run = trained["explainer"]
    other = type(run)(run.dir, run.recipe.replace(evolution_count=0))
    results = Results([other])
    results.metrics[run.dir.name]["explanations"]["explainer"]["pompom"] = {"value": None, "low": None, "high": None}
    explainer.pompom(results)
    explainer.training_phases(results)


def test_table_and_markdown(results):
    frame = table(results)
    assert list(frame["model"].unique()) == ["black box", "SoftCAM sparse", "Explainer hybrid"]
    text = markdown(frame)
    lines = text.splitlines()
    assert len(lines) == len(frame) + 2
    assert len({len(line) for line in lines}) == 1
    assert "nan" not in text


def test_deviations_from_expected_results(results):
    frame = table(results)
    assert deviations(frame, frame) == []
    other = frame.copy()
    other.loc[0, "accuracy"] += 0.05
    said = deviations(other, frame)
    assert len(said) == 1
    assert "shapes, black box, " in said[0]
    assert "accuracy" in said[0]
    assert deviations(frame.drop(index=0), frame)[0].endswith("missing")


def test_no_runs_is_an_error():
    with pytest.raises(ValueError, match="runs: expected at least one evaluated run"):
        Results([])


def colours(values, signed):
    _, ax = plt.subplots()
    plots.show_map(ax, torch.zeros(1, *values.shape), values, signed)
    return ax.images[1].get_array()


def test_signed_maps_diverge_around_zero():
    drawn = colours(torch.tensor([[-1.0, 0.0, 1.0]]), signed=True)
    blue, middle, red = drawn[0]
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    assert list(middle[:3]) == pytest.approx([0.97, 0.97, 0.97], abs=0.02)
    half = colours(torch.tensor([[-0.5, 0.0, 1.0]]), signed=True)
    assert list(half[0][2]) == pytest.approx(list(red))  # the scale is symmetric around 0
    assert half[0][0][3] < blue[3]


def test_a_single_pixel_does_not_hide_the_rest_and_is_printed():
    values = torch.full((40, 40), 0.1)
    values[0, 0] = 50.0
    _, ax = plt.subplots()
    plots.show_map(ax, torch.zeros(1, 40, 40), values, signed=True)
    assert ax.images[1].get_array()[20, 20, 0] > 0.3
    assert ax.texts[0].get_text() == "±0.1, max 50"


@pytest.mark.parametrize("values", [torch.zeros(4, 4), torch.full((4, 4), math.nan), torch.full((4, 4), 3.0)])
@pytest.mark.parametrize("signed", [True, False])
def test_degenerate_maps_are_drawn(values, signed):
    assert np.isfinite(colours(values, signed)[..., 3]).all()


def test_as_text():
    assert plots.as_text({"value": 0.91234, "low": 0.9, "high": 0.95, "undefined": 0}) == "0.912 [0.900, 0.950]"
    assert plots.as_text({"value": 0.5, "low": None, "high": None, "undefined": 2}) == "0.500 [?, ?] (2 undefined)"
    assert plots.as_text({"value": math.nan}) == "-"


def test_evolution_and_curves(trained):
    run = trained["explainer"]
    _, frames = plots.evolution_frames(run.evolution)
    assert next(iter(frames)) == "classifier/000"
    assert list(frames)[-1] == "joint/001"
    plots.evolution_strip(run.evolution, signed=False)
    plots.loss_curves(run.history)
    assert plots.evolution_gif(run.evolution, signed=False)[:4] == b"GIF8"
