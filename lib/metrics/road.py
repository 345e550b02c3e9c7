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


@functools.lru_cache(2)
def equations(height: int, width: int) -> tuple[np.ndarray, csr_array]:
    """Pixels (H W,) in an elimination order, and one equation for each in that order (H W, H W): the sum of the weights
    of its neighbours times the pixel, less the weighted sum of the neighbours.

    The order is nested dissection (George 1973): both halves of an area, then the line between them, and so on in the
    halves; a factorisation in that order stays sparse.
    """
    pixels = []

    def number(area: np.ndarray) -> None:
        area = area if area.shape[0] >= area.shape[1] else area.T
        if area.size > 32:
            middle = len(area) // 2
            number(area[:middle])
            number(area[middle + 1 :])
            area = area[middle]
        pixels.append(area.ravel())

    number(np.arange(height * width).reshape(height, width))
    order = np.concatenate(pixels)
    rows, columns = (diags_array([1.0, 2, 1], offsets=[-1, 0, 1], shape=(side, side)) for side in (height, width))
    weights = kron(rows, columns, "csr")[order][:, order]  # 2 to direct, 1 to diagonal neighbours; 4 to itself cancels
    return order, csr_array(diags_array(weights.sum(1)) - weights)


def impute(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """(C, H, W) float64: every `removed` (H, W) pixel, some but not all are, the weighted mean of its eight neighbours.

    Weights are 1/6 for direct and 1/12 for diagonal neighbours, relative to those inside the image; the linear system
    is solved exactly (Rong et al. 2022, section 4), by one sparse factorisation for all channels.
    """
    order, system = equations(*removed.shape)
    gone = removed.ravel()[order]
    values = image.reshape(len(image), -1).T.astype(np.float64)[order]
    system = system[gone]
    known = -(system[:, ~gone] @ values[~gone])
    matrix = system[:, gone].T  # symmetric, and so in the form that splu takes
    factors = splu(matrix, permc_spec="NATURAL", diag_pivot_thresh=0, panel_size=1, options={"SymmetricMode": True})
    values[gone] = factors.solve(known)
    filled = np.empty_like(values)
    filled[order] = values
    return filled.T.reshape(image.shape)


def road_images(images: Tensor, maps: Tensor, counts: Sequence[int], order: str, noise: float, seed: int) -> Tensor:
    """(N, len(counts), C, H, W): the images with so many of their pixels removed and imputed."""
    ranks = tile_rank(maps, 1, order).view(maps.shape).cpu().numpy()
    made = images[:, None].repeat(1, len(counts), 1, 1, 1)
    for versions, image, rank in zip(made, images.float().cpu().numpy(), ranks, strict=True):
        added = np.random.default_rng([seed, zlib.crc32(image.tobytes())]).normal(0, noise, image.shape)
        for version, count in zip(versions, counts, strict=True):
            filled = torch.from_numpy(np.clip(impute(image, rank < count) + added, 0, 1)).to(version)
            version.copy_(filled.where(torch.from_numpy(rank < count).to(version.device), version))
    return made


def road(
    predict: Predict | Sequence[Predict],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    shares: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    order: str = "morf",
    noise: float = 0.01,
    seed: int = 0,
) -> Tensor:
    """(N, len(shares)) in [0, 1]: f once round(share H W) pixels are removed, `impute`d and noisy; arguments as in
    `perturbation_curve`. A sequence of J predictors is shown the same images, imputed once: (J, N, len(shares)).

    The noise is Gaussian of that standard deviation, clipped to [0, 1], drawn from the seed and the image's own pixels:
    the same for all shares, orders and methods.
    """
    check_perturbed(images, maps, targets)
    pixels = maps[0].numel()
    counts = [round(share * pixels) for share in shares]
    good = counts and all(0 < count < pixels for count in counts)
    check("shares", good, f"shares that remove some of {pixels} pixels but not all", (*shares,))
    check("noise", noise >= 0, "a standard deviation of at least 0", noise)
    judges = [predict] if callable(predict) else predict

    def judged(*rows: Tensor) -> Tensor:
        made = road_images(*rows[:2], counts, order, noise, seed)
        given = [Perturbation(judge, *rows) for judge in judges]
        return torch.stack([one.evaluate(lambda i, s: made[i, s], len(counts)) for one in given])

    at_once = max(1, perturbation.BATCH // len(counts))  # no more imputed images in memory than perturbed ones
    parts = zip(*(tensor.split(at_once) for tensor in (images, maps, targets)), strict=True)
    found = torch.cat([judged(*rows) for rows in parts], 1)
    return found[0] if callable(predict) else found
