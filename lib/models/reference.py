"""Reading what the reference code of both papers has saved: names of its tensors -> names of ours."""

import re
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from lib.models.backbones import ARCHITECTURES, blackbox, out_of_place
from lib.models.explainer_classifier import Explainer, ExplainerClassifier
from lib.models.softcam import SoftCAM, softcam
from lib.models.weights import load_strict, modern_names, read_checkpoint

PARTS = ("classifier", "explainer")
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index", "relative_coords_table")
STEM = r"((features\.)?conv1(\.0)?|features\.(0|0\.0|conv0)|stem\.0(\.0)?|layers\.0|conv_proj|stages\.0\.0)\.weight"
HEAD = r"(evidence|fc|classifier(\.[1-6])?|heads?(\.head)?|dense\.6)\.weight"
VGG_HIDDEN = 512 * 7 * 7 * 4096 + 4096 * 4096 + 2 * 4096  # parameters of VGG's first two fully connected layers
STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")  # a ResNet's children, in order
LEVELS = ("encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1", "decoder.2")
REFERENCE = {  # how a name starts that tells the network of a file -> how its names start -> how ours do
    "conv_1x1.": {f"conv_mod{i}.conv{k}.": f"{level}.{2 * k}." for i, level in enumerate(LEVELS) for k in (0, 1)}
    | {"tr_conv": "upsample.", "conv_1x1.": "project."},
    "last_dense.": {f"conv_mod{i}.conv{k}.": f"stages.{i}.{2 * k}." for i in range(4) for k in (0, 1)}
    | {"dense0.": "dense.0.", "dense1.": "dense.3.", "last_dense.": "dense.6."},
    "sb1.": {f"sb{i}.block": f"layer{i}." for i in range(1, 5)},
    "backbone.0.weight": {f"backbone.{i}.": f"features.{stage}." for i, stage in enumerate(STAGES)}
    | {"classifier.": "evidence."},
    "backbone.0.": {"backbone.0.": "features.", "backbone.1.": "head.", "classifier.": "evidence."},
}


def our_names(names: Collection[str]) -> dict[str, str]:
    """Each name in a file -> ours: that of the reference translated, any other as it is."""
    starts = next((REFERENCE[sign] for sign in REFERENCE if any(name.startswith(sign) for name in names)), {})
    matches = {name: next((start for start in starts if name.startswith(start)), "") for name in names}
    return {name: starts.get(start, "") + name.removeprefix(start) for name, start in matches.items()}


def load_reference_state(module: nn.Module, state_dict: Mapping[str, Tensor], source: str = "state_dict") -> nn.Module:
    """`module` with the tensors of `state_dict`, by the reference's names or by ours.

    module: a SoftCAM, an Explainer, a gated classifier or a plain black box, torchvision's included. Every tensor must
    be there; only a black box's counts of batches, which old torchvision files lack, may be absent and start at 0.
    Raises ValueError that begins with `source` and lists all missing, unexpected and wrong-shaped names.
    """
    spelling = {}
    for name, ours in our_names(state_dict).items():
        if spelling.setdefault(ours, name) != name:
            raise ValueError(f"{source}: {spelling[ours]} and {name} are both {ours} of {type(module).__name__}")
    state = {ours: state_dict[name] for ours, name in spelling.items()}
    if not isinstance(module, SoftCAM | Explainer):
        state = modern_names(module, state)
    return load_strict(module, state, source, spelling)


