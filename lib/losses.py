"""The losses of both methods, of heatmaps z (N, 1, H, W) in [0, 1] and evidence maps A (N, K, h, w)."""

from typing import Literal

import torch
from torch import Tensor


def sparsity(z: Tensor) -> Tensor:
    """`mean |z|` of each heatmap: (N, 1, H, W) -> (N,), in [0, 1] (Rio-Torto et al. 2020, section 3)."""
    return _checked(z).abs().flatten(1).mean(1)


def contiguity(z: Tensor) -> Tensor:
    """`mean |z[i+1, j] - z[i, j]| + mean |z[i, j+1] - z[i, j]|` of each heatmap: (N, 1, H, W) -> (N,), in [0, 2]."""
    z = _checked(z)
    return z.diff(dim=-2).abs().flatten(1).mean(1) + z.diff(dim=-1).abs().flatten(1).mean(1)


def outside_penalty(z: Tensor, mask: Tensor) -> Tensor:
    """`|sum (1 - m) z / (sum (1 - m) + 1e-6)|`: the mean of z outside the annotated region, (N,), in [0, 1].

    mask: 0/1 of z's shape, 1 inside the region. 0 where the mask covers the whole image.
    """
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
    Raises ValueError for beta outside [0, 1], another reduction, or shapes that do not match.
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


def _checked(maps: Tensor, name: str = "z") -> Tensor:
    if maps.ndim != 4 or not maps.is_floating_point():
        raise ValueError(f"{name}: expected floating-point maps of 4 dimensions, got {maps.dtype} {tuple(maps.shape)}")
    return maps.to(torch.promote_types(maps.dtype, torch.float32))
