import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from lib import plots

matplotlib.use("agg")
OWN, POST = "SoftCAM dense", "Grad-CAM"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


def summary(values):
    """A summary of labels with their values, bounds 0.1 away."""
    frame = pd.DataFrame({"label": list(values), "value": list(values.values())})
    return frame.assign(low=frame["value"] - 0.1, high=frame["value"] + 0.1, k=0.0)


def said(texts):
    return [text.get_text() for text in texts]


def test_in_model_lines_are_solid_in_their_models_colour_and_post_hoc_ones_grey_and_dashed():
    own, post, tte = (plots.style(label) for label in (OWN, POST, "TTE-CAM"))
    assert (own["color"], own["linestyle"]) == (plots.OWN["SoftCAM dense"], "-")
    assert tte["color"] == plots.OWN["black box"]
    assert len(set(matplotlib.colors.to_rgb(post["color"]))) == 1
    assert post["linestyle"] != "-" and post["linewidth"] < own["linewidth"]
    assert plots.style("Explainer hybrid (x)")["color"] == plots.OWN["Explainer hybrid"]
    assert plots.style(POST, coloured=True)["color"] != post["color"]
    assert plots.style("Random")["color"] != post["color"]  # a baseline is paler


def test_the_best_comes_first_and_undefined_ones_not_at_all():
    s = summary({"a": math.nan, "b": 1.0, "c": 3.0, "e": -2.0})
    assert plots.ranked(s) == ["c", "b", "e"]
    assert plots.ranked(s, "lower") == ["e", "b", "c"]


def test_a_legend_names_lines_best_first_with_their_number(ax):
    for label in (POST, OWN):
        ax.plot([0, 1], label=label, **plots.style(label))
    s = summary({POST: 0.25, OWN: 0.5, "LRP alpha1-beta0": 1.0})
    plots.ranked_legend(ax, s, "area", marks={POST: " !"})
    texts = ax.get_legend().get_texts()
    assert said(texts) == ["0.50  SoftCAM dense", "0.25  Grad-CAM !"]
    assert [text.get_weight() for text in texts] == ["bold", "normal"]


def test_dots_draw_value_and_interval_and_leave_undefined_rows_empty(ax):
    s = summary({OWN: 0.5, "Random": math.nan})
    assert plots.dots(ax, s, ["Random", OWN]) == said(ax.get_yticklabels()) == ["Random", OWN]
    interval, dot = ax.get_lines()
    assert list(interval.get_xdata()) == pytest.approx([0.4, 0.6])
    assert (list(dot.get_xdata()), list(dot.get_ydata())) == ([0.5], [1])
    assert said(ax.texts) == ["0.50"]


def test_hollow_dots_have_no_interval_and_missing_bounds_are_the_value(ax):
    plots.dots(ax, summary({OWN: 0.5}), hollow=True, digits=None)
    assert [line.get_markerfacecolor() for line in ax.get_lines()] == ["white"]
    plots.dots(ax, summary({OWN: 0.5}).assign(low=math.nan, high=math.nan))
    assert list(ax.get_lines()[1].get_xdata()) == [0.5, 0.5]


def test_curves_have_bands_of_in_model_maps(ax):
    s = pd.concat([summary({OWN: value, "Random": value}).assign(k=k) for k, value in ((0, 1.0), (5, 0.5))])
    plots.curves(ax, s, share=True)
    assert {line.get_label(): list(line.get_xdata()) for line in ax.get_lines()} == {"Random": [0, 100], OWN: [0, 100]}
    assert len(ax.collections) == 1
    plots.curves(ax, s, bands=True)
    assert len(ax.collections) == 3


def test_a_matrix_writes_light_on_dark(ax):
    texts = pd.DataFrame([["+.25", ""], ["", "−.25"]], [OWN, POST], [OWN, POST])
    colours = np.array([[[0, 0, 0], [1, 1, 1]], [[1, 1, 1], [0.9, 0.9, 0.9]]], dtype=float)
    plots.matrix(ax, texts, colours, np.eye(2, dtype=bool), numbered=True)
    assert said(ax.texts) == ["+.25", "", "", "−.25"]
    assert (ax.texts[0].get_color(), ax.texts[3].get_color()) == ("white", "black")
    assert [text.get_weight() for text in ax.texts] == ["bold", "normal", "normal", "bold"]
    assert said(ax.get_yticklabels()) == ["SoftCAM dense  1", "Grad-CAM  2"]


def test_footnotes_are_broken_at_the_width_of_the_figure():
    fig = plt.figure(figsize=(2, 2))
    plots.footnote(fig, "word " * 20)
    lines = fig.get_supxlabel().splitlines()
    assert len(lines) > 2 and max(map(len, lines)) <= 35


def test_panels_hide_what_is_left_over():
    fig, axes = plots.panels(3, 2, 1)
    assert len(axes) == 3
    assert [ax.axison for ax in fig.axes] == [True, True, True, False]


def colours(values, signed):
    ax = plt.subplots()[1]
    plots.show_map(ax, torch.zeros(1, *values.shape), values, signed)
    return ax.images[1].get_array()


def test_signed_maps_diverge_around_zero():
    (blue, middle, red), (half, _, same) = (colours(torch.tensor([[x, 0.0, 1.0]]), True)[0] for x in (-1.0, -0.5))
    assert blue[2] > blue[0] and red[0] > red[2]
    assert list(middle[:3]) == pytest.approx([0.97, 0.97, 0.97], abs=0.02)
    assert list(same) == pytest.approx(list(red)) and half[3] < blue[3]  # the scale is symmetric around 0


def test_a_single_pixel_does_not_hide_the_rest_and_is_printed(ax):
    values = torch.full((40, 40), 0.1)
    values[0, 0] = 50.0
    plots.show_map(ax, torch.zeros(1, 40, 40), values, signed=True)
    assert ax.images[1].get_array()[20, 20, 0] > 0.3
    assert ax.texts[0].get_text() == "±0.1, max 50"


@pytest.mark.parametrize("values", [torch.zeros(4, 4), torch.full((4, 4), math.nan), torch.full((4, 4), 3.0)])
@pytest.mark.parametrize("signed", [True, False])
def test_degenerate_maps_are_drawn(values, signed):
    assert np.isfinite(colours(values, signed)[..., 3]).all()


def test_an_evolution_is_drawn_from_before_training_to_the_last_phase(trained):
    images, frames, limits = plots.frames(trained["explainer"].evolution, signed=False)
    assert next(iter(frames)) == "classifier, epoch 0" and list(frames)[-1] == "joint, epoch 1"
    assert limits == [1.0] * len(images)
    assert frames["joint, epoch 1"].shape == (len(images), *images.shape[2:])


def test_panels_that_share_their_rows_name_them_once():
    s = pd.DataFrame({"label": ["Grad-CAM", "SoftCAM dense"], "value": [0.1, 0.2], "low": 0.0, "high": 0.3})
    _, axes = plots.panels(2, 2, 2, sharey=True)
    for ax in axes:
        plots.dots(ax, s, ["Grad-CAM", "SoftCAM dense"])
    assert [text.get_weight() for text in axes[0].get_yticklabels()] == ["normal", "bold"]
