import math
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from lib import evaluate, metrics, recipe
from lib.explain import explain
from lib.maps import explain_and_keep, explain_run, patch_of, perturbed
from lib.models import explainer_classifier
from lib.run import Run
from lib.table import constants, joined, summary
from lib.train import blackbox_twin, load_or_train

COLUMNS = ["method", "metric", "judge", "resolution", "split", "image", "patient", "k", "value"]


@pytest.fixture(scope="module")
def softcam(trained):
    run = trained["softcam"]
    batch = run.images(12)
    return run, batch, explain_run(run, batch, ["evidence"])["evidence"]


def values(table, metric, method=None, judge="own", resolution=None, split="test"):
    """The values of a metric: (N,), or (N, L) of a curve; resolution None: of what stands at one alone."""
    rows = table[(table["metric"] == metric) & (table["judge"] == judge) & (table["split"] == split)]
    rows = rows if resolution is None else rows[rows["resolution"] == resolution]
    rows = rows if method is None else rows[rows["method"] == method]
    found = rows.pivot_table("value", "image", "k", sort=False, dropna=False)
    return torch.tensor(found.to_numpy()).squeeze(1)


def test_a_table_holds_every_number_of_every_image(evaluated):
    for name, run in evaluated.items():
        table = Run.load(run.dir).table
        assert list(table.columns) == COLUMNS
        assert not table.duplicated(["method", "metric", "judge", "resolution", "image", "k"]).any()
        assert set(table["split"]) == {"test"}
        labels, probabilities = run.predictions()
        assert torch.equal(values(table, "label"), labels.double())
        assert torch.allclose(values(table, "probability"), probabilities.double())
        correct = probabilities.argmax(1) == labels
        assert values(table, "correct").tolist() == correct.double().tolist()
        scalars = table[table["image"] == ""].groupby("metric")["value"].first()
        assert scalars["accuracy"] == pytest.approx(correct.double().mean().item())
        for method, maps in run.maps.items():
            assert len(values(table, "gini", method)) == len(maps) == run.recipe.explain_count
        phases = {"correct_classifier", "correct_explainer", "auc_classifier", "auc_explainer"}
        assert (phases <= set(table["metric"])) == (name == "explainer")
    explainer = evaluated["explainer"].table
    assert {"pompom", "pompom_curve", "mean_heatmap"} <= set(explainer[explainer["method"] == "explainer"]["metric"])
    phase = run.predictions("classifier")[1]
    assert values(explainer, "correct_classifier").tolist() == (phase.argmax(1) == labels).double().tolist()


def test_evaluating_twice_gives_the_same_file(evaluated):
    run = evaluated["softcam"]
    before = (run.dir / "table.parquet").read_bytes()
    assert evaluate.evaluate(run, evaluated["blackbox"]).equals(Run.load(run.dir).table)
    assert (run.dir / "table.parquet").read_bytes() == before


def test_localisation_is_every_metric_of_the_maps_and_the_masks(softcam):
    run, batch, maps = softcam
    table, masks = evaluate.localisation(run, {"evidence": maps}, batch), batch["mask"].bool()
    for name in ("activation_precision", "activation_sensitivity", "weighting_game", "pointing_game", "best_iou"):
        found = values(table, name, resolution="image")
        assert torch.allclose(found.float(), getattr(metrics, name)(maps, masks), equal_nan=True), name
        assert found.isnan().tolist() == (~batch["has_mask"]).tolist(), name
    small = F.interpolate(maps[:, None], run.model(batch["image"]).evidence.shape[2:], mode="bicubic", antialias=True)
    coarse = F.interpolate(small, maps.shape[1:], mode="bicubic")[:, 0]
    for resolution, read in (("image", maps), ("evidence", coarse)):
        pooled = metrics.topk_precision(read, masks, run.recipe.topk, run.description.patch)
        found = values(table, "topk_precision", resolution=resolution).nanmean(0)
        assert torch.allclose(found.float(), pooled.float(), atol=1e-6)
        found = values(table, "activation_precision", resolution=resolution).float()
        assert torch.allclose(found, metrics.activation_precision(read, masks), atol=1e-5, equal_nan=True)
    pompom = metrics.pompom(maps.clamp(min=0) / maps.amax((1, 2), keepdim=True), masks)
    assert torch.allclose(values(table, "pompom").float(), pompom, equal_nan=True)
    assert sorted(table[table["metric"] == "topk_precision"]["k"].unique()) == list(range(1, run.recipe.topk + 1))
    assert set(table[table["method"] == "masks"]["metric"]) == {"topk_ceiling", "topk_chance"}


