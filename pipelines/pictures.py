"""The pictures of a run that show images: mistakes, filters, feature maps, Grad-CAM.

Every function takes plain arrays and writes one PNG in the style of :mod:`.canvas`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from PIL import Image

from .canvas import BLUE, GREY, ORANGE, PALE, RED, STYLE, new_figure, save, shorten


def worst_mistakes(
    images: Sequence[np.ndarray],
    captions: Sequence[tuple[str, float, str]],
    path: Path | str,
) -> None:
    """Pictures of the examples that the model was most certain and wrong about.

    Args:
        images: up to 24 images [h, w, 1 or 3], uint8 or float, of any sizes, the worst first.
        captions: for each, the class that it was taken for, with what probability, and what it is.
        path: the PNG to write. Without images nothing is written.
    """
    images, captions = _displayable(list(images)[:24]), list(captions)[:24]
    if not images:
        return
    across = min(6, len(images))
    step = _CELL + _GAP
    with mpl.rc_context(STYLE):
        board = _Board(
            max(2 * _MARGIN + across * step - _GAP, 3.6),
            _TOP + math.ceil(len(images) / across) * (step + 2 * _LINE) - _GAP + _MARGIN,
            "the surest mistakes",
            "truth above, answer and its probability below",
        )
        for place, (image, (taken_for, probability, truth)) in enumerate(
            zip(images, captions, strict=True)
        ):
            x = _MARGIN + place % across * step
            y = _TOP + place // across * (step + 2 * _LINE) + _LINE
            longest = max(image.shape[:2])
            tall, wide = (_CELL * pixels / longest for pixels in image.shape[:2])
            board.text(x + _CELL / 2, y - 0.05, shorten(truth, 22), ha="center", fontsize=8.5,
                       color=GREY)  # fmt: skip
            board.tile(x + (_CELL - wide) / 2, y + (_CELL - tall) / 2, wide, tall, **_pixels(image))
            board.text(x + _CELL / 2, y + _CELL + 0.16,
                       f"{shorten(taken_for, 15)} ({probability:.0%})", ha="center", fontsize=8.5,
                       color=RED)  # fmt: skip
        save(board.figure, path)


def _displayable(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """uint8 images; float ones, whose range is not known, are spread over it together."""
    if not len(images) or images[0].dtype == np.uint8:
        return list(images)
    low = min(float(image.min()) for image in images)
    span = max(float(image.max()) for image in images) - low or 1.0
    return [((image - low) / span * 255).astype(np.uint8) for image in images]


def _pixels(image: np.ndarray) -> dict[str, Any]:
    """How imshow is to show an image uint8 [h, w, 1 or 3]."""
    grey = image.ndim == 2 or image.shape[-1] == 1
    return {
        "X": image.reshape(image.shape[:2]) if grey else image,
        "cmap": "gray",
        "vmin": 0,
        "vmax": max(int(image.max()), 1),  # some sets use a part of the range only
        "interpolation": _interpolation(image),
    }


def _interpolation(image: np.ndarray) -> str:
    return "nearest" if max(image.shape[:2]) <= 64 else "antialiased"


# --- What a model sees ------------------------------------------------------------------------

_SIGNED = LinearSegmentedColormap.from_list("signed", [ORANGE, "white", BLUE])
_ACTIVE = LinearSegmentedColormap.from_list("active", ["white", BLUE, "#0b2545"])
_FILTERS = 96  # at most
_CHANNELS = 8  # maps of a stage
_MARGIN, _GAP, _LINE, _TOP = 0.16, 0.08, 0.2, 0.68  # inches
_CELL = 1.6  # inches, of a mistake


@dataclass(frozen=True)
class Example:
    """An image with what it is and what the model takes it for."""

    image: np.ndarray
    """[h, w, 1 or 3], uint8 or float."""
    truth: str
    answer: str
    probability: float | None = None
    """Of the answer; None where answers are numbers."""
    right: bool | None = None
    """Likewise."""


class _Board:
    """A figure for many tiles, placed in inches from its top left corner.

    All stand in one axes over the whole figure: as many axes as tiles would take seconds.
    """

    def __init__(self, width: float, height: float, title: str, caption: str):
        self.figure = new_figure(width, height)
        self.figure.set_layout_engine("none")
        self.axes = self.figure.add_axes((0, 0, 1, 1), autoscale_on=False)
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()
        self.text(_MARGIN, 0.27, title, fontsize=11, fontweight="bold")
        self.text(_MARGIN, 0.48, caption, fontsize=9, color=GREY)

    def text(self, x: float, y: float, text: str, **how: Any) -> None:
        """A line of text; x, y is the left end of its base line."""
        self.axes.text(x, y, text, **how)

    def tile(self, x: float, y: float, width: float, height: float, **how: Any) -> None:
        """An image, as imshow takes it, in a thin frame with its top left corner at x, y."""
        self.axes.imshow(extent=(x, x + width, y + height, y), aspect="auto", **how)
        box = Rectangle((x, y), width, height, fill=False, edgecolor=PALE, linewidth=0.6)
        self.axes.add_artist(box)


def _inches(image: np.ndarray, wide: float) -> tuple[float, float]:
    """Width and height of the image's tile: so wide, but narrower where it would be too tall."""
    height, width = image.shape[:2]
    wide *= min(1.0, 2.0 * width / height)
    return wide, wide * height / width


