"""Sanity checks for heatmaps (Adebayo et al. 2018): a map of what a model has learnt changes when the model forgets it.

The parameters of a model are drawn anew, from the output to the input (cascading) or one step at a time (independent),
or it is trained on permuted labels; its maps before and after are compared. A step is a stage, a block or a layer.
Convolutions are drawn He-normal (fan-out), as the networks here and torchvision's ResNets start, with biases 0; the
Explainer as `Explainer()` starts; all else by its own `reset_parameters`, so that batch normalisations have scale 1,
shift 0, mean 0, variance 1. A parameter of a module without that method is permuted.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.metrics.localisation import check_count, check_maps
from lib.metrics.properties import map_correlation
from lib.models import Explainer

Similarities = dict[str, Tensor]
MODES = ("cascading", "independent")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


def layers(model: nn.Module, groups: int = 6) -> dict[str, tuple[str, ...]]:
    """The at most `groups` steps from the output to the input: name -> names of the modules in it.

    The last layer is a step by itself. Of the others, a step is a stage, a residual block or a layer, at the first
    depth of the module tree that has enough of them; neighbours are then joined evenly, `nearest the output..nearest
    the input`. A normalisation goes with the layer before it. Raises ValueError for fewer than 2 groups, for a model
    with fewer than 2 layers, or with parameters outside of its layers.
    """
    check_count("groups", groups)
    blocks = _blocks(model)
    if groups < 2 or len(blocks) < 2:
        raise ValueError(f"groups: expected at least 2, of at least 2 layers, got {groups} of {len(blocks)}")
    covered = {id(p) for block in blocks for name in block for p in model.get_submodule(name).parameters()}
    if outside := [name for name, parameter in model.named_parameters() if id(parameter) not in covered]:
        raise ValueError(f"model: expected all parameters in layers, got {', '.join(outside)} outside of them")
    for depth in range(1, 2 + max(block[0].count(".") for block in blocks)):
        units: dict[str, list[str]] = {}
        for block in blocks[:-1]:
            units.setdefault(".".join(block[0].split(".")[:depth]), []).extend(block)
        if len(units) >= groups - 1:
            break
    steps = {blocks[-1][0]: tuple(blocks[-1])}
    for part in np.array_split(list(units), min(groups - 1, len(units)))[::-1]:
        name = str(part[0]) if len(part) == 1 else f"{part[-1]}..{part[0]}"
        steps[name] = tuple(module for unit in part for module in units[unit])
    return steps


def _blocks(module: nn.Module, name: str = "") -> list[list[str]]:
    """Names of the layers and residual blocks with parameters, in order, each with the normalisations after it."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Explainer)
    blocks = []
    for child_name, child in module.named_children():
        parameters, full = list(child.parameters()), f"{name}.{child_name}".lstrip(".")
        if isinstance(child, containers) or hasattr(child, "last_features"):
            blocks += _blocks(child, full)
        elif blocks and parameters and all(parameter.ndim < 2 for parameter in parameters):
            blocks[-1].append(full)
        elif parameters:
            blocks.append([full])
    return blocks


def cascading(model: nn.Module, groups: int = 6, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """(step, copy of `model`) with new parameters in all layers from the output down to the step; the last: in all.

    A layer keeps its new parameters in the steps that follow. `model` and the random state stay as they are.
    """
    return _randomised(model, "cascading", groups, seed)


def independent(model: nn.Module, groups: int = 6, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """(step, copy of `model`) with new parameters in the layers of the step alone, the same ones as in `cascading`."""
    return _randomised(model, "independent", groups, seed)


def _randomised(model: nn.Module, mode: str, groups: int, seed: int) -> Iterator[tuple[str, nn.Module]]:
    steps, fresh = layers(model, groups), deepcopy(model).cpu()
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        for module in fresh.modules():
            _reset(module)
        for module in fresh.modules():
            if isinstance(module, Explainer):
                module.load_state_dict(_fresh_explainer(module).state_dict())
    randomised: tuple[str, ...] = ()
    for step, names in steps.items():
        randomised = (*randomised, *names) if mode == "cascading" else names
        copy = deepcopy(model)
        for name in randomised:
            copy.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())
        yield step, copy


def _reset(module: nn.Module) -> None:
    if isinstance(module, CONVOLUTIONS):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif hasattr(module, "reset_parameters"):
        module.reset_parameters()
    else:
        for parameter in module.parameters(recurse=False):
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))


