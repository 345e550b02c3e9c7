"""How far a heatmap and the annotated region overlap: by mass, by rank, and as regions cut at a threshold.

Maps are (N, H, W), of any scale and sign; masks are (N, H, W), boolean or 0/1; undefined values are NaN, as are all
those of a map with a pixel that is not finite. A threshold chosen with the masks in hand flatters the map: `best_iou`
and `best_shared_iou` are upper bounds.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.metrics.localisation import NAN, check_pair, in_parts, mean_over_ties


class SharedThreshold(NamedTuple):
    """The one threshold of the highest mean IoU, and the IoU (N,) of each image at it."""

    threshold: float
    iou: Tensor


def _undefined(maps: Tensor, masks: Tensor) -> Tensor:
    """(N,): where the map is constant or not finite, or the mask empty."""
    return ~(maps.amax((1, 2)) > maps.amin((1, 2))) | ~masks.flatten(1).any(1)


def weighting_game(maps: Tensor, masks: Tensor) -> Tensor:
    """(N,) in [0, 1]: sum(m max(a, 0)) / sum(max(a, 0)), the share of the positive mass that lies in the mask.

    The map's minimum is not subtracted, in contrast to `activation_precision`: a map positive everywhere pays for its
    ground. Equals the relevance mass accuracy of Arras et al. (2022) on positive relevance. NaN for an empty mask and
    for a map without a positive value (Raatikainen & Rahtu 2022).
    """
    maps, masks = check_pair(maps, masks)
    positive = maps.clamp(min=0)
    share = (positive * masks).sum((1, 2)) / positive.sum((1, 2))
    return share.masked_fill(~masks.flatten(1).any(1), NAN)


def relevance_rank_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    """(N,) in [0, 1]: the share of the |m| highest pixels that lie in the mask.

    Only the order of the (signed) values counts; where equal pixels stand at the cut, the expectation over all orders
    of them, as in `topk_hits`. NaN for an empty mask and a constant map (Arras et al. 2022).
    """
    return in_parts(_rank_accuracy, *check_pair(maps, masks))


def _rank_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    ordered, order = maps.flatten(1).sort(dim=1, descending=True)
    size = masks.sum((1, 2))
    chosen = torch.arange(order.shape[1], device=maps.device) < size[:, None]
    inside = mean_over_ties(ordered, masks.flatten(1).gather(1, order)).where(chosen, 0).sum(1)
    return (inside / size).to(maps.dtype).masked_fill(_undefined(maps, masks), NAN)


def best_iou(maps: Tensor, masks: Tensor) -> Tensor:
    """(N,) in (0, 1]: the highest IoU of {a >= t} and the mask over all t, each image with its own best t.

    Exact: the pixels are sorted once and every distinct value is tried. Never below |m| / (H W), as {a >= min a} is the
    whole image. NaN for an empty mask and a constant map.
    """
    return in_parts(_best_iou, *check_pair(maps, masks))


def _best_iou(maps: Tensor, masks: Tensor) -> Tensor:
    values, order = maps.flatten(1).sort(dim=1, descending=True)
    hits = masks.flatten(1).gather(1, order).cumsum(1)
    picked = torch.arange(1, order.shape[1] + 1, device=maps.device)
    iou = hits.to(maps.dtype) / (picked + hits[:, -1:] - hits)
    apart = F.pad(values[:, 1:] < values[:, :-1], (0, 1), value=True)  # equal pixels enter together
    return iou.where(apart, 0).amax(1).masked_fill(_undefined(maps, masks), NAN)


def iou_curve(maps: Tensor, masks: Tensor, thresholds: Tensor) -> Tensor:
    """(N, T) in [0, 1]: IoU of {b >= t} and the mask, `b` the map min-max scaled to [0, 1] (Choe et al. 2020).

    `thresholds` (T,). NaN for an empty mask and a constant map.
    """
    maps, masks = check_pair(maps, masks)
    if thresholds.ndim != 1 or not thresholds.numel() or not thresholds.isfinite().all():
        raise ValueError(f"thresholds: expected finite values of shape (T,), got {tuple(thresholds.shape)}")
    return in_parts(lambda *part: _iou_curve(*part, thresholds), maps, masks)


def _iou_curve(maps: Tensor, masks: Tensor, thresholds: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled, order = ((maps - low) / (high - low)).flatten(1).sort(dim=1)
    below = torch.searchsorted(scaled, thresholds.to(scaled).expand(len(maps), -1).contiguous())
    missed = F.pad(masks.flatten(1).gather(1, order).cumsum(1), (1, 0)).gather(1, below)
    size, picked = masks.sum((1, 2))[:, None], order.shape[1] - below
    iou = (size - missed).to(maps.dtype) / (picked + missed)
    return iou.masked_fill(_undefined(maps, masks)[:, None], NAN)


def best_shared_iou(maps: Tensor, masks: Tensor, thresholds: Tensor | None = None) -> SharedThreshold:
    """The one threshold with the highest mean IoU over the images: (threshold, iou (N,) at it), as in `iou_curve`.

    `thresholds` (T,), None: 0, 0.001, ..., 1; the lowest of equally good ones is taken. `iou` is NaN for an empty mask
    and a constant map, which the mean leaves out; without any image left the threshold is NaN too.
    """
    thresholds = torch.linspace(0, 1, 1001, dtype=torch.float64) if thresholds is None else thresholds
    iou = iou_curve(maps, masks, thresholds)
    best = int(iou.nanmean(0).nan_to_num(0).argmax())
    return SharedThreshold(NAN if iou.isnan().all() else float(thresholds[best]), iou[:, best])
