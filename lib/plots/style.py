"""Colours, dashes and names of curves. Colours (Okabe and Ito, Tol) are safe for colour-blind readers."""

from typing import Any

import matplotlib.pyplot as plt

from lib.explain import METHODS

VARIANTS = {  # models, as `Recipe.variant` calls them
    "black box": "#000000", "SoftCAM dense": "#D55E00", "SoftCAM sparse": "#8C2D04", "SoftCAM ridge": "#E69F00",
    "SoftCAM elastic net": "#CC79A7", "Explainer unsupervised": "#56B4E9", "Explainer hybrid": "#0072B2",
}  # fmt: skip
COLOURS = {  # methods; an in-model one takes the colour of its model where that is known
    "evidence": "#D55E00", "evidence_difference": "#F0A070", "tte_cam": "#A6761D", "explainer": "#0072B2",
    "gradcam": "#009E73", "gradcam_pp": "#44AA99", "layercam": "#117733", "scorecam": "#999933",
    "smooth_gradcam": "#88CCAA", "integrated_gradients": "#CC79A7", "smoothgrad": "#AA4499", "saliency": "#882255",
    "input_x_gradient": "#000000", "deconvolution": "#B58900", "guided_backprop": "#E69F00",
    "guided_gradcam": "#DDCC77", "lrp": "#332288", "occlusion": "#6699CC",
    "random": "#999999", "centre_gaussian": "#BBBBBB", "edge_map": "#777777",
}  # fmt: skip
DASHES = {
    "gradcam": (0, (5, 1)), "integrated_gradients": (0, (3, 1, 1, 1)), "guided_backprop": (0, (2, 1)),
    "saliency": (0, (5, 1, 1, 1, 1, 1)), "input_x_gradient": (0, (1, 1)), "lrp": (0, (4, 2)), "scorecam": (0, (6, 2)),
    "random": ":", "centre_gaussian": ":", "edge_map": ":",
}  # fmt: skip
MAIN = (  # post-hoc methods of figures that cannot show all; the papers' own comparison
    "gradcam", "scorecam", "layercam", "integrated_gradients", "guided_backprop", "lrp", "random",
)  # fmt: skip
SPLITS = (("train", "#0072B2", "--"), ("val", "#D55E00", "-"))
plt.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False})
plt.rcParams.update({"figure.dpi": 110, "savefig.dpi": 150, "font.size": 9, "axes.titlesize": 9, "image.cmap": "gray"})


def series_label(key: str) -> str:
    """'evidence | SoftCAM sparse' -> 'SoftCAM sparse'; 'gradcam | black box' -> 'Grad-CAM'; 'gradcam' -> 'Grad-CAM'.

    The recipe of a model that shares its variant, as in 'gradcam | black box (X)', stays: 'Grad-CAM (X)'.
    """
    method, _, variant = key.partition(" | ")
    if variant and method in ("evidence", "explainer"):
        return variant
    recipe = variant.partition(" (")[2]
    return METHODS[method].label + (f" ({recipe}" if recipe else "")


def in_model(key: str) -> bool:
    return METHODS[key.partition(" | ")[0]].family == "in-model"


def contrast_style(key: str) -> dict[str, Any]:
    """Line style of 'method | variant' where in-model maps are set against post-hoc ones: solid and strong in their
    model's colour against thin, dashed and grey."""
    method, _, variant = key.partition(" | ")
    if in_model(key):
        return {"color": VARIANTS.get(variant.partition(" (")[0], COLOURS[method]), "linestyle": "-", "linewidth": 2.4}
    grey = "#BBBBBB" if METHODS[method].family == "baseline" else "#8A8A8A"
    return {"color": grey, "linestyle": DASHES.get(method, (0, (3, 2))), "linewidth": 1.1}


def series_style(key: str) -> dict[str, Any]:
    """Colour, dash and width of a curve: in-model maps are drawn solid and strong, post-hoc ones dashed."""
    method, _, variant = key.partition(" | ")
    own = METHODS[method].family == "in-model"
    of_model = method in ("evidence", "explainer")
    colour = VARIANTS.get(variant.partition(" (")[0], COLOURS[method]) if of_model else COLOURS[method]
    dash = "-" if own else DASHES.get(method, (0, (3, 2)))
    return {"color": colour, "linestyle": dash, "linewidth": 2.2 if own else 1.3}
