"""What a training leaves, and that the same recipe leaves the same."""

import numpy as np
import pandas as pd
import pytest
import torch
from own_images import SPLITS, edit_card, edit_table, own_images, own_recipe, same_weights
from safetensors.torch import load_file
from tiny_recipes import PHASES
from torch.nn import functional as F

from lib import phase
from lib.evaluate import evaluate
from lib.maps import explain_and_keep
from lib.run import build_model
from lib.table import at, load, summary
from lib.train import phase_conditions, train


def test_the_same_recipe_gives_the_same_bits(tiny, trained):
    again = train(tiny(name="again", l1=1e-4))
    assert same_weights(again, trained["softcam"])
    pd.testing.assert_frame_equal(again.history, trained["softcam"].history, check_exact=True)
    assert not same_weights(train(tiny(name="other", l1=1e-4, seed=1)), again)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"sampling": "class_balanced"}, False),
        ({"class_weights": "dynamic"}, False),
        ({"criterion": "focal"}, False),
        ({"criterion": "kappa"}, False),
        ({"criterion": "mse"}, False),
        ({"criterion": "focal", "focal_gamma": 0.0}, True),  # is cross entropy, up to rounding
        ({"sampling_decay": 0.5, "class_weights_decay": 0.5, "focal_gamma": 3.0}, True),  # of what is not used
    ],
)
def test_each_option_reaches_the_optimiser(tiny, changes, same):
    plain = {"limit": {"train": 21, "val": 8, "test": 1}, "epochs": 1, "method": "blackbox"}
    plain |= {"optimizer": "sgd", "schedule": "none", "lr": 0.1}
    name = "-".join(f"{key}-{value}" for key, value in changes.items())
    both = [train(tiny(**plain, name="plain")), train(tiny(**plain, **changes, name=name))]
    one, two = (load_file(run.dir / "last.safetensors")["fc.weight"] for run in both)
    assert torch.allclose(one, two, atol=1e-6) == same


def test_every_seed_phase_and_epoch_has_an_order_and_draws_of_its_own(tiny, monkeypatch):
    orders, draws = set(), set()

    def first_draw(module, fixed, batches, measured):
        draws.add(torch.rand(1).item())
        for epoch in range(2):
            batches.sampler.set_epoch(epoch)
            orders.add(tuple(batches.sampler))

    monkeypatch.setattr(phase, "fit_phase", first_draw)
    for sampling in ("instance", "class_balanced"):
        for seed in (0, 1):
            train(tiny(name=f"draws-{sampling}", seed=seed, sampling=sampling, **PHASES))
    assert (len(orders), len(draws)) == (2 * 2 * 3 * 2, 2 * 3)


def test_history_has_every_epoch_of_every_phase(trained):
    history = trained["explainer"].history
    phases = [("classifier", 0), ("classifier", 1), ("explainer", 0), ("explainer", 1), ("joint", 0)]
    assert list(zip(history["phase"], history["epoch"], strict=True)) == [*phases, ("joint", 1)]
    for split in ("train", "val"):
        for name in ("loss", "classification", "explanation", "sparsity", "contiguity", "accuracy", "auc"):
            assert history[f"{split}_{name}"].notna().all(), name
    alpha = history["phase"].map(dict(zip(("classifier", "explainer", "joint"), PHASES["alpha"], strict=True)))
    total = alpha * history["val_classification"] + (1 - alpha) * history["val_explanation"]
    assert torch.allclose(torch.tensor(total), torch.tensor(history["val_loss"]), atol=1e-5)
    assert "val_penalty" in trained["softcam"].history


@pytest.mark.parametrize(
    ("split", "rows", "checkpoint"),
    [("val", range(12, 18), "loss"), ("val", range(12, 18), "accuracy"), ("train", range(12), "loss")],
)
def test_an_area_under_the_curve_without_one_of_the_classes_is_undefined(tmp_path, split, rows, checkpoint):
    own_images(tmp_path)
    edit_table(tmp_path, "label", dict.fromkeys(rows, "1"))
    history = train(own_recipe(tmp_path, checkpoint=checkpoint)).history
    other = {"val": "train", "train": "val"}[split]
    assert history[f"{split}_auc"].isna().all() and history[f"{other}_auc"].between(0, 1).all()
    assert history[[f"{split}_accuracy", f"{other}_accuracy"]].notna().all(axis=None)


