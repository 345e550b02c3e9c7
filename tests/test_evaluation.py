import math

import pytest
import torch

from lib import recipe
from lib.evaluation import classification_summary, correctness, evaluate_run, explain_and_keep, explain_run, interval
from lib.runs import Run
from lib.training import load_or_train


@pytest.fixture(scope="module")
def evaluated(trained):
    found = {}
    for name, run in trained.items():
        explain_and_keep(run)
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


def test_metrics_json_holds_every_number_with_its_interval(evaluated):
    for name, (run, metrics) in evaluated.items():
        groups = {"reference", "grid_pointing_game", "classification", "patients", "images", "explanations", "sanity"}
        assert set(metrics) == {"schema", "recipe", "versions"} | groups
        assert list(metrics["explanations"]) == list(run.maps)
        accuracy = metrics["classification"]["accuracy"]
        assert metrics["classification"]["accuracy_interval"]["value"] == pytest.approx(accuracy)
        assert len(metrics["patients"]) == metrics["classification"]["count"]
        for found in metrics["explanations"].values():
            assert set(found["activation_precision"]) == {"value", "low", "high", "used", "undefined"}
        assert ("phases" in metrics["classification"]) == (name == "explainer")
    explainer = evaluated["explainer"][1]
    assert list(explainer["classification"]["phases"]) == ["classifier", "explainer"]
    assert {"pompom", "mean_heatmap"} <= set(explainer["explanations"]["explainer"])
    softcam = evaluated["softcam"][1]["explanations"]["evidence"]
    assert {"positive_share_diseased", "negative_share_healthy"} <= set(softcam)


def test_classification_is_over_the_whole_test_split(trained):
    assert classification_summary(trained["blackbox"])["count"] == 12


def test_evaluating_twice_gives_the_same_file(evaluated):
    run, metrics = evaluated["softcam"]
    before = (run.dir / "metrics.json").read_bytes()
    assert evaluate_run(run) == metrics
    assert (run.dir / "metrics.json").read_bytes() == before


def test_values_hold_every_number_image_by_image(evaluated):
    for run, metrics in evaluated.values():
        values = Run.load(run.dir).values
        assert values["classification/correct"].mean().item() == pytest.approx(metrics["classification"]["accuracy"])
        for method, found in metrics["explanations"].items():
            assert values[f"{method}/top1"].nanmean().item() == pytest.approx(found["topk_precision"]["value"][0])
            assert values[f"{method}/aopc"].nanmean().item() == pytest.approx(found["aopc"]["value"][-1], abs=1e-6)
            assert len(values[f"{method}/gini"]) == run.recipe.explain_count
        assert values["images/has_mask"].tolist() == run.images(run.recipe.explain_count)["has_mask"].tolist()


def test_correctness_of_the_phases(trained):
    found = correctness(trained["explainer"])
    assert list(found) == ["correct", "correct_classifier", "correct_explainer"]
    phase = trained["explainer"].read_weights("classifier")
    labels, probabilities = trained["explainer"].predict_split("test", phase)
    assert found["correct_classifier"].tolist() == (probabilities.argmax(1) == labels).float().tolist()


def test_a_usual_method_that_cannot_explain_the_model_is_left_out_and_a_named_one_raises(trained, monkeypatch):
    run = trained["softcam"]
    batch = run.images(2)
    monkeypatch.setitem(recipe.USUAL_METHODS, "softcam", ("evidence", "explainer"))
    with pytest.warns(UserWarning, match="compact: without explainer: expected a model with an Explainer"):
        assert list(explain_run(run, batch)) == ["evidence"]
    with pytest.raises(TypeError, match="explainer: expected a model with an Explainer"):
        explain_run(run, batch, ["explainer"])


def test_what_a_recipe_does_not_measure_is_not_measured(trained, tiny):
    asked = {"measure": ["localisation", "removal"], "split": "val", "explain_methods": ["evidence"]}
    recipe = trained["softcam"].recipe.replace(**asked)
    run = load_or_train(recipe)
    explain_and_keep(run)
    metrics = evaluate_run(run)
    assert set(metrics["explanations"]["evidence"]) >= {"topk_precision", "activation_precision"}
    assert {"aopc", "deletion_area"} < set(metrics["explanations"]["evidence"])
    assert not {"road", "common_aopc", "gini"} & set(metrics["explanations"]["evidence"])
    assert len(metrics["images"]) == metrics["classification"]["count"] == 8
    assert metrics["images"] == run.images()["id"]
    explain_and_keep(trained["softcam"])
    evaluate_run(trained["softcam"])
    assert len(trained["softcam"].metrics["images"]) == 12
