"""Sanity checks for heatmaps (Adebayo et al. 2018): a map of what a model has learnt changes when the model forgets it.

The parameters of a model are drawn anew, or it is trained on permuted labels; its maps before and after are compared.
Convolutions are drawn He-normal (fan-out), as the networks here and torchvision's ResNets start, with biases 0; the
Explainer as `Explainer()` starts; all else by its own `reset_parameters`, so that batch normalisations have scale 1,
shift 0, mean 0, variance 1. A parameter of a module without that method is permuted.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.metrics import map_correlation
from lib.metrics.arguments import check, check_choice, check_maps
from lib.models import Explainer

Similarities = dict[str, Tensor]
MODES = ("cascading", "independent")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Explainer)


def layers(model: nn.Module, groups: int = 6) -> dict[str, tuple[str, ...]]:
    """The at most `groups` steps from the output to the input: name -> names of the modules in it.

    The last layer is a step by itself. Of the others, a step is a stage, a residual block or a layer, at the first
    depth of the module tree that has enough of them; neighbours are then joined evenly, `nearest the output..nearest
    the input`. A normalisation goes with the layer before it.
    """
    blocks = _blocks(model)
    enough = groups >= 2 and len(blocks) >= 2
    check("groups", enough, "at least 2, of at least 2 layers", f"{groups} of {len(blocks)}")
    inside = tuple(f"{name}." for block in blocks for name in block)
    outside = [name for name, _ in model.named_parameters() if not name.startswith(inside)]
    check("model", not outside, "all parameters in layers", f"{', '.join(outside)} outside of them")
    *others, last = blocks
    for depth in range(1, 2 + max(block[0].count(".") for block in blocks)):
        units: dict[str, list[str]] = {}
        for block in others:
            units.setdefault(".".join(block[0].split(".")[:depth]), []).extend(block)
        if len(units) >= groups - 1:
            break
    steps = {last[0]: tuple(last)}
    for part in np.array_split(list(units), min(groups - 1, len(units)))[::-1]:
        name = str(part[0]) if len(part) == 1 else f"{part[-1]}..{part[0]}"
        steps[name] = tuple(module for unit in part for module in units[unit])
    return steps


def _blocks(module: nn.Module, name: str = "") -> list[list[str]]:
    """Names of the layers and residual blocks with parameters, in order, each with the normalisations after it."""
    blocks = []
    for child_name, child in module.named_children():
        parameters, full = list(child.parameters()), f"{name}.{child_name}".lstrip(".")
        if isinstance(child, CONTAINERS) or hasattr(child, "last_features"):
            blocks += _blocks(child, full)
        elif blocks and parameters and all(parameter.ndim < 2 for parameter in parameters):
            blocks[-1].append(full)
        elif parameters:
            blocks.append([full])
    return blocks


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


def randomised(model: nn.Module, groups: int = 6, seed: int = 0, mode: str = "cascading") -> Iterator[tuple]:
    """(step, copy of `model`) with new parameters in the step's layers alone (independent), or in all from the output
    down to it (cascading; the last: in all), the same ones in both. `model` and the random state stay as they are."""
    steps, fresh = layers(model, groups), deepcopy(model).cpu()
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        for module in fresh.modules():
            _reset(module)
        for module in fresh.modules():
            if isinstance(module, Explainer):
                channels = tuple(level[-2].out_channels for level in module.encoder)
                module.load_state_dict(Explainer(module.encoder[0][0].in_channels, channels).state_dict())
    forgotten: tuple[str, ...] = ()
    for step, names in steps.items():
        forgotten = (*forgotten, *names) if mode == "cascading" else names
        copy = deepcopy(model)
        for name in forgotten:
            copy.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())
        yield step, copy


cascading, independent = (partial(randomised, mode=mode) for mode in MODES)


def similarity(a: Tensor, b: Tensor) -> Similarities:
    """How alike the maps a and b (N, H, W) are: three values (N,) in [-1, 1], 1 for equal maps, NaN where one is
    constant or not finite: spearman, of the pixels; spearman_abs, of their absolute values; ssim, of maps in [0, 1]."""
    a, b = (check_maps(name, maps).detach().cpu().double() for name, maps in (("a", a), ("b", b)))
    check("b", a.shape == b.shape, f"shape {tuple(a.shape)} to match a", b)
    return {"spearman": map_correlation(a, b), "spearman_abs": map_correlation(a.abs(), b.abs()), "ssim": _ssim(a, b)}


label_randomisation = similarity  # of the maps of a model and those of its twin trained on permuted labels


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """Wang et al. 2004, eq. 13, of maps scaled to [0, 1]: Gaussian window of 11x11 (7x7 for sides below 11)
    and sigma 1.5, C1 = 0.01^2, C2 = 0.03^2, the mean over the positions where the window fits into the map."""
    window = 11 if min(a.shape[1:]) >= 11 else 7
    check("a", min(a.shape[1:]) >= window, f"maps of at least {window}x{window}", tuple(a.shape[1:]))
    least, most = (torch.stack([reduce(m, (1, 2), True) for m in (a, b)]) for reduce in (torch.amin, torch.amax))
    x, y = (torch.stack([a, b]) - least) / (most - least)  # 0 / 0 for a constant map
    offsets = torch.arange(window, dtype=a.dtype) - window // 2
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    kernel = (weights[:, None] * weights / weights.sum() ** 2)[None, None]
    mean_x, mean_y, xx, yy, xy = (F.conv2d(m[:, None], kernel)[:, 0] for m in (x, y, x * x, y * y, x * y))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return (luminance * (2 * cov + 0.03**2) / (var_x + var_y + 0.03**2)).mean((1, 2))


def parameter_randomisation(
    explain_fn: Callable[[nn.Module], Tensor], model: nn.Module, mode: str = "cascading", groups: int = 6, seed: int = 0
) -> dict[str, Similarities]:
    """Step -> similarity of the maps (N, H, W) that `explain_fn` gives of `model` and of its `randomised` copies."""
    check_choice("mode", mode, MODES)
    before = explain_fn(model)
    return {step: similarity(before, explain_fn(copy)) for step, copy in randomised(model, groups, seed, mode)}


def unchanged(similarities: Mapping[str, Similarities], threshold: float = 0.5) -> bool | None:
    """Whether the maps stay the same whatever is drawn anew: such a method does not show what the model has learnt.

    True where the mean of the defined rank correlations, of the values or of their sizes, is above `threshold` at every
    step; one without any counts as a change. None where no value is defined. For twins, give {"labels": similarities}.
    """
    kinds = ("spearman", "spearman_abs")
    means = torch.stack([torch.stack([step[kind].nanmean() for step in similarities.values()]) for kind in kinds])
    return None if means.isnan().all() else bool((means > threshold).all(1).any())
