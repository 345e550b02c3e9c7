"""In-model explanations: what the notebooks call."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not starve working ones
