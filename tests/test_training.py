import pandas as pd
import pytest
import torch
from own_images import edit_table, own_images, own_recipe
from safetensors.torch import load_file
from tiny_recipes import PHASES
from torch.nn import functional as F

from lib import fitting, training
from lib.losses import contiguity, outside_penalty, sparsity
from lib.metrics import classification_metrics
from lib.objective import PhaseModule
from lib.recipe import Phase
from lib.runs import Run, build_model, open_split
from lib.training import load_or_train, phase_warnings, train


def same_weights(one, two):
    one, two = load_file(one), load_file(two)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_same_recipe_gives_the_same_bits(tiny, trained):
    again = train(tiny(name="again", l1=1e-4))
    assert same_weights(again.dir / "best.safetensors", trained["softcam"].dir / "best.safetensors")
    pd.testing.assert_frame_equal(again.history, trained["softcam"].history, check_exact=True)
    other = train(tiny(name="other", l1=1e-4, seed=1))
    assert not same_weights(other.dir / "best.safetensors", again.dir / "best.safetensors")


@pytest.mark.parametrize(("split", "rows"), [("val", range(12, 18)), ("train", range(12))])
def test_an_area_under_the_curve_without_one_of_the_classes_is_undefined(tmp_path, split, rows):
    own_images(tmp_path)
    edit_table(tmp_path, "label", dict.fromkeys(rows, "1"))
    history = train(own_recipe(tmp_path)).history
    other = {"val": "train", "train": "val"}[split]
    assert history[f"{split}_auc"].isna().all() and history[f"{other}_auc"].between(0, 1).all()
    assert history[[f"{split}_acc", f"{other}_acc"]].notna().all(axis=None)


