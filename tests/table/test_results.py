import math
import subprocess
import sys

import pytest
from expected.compare import deviations
from made_tables import rows, run, table

from lib import PROJECT
from lib.table import results


@pytest.fixture
def found():
    gradcam = rows("gradcam", "topk_precision", [1, 0, math.nan], k=1), rows("gradcam", "pointing_game", [1, 1, 1])
    black = run(rows("classification", "correct", [1, 0, 1, 1]), *gradcam, rows("gradcam", "topk_precision", [0], k=2))
    explainer = rows("explainer", "pompom", [0.25, 0.5]), rows("integrated_gradients", "pointing_game", [0, 0])
    hybrid = run(rows("classification", "correct", [1, 1]), *explainer, name="ec", variant="Explainer hybrid")
    swept = run(rows("classification", "correct", [0]), name="p", sweep="p", parameter="l1", point=1.0)
    return results(table(black, hybrid, swept))


def test_a_row_per_model_and_map(found):
    rows = [["shapes", "black box", "Grad-CAM"], ["shapes", "Explainer hybrid", "Explainer"]]
    assert found[["data", "model", "map"]].values.tolist() == rows
    black, hybrid = found.to_dict("records")
    assert (black["accuracy"], black["top-1 precision"], black["pointing game"]) == (0.75, 0.5, 1)
    assert math.isnan(black["POMPOM"])
    assert (hybrid["accuracy"], hybrid["POMPOM"]) == (1, 0.375)


def test_deviations_from_expected_results(found):
    assert deviations(found, found) == []
    other = found.copy()
    other.loc[0, "accuracy"] += 0.05
    assert deviations(other, found) == ["shapes, black box, Grad-CAM: accuracy 0.800, expected 0.750 +- 0.03"]
    other.loc[0, "accuracy"] = math.nan
    assert len(deviations(other, found)) == 1
    assert deviations(found.drop(index=0), found) == ["shapes, black box, Grad-CAM: missing"]


def test_the_command_compares_a_folder_with_the_expected_results(evaluated):
    folder = next(iter(evaluated.values())).dir.parent
    command = [sys.executable, "-m", "tests.expected.compare", folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 1
    assert "chest, SoftCAM dense, SoftCAM evidence: missing\n" in done.stderr
    assert "shapes, black box, Grad-CAM: accuracy" in done.stderr
