"""Pictures of a search: scores over the trials, settings side by side, what matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from .canvas import BLUE, GREY, ORANGE, PALE, RED, STYLE, new_figure, save, shorten
from .space import Dimension, Space

# Ticks between lines: on white, so that they can be read.
_PLATE = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}
_SMALL = {"fontsize": 8, "color": GREY, "va": "center", "zorder": 5, "bbox": _PLATE}


def progress(rows: list[dict[str, Any]], name: str, upwards: bool, path: Path) -> None:
    """Each trial's score, the best so far, and where trials failed."""
    figure = new_figure(7.0, 3.6)
    with mpl.rc_context(STYLE):
        axes = figure.add_subplot()
        done = [row for row in rows if row["score"] is not None]
        number, scores = ([row[key] for row in done] for key in ("trial", "score"))
        best = (np.maximum if upwards else np.minimum).accumulate(scores)
        axes.plot(number, scores, "o", color=GREY, markersize=5, label="a trial")
        axes.step([*number, len(rows)], [*best, best[-1]], where="post", color=BLUE,
                  label="best so far")  # fmt: skip
        if failed := [row["trial"] for row in rows if row["error"]]:
            floor = min(scores) if upwards else max(scores)
            axes.plot(failed, [floor] * len(failed), "x", color=RED, markersize=7, label="failed")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="trial", ylabel=name.replace("_", " "))
        axes.legend()
        save(figure, path)


def parallel(
    rows: list[dict[str, Any]], space: Space, name: str, upwards: bool, path: Path
) -> None:
    """A line a trial through its settings to its score; the best one stands out."""
    done = [row for row in rows if row["score"] is not None]
    scores = np.array([row["score"] for row in done])
    low, spread = scores.min(), np.ptp(scores) or 1.0
    figure = new_figure(2.2 + 1.9 * len(space.dimensions), 4.4)
    order = np.argsort(scores if upwards else -scores)  # the best is drawn last
    colours = mpl.colormaps["viridis"]
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        axes = figure.add_subplot()
        places = np.arange(len(space.dimensions) + 1)
        for rank, number in enumerate(order):
            values = done[number]["values"]
            heights = [
                dimension.share(values[dimension.key]) if space.active(dimension, values) else None
                for dimension in space.dimensions
            ]
            line = np.array([*heights, (scores[number] - low) / spread], float)
            is_best = rank == len(order) - 1
            shown = np.isfinite(line)
            axes.plot(places[shown], line[shown], color=ORANGE if is_best else
                      colours(rank / max(1, len(order) - 1)), alpha=1 if is_best else 0.6,
                      linewidth=2.6 if is_best else 1.2, marker="o", markersize=3)  # fmt: skip
        for place, dimension in enumerate(space.dimensions):
            axes.axvline(place, color=PALE, linewidth=1, zorder=0)
            for height, text in _ticks(dimension):
                axes.text(place + 0.05, height, text, **_SMALL)
        for height in (0, 0.5, 1):
            value = low + height * np.ptp(scores)
            axes.text(places[-1] + 0.05, height, f"{value:.4g}", **_SMALL)
        axes.axvline(places[-1], color=PALE, linewidth=1, zorder=0)
        labels = [_label(dimension) for dimension in space.dimensions]
        axes.set_xticks(places, [*labels, name.replace("_", " ")])
        axes.set_yticks([])
        axes.set(xlim=(-0.15, places[-1] + 0.5), ylim=(-0.06, 1.06))
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_title("Each trial from blue, bad, to yellow, good; best: orange")
        save(figure, path)


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    values = dimension.grid(3)
    return [(dimension.share(value), shorten(f"{value:.3g}" if isinstance(value, float) else value,
            14)) for value in values]  # fmt: skip


def _label(dimension: Dimension) -> str:
    short = ".".join(dimension.key.split(".")[-2:]).replace(".", "\n")
    values = ", ".join(dimension.parent_values)
    return short + (f"\n({shorten(values, 16)})" if dimension.parent else "")


def importance(shares: dict[str, float], path: Path) -> None:
    """A bar a key; nothing is written where nothing is known."""
    if not shares:
        return
    figure = new_figure(6.4, 1.2 + 0.36 * len(shares))
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        axes = figure.add_subplot()
        axes.barh(list(shares), list(shares.values()), color=BLUE, height=0.6)
        axes.invert_yaxis()
        axes.set(xlabel="importance: rise of a forest's error")
        save(figure, path)
