import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection

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


def seen(ax):
    """(x, y, is it filled) of the dots of a panel."""
    offsets = [(c, *at) for c in ax.collections if isinstance(c, PathCollection) for at in c.get_offsets()]
    return [(x, y, tuple(c.get_facecolors()[:1].ravel()) not in ((), (1, 1, 1, 1))) for c, x, y in offsets]


def test_dots_draw_value_and_interval_and_leave_undefined_rows_empty(ax):
    plots.dots(ax, summary({OWN: 0.5, "Random": math.nan}), ["Random", OWN])
    assert said(ax.get_yticklabels()) == ["Random", OWN]
    (interval,) = ax.collections[0].get_segments()
    assert interval.ravel() == pytest.approx([0.4, 1, 0.6, 1])
    assert seen(ax) == [(0.5, 1, True)]


def test_dots_of_seeds_lie_below_and_the_best_has_a_ring(ax):
    s, rows = summary({OWN: 0.5, POST: 0.7}), [OWN, POST]
    plots.dots(ax, s, rows, summary({OWN: 0.4}), best="lower")
    assert seen(ax) == [(0.5, 0, True), (0.7, 1, True), (0.5, 0, False), (0.4, 0.32, True)]
    plots.dots(other := plt.subplots()[1], s, rows, best="higher")
    assert seen(other)[-1] == (0.7, 1, False)


def test_hollow_dots_have_no_interval(ax):
    plots.dots(ax, summary({OWN: 0.5}), [OWN], hollow=True)
    assert seen(ax) == [(0.5, 0, False)] and len(ax.collections) == 1


def test_rows_are_ordered_by_mean_rank_over_data_sets_and_columns():
    ranks = {"a": (1, 0.5), "b": (3, 0.9), "c": (2, 0.1)}
    rows = [(x, "one", name, v) for x, vs in ranks.items() for name, v in zip(("high", "low"), vs, strict=True)]
    s = pd.DataFrame(rows, columns=["label", "dataset", "column", "value"])
    assert plots.by_mean_rank(s, ["low"]) == ["c", "b", "a"]


def test_a_page_is_840_pixels_wide():
    fig, axes = plots.sheet(2, 3, 1.5)
    assert axes.shape == (2, 3) and list(fig.get_size_inches()) == [8.4, 1.5]


def test_curves_have_bands_of_in_model_maps(ax):
    s = pd.concat([summary({OWN: value, "Random": value}).assign(k=k) for k, value in ((0, 1.0), (5, 0.5))])
    plots.curves(ax, s)
    assert {line.get_label(): list(line.get_xdata()) for line in ax.get_lines()} == {"Random": [0, 5], OWN: [0, 5]}
    assert len(ax.collections) == 1
    plots.curves(ax, s, bands=True)
    assert len(ax.collections) == 3


def test_the_epochs_of_phases_follow_one_another(ax):
    phases = ["classifier"] * 3 + ["explainer"] * 2 + ["joint"] * 2
    history = pd.DataFrame({"phase": phases, "epoch": [0, 1, 2, 0, 1, 0, 1], "train_loss": 1.0, "val_loss": 2.0})
    assert plots.epochs(ax, history, "loss") == {"classifier": (0, 2), "explainer": (2, 3), "joint": (3, 4)}
    assert list(ax.get_lines()[0].get_xdata()) == [0, 1, 2, 2, 3, 3, 4]
    assert said(ax.texts) == ["classifier", "explainer", "joint"]


def test_the_outline_of_a_mask_is_black_in_white(ax):
    plots.show_mask(ax, torch.eye(6).bool())
    assert [tuple(c.get_edgecolor()[0]) for c in ax.collections] == [(1, 1, 1, 1), (0, 0, 0, 1)]
    plots.show_mask(ax, torch.zeros(6, 6))
    assert len(ax.collections) == 2


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
    plots.show_map(ax, torch.zeros(1, 40, 40), values, signed=True, ends=False)
    assert len(ax.texts) == 1


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
