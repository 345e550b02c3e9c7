import math
from types import SimpleNamespace

import pytest
import torch

from lib import measures
from lib.evaluation import explain_run, summaries
from lib.explain import explain
from lib.metrics import aopc, grid_pointing_game, positive_proportion, road, topk_precision
from lib.models import explainer_classifier
from lib.training import blackbox_twin


@pytest.fixture(scope="module")
def softcam(trained):
    run = trained["softcam"]
    batch = run.images(12)
    return run, batch, explain_run(run, batch, ["evidence"])["evidence"]


def test_topk_curve_is_the_pooled_precision(softcam):
    run, batch, maps = softcam
    found = measures.localisation(run, maps, batch, "evidence")["topk_precision"].nanmean(0)
    pooled = topk_precision(maps, batch["mask"].bool(), run.recipe.topk, run.description.patch)
    assert torch.allclose(found, pooled.float(), atol=1e-6)


def test_faithfulness_uses_the_first_images_with_a_mask(softcam):
    run, batch, maps = softcam
    found = measures.faithfulness(run, maps, batch, "evidence")
    chosen = batch["has_mask"].nonzero()[: run.recipe.faithfulness_count, 0]
    assert measures.perturbed(run, batch).tolist() == chosen.tolist()
    for key, values in found.items():
        measured = values.reshape(len(values), -1).isfinite().any(1).nonzero()[:, 0].tolist()
        assert measured == chosen.tolist() or key == "faithfulness_correlation"
    assert found["aopc"].shape == (12, run.recipe.aopc_steps + 1)
    assert torch.allclose(aopc(found["perturbation_curve"][chosen]), found["aopc"][chosen], atol=1e-6)
    right = run.predict(batch["image"][chosen]).argmax(1) == batch["label"][chosen]
    assert found["deletion_curve"][chosen, 0].tolist() == right.float().tolist()
    assert summaries(run, {"evidence": found}, batch)["evidence"]["aopc"]["used"][0] == len(chosen)


def test_an_in_model_map_is_also_judged_by_the_black_box(softcam):
    run, batch, maps = softcam
    found = measures.faithfulness(run, maps, batch, "evidence")
    twin, chosen = blackbox_twin(run.recipe), measures.perturbed(run, batch)
    probability = twin.predict(batch["image"][chosen]).gather(1, batch["label"][chosen, None])[:, 0]
    assert torch.allclose(found["common_perturbation_curve"][chosen, 0], probability, atol=1e-6)
    assert not any(key.startswith("common") for key in measures.faithfulness(run, maps, batch, "random"))


def test_a_perfect_map_is_worth_everything(trained):
    run = trained["blackbox"]
    batch = run.images(12)
    perfect = measures.localisation(run, batch["mask"].float() + 1e-9, batch, "random")
    for name in ("pointing_game", "relevance_rank_accuracy", "best_iou"):
        values = perfect[name]
        assert values.nanmean() == 1.0, name
        assert values.isnan().tolist() == (~batch["has_mask"]).tolist(), name
    assert perfect["topk_precision"][:, 0].nanmean() == 1.0
    assert perfect["activation_precision"].nanmean().item() == pytest.approx(1.0, abs=1e-4)


def test_evidence_maps_are_complete_and_their_sign_is_counted(softcam):
    run, batch, maps = softcam
    found = measures.properties(run, maps, batch, "evidence")
    assert found["completeness"].nan_to_num(0).max() < 1e-4
    native = measures.native_evidence(run, batch)
    share, sick = positive_proportion(native[:, 1]), batch["label"] == 1
    assert found["disease_positive_proportion"].tolist() == share.tolist()
    assert found["positive_share_diseased"].isnan().tolist() == (~sick).tolist()
    assert found["positive_share_diseased"][sick].tolist() == share[sick].tolist()
    assert found["negative_share_healthy"].isnan().tolist() == sick.tolist()
    assert "positive_share_diseased" not in measures.properties(run, maps, batch, "random")
    game = measures.grid_pointing_game(run, batch)
    assert game == grid_pointing_game(native[sick][:, 1], native[~sick][:, 1], seed=run.recipe.stream("grid"))


def test_topk_of_true_positives_leaves_out_the_misclassified(softcam):
    run, batch, maps = softcam
    found = measures.localisation(run, maps, batch, "evidence")
    right = run.predict(batch["image"]).argmax(1) == batch["label"]
    kept = found["topk_precision"].where(right[:, None], torch.nan)
    assert torch.equal(found["topk_precision_true_positives"].nan_to_num(-1), kept.nan_to_num(-1))


@pytest.mark.parametrize("fill", ["zero", "mean", "blur"])
def test_every_deletion_fill_is_known_to_every_metric(softcam, fill, monkeypatch):
    run, batch, maps = softcam
    monkeypatch.setattr(run, "recipe", run.recipe.replace(deletion_fill=fill, faithfulness_count=1))
    found = measures.faithfulness(run, maps, batch, "random")
    assert found["insertion_area"].isfinite().sum() == 1


def test_small_images_have_few_tiles(softcam, monkeypatch):
    run, batch, maps = softcam
    monkeypatch.setattr(run, "recipe", run.recipe.replace(aopc_tile=32, faithfulness_count=1))
    assert measures.faithfulness(run, maps, batch, "random")["sufficiency"].isfinite().sum() == 4


