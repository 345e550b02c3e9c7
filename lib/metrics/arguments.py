"""The door of the metrics: arguments are checked once, where they come in; behind it there is plain code."""

import torch
from torch import Tensor

NAN = float("nan")


def check(argument: str, holds: bool | Tensor, expected: str, got: object) -> None:
    """Raises ValueError unless it `holds`, with what was expected and what came: of a tensor its type and shape."""
    if not holds:
        got = f"{got.dtype} of {tuple(got.shape)}" if hasattr(got, "dtype") else repr(got)
        raise ValueError(f"{argument}: expected {expected}, got {got}")


def check_range(argument: str, values: Tensor, low: float, high: float) -> None:
    """Up to rounding; a NaN is out of range."""
    found = [round(float(end), 4) for end in (values.min(), values.max())]
    check(argument, low - 1e-3 <= found[0] and found[1] <= high + 1e-3, f"values in [{low}, {high}]", found)


def undefined(maps: Tensor) -> Tensor:
    """(N,): which maps (N, h, w) have a pixel that is not finite."""
    return ~maps.isfinite().flatten(1).all(1)


def check_maps(argument: str, maps: Tensor) -> Tensor:
    """Maps (N, h, w) as float32 or float64. An undefined one is NaN throughout, and so is every metric of it."""
    good = maps.ndim == 3 and 0 not in maps.shape[1:] and maps.is_floating_point()
    check(argument, good, "floats of shape (N, height, width)", maps)
    maps = maps if maps.dtype == torch.float64 else maps.float()
    return maps.masked_fill(undefined(maps)[:, None, None], NAN)


def check_pair(maps: Tensor, masks: Tensor, argument: str = "maps") -> tuple[Tensor, Tensor]:
    """`check_maps`, and 0/1 masks of the same shape as booleans; a map with an empty mask is NaN throughout as well."""
    maps = check_maps(argument, maps)
    check("masks", masks.shape == maps.shape, f"shape {tuple(maps.shape)} to match {argument}", masks)
    good = masks.dtype == torch.bool or ((masks == 0) | (masks == 1)).all()
    check("masks", good, "0 and 1 only", good or [masks.min().item(), masks.max().item()])
    masks = masks.bool().to(maps.device)
    return maps.masked_fill(~masks.flatten(1).any(1)[:, None, None], NAN), masks


def check_perturbed(images: Tensor, maps: Tensor, classes: Tensor, argument: str = "targets") -> None:
    """Images (N, C, H, W), maps (N, H, W) and integer classes (N,); images that come with `targets` are in [0, 1]."""
    check("images", images.ndim == 4 and len(images) and images.is_floating_point(), "floats (N >= 1, C, H, W)", images)
    expected = (len(images), *images.shape[2:])
    check("maps", maps.shape == expected, f"shape {expected} to match images", maps)
    good = classes.shape == images.shape[:1] and not classes.is_floating_point()
    check(argument, good, f"integers of shape ({len(images)},)", classes)
    if argument == "targets":
        check_range("images", images, 0, 1)
