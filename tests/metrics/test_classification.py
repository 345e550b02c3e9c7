import json
from itertools import product
from math import isnan

import pytest
import torch

from lib.metrics import classification_metrics

THREE = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.2, 0.3], [0.1, 0.2, 0.7]])


def binary(scores):
    scores = torch.tensor(scores, dtype=torch.float64)
    return torch.stack([1 - scores, scores], 1)


def test_binary_by_hand():
    # predicted 1, 1, 0, 1, 0, 0; of the 9 (sick, healthy) pairs 7 are in order; kappa: po 2/3, pe 1/2
    result = classification_metrics(torch.tensor([1, 1, 1, 0, 0, 0]), binary([0.9, 0.8, 0.3, 0.6, 0.4, 0.1]))
    expected = dict.fromkeys(["accuracy", "sensitivity", "specificity", "precision"], 2 / 3)
    expected |= {"kappa": 1 / 3, "auc": 7 / 9, "average_precision": (1 + 1 + 3 / 5) / 3}
    assert result == pytest.approx(expected)
    json.dumps(result, allow_nan=False)


def test_three_classes_by_hand():
    result = classification_metrics(torch.tensor([0, 1, 2, 2]), THREE)  # predicted 0, 1, 0, 2
    assert result["accuracy"] == 0.75
    assert result["sensitivity"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert result["specificity"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert result["precision"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    # squared distances: observed 4 (one 2 seen as 0); expected sum_ij (i - j)^2 r_i c_j / 4 with r 1 1 2, c 2 1 1
    expected = sum((i - j) ** 2 * r * c for (i, r), (j, c) in product(enumerate([1, 1, 2]), enumerate([2, 1, 1]))) / 4
    assert result["kappa"] == pytest.approx(1 - 4 / expected)


def test_an_absent_class_is_left_out_of_the_mean():
    labels = torch.tensor([0, 1, 1, 0])  # predicted 0, 1, 0, 2
    result = classification_metrics(labels, THREE)
    of_two = [classification_metrics((labels == k).long(), binary(THREE[:, k].tolist())) for k in (0, 1)]
    for name in ("auc", "average_precision"):
        assert result[name] == pytest.approx((of_two[0][name] + of_two[1][name]) / 2)
    found = [result[name] for name in ("sensitivity", "specificity", "precision")]
    assert found == pytest.approx([(1 / 2 + 1 / 2) / 2, (1 / 2 + 1 + 3 / 4) / 3, (1 / 2 + 1 + 0) / 3])


@pytest.mark.filterwarnings("error")
def test_one_class_only():
    result = classification_metrics(torch.zeros(3, dtype=torch.long), binary([0.1, 0.2, 0.3]))
    assert result["accuracy"] == result["specificity"] == 1
    assert all(isnan(result[name]) for name in ("auc", "average_precision", "sensitivity", "precision", "kappa"))


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [0.5, 0.5], r"probabilities: expected shape \(N >= 1, K >= 2\), got float64 of \(2,\)"),
        ([0], [[0.5, 0.5]] * 2, r"labels: expected integers of shape \(2,\), got int64 of \(1,\)"),
        ([0, 2], [[0.5, 0.5]] * 2, r"labels: expected values in \[0, 1\], got \[0.0, 2.0\]"),
        ([0, 1], [[0.5, 0.5], [3.0, -2.0]], r"rows in \[0, 1\] that sum to 1, got \[\[3.0, -2.0\]\]"),
        ([0, 1], [[0.5, float("nan")], [0, 1]], r"got \[\[0.5, nan\]\]"),
    ],
)
def test_wrong_arguments_are_said(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(torch.tensor(labels), torch.tensor(probabilities))