def test_a_map_that_adds_up_to_something_else_is_incomplete(softcam):
    run, batch, maps = softcam
    assert measures.completeness(run, "lrp", 0 * maps, batch).tolist() == pytest.approx([1.0] * 12)


def test_integrated_gradients_of_an_explainer_classifier_are_complete_at_its_own_heatmap():
    torch.manual_seed(1)
    model = explainer_classifier("compact", 2, init_bias=0.5, width=8, channels=(4, 8, 8)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # so that z and the logits of a black image depend on z
            parameter.add_(0.3 * torch.randn_like(parameter)) if "explainer" not in name else parameter.mul_(1.5)
    run = SimpleNamespace(model=model, inputs=lambda images: images)
    batch = {"image": torch.rand(3, 3, 32, 32), "label": torch.tensor([0, 1, 1])}
    with torch.no_grad():
        black = torch.zeros_like(batch["image"])
        apart = model(black).logits - model.classifier(black, model.explainer(batch["image"]))
    assert (apart.abs().amax(1) > 0.1).all()  # the two baselines differ
    maps = explain("integrated_gradients", model, batch["image"], batch["label"], steps=200)
    assert measures.completeness(run, "integrated_gradients", maps, batch).max() < 0.02


def test_completeness_of_a_logit_of_zero_is_undefined():
    run = SimpleNamespace(model=lambda images: images.mean((2, 3)), inputs=lambda images: images)
    batch = {"image": torch.stack([torch.zeros(2, 4, 4), torch.ones(2, 4, 4)]), "label": torch.tensor([0, 1])}
    found = measures.completeness(run, "lrp", torch.ones(2, 4, 4), batch)
    assert found.tolist() == pytest.approx([math.nan, 15.0], nan_ok=True)


def test_one_undefined_map_leaves_the_other_images_measured(softcam):
    run, batch, maps = softcam
    chosen = measures.perturbed(run, batch)
    broken = maps.clone()
    broken[chosen[0], 3, 3] = torch.nan
    for measure in (measures.localisation, measures.faithfulness):
        whole, found = measure(run, maps, batch, "random"), measure(run, broken, batch, "random")
        for key, values in found.items():
            assert values[chosen[0]].isnan().all(), key
            kept = torch.arange(len(maps)) != chosen[0]
            if key != "shared_iou":  # its threshold is chosen on all images
                assert torch.allclose(values[kept], whole[key][kept], equal_nan=True), key


def test_pixels_are_imputed_once_for_all_judges(softcam, monkeypatch):
    run, batch, maps = softcam
    calls, impute = [], road.__globals__["impute"]
    monkeypatch.setitem(road.__globals__, "impute", lambda *given: calls.append(1) or impute(*given))
    found = measures.faithfulness(run, maps, batch, "evidence")
    chosen = measures.perturbed(run, batch)
    assert len(calls) == len(chosen) * len(measures.ROAD_SHARES)
    given = batch["image"][chosen], maps[chosen], batch["label"][chosen]
    options = {"shares": measures.ROAD_SHARES, "seed": run.recipe.stream("road")}
    assert torch.equal(found["road"][chosen], road(run.predict, *given, **options))
    assert torch.equal(found["common_road"][chosen], road(blackbox_twin(run.recipe).predict, *given, **options))


def test_grids_are_mean_curves_and_kept(softcam, monkeypatch):
    run, batch, maps = softcam
    asked = run.recipe.replace(aopc_grid=True)
    monkeypatch.setattr(run, "recipe", asked)
    given = {"evidence": maps, "random": maps, "edge_map": maps}
    grids = measures.perturbation_grids(run, given, batch, count=2)
    found = grids["evidence"]
    assert "edge_map" not in grids  # no figure shows it
    assert len(found) == 20
    assert found["16 black"].shape == (50,)
    chosen = measures.perturbed(run, batch)[:2]
    start = run.predict(batch["image"][chosen]).gather(1, batch["label"][chosen, None]).mean()
    assert all(math.isclose(curve[0], start, abs_tol=1e-6) for curve in found.values())
    assert (run.dir / "grid.safetensors").is_file()
    monkeypatch.setattr(run, "recipe", asked.replace(aopc_grid=False))
    assert measures.perturbation_grids(run, given, batch) == {}
    assert not (run.dir / "grid.safetensors").exists()  # nothing old is drawn


def test_sanity_marks_the_map_that_does_not_depend_on_the_model(softcam, monkeypatch):
    run, batch, maps = softcam
    run.write_maps({"evidence": maps, "random": torch.rand(maps.shape)}, batch)
    monkeypatch.setattr(run, "recipe", run.recipe.replace(sanity_count=2))
    found = measures.sanity_summary(run, batch)
    assert found["random"]["unchanged"] is True
    assert found["evidence"]["unchanged"] is False
    assert set(found["evidence"]["cascading"]) == set(found["evidence"]["independent"])
    assert found["random"]["cascading"][list(found["random"]["cascading"])[-1]]["spearman"] == pytest.approx(1.0)


def test_the_patch_follows_the_size_of_the_images(tiny):
    sizes = {None: 8, 64: 8, 128: 16, 16: 2, 4: 1}
    for size, patch in sizes.items():
        assert measures.patch_of(SimpleNamespace(recipe=tiny(image_size=size))) == patch
    assert measures.patch_of(SimpleNamespace(recipe=tiny(image_size=128, patch=5))) == 5