def filters(
    kernels: np.ndarray, path: Path | str, *, layer: str, names: Sequence[str] = ()
) -> None:
    """The weights that look at the image, all in one scale.

    Args:
        kernels: [n, h, w, 1 or 3]. One channel is shown as a map around a white zero, three as
            colours around a grey one. Of more than 96 the largest by norm are shown.
        path: the PNG to write.
        layer: whose they are.
        names: n, of outputs that have one each.
    """
    n, height, width, channels = kernels.shape
    norms = np.linalg.norm(kernels.reshape(n, -1), axis=1)
    kept = np.sort(np.argsort(-norms, kind="stable")[:_FILTERS])
    limit = float(np.abs(kernels).max()) or 1.0
    across = min(len(kept), 5 if names else 8 if len(kept) <= 32 else 16)
    wide, tall = _inches(kernels[0], 1.5 if names else 0.95 if len(kept) <= 32 else 0.48)
    line = _LINE if names else 0.0
    step = line + tall + _GAP
    zero = "grey is 0" if channels == 3 else "blue is above 0, orange below"
    shown = "" if len(kept) == n else f", the {len(kept)} largest"
    with mpl.rc_context(STYLE):
        board = _Board(
            max(2 * _MARGIN + across * (wide + _GAP) - _GAP, 4.4),
            _TOP + math.ceil(len(kept) / across) * step - _GAP + _MARGIN,
            f"weights of {shorten(layer, 30)}",
            f"{n} of {height} x {width} x {channels}{shown}; {zero}, one scale up to ±{limit:.2g}",
        )
        for place, index in enumerate(kept):
            x = _MARGIN + place % across * (wide + _GAP)
            y = _TOP + place // across * step + line
            if names:
                board.text(x + wide / 2, y - 0.05, shorten(names[index], 18), ha="center",
                           fontsize=8.5, color=GREY)  # fmt: skip
            kernel = kernels[index]
            if channels == 3:
                colours = {"X": 0.5 + kernel / (2 * limit)}
            else:
                colours = {"X": kernel[..., 0], "cmap": _SIGNED, "vmin": -limit, "vmax": limit}
            board.tile(x, y, wide, tall, interpolation=_interpolation(kernel), **colours)
        save(board.figure, path)


def feature_maps(
    examples: Sequence[Example], maps: dict[str, np.ndarray], path: Path | str
) -> None:
    """What the stages of a net make of a few examples: a row an example, the same channels in all.

    Args:
        examples: m of them, in images of one size.
        maps: name of the layer -> [m, h, w, c]; of each the eight channels are shown that are most
            active over these examples, by the mean of their absolute values.
        path: the PNG to write.
    """
    images = _displayable([example.image for example in examples])
    wide, tall = _inches(images[0], 0.95)
    block = 0.42 + len(examples) * (tall + _GAP)
    with mpl.rc_context(STYLE):
        board = _Board(
            2 * _MARGIN + (_CHANNELS + 1) * (wide + _GAP) + 0.1,
            _TOP - 0.08 + len(maps) * block + _MARGIN - _GAP,
            "feature maps",
            "the most active channels of each stage, by number; darker is more, a scale a stage",
        )
        for stage, (name, values) in enumerate(maps.items()):
            top = _TOP - 0.08 + stage * block
            activity = np.abs(values).mean(axis=(0, 1, 2))
            order = np.argsort(-activity, kind="stable")[:_CHANNELS]
            height, width, count = values.shape[1:]
            what = f"{count} maps of {height} x {width}" if count > 1 else f"{height} x {width}"
            board.text(_MARGIN, top + 0.15, f"{shorten(name, 40)}: {what}", fontsize=9)
            values = values[..., order]
            limit = float(np.abs(values).max()) or 1.0
            scale = {"cmap": _ACTIVE, "vmin": 0, "vmax": limit}
            if values.min() < 0:
                scale = {"cmap": _SIGNED, "vmin": -limit, "vmax": limit}
            for row, image in enumerate(images):
                y = top + 0.38 + row * (tall + _GAP)
                board.tile(_MARGIN, y, wide, tall, **_pixels(image))
                for place, channel in enumerate(order):
                    x = _MARGIN + 0.1 + (place + 1) * (wide + _GAP)
                    if row == 0:
                        board.text(x + wide / 2, y - 0.04, f"{channel}", ha="center", fontsize=7.5,
                                   color=GREY)  # fmt: skip
                    one = values[row, ..., place]
                    board.tile(x, y, wide, tall, X=one, interpolation=_interpolation(one), **scale)
        save(board.figure, path)