@pytest.mark.parametrize("stop", [("classifier", 1), ("classifier", 2), ("joint", 1)])
def test_an_interrupted_training_goes_on_to_the_same_bits(tiny, trained, monkeypatch, stop):
    recipe = tiny(name=f"cut-{stop[0]}{stop[1]}", hybrid=True, **PHASES)

    def fail(self, trainer, module):
        if (self.phase.name, trainer.current_epoch + 1) == stop:
            raise RuntimeError("power cut")

    monkeypatch.setattr(fitting.Recorder, "on_train_epoch_start", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        train(recipe)
    assert not (recipe.run_dir / "best.safetensors").exists()
    monkeypatch.undo()
    run = train(recipe)
    assert same_weights(run.dir / "best.safetensors", trained["explainer"].dir / "best.safetensors")
    pd.testing.assert_frame_equal(run.history, trained["explainer"].history, check_exact=True)
    assert run.evolution.keys() == trained["explainer"].evolution.keys()


REBALANCED = {"sampling": "progressive", "class_weights": "dynamic", "criterion": "focal", "checkpoint": "auc",
              "epochs": 3, "l1": 1e-4}  # fmt: skip


def test_rebalancing_goes_on_to_the_same_bits_too(tiny, monkeypatch):
    whole = train(tiny(name="rebalanced", **REBALANCED))

    def fail(self, trainer, module):
        if trainer.current_epoch + 1 == 2:
            raise RuntimeError("power cut")

    monkeypatch.setattr(fitting.Recorder, "on_train_epoch_start", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny(name="rebalanced-cut", **REBALANCED))
    monkeypatch.undo()
    run = train(tiny(name="rebalanced-cut", **REBALANCED))
    assert same_weights(run.dir / "best.safetensors", whole.dir / "best.safetensors")
    pd.testing.assert_frame_equal(run.history, whole.history, check_exact=True)
    kept = whole.history.iloc[1:]["val_auc"].idxmax()
    labels, probabilities = whole.predict_split("val")
    assert whole.history["val_auc"][kept] == pytest.approx(classification_metrics(labels, probabilities)["auc"])


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


def test_what_belongs_to_other_weights_is_deleted(tiny, capsys):
    run = train(tiny(name="fresh"))
    run.write_maps({"random": torch.zeros(1, 2, 2)}, run.images(1))
    (run.dir / "metrics.json").write_text("{}")
    assert train(tiny(name="fresh", width=5)).history["epoch"].tolist() == [0, 1, 2]
    assert not [name for name in ("maps.safetensors", "maps.json", "metrics.json") if (run.dir / name).exists()]
    assert "fresh: trained anew: width: 5 (trained with 4)" in capsys.readouterr().out


def test_history_has_every_epoch_of_every_phase(trained):
    history = trained["explainer"].history
    phases = [("classifier", 0), ("classifier", 1), ("classifier", 2), ("explainer", 0), ("explainer", 1), ("joint", 0)]
    assert list(zip(history["phase"], history["epoch"], strict=True)) == [*phases, ("joint", 1)]
    for split in ("train", "val"):
        for name in ("loss", "classification", "explanation", "sparsity", "contiguity", "acc", "auc"):
            assert history[f"{split}_{name}"].notna().all(), name
    alpha = history["phase"].map(dict(zip(("classifier", "explainer", "joint"), PHASES["alpha"], strict=True)))
    total = alpha * history["val_classification"] + (1 - alpha) * history["val_explanation"]
    assert torch.allclose(torch.tensor(total), torch.tensor(history["val_loss"]), atol=1e-5)
    assert {"penalty"} <= {c.removeprefix("val_") for c in trained["softcam"].history}


def test_frozen_parts_do_not_move(trained):
    run = trained["explainer"]
    torch.manual_seed(0)
    states = {phase: load_file(run.dir / f"{phase}.safetensors") for phase in ("classifier", "explainer", "joint")}

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
    data = open_split(run.recipe, "val")
    samples = [data[i] for i in range(len(data))]
    images, labels = (torch.stack([s[key] for s in samples]) for key in ("image", "label"))
    loss = F.nll_loss(run.predict(images).log(), labels).item()
    epochs = run.history[run.history["epoch"] > 0]
    assert loss == pytest.approx(epochs["val_loss"].min(), abs=1e-5)
    assert (run.dir / "last.safetensors").exists()
    assert not (run.dir / "checkpoints").exists()
    assert list((run.dir / "tensorboard").rglob("events.out.tfevents*"))


def test_evolution_keeps_the_fixed_images_after_each_epoch(trained):
    evolution = trained["softcam"].evolution
    assert set(evolution) == {"images", "softcam/000", "softcam/001", "softcam/002"}
    assert evolution["images"].shape == (2, 3, 64, 64)
    assert evolution["softcam/001"].shape == (2, 2, 16, 16)
    assert trained["explainer"].evolution["joint/001"].shape == (2, 1, 64, 64)


def test_losses_are_the_papers(tiny):
    recipe = tiny(hybrid=True, beta=0.7, gamma=0.5, **PHASES)
    run = Run(recipe.run_dir, recipe)
    phase = recipe.phases[1]
    torch.manual_seed(0)
    module = PhaseModule(recipe, phase, build_model(recipe), run, None).eval()
    batch = torch.utils.data.default_collate([open_split(recipe, "val")[i] for i in range(6)])
    terms, logits = module.losses(batch)
    z = module.model(run.normalise(batch["image"])).explanation
    outside = outside_penalty(z, batch["mask"][:, None].float())[batch["has_mask"]]
    explanation = 0.7 * sparsity(z).mean() + 0.3 * contiguity(z).mean() + 0.5 * outside.sum() / 6
    ce = F.cross_entropy(logits, batch["label"])
    assert terms["explanation"].item() == pytest.approx(explanation.item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx((0.25 * ce + 0.75 * explanation).item(), rel=1e-5)


def test_early_stopping_and_augmentation(tiny):
    run = train(tiny(name="early", epochs=30, patience=1, lr=1.0, optimizer="sgd", schedule="none", augment="xml"))
    assert len(run.history) < 31


def test_bf16(tiny):
    run = train(tiny(name="bf16", precision="bf16", epochs=1))
    assert all(v.dtype in (torch.float32, torch.int64) for v in load_file(run.dir / "best.safetensors").values())


def test_blackbox_twin(tiny, trained):
    assert training.blackbox_twin(trained["softcam"].recipe).dir == trained["blackbox"].dir
    with pytest.raises(FileNotFoundError, match="nobody holds no trained model; train it with notebooks/02_train"):
        training.blackbox_twin(tiny(twin="nobody"))


def test_phase_warnings():
    def history(classifier, explainer):
        rows = [("classifier", v, 1.0, v) for v in classifier] + [("explainer", 0.1, v, v) for v in explainer]
        return pd.DataFrame(rows, columns=["phase", "train_classification", "train_explanation", "val_loss"])

    assert phase_warnings(history([1.0, 0.25], [1.0, 0.1])) == []
    slow = phase_warnings(history([1.0, 0.8], [1.0, 0.5]))
    assert len(slow) == 2
    assert "'classifier' ended with the classification loss at 80%" in slow[0]
    assert "empty" in phase_warnings(history([1.0, 0.2], [1.0, 0.0]))[0]
    assert "at 2% of its first value (asked: 15% to 35%)" in phase_warnings(history([1.0, 0.02], [1.0, 0.1]))[0]
    assert phase_warnings(history([1.0, 0.2, 0.9], [1.0, 0.1])) == []  # the state of lowest validation loss counts
    assert phase_warnings(pd.DataFrame({"phase": ["softcam"] * 2, "train_classification": [1.0, 1.0]})) == []


def test_phase_dataclass_is_what_history_and_recipes_use():
    assert list(Phase.__annotations__)[:3] == ["name", "epochs", "alpha"]


def test_a_checkpoint_from_elsewhere_becomes_a_run(tiny, trained, tmp_path):
    theirs = trained["blackbox"]
    torch.save({"state_dict": theirs.model.state_dict()}, tmp_path / "theirs.pth")
    run = training.adopt_checkpoint(tiny(name="adopted", method="blackbox"), tmp_path / "theirs.pth")
    images = run.images(4)["image"]
    assert torch.equal(run.predict(images), theirs.predict(images))
    assert load_or_train(tiny(name="adopted", method="blackbox", explain_count=4)).dir == run.dir  # not trained again
    assert run.earlier_phases == []
    (tmp_path / "cut.pth").write_bytes((tmp_path / "theirs.pth").read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        training.adopt_checkpoint(tiny(name="adopted", method="blackbox"), tmp_path / "cut.pth")
    assert torch.equal(Run.load(run.dir).predict(images), theirs.predict(images))  # what was there is kept


@pytest.mark.parametrize("has", [True, False])
def test_precision_is_bf16_where_it_is_asked_for_or_the_device_computes_in_it(monkeypatch, has):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: not has)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    found = {p: fitting.computes_in_bf16(p, cpu) for p in ("32", "bf16", "auto")}
    assert found == {"32": False, "bf16": True, "auto": has}
    assert fitting.computes_in_bf16("auto", gpu) is not has
