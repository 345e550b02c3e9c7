"""Whether the amounts in a heatmap, not only its ranking, tell how much the output depends on each place."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.metrics.localisation import NAN, check_count, check_maps
from lib.metrics.perturbation import (
    REPLACEMENTS,
    Predict,
    check_choice,
    check_inputs,
    check_pixels,
    evaluate,
    replace_tiles,
    replacement,
    target_probability,
    tile_count,
)


def draw_subsets(tiles: int, subset: int, runs: int, seed: int = 0) -> Tensor:
    """(runs, tiles) boolean: in each row `subset` of the tiles, drawn without repetition from `seed`."""
    chosen = torch.rand(runs, tiles, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :subset]
    return torch.zeros(runs, tiles, dtype=torch.bool).scatter_(1, chosen, True)


def faithfulness_correlation(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    subset: int = 8,
    runs: int = 100,
    tile: int = 8,
    fill: str = "black",
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor:
    """(N,) in [-1, 1], higher is better: Pearson correlation over `runs` random sets S of `subset` tiles, between the
    sum of the map over S and the drop f(x) - f(x with S replaced), f the probability of the target.

    The sets depend on the seed and the number of tiles only: they are the same for all images and methods. With `fill`
    black this is sensitivity-n of Ancona et al. 2018, n = `subset`: 1 for input x weight of a linear model. NaN for a
    constant map, sums that do not vary, or an output that varies by less than 1e-6. `fill`: one of black, white, gray,
    uniform, blur, mean. Images in [0, 1]; raises ValueError unless 1 <= subset < number of tiles and runs >= 2, and as
    `perturbation_curve` (Bhatt et al. 2020, eq. 1).
    """
    check_inputs(images, maps, targets)
    check_choice("fill", fill, REPLACEMENTS)
    check_pixels(images)
    check_count("runs", runs)
    check_count("subset", subset)
    if runs < 2:
        raise ValueError(f"runs: expected at least 2 to correlate, got {runs}")
    if subset >= (tiles := tile_count(images, tile)):
        raise ValueError(f"subset: expected fewer than the {tiles} tiles of an image, got {subset}")
    chosen = draw_subsets(tiles, subset, runs, seed)
    gone = torch.cat([torch.zeros(1, tiles, dtype=torch.bool), chosen])
    filled = replacement(images, fill, seed)

    def versions(i: int, state: Tensor) -> Tensor:
        return replace_tiles(images[i], filled(i), gone[state], tile)

    output = evaluate(predict, versions, maps, runs + 1, target_probability(targets), batch_size).double()
    drops = output[:, :1] - output[:, 1:]
    correlation = []
    for part, drop in zip(check_maps("maps", maps).split(batch_size), drops.split(batch_size), strict=True):
        part = part.double().cpu()
        total = F.avg_pool2d(part[:, None], tile, tile, ceil_mode=True, divisor_override=1).flatten(1)
        sums = total @ chosen.double().T
        undefined = (
            ((part == part[:, :1, :1]).flatten(1).all(1))
            | (sums.amax(1) - sums.amin(1) <= 1e-9 * part.abs().sum((1, 2)))
            | (drop.amax(1) - drop.amin(1) < 1e-6)
        )
        sums, drop = (values - values.mean(1, keepdim=True) for values in (sums, drop))
        pearson = F.cosine_similarity(sums, drop, dim=1, eps=0)
        correlation.append(pearson.clamp(-1, 1).masked_fill(undefined, NAN))
    return torch.cat(correlation).float()
