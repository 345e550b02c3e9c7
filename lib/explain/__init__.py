"""Heatmaps of any model by any method: `METHODS` is the register, `explain` the one call.

Maps come as the method computes them: signed where it is, summed over the colour channels, never rescaled.
"""

from lib.explain.methods import METHODS, explain
from lib.explain.task import upsample
