"""python -m prepare: whatever is wrong with an option or a file is one sentence and exit code 1."""

import json
import shlex

import pytest
import yaml
from source_trees import write

from lib.recipe import Recipe
from prepare.__main__ import main


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
    return err.rstrip("\n").split("\n")[-1]  # after the progress bar


@pytest.mark.parametrize(
    ("name", "pair", "message"),
    [
        ("folder", "patient=(", "patient: Input should be a valid regular expression, got '('"),
        ("folder", "patient=p", "pattern contains no capture groups"),
        ("folder", "shares=5", "shares: Input should be a valid list, got 5"),
        ("folder", "shares=[0.5, 0.5, .nan]", "shares: expected three numbers of sum 1"),
        ("folder", "shares=[0.5, 1, -0.5]", "shares: expected three numbers of sum 1"),
        ("folder", "classes=cat", "classes: Input should be a valid list, got 'cat'"),
        ("folder", "seed=-1", "expected non-negative integer"),
        ("folder", "seed", "seed: Input should be a valid integer, got None"),
        ("folder", "radius=-2", "radius: Input should be greater than 0, got -2"),
        ("folder", "mask_values=all", "mask_values: Input should be 'nonzero' or 'half', got 'all'"),
        ("folder", "colour=3", "colour: Unexpected keyword argument, got 3"),
        ("folder", "size=0", "size: Input should be greater than 0, got 0"),
        ("kaggle_dr", "train=3", "train: Input should be a valid string, got 3"),
        ("idrid", "lesions=[OD]", "lesions.0: Input should be 'MA', 'HE', 'EX' or 'SE', got 'OD'"),
    ],
)
def test_wrong_options(tree, capsys, name, pair, message):
    assert message in refused(capsys, name, tree, "--set", pair)
    assert not (tree / "manifest.csv").exists()


PRINTED = """mine: 20 images in {root}, 10 with a mask, 0 with boxes
classes: 0 cat, 1 dog
       0 cat  1 dog
split              
train      8      8
val        1      1
test       1      1
card: {card}
next: papermill notebooks/02_train.ipynb out.ipynb -y {changes}
"""  # noqa: W291


def test_what_the_command_says_and_what_it_leaves(tmp_path, capsys):
    root = tmp_path / "mine"
    for i in range(10):
        write(root / f"cat/{i}.png", i, (8, 8)), write(root / f"dog/{i}.png", 100 + i, (8, 8))
        write(root / f"masks/dog/{i}.png", 200 + i, (8, 8))
    assert main(["folder", str(root), "--set", "shares=[0.8, 0.1, 0.1]", "--set", "seed=3"]) == 0
    changes = f"'{{changes: {{name: mine_softcam, dataset: {root / 'dataset.yaml'}, limit: null}}}}'"
    assert capsys.readouterr().out == PRINTED.format(root=root, card=root / "dataset.yaml", changes=changes)
    assert json.loads((root / "manifest.json").read_text())["options"] == {"shares": [0.8, 0.1, 0.1], "seed": 3}
    (root / "cat/0.png").unlink()
    (root / "cat/0.txt").write_text("x")
    assert main(["folder", str(root)]) == 1
    assert "cat/0.txt (cat/0.txt): cannot be read: cannot identify image file" in capsys.readouterr().err
    assert main(["folder", str(root), "--drop", "--size", "4"]) == 0


@pytest.mark.parametrize("pair", ["radius=3", "radius=2.5", "classes=[dog, cat]", "patient=([pq]\\d)"])
def test_right_options(tree, pair):
    assert main(["folder", str(tree), "--set", pair]) == 0


def test_what_is_printed_can_be_typed(tmp_path, capsys):
    root = tmp_path / "Ann's images"
    for i in range(3):
        for name in ("ill, yes", "no"):
            write(root / f"{name}/{i}.png", 10 * i + len(name))
    assert main(["folder", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "classes: 0 ill, yes, 1 no"
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
    assert f"{tree / 'dataset.yaml'}: " in capsys.readouterr().err
    assert not (tree / "manifest.csv").exists()


@pytest.mark.parametrize(
    "cell", ['[[1,2,""x"",4]]', "[[1,2,true,4]]", "[[1,2,3]]", "{}", "3", '{""abcd"": 1}', "[[1,2,NaN,4]]"]
)
def test_boxes_that_are_no_numbers_are_a_problem_of_their_row(tree, capsys, cell):
    (tree / "data.csv").write_text(f'image,label,boxes\ncat/p0.png,cat,"[[1,2,3,4]]"\ndog/q0.png,dog,"{cell}"\n')
    assert main(["folder", str(tree)]) == 1
    title, line = capsys.readouterr().err.split("\n")[-3:-1]  # after the progress bar
    assert title == f"{tree}: 1 problem(s) in 2 rows, no manifest written"
    boxes = cell.replace('""', '"')
    expected = "boxes: expected a JSON list of [x, y, width, height]"
    assert line == f"  dog/q0.png (data.csv line 3): {expected}, got {boxes!r}"
