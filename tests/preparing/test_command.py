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
    """What is on standard error, after the progress bar, of a command that must fail and write nothing."""
    assert main([*map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and not (arguments[1] / "manifest.csv").exists()
    return err


@pytest.mark.parametrize(
    ("name", "pair", "message"),
    [
        ("folder", "patient=(", "patient: Input should be a valid regular expression, got '('"),
        ("folder", "patient=p", "pattern contains no capture groups"),
        ("folder", "shares=[0.5, 0.5, .nan]", "shares: expected three numbers of sum 1"),
        ("folder", "shares=[0.5, 1, -0.5]", "shares: expected three numbers of sum 1"),
        ("folder", "classes=cat", "classes: Input should be a valid list, got 'cat'"),
        ("folder", "seed=-1", "expected non-negative integer"),
        ("folder", "radius=-2", "radius: Input should be greater than 0, got -2"),
        ("folder", "colour=3", "colour: Unexpected keyword argument, got 3"),
        ("kaggle_dr", "train=3", "train: Input should be a valid string, got 3"),
        ("idrid", "lesions=[OD]", "lesions.0: Input should be 'MA', 'HE', 'EX' or 'SE', got 'OD'"),
    ],
)
def test_wrong_options(tree, capsys, name, pair, message):
    assert message in refused(capsys, name, tree, "--set", pair).splitlines()[-1]


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
    assert main(["folder", str(root), "--drop", "--size", "4"]) == 0


@pytest.mark.parametrize("pair", ["radius=3", "radius=2.5", "classes=[dog, cat]", "patient=([pq]\\d)"])
def test_right_options(tree, pair):
    assert main(["folder", str(tree), "--set", pair]) == 0


def test_what_is_printed_can_be_typed_and_images_of_several_sizes_are_trained_at_one(tmp_path, capsys):
    root = tmp_path / "Ann's images"
    for i in range(8):
        for name in ("ill, yes", "no"):
            write(root / f"{name}/{i}.png", 10 * i + len(name), (40, 12) if i == 7 else (16, 24))
    assert main(["folder", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "classes: 0 ill, yes, 1 no"
    *command, text = shlex.split(lines[-1].partition(": ")[2])
    changes = yaml.safe_load(text)["changes"]
    assert command == ["papermill", "notebooks/02_train.ipynb", "out.ipynb", "-y"]
    expected = {"name": "Ann_s_images_softcam", "dataset": str(root / "dataset.yaml"), "limit": None}
    assert changes == {**expected, "image_size": 16}  # the shorter side of the usual image
    assert Recipe.load("notebooks/recipes/demo.yaml", changes).method == "softcam"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("data.csv", b"", "expected a CSV in UTF-8: "),
        ("data.csv", "image,label\ncat/é.png,cat\n".encode("latin-1"), "expected a CSV in UTF-8: "),
        ("data.csv", b'image,label\n"a', "expected a CSV in UTF-8: "),
        ("dataset.yaml", b"- a\n", ""),
        ("dataset.yaml", b"a: [\n", ""),
        ("dataset.yaml", b"\xff\xfe\xff", "'utf-8' codec can't decode"),
        ("dataset.yaml", b"text", ""),
    ],
)
def test_a_file_that_is_no_table_or_no_card_is_named(tree, capsys, file, content, said):
    (tree / file).write_bytes(content)
    assert f"{tree / file}: {said}" in refused(capsys, "folder", tree)


@pytest.mark.parametrize("cell", ['[[1,2,""x"",4]]', "[[1,2,true,4]]", "[[1,2,3]]", "{}", "3", "[[1,2,NaN,4]]"])
def test_boxes_that_are_no_numbers_are_a_problem_of_their_row(tree, capsys, cell):
    (tree / "data.csv").write_text(f'image,label,boxes\ncat/p0.png,cat,"[[1,2,3,4]]"\ndog/q0.png,dog,"{cell}"\n')
    title, line = refused(capsys, "folder", tree).splitlines()[-2:]
    assert title == f"{tree}: 1 problem(s) in 2 rows, no manifest written"
    boxes = cell.replace('""', '"')
    said = f"boxes: expected a JSON list of [x, y, width, height], got {boxes!r}"
    assert line == f"  dog/q0.png (data.csv line 3): {said}"
