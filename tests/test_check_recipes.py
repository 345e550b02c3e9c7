"""The dry run of recipes, `make check-recipes`."""

import pytest
import yaml
from tiny_recipes import PHASES, TINY

from benchmarks import recipes
from benchmarks.recipes import COLUMNS, check, isolated, main, random_batch
from lib.recipe import Recipe
from lib.run import Run


@pytest.fixture
def folder(tmp_path):
    given = {"ec": {"hybrid": True, "augment": "xml", "augment_probability": 1.0, **PHASES}, "sc": {"l1": 0.1}}
    for name, changes in given.items():
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
    assert all(not row["peak MB"] <= 0 and row["seconds per step"] > 0 for row in rows)
    assert not (folder / "runs").exists()


def test_random_pixels_are_as_the_data_set_gives_them(folder):
    recipe = Recipe.load(folder / "sc.yaml")
    batch = random_batch(recipe, Run(folder, recipe), 5)
    assert batch["image"].shape == (5, 3, 64, 64)
    assert (batch["image"].min() >= 0) and (batch["image"].max() <= 1)
    assert batch["label"].tolist() == [0, 1, 0, 1, 0]
    assert batch["mask"].shape == (5, 64, 64) and batch["has_mask"].all()
    assert random_batch(recipe.replace(image_size=32), Run(folder, recipe), 1)["image"].shape == (1, 3, 32, 32)


def test_the_table_and_the_exit_code(folder, capsys):
    assert main([str(folder), "--batch", "2"], run=check) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["recipe", "ec", "ec", "ec", "sc", "2"]
    assert "2 of 2 recipes can be trained" in out
    assert main([str(folder / "runs")], run=check) == 1  # nothing to check


def test_failing_recipes_are_named_with_what_is_known_and_the_others_still_checked(folder, capsys, monkeypatch):
    for name, wrong in {
        "typo": {"epohcs": 3},
        "a": {"architecture": "resnet5"},
        "m": {"explain_methods": ["x"]},
    }.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**TINY, "name": name, **wrong}))
    build = recipes.build_model

    def broken(recipe):
        if recipe.method == "explainer_classifier":
            raise RuntimeError("no such layer")
        return build(recipe)

    monkeypatch.setattr(recipes, "build_model", broken)
    files = [str(folder / f"{name}.yaml") for name in ("ec", "typo", "sc", "a", "m", "missing")]
    assert main([*files, "--batch", "2"], run=check) == 1
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("FAILED")]
    for line, said in zip(lines, (
        "ec.yaml: RuntimeError: no such layer",
        "typo.yaml: ValueError: typo.yaml: unknown parameter 'epohcs'",
        "a.yaml: ValueError: architecture: expected one of resnet18, ",
        "m.yaml: ValueError: m.yaml: explain_methods: expected names of evidence, ",
        "missing.yaml: FileNotFoundError: [Errno 2] No such file",
    ), strict=True):  # fmt: skip
        assert line.startswith(f"FAILED {said}")
    assert lines[2].endswith("compact, vgg-gated, got 'resnet5'") and lines[3].endswith("edge_map, got 'x'")
    assert "1 of 6 recipes can be trained" in out


def test_a_loss_that_is_not_finite_fails(folder, monkeypatch):
    monkeypatch.setattr("lib.phase.classification_loss", lambda logits, *_: logits.sum() * float("nan"))
    with pytest.raises(RuntimeError, match="phase 'softcam': expected a finite loss on random pixels, got nan"):
        check(folder / "sc.yaml", batch=2)


def test_a_process_of_its_own(folder):
    row = isolated(folder / "sc.yaml", batch=1)[0]
    assert (row["recipe"], row["batch"]) == ("sc", 1)
    with pytest.raises(FileNotFoundError, match="No such file"):
        isolated(folder / "missing.yaml")
