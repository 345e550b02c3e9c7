"""Reading what the reference code of both papers has saved."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.models.backbones import ARCHITECTURES, blackbox
from lib.models.explainer_classifier import Explainer, ExplainerClassifier
from lib.models.softcam import softcam
from lib.models.weights import load_reference_state, read_checkpoint

PARTS = ("classifier", "explainer")


def load_reference_checkpoint(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The model in a file of either reference, read without running pickled code.

    An Explainer-Classifier file holds `classifier` and `explainer` or one of them; a SoftCAM or black-box file is a
    state dict. Each may lie under `state_dict`, `model_state_dict` or `model`; `module.` may precede names.
    model: what the tensors are copied into; without it, one of `ARCHITECTURES` that has them, in eval mode.
    Raises FileNotFoundError; ValueError for a damaged file, a pickled model, or tensors that are missing or do not fit.
    """
    checkpoint = unwrapped(read_checkpoint(path))
    states = {part: unwrapped(checkpoint[part]) for part in PARTS if isinstance(checkpoint.get(part), Mapping)}
    if model is None:
        built = [fitting(state, path) for state in (states or {"": checkpoint}).values()]
        model = (ExplainerClassifier(*built[::-1]) if len(built) == 2 else built[0]).eval()
    if isinstance(model, ExplainerClassifier):
        if len(states) < 2:
            raise ValueError(f"{path}: expected state dicts 'classifier' and 'explainer', got {', '.join(checkpoint)}")
        for part, state in states.items():
            load_reference_state(getattr(model, part), state, f"{path}, {part}")
        return model
    return load_reference_state(model, states.get(PARTS[isinstance(model, Explainer)], checkpoint), str(path))


def unwrapped(checkpoint: Mapping) -> dict:
    """The state dict, or the dictionary of parts, without wrappers around it and DataParallel's prefix."""
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(checkpoint.get(name), Mapping):
            return unwrapped(checkpoint[name])
    return {str(name).removeprefix("module."): value for name, value in checkpoint.items()}


def fitting(state: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """A model without values with the shapes of `state`, whose first tensor is the stem's and last two the head's."""
    shapes, builders = [value.shape for value in state.values() if getattr(value, "ndim", 0)], [Explainer]
    if len(shapes) > 1 and len(shapes[0]) == 4:
        make, (width, channels, *_) = softcam if len(shapes[-2]) == 4 else blackbox, shapes[0]
        builders += [partial(make, name, shapes[-1][0], in_channels=channels, width=width) for name in ARCHITECTURES]
    for build in builders:
        with suppress(ValueError), torch.device("meta"):  # there is no SoftCAM of vgg-gated
            model = build()
            if sorted(shapes) == sorted(value.shape for value in model.state_dict().values() if value.ndim):
                return model.to_empty(device="cpu")
    raise ValueError(f"{path}: no known architecture has its {len(state)} tensors, {list(state)[:4]} ...; give model")
