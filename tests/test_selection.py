"""Which epoch is kept: scores of a confusion matrix, and the state that a training leaves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lib import fitting
from lib.metrics import classification_metrics
from lib.optimisation import check_classes
from lib.selection import ConfusionScore, confusion_score, monitor
from lib.training import train

NAMES = ("sensitivity", "specificity", "precision", "kappa")


def test_scores_by_hand():
    matrix = torch.tensor([[6, 2], [1, 3]])
    found = [confusion_score(matrix, name).item() for name in NAMES]
    expected = 1 - 3 / ((8 * 5 + 4 * 7) / 12)  # disagreements seen: 3; expected by chance: 68 / 12
    assert found == pytest.approx([3 / 4, 6 / 8, 3 / 5, expected])
    grades = torch.tensor([[1, 0, 1], [0, 2, 0], [0, 0, 0]])  # costs: one error of 2 grades, squared 4
    chance = (2 * (0 * 1 + 1 * 2 + 4 * 1) + 2 * (1 * 1 + 0 * 2 + 1 * 1)) / 4
    assert confusion_score(grades, "kappa").item() == pytest.approx(1 - 4 / chance)


def test_macro_scores_skip_classes_where_they_are_undefined():
    matrix = torch.tensor([[2, 0, 0], [1, 1, 0], [0, 0, 0]])  # class 2 is neither there nor predicted
    assert confusion_score(matrix, "sensitivity").item() == pytest.approx((1 + 1 / 2) / 2)
    assert confusion_score(matrix, "precision").item() == pytest.approx((2 / 3 + 1) / 2)
    assert confusion_score(matrix, "specificity").item() == pytest.approx((1 / 2 + 1 + 1) / 3)


@pytest.mark.parametrize(
    ("matrix", "undefined"),
    [
        ([[3, 1], [0, 0]], {"sensitivity"}),
        ([[3, 0], [2, 0]], {"precision"}),
        ([[0, 0], [2, 1]], {"specificity"}),
        ([[4, 0], [0, 0]], {"sensitivity", "precision", "kappa"}),
    ],
)
def test_what_is_undefined_is_nan(matrix, undefined):
    assert {name for name in NAMES if confusion_score(torch.tensor(matrix), name).isnan()} == undefined


@settings(max_examples=15)
@given(st.integers(2, 4), st.data())
def test_scores_are_those_of_the_evaluation(classes, data):
    rows = data.draw(st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=30))
    labels, predicted = torch.tensor(rows).T
    probabilities = torch.nn.functional.one_hot(predicted, classes).double()
    expected = classification_metrics(labels, probabilities)
    for name in NAMES:
        score = ConfusionScore(name, classes)
        for part in zip(probabilities.split(7), labels.split(7), strict=True):
            score.update(*part)
        assert score.compute().item() == pytest.approx(expected[name], abs=1e-6, nan_ok=True), name


def test_monitors():
    assert monitor("loss") == ("val_loss", "min")
    assert monitor("accuracy") == ("val_acc", "max")
    assert monitor("auc") == ("val_auc", "max")
    assert monitor("kappa") == ("val_kappa", "max")


def test_a_class_that_validation_lacks_is_named():
    labels, classes = torch.tensor([0, 2, 2]), ["none", "mild", "severe"]
    with pytest.raises(ValueError, match=r"checkpoint: 'auc' needs validation images of .* there is none of 'mild'"):
        check_classes("auc", labels, classes)
    check_classes("loss", labels, classes)
    check_classes("accuracy", labels, classes)
    check_classes("kappa", torch.tensor([2, 1, 0]), classes)


def test_a_training_needs_the_class_too(tiny):
    recipe = tiny(name="absent", checkpoint="sensitivity", limit={"train": 8, "val": 1, "test": 1})
    with pytest.raises(ValueError, match="checkpoint: 'sensitivity' needs validation images of every class"):
        train(recipe)


@pytest.mark.parametrize("scores", [[0.2, 0.9, 0.9, 0.1], [float("nan"), 0.3, float("nan"), 0.2]])
def test_the_first_of_the_best_epochs_is_kept_whatever_the_loss_says(tiny, monkeypatch, scores):
    def given(self):
        self.epoch = getattr(self, "epoch", -1) + 1  # 0: before training
        return torch.tensor([0.0, *scores][self.epoch])

    states, keep = [], fitting.Recorder.keep_explanations

    def recorded(self, module, epoch):
        states.append({key: value.clone() for key, value in module.model.state_dict().items()})
        keep(self, module, epoch)

    monkeypatch.setattr(ConfusionScore, "compute", given)
    monkeypatch.setattr(fitting.Recorder, "keep_explanations", recorded)
    run = train(tiny(name=f"kept-{scores[1]}", checkpoint="kappa", epochs=4, method="blackbox"))
    best = load_file(run.dir / "best.safetensors")
    kept = [all(torch.equal(best[key], state[key]) for key in best) for state in states]
    assert kept == [False, False, True, False, False]
    assert run.history["val_kappa"].tolist() == pytest.approx([0.0, *scores], nan_ok=True)


def test_a_score_that_is_never_defined_is_said(tiny, monkeypatch):
    monkeypatch.setattr(ConfusionScore, "compute", lambda self: torch.tensor(float("nan")))
    with pytest.warns(UserWarning, match="val_precision: undefined in every epoch of phase 'blackbox'; the first"):
        train(tiny(name="undefined", checkpoint="precision", method="blackbox"))


def test_scores_on_validation_images_are_in_the_history(tiny):
    run = train(tiny(name="scored", checkpoint="specificity", epochs=1, method="blackbox"))
    labels, probabilities = run.predict_split("val")
    expected = classification_metrics(labels, probabilities)["specificity"]
    assert run.history["val_specificity"].iloc[-1] == pytest.approx(expected, abs=1e-6)
