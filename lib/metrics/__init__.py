"""Metrics of classifiers and explanations, tensors in and out: NaN where undefined, ValueError for wrong arguments."""

# isort: skip_file
from lib.metrics.classification import classification_metrics
from lib.metrics.localisation import (
    activation_precision, activation_sensitivity, best_iou, grid_pointing_game, negative_proportion,
    pointing_game, pompom, pompom_curve, positive_proportion, rank_patches, relevance_rank_accuracy, topk_ceiling,
    topk_chance, topk_hits, topk_precision, weighting_game)  # fmt: skip
from lib.metrics.perturbation import (
    aopc, area_under_curve, deletion_curve, deletion_hits, insertion_curve,
    perturbation_curve, perturbation_grid, sufficiency)  # fmt: skip
from lib.metrics.properties import completeness, flip_equivariance, gini, map_correlation, stability
from lib.metrics.road import road
from lib.metrics.statistics import bootstrap_ci
