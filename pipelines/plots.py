"""The pictures of a run: learning curves, confusion, calibration, worst mistakes, residuals.

Every function takes plain arrays and writes one PNG, whole or not at all. Figures are objects of
their own (no pyplot): nothing is shared between threads and no display is needed. Colours, sizes
and fonts are decided here alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from .run import write_atomic

BLUE, ORANGE, RED, GREY, PALE = "#2364aa", "#e07a1f", "#c0392b", "#6b7280", "#d6dbe1"
_DOTS_PER_INCH = 130
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelcolor": "#374151",
    "axes.edgecolor": "#9aa3ad",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_ANNOTATED, _LABELLED = 16, 40  # classes up to which cells carry numbers, and axes names
_CLOUD = 4_000  # points above which a scatter plot becomes a density


def learning_curves(rows: Sequence[dict[str, float]], path: Path | str) -> None:
    """Every recorded quantity over the epochs; training and validation in one panel.

    Args:
        rows: the history: one dict an epoch with ``epoch``, ``loss``, ``val_loss``, ... in any
            number. Quantities that are missing from a row or not finite leave a gap.
        path: the PNG to write. Without rows nothing is written.
    """
    names = dict.fromkeys(key for row in rows for key in row)
    panels = [n for n in names if n not in ("epoch", "step") and not n.startswith("val_")]
    panels += [n[4:] for n in names if n.startswith("val_") and n[4:] not in names]
    if "learning_rate" in panels:  # last, and only where it says something
        panels.remove("learning_rate")
        if len({row.get("learning_rate") for row in rows}) > 1:
            panels.append("learning_rate")
    if not rows or not panels:
        return
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    figure = _figure(4.6 * across, 3.4 * down)
    with mpl.rc_context(_STYLE):
        for place, name in enumerate(panels, 1):
            axes = figure.add_subplot(down, across, place)
            lowest, highest = math.inf, 0.0
            for key, colour, label in (
                (name, BLUE, "training"),
                (f"val_{name}", ORANGE, "validation"),
            ):
                if key not in names:
                    continue
                epochs, values = _series(rows, key)
                few = "o" if len(epochs) <= 15 else None
                axes.plot(epochs, values, color=colour, label=label, marker=few, markersize=3.5)
                finite = values[np.isfinite(values)]
                if len(finite):
                    lowest, highest = min(lowest, finite.min()), max(highest, finite.max())
                    if key.startswith("val_"):
                        _mark_best(axes, epochs, values, name, colour)
            if lowest > 0 and highest / lowest > 30:
                axes.set_yscale("log")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.set_title(name.replace("_", " "))
            if place > len(panels) - across:
                axes.set_xlabel("epoch")
            if len(axes.get_lines()) > 1:
                axes.legend()
        _save(figure, path)


def _series(rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    epochs = [row.get("epoch", i) for i, row in enumerate(rows)]
    values = [row[key] if row.get(key) is not None else math.nan for row in rows]
    return np.asarray(epochs, float), np.asarray(values, float)


def _mark_best(axes, epochs, values, name: str, colour: str) -> None:
    larger = any(word in name for word in ("accuracy", "f1", "r2", "auc"))
    pick = np.nanargmax if larger else np.nanargmin
    best = int(pick(values))
    axes.plot(epochs[best], values[best], marker="o", markersize=8, markerfacecolor="none",
              markeredgecolor=colour, linestyle="none",
              label=f"best {values[best]:.4g}, epoch {epochs[best]:g}")  # fmt: skip


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], path: Path | str) -> None:
    """Which class is taken for which.

    Args:
        counts: int [c, c]; row = true class, column = predicted class.
        classes: c names.
        path: the PNG to write. Up to 16 classes show their counts, up to 40 their names; with
            more, the matrix stands beside a list of the most frequent confusions.
    """
    counts = np.asarray(counts)
    size = len(counts)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    side = min(9.5, 2.6 + 0.46 * max(size, 3)) if size <= _LABELLED else 6.2
    with mpl.rc_context({**_STYLE, "axes.grid": False, "axes.spines.left": False,
                         "axes.spines.bottom": False}):  # fmt: skip
        if size <= _LABELLED:
            figure = _figure(side + 1.1, side)
            axes = figure.add_subplot()
        else:
            figure = _figure(side + 5.2, side)
            axes, pairs = figure.subplots(1, 2, width_ratios=(side, 3.6))
            _confusions(pairs, counts, classes)
        # The square root keeps rare confusions visible next to the diagonal.
        picture = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
        bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.02)
        marks = np.array([0, 0.01, 0.05, 0.2, 0.5, 1])
        bar.set_ticks(np.sqrt(marks), labels=[f"{m:.0%}" for m in marks])
        bar.outline.set_visible(False)
        bar.set_label("share of the true class")
        if size <= _LABELLED:
            names = [_shorten(name, 22) for name in classes]
            small = 10 if size <= _ANNOTATED else 7.5
            # 0.0085 inches a character and point of size, in cells of this many inches
            slanted = 0.0085 * small * max(map(len, names)) > (side - 1.6) / size
            axes.set_xticks(range(size), names, fontsize=small,
                            rotation=45 if slanted else 0, ha="right" if slanted else "center",
                            rotation_mode="anchor" if slanted else "default")  # fmt: skip
            axes.set_yticks(range(size), names, fontsize=small)
        if size <= _ANNOTATED:
            widest = len(str(counts.max()))
            for i, j in np.argwhere(counts):
                axes.text(j, i, f"{counts[i, j]}", ha="center", va="center",
                          fontsize=9 if widest <= 3 else 7.5,
                          color="white" if shares[i, j] > 0.3 else "#1f2937")  # fmt: skip
        axes.tick_params(length=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        right = np.trace(counts)
        axes.set_title(f"{right:,} of {counts.sum():,} right")
        _save(figure, path)


def _confusions(axes, counts: np.ndarray, classes: Sequence[str], most: int = 20) -> None:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:most]
    pairs = [divmod(int(k), len(counts)) for k in order if wrong.flat[k] > 0]
    axes.barh(range(len(pairs)), [wrong[p] for p in pairs], color=BLUE, height=0.7)
    names = [f"{_shorten(classes[i], 16)} → {_shorten(classes[j], 16)}" for i, j in pairs]
    axes.set_yticks(range(len(pairs)), names, fontsize=8)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.tick_params(axis="y", length=0)
    axes.set_title("most frequent confusions" if pairs else "no confusions")
    axes.set_xlabel("examples (true → predicted)")


def calibration_curve(
    confidence: np.ndarray, correct: np.ndarray, path: Path | str, *, bins: int = 15
) -> None:
    """How often predictions of a given confidence are right; on the diagonal: as often as said.

    Args:
        confidence: [n], the probability of the predicted class, in [0, 1].
        correct: [n], whether it was right.
        path: the PNG to write.
        bins: bins of equal width.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    place = bin_of(confidence, bins)
    n = np.bincount(place, minlength=bins)
    used = n > 0
    said = np.bincount(place, confidence, bins)[used] / n[used]
    true = np.bincount(place, correct, bins)[used] / n[used]
    error = float(np.abs(said - true) @ n[used] / max(len(confidence), 1))
    centres = (np.arange(bins) + 0.5) / bins
    with mpl.rc_context(_STYLE):
        figure = _figure(5.2, 5.6)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        top.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), linewidth=1.2,
                 label="perfectly calibrated")  # fmt: skip
        # The Wilson interval stays inside [0, 1] and is honest for bins of few examples.
        low, high = _wilson(true, n[used])
        top.errorbar(said, true, (true - low, high - true), color=BLUE, marker="o", markersize=5,
                     elinewidth=1, capsize=2, label="model, 95% interval")  # fmt: skip
        top.set_ylabel("share that is right")
        top.set_xlim(-0.01, 1.02)
        top.set_ylim(0, 1.02)
        top.set_title(f"expected calibration error {error:.3f}")
        top.legend(loc="best")
        bottom.bar(centres, n, width=0.92 / bins, color=PALE, edgecolor=GREY, linewidth=0.6)
        bottom.set_ylabel("examples")
        bottom.set_xlabel("confidence of the prediction")
        bottom.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        _save(figure, path)


def bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of equal width that each probability falls into: (k/bins, (k+1)/bins], 0 in bin 0."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def _wilson(share: np.ndarray, n: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return np.minimum(centre - half, share), np.maximum(centre + half, share)


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
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        figure = _figure(max(1.8 * across, 3.6), 2.25 * down)
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
            axes.set_title(_shorten(truth, 22), fontsize=8.5, fontweight="normal", loc="center",
                           pad=3, color=GREY)  # fmt: skip
            axes.set_xlabel(f"{_shorten(taken_for, 15)} ({probability:.0%})", fontsize=8.5,
                            color=RED, labelpad=3)  # fmt: skip
        figure.suptitle("truth above, answer and its probability below", fontsize=9, color=GREY,
                        x=0.02, ha="left")  # fmt: skip
        _save(figure, path)


def residuals(
    target: np.ndarray,
    prediction: np.ndarray,
    path: Path | str,
    *,
    name: str = "target",
    stddev: np.ndarray | None = None,
) -> None:
    """Regression: predicted against true, residuals over predictions, and their distribution.

    Args:
        target: [n], in its own units.
        prediction: [n], in the same units.
        path: the PNG to write.
        name: what is predicted, with its unit.
        stddev: [n] where the model says how far it may be off; up to 300 points carry it as bars.
    """
    target, prediction = np.asarray(target, float), np.asarray(prediction, float)
    difference = target - prediction
    name = _shorten(name, 40)
    with mpl.rc_context(_STYLE):
        figure = _figure(13.6, 4.3)
        first, second, third = figure.subplots(1, 3)
        low, high = _range(np.concatenate([target, prediction]))
        _cloud(first, prediction, target)
        if stddev is not None and len(target) <= 300:
            first.errorbar(prediction, target, xerr=np.asarray(stddev, float), fmt="none",
                           ecolor=PALE, elinewidth=1, zorder=1)  # fmt: skip
        first.plot([low, high], [low, high], color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
        first.set_xlim(low, high)
        first.set_ylim(low, high)
        first.set_title("true over predicted")
        first.set_xlabel(f"predicted {name}")
        first.set_ylabel(f"true {name}")
        _cloud(second, prediction, difference)
        second.axhline(0, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
        second.set_title("residuals")
        second.set_xlabel(f"predicted {name}")
        second.set_ylabel("true - predicted")
        third.hist(difference, bins=min(60, max(10, int(np.sqrt(len(difference)) * 1.5))),
                   color=BLUE, edgecolor="white", linewidth=0.4)  # fmt: skip
        third.axvline(0, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
        third.set_title("distribution of the residuals")
        third.set_xlabel("true - predicted")
        third.set_ylabel("examples")
        third.yaxis.set_major_locator(MaxNLocator(integer=True))
        _save(figure, path)


def _cloud(axes, x: np.ndarray, y: np.ndarray) -> None:
    if len(x) > _CLOUD:
        picture = axes.hexbin(x, y, gridsize=60, bins="log", cmap="Blues", mincnt=1, linewidths=0)
        axes.figure.colorbar(picture, ax=axes, pad=0.02, label="examples").outline.set_visible(
            False
        )
    else:
        axes.scatter(x, y, s=14 if len(x) <= 1_000 else 6, color=BLUE, alpha=0.55, linewidths=0)


def _range(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    margin = 0.04 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _shorten(text: Any, length: int) -> str:
    text = " ".join(str(text).split())
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")  # else matplotlib reads mathematics between two of them


def _figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, with its own canvas and no global state."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path | str) -> None:
    blob = io.BytesIO()
    figure.savefig(blob, format="png", facecolor="white", metadata={"Software": None})
    write_atomic(Path(path), blob.getvalue())
