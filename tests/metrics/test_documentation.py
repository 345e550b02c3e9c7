import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import torch

from lib import metrics, table

TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
TABLES = [line for line in TEXT.splitlines() if line.startswith("|")]


def test_every_public_function_is_documented_and_every_documented_metric_exists():
    public = [name for name, _ in inspect.getmembers(metrics, inspect.isfunction)]
    assert len(public) > 30 and [name for name in public if f"`{name}`" not in TEXT] == []
    known = set(metrics.classification_metrics(torch.tensor([0, 1]), torch.eye(2)))
    for module in pkgutil.iter_modules(metrics.__path__):
        known |= vars(importlib.import_module(f"lib.metrics.{module.name}")).keys()
    known |= vars(table).keys()
    named = {name for line in TABLES for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert len(named) > 30 and named <= known


def test_tables_are_rectangular_and_every_source_is_listed():
    assert {line.count("|") for line in TABLES} == {7}
    tables, sources = TEXT.split("## Sources")
    for author, year in re.findall(r"([A-Z][\w-]+)(?: et al\.| & \w+| & van der \w+)? (\d{4})", tables):
        assert re.search(rf"^- {author}.* {year}: ", sources, re.MULTILINE), (author, year)
