"""Which epoch's state a training keeps: the best by its loss or by a score on the validation images."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix

from lib.recipe import Checkpoint

MONITORS = {"loss": ("val_loss", "min"), "accuracy": ("val_acc", "max"), "auc": ("val_auc", "max")}
COUNTED = ("sensitivity", "specificity", "precision", "kappa")  # what a confusion matrix says


def monitor(checkpoint: Checkpoint) -> tuple[str, str]:
    """The logged value that decides, and whether its 'min' or its 'max' is best; of equals the first epoch is kept."""
    return MONITORS.get(checkpoint, (f"val_{checkpoint}", "max"))


def confusion_score(matrix: Tensor, name: str) -> Tensor:
    """sensitivity, specificity, precision or kappa of a confusion matrix (K, K), rows: truth; a scalar, NaN undefined.

    For two classes of class 1, for more the mean over the classes where it is defined (macro). kappa: quadratic weights
    (Cohen 1968), in [-1, 1]; the others in [0, 1]. As `lib.metrics.classification_metrics` has them.
    """
    matrix = matrix.double()
    hits, truth, predicted, n = matrix.diag(), matrix.sum(1), matrix.sum(0), matrix.sum()
    if name == "kappa":
        grades = torch.arange(len(matrix), dtype=matrix.dtype, device=matrix.device)
        cost = (grades[:, None] - grades) ** 2
        return 1 - n * (cost * matrix).sum() / (truth @ cost @ predicted)
    scores = {
        "sensitivity": hits / truth,
        "specificity": (n - truth - predicted + hits) / (n - truth),
        "precision": hits / predicted,
    }[name]
    return scores[1] if len(matrix) == 2 else scores.nanmean()


class ConfusionScore(Metric):
    """`confusion_score` of all batches of probabilities (N, K) and labels (N,) seen; the most probable class counts."""

    def __init__(self, name: str, classes: int):
        super().__init__()
        self.score = name
        self.add_state("matrix", torch.zeros(classes, classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        self.matrix = self.matrix + multiclass_confusion_matrix(probabilities, labels, len(self.matrix))

    def compute(self) -> Tensor:
        return confusion_score(self.matrix, self.score).float()
