"""The pictures of a run that show examples: what the model is most sure of and wrong.

Every function takes plain arrays and writes one PNG in the style of :mod:`.canvas`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from .canvas import GREY, RED, STYLE, new_figure, save, shorten


def worst_mistakes(
    images: Sequence[np.ndarray],
    captions: Sequence[tuple[str, float, str]],
    path: Path | str,
) -> None:
    """Pictures of the examples that the model was most certain and wrong about.

    Args:
        images: up to 24 images uint8 [h, w, 1 or 3], of any sizes, the worst first.
        captions: for each, the class that it was taken for, with what probability, and what it is.
        path: the PNG to write. Without images nothing is written.
    """
    images, captions = list(images)[:24], list(captions)[:24]
    if not images:
        return
    across = min(6, len(images))
    down = math.ceil(len(images) / across)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = new_figure(max(1.8 * across, 3.6), 2.25 * down)
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes in grid[len(images) :]:
            axes.set_axis_off()
        for axes, image, (taken_for, probability, truth) in zip(
            grid, images, captions, strict=False
        ):
            image = np.asarray(image)
            grey = image.ndim == 2 or image.shape[-1] == 1
            axes.imshow(
                image.reshape(image.shape[:2]) if grey else image,
                cmap="gray",
                vmin=0,
                vmax=max(int(image.max()), 1),  # some sets use a part of the range only
                interpolation="nearest" if max(image.shape[:2]) <= 64 else "antialiased",
            )
            axes.spines[:].set_visible(False)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(shorten(truth, 22), fontsize=8.5, fontweight="normal", loc="center",
                           pad=3, color=GREY)  # fmt: skip
            axes.set_xlabel(f"{shorten(taken_for, 15)} ({probability:.0%})", fontsize=8.5,
                            color=RED, labelpad=3)  # fmt: skip
        figure.suptitle("truth above, answer and its probability below", fontsize=9, color=GREY,
                        x=0.02, ha="left")  # fmt: skip
        save(figure, path)
