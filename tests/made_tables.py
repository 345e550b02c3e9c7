"""Tables of evaluated runs, made by hand."""

import math

import numpy as np
import pandas as pd

from lib.table import joined

ABOUT = {"dataset": "shapes", "synthetic": True, "architecture": "compact", "variant": "black box", "seed": 0,
         "sweep": "", "parameter": "", "point": math.nan, "permuted": False}  # fmt: skip
SOFTCAM = {"name": "sc", "variant": "SoftCAM dense"}


def rows(method, metric, values, images=None, patients=None, k=0.0, judge="own", resolution="image"):
    """Rows of a metric: a value per image (a, b, c ... unless named)."""
    images = list(images or "abcdefghijklmnopqrstuvwxyz"[: len(values)] if len(values) < 27 else range(len(values)))
    fixed = {"method": method, "metric": metric, "judge": judge, "resolution": resolution, "split": "test"}
    columns = {"image": list(map(str, images)), "patient": list(patients or [""] * len(values)), "k": float(k)}
    return pd.DataFrame({**fixed, **columns, "value": np.array(values, dtype=float)})


def run(*parts, name="bb", **about):
    """(rows, constants) of one run."""
    folder = f"{name}-seed{seed}" if (seed := about.get("seed")) else name
    return pd.concat(parts, ignore_index=True), {"run": folder, "recipe": name, **ABOUT, **about}


def table(*runs):
    """What `lib.table.load` gives of these runs."""
    parts, about = zip(*runs, strict=True)
    return joined(list(parts), list(about))
