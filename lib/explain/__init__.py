"""Heatmaps of any model by any method, as the method computes them: signed where it is, never rescaled."""

from lib.explain.methods import METHODS, explain
from lib.explain.task import upsample
