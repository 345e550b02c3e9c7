"""What a training leaves, and that the same recipe leaves the same."""

import pandas as pd
import pytest
import torch
from own_images import edit_table, own_images, own_recipe
from safetensors.torch import load_file
from tiny_recipes import PHASES
from torch.nn import functional as F

from lib import phase
from lib.run import build_model
from lib.train import phase_warnings, train


def same_weights(one, two):
    one, two = (load_file(run.dir / "best.safetensors") for run in (one, two))
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


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
    both = [train(tiny(name=f"{kind}-{name}", **plain, **given)) for kind, given in (("a", {}), ("b", changes))]
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


def test_what_belongs_to_other_weights_is_deleted(tiny, capsys):
    run = train(tiny(name="fresh"))
    run.write_maps({"random": torch.zeros(1, 2, 2)}, run.images(1))
    (run.dir / "table.parquet").write_bytes(b"")
    assert train(tiny(name="fresh", width=5)).history["epoch"].tolist() == [0, 1, 2]
    assert not [name for name in ("maps.safetensors", "maps.json", "table.parquet") if (run.dir / name).exists()]
    assert "fresh: trained anew: width: 5 (trained with 4)" in capsys.readouterr().out


def test_history_has_every_epoch_of_every_phase(trained):
    history = trained["explainer"].history
    phases = [("classifier", 0), ("classifier", 1), ("classifier", 2), ("explainer", 0), ("explainer", 1), ("joint", 0)]
    assert list(zip(history["phase"], history["epoch"], strict=True)) == [*phases, ("joint", 1)]
    for split in ("train", "val"):
        for name in ("loss", "classification", "explanation", "sparsity", "contiguity", "accuracy", "auc"):
            assert history[f"{split}_{name}"].notna().all(), name
    alpha = history["phase"].map(dict(zip(("classifier", "explainer", "joint"), PHASES["alpha"], strict=True)))
    total = alpha * history["val_classification"] + (1 - alpha) * history["val_explanation"]
    assert torch.allclose(torch.tensor(total), torch.tensor(history["val_loss"]), atol=1e-5)
    assert "val_penalty" in trained["softcam"].history


@pytest.mark.parametrize(("split", "rows"), [("val", range(12, 18)), ("train", range(12))])
def test_an_area_under_the_curve_without_one_of_the_classes_is_undefined(tmp_path, split, rows):
    own_images(tmp_path)
    edit_table(tmp_path, "label", dict.fromkeys(rows, "1"))
    history = train(own_recipe(tmp_path)).history
    other = {"val": "train", "train": "val"}[split]
    assert history[f"{split}_auc"].isna().all() and history[f"{other}_auc"].between(0, 1).all()
    assert history[[f"{split}_accuracy", f"{other}_accuracy"]].notna().all(axis=None)


def test_a_score_needs_validation_images_of_every_class(tiny):
    recipe = tiny(name="absent", checkpoint="sensitivity", limit={"train": 8, "val": 1, "test": 1})
    with pytest.raises(ValueError, match=r"checkpoint: 'sensitivity' needs validation images of .* got none of '"):
        train(recipe)
    assert train(recipe.replace(checkpoint="accuracy", epochs=1)).finished


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


def test_early_stopping_and_augmentation(tiny):
    run = train(tiny(name="early", epochs=30, patience=1, lr=1.0, optimizer="sgd", schedule="none", augment="xml"))
    assert len(run.history) < 31


def test_bf16_keeps_weights_in_float32(tiny):
    run = train(tiny(name="bf16", precision="bf16", epochs=1))
    assert all(v.dtype in (torch.float32, torch.int64) for v in load_file(run.dir / "best.safetensors").values())


def test_phase_warnings():
    def history(classifier, explainer):
        rows = [("classifier", v, 1.0, v) for v in classifier] + [("explainer", 0.1, v, v) for v in explainer]
        return pd.DataFrame(rows, columns=["phase", "train_classification", "train_explanation", "val_loss"])

    assert phase_warnings(history([1.0, 0.25], [1.0, 0.1])) == []
    slow = phase_warnings(history([1.0, 0.8], [1.0, 0.5]))
    assert len(slow) == 2
    assert "'classifier' ended with the classification loss at 80%" in slow[0]
    assert (
        "0% of its first value, an empty heatmap (asked: 0% to 20%)"
        in phase_warnings(history([1.0, 0.2], [1.0, 0.0]))[0]
    )
    assert "at 2% of its first value (asked: 15% to 35%)" in phase_warnings(history([1.0, 0.02], [1.0, 0.1]))[0]
    assert phase_warnings(history([1.0, 0.2, 0.9], [1.0, 0.1])) == []  # the state of lowest validation loss counts
    assert phase_warnings(pd.DataFrame({"phase": ["softcam"] * 2, "train_classification": [1.0, 1.0]})) == []
