"""Classification metrics by scikit-learn, as plain numbers and lists that JSON can hold."""

from math import isnan

import numpy as np
from torch import Tensor

POINTS = 200  # per stored ROC or precision-recall curve


def _thinned(**columns: np.ndarray) -> dict[str, list[float]]:
    length = len(next(iter(columns.values())))
    kept = np.unique(np.linspace(0, length - 1, min(length, POINTS)).round().astype(int))
    return {name: column[kept].tolist() for name, column in columns.items()}


def _one_against_rest(truth: np.ndarray, score: np.ndarray, predicted: np.ndarray) -> dict:
    """Metrics of one class; truth and predicted are boolean. What needs an absent class is NaN or an empty curve."""
    from sklearn import metrics  # half a second, which who imports lib.metrics for something else does not pay

    nan, present = float("nan"), bool(truth.any() and not truth.all())
    result = {
        "auc": nan,
        "average_precision": nan,
        "sensitivity": float(predicted[truth].mean()) if truth.any() else nan,
        "specificity": float((~predicted[~truth]).mean()) if not truth.all() else nan,
        "precision": float(truth[predicted].mean()) if predicted.any() else nan,
        "roc": {"false_positive_rate": [], "sensitivity": []},
        "pr": {"sensitivity": [], "precision": []},
    }
    if present:
        false_positive_rate, sensitivity, _ = metrics.roc_curve(truth, score)
        precision, recall, _ = metrics.precision_recall_curve(truth, score)
        result["auc"] = float(metrics.roc_auc_score(truth, score))
        result["average_precision"] = float(metrics.average_precision_score(truth, score))
        result["roc"] = _thinned(false_positive_rate=false_positive_rate, sensitivity=sensitivity)
        result["pr"] = _thinned(sensitivity=recall, precision=precision)
    return result


def classification_metrics(labels: Tensor, probabilities: Tensor) -> dict:
    """Metrics of labels (N,) in 0..K-1 and probabilities (N, K >= 2), whose rows sum to 1.

    `accuracy`, `kappa` (quadratic weights), `confusion_matrix` (rows: truth) and `count`; then `auc`,
    `average_precision`, `sensitivity`, `specificity`, `precision`: of class 1 for two classes, with its `roc` and `pr`
    curves (at most 200 points); for more classes the macro averages, with `per_class` (a list) and `micro` beside them,
    each with its curves. The predicted class is the most probable, the first of equals. What an absent class leaves
    undefined is NaN; macro averages skip it, `undefined` says of how many classes. Raises ValueError for other
    arguments.
    """
    from sklearn import metrics

    labels, probabilities = labels.cpu().numpy(), probabilities.cpu().double().numpy()
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or not len(probabilities):
        raise ValueError(f"probabilities: expected shape (N >= 1, K >= 2), got {probabilities.shape}")
    n, classes = probabilities.shape
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels: expected integers of shape ({n},), got {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels: expected values in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    wrong = ~((probabilities >= 0).all(1) & (np.abs(probabilities.sum(1) - 1) < 1e-3))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"probabilities: expected rows in [0, 1] that sum to 1, got {probabilities[row]} in row {row}")

    predicted = probabilities.argmax(1)
    truth, chosen = (values[:, None] == np.arange(classes) for values in (labels, predicted))
    single = len(np.union1d(labels, predicted)) == 1
    per_class = [_one_against_rest(truth[:, c], probabilities[:, c], chosen[:, c]) for c in range(classes)]
    scalars = [name for name, value in per_class[0].items() if isinstance(value, float)]
    result = {
        "count": n,
        "accuracy": float((predicted == labels).mean()),
        "kappa": float("nan")
        if single
        else float(metrics.cohen_kappa_score(labels, predicted, labels=range(classes), weights="quadratic")),
        "confusion_matrix": metrics.confusion_matrix(labels, predicted, labels=range(classes)).tolist(),
        "undefined": {name: sum(isnan(entry[name]) for entry in per_class) for name in scalars},
    }
    if classes == 2:
        return result | per_class[1]
    macro = {name: [entry[name] for entry in per_class if not isnan(entry[name])] for name in scalars}
    return result | {
        **{name: float(np.mean(defined)) if defined else float("nan") for name, defined in macro.items()},
        "per_class": per_class,
        "micro": _one_against_rest(truth.ravel(), probabilities.ravel(), chosen.ravel()),
    }