def test_three_classes_without_masks_are_trained_explained_and_evaluated(tmp_path):
    own_images(tmp_path)
    edit_card(tmp_path, classes=["a", "b", "c"], annotation="none")
    rows = range(len(SPLITS))
    edit_table(tmp_path, "label", {i: str(i % 3) for i in rows})
    edit_table(tmp_path, "patient", {i: f"p{i // 3}" for i in rows})
    edit_table(tmp_path, "mask", dict.fromkeys(rows, ""))
    measured = {"faithfulness_count": 3, "aopc_steps": 4, "deletion_steps": 3, "resamples": 30, "ig_steps": 4}
    run = train(own_recipe(tmp_path, explain_count=6, **measured))
    assert not run.images(6)["has_mask"].any()
    explain_and_keep(run)
    evaluate(run)
    table = load(tmp_path / "runs")
    assert not table["synthetic"].any()
    assert at(table, "probability", "all")["k"].unique().tolist() == [0, 1, 2]
    evidence = table[table["method"] == "evidence"]
    (found,) = summary(at(evidence, "activation_precision")).itertuples()
    assert (np.isnan(found.value), found.used, found.undefined) == (True, 0, 6)
    assert len(summary(at(evidence, "aopc", "all"))) == 5


def test_frozen_parts_do_not_move(trained):
    run = trained["explainer"]
    states = {phase: load_file(run.dir / f"{phase}.safetensors") for phase in run.recipe.phase_names}

    def moved(part, first, second):
        keys = [key for key in states[first] if key.startswith(part)]
        return sum(not torch.equal(states[first][key], states[second][key]) for key in keys)

    assert moved("classifier.", "classifier", "explainer") == 0  # parameters and batch statistics
    assert moved("explainer.", "classifier", "explainer") > 0
    assert moved("explainer.", "explainer", "joint") > 0 or moved("classifier.", "explainer", "joint") > 0
    explainer = build_model(run.recipe).explainer
    assert int(states["classifier"]["explainer.bn.num_batches_tracked"]) == 0
    assert torch.equal(states["classifier"]["explainer.bn.running_mean"], explainer.bn.running_mean)


def test_best_weights_are_those_of_the_lowest_validation_loss(trained):
    run = trained["blackbox"]
    labels, probabilities = run.predictions(split="val")
    epochs = run.history[run.history["epoch"] > 0]
    assert F.nll_loss(probabilities.log(), labels).item() == pytest.approx(epochs["val_loss"].min(), abs=1e-5)
    assert (run.dir / "last.safetensors").exists() and not (run.dir / "checkpoints").exists()
    assert list((run.dir / "tensorboard").rglob("events.out.tfevents*"))


def test_evolution_keeps_the_fixed_images_after_each_epoch(trained):
    evolution = trained["softcam"].evolution
    assert set(evolution) == {"images", "softcam/000", "softcam/001", "softcam/002"}
    assert evolution["images"].shape == (2, 3, 64, 64)
    assert evolution["softcam/001"].shape == (2, 2, 16, 16)
    assert trained["explainer"].evolution["joint/001"].shape == (2, 1, 64, 64)
    assert trained["blackbox"].evolution == {}


def test_early_stopping_and_augmentation_and_bf16_that_keeps_weights_in_float32(tiny):
    options = {"patience": 1, "lr": 1.0, "optimizer": "sgd", "schedule": "none", "augment": "xml", "precision": "bf16"}
    run = train(tiny(name="early", epochs=30, **options))
    assert len(run.history) < 31
    assert all(v.dtype in (torch.float32, torch.int64) for v in load_file(run.dir / "best.safetensors").values())


@pytest.mark.parametrize(
    ("classifier", "explainer", "shares", "met"),
    [
        ([1.0, 0.25], [0.5, 0.05], [0.25, 0.1], [True, True]),
        ([1.0, 0.5], [0.5, 0.2], [0.5, 0.4], [False, False]),
        ([1.0, 0.05, 0.25], [0.5, 1e-4], [0.05, 2e-4], [False, False]),  # too far; empty
        ([1.0], [0.5, 0.1, 0.3], [0.2], [True]),  # the best state is carried over
    ],
)
def test_phase_conditions(classifier, explainer, shares, met):
    rows = [("classifier", v, 1.0, v) for v in classifier] + [("explainer", 0.1, v, v) for v in explainer]
    columns = ["phase", "train_classification", "train_explanation", "val_loss"]
    found = phase_conditions(pd.DataFrame(rows, columns=columns))
    assert found["share"].tolist() == pytest.approx(shares) and found["met"].tolist() == met
    assert phase_conditions(pd.DataFrame([("softcam", 1.0, 1.0, 1.0)] * 2, columns=columns)).empty


def test_a_hybrid_loss_needs_annotated_images(tmp_path):
    own_images(tmp_path)
    edit_table(tmp_path, "mask", dict.fromkeys(range(len(SPLITS)), ""))
    with pytest.raises(ValueError, match=r"^hybrid: expected training images with a mask or boxes, .* has none$"):
        train(own_recipe(tmp_path, **{**PHASES, "hybrid": True}))
    assert not (tmp_path / "runs").exists()
