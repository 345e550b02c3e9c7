"""Small trained runs that several test files share."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest
from tiny_recipes import PHASES, TINY

from lib.recipe import Recipe
from lib.train import train

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A recipe that trains in about a second, in a folder of its own; keyword arguments change it."""
    folder = tmp_path_factory.mktemp("runs").as_posix()

    def make(**changes):
        return Recipe(**{"name": "tiny", "runs_dir": folder, **TINY, **changes})

    return make


@pytest.fixture(scope="session")
def trained(tiny):
    """The three methods, trained once."""
    recipes = {
        "blackbox": tiny(name="bb", method="blackbox"),
        "softcam": tiny(name="sc", twin="bb", l1=1e-4),
        "explainer": tiny(name="ec", twin="bb", hybrid=True, **PHASES),
    }
    return {name: train(recipe) for name, recipe in recipes.items()}


@pytest.fixture(scope="session")
def evaluated(trained):
    """The same, explained and evaluated."""
    from lib import evaluate
    from lib.maps import explain_and_keep

    for name, run in trained.items():
        explain_and_keep(run)
        evaluate.evaluate(run, None if name == "blackbox" else trained["blackbox"])
    return trained
