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
    z: Tensor, beta: float, mask: Tensor | None = None, gamma: float = 1.0,
    reduction: Literal["mean", "sum"] = "mean", has_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Unsupervised `beta sparsity + (1 - beta) contiguity`; hybrid, with a mask: `+ gamma outside_penalty`. A scalar.

    reduction: over the N samples. has_mask: (N,) bool, the samples whose mask counts (None: all); the others keep the
    unsupervised loss, so that an unannotated image is not driven to an empty heatmap.
    """
    if not 0 <= beta <= 1 or reduction not in ("mean", "sum"):
        raise ValueError(f"expected beta in [0, 1] and reduction 'mean' or 'sum', got {beta} and {reduction!r}")
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
    maps = _checked(evidence, "evidence").flatten(1)
    return l1 * maps.abs().sum(1).mean() + l2 * torch.linalg.vector_norm(maps, dim=1).mean()


def classification_loss(
    logits: Tensor, labels: Tensor, criterion: str = "cross_entropy", weights: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """A scalar: of all criteria but kappa, which takes no weights, the mean of a loss per sample, `sum_n w_y (...) /
    sum_n w_y` with the weights (K,) of the classes (None: 1).

    cross_entropy   `-log p_y`
    focal           `(1 - p_y)^gamma (-log p_y)` (Lin et al. 2017, eq. 5)
    mse, mae, smooth_l1: `sum_k p_k d(k, y)`, what a grade drawn from p is wrong by; of mse `(g - y)^2 + Var_p(k)`,
                    `g = sum_k k p_k`: least where p is certain, so the most probable class is the grade that a
                    regression would be rounded to (mse: the nearest to the mean of the labels; mae: their median)
    kappa           `log(1 - kappa + 1e-6)` of the batch's quadratic-weighted kappa, with the predictions' counts from
                    p, from log 1e-6 to log 2 (de la Torre, Puig & Valls, Pattern Recognition Letters 105, 2018). The
                    mean over batches is not the loss of all samples; a batch of a single grade gives 0, teaches nothing
    """
    if criterion == "cross_entropy":
        return F.cross_entropy(logits, labels, weights)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    p, eps = logits.softmax(1), 1e-6
    grades = torch.arange(p.shape[1], dtype=p.dtype, device=p.device)
    if criterion == "kappa":  # 1 - kappa = sum_n sum_k W[y_n, k] p_n,k / sum_jk W[j, k] c_j q_k
        cost = ((grades[:, None] - grades) / (len(grades) - 1)) ** 2
        expected = F.one_hot(labels, len(grades)).to(p.dtype).sum(0) @ cost @ p.mean(0)
        return ((cost[labels] * p).sum() / expected.clamp(min=eps**2) + eps).log()
    if criterion == "focal":
        log_p = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
        missing = (-torch.expm1(log_p)).clamp(min=torch.finfo(p.dtype).tiny)  # 1 - p_y; at 0 gamma < 1 has no gradient
        losses = missing**gamma * -log_p
    else:
        distance = {"mse": F.mse_loss, "mae": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[criterion]
        errors = distance(grades.expand_as(p), labels[:, None].to(p.dtype).expand_as(p), reduction="none")
        losses = (p * errors).sum(1)
    if weights is None:
        return losses.mean()
    each = weights.to(losses.dtype)[labels]
    return (each * losses).sum() / each.sum()


def _checked(maps: Tensor, name: str = "z") -> Tensor:
    if maps.ndim != 4 or not maps.is_floating_point():
        raise ValueError(f"{name}: expected floating-point maps of 4 dimensions, got {maps.dtype} {tuple(maps.shape)}")
    return maps.to(torch.promote_types(maps.dtype, torch.float32))
