"""Metrics of classifiers and of their explanations: pure functions, tensors in, tensors out, NaN where undefined."""

from lib.metrics.classification import classification_metrics
from lib.metrics.faithfulness import aopc, deletion_curve, deletion_hits, perturbation_curve
from lib.metrics.localisation import (
    activation_precision,
    activation_sensitivity,
    grid_pointing_game,
    negative_proportion,
    pointing_game,
    pompom,
    positive_proportion,
    rank_patches,
    topk_ceiling,
    topk_chance,
    topk_hits,
    topk_precision,
)
from lib.metrics.statistics import Interval, bootstrap_ci

__all__ = [
    "Interval",
    "activation_precision",
    "activation_sensitivity",
    "aopc",
    "bootstrap_ci",
    "classification_metrics",
    "deletion_curve",
    "deletion_hits",
    "grid_pointing_game",
    "negative_proportion",
    "perturbation_curve",
    "pointing_game",
    "pompom",
    "positive_proportion",
    "rank_patches",
    "topk_ceiling",
    "topk_chance",
    "topk_hits",
    "topk_precision",
]
