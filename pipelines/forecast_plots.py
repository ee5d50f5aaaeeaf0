"""The pictures of forecasts: some of them beside what happened, and their errors step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import MaxNLocator

from .canvas import BLUE, GREY, ORANGE, STYLE, new_figure, save, shorten
from .data.series import step_of

# Of all windows, in the order of their errors, those a tenth from either end and the middle one.
_SHOWN = (("a good forecast", 0.1), ("a middling one", 0.5), ("a bad one", 0.9))
_MOST_TARGETS = 3
_DRAWN = ("prediction", "low_90", "high_90")
_TAIL = 2  # horizons of history that are shown


def draw(dataset, result: dict[str, Any], predictions: dict[str, np.ndarray], directory: Path):
    """Writes forecasts.png and error_by_horizon.png of a split.

    Args:
        dataset: of a series.
        result, predictions: as :func:`.forecasts.measure` gives and takes them.
        directory: where the pictures go.
    """
    split, about = result["split"], dataset.about
    names = dataset.target_names[:_MOST_TARGETS]
    units = [about["columns"][name].get("unit", "") for name in names]
    labels = [f"{name}, {unit}" if unit else name for name, unit in zip(names, units, strict=True)]
    truth, origins = dataset.targets(split), dataset.origins(split)
    history, horizon = dataset.input_shape[0], truth.shape[1]
    tail = min(history, _TAIL * horizon)
    panels = []
    for place, (name, label) in enumerate(zip(names, labels, strict=True)):
        answers = {k: v[..., place] for k, v in predictions.items() if k in _DRAWN}
        error = np.sqrt(np.square(answers["prediction"] - truth[..., place]).mean(axis=1))
        order = np.argsort(error, kind="stable")
        column = dataset.preprocess.inputs["columns"].index(name)
        for what, share in _SHOWN:
            i = order[round(share * (len(order) - 1))]
            times = dataset.times[origins[i] - tail : origins[i] + horizon]
            panels.append(
                {
                    "title": f"{what}: RMSE {error[i]:.3g}",
                    "label": label,
                    "times": times,
                    "past": dataset.raw(split, [i])["history"][0, -tail:, column],
                    "truth": truth[i, :, place],
                }
                | {key: value[i] for key, value in answers.items()}
            )
    forecasts(panels, Path(directory) / "forecasts.png", across=len(_SHOWN))
    prefixes = [f"{name}." if len(dataset.target_names) > 1 else "" for name in names]
    errors = [
        {
            key.removeprefix(f"{prefix}rmse").removeprefix("_") or "model": values
            for key, values in result["by_horizon"].items()
            if key.startswith(f"{prefix}rmse")
        }
        for prefix in prefixes
    ]
    error_by_horizon(errors, labels, str(step_of(about)), Path(directory) / "error_by_horizon.png")


def forecasts(panels: list[dict[str, Any]], path: Path | str, *, across: int) -> None:
    """Panels of forecasts: history, truth, forecast and, where there is one, the 90% interval.

    Args:
        panels: each with "title", "label" (what is forecast, with its unit), "times"
            (datetime64 [p + h]), "past" [p], "truth" [h], "prediction" [h] and optional "low_90"
            and "high_90" [h].
        path: the PNG to write.
        across: panels in a row, which share their scale.
    """
    down = -(-len(panels) // across)
    with mpl.rc_context(STYLE):
        figure = new_figure(4.7 * across, 3.2 * down + 0.4)
        grid = figure.subplots(down, across, squeeze=False, sharey="row")
        for axes, panel in zip(grid.flat, panels, strict=True):
            ahead = panel["times"][len(panel["past"]) :]
            # The truth begins where the history ends: one line, with no gap between.
            axes.plot(panel["times"], np.concatenate([panel["past"], panel["truth"]]),
                      color=GREY, linewidth=1.3, zorder=3, label="what happened")  # fmt: skip
            if "low_90" in panel:
                # A horizon of one step is a point, and its interval a bar.
                draw_band = axes.fill_between if len(ahead) > 1 else axes.vlines
                draw_band(ahead, panel["low_90"], panel["high_90"], color=BLUE, alpha=0.2,
                          linewidth=0 if len(ahead) > 1 else 6, label="90% interval")  # fmt: skip
            dot = "o" if len(ahead) == 1 else None
            axes.plot(
                ahead, panel["prediction"], color=BLUE, linewidth=2.2, marker=dot, label="forecast"
            )
            axes.axvline(ahead[0], color=GREY, linestyle=(0, (2, 3)), linewidth=1)
            locator = AutoDateLocator(minticks=3, maxticks=7)
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
            axes.set_title(panel["title"])
        for row in range(down):
            grid[row, 0].set_ylabel(shorten(panels[row * across]["label"], 30))
        handles, names = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
        save(figure, path)


def error_by_horizon(
    errors: list[dict[str, list[float]]], labels: list[str], step: str, path: Path | str
) -> None:
    """RMSE of each step of the horizon, the model's beside those of naive forecasts.

    Args:
        errors: for each target "model" and the naive forecasts' names -> RMSE [h].
        labels: what is forecast, with its unit; one for each target.
        step: how long a step is, e.g. "30 minutes".
        path: the PNG to write.
    """
    looks = [(BLUE, "-"), (ORANGE, (0, (5, 2))), (GREY, (0, (2, 2)))]
    with mpl.rc_context(STYLE):
        figure = new_figure(5.6 * len(errors), 3.8)
        for axes, of_target, label in zip(
            figure.subplots(1, len(errors), squeeze=False)[0], errors, labels, strict=True
        ):
            for (name, values), (colour, line) in zip(of_target.items(), looks, strict=False):
                dot = "o" if len(values) == 1 else None
                axes.plot(np.arange(1, len(values) + 1), values, color=colour, linestyle=line,
                          marker=dot, label=name.replace("_", " "))  # fmt: skip
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.set_xlabel(f"steps ahead, of {step}")
            axes.set_ylabel(shorten(f"RMSE of {label}", 34))
            axes.set_title("error by distance")
            axes.legend()
        save(figure, path)
