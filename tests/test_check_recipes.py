"""The dry run of recipes, `make check-recipes`."""

import pytest
import yaml
from tiny_recipes import PHASES, TINY

from benchmarks.recipes import check, isolated, main, random_batch
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
    found = [(row["phase"], row["batch"], row["pixels"]) for row in rows]
    assert found == [(phase, 2, "3x64x64") for phase in ("classifier", "explainer", "joint")]
    classifier, explainer, joint = (row["trained"] for row in rows)
    assert classifier + explainer == pytest.approx(joint)
    assert joint == rows[0]["million parameters"]
    assert all(not row["peak MB"] <= 0 and row["seconds per step"] > 0 for row in rows)
    assert not (folder / "runs").exists()


def test_random_pixels_are_as_the_data_set_gives_them(folder):
    recipe = Recipe.load(folder / "sc.yaml")
    batch = random_batch(recipe, Run(folder, recipe), 5)
    assert (batch["image"].min() >= 0) and (batch["image"].max() <= 1)
    assert batch["label"].tolist() == [0, 1, 0, 1, 0]
    assert batch["has_mask"].all()
    assert random_batch(recipe.replace(image_size=32), Run(folder, recipe), 1)["image"].shape == (1, 3, 32, 32)


def test_the_table_has_a_line_of_every_phase_and_names_what_fails(folder, capsys, monkeypatch):
    assert main([str(folder), "--batch", "2"], run=check) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["recipe", "ec", "ec", "ec", "sc", "2"]
    assert "2 of 2 recipes can be trained" in out
    monkeypatch.setattr("lib.phase.explanation_loss", lambda z, *_, **given: z.sum() * float("nan"))
    (folder / "typo.yaml").write_text("epohcs: 3\n")
    files = [str(folder / f"{name}.yaml") for name in ("ec", "typo", "sc", "missing")]
    assert main([*files, "--batch", "2"], run=check) == 1
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("FAILED")]
    for line, said in zip(lines, (
        "ec.yaml: RuntimeError: phase 'classifier': expected a finite loss on random pixels, got nan",
        "typo.yaml: ValueError: typo.yaml: unknown parameter 'epohcs'",
        "missing.yaml: FileNotFoundError: [Errno 2] No such file",
    ), strict=True):  # fmt: skip
        assert line.startswith(f"FAILED {said}")
    assert "1 of 4 recipes can be trained" in out


def test_a_process_of_its_own(folder):
    row = isolated(folder / "sc.yaml", batch=1)[0]
    assert (row["recipe"], row["batch"]) == ("sc", 1)
    with pytest.raises(FileNotFoundError, match="No such file"):
        isolated(folder / "missing.yaml")
