"""Remove and debias (ROAD): removed pixels are imputed from their neighbours, so that their shape does not give the
class away (Rong et al. 2022, "A consistent and efficient evaluation strategy for attribution methods")."""

import functools
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array, kron
from scipy.sparse.linalg import splu
from torch import Tensor

from lib.metrics import perturbation
from lib.metrics.arguments import check, check_perturbed
from lib.metrics.perturbation import Perturbation, Predict, tile_rank

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@functools.lru_cache(2)
def equations(height: int, width: int) -> csr_array:
    """(H W, H W), a row for each pixel: the sum of its neighbours' weights times the pixel, less their weighted sum."""
    rows, columns = (diags_array([1.0, 2, 1], offsets=[-1, 0, 1], shape=(side, side)) for side in (height, width))
    weights = kron(rows, columns, "csr")  # 2 to direct, 1 to diagonal neighbours; 4 to itself cancels
    return csr_array(diags_array(weights.sum(1)) - weights)


def impute(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """(C, H, W) float64: every `removed` (H, W) pixel, some but not all are, the weighted mean of its eight neighbours:
    1/6 for direct and 1/12 for diagonal ones, relative to those inside the image, solved exactly (section 4)."""
    gone, values = removed.ravel(), image.reshape(len(image), -1).T.astype(np.float64)
    system = equations(*removed.shape)[gone]
    known, matrix = -(system[:, ~gone] @ values[~gone]), system[:, gone].tocsc()
    symmetric = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0, "options": {"SymmetricMode": True}}
    values[gone] = splu(matrix, **symmetric).solve(known)
    return values.T.reshape(image.shape)


def road(
    predict: Predict | Sequence[Predict], images, maps, targets, shares=SHARES, order="morf", noise=0.01, seed=0
) -> Tensor:
    """(N, len(shares)) in [0, 1]: f once round(share H W) pixels are removed, `impute`d and noisy; arguments as in
    `perturbation_curve`. A sequence of J predictors is shown the same images, imputed once: (J, N, len(shares)).
    The noise is Gaussian of that standard deviation, clipped to [0, 1], drawn from the seed and the image's own pixels:
    the same for all shares, orders and methods."""
    check_perturbed(images, maps, targets)
    pixels, judges = maps[0].numel(), [predict] if callable(predict) else predict
    counts = [round(share * pixels) for share in shares]
    good = counts and all(0 < count < pixels for count in counts)
    check("shares", good, f"shares that remove some of {pixels} pixels but not all", (*shares,))

    def judged(images: Tensor, maps: Tensor, targets: Tensor) -> Tensor:
        ranks = tile_rank(maps, 1, order).view(maps.shape).cpu().numpy()
        made = images[:, None].repeat(1, len(counts), 1, 1, 1)
        for versions, image, rank in zip(made, images.float().cpu().numpy(), ranks, strict=True):
            added = np.random.default_rng([seed, zlib.crc32(image.tobytes())]).normal(0, noise, image.shape)
            for version, removed in zip(versions, (rank < count for count in counts), strict=True):
                filled = torch.from_numpy(np.clip(impute(image, removed) + added, 0, 1)).to(version)
                version.copy_(filled.where(torch.from_numpy(removed).to(version.device), version))
        shown = [Perturbation(judge, images, maps, targets) for judge in judges]
        return torch.stack([one.evaluate(lambda i, state: made[i, state], len(counts)) for one in shown])

    at_once = max(1, perturbation.BATCH // len(counts))  # no more imputed images in memory than perturbed ones
    parts = zip(*(tensor.split(at_once) for tensor in (images, maps, targets)), strict=True)
    found = torch.cat([judged(*rows) for rows in parts], 1)
    return found[0] if callable(predict) else found
