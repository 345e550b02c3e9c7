import math
from itertools import pairwise
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import summary

from lib import plots
from lib.figures.sweeps import end_labels

matplotlib.use("agg")
OWN, POST = "evidence | SoftCAM dense", "gradcam | black box"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


def test_in_model_lines_are_solid_in_their_models_colour_and_post_hoc_ones_grey_and_dashed():
    own, post, tte = (plots.contrast_style(key) for key in (OWN, POST, "tte_cam | black box"))
    assert (own["color"], own["linestyle"]) == (plots.VARIANTS["SoftCAM dense"], "-")
    assert tte["color"] == plots.VARIANTS["black box"]
    red, green, blue = matplotlib.colors.to_rgb(post["color"])
    assert red == green == blue
    assert post["linestyle"] != "-"
    assert post["linewidth"] < own["linewidth"]
    assert plots.contrast_style("explainer | Explainer hybrid (x)")["color"] == plots.VARIANTS["Explainer hybrid"]


@pytest.mark.parametrize(
    ("key", "label"),
    [
        (OWN, "SoftCAM dense"),
        (POST, "Grad-CAM"),
        ("tte_cam | black box", "TTE-CAM"),
        ("gradcam | black box (other)", "Grad-CAM (other)"),
        ("evidence | SoftCAM dense (other)", "SoftCAM dense (other)"),
        ("gradcam", "Grad-CAM"),
    ],
)
def test_series_label(key, label):
    assert plots.series_label(key) == label


def test_ranked_puts_the_best_first_and_undefined_ones_last():
    series = {"a": {"value": None}, "b": summary(1.0), "c": summary(3.0), "d": {"value": math.nan}, "e": summary(-2.0)}
    assert plots.ranked(series)[:3] == ["c", "b", "e"]
    assert plots.ranked(series, "lower")[:3] == ["e", "b", "c"]
    assert set(plots.ranked(series)[3:]) == {"a", "d"}


def test_a_legend_names_lines_best_first_with_their_number(ax):
    for key in (POST, OWN):
        ax.plot([0, 1], label=key, **plots.contrast_style(key))
    plots.ranked_legend(ax, {POST: summary(0.25), OWN: summary(0.5), "lrp | black box": summary(1.0)}, "higher", "area")
    texts = ax.get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["0.50  SoftCAM dense", "0.25  Grad-CAM"]
    assert [text.get_weight() for text in texts] == ["bold", "normal"]


def test_dot_rows_draw_value_and_interval_and_leave_undefined_rows_empty(ax):
    series = {OWN: summary(0.5), POST: {"value": None, "low": None, "high": None}}
    plots.dot_rows(ax, series, [POST, OWN])
    interval, dot = ax.get_lines()
    assert list(interval.get_xdata()) == pytest.approx([0.4, 0.6])
    assert (list(dot.get_xdata()), list(dot.get_ydata())) == ([0.5], [1])
    assert [text.get_text() for text in ax.texts] == ["0.50"]


def test_hollow_dots_have_no_interval_and_missing_bounds_are_the_value(ax):
    plots.dot_rows(ax, {OWN: summary(0.5)}, [OWN], hollow=True, digits=None)
    assert len(ax.get_lines()) == 1
    assert ax.get_lines()[0].get_markerfacecolor() == "white"
    plots.dot_rows(ax, {OWN: {"value": 0.5, "low": None, "high": math.nan}}, [OWN])
    assert list(ax.get_lines()[1].get_xdata()) == [0.5, 0.5]


def test_heat_table_colours_from_worst_to_best_and_marks_the_best(ax):
    frame = pd.DataFrame({"up": [0.1, 0.9, math.nan], "down": [0.1, 0.9, 0.5]}, index=[OWN, POST, "random | black box"])
    plots.heat_table(ax, frame, lower=["down"])
    shades = np.asarray(ax.images[0].get_array())
    assert shades[:, 0] == pytest.approx([0, 0.75, 0])
    assert shades[:, 1] == pytest.approx([0.75, 0, 0.375])
    bold = {text.get_text() for text in ax.texts if text.get_weight() == "bold"}
    assert bold == {"0.90", "0.10"}
    assert [(t.get_text(), t.get_weight()) for t in ax.texts][:2] == [("0.10", "normal"), ("0.10", "bold")]
    assert "–" in {text.get_text() for text in ax.texts}


def test_a_constant_column_is_drawn_without_a_warning(ax):
    plots.heat_table(ax, pd.DataFrame({"same": [0.5, 0.5]}, index=[OWN, POST]))
    assert np.isfinite(ax.images[0].get_array()).all()


def test_difference_matrix(ax):
    differences = np.array([[math.nan, 0.25], [-0.25, math.nan]])
    says = np.array([["", "better"], ["worse", ""]], dtype=object)
    plots.difference_matrix(ax, [OWN, POST], differences, says)
    colours = [matplotlib.colors.to_hex(patch.get_facecolor()).upper() for patch in ax.patches]
    assert colours == ["#FFFFFF", plots.charts.BETTER, plots.charts.WORSE, "#FFFFFF"]
    assert [text.get_text() for text in ax.texts] == ["+.25", "−.25"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["SoftCAM dense  1", "Grad-CAM  2"]


def test_a_difference_of_one_keeps_its_one(ax):
    plots.difference_matrix(ax, [OWN, POST], np.array([[0, 1.0], [-1.0, 0]]), np.full((2, 2), "no difference"))
    assert [text.get_text() for text in ax.texts] == ["+1.00", "−1.00"]


def test_a_swept_parameter_is_logarithmic_with_zero_at_the_left(ax):
    assert plots.value_axis(ax, [0, 1e-4, 1e-3, 1e-2]) == pytest.approx([-5, -4, -3, -2])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1e-4", "1e-3", "0.01"]
    assert [text.get_text() for text in ax.texts] == ["//"]


def test_a_swept_parameter_of_one_scale_stays_linear(ax):
    assert plots.value_axis(ax, [0, 0.5, 1, 4]) == [0, 0.5, 1, 4]
    assert plots.value_axis(ax, [0.0]) == [0.0]
    assert not ax.texts


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_end_labels_keep_their_order_and_distance(values):
    texts = []
    ax = SimpleNamespace(
        get_ylim=lambda: (0.0, 1.0), transAxes=None, text=lambda x, y, name, **_: texts.append((y, name))
    )
    end_labels(ax, {f"{i}": (value, "black") for i, value in enumerate(values)})
    heights = [y for y, _ in texts]
    assert all(b - a > 0.0549 for a, b in pairwise(heights))
    assert heights[-1] <= 1 + 1e-9
    assert [values[int(name)] for _, name in texts] == sorted(values)


def test_footnotes_are_broken_at_the_width_of_the_figure():
    fig = plt.figure(figsize=(2, 2))
    plots.footnote(fig, "word " * 20)
    lines = fig.get_supxlabel().splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 35


def test_panels_hide_what_is_left_over():
    fig, axes = plots.panels(3, 2, 1)
    assert len(axes) == 3
    assert [ax.axison for ax in fig.axes] == [True, True, True, False]
