"""Pictures of sequences: accuracy by length, and attention. Plain arrays in, one PNG out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from .canvas import BLUE, GREY, STYLE, new_figure, save, shorten
from .plots import wilson

_BARS = 12  # groups of lengths, at most


def accuracy_by_length(lengths: np.ndarray, right: np.ndarray, path: Path | str) -> None:
    """Share of exact answers over the length of the source, with 95% intervals (Wilson).

    Args:
        lengths: int [n], tokens of the source.
        right: bool [n].
        path: the PNG to write.
    """
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, _BARS + 1)).round()).astype(int)
    if len(edges) < 2:
        edges = np.array([edges[0], edges[0] + 1])
    place = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, len(edges) - 2)
    groups = [np.flatnonzero(place == group) for group in range(len(edges) - 1)]
    groups = [group for group in groups if len(group)]
    centre = np.array([lengths[group].mean() for group in groups])
    share = np.array([right[group].mean() for group in groups])
    low, high = wilson(share, np.array([len(group) for group in groups]))
    figure = new_figure(5.2, 3.4)
    with mpl.rc_context(STYLE):
        axes = figure.add_subplot()
        axes.errorbar(centre, share, [share - low, high - share], color=BLUE, marker="o", capsize=2)
        axes.axhline(right.mean(), color=GREY, linewidth=0.8, linestyle="--")
        axes.set(xlabel="tokens of the source", ylabel="exact answers", ylim=(-0.03, 1.03))
        axes.set_title(f"{right.mean():.1%} of {len(right):,} answers are exact")
        save(figure, path)


def attention(
    shown: Sequence[tuple[np.ndarray, Sequence[str], Sequence[str]]], path: Path | str
) -> None:
    """How much each written token looks at each token that was read.

    Args:
        shown: (weights [t,s], source tokens [s], target tokens [t]) of each example.
        path: the PNG to write.
    """
    widths = [max(2.6, 0.28 * len(source) + 1.2) for _, source, _ in shown]
    height = max(max(2.4, 0.26 * len(target) + 1.2) for *_, target in shown)
    figure = new_figure(sum(widths), height)
    with mpl.rc_context(STYLE):
        grid = figure.add_gridspec(1, len(shown), width_ratios=widths)
        for column, (weights, source, target) in enumerate(shown):
            axes = figure.add_subplot(grid[column])
            axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.set_xticks(range(len(source)), [_label(t) for t in source], rotation=90)
            axes.set_yticks(range(len(target)), [_label(t) for t in target])
            axes.tick_params(length=0, labelsize=7)
            axes.set(xlabel="read", ylabel="written" if column == 0 else "")
            axes.grid(False)
        save(figure, path)


def _label(token: str) -> str:
    return "␣" if token == " " else shorten(token, 12)