@pytest.mark.parametrize("name", ["blackbox", "softcam", "explainer"])
def test_the_evidence_grid_is_that_of_the_last_features(trained, name):
    run, seen = trained[name], []
    original = F.interpolate
    with mock.patch(
        "lib.evaluate.F.interpolate", lambda x, size, **more: seen.append(size) or original(x, size, **more)
    ):
        assert evaluate.at_evidence(run, torch.rand(1, 64, 64)).shape == (1, 64, 64)
    assert tuple(seen[0]) == (16, 16)  # compact: output stride 4


def test_only_patches_above_the_threshold_count(softcam, monkeypatch):
    run, batch, maps = softcam
    monkeypatch.setattr(run, "recipe", run.recipe.replace(topk_threshold=float(maps.median())))
    found = values(evaluate.localisation(run, {"evidence": maps}, batch), "topk_precision", resolution="image").float()
    given = maps, batch["mask"].bool(), run.recipe.topk, run.description.patch, run.recipe.topk_threshold
    assert torch.allclose(found, evaluate.precision(metrics.topk_hits(*given)), equal_nan=True)


def test_deleted_pixels_become_the_mean_of_the_data_set(softcam, monkeypatch):
    run, batch, maps = softcam
    monkeypatch.setattr(run, "recipe", run.recipe.replace(deletion_fill="dataset"))
    chosen = perturbed(run, batch)
    found = values(evaluate.faithfulness(run, {"evidence": maps}, batch, whole=False), "deletion_curve")
    given = run.predict, batch["image"][chosen], maps[chosen], batch["label"][chosen], run.recipe.deletion_steps, 8
    assert torch.equal(found.float(), metrics.deletion_hits(*given, fill=tuple(run.description.mean)))


def test_rows_of_choice_are_the_same_measures_of_validation_images(softcam, monkeypatch):
    run, _, _ = softcam
    asked = {"choose_count": 6, "explain_methods": ["evidence", "random"]}
    monkeypatch.setattr(run, "recipe", run.recipe.replace(**asked))
    table, batch = evaluate.choice(run), run.images(6, "val")
    assert set(table["split"]) == {"val"} and set(table["image"]) <= set(batch["id"])
    assert table["image"].nunique() == 6 and not set(batch["id"]) & set(run.images()["id"])
    assert set(table["metric"]) == {*evaluate.CHOICE, "aopc"} and set(table["method"]) == {"evidence", "random"}
    assert set(table[table["metric"] == "aopc"]["k"]) == {run.recipe.aopc_steps}
    assert not table.duplicated(["method", "metric", "judge", "resolution", "image"]).any()
    maps = explain_run(run, batch)
    expected = values(evaluate.faithfulness(run, maps, batch), "aopc", "random")[:, -1]
    assert torch.equal(values(table, "aopc", "random", split="val"), expected)
    for resolution in ("image", "evidence"):
        given = {"method": "random", "resolution": resolution}
        expected = values(evaluate.localisation(run, maps, batch), "activation_precision", **given)
        assert torch.allclose(values(table, "activation_precision", split="val", **given), expected, equal_nan=True)


def test_faithfulness_uses_the_first_images_with_a_mask(softcam):
    run, batch, maps = softcam
    table = evaluate.faithfulness(run, {"evidence": maps}, batch)
    chosen = batch["has_mask"].nonzero()[: run.recipe.faithfulness_count, 0]
    assert perturbed(run, batch).tolist() == chosen.tolist()
    for _, rows in table.groupby(["metric", "k"]):
        assert rows["image"].tolist() == [batch["id"][i] for i in chosen]
    curve = values(table, "perturbation_curve")
    assert curve.shape == (len(chosen), run.recipe.aopc_steps + 1)
    assert torch.allclose(metrics.aopc(curve), values(table, "aopc"), atol=1e-6)
    assert torch.allclose(values(table, "abpc"), (values(table, "aopc") - values(table, "aopc_lerf"))[:, -1], atol=1e-6)
    right = run.predict(batch["image"][chosen]).argmax(1) == batch["label"][chosen]
    assert values(table, "deletion_curve")[:, 0].tolist() == right.double().tolist()


