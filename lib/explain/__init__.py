"""Heatmaps of any model by any method: `METHODS` is the register, `explain` the one call.

Maps come as the method computes them: signed where it is, summed over the colour channels, never rescaled.
"""

from lib.explain import in_model  # noqa: I001  (the order of the register)
from lib.explain import gradient, cam, propagation, baseline
from lib.explain.core import METHODS, Method, Task, explain, register, upsample

__all__ = [
    "METHODS",
    "Method",
    "Task",
    "baseline",
    "cam",
    "explain",
    "gradient",
    "in_model",
    "propagation",
    "register",
    "upsample",
]
