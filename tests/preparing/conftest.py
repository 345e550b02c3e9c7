import pathlib
from pathlib import PureWindowsPath

import pytest

from prepare import own_data, published, tables


@pytest.fixture
def windows(monkeypatch):
    """What is relative to a root is spelt as on Windows, and so is what is joined: neither may be written down."""
    real = pathlib.PurePath.relative_to
    monkeypatch.setattr(pathlib.PosixPath, "relative_to", lambda *paths: PureWindowsPath(real(*paths)))
    for module in (tables, published, own_data):
        monkeypatch.setattr(module, "Path", PureWindowsPath)
