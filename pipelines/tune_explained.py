"""Bayesian optimisation in one dimension, step by step, as a picture."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import keras_tuner
import matplotlib as mpl
import numpy as np

from .canvas import BLUE, GREY, ORANGE, STYLE, new_figure, save
from .oracle import Oracle
from .space import Dimension, Space


def draw_steps(
    function: Callable[[float], float],
    low: float,
    high: float,
    path: Path | str,
    *,
    steps: int = 4,
    seed: int = 0,
) -> list[float]:
    """Minimises a function as ``tune`` does and draws what each step knows and where it goes.

    Above: the function, the points tried, and the Gaussian process with twice its standard
    deviation, all as the process sees them (:func:`.surrogate.normal_scores`). Below: the expected
    improvement, and the point that is tried next.

    Args:
        function: of one number; finite.
        low: lower end of the range.
        high: upper end.
        path: the PNG to write.
        steps: how many proposals of the process are drawn, after four that fill the range.
        seed: of the search.

    Returns:
        The points tried, in order.
    """
    space = Space([Dimension("x", "float", low, high)])
    objective = keras_tuner.Objective("loss", "min")
    grid = np.linspace(low, high, 400)
    truth = np.array([function(x) for x in grid])
    shares = ((grid - low) / (high - low))[:, None]
    figure = new_figure(3.1 * steps, 4.6)
    with mpl.rc_context(STYLE), tempfile.TemporaryDirectory() as folder:
        panels = figure.subplots(2, steps, sharex=True, sharey="row", height_ratios=[2.2, 1],
                                 squeeze=False)  # fmt: skip
        oracle = Oracle(space, "bayesian", objective, None, seed)
        oracle._set_project_dir(folder, "oracle")
        tried: list[float] = []
        for number in range(oracle.initial + steps):
            surrogate = oracle.surrogate()
            trial = oracle.create_trial("one")
            point = trial.hyperparameters.values["x"]
            if surrogate is not None:
                column = number - oracle.initial
                upper, lower = panels[:, column]
                mean, deviation = surrogate.predict(shares)
                upper.fill_between(grid, mean - 2 * deviation, mean + 2 * deviation, color=BLUE,
                                   alpha=0.18, linewidth=0)  # fmt: skip
                upper.plot(grid, mean, color=BLUE, label="Gaussian process")
                upper.plot(grid, surrogate.shape(truth), "--", color=GREY, linewidth=1.2,
                           label="the function")  # fmt: skip
                upper.plot(tried, surrogate.y, "o", color="black", markersize=5, label="tried")
                gain = surrogate.expected_improvement(shares)
                lower.fill_between(grid, gain / gain.max(), color=ORANGE, alpha=0.5, linewidth=0)
                for axes in (upper, lower):
                    axes.axvline(point, color=ORANGE, linewidth=1.2)
                upper.set_title(f"trial {number + 1}")
                lower.set(xlabel="x", ylim=(0, 1.1))
            tried.append(point)
            oracle.update_trial(trial.trial_id, {"loss": function(point)})
            trial.status = "COMPLETED"
            oracle.end_trial(trial)
        panels[0, 0].set_ylabel("loss, transformed")
        panels[1, 0].set_ylabel("expected improvement\nover its maximum")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
        save(figure, path)
    return tried
