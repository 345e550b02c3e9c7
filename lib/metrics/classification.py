"""Classification metrics by scikit-learn, as plain numbers and lists that JSON can hold."""

from math import isnan, nan

import numpy as np
from torch import Tensor

from lib.metrics.arguments import check

POINTS = 200  # per stored ROC or precision-recall curve


def classification_metrics(labels: Tensor, probabilities: Tensor) -> dict:
    """Metrics of labels (N,) in 0..K-1 and probabilities (N, K >= 2), whose rows sum to 1; the most probable class is
    predicted, the first of equals.

    `accuracy`, `kappa` (quadratic weights), `confusion_matrix` (rows: truth) and `count`; then `auc`,
    `average_precision`, `sensitivity`, `specificity`, `precision`: of class 1 for two classes, with its `roc` and `pr`
    curves (at most 200 points); for more classes the macro averages, with `per_class` (a list) and `micro` beside them,
    each with its curves. What an absent class leaves undefined is NaN; macro averages skip it, `undefined` counts it.
    """
    from sklearn import metrics  # half a second, which who imports lib.metrics for something else does not pay

    labels, p = labels.cpu().numpy(), probabilities.cpu().double().numpy()
    check("probabilities", p.ndim == 2 and p.shape[1] > 1 and len(p), "shape (N >= 1, K >= 2)", p)
    n, classes = p.shape
    check("labels", labels.shape == (n,) and labels.dtype.kind in "iu", f"integers of shape ({n},)", labels)
    low, high = labels.min(), labels.max()
    check("labels", low >= 0 and high < classes, f"values in 0..{classes - 1}", f"{low}..{high}")
    wrong = ~((p >= 0).all(1) & (np.abs(p.sum(1) - 1) < 1e-3))
    row = int(wrong.argmax())
    check("probabilities", not wrong.any(), "rows in [0, 1] that sum to 1", f"{p[row]} in row {row}")

    predicted, known = p.argmax(1), {"labels": range(classes)}
    truth, chosen = (values[:, None] == np.arange(classes) for values in (labels, predicted))
    per_class = [_one_against_rest(*columns) for columns in zip(truth.T, p.T, chosen.T, strict=True)]
    scalars = {key: [of[key] for of in per_class] for key, value in per_class[0].items() if isinstance(value, float)}
    several = len(np.union1d(labels, predicted)) > 1
    result = {
        "count": n,
        "accuracy": metrics.accuracy_score(labels, predicted),
        "kappa": float(metrics.cohen_kappa_score(labels, predicted, weights="quadratic", **known)) if several else nan,
        "confusion_matrix": metrics.confusion_matrix(labels, predicted, **known).tolist(),
        "undefined": {key: sum(map(isnan, values)) for key, values in scalars.items()},
    }
    if classes == 2:
        return result | per_class[1]
    for key, values in scalars.items():
        defined = [value for value in values if not isnan(value)]
        result[key] = float(np.mean(defined)) if defined else nan
    return result | {"per_class": per_class, "micro": _one_against_rest(truth.ravel(), p.ravel(), chosen.ravel())}


def _one_against_rest(truth: np.ndarray, score: np.ndarray, predicted: np.ndarray) -> dict:
    """Metrics of one class; truth and predicted are boolean. What needs an absent class is NaN or an empty curve."""
    from sklearn import metrics

    area, average_precision, roc, pr = nan, nan, ([], []), ([], [])
    if truth.any() and not truth.all():
        area, average_precision = metrics.roc_auc_score(truth, score), metrics.average_precision_score(truth, score)
        roc, pr = metrics.roc_curve(truth, score), metrics.precision_recall_curve(truth, score)
    return {
        "auc": float(area),
        "average_precision": float(average_precision),
        "sensitivity": float(metrics.recall_score(truth, predicted, zero_division=nan)),
        "specificity": float(metrics.recall_score(truth, predicted, pos_label=0, zero_division=nan)),
        "precision": float(metrics.precision_score(truth, predicted, zero_division=nan)),
        "roc": {"false_positive_rate": _thinned(roc[0]), "sensitivity": _thinned(roc[1])},
        "pr": {"sensitivity": _thinned(pr[1]), "precision": _thinned(pr[0])},
    }


def _thinned(values: np.ndarray) -> list[float]:
    kept = np.linspace(0, len(values) - 1, min(len(values), POINTS)).round().astype(int)
    return np.asarray(values)[kept].tolist()
