import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import torch

from lib import metrics

TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
TABLES = [line for line in TEXT.splitlines() if line.startswith("|")]


def test_every_public_function_is_documented():
    public = [name for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))]
    assert len(public) > 10 and [name for name in public if f"`{name}`" not in TEXT] == []


def test_every_documented_metric_exists():
    known = set(metrics.classification_metrics(torch.tensor([0, 1]), torch.eye(2)))
    for module in pkgutil.iter_modules(metrics.__path__):
        known |= vars(importlib.import_module(f"lib.metrics.{module.name}")).keys()
    named = {name for line in TABLES for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert len(named) > 30 and named <= known


def test_tables_are_rectangular():
    for line in TABLES:
        assert line.count("|") == 7, line


def test_every_source_is_listed():
    tables, sources = TEXT.split("## Sources")
    for author, year in re.findall(r"([A-Z][\w-]+)(?: et al\.| & \w+| & van der \w+)? (\d{4})", tables):
        assert re.search(rf"^- {author}.* {year}: ", sources, re.MULTILINE), (author, year)
