"""One training phase: optimisers, schedules, losses, scores, and which epoch is kept."""

from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipes import PHASES
from torch.nn import functional as F

from lib import phase as phases
from lib.losses import contiguity, outside_penalty, sparsity
from lib.metrics import classification_metrics
from lib.phase import PhaseModule, make_schedule
from lib.recipe import Recipe
from lib.run import Run, build_model, open_split
from lib.train import train


def module_of(recipe, number=0, weights=None):
    """A phase of a recipe's untrained model."""
    return PhaseModule(Run(recipe.run_dir, recipe), recipe.phases[number], build_model(recipe), weights)


def rates(epochs=6, schedule="none", steps=6, **changes):
    recipe = Recipe(epochs=epochs, schedule=schedule, lr=1.0, **changes)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made = make_schedule(recipe, recipe.phases[0], optimizer, steps)["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step(1.0) if schedule == "plateau" else made.step()
    return found


def test_schedules_by_hand():
    assert rates() == [1.0] * 6
    assert rates(schedule="multistep", milestones=[2, 4], decay=0.1) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rates(schedule="exponential", decay=0.5) == pytest.approx([1, 0.5, 0.25, 0.125, 0.0625, 0.03125])
    cosine = [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]
    assert rates(schedule="cosine") == pytest.approx(cosine, abs=1e-6)
    assert rates(schedule="clipped_cosine", lr_floor=0.3) == pytest.approx([*cosine[:4], 0.3, 0.3], abs=1e-6)
    assert rates(warmup_epochs=2) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    plateau = rates(schedule="plateau", plateau_patience=1, decay=0.5, lr_floor=0.3)
    assert plateau == pytest.approx([1, 1, 1, 0.5, 0.5, 0.3])
    one = rates(schedule="onecycle", steps=20)
    assert max(one) == pytest.approx(1.0)
    assert one.index(max(one)) == 4  # pct_start 0.25 of 20 steps
    assert one[-1] < 1e-3
    assert rates(schedule="onecycle", steps=4)[0] == pytest.approx(0.04)  # of which one step is the rise: torch fails


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adadelta"])
def test_optimizers(tiny, name):
    recipe = tiny(optimizer=name, nesterov=True, weight_decay=0.01, lr=0.1, schedule="none")
    made = module_of(recipe).configure_optimizers(6)["optimizer"]
    assert type(made).__name__.lower() == name
    assert (made.defaults["weight_decay"], made.param_groups[0]["lr"]) == (0.01, 0.1)
    assert name != "sgd" or (made.defaults["momentum"] == 0.9 and made.defaults["nesterov"])


def test_dynamic_weights_decay_from_balanced_to_one_while_training_only(tiny, monkeypatch):
    weights = torch.tensor([2 / 3, 2.0])
    module = module_of(tiny(class_weights="dynamic", class_weights_decay=0.5), weights=weights)
    assert module.eval().current_weights is None  # losses of different epochs are to be compared
    for epoch, rest in {0: 1, 2: 0.25, 60: 0}.items():
        monkeypatch.setattr(PhaseModule, "current_epoch", epoch)
        torch.testing.assert_close(module.train().current_weights, 1 + rest * (weights - 1))


def test_weights_of_the_classes_count_in_training_only(tiny):
    weights = torch.tensor([2 / 3, 2.0])
    module = module_of(tiny(class_weights="balanced"), weights=weights)
    assert module.eval().current_weights is None
    torch.testing.assert_close(module.train().current_weights, weights)


def test_the_batch_statistics_of_the_frozen_classifier(tiny):
    """They stay while the Explainer learns, or go on (as in the reference); its weights stay in both cases."""
    for mode, training in (("eval", False), ("train", True)):
        joint = module_of(tiny(frozen_batchnorm=mode, **PHASES), 2).train()
        assert joint.model.classifier.training
        module = module_of(tiny(frozen_batchnorm=mode, **PHASES), 1).train()
        assert module.model.classifier.training == training and module.model.explainer.training
        assert not any(parameter.requires_grad for parameter in module.model.classifier.parameters())
        assert not module.eval().model.classifier.training


def test_the_least_improvement_and_the_patience_reach_what_stops_a_training(tiny, monkeypatch):
    asked, make = [], phases.L.callbacks.EarlyStopping
    monkeypatch.setattr(phases.L.callbacks, "EarlyStopping", lambda *given: asked.append(given) or make(*given))
    train(tiny(name="least", min_improvement=1e-4, patience=3, epochs=1, method="blackbox"))
    assert asked == [("val_loss", 1e-4, 3)]


@pytest.mark.parametrize("penalised", ["annotated", "all"])
def test_losses_are_the_papers(tiny, penalised):
    recipe = tiny(hybrid=True, beta=0.7, gamma=0.5, penalised=penalised, **PHASES)
    torch.manual_seed(0)
    module = module_of(recipe, 1).eval()
    batch = torch.utils.data.default_collate([open_split(recipe, "val")[i] for i in range(6)])
    terms, logits = module.losses(batch)
    z = module.model(module.run.normalise(batch["image"])).explanation
    outside = outside_penalty(z, batch["mask"][:, None].float())
    outside = outside if penalised == "all" else outside[batch["has_mask"]]
    explanation = 0.7 * sparsity(z).mean() + 0.3 * contiguity(z).mean() + 0.5 * outside.sum() / 6
    ce = F.cross_entropy(logits, batch["label"])
    assert terms["explanation"].item() == pytest.approx(explanation.item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx((0.25 * ce + 0.75 * explanation).item(), rel=1e-5)


def given_scores(monkeypatch, name, given):
    """Each epoch has the next of the `given` scores, on training and on validation images."""
    left = [score for score in given for _ in ("train", "val")]
    monkeypatch.setattr(
        phases, "classification_metrics", lambda *both: classification_metrics(*both) | {name: left.pop(0)}
    )


@pytest.mark.parametrize("given", [[0.2, 0.9, 0.9, 0.1], [float("nan"), 0.3, float("nan"), 0.2]])
def test_the_first_of_the_best_epochs_is_kept_whatever_the_loss_says(tiny, monkeypatch, given):
    states, keep = [], phases.Recorder.on_validation_end

    def recorded(self, trainer, module):
        states.append({key: value.clone() for key, value in module.model.state_dict().items()})
        keep(self, trainer, module)

    given_scores(monkeypatch, "kappa", [0.0, *given])
    monkeypatch.setattr(phases.Recorder, "on_validation_end", recorded)
    run = train(tiny(name=f"kept-{given[1]}", checkpoint="kappa", epochs=4, method="blackbox"))
    best = load_file(run.dir / "best.safetensors")
    kept = [all(torch.equal(best[key], state[key]) for key in best) for state in states]
    assert kept == [False, False, True, False, False]
    assert run.history["val_kappa"].tolist() == pytest.approx([0.0, *given], nan_ok=True)


def test_a_score_that_is_never_defined_is_said(tiny, monkeypatch):
    given_scores(monkeypatch, "precision", [float("nan")] * 9)
    with pytest.warns(UserWarning, match="val_precision: undefined in every epoch of 'blackbox'; the first"):
        train(tiny(name="undefined", checkpoint="precision", method="blackbox"))


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("has", [True, False])
def test_precision_is_bf16_where_it_is_asked_for_or_the_device_computes_in_it(tiny, monkeypatch, kind, has):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has == (kind == "cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has == (kind == "cuda"))
    found = {}
    for precision in ("32", "bf16", "auto"):
        module = module_of(tiny(precision=precision))
        module.run.device = torch.device(kind)
        trainer = patch.object(phases.L, "Trainer", side_effect=ZeroDivisionError)
        with trainer as called, pytest.raises(ZeroDivisionError):
            phases.fit_phase(module, torch.zeros(0), [], [])
        found[precision] = called.call_args.kwargs["precision"]
    assert found == {"32": "32-true", "bf16": "bf16-mixed", "auto": "bf16-mixed" if has else "32-true"}
