"""The losses of both methods: of heatmaps z (N, 1, H, W) in [0, 1], of evidence maps A (N, K, h, w), and of logits
(N, K) with labels (N,). In the losses of logits `p = softmax(logits)` and `y` is a sample's label."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def sparsity(z: Tensor) -> Tensor:
    """`mean |z|` of each heatmap: (N, 1, H, W) -> (N,), in [0, 1] (Rio-Torto et al. 2020, section 3)."""
    return _checked(z).abs().flatten(1).mean(1)


def contiguity(z: Tensor) -> Tensor:
    """`mean |z[i+1, j] - z[i, j]| + mean |z[i, j+1] - z[i, j]|` of each heatmap: (N, 1, H, W) -> (N,), in [0, 2]."""
    z = _checked(z)
    return z.diff(dim=-2).abs().flatten(1).mean(1) + z.diff(dim=-1).abs().flatten(1).mean(1)


def outside_penalty(z: Tensor, mask: Tensor) -> Tensor:
    """`|sum (1 - m) z / (sum (1 - m) + 1e-6)|`: the mean of z outside the region where the mask m, 0 or 1 in z's shape,
    is 1: (N,), in [0, 1]; 0 where it covers the whole image."""
    z = _checked(z)
    if mask.shape != z.shape:
        raise ValueError(f"mask: expected shape {tuple(z.shape)} to match z, got {tuple(mask.shape)}")
    outside = (1 - mask.to(z.dtype)).flatten(1)
    return ((outside * z.flatten(1)).sum(1) / (outside.sum(1) + 1e-6)).abs()


def explanation_loss(
    z: Tensor,
    beta: float,
    mask: Tensor | None = None,
    gamma: float = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
    has_mask: Tensor | None = None,
) -> Tensor:
    """Unsupervised `beta sparsity + (1 - beta) contiguity`; hybrid, with a mask: `+ gamma outside_penalty`. A scalar.

    reduction: over the N samples. has_mask: (N,) bool, the samples whose mask counts (None: all); the others keep the
    unsupervised loss, so that an unannotated image is not driven to an empty heatmap.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: expected a value in [0, 1], got {beta}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
    if has_mask is not None and has_mask.shape != z.shape[:1]:
        raise ValueError(f"has_mask: expected shape {tuple(z.shape[:1])}, got {tuple(has_mask.shape)}")
    loss = beta * sparsity(z) + (1 - beta) * contiguity(z)
    if mask is not None:
        penalty = gamma * outside_penalty(z, mask)
        loss = loss + (penalty if has_mask is None else penalty * has_mask.to(penalty.dtype))
    return loss.mean() if reduction == "mean" else loss.sum()


def evidence_penalty(evidence: Tensor, l1: float, l2: float) -> Tensor:
    """`l1 mean_n ||A_n||_1 + l2 mean_n ||A_n||_2`, norms over (K, h, w) of one sample: SoftCAM's ElasticNet penalty
    (arXiv 2505.17748). A scalar. The reference code takes the first sample of each batch, of the same expectation."""
    if min(l1, l2) < 0:
        raise ValueError(f"l1, l2: expected values >= 0, got {l1}, {l2}")
    maps = _checked(evidence, "evidence").flatten(1)
    return l1 * maps.abs().sum(1).mean() + l2 * torch.linalg.vector_norm(maps, dim=1).mean()


def classification_loss(
    logits: Tensor, labels: Tensor, criterion: str = "cross_entropy", weights: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """The criterion cross_entropy, focal (of that gamma), kappa, mse, mae or smooth_l1: a scalar.

    weights: (K,) of the classes (None: 1), averaged over as cross entropy does; kappa takes none.
    """
    if criterion == "cross_entropy":
        return F.cross_entropy(logits, labels, weights)
    if criterion == "focal":
        return focal_loss(logits, labels, gamma, weights)
    return kappa_loss(logits, labels) if criterion == "kappa" else grade_loss(logits, labels, criterion, weights)


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0, weights: Tensor | None = None) -> Tensor:
    """`sum_n w_y (1 - p_y)^gamma (-log p_y) / sum_n w_y`, a scalar >= 0 (Lin et al. 2017, eq. 5)."""
    if gamma < 0:
        raise ValueError(f"gamma: expected a value >= 0, got {gamma}")
    log_p = _of_logits(logits, labels).log_softmax(1).gather(1, labels[:, None])[:, 0]
    missing = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)  # 1 - p_y; at 0 gamma < 1 has no gradient
    return _weighted_mean(missing**gamma * -log_p, labels, weights)


def kappa_loss(logits: Tensor, labels: Tensor, eps: float = 1e-6) -> Tensor:
    """`log(1 - kappa + eps)` of the batch's quadratic-weighted kappa, with the predictions' counts made of p: a scalar
    in [log eps, log(2 + eps)] (de la Torre, Puig & Valls, Pattern Recognition Letters 105, 2018).

    `1 - kappa = sum_n sum_k W[y_n, k] p_n,k / sum_jk W[j, k] c_j q_k`, `W[j, k] = (j - k)^2 / (K - 1)^2`, c_j the
    samples of grade j and q_k the mean of p_k. The mean over batches is not the loss of all samples, and a batch of a
    single grade gives 0 and teaches nothing.
    """
    p = _of_logits(logits, labels).softmax(1)
    grades = torch.arange(p.shape[1], dtype=p.dtype, device=p.device)
    cost = ((grades[:, None] - grades) / (len(grades) - 1)) ** 2
    expected = F.one_hot(labels, len(grades)).to(p.dtype).sum(0) @ cost @ p.mean(0)
    return ((cost[labels] * p).sum() / expected.clamp(min=eps**2) + eps).log()


DISTANCES = {"mse": F.mse_loss, "mae": F.l1_loss, "smooth_l1": F.smooth_l1_loss}


def grade_loss(logits: Tensor, labels: Tensor, distance: str, weights: Tensor | None = None) -> Tensor:
    """`sum_n w_y sum_k p_k d(k, y) / sum_n w_y`, a scalar >= 0: what a grade drawn from p is wrong by, on average.
    For mse it is `(g - y)^2 + Var_p(k)`, `g = sum_k k p_k`: least where p is certain, so the most probable class is the
    grade that a regression would be rounded to (mse: the nearest to the mean of the labels; mae: their median)."""
    if distance not in DISTANCES:
        raise ValueError(f"distance: expected one of {', '.join(DISTANCES)}, got {distance!r}")
    p = _of_logits(logits, labels).softmax(1)
    grades = torch.arange(p.shape[1], dtype=p.dtype, device=p.device).expand_as(p)
    errors = DISTANCES[distance](grades, labels[:, None].to(p.dtype).expand_as(p), reduction="none")
    return _weighted_mean((p * errors).sum(1), labels, weights)


def _weighted_mean(losses: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return losses.mean()
    each = weights.to(losses.dtype)[labels]
    return (each * losses).sum() / each.sum()


def _of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.ndim != 2 or not logits.is_floating_point() or logits.shape[1] < 2:
        raise ValueError(f"logits: expected floats of shape (N, K >= 2), got {logits.dtype} {tuple(logits.shape)}")
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels: expected shape {tuple(logits.shape[:1])}, got {tuple(labels.shape)}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _checked(maps: Tensor, name: str = "z") -> Tensor:
    if maps.ndim != 4 or not maps.is_floating_point():
        raise ValueError(f"{name}: expected floating-point maps of 4 dimensions, got {maps.dtype} {tuple(maps.shape)}")
    return maps.to(torch.promote_types(maps.dtype, torch.float32))