def test_an_in_model_map_is_also_judged_by_the_black_box(softcam):
    run, batch, maps = softcam
    twin, chosen = blackbox_twin(run.recipe), perturbed(run, batch)
    table = evaluate.faithfulness(run, {"evidence": maps, "random": maps}, batch, twin)
    assert set(table[table["judge"] == "twin"]["method"]) == {"evidence"}
    given = batch["image"][chosen], maps[chosen], batch["label"][chosen]
    options = {"shares": evaluate.ROAD_SHARES, "seed": run.recipe.stream("road")}
    for judge, predict in (("own", run.predict), ("twin", twin.predict)):
        curve, start = values(table, "perturbation_curve", "evidence", judge), predict(given[0])
        assert torch.allclose(curve[:, 0].float(), start.gather(1, given[2][:, None])[:, 0], atol=1e-6)
        assert torch.equal(values(table, "road", "evidence", judge).float(), metrics.road(predict, *given, **options))


def test_evidence_is_read_at_its_own_resolution(softcam):
    run, batch, maps = softcam
    table = evaluate.properties(run, {"evidence": maps}, batch)
    disease, sick = evaluate.native_evidence(run, batch)[:, 1], batch["label"] == 1
    found = table[table["metric"] == "positive_proportion"]
    assert set(found["resolution"]) == {"evidence"}
    assert found["value"].tolist() == pytest.approx(metrics.positive_proportion(disease).tolist())
    assert set(found["k"]) == {1}
    game = metrics.grid_pointing_game(disease[sick], disease[~sick], seed=run.recipe.stream("grid"))
    assert table[table["metric"] == "grid_pointing_game"]["value"].item() == pytest.approx(game)
    assert values(table, "completeness").max() < 1e-5
    assert "positive_proportion" not in set(evaluate.properties(run, {"random": maps}, batch)["metric"])


def test_of_more_than_two_classes_every_one_has_its_evidence(softcam, monkeypatch):
    run, batch, maps = softcam
    evidence = torch.randn(12, 3, 5, 5)
    monkeypatch.setattr(evaluate, "native_evidence", lambda *_: evidence)
    monkeypatch.setattr(evaluate, "completeness", lambda *_: torch.zeros(4))
    monkeypatch.setattr(evaluate, "explainer_of", lambda *_: lambda images: images[:, 0])
    batch = batch | {"label": torch.arange(12) % 3}
    table = evaluate.properties(run, {"evidence": maps}, batch)
    for metric, count in (("positive_proportion", 12), ("grid_pointing_game", 1)):
        found = table[table["metric"] == metric]
        assert found["k"].value_counts().to_dict() == {0: count, 1: count, 2: count}
    for k in range(3):
        one, sick = evidence[:, k], batch["label"] == k
        assert values(table, "positive_proportion")[:, k].float().tolist() == metrics.positive_proportion(one).tolist()
        game = metrics.grid_pointing_game(one[sick], one[~sick], seed=run.recipe.stream("grid"))
        assert found[found["k"] == k]["value"].item() == pytest.approx(game)


def test_integrated_gradients_of_an_explainer_classifier_are_complete_at_its_heatmap():
    torch.manual_seed(0)
    model = explainer_classifier("compact", 2, in_channels=1, width=4, channels=(4, 8, 8), init_bias=1.0)
    model = model.eval().double()
    batch = {"image": torch.rand(3, 1, 16, 16, dtype=torch.double), "label": torch.tensor([0, 1, 0])}
    run = SimpleNamespace(model=model, inputs=lambda images: images)
    maps = explain("integrated_gradients", model, batch["image"], batch["label"], steps=200)
    assert evaluate.completeness(run, "integrated_gradients", maps, batch).max() < 0.02


