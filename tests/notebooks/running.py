"""The pipeline as a command, and what a notebook has put out."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat

from lib import PROJECT

SMOKE = PROJECT / "notebooks/recipes/smoke"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def command(runs, recipes=SMOKE, *arguments):
    return ["snakemake", "--cores", "2", "--nolock", *arguments, "--config", f"recipes={recipes}", f"runs={runs}"]


def snakemake(*arguments):
    return subprocess.run(
        command(*arguments), cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900
    )


def outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
