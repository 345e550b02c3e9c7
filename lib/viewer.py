"""Browsing explanations in a live notebook, with ipywidgets."""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from torch import Tensor

from lib.explain import METHODS
from lib.plots import show_image, show_map, show_mask


def browse(batch: Mapping[str, Any], maps: Mapping[str, Tensor], classes: Sequence[str]) -> ipywidgets.Widget:
    """Sliders over the images of a batch (`Run.test_images`) and the methods of `maps`, METHOD -> (N, H, W)."""

    def draw(image: int, method: str) -> None:
        _, (left, right) = plt.subplots(1, 2, figsize=(6, 3.2))
        show_image(left, batch["image"][image], f"{batch['id'][image]}\n{classes[batch['label'][image]]}")
        show_mask(left, batch["mask"][image])
        show_map(right, batch["image"][image], maps[method][image], METHODS[method].signed, batch["mask"][image],
                 METHODS[method].label)  # fmt: skip
        plt.show()

    slider = ipywidgets.IntSlider(0, 0, len(batch["id"]) - 1, description="image")
    return ipywidgets.interactive(draw, image=slider, method=ipywidgets.Dropdown(options=list(maps)))
