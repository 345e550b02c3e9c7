import json
import math
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from made_runs import made_run, summary

from lib.figures import comparison_table, sweeps, wins
from lib.figures import pairwise as c
from lib.figures import randomisation as sanity
from lib.figures.curves import grids
from lib.figures.methods import consistency, mean_ranks
from lib.figures.numbers import Number
from lib.plots import series_label
from lib.results import Results
from lib.writing import write_tensors

matplotlib.use("agg")
N = 30
GOOD, BAD = "gradcam | black box", "evidence | SoftCAM dense"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def two(better=0.5, seeds=1):
    """Grad-CAM better than evidence by that much on every image, in top-1."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(N, generator=generator)
    mask = torch.ones(N, dtype=torch.bool)
    black, soft = {"gradcam/top1": (base + better).tolist()}, {"evidence/top1": base.tolist()}
    runs = []
    for seed in range(seeds):
        runs += [made_run("bb", seed=seed, values=black, patients=[""] * N)]
        runs += [made_run("sc", "softcam", seed=seed, values=soft, patients=[""] * N)]
    for run in runs:
        run.values["images/has_mask"] = mask
    return Results(runs)


def test_compare_finds_a_difference_and_its_reverse():
    frame = c.compare(two())
    (row,) = frame.itertuples()
    assert (row.data, row.metric, row.a, row.b) == ("shapes", "top1", BAD, GOOD)
    assert (row.difference, row.verdict, row.used) == (pytest.approx(-0.5), "worse", N)
    differences, says = c.verdicts(frame, [GOOD, BAD])
    assert differences[0, 1] == -differences[1, 0] == pytest.approx(0.5)
    assert says.tolist() == [["", "better"], ["worse", ""]]
    assert np.isnan(np.diag(differences)).all()


def test_values_are_averaged_over_seeds_and_cut_to_common_images():
    first = made_run("bb", values={"gradcam/top1": [0, 1, math.nan, 1]})
    second = made_run("bb", seed=1, values={"gradcam/top1": [1, 1, 0.5]})
    soft = made_run("sc", "softcam", values={"evidence/top1": [0, 0]})
    found = c.per_image(Results([first, second, soft]), "shapes", "top1")
    assert found[GOOD].tolist() == [0.5, 1.0]
    assert found[BAD].tolist() == [0, 0]
    assert c.per_image(Results([first, second]), "shapes", "top1")[GOOD].tolist() == [0.5, 1.0, 0.5]


def test_comparison_table_names_methods_and_wins_counts_them():
    table = comparison_table(two())
    assert set(table["a"]) | set(table["b"]) == {series_label(GOOD), series_label(BAD)}
    found = wins(table).set_index("better / worse than others")["top-1 precision"]
    assert found.to_dict() == {"SoftCAM dense": "0 / 1", "Grad-CAM": "1 / 0"}


def test_nothing_to_compare():
    results = Results([made_run("bb")])
    assert not len(comparison_table(results))
    assert not len(wins(comparison_table(results)))
    assert c.comparison(results) is None


def test_the_comparison_is_drawn():
    fig, data = c.comparison(two(seeds=2))
    assert fig.axes[0].get_title() == f"shapes (synthetic), n = {N}: top-1 precision"
    assert data["verdict"] == ["worse"]


def test_published_numbers_stand_beside_runs_on_real_data_alone(monkeypatch):
    numbers = pd.DataFrame([
        {"dataset": "real", "model": "black box", "method": "gradcam", "metric": "aopc",
         "setting": {"tile": 8, "steps": 100, "perturbation": "black"}, "value": 0.15, "source": "x"},
        {"dataset": "real", "model": "SoftCAM dense", "method": None, "metric": "accuracy_interval", "setting": {},
         "value": 0.9, "source": "x"},
    ])  # fmt: skip
    monkeypatch.setattr(c, "load_published", lambda: numbers)
    run = made_run("bb", explanations={"gradcam": {"aopc": summary([0.0, 0.2])}})
    assert c.published(Results([run])) is None  # shapes are synthetic
    run.description = SimpleNamespace(name="real", synthetic=False, patch=8)
    pairs = c.published_pairs(Results([run]))
    (row,) = pairs.itertuples()
    assert row.own["value"] == 0.2
    assert row.other == "steps 40"  # what the recipe has instead of 100
    fig, data = c.published(Results([run]))
    assert next(iter(data.values())) == {"published": 0.15, "own": row.own}
    assert "steps 40" in fig.axes[0].get_yticklabels()[0].get_text()


def steps(*values):
    return {f"{i}": {"spearman_abs": value} for i, value in enumerate(values)}


def test_cascades_are_means_over_seeds_and_unchanged_only_if_every_seed_is():
    runs = []
    for seed, changed in ((0, True), (1, False)):
        run = made_run("bb", seed=seed, explanations={"gradcam": {}, "layercam": {}, "random": {}})
        run.metrics["sanity"] = {
            "gradcam": {"cascading": steps(0.5 + seed, None), "unchanged": changed},
            "layercam": {"cascading": steps(1.0, 1.0), "unchanged": True},
            "random": {"cascading": steps(1.0, 1.0), "unchanged": True},
        }
        runs.append(run)
    found = sanity.cascades(Results(runs), "shapes")
    assert found.keys() == {GOOD, "layercam | black box"}
    assert found[GOOD]["curve"][:2] == [1.0, 1.0]
    assert math.isnan(found[GOOD]["curve"][2])
    assert (found[GOOD]["unchanged"], found["layercam | black box"]["unchanged"]) == (False, True)
    assert sanity.cascades(Results([made_run("bb")]), "shapes") == {}


def test_partners_share_data_set_variant_and_seed_if_there_is_one():
    runs = [made_run("bb"), made_run("bb", seed=1), made_run("sc", "softcam")]
    twins = [made_run("random_labels_bb-1", random_labels=True, seed=seed) for seed in (1, 2)]
    found = [(run.recipe.seed, twin.recipe.seed) for run, twin in sanity.partners(Results(runs + twins))]
    assert found == [(1, 1), (0, 2)]


def with_maps(run, folder, maps, ids):
    run.dir = folder / run.dir.name
    run.dir.mkdir()
    (run.dir / "maps.json").write_text(json.dumps({"ids": ids}))
    run.maps = maps
    return run


def test_label_similarities_compare_the_first_images_that_both_have(tmp_path):
    maps = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    run = with_maps(made_run("bb"), tmp_path, {"gradcam": maps}, ["a", "b", "c"])
    twin = made_run("random_labels_bb-1", random_labels=True)
    twin = with_maps(twin, tmp_path, {"gradcam": torch.cat([maps[:2], -maps[:1]])}, ["a", "b", "x"])
    assert sanity.common_images(run, twin) == 2
    assert sanity.common_images(run, twin, most=1) == 1
    found = sanity.label_similarities(Results([run, twin]))["shapes"][GOOD]
    assert (found["value"], found["used"]) == (pytest.approx(1), 2)
    fig, _ = sanity.label_randomisation_figure(Results([run, twin]))
    assert fig.axes[0].get_title() == "shapes (synthetic), n = 2"


def test_a_point_of_a_sweep_is_read_from_metrics():
    run = made_run("softcam_l1-0", "softcam", explanations={"evidence": {"topk_precision": summary([0.5, 0.25])}})
    results = Results([made_run("bb"), run])
    path = ("explanations", "evidence", "topk_precision")
    assert sweeps.read(results, run, path, 1) == pytest.approx((0.25, 0.15, 0.35))
    assert all(map(math.isnan, sweeps.read(results, run, path, 4)))
    assert all(map(math.isnan, sweeps.read(results, run, ("explanations", "explainer", "pompom"), None)))
    assert sweeps.read(results, run, ("classification", "auc_interval"), None)[0] == 0.95
    assert sweeps.regularisation_path(results) is None  # one point is no path


def test_grids_are_means_over_seeds(tmp_path):
    runs = [made_run("bb", seed=seed, folder=tmp_path) for seed in (0, 1)]
    for run, value in zip(runs, (0.0, 1.0), strict=True):
        run.dir.mkdir()
        write_tensors(run.dir / "grid.safetensors", {"gradcam/4 black": torch.full((3,), value)})
    found = grids(Results(runs), "shapes")
    assert found.keys() == {GOOD}
    assert found[GOOD]["4 black"].tolist() == [0.5, 0.5, 0.5]
    assert grids(Results([made_run("bb", folder=tmp_path / "none")]), "shapes") == {}


def test_mean_ranks_turn_metrics_where_less_is_better():
    up, down = Number("", "up"), Number("", "down", "lower")
    found = {up: {"a": summary(3.0), "b": summary(1.0)}, down: {"a": summary(0.0), "b": summary(5.0)}}
    assert mean_ranks(found) == ["a", "b"]
    found = {up: {"a": summary(3.0), "b": summary(4.0), "c": summary(0.0)},
             down: {"a": summary(9.0), "b": summary(0.0), "c": {"value": None}}}  # fmt: skip
    assert mean_ranks(found) == ["b", "a", "c"]


def test_consistency_splits_by_lesion():
    run = made_run("sc", "softcam", values={"evidence/disease_positive_proportion": [0.8, 0.6, 0.1, 0.3]})
    run.values["images/label"] = torch.tensor([1, 1, 0, 0])
    found = consistency(Results([run]), "shapes")[BAD]
    assert (found["with"]["value"], found["without"]["value"]) == pytest.approx((0.7, 0.2))
    run.values["images/label"] = torch.ones(4, dtype=torch.long)
    assert consistency(Results([run]), "shapes") == {}
