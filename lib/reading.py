"""Files that people and runs leave, read with one sentence about what is wrong with them."""

import json
import reprlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lib.choices import NAMED


def read_yaml(path: Path) -> dict[str, Any]:
    """The `name: value` lines of a YAML (none: empty); FileNotFoundError, or ValueError for anything else."""
    if not path.is_file():
        raise FileNotFoundError(f"recipe: no file {path}")
    try:
        with path.open(encoding="utf-8") as file:  # so that YAML names it
            values = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML: {' '.join(str(error).split())}") from None
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path}: expected a line `name: value` per parameter, got {reprlib.repr(values)}")
    return values


def stored_run(folder: Path) -> dict[str, Any]:
    """What a run folder's recipe.json says: recipe, code, data, versions; ValueError where it is none."""
    path = folder / "recipe.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no run, expected a recipe.json in it; train with notebooks/02_train.ipynb")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found["recipe"], dict) else found["recipe"]["a dict"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected JSON with a recipe, got {error!r}; train again with 02_train") from None


def said(error: ValidationError, known: list[str]) -> str:
    """What is wrong with the values of a recipe, in one line: each parameter, what was expected, what came."""
    problems = []
    for e in error.errors():
        parameter = str(e["loc"][0]) if e["loc"] else ""
        if e["type"] == "extra_forbidden" and len(e["loc"]) == 1:
            problems.append(f"unknown parameter {parameter!r}; known: {', '.join(known)}")
        elif not parameter:
            problems.append(e["msg"].removeprefix("Value error, "))
        else:
            number = "number" in e["msg"] and isinstance(e["input"], str) and "e" in e["input"]
            hint = " (in YAML write 3.0e-3, not 3e-3)" if number else ""
            what = f"expected {NAMED}" if e["type"] == "string_pattern_mismatch" else e["msg"]
            problems.append(f"{parameter}: {what}, got {e['input']!r}{hint}")
    return "; ".join(dict.fromkeys(problems))
