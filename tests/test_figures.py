import json
import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from lib import figures
from lib.figures import data_hash

matplotlib.use("agg")


def test_a_figure_is_kept_with_its_data_and_where_it_is_from(tmp_path):
    shown, made_from = pd.DataFrame({"a": [1.0, 2.0]}), pd.DataFrame({"recipe": ["y", "x", "x"], "seed": [1, 0, 1]})
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    for name in ("one", "two"):
        figures.save(fig, tmp_path, name, shown, made_from, "What it shows.")
    index = json.loads((tmp_path / "index.json").read_text())
    said = {"caption": "What it shows.", "recipes": ["x", "y"], "seeds": [0, 1], "data_sha256": data_hash(shown)}
    assert index == {"one.png": said, "two.png": said}
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert fig.get_supxlabel() == "What it shows."
    assert np.asarray(Image.open(tmp_path / "one.png").convert("RGB")).std() > 5
    assert pd.read_csv(tmp_path / "one.csv").equals(shown)


def test_what_cannot_be_drawn_says_what_it_needs(capsys):
    assert figures.has(pd.DataFrame({"a": [1]}), "a run")
    assert not figures.has(pd.DataFrame(), "a run")
    assert capsys.readouterr().out == "Not drawn: it needs a run.\n"


def test_the_hash_ignores_the_seventh_digit_and_sees_the_fifth():
    assert data_hash(pd.DataFrame({"a": [1.00000001, math.nan]})) == data_hash(pd.DataFrame({"a": [1.0, math.nan]}))
    assert data_hash(pd.DataFrame({"a": [1.0001]})) != data_hash(pd.DataFrame({"a": [1.0]}))
