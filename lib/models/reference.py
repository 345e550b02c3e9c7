"""Reading what the reference code of both papers has saved: names of its tensors -> names of ours."""

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from lib.models.backbones import ARCHITECTURES, Gated, PaperVGG, ResNet, blackbox, out_of_place
from lib.models.explainer_classifier import Explainer, ExplainerClassifier
from lib.models.softcam import SoftCAM, softcam
from lib.models.weights import load_strict, modern_names, read_checkpoint

PARTS = ("classifier", "explainer")
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")  # a ResNet's children, in order
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index", "relative_coords_table")
STEM = (
    r"(conv1(\.0)?|features\.(0|0\.0|conv0)|stem\.0(\.0)?|layers\.0|conv_proj|conv_mod0\.conv0|(encoder|stages)\.0\.0)"
)
HEAD = r"(evidence|fc|classifier(\.[1-6])?|heads?(\.head)?|last_dense|dense\.6)"
VGG_HIDDEN = 512 * 7 * 7 * 4096 + 4096 * 4096 + 2 * 4096  # parameters of VGG's first two fully connected layers

Shapes = dict[str, tuple[int, ...]]


def load_reference_state(module: nn.Module, state_dict: Mapping[str, Tensor], source: str = "state_dict") -> nn.Module:
    """`module` with the reference's tensors, by the reference's names or by ours.

    module: a SoftCAM, an Explainer, a gated classifier or a plain black box, torchvision's included. Every tensor must
    be there; only a black box's counts of batches, which old torchvision files lack, may be absent and start at 0.
    Raises ValueError that begins with `source` and lists all missing, unexpected and wrong-shaped names with found and
    expected shapes, in our spelling and the file's.
    """
    patterns, spelling = _patterns(module), {}
    for name in state_dict:
        ours = _renamed(name, patterns)
        if ours in spelling:
            raise ValueError(f"{source}: {spelling[ours]} and {name} are both {ours} of {type(module).__name__}")
        spelling[ours] = name
    state = {ours: state_dict[name] for ours, name in spelling.items()}
    if not isinstance(module, SoftCAM | Explainer):
        state = modern_names(module, state)
    return load_strict(module, state, source, spelling)


def load_reference_checkpoint(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    architecture: str | None = None,
    num_classes: int | None = None,
) -> nn.Module:
    """The model in a file of either reference, read without running pickled code.

    An Explainer-Classifier file holds `classifier` and `explainer` (beside optimiser, epoch and best values) and gives
    an ExplainerClassifier, one part alone gives that part. A SoftCAM file is a state dict of the reference's fully
    convolutional model and gives a SoftCAM; a state dict by torchvision's names gives the black box. Each may lie
    under `state_dict`, `model_state_dict` or `model`, and all names may begin with `module.`.

    model: what the tensors are copied into; without it, a model is built from the file, in eval mode on the CPU.
    architecture, num_classes: of the model that is built; told from the tensors where they are not given. GoogLeNet
        and Inception v3 are not told (their input scaling leaves no trace): give them as `model`.
    Raises FileNotFoundError, and ValueError for a damaged file, a pickled model, a missing part, tensors whose
    architecture cannot be told, or names and shapes that do not fit, all of them listed.
    """
    if model is not None and (architecture is not None or num_classes is not None):
        raise ValueError(
            f"model: expected either a model or architecture and num_classes, got {type(model).__name__} with "
            f"architecture={architecture!r}, num_classes={num_classes}"
        )
    checkpoint = _unwrapped(read_checkpoint(path))
    found = {part: _unwrapped(checkpoint[part]) for part in PARTS if isinstance(checkpoint.get(part), Mapping)}
    if isinstance(model, ExplainerClassifier) and (missing := [part for part in PARTS if part not in found]):
        raise ValueError(f"{path}: expected state dicts 'classifier' and 'explainer', missing {' and '.join(missing)}")
    if isinstance(model, ExplainerClassifier) or (model is None and len(found) == 2):
        if model is None:
            built = {part: _built(state, f"{path}, {part}", architecture, num_classes) for part, state in found.items()}
            model = ExplainerClassifier(built["explainer"], built["classifier"]).eval()
        for part, state in found.items():
            load_reference_state(getattr(model, part), state, f"{path}, {part}")
        return model
    part = "explainer" if isinstance(model, Explainer) or (model is None and "explainer" in found) else "classifier"
    state = found.get(part, checkpoint)
    return load_reference_state(model or _built(state, str(path), architecture, num_classes), state, str(path))


def _unwrapped(checkpoint: Mapping) -> dict:
    """The state dict, or the dictionary of parts, without wrappers around it and prefixes of its names."""
    for name in WRAPPERS:
        if isinstance(checkpoint.get(name), Mapping):
            return _unwrapped(checkpoint[name])
    for prefix in PREFIXES:
        if checkpoint and all(str(name).startswith(prefix) for name in checkpoint):
            return _unwrapped({name.removeprefix(prefix): value for name, value in checkpoint.items()})
    return {str(name): value for name, value in checkpoint.items()}