def _fresh_explainer(explainer: Explainer) -> Explainer:
    channels = tuple(level[-2].out_channels for level in explainer.encoder)
    return Explainer(explainer.encoder[0][0].in_channels, channels)


def similarity(a: Tensor, b: Tensor) -> Similarities:
    """How alike the maps a and b (N, H, W) are, for each of the N: three values in [-1, 1], 1 for equal maps.

    spearman: rank correlation of the pixels, equal values sharing their mean rank; spearman_abs: of their absolute
    values; ssim: structural similarity of the maps, each scaled to [0, 1]. NaN where a map (or, for spearman_abs, its
    absolute value) is constant or not finite. Raises ValueError for maps of other shapes.
    """
    a, b = (check_maps(name, maps).detach().cpu().double() for name, maps in (("a", a), ("b", b)))
    if a.shape != b.shape:
        raise ValueError(f"b: expected shape {tuple(a.shape)} to match a, got {tuple(b.shape)}")
    spearman, spearman_abs = map_correlation(a, b), map_correlation(a.abs(), b.abs())
    return {"spearman": spearman, "spearman_abs": spearman_abs, "ssim": _ssim(a, b)}


def _ssim(a: Tensor, b: Tensor, sigma: float = 1.5) -> Tensor:
    """Wang et al. 2004, eq. 13: Gaussian window of 11x11 (7x7 for sides below 11), C1 = 0.01^2, C2 = 0.03^2, where the
    window fits into the map; the mean over its positions."""
    window = 11 if min(a.shape[1:]) >= 11 else 7
    if min(a.shape[1:]) < window:
        raise ValueError(f"a: expected maps of at least {window}x{window}, got {tuple(a.shape[1:])}")
    least, most = (torch.stack([reduce(m, (1, 2), True) for m in (a, b)]) for reduce in (torch.amin, torch.amax))
    x, y = (torch.stack([a, b]) - least) / (most - least)  # 0 / 0 for a constant map
    offsets = torch.arange(window, dtype=a.dtype) - window // 2
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (weights[:, None] * weights / weights.sum() ** 2)[None, None]
    mean_x, mean_y, xx, yy, xy = (F.conv2d(m[:, None], kernel)[:, 0] for m in (x, y, x * x, y * y, x * y))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return (luminance * (2 * cov + 0.03**2) / (var_x + var_y + 0.03**2)).mean((1, 2))


def parameter_randomisation(
    explain_fn: Callable[[nn.Module], Tensor],
    model: nn.Module,
    mode: str = "cascading",
    groups: int = 6,
    seed: int = 0,
) -> dict[str, Similarities]:
    """Step -> similarity of each map before and after the parameters are drawn anew, from the output to the input.

    explain_fn: model -> maps (N, H, W) of the same images and targets. mode: "cascading" or "independent".
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected 'cascading' or 'independent', got {mode!r}")
    before = explain_fn(model)
    return {step: similarity(before, explain_fn(copy)) for step, copy in _randomised(model, mode, groups, seed)}


def label_randomisation(maps: Tensor, maps_random_labels: Tensor) -> Similarities:
    """Similarity of the maps (N, H, W) of a model and of its twin trained on permuted labels, for the same images."""
    return similarity(maps, maps_random_labels)


def unchanged(
    similarities: Mapping[str, Similarities],
    threshold: float = 0.5,
    metrics: tuple[str, ...] = ("spearman", "spearman_abs"),
) -> bool | None:
    """Whether the maps stay the same whatever is drawn anew: such a method does not show what the model has learnt.

    True where the mean of one of `metrics` over its defined values is above `threshold` at every step, the one with
    everything drawn anew included; a step where no map has a defined value counts as a change. None where no value
    is defined at all. After label randomisation, give {"labels": similarities}.
    """
    means = torch.stack([torch.stack([step[name].nanmean() for step in similarities.values()]) for name in metrics])
    return None if means.isnan().all() else bool((means > threshold).all(1).any())
