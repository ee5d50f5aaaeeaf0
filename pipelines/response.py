"""A metric over the values of a number, such as the share of the labels: lines with intervals.

Where a study varies a key whose values are numbers, what it finds is a curve; what else it varies
(``--grid``) gives the lines, e.g. with and without pre-training. At every value each line is held
against the first one, seed by seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from . import paired, studies
from .canvas import GREY, STYLE, new_figure, save, shorten
from .recipe import literal

_WIDE = 10.0  # ratio of the largest to the smallest value from which on the axis is logarithmic


def numbers_of(values) -> list[float] | None:
    """Varied values as numbers; None where one is none, or all are the same."""
    found = [literal(value) for value in values]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in found):
        return None
    return [float(v) for v in found] if len(set(found)) > 1 else None


def curve(rows: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The lines of a study's rows; None where no varied key has numbers.

    Args:
        rows: each with "changes" {key: value}, "words" {key: what a report calls it}, and "scores"
            [seeds] where the variant did not fail.
        metric: what the scores are.

    Returns:
        {"key", "lines": [{"name", "points": [{"x", "mean", "low", "high", "difference",
        "difference_low", "difference_high"}]}], "verdicts": [sentences]}. Intervals are of 95%; the
        differences, of all lines but the first, are to the first line's score at that x. Of several
        keys with numbers the one with the most values is x.
    """
    numbers = {}
    for key in rows[0]["changes"] if rows else ():
        if found := numbers_of([row["changes"][key] for row in rows]):
            numbers[key] = found
    if not numbers:
        return None
    key = max(numbers, key=lambda one: len(set(numbers[one])))
    scores: dict[str, dict[float, list[float]]] = {}
    for row, x in zip(rows, numbers[key], strict=True):
        name = ", ".join(label for k, label in row["words"].items() if k != key)
        if "scores" in row:
            scores.setdefault(name, {})[x] = row["scores"]
    unit, scale = studies.unit_of(metric)
    better, short = studies.higher_is_better(metric), _short(key)
    base = next(iter(scores.values()), {})
    lines, verdicts = [], []
    for name, of_line in scores.items():
        points = []
        for x, values in sorted(of_line.items()):
            mean = paired.mean_interval(values)
            point = {"x": x, "mean": mean.mean, "low": mean.low, "high": mean.high}
            if of_line is not base and x in base:
                gap = paired.difference(values, base[x])
                point |= {"difference": gap.mean, "difference_low": gap.low,
                          "difference_high": gap.high}  # fmt: skip
                sentence = paired.verdict(name, gap, unit, better, scale)
                verdicts.append(f"{short} {x:g}: {sentence}")
            points.append(point)
        lines.append({"name": name, "points": points})
    return {"key": key, "lines": lines, "verdicts": verdicts}


def draw(found: dict[str, Any], metric: str, path: Path) -> None:
    """The lines of :func:`curve`, and beside them their differences from the first."""
    unit, scale = studies.unit_of(metric)
    lines = found["lines"]
    several = any("difference" in point for line in lines for point in line["points"])
    places = sorted({point["x"] for line in lines for point in line["points"]})
    wide = places[0] > 0 and places[-1] / places[0] >= _WIDE
    figure = new_figure(9.6 if several else 5.6, 4.0)
    with mpl.rc_context(STYLE):
        panels = figure.subplots(1, 1 + several, squeeze=False)[0]
        for number, line in enumerate(lines):
            colour = mpl.colormaps["tab10"](number % 10)
            _errors(panels[0], line["points"], ("mean", "low", "high"), scale, colour, line["name"])
            if several and number:
                keys = ("difference", "difference_low", "difference_high")
                _errors(panels[1], line["points"], keys, scale, colour, line["name"])
        percent = " in percent" if unit == "points" else ""
        lows = np.array([point["low"] for line in lines for point in line["points"]], float)
        of = "mean and 95% interval" if np.isfinite(lows).any() else "one seed"
        panels[0].set_ylabel(f"{metric.replace('_', ' ')}{percent}, {of}")
        if lines[0]["name"]:
            panels[0].legend()
        if several:
            panels[1].axhline(0, color=GREY, linewidth=1)
            panels[1].set_ylabel(
                f"difference from {shorten(lines[0]['name'], 24)}{f', {unit}' if unit else ''}"
            )
        for axes in panels:
            axes.set_xscale("log" if wide else "linear")
            axes.set_xticks(places, [f"{x:g}" for x in places])
            axes.minorticks_off()
            axes.set_xlabel(_short(found["key"]))
        save(figure, path)


def _errors(axes, points, keys, scale: float, colour, name: str) -> None:
    known = [point for point in points if keys[0] in point]
    x = [point["x"] for point in known]
    mean, low, high = (scale * np.array([point[key] for point in known], float) for key in keys)
    # With one seed there is no interval.
    reach = np.nan_to_num(np.abs([mean - low, high - mean]))
    axes.errorbar(x, mean, reach, color=colour, marker="o", markersize=4, capsize=3,
                  label=shorten(name, 40))  # fmt: skip


def _short(key: str) -> str:
    return key.replace("-", "_").rsplit(".", 1)[-1].replace("_", " ")