def _built(state: Mapping[str, Tensor], source: str, architecture: str | None, num_classes: int | None) -> nn.Module:
    """A model of the architecture, classes and input channels that the tensors have, its own values undefined."""
    shapes = _torchvision_names({name: tuple(v.shape) for name, v in state.items() if isinstance(v, Tensor)})
    stem = next((shape for name, shape in shapes.items() if re.fullmatch(rf"{STEM}\.weight", name)), None)
    if {"conv_1x1.weight", "project.weight"} & shapes.keys():
        levels = sorted(name for name in shapes if re.match(r"(tr_conv|upsample\.)\d+\.weight", name))
        widths = (shapes[name][1] for name in reversed(levels))  # the last goes to the level next to the image
        return _empty(Explainer, stem[1] if stem else 3, tuple(widths))
    heads = sorted(name for name in shapes if re.fullmatch(rf"{HEAD}\.weight", name))
    if not (stem and heads):
        raise ValueError(
            f"{source}: expected a network's tensors with a first convolution and a last layer, got {len(shapes)} "
            f"tensors among {', '.join(list(state)[:8]) or 'no entries'}; give the model they belong to as model"
        )
    head = "evidence.weight" if "evidence.weight" in shapes else heads[-1]
    if num_classes not in (None, shapes[head][0]):
        raise ValueError(f"num_classes: expected the {shapes[head][0]} of {source}, got {num_classes}")
    architecture = architecture or _architecture(shapes, stem, head, source)
    if architecture in ARCHITECTURES:
        build = softcam if head == "evidence.weight" else blackbox
        return _empty(build, architecture, shapes[head][0], in_channels=stem[1], width=stem[0])
    if head == "evidence.weight" or architecture not in models.list_models(module=models):
        known = ", ".join(ARCHITECTURES) + ("" if head == "evidence.weight" else " or another of torchvision's")
        raise ValueError(f"architecture: expected one of {known}, got {architecture!r}")
    with torch.random.fork_rng([]):  # RegNet cannot be built on the meta device
        return out_of_place(models.get_model(architecture, weights=None, num_classes=shapes[head][0])).eval()


def _architecture(shapes: Shapes, stem: tuple[int, ...], head: str, source: str) -> str:
    """The network with as many parameters, leaving out the last layer and counting three input channels."""
    if {"last_dense.weight", "dense.6.weight"} & shapes.keys():
        return "vgg-gated"
    if "layer2.1.conv1.weight" in shapes and not any(name.startswith("layer3.") for name in shapes):
        return "compact"
    last = (head, head.replace("weight", "bias"))
    hidden = [name for name in shapes if head == "evidence.weight" and name.startswith("head.")]
    counted = [name for name in shapes if not name.endswith(BUFFERS) and name not in (*last, *hidden)]
    count = sum(prod(shapes[name]) for name in counted) + (VGG_HIDDEN if hidden else 0)
    count += prod(stem) * 3 // stem[1] - prod(stem) + 1000 * (prod(shapes[head][1:]) + 1)
    for name in models.list_models(module=models):
        if any(entry.meta["num_params"] == count for entry in models.get_model_weights(name)):
            return name
    raise ValueError(
        f"{source}: no known architecture has its {len(shapes)} tensors; give architecture or model. "
        f"They are {', '.join(f'{name} {shape}' for name, shape in list(shapes.items())[:4])}, ..."
    )


def _torchvision_names(shapes: Shapes) -> Shapes:
    """The shapes by torchvision's names where they came by a reference's or ours, as far as networks differ."""
    if any(name.startswith("backbone.") for name in shapes):
        resnet = "backbone.0.weight" in shapes
        children = [
            (rf"backbone\.{i}\.", f"{name}.") for i, name in enumerate(STAGES if resnet else ("features", "head"))
        ]
        patterns = [*children, (r"classifier\.", "evidence.")]
    else:
        patterns = [(r"features\.(conv1|bn1|layer\d)\.", r"\1."), (r"sb(\d)\.block(\d+)\.", r"layer\1.\2.")]
    return {_renamed(name, patterns): shape for name, shape in shapes.items()}


def _empty(build, *args, **kwargs) -> nn.Module:
    with torch.device("meta"):
        model = build(*args, **kwargs)
    return model.to_empty(device="cpu").eval()


def _renamed(name: str, patterns: list[tuple[str, str]]) -> str:
    for pattern, replacement in patterns:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def _patterns(module: nn.Module) -> list[tuple[str, str]]:
    """Regular expressions for the start of a reference name and what they become; the first that matches is taken."""
    pair = [(rf"conv_mod{{}}\.conv{conv}\.", rf"{{}}.{2 * conv}.") for conv in (0, 1)]
    match module:
        case Explainer():
            levels = len(module.encoder)
            ours = [f"{part}.{level}" for part in ("encoder", "decoder") for level in range(levels)]
            convolutions = [(old.format(i), new.format(name)) for i, name in enumerate(ours) for old, new in pair]
            return [*convolutions, (r"tr_conv(\d+)\.", r"upsample.\1."), (r"conv_1x1\.", "project.")]
        case PaperVGG():
            convolutions = [(old.format(i), new.format(f"stages.{i}")) for i in range(4) for old, new in pair]
            dense = [(r"dense0\.", "dense.0."), (r"dense1\.", "dense.3."), (r"last_dense\.", "dense.6.")]
            return [*convolutions, *dense]
        case ResNet():
            return [(r"sb(\d)\.block(\d+)\.", r"layer\1.\2.")]
        case SoftCAM() if hasattr(module.features, "conv1"):  # a ResNet: the reference numbers its children
            numbered = [(rf"backbone\.{i}\.", f"features.{name}.") for i, name in enumerate(STAGES)]
            return [*numbered, (r"classifier\.", "evidence.")]
        case SoftCAM():
            return [(r"backbone\.0\.", "features."), (r"backbone\.1\.", "head."), (r"classifier\.", "evidence.")]
        case Gated():
            return []
        case nn.Module() if type(module).__module__.startswith("torchvision.models."):
            return []
    raise ValueError(f"module: expected a SoftCAM, an Explainer or a classifier, got {type(module).__name__}")
