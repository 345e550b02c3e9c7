import json
from itertools import product
from math import isnan

import pytest
import torch

from lib.metrics import classification_metrics


def binary(scores):
    scores = torch.tensor(scores, dtype=torch.float64)
    return torch.stack([1 - scores, scores], 1)


def test_binary_by_hand():
    # predicted 1, 1, 0, 1, 0, 0; of the 9 (sick, healthy) pairs 7 are in order
    result = classification_metrics(torch.tensor([1, 1, 1, 0, 0, 0]), binary([0.9, 0.8, 0.3, 0.6, 0.4, 0.1]))
    assert result["confusion_matrix"] == [[2, 1], [1, 2]]
    assert [result[name] for name in ("accuracy", "sensitivity", "specificity", "precision")] == pytest.approx(
        [2 / 3] * 4
    )
    assert result["auc"] == pytest.approx(7 / 9)
    assert result["average_precision"] == pytest.approx((1 + 1 + 3 / 5) / 3)
    assert result["kappa"] == pytest.approx(1 / 3)  # (po - pe) / (1 - pe) with po 2/3, pe 1/2
    assert result["count"] == 6 and set(result["undefined"].values()) == {0}
    assert result["roc"]["false_positive_rate"][-1] == result["roc"]["sensitivity"][-1] == 1
    assert result["pr"]["sensitivity"][-1] == 0 and result["pr"]["precision"][-1] == 1
    json.dumps(result, allow_nan=False)


THREE = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.2, 0.3], [0.1, 0.2, 0.7]])


def test_three_classes_by_hand():
    result = classification_metrics(torch.tensor([0, 1, 2, 2]), THREE)  # predicted 0, 1, 0, 2
    assert result["confusion_matrix"] == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert [entry["sensitivity"] for entry in result["per_class"]] == [1, 1, 0.5]
    assert [entry["specificity"] for entry in result["per_class"]] == pytest.approx([2 / 3, 1, 1])
    assert [entry["precision"] for entry in result["per_class"]] == [0.5, 1, 1]
    assert result["sensitivity"] == pytest.approx(2.5 / 3) and result["precision"] == pytest.approx(2.5 / 3)
    micro = result["micro"]
    assert micro["sensitivity"] == micro["precision"] == result["accuracy"] == 0.75
    assert micro["specificity"] == 7 / 8
    # squared distances: observed 4 (one 2 seen as 0); expected sum_ij (i - j)^2 r_i c_j / 4 with r 1 1 2, c 2 1 1
    expected = sum((i - j) ** 2 * r * c for (i, r), (j, c) in product(enumerate([1, 1, 2]), enumerate([2, 1, 1]))) / 4
    assert result["kappa"] == pytest.approx(1 - 4 / expected)


def test_an_absent_class_is_nan_and_counted():
    result = classification_metrics(torch.tensor([0, 1, 1, 0]), THREE)
    absent = result["per_class"][2]
    assert isnan(absent["auc"]) and isnan(absent["average_precision"]) and isnan(absent["sensitivity"])
    assert absent["roc"]["sensitivity"] == [] and absent["precision"] == 0
    assert result["undefined"] == {"auc": 1, "average_precision": 1, "sensitivity": 1, "specificity": 0, "precision": 0}
    assert result["auc"] == pytest.approx((result["per_class"][0]["auc"] + result["per_class"][1]["auc"]) / 2)


def test_one_class_only():
    result = classification_metrics(torch.zeros(3, dtype=torch.long), binary([0.1, 0.2, 0.3]))
    assert result["accuracy"] == result["specificity"] == 1
    assert all(isnan(result[name]) for name in ("auc", "average_precision", "sensitivity", "precision", "kappa"))
    assert result["undefined"]["auc"] == 2


def test_curves_are_thinned_from_end_to_end():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3000, generator=generator)
    labels = (torch.rand(3000, generator=generator) < scores).long()
    result = classification_metrics(labels, binary(scores.tolist()))
    for curve in (result["roc"], result["pr"]):
        assert {len(column) for column in curve.values()} == {200}
    roc = result["roc"]
    assert (roc["false_positive_rate"][0], roc["false_positive_rate"][-1]) == (0, 1)
    area = torch.trapezoid(torch.tensor(roc["sensitivity"]), torch.tensor(roc["false_positive_rate"]))
    assert area.item() == pytest.approx(result["auc"], abs=0.01)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [0.5, 0.5], r"probabilities: expected shape \(N >= 1, K >= 2\), got float64 of \(2,\)"),
        ([0], [[0.5, 0.5]] * 2, r"labels: expected integers of shape \(2,\), got int64 of \(1,\)"),
        ([0.0, 1.0], [[0.5, 0.5]] * 2, r"labels: expected integers of shape \(2,\), got float32"),
        ([0, 2], [[0.5, 0.5]] * 2, r"labels: expected values in 0\.\.1, got 0\.\.2"),
        ([0, 1], [[0.5, 0.5], [3.0, -2.0]], r"rows in \[0, 1\] that sum to 1, got \[ 3\. -2\.\] in row 1"),
        ([0, 1], [[0.5, float("nan")], [0, 1]], "in row 0"),
    ],
)
def test_errors(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(torch.tensor(labels), torch.tensor(probabilities))