def load_reference_checkpoint(
    path: str | Path, model: nn.Module | None = None, architecture: str | None = None
) -> nn.Module:
    """The model in a file of either reference, read without running pickled code.

    An Explainer-Classifier file holds `classifier` and `explainer` (beside optimiser, epoch and best values), or one
    of them; a SoftCAM file is a state dict of the reference's fully convolutional model; a state dict by torchvision's
    names is a black box. Each may lie under `state_dict`, `model_state_dict` or `model`; `module.` may precede names.
    model: what the tensors are copied into; without it, one is built from them, in eval mode on the CPU.
    architecture: of the model that is built, if the tensors do not tell; GoogLeNet and Inception v3, whose input
        scaling leaves no trace there, are given as `model`.
    Raises FileNotFoundError; ValueError for a damaged file, a pickled model, a missing part, an unknown architecture,
    or names and shapes that do not fit, all of them listed.
    """
    if model is not None and architecture is not None:
        raise ValueError(f"model: expected none beside the architecture {architecture!r}, got {type(model).__name__}")
    checkpoint = unwrapped(read_checkpoint(path))
    states = {part: unwrapped(checkpoint[part]) for part in PARTS if isinstance(checkpoint.get(part), Mapping)}
    if model is None:
        with torch.random.fork_rng([]):
            built = {part: build(state, path, architecture) for part, state in (states or {"": checkpoint}).items()}
        model = (ExplainerClassifier(**built) if len(built) == 2 else next(iter(built.values()))).eval()
    whole = isinstance(model, ExplainerClassifier)
    if whole and (missing := [part for part in PARTS if part not in states]):
        raise ValueError(f"{path}: expected state dicts 'classifier' and 'explainer', missing {' and '.join(missing)}")
    for part in PARTS if whole else [PARTS[isinstance(model, Explainer)]]:
        source = f"{path}, {part}" if part in states else str(path)
        load_reference_state(getattr(model, part) if whole else model, states.get(part, checkpoint), source)
    return model


def unwrapped(checkpoint: Mapping) -> dict:
    """The state dict, or the dictionary of parts, without wrappers around it and prefixes of its names."""
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(checkpoint.get(name), Mapping):
            return unwrapped(checkpoint[name])
    for prefix in ("module.", "_orig_mod."):  # of DataParallel and of torch.compile
        if checkpoint and all(str(name).startswith(prefix) for name in checkpoint):
            return unwrapped({name.removeprefix(prefix): value for name, value in checkpoint.items()})
    return {str(name): value for name, value in checkpoint.items()}


def build(state: Mapping[str, Tensor], path: str | Path, architecture: str | None) -> nn.Module:
    """A model of the architecture, classes and input channels that the tensors have."""
    shapes = {ours: tuple(getattr(state[name], "shape", ())) for name, ours in our_names(state).items()}
    levels = [shapes[name] for name in sorted(shapes) if re.fullmatch(r"encoder\.\d\.0\.weight", name)]
    if levels:
        return Explainer(levels[0][1], tuple(level[0] for level in levels))
    stem, head = (sorted(name for name in shapes if re.fullmatch(pattern, name)) for pattern in (STEM, HEAD))
    if not (stem and head):
        raise ValueError(
            f"{path}: expected a network's tensors with a first convolution and a last layer, got {len(shapes)} "
            f"entries, {', '.join(list(state)[:8]) or 'none'} ...; give the model they belong to as model"
        )
    head = "evidence.weight" if "evidence.weight" in shapes else head[-1]
    architecture, num_classes = architecture or told(shapes, stem[0], head, path), shapes[head][0]
    if architecture in set(models.list_models(module=models)) - set(ARCHITECTURES):
        return out_of_place(models.get_model(architecture, weights=None, num_classes=num_classes))
    make, (width, in_channels, *_) = softcam if head == "evidence.weight" else blackbox, shapes[stem[0]]
    return make(architecture, num_classes, in_channels=in_channels, width=width)


def told(shapes: Mapping[str, tuple[int, ...]], stem: str, head: str, path: str | Path) -> str:
    """The network with as many parameters, leaving out the last layer and counting three input channels."""
    if "dense.6.weight" in shapes:
        return "vgg-gated"
    if len([name for name in shapes if re.fullmatch(r"(features\.)?layer[23]\.1\.conv1\.weight", name)]) == 1:
        return "compact"  # a ResNet without a third stage
    hidden = [name for name in shapes if head == "evidence.weight" and name.startswith("head.")]
    left_out = (head, head.replace("weight", "bias"), *hidden)
    counted = [shape for name, shape in shapes.items() if not name.endswith(BUFFERS) and name not in left_out]
    count = sum(map(prod, counted)) + (VGG_HIDDEN if hidden else 0) + 1000 * (prod(shapes[head][1:]) + 1)
    count += prod(shapes[stem]) * 3 // shapes[stem][1] - prod(shapes[stem])
    for name in models.list_models(module=models):
        if any(entry.meta["num_params"] == count for entry in models.get_model_weights(name)):
            return name
    listed = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:4])
    raise ValueError(
        f"{path}: no known architecture has its {len(shapes)} tensors ({listed}, ...); give architecture or model"
    )
