"""One training phase: optimisers, schedules, losses, scores, and which epoch is kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_recipes import PHASES
from torch.nn import functional as F

from lib import phase as phases
from lib.losses import contiguity, outside_penalty, sparsity
from lib.metrics import classification_metrics
from lib.phase import PhaseModule, Scores, computes_in_bf16, make_optimizer, make_schedule
from lib.recipe import Recipe
from lib.run import Run, build_model, open_split
from lib.train import train

NAMES = ("sensitivity", "specificity", "precision", "kappa")


def rates(epochs=6, schedule="none", steps=6, **changes):
    recipe = Recipe(epochs=epochs, schedule=schedule, lr=1.0, **changes)
    optimizer = make_optimizer(recipe, recipe.phases[0], [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0}])
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
    recipe = tiny(optimizer=name, nesterov=True, weight_decay=0.01)
    made = make_optimizer(recipe, recipe.phases[0], [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1}])
    assert type(made).__name__.lower() == name
    assert (made.defaults["weight_decay"], made.param_groups[0]["lr"]) == (0.01, 0.1)
    assert name != "sgd" or (made.defaults["momentum"] == 0.9 and made.defaults["nesterov"])


def test_dynamic_weights_decay_from_balanced_to_one_while_training_only(tiny, monkeypatch):
    recipe, weights = tiny(class_weights="dynamic", class_weights_decay=0.5), torch.tensor([2 / 3, 2.0])
    module = PhaseModule(Run(recipe.run_dir, recipe), recipe.phases[0], build_model(recipe), weights)
    assert module.eval().current_weights is None  # losses of different epochs are to be compared
    for epoch, rest in {0: 1, 2: 0.25, 60: 0}.items():
        monkeypatch.setattr(PhaseModule, "current_epoch", epoch)
        torch.testing.assert_close(module.train().current_weights, 1 + rest * (weights - 1))


def test_losses_are_the_papers(tiny):
    recipe = tiny(hybrid=True, beta=0.7, gamma=0.5, **PHASES)
    run = Run(recipe.run_dir, recipe)
    torch.manual_seed(0)
    module = PhaseModule(run, recipe.phases[1], build_model(recipe)).eval()
    batch = torch.utils.data.default_collate([open_split(recipe, "val")[i] for i in range(6)])
    terms, logits = module.losses(batch)
    z = module.model(run.normalise(batch["image"])).explanation
    outside = outside_penalty(z, batch["mask"][:, None].float())[batch["has_mask"]]
    explanation = 0.7 * sparsity(z).mean() + 0.3 * contiguity(z).mean() + 0.5 * outside.sum() / 6
    ce = F.cross_entropy(logits, batch["label"])
    assert terms["explanation"].item() == pytest.approx(explanation.item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx((0.25 * ce + 0.75 * explanation).item(), rel=1e-5)


def scored(matrix):
    """Scores of a confusion matrix (rows: truth), sure of each prediction."""
    classes, scores = len(matrix), Scores(len(matrix))
    for truth, row in enumerate(matrix):
        for predicted, count in enumerate(row):
            if count:
                p = torch.eye(classes)[[predicted] * count]
                scores.update(p, torch.full((count,), truth))
    return scores.compute()


def test_scores_by_hand():
    found = scored([[6, 2], [1, 3]])
    expected = 1 - 3 / ((8 * 5 + 4 * 7) / 12)  # disagreements seen: 3; expected by chance: 68 / 12
    assert [found[name].item() for name in NAMES] == pytest.approx([3 / 4, 6 / 8, 3 / 5, expected])
    grades = [[1, 0, 1], [0, 2, 0], [0, 0, 0]]  # costs: one error of 2 grades, squared 4
    chance = (2 * (0 * 1 + 1 * 2 + 4 * 1) + 2 * (1 * 1 + 0 * 2 + 1 * 1)) / 4
    assert scored(grades)["kappa"].item() == pytest.approx(1 - 4 / chance)
    macro = scored([[2, 0, 0], [1, 1, 0], [0, 0, 0]])  # class 2 is neither there nor predicted
    expected = [(1 + 1 / 2) / 2, (1 / 2 + 1 + 1) / 3, (2 / 3 + 1) / 2]
    assert [macro[name].item() for name in NAMES[:3]] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("matrix", "undefined"),
    [
        ([[3, 1], [0, 0]], {"auc", "sensitivity"}),
        ([[3, 0], [2, 0]], {"precision"}),
        ([[0, 0], [2, 1]], {"auc", "specificity"}),
        ([[4, 0], [0, 0]], {"auc", "sensitivity", "precision", "kappa"}),
    ],
)
def test_what_is_undefined_is_nan(matrix, undefined):
    assert {name for name, value in scored(matrix).items() if value.isnan()} == undefined


@settings(max_examples=15)
@given(st.integers(2, 4), st.data())
def test_scores_are_those_of_the_evaluation(classes, data):
    rows = data.draw(st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=30))
    labels, predicted = torch.tensor(rows).T
    probabilities = F.one_hot(predicted, classes).double()
    expected = classification_metrics(labels, probabilities)
    scores = Scores(classes)
    for part in zip(probabilities.split(7), labels.split(7), strict=True):
        scores.update(*part)
    found = scores.compute()
    for name in NAMES:
        assert found[name].item() == pytest.approx(expected[name], abs=1e-6, nan_ok=True), name
    assert found["acc"].item() == pytest.approx(expected["accuracy"])


def given_scores(monkeypatch, name, scores):
    """Each epoch has the next of the `scores`, on training and on validation images."""
    compute, epochs = Scores.compute, {}

    def replaced(self):
        epochs[id(self)] = epochs.get(id(self), -1) + 1
        return compute(self) | {name: torch.tensor(scores[epochs[id(self)]])}

    monkeypatch.setattr(Scores, "compute", replaced)


@pytest.mark.parametrize("scores", [[0.2, 0.9, 0.9, 0.1], [float("nan"), 0.3, float("nan"), 0.2]])
def test_the_first_of_the_best_epochs_is_kept_whatever_the_loss_says(tiny, monkeypatch, scores):
    states, keep = [], phases.Recorder.keep_explanations

    def recorded(self, module, name):
        states.append({key: value.clone() for key, value in module.model.state_dict().items()})
        keep(self, module, name)

    given_scores(monkeypatch, "kappa", [0.0, *scores])
    monkeypatch.setattr(phases.Recorder, "keep_explanations", recorded)
    run = train(tiny(name=f"kept-{scores[1]}", checkpoint="kappa", epochs=4, method="blackbox"))
    best = load_file(run.dir / "best.safetensors")
    kept = [all(torch.equal(best[key], state[key]) for key in best) for state in states]
    assert kept == [False, False, True, False, False]
    assert run.history["val_kappa"].tolist() == pytest.approx([0.0, *scores], nan_ok=True)


def test_a_score_that_is_never_defined_is_said(tiny, monkeypatch):
    given_scores(monkeypatch, "precision", [float("nan")] * 9)
    with pytest.warns(UserWarning, match="val_precision: undefined in every epoch of phase 'blackbox'; the first"):
        train(tiny(name="undefined", checkpoint="precision", method="blackbox"))


def test_scores_on_validation_images_are_in_the_history(tiny):
    run = train(tiny(name="scored", checkpoint="specificity", epochs=1, method="blackbox"))
    expected = classification_metrics(*run.predictions(split="val"))["specificity"]
    assert run.history["val_specificity"].iloc[-1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("has", [True, False])
def test_precision_is_bf16_where_it_is_asked_for_or_the_device_computes_in_it(monkeypatch, has):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: not has)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    found = {p: computes_in_bf16(p, cpu) for p in ("32", "bf16", "auto")}
    assert found == {"32": False, "bf16": True, "auto": has}
    assert computes_in_bf16("auto", gpu) is not has
