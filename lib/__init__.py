"""In-model explanations: what the notebooks call."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]  # relative paths start here, wherever a notebook runs
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not starve working ones
