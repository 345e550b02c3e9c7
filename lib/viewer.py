"""Browsing explanations in a notebook: sliders where a person sits before it, a picture where it runs by itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from IPython import get_ipython
from torch import Tensor

from lib.explain import METHODS
from lib.plots import show_image, show_map, show_mask


def live() -> bool:
    """Whether a front end that can answer runs this cell: not under papermill, nbconvert or outside of a notebook."""
    return bool(getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False))


def browse(batch: Mapping[str, Any], maps: Mapping[str, Tensor], classes: Sequence[str]) -> None:
    """Sliders over the images of a batch (`Run.images`) and the methods of `maps`, METHOD -> (N, H, W).

    Without a live front end the first image and method are drawn and no widget is made: an `Output` widget can make a
    notebook that runs by itself wait for ever.
    """

    def draw(image: int, method: str) -> None:
        _, (left, right) = plt.subplots(1, 2, figsize=(6, 3.2))
        show_image(left, batch["image"][image], f"{batch['id'][image]}\n{classes[batch['label'][image]]}")
        show_mask(left, batch["mask"][image])
        given = batch["image"][image], maps[method][image], METHODS[method].signed, batch["mask"][image]
        show_map(right, *given, METHODS[method].label)
        plt.show()

    if not live():
        draw(0, next(iter(maps)))
        return
    import ipywidgets
    from IPython.display import display

    slider = ipywidgets.IntSlider(0, 0, len(batch["id"]) - 1, description="image")
    display(ipywidgets.interactive(draw, image=slider, method=ipywidgets.Dropdown(options=list(maps))))
