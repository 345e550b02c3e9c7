"""Remove and debias (ROAD): removed pixels are imputed from their neighbours, so that their shape does not give the
class away (Rong et al. 2022, "A consistent and efficient evaluation strategy for attribution methods")."""

import functools
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import solveh_banded
from torch import Tensor

from lib.metrics.localisation import check_maps
from lib.metrics.perturbation import (
    ORDERS,
    Predict,
    check_choice,
    check_inputs,
    check_pixels,
    evaluate,
    target_probability,
    tile_rank,
)

# Half of the eight neighbours, as (row, column) offsets: the system is symmetric.
NEIGHBOURS = {(0, 1): 1 / 6, (1, 0): 1 / 6, (1, 1): 1 / 12, (1, -1): 1 / 12}


def impute(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """(C, H, W) float64: every removed pixel the weighted mean of its eight neighbours, the others as they were.

    Weights are 1/6 for direct and 1/12 for diagonal neighbours, relative to those inside the image; the linear system
    of all `removed` (H, W) pixels is solved exactly (Rong et al. 2022, section 4), by a banded Cholesky factorisation
    that takes 8 (W + 2) bytes a removed pixel. Raises ValueError if no pixel is left.
    """
    if removed.all():
        raise ValueError("removed: expected at least one pixel that is not removed")
    if image.shape[2] > image.shape[1]:
        return impute(image.swapaxes(1, 2), removed.T).swapaxes(1, 2)
    height, width = removed.shape
    unknown = np.full(removed.shape, -1)
    unknown[removed] = np.arange(size := int(removed.sum()))
    image = image.astype(np.float64)
    diagonal, known, below = np.zeros(size), np.zeros((size, len(image))), []
    for (down, right), weight in NEIGHBOURS.items():
        here = np.s_[: height - down, max(0, -right) : width - max(0, right)]
        there = np.s_[down:, max(0, right) : width + min(0, right)]
        for one, other in ((here, there), (there, here)):
            pixel, neighbour = unknown[one], unknown[other]
            diagonal[pixel[pixel >= 0]] += weight
            border = (pixel >= 0) & (neighbour < 0)
            known[pixel[border]] += weight * image[:, *other][:, border].T
        both = (unknown[here] >= 0) & (unknown[there] >= 0)
        below.append((unknown[there][both], unknown[here][both], weight))
    band = np.zeros((1 + max((int((row - column).max(initial=0)) for row, column, _ in below)), size))
    band[0] = diagonal
    for row, column, weight in below:
        band[row - column, column] = -weight
    if size:
        image[:, removed] = solveh_banded(band, known, overwrite_ab=True, lower=True, check_finite=False).T
    return image


def road(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    shares: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    order: str = "morf",
    noise: float = 0.01,
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor:
    """(N, len(shares)) in [0, 1]: probability of the target once the given share of the pixels is removed and imputed.

    Exactly round(share H W) pixels go, those of the highest map values (`morf`: lower is better) or the lowest
    (`lerf`: higher is better), equal ones by position. They become `impute`d values plus Gaussian noise of that
    standard deviation, clipped to [0, 1]; the noise is drawn from the seed and the image's own pixels, the same for
    all shares, orders and methods. Images (N, C, H, W) in [0, 1]; raises ValueError for shares that remove no pixel or
    all, a negative noise, and as `perturbation_curve` (Rong et al. 2022).
    """
    check_inputs(images, maps, targets)
    check_pixels(images)
    check_choice("order", order, ORDERS)
    pixels = images.shape[2] * images.shape[3]
    counts = [round(share * pixels) for share in shares]
    if not counts or not all(0 < count < pixels for count in counts):
        raise ValueError(f"shares: expected shares that remove some of {pixels} pixels but not all, got {(*shares,)}")
    if not noise >= 0:
        raise ValueError(f"noise: expected a standard deviation of at least 0, got {noise}")
    maps = check_maps("maps", maps)

    @functools.lru_cache(1)
    def imputed(i: int) -> Tensor:
        image = images[i].float().cpu().numpy()
        rank = tile_rank(maps[i : i + 1], 1, order).view(image.shape[1:]).cpu().numpy()
        added = np.random.default_rng([seed, zlib.crc32(image.tobytes())]).normal(0, noise, image.shape)
        filled = [np.clip(impute(image, rank < count) + added, 0, 1) for count in counts]
        removed = torch.from_numpy(np.stack([rank < count for count in counts]))[:, None].to(images.device)
        return torch.where(removed, torch.from_numpy(np.stack(filled)).to(images), images[i])

    def versions(i: int, state: Tensor) -> Tensor:
        return imputed(i)[state.to(images.device)]

    return evaluate(predict, versions, len(images), len(counts), target_probability(targets), batch_size)
