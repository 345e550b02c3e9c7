import subprocess
import sys

import pytest

HEAVY = ("sklearn", "scipy.stats", "lightning", "torchmetrics", "matplotlib", "captum", "IPython", "pandera")
NEEDED = {
    "lib.losses": (),
    "lib.models": (),
    "lib.metrics": (),
    "lib.sanity": (),
    "lib.explain": ("matplotlib", "captum", "IPython"),
    "lib.train": ("pandera",),
    "lib.evaluate": ("matplotlib", "captum", "IPython", "pandera", "scipy.stats"),
    "lib.plots": ("matplotlib", "captum", "IPython", "pandera"),
}


@pytest.mark.parametrize("module", NEEDED)
def test_what_an_import_brings_along(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(made.stdout.split()) <= set(NEEDED[module])