def test_completeness_of_a_logit_of_zero_is_undefined():
    run = SimpleNamespace(model=lambda images: images.mean((2, 3)), inputs=lambda images: images)
    batch = {"image": torch.stack([torch.zeros(2, 4, 4), torch.ones(2, 4, 4)]), "label": torch.tensor([0, 1])}
    found = evaluate.completeness(run, "lrp", torch.ones(2, 4, 4), batch)
    assert found.tolist() == pytest.approx([math.nan, 15.0], nan_ok=True)


def test_the_precision_of_an_undefined_map_is_undefined():
    found = evaluate.precision(torch.tensor([[math.nan, math.nan], [0, 1], [0.5, math.nan]]))
    assert found.flatten().tolist() == pytest.approx([math.nan, math.nan, 0, 0.5, 0.5, 0.5], nan_ok=True)


def test_grids_are_of_the_maps_that_are_drawn(softcam):
    run, batch, maps = softcam
    table = evaluate.grids(run, {"evidence": maps, "random": maps, "edge_map": maps}, batch, count=2)
    assert set(table["method"]) == {"evidence", "random"}
    assert table["metric"].nunique() == 20
    curve = values(table, "perturbation_curve 16 black", "evidence")
    assert curve.shape == (2, 50)
    chosen = perturbed(run, batch)[:2]
    start = run.predict(batch["image"][chosen]).gather(1, batch["label"][chosen, None])[:, 0]
    assert torch.allclose(curve[:, 0].float(), start, atol=1e-6)


def test_sanity_marks_the_map_that_does_not_depend_on_the_model(softcam, monkeypatch):
    run, batch, maps = softcam
    monkeypatch.setattr(run, "recipe", run.recipe.replace(sanity_count=2))
    table = evaluate.sanity_checks(run, {"evidence": maps, "random": maps}, batch)
    unchanged = table[table["metric"] == "unchanged"].set_index("method")["value"]
    assert unchanged.to_dict() == {"evidence": 0, "random": 1}
    assert values(table, "spearman cascading", "random")[:, -1].tolist() == pytest.approx([1.0, 1.0])
    similar = [values(table, f"{name} cascading", "evidence") for name in ("spearman", "spearman_abs", "ssim")]
    assert len({found.shape for found in similar}) == 1


def test_the_patch_follows_the_size_of_the_images(tiny):
    for size, patch in {None: 8, 64: 8, 128: 16, 16: 2, 4: 1}.items():
        assert patch_of(SimpleNamespace(recipe=tiny(image_size=size))) == patch
    assert patch_of(SimpleNamespace(recipe=tiny(image_size=128, patch=5))) == 5


def test_a_usual_method_that_cannot_explain_the_model_is_left_out_and_a_named_one_raises(trained, monkeypatch):
    run = trained["softcam"]
    batch = run.images(2)
    monkeypatch.setitem(recipe.USUAL_METHODS, "softcam", ("evidence", "explainer"))
    with pytest.warns(UserWarning, match="compact: without explainer: expected a model with an Explainer"):
        assert list(explain_run(run, batch)) == ["evidence"]
    with pytest.raises(TypeError, match="explainer: expected a model with an Explainer"):
        explain_run(run, batch, ["explainer"])


def test_what_a_recipe_does_not_measure_is_not_measured(trained, evaluated):
    asked = {"measure": ["localisation", "removal"], "split": "val", "explain_methods": ["evidence"]}
    run = load_or_train(trained["softcam"].recipe.replace(**asked))
    try:
        explain_and_keep(run)
        table = evaluate.evaluate(run)
    finally:  # the others' runs as they were
        explain_and_keep(trained["softcam"])
        evaluate.evaluate(trained["softcam"], trained["blackbox"])
    found = set(table[table["method"] == "evidence"]["metric"])
    assert {"topk_precision", "activation_precision", "aopc", "deletion_area"} < found
    assert not {"road", "gini", "abpc"} & found
    assert set(table["judge"]) == {"own"}
    assert set(table["split"]) == {"val"}
    assert summary(joined([table], [constants(run)]), ["metric"]).set_index("metric")["used"]["correct"] == 8
    assert table[table["metric"] == "correct"]["image"].tolist() == run.images()["id"]
