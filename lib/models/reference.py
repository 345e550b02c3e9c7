"""Reading what the reference code of both papers has saved: names of its tensors -> names of ours."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from lib.models.backbones import Gated, PaperVGG, ResNet
from lib.models.explainer_classifier import Explainer, ExplainerClassifier
from lib.models.softcam import SoftCAM
from lib.models.weights import load_strict, read_checkpoint


def load_reference_state(module: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """`module` with the reference's tensors, by the reference's names or by ours.

    module: a SoftCAM, an Explainer, a gated classifier or a plain black box. Every tensor must be there, the counts of
    batches included. Raises ValueError that lists the missing, unexpected and wrong-shaped names, in our spelling.
    """
    patterns = _patterns(module)
    return load_strict(module, {_renamed(name, patterns): value for name, value in state_dict.items()})


def load_reference_checkpoint(path: str | Path, model: nn.Module) -> nn.Module:
    """`model` with the tensors of a `.pt` file of either reference, read without running pickled code.

    An Explainer-Classifier file holds `classifier` and `explainer` (beside optimiser, epoch and best values): both go
    into an ExplainerClassifier, one into an Explainer or a classifier. A SoftCAM file is a state dict by itself.
    Raises ValueError for a pickled model, a missing part or names that do not fit, FileNotFoundError.
    """
    checkpoint = read_checkpoint(path)
    if isinstance(model, ExplainerClassifier):
        if missing := [part for part in ("classifier", "explainer") if not isinstance(checkpoint.get(part), Mapping)]:
            raise ValueError(
                f"{path}: expected state dicts 'classifier' and 'explainer', missing {' and '.join(missing)}"
            )
        load_reference_state(model.classifier, checkpoint["classifier"])
        load_reference_state(model.explainer, checkpoint["explainer"])
        return model
    part = checkpoint.get("explainer" if isinstance(model, Explainer) else "classifier")
    return load_reference_state(model, part if isinstance(part, Mapping) else checkpoint)


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
            children = [name for name, _ in module.features.named_children()]
            numbered = [(rf"backbone\.{i}\.", f"features.{name}.") for i, name in enumerate(children)]
            return [*numbered, (r"classifier\.", "evidence.")]
        case SoftCAM():
            return [(r"backbone\.0\.", "features."), (r"backbone\.1\.", "head."), (r"classifier\.", "evidence.")]
        case Gated():
            return []
    raise ValueError(f"module: expected a SoftCAM, an Explainer or a classifier, got {type(module).__name__}")
