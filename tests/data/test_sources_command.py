"""python -m lib.data.sources: whatever is wrong with an option or a file is one sentence and exit code 1."""

import shlex

import pytest
import yaml
from source_trees import write

from lib.data.sources.__main__ import main
from lib.recipe import Recipe


@pytest.fixture
def tree(tmp_path):
    """Two classes of three images."""
    for i in range(3):
        write(tmp_path / f"cat/p{i}.png", i)
        write(tmp_path / f"dog/q{i}.png", 10 + i)
    return tmp_path


def refused(capsys, *arguments):
    """The one line on standard error of a command that must fail."""
    assert main([*map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.rstrip("\n").split("\n")
    return line


@pytest.mark.parametrize(
    ("name", "pair", "message"),
    [
        ("folder", "patient=(", "patient: expected a regular expression, got '(': missing ), unterminated"),
        ("folder", "patient=5", "options: patient: Input should be a valid string, got 5"),
        ("folder", "patient=(z)?", "patient: expected an expression with a group found in every path, got none in cat"),
        ("folder", "shares=5", "options: shares: Input should be a list, got 5"),
        ("folder", "shares=[0.5, 0.5, .nan]", "options: shares: Input should be a finite number, got [0.5, 0.5, nan]"),
        ("folder", "classes=3", "options: classes: Input should be a list, got 3"),
        ("folder", "classes=cat", "options: classes: 'str' instances are not allowed as a Sequence value, got 'cat'"),
        ("folder", "classes=[1, 2]", "options: classes: Input should be a valid string, got [1, 2]"),
        ("folder", "seed=-1", "options: seed: Input should be greater than or equal to 0, got -1"),
        ("folder", "seed=1.5", "options: seed: Input should be a valid integer, got 1.5"),
        ("folder", "csv=cat", "[Errno "),
        ("folder", "radius=big", "options: radius: Input should be a valid number, got 'big'"),
        ("folder", "radius=-2", "options: radius: Input should be greater than 0, got -2"),
        ("folder", "mask_values=all", "options: mask_values: Input should be 'nonzero' or 'half', got 'all'"),
        ("kaggle_dr", "train=3", "options: train: Input should be a valid string, got 3"),
        ("kaggle_dr", "raw=1", "options: raw: Input should be a valid boolean, got 1"),
        ("rsna", "boxes_frame=600", "options: boxes_frame: Input should be 512 or 1024, got 600"),
        ("idrid", "lesions=MA", "options: lesions: Input should be a valid list, got 'MA'"),
        ("folder", "root=3", "--set: expected an option of the data set, got 'root=3'; see --help for 'root'"),
        ("folder", "size=3", "--set: expected an option of the data set, got 'size=3'; see --help for 'size'"),
        ("folder", "x=[", "--set: expected a value in YAML, got 'x=[': while parsing"),
        ("folder", "seed", "--set: expected KEY=VALUE, got 'seed'"),
    ],
)
def test_wrong_options(tree, capsys, name, pair, message):
    assert message in refused(capsys, name, tree, "--set", pair)
    assert not (tree / "manifest.csv").exists()


@pytest.mark.parametrize("pair", ["radius=3", "radius=2.5", "classes=[dog, cat]", "patient=([pq]\\d)", "csv=null"])
def test_right_options(tree, pair):
    assert main(["folder", str(tree), "--set", pair]) == 0


def test_what_is_printed_can_be_typed(tmp_path, capsys):
    root = tmp_path / "Ann's images"
    for i in range(3):
        for name in ("ill, yes", "no"):
            write(root / f"{name}/{i}.png", 10 * i + len(name))
    assert main(["folder", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    option = shlex.split(next(line for line in lines if "--set" in line).partition(": ")[2])
    assert yaml.safe_load(option[1].removeprefix("classes=")) == ["no", "ill, yes"]
    assert main(["folder", str(root), *option]) == 0
    assert "classes: 0 no, 1 ill, yes" in capsys.readouterr().out
    command = shlex.split(lines[-1].partition(": ")[2])
    changes = yaml.safe_load(command[-1])["changes"]
    assert command[:4] == ["papermill", "notebooks/02_train.ipynb", "out.ipynb", "-y"]
    assert changes == {"name": "Ann_s_images_softcam", "dataset": str(root / "dataset.yaml"), "limit": None}
    recipe = Recipe.load("notebooks/recipes/demo.yaml", changes)
    assert (recipe.method, recipe.limit, recipe.image_size) == ("softcam", None, None)


def test_images_of_several_sizes_are_trained_at_one(tmp_path, capsys):
    for i, size in enumerate([(16, 24)] * 7 + [(40, 12)]):
        for name in ("no", "yes"):
            write(tmp_path / f"{name}/{i}.png", 10 * i + len(name), size)
    assert main(["folder", str(tmp_path)]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])
    recipe = Recipe.load("notebooks/recipes/demo.yaml", yaml.safe_load(command[-1])["changes"])
    assert (recipe.limit, recipe.image_size) == (None, 16)  # the shorter side of the usual image


@pytest.mark.parametrize("content", [b"", "image,label\ncat/é.png,cat\n".encode("latin-1"), b'image,label\n"a'])
def test_a_file_that_is_no_csv_is_named(tree, capsys, content):
    (tree / "data.csv").write_bytes(content)
    assert refused(capsys, "folder", tree).startswith(f"{tree / 'data.csv'}: expected a CSV in UTF-8: ")


@pytest.mark.parametrize("content", [b"- a\n", b"a: [\n", b"\xff\xfe\xff", b"text"])
def test_a_card_that_is_no_card_is_named(tree, capsys, content):
    (tree / "dataset.yaml").write_bytes(content)
    assert main(["folder", str(tree)]) == 1
    assert capsys.readouterr().err.split("\n")[-2].startswith(f"{tree / 'dataset.yaml'}: expected ")
    assert not (tree / "manifest.csv").exists()


@pytest.mark.parametrize(
    "cell", ['[[1,2,""x"",4]]', "[[1,2,true,4]]", "[[1,2,3]]", "{}", "3", '{""abcd"": 1}', "[[1,2,NaN,4]]"]
)
def test_boxes_that_are_no_numbers_are_a_problem_of_their_row(tree, capsys, cell):
    (tree / "data.csv").write_text(f'image,label,boxes\ncat/p0.png,cat,"[[1,2,3,4]]"\ndog/q0.png,dog,"{cell}"\n')
    assert main(["folder", str(tree)]) == 1
    title, line = capsys.readouterr().err.split("\n")[-3:-1]  # after the progress bar
    assert title == f"{tree}: 1 problem(s), no manifest written"
    boxes = cell.replace('""', '"')
    expected = "boxes: expected a JSON list of [x, y, width, height]"
    assert line == f"  dog/q0.png (data.csv line 3): {expected}, got {boxes!r}"
