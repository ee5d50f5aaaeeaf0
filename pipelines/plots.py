"""The diagrams of a run: learning curves, confusion, calibration, residuals.

Every function takes plain arrays and writes one PNG in the style of :mod:`.canvas`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator

from .canvas import BLUE, GREY, ORANGE, PALE, STYLE, new_figure, save, shorten

_ANNOTATED, _LABELLED = 16, 40  # classes up to which cells carry numbers, and axes names
_CONFUSIONS = 20  # the most frequent ones, where there are too many classes for a table
_TOGETHER = {"d_real": ("d_fake", "the discriminator's answer", "real", "generated")}
_CLOUD = 4_000  # points above which a scatter plot becomes a density


def learning_curves(rows: Sequence[dict[str, float]], path: Path | str) -> None:
    """Every recorded quantity over the epochs; training and validation in one panel, and what a
    GAN's discriminator says of real and of generated examples.

    Args:
        rows: the history: one dict an epoch with ``epoch``, ``loss``, ``val_loss``, ... in any
            number. Quantities that are missing from a row or not finite leave a gap.
        path: the PNG to write. Without rows nothing is written.
    """
    names = dict.fromkeys(key for row in rows for key in row)
    panels = [n for n in names if n not in ("epoch", "step") and not n.startswith("val_")]
    panels += [n[4:] for n in names if n.startswith("val_") and n[4:] not in names]
    together = {name: found for name, found in _TOGETHER.items() if {name, found[0]} <= {*panels}}
    for other, *_ in together.values():
        panels.remove(other)
    panels.sort(key=lambda name: name != "loss")
    if "learning_rate" in panels:  # last, and only where it says something
        panels.remove("learning_rate")
        if len({row.get("learning_rate") for row in rows}) > 1:
            panels.append("learning_rate")
    if not rows or not panels:
        return
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    figure = new_figure(4.6 * across, 3.4 * down)
    with mpl.rc_context(STYLE):
        for place, name in enumerate(panels, 1):
            axes = figure.add_subplot(down, across, place)
            lowest, highest = math.inf, 0.0
            other, title, one, two = together.get(
                name, (f"val_{name}", name.replace("_", " "), "training", "validation")
            )
            for key, colour, label in ((name, BLUE, one), (other, ORANGE, two)):
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
            axes.set_title(title)
            if place > len(panels) - across:
                axes.set_xlabel("epoch")
            if len(axes.get_lines()) > 1:
                axes.legend()
        save(figure, path)


def _series(rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    epochs = [row.get("epoch", i) for i, row in enumerate(rows)]
    values = [row[key] if row.get(key) is not None else math.nan for row in rows]
    return np.asarray(epochs, float), np.asarray(values, float)


def _mark_best(axes, epochs, values, name: str, colour: str) -> None:
    larger = any(word in name for word in ("accuracy", "f1", "r2", "auc", "return"))
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
    with mpl.rc_context({**STYLE, "axes.grid": False, "axes.spines.left": False,
                         "axes.spines.bottom": False}):  # fmt: skip
        if size <= _LABELLED:
            figure = new_figure(side + 1.1, side)
            axes = figure.add_subplot()
        else:
            figure = new_figure(side + 5.2, side)
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
            names = [shorten(name, 22) for name in classes]
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
        save(figure, path)


def _confusions(axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:_CONFUSIONS]
    pairs = [divmod(int(k), len(counts)) for k in order if wrong.flat[k] > 0]
    axes.barh(range(len(pairs)), [wrong[p] for p in pairs], color=BLUE, height=0.7)
    names = [f"{shorten(classes[i], 16)} → {shorten(classes[j], 16)}" for i, j in pairs]
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
    with mpl.rc_context(STYLE):
        figure = new_figure(5.2, 5.6)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        top.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), linewidth=1.2,
                 label="perfectly calibrated")  # fmt: skip
        # The Wilson interval stays inside [0, 1] and is honest for bins of few examples.
        low, high = wilson(true, n[used])
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
        save(figure, path)


def bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of equal width that each probability falls into: (k/bins, (k+1)/bins], 0 in bin 0."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95% interval (1927) of shares of n trials: (low, high), as long as ``share``."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return np.minimum(centre - half, share), np.maximum(centre + half, share)


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
    name = shorten(name, 40)
    with mpl.rc_context(STYLE):
        figure = new_figure(13.6, 4.3)
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
        save(figure, path)


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
