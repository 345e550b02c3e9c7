import math

import pytest
import torch

from lib.evaluation import (
    classification_summary,
    evaluate_run,
    explain_run,
    faithfulness_summary,
    interval,
    localisation_summary,
)
from lib.metrics import aopc, topk_precision


@pytest.fixture(scope="module")
def evaluated(trained):
    found = {}
    for name, run in trained.items():
        batch = run.test_images(run.recipe.explain_count)
        run.write_maps(explain_run(run, batch), batch["id"], batch["label"])
        found[name] = (run, evaluate_run(run))
    return found


def test_interval_of_values_and_of_columns():
    one = interval(torch.tensor([1.0, 3.0, math.nan]), resamples=200)
    assert (one["value"], one["used"], one["undefined"]) == (2.0, 2, 1)
    assert one["low"] == 1.0
    assert one["high"] == 3.0
    two = interval(torch.tensor([[1.0, math.nan], [3.0, math.nan]]), resamples=200)
    assert two["value"][0] == 2.0
    assert math.isnan(two["value"][1])
    assert two["undefined"] == [0, 2]


def test_topk_curve_is_the_pooled_precision(trained):
    run = trained["softcam"]
    batch = run.test_images(12)
    maps = explain_run(run, batch, ["evidence"])["evidence"]
    found = localisation_summary(run, maps, batch, "evidence")
    pooled = topk_precision(maps, batch["mask"].bool(), run.recipe.topk, run.description.patch)
    assert torch.allclose(torch.tensor(found["topk_precision"]["value"]), pooled.float(), atol=1e-6)


def test_faithfulness_uses_the_first_images_with_a_mask(trained):
    run = trained["softcam"]
    batch = run.test_images(12)
    maps = explain_run(run, batch, ["evidence"])["evidence"]
    found = faithfulness_summary(run, maps, batch)
    assert len(found["aopc"]["value"]) == run.recipe.aopc_steps + 1
    assert found["aopc"]["used"][0] == min(run.recipe.faithfulness_count, int(batch["has_mask"].sum()))
    again = aopc(torch.tensor(found["perturbation_curve"]["value"])[None])[0]
    assert torch.allclose(again, torch.tensor(found["aopc"]["value"]), atol=1e-6)
    first = batch["has_mask"].nonzero()[: run.recipe.faithfulness_count, 0]
    right = run.predict(batch["image"][first]).argmax(1) == batch["label"][first]
    assert found["deletion_curve"]["value"][0] == pytest.approx(right.float().mean().item())


def test_a_random_map_is_worth_chance_and_a_perfect_one_everything(trained):
    run = trained["blackbox"]
    batch = run.test_images(12)
    perfect = localisation_summary(run, batch["mask"].float() + 1e-9, batch, "random")
    assert perfect["topk_precision"]["value"][0] == 1.0
    assert perfect["pointing_game"]["undefined"] == int((~batch["has_mask"]).sum())
    assert perfect["activation_precision"]["value"] == pytest.approx(1.0, abs=1e-4)


def test_metrics_json_holds_every_number_with_its_interval(evaluated):
    for name, (run, metrics) in evaluated.items():
        assert set(metrics) == {"schema", "recipe", "versions", "reference", "classification", "explanations"}
        assert list(metrics["explanations"]) == list(run.maps)
        accuracy = metrics["classification"]["accuracy"]
        assert metrics["classification"]["accuracy_interval"]["value"] == pytest.approx(accuracy)
        for found in metrics["explanations"].values():
            assert set(found["activation_precision"]) == {"value", "low", "high", "used", "undefined"}
        assert ("phases" in metrics["classification"]) == (name == "explainer")
    explainer = evaluated["explainer"][1]
    assert list(explainer["classification"]["phases"]) == ["classifier", "explainer"]
    assert {"pompom", "mean_heatmap"} <= set(explainer["explanations"]["explainer"])
    softcam = evaluated["softcam"][1]["explanations"]["evidence"]
    assert {"positive_proportion_with_mask", "negative_proportion_without_mask"} <= set(softcam)


def test_classification_is_over_the_whole_test_split(trained):
    assert classification_summary(trained["blackbox"])["count"] == 12


def test_evaluating_twice_gives_the_same_file(evaluated):
    run, metrics = evaluated["softcam"]
    before = (run.dir / "metrics.json").read_bytes()
    assert evaluate_run(run) == metrics
    assert (run.dir / "metrics.json").read_bytes() == before
