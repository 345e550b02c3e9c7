import math
import multiprocessing
import sys

import pytest
import torch
import yaml
from tiny_recipes import PHASES, TINY

from lib import dry_run
from lib.dry_run import COLUMNS, check, isolated, main, peak_memory, random_batch
from lib.recipe import Recipe
from lib.runs import Run


@pytest.fixture
def folder(tmp_path):
    recipes = {"ec": {"hybrid": True, "augment": "xml", "augment_probability": 1.0, **PHASES}, "sc": {"l1": 0.1}}
    for name, changes in recipes.items():
        values = {**TINY, "name": name, "runs_dir": str(tmp_path / "runs"), "weights": "imagenet", **changes}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def test_a_step_of_every_phase(folder):
    rows = check(folder / "ec.yaml", batch=2)
    assert [tuple(row) for row in rows] == [COLUMNS] * 3
    assert [(row["phase"], row["batch"], row["pixels"]) for row in rows] == [
        (phase, 2, "3x64x64") for phase in ("classifier", "explainer", "joint")
    ]
    classifier, explainer, joint = (row["trained"] for row in rows)
    assert classifier + explainer == pytest.approx(joint)
    assert joint == rows[0]["million parameters"]
    assert all(not row["peak MiB"] <= 0 and row["seconds per step"] > 0 for row in rows)
    assert not (folder / "runs").exists()


def test_random_pixels_are_as_the_data_set_gives_them(folder):
    recipe = Recipe.load(folder / "sc.yaml")
    batch = random_batch(recipe, Run(folder, recipe), 5)
    assert batch["image"].shape == (5, 3, 64, 64)
    assert (batch["image"].min() >= 0) and (batch["image"].max() <= 1)
    assert batch["label"].tolist() == [0, 1, 0, 1, 0]
    assert batch["mask"].shape == (5, 64, 64)
    assert batch["has_mask"].all()
    assert random_batch(recipe.replace(image_size=32), Run(folder, recipe), 1)["image"].shape == (1, 3, 32, 32)


def test_the_table_and_the_exit_code(folder, capsys):
    assert main([str(folder), "--batch", "2"], run=check) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["recipe", "ec", "ec", "ec", "sc", "2"]
    assert "2 of 2 recipes can be trained" in out


def test_failing_recipes_are_named_and_the_others_still_checked(folder, capsys, monkeypatch):
    (folder / "typo.yaml").write_text("name: typo\nepohcs: 3\n")

    def broken(recipe):
        if recipe.method == "explainer_classifier":
            raise RuntimeError("no such layer")
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2))

    monkeypatch.setattr(dry_run, "build_model", broken)
    files = [str(folder / f"{name}.yaml") for name in ("ec", "typo", "sc", "missing")]
    assert main([*files, "--batch", "2"], run=check) == 1
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert lines[0] == "FAILED ec.yaml: RuntimeError: no such layer"
    assert lines[1].startswith("FAILED typo.yaml: ValueError: typo.yaml: unknown parameter 'epohcs'")
    assert lines[2].startswith("FAILED missing.yaml: FileNotFoundError: recipe: no file")
    assert "1 of 4 recipes can be trained" in out


def test_a_loss_that_is_not_finite_fails(folder, monkeypatch):
    monkeypatch.setattr("lib.objective.classification_loss", lambda recipe, logits, *_: logits.sum() * float("nan"))
    with pytest.raises(RuntimeError, match="phase 'softcam': expected a finite loss on random pixels, got nan"):
        check(folder / "sc.yaml", batch=2)


@pytest.mark.parametrize("method", ["blackbox", "softcam", "explainer_classifier"])
def test_unknown_architectures_and_methods_are_named_with_the_known_ones(folder, capsys, method):
    base = {**TINY, "method": method, **(PHASES if method == "explainer_classifier" else {})}
    for name, wrong in {"a": {"architecture": "resnet5"}, "m": {"explain_methods": ["gradcan"]}}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**base, "name": name, **wrong}))
    assert main([str(folder / "a.yaml"), str(folder / "m.yaml")], run=check) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert lines[0].startswith("FAILED a.yaml: ValueError: architecture: expected one of resnet18, ")
    assert lines[0].endswith("compact, vgg-gated, got 'resnet5'")
    assert lines[1].startswith("FAILED m.yaml: ValueError: m.yaml: explain_methods: expected names of evidence, ")
    assert lines[1].endswith("edge_map, got 'gradcan'")


def test_nothing_to_check_is_a_failure(tmp_path, capsys):
    assert main([str(tmp_path)], run=check) == 1


def test_a_process_of_its_own(folder):
    row = isolated(folder / "sc.yaml", batch=1)[0]
    assert (row["recipe"], row["batch"]) == ("sc", 1)
    with pytest.raises(FileNotFoundError, match="recipe: no file"):
        isolated(folder / "missing.yaml")


def test_a_system_without_unix_calls(folder, monkeypatch):
    """Windows has no `resource`, and starts processes by spawning alone."""
    with monkeypatch.context() as windows:
        windows.setitem(sys.modules, "resource", None)
        assert math.isnan(peak_memory(torch.device("cpu")))
        windows.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
        asked = []
        get_context = multiprocessing.get_context
        windows.setattr(multiprocessing, "get_context", lambda method: asked.append(method) or get_context(method))
        assert isolated(folder / "sc.yaml", batch=1)[0]["recipe"] == "sc"
        assert asked == ["spawn"]
