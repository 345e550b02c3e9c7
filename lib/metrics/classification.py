"""Classification metrics by scikit-learn, as plain numbers."""

from collections.abc import Callable
from math import nan

import numpy as np
from torch import Tensor

from lib.metrics.arguments import check, check_range


def classification_metrics(labels: Tensor, probabilities: Tensor) -> dict[str, float]:
    """Metrics of labels (N,) in 0..K-1 and probabilities (N, K >= 2), whose rows sum to 1; the most probable class is
    predicted, the first of equals: accuracy and kappa (quadratic weights); auc, average_precision, sensitivity,
    specificity, precision: of class 1 of two, of more the mean over the classes where they are defined, NaN without."""
    from sklearn import metrics  # half a second, which who imports lib.metrics for something else does not pay

    labels, p = labels.cpu().numpy(), probabilities.cpu().double().numpy()
    check("probabilities", p.ndim == 2 and p.shape[1] > 1 and len(p), "shape (N >= 1, K >= 2)", p)
    n, classes = p.shape
    check("labels", labels.shape == (n,) and labels.dtype.kind in "iu", f"integers of shape ({n},)", labels)
    check_range("labels", labels, 0, classes - 1)
    wrong = ~((p >= 0).all(1) & (np.abs(p.sum(1) - 1) < 1e-3))
    check("probabilities", not wrong.any(), "rows in [0, 1] that sum to 1", p[wrong][:1].tolist())

    predicted, each = p.argmax(1), {"average": None, "zero_division": nan}
    truth, chosen = (values[:, None] == np.arange(classes) for values in (labels, predicted))

    def area(score: Callable) -> np.ndarray:
        columns = zip(truth.T, p.T, strict=True)
        return np.array([score(*one) if 0 < one[0].sum() < n else nan for one in columns])

    per_class = {
        "auc": area(metrics.roc_auc_score),
        "average_precision": area(metrics.average_precision_score),
        "sensitivity": metrics.recall_score(truth, chosen, **each),
        "specificity": metrics.recall_score(~truth, ~chosen, **each),
        "precision": metrics.precision_score(truth, chosen, **each),
    }
    several = len(np.union1d(labels, predicted)) > 1
    kappa = metrics.cohen_kappa_score(labels, predicted, weights="quadratic", labels=range(classes)) if several else nan
    result = {"accuracy": metrics.accuracy_score(labels, predicted), "kappa": float(kappa)}
    for name, values in per_class.items():
        values = values[1:] if classes == 2 else values
        defined = values[~np.isnan(values)]
        result[name] = float(defined.mean()) if len(defined) else nan
    return result