def grad_cam(
    examples: Sequence[Example], heats: Sequence[np.ndarray], path: Path | str, *, layer: str
) -> None:
    """Which parts of the images speak for the answers.

    Args:
        examples: the right ones first.
        heats: for each, [h', w'] of any size, 0 or more; each is shown in a scale of its own.
        path: the PNG to write.
        layer: whose maps they come from.
    """
    images = _displayable([example.image for example in examples])
    groups = [
        (title, colour, [i for i, example in enumerate(examples) if example.right is right])
        for right, title, colour in (
            (True, "right", BLUE),
            (False, "wrong, the surest first", RED),
            (None, "from the lowest answer to the highest", BLUE),
        )
    ]
    groups = [group for group in groups if group[2]]
    across = max(len(places) for *_, places in groups)
    wide, tall = _inches(images[0], 1.45)
    size = " x ".join(map(str, heats[0].shape))
    block = 3 * _LINE + 2 * tall + 2 * _GAP + 0.1
    with mpl.rc_context(STYLE):
        board = _Board(
            max(2 * _MARGIN + across * (wide + _GAP) - _GAP, 5.2),
            _TOP + len(groups) * block - 0.1 + _MARGIN / 2,
            f"Grad-CAM: what {'raises' if examples[0].right is None else 'speaks for'} the answer",
            f"bright where the image does, by the {size} maps of {shorten(layer, 30)}; "
            "truth above, answer below",
        )
        for row, (title, colour, places) in enumerate(groups):
            top = _TOP + row * block
            board.text(_MARGIN, top + 0.1, title, fontsize=9.5, fontweight="bold", color=colour)
            for column, i in enumerate(places):
                x, y = _MARGIN + column * (wide + _GAP), top + 2 * _LINE
                board.text(x + wide / 2, y - 0.05, shorten(examples[i].truth, 20), ha="center",
                           fontsize=8.5, color=GREY)  # fmt: skip
                board.tile(x, y, wide, tall, **_pixels(images[i]))
                y += tall + _GAP
                shown = overlay(images[i], heats[i])
                board.tile(x, y, wide, tall, X=shown, interpolation=_interpolation(shown))
                answer, probability = shorten(examples[i].answer, 15), examples[i].probability
                if probability is not None:
                    answer += f" ({probability:.0%})"
                board.text(x + wide / 2, y + tall + 0.16, answer, ha="center", fontsize=8.5,
                           color=colour)  # fmt: skip
        save(board.figure, path)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image uint8 [h, w, 1 or 3] in dim grey under heat [h', w']: RGB in 0..1.

    The image grows by whole pixels to at least 160 a side, so that the heat, which is brought to
    its size bilinearly and divided by its maximum, stays smooth over small images.
    """
    grey = image.reshape(*image.shape[:2], -1).mean(axis=-1) / max(int(image.max()), 1)
    grey = np.kron(grey, np.ones([math.ceil(160 / min(grey.shape))] * 2))
    flat = Image.fromarray(heat.astype(np.float32) / (float(heat.max()) or 1.0))
    smooth = np.asarray(flat.resize(grey.shape[::-1], Image.Resampling.BILINEAR))
    return 0.4 * grey[..., None] + 0.6 * mpl.colormaps["inferno"](smooth)[..., :3]
