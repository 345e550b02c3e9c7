"""Sanity checks for heatmaps (Adebayo et al. 2018): a map of what a model has learnt changes when the model forgets it:
when its parameters are drawn anew, or when it is trained on permuted labels."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from lib.metrics import map_correlation
from lib.models import Explainer

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Explainer)


def layers(model: nn.Module, groups: int = 6, first: str = "classifier") -> dict[str, tuple[str, ...]]:
    """The at most `groups` steps from the output to the input: name -> names of the modules in it. Of an
    ExplainerClassifier the part `first` goes first, explainer or classifier. The last layer is one; of the others each
    is a stage, a residual block or a layer, at the first depth of the module tree that has enough; neighbours are
    joined, `nearest the output..nearest the input`. Normalisations go with the layer before."""
    *others, last = sorted(_blocks(model), key=lambda block: block[0].startswith(f"{first}."))
    for depth in range(1, 2 + max(block[0].count(".") for block in others)):
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


def _blocks(module: nn.Module, prefix: str = "") -> list[list[str]]:
    """Names of the layers and residual blocks with parameters, in order, each with the normalisations after it."""
    blocks = []
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if isinstance(child, CONTAINERS) or hasattr(child, "last_features"):
            blocks += _blocks(child, f"{prefix}{name}.")
        elif blocks and parameters and all(parameter.ndim < 2 for parameter in parameters):
            blocks[-1].append(prefix + name)
        elif parameters:
            blocks.append([prefix + name])
    return blocks


def randomised(model: nn.Module, groups=6, seed: int = 0, first: str = "classifier") -> Iterator[tuple]:
    """(step, copy of `model`) with new parameters in all `layers` from the output down to the step, in the end in all.
    `model` and the random state stay as they are.

    Convolutions are drawn He-normal (fan-out), as models here start, with biases 0; the Explainer as `Explainer()`; all
    else by its own `reset_parameters`; a parameter without one is permuted.
    """
    fresh, copy = deepcopy(model).cpu(), model
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        for module in fresh.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif hasattr(module, "reset_parameters"):
                module.reset_parameters()
            else:
                for parameter in module.parameters(recurse=False):
                    parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
        if explainer := getattr(fresh, "explainer", None):
            channels = tuple(level[-2].out_channels for level in explainer.encoder)
            anew = Explainer(explainer.encoder[0][0].in_channels, channels, explainer.init_bias)
            explainer.load_state_dict(anew.state_dict())
    for step, names in layers(model, groups, first).items():
        copy = deepcopy(copy)
        for name in names:
            copy.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())
        yield step, copy


def similarity(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """How alike the maps a and b (N, H, W) are: three values (N,) in [-1, 1], 1 for equal maps, NaN where one is
    constant or not finite: spearman, of the pixels; spearman_abs, of their absolute values; ssim, of maps in [0, 1]."""
    a, b = (maps.detach().cpu().double() for maps in (a, b))
    return {"spearman": map_correlation(a, b), "spearman_abs": map_correlation(a.abs(), b.abs()), "ssim": _ssim(a, b)}


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """Wang et al. 2004, eq. 13, of maps scaled to [0, 1]: a Gaussian window of 11x11 and sigma 1.5, the mean over the
    positions where it fits into the map, NaN where that is smaller."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes a second

    low, high = (torch.stack([reduce(maps, (1, 2), True) for maps in (a, b)]) for reduce in (torch.amin, torch.amax))
    scaled = (torch.stack([a, b]) - low) / (high - low)  # 0 / 0 for a constant map
    given = {"reduction": "none", "data_range": 1.0, "return_full_image": True}
    at_pixels = structural_similarity_index_measure(*scaled[:, :, None], **given)[1]
    return at_pixels[:, 0, 5:-5, 5:-5].mean((1, 2))


def parameter_randomisation(explain_fn: Callable, model: nn.Module, groups=6, seed=0, first="classifier") -> dict:
    """Step -> `similarity` of the maps (N, H, W) that `explain_fn` gives of the model and its `randomised` copies."""
    before = explain_fn(model)
    return {step: similarity(before, explain_fn(copy)) for step, copy in randomised(model, groups, seed, first)}


def unchanged(similarities: Mapping[str, Mapping], threshold: float = 0.5) -> bool | None:
    """Whether maps stay the same whatever is drawn anew, and so do not show what the model has learnt: where the mean
    of the defined rank correlations, of values or sizes, is above `threshold` at every step; a step without any counts
    as a change. None where no value is defined. For twins, give {"labels": similarities}."""
    kinds = ("spearman", "spearman_abs")
    means = torch.stack([torch.stack([step[kind].nanmean() for step in similarities.values()]) for kind in kinds])
    return None if means.isnan().all() else bool((means > threshold).all(1).any())
