"""What a forecast is worth: its metrics, the naive forecasts beside them, and their intervals.

Metrics are over all steps of all windows of a split, in the target's own units; of several targets
each has its own, named ``TARGET.METRIC``.

====================  ===========================================================================
``rmse``, ``mae``     root of the mean squared error; mean absolute error
``mase``              mae / mean |y(t) - y(t - season)| over the training rows: below 1 it is
                      better than repeating the season one step ahead (Hyndman, Koehler 2006)
``pinball``           mean pinball loss of the bounds of the 90% interval, as quantiles of 5% and
                      95%; for losses with such an interval
``coverage_90``       share of truths inside the 90% interval; should be 0.9
``nll``               -log density of the truth, in nats, mean over targets; for likelihoods
``rmse_NAIVE``, ...   the same of each naive forecast on the same windows
``skill``             1 - rmse / rmse of the best naive forecast: the share of the error it lacks
====================  ===========================================================================

A naive forecast repeats what was seen at the same time a season earlier. Which ones are shown
depends on the step: of parts of a day ``yesterday`` and ``last_week``, of days ``last_week``, of
weeks and months ``last_year``, else ``last_value``; ``data.season`` puts ``last_season`` in their
place. The first is the season of ``mase``.

The intervals come from a circular block bootstrap (Politis, Romano 1992). Windows that begin one
step apart share all but one step of their horizons, so that single windows, resampled, would claim
far more evidence than there is; here blocks of two horizons of consecutive windows are. A split of
fewer than two blocks has no interval: its bounds are NaN.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from .data.series import Step, step_of

LEVEL = 0.95
RESAMPLES = 1_000
_DAY = 86_400
_MONTHS = 12
_SCORED = ("prediction", "low_90", "high_90")


def in_own_units(answers: dict[str, Any], target_scale: Any) -> dict[str, Any]:
    """What a loss reads from outputs, unscaled, with an axis of targets also for a single one.

    Args:
        answers: NumPy or TensorFlow; "prediction", "stddev", "low_90", "high_90" [n,h] ([n,h,m] of
            m > 1 targets), "quantiles" [n,h,q] ([n,h,m,q]), "nll" [n,h]; any of them.
        target_scale: means and standard deviations of the targets, each [m].

    Returns:
        The same in the targets' own units, [n,h,m] and [n,h,m,q]; "nll" stays [n,h].
    """
    mean, deviation = np.asarray(target_scale, np.float32)
    found = {}
    for name, value in answers.items():
        if name == "nll":  # the density of y is that of the scaled target, over the deviation
            found[name] = value + np.log(deviation).mean()
            continue
        last = name == "quantiles"  # the axis of targets is the last but one
        if len(mean) == 1:
            value = value[..., None, :] if last else value[..., None]
        by, to = (deviation[:, None], mean[:, None]) if last else (deviation, mean)
        found[name] = value * by if name == "stddev" else value * by + to
    return found


def answers(outputs: dict[str, Any], target_scale: Any) -> dict[str, Any]:
    """What a model answers of ``loss.predict(outputs)``: "forecast" [n,h,m] and, where the loss has
    them, "stddev" [n,h,m] or "quantiles" [n,h,m,q], in the targets' own units."""
    found = in_own_units(outputs, target_scale)
    return {"forecast": found.pop("prediction"), **found}


def seasons(step: Step, season: int | None = None) -> dict[str, int]:
    """The naive forecasts that are shown -> their seasons, in steps; see the module's text."""
    if season is not None:
        return {"last_season": season}
    if step.months:
        year, rest = divmod(_MONTHS, step.months)
        return {"last_value": 1} if rest or year < 2 else {"last_year": year}
    if step.seconds < _DAY and _DAY % step.seconds == 0:
        day = _DAY // step.seconds
        return {"yesterday": day, "last_week": 7 * day}
    return {_DAY: {"last_week": 7}, 7 * _DAY: {"last_year": 52}}.get(
        step.seconds, {"last_value": 1}
    )


def naive(dataset, split: str) -> dict[str, np.ndarray]:
    """The naive forecasts of a split's windows, each [n,h,m]; those that have a season to repeat.

    Args:
        dataset: of a series, as :func:`epochal.pipelines.data.load` gives it.
        split: one of ``dataset.sizes``.
    """
    found = {n: dataset.seasonal(split, size) for n, size in seasons_of(dataset).items()}
    return {name: value for name, value in found.items() if value is not None}


def seasons_of(dataset) -> dict[str, int]:
    """:func:`seasons` of a dataset and its recipe."""
    return seasons(step_of(dataset.about), dataset.season)


def measure(dataset, split: str, predictions: dict[str, np.ndarray]) -> dict[str, Any]:
    """Metrics of a split's forecasts with their intervals, and errors step by step.

    Args:
        dataset: of a series.
        split: one of ``dataset.sizes``.
        predictions: as :func:`in_own_units` gives them.

    Returns:
        {"split", "examples" (windows), "metrics": {name: {"value", "low", "high"}}, "block"
        (windows resampled together), "by_horizon": {name: [h]}}, the k-th number being that of the
        k-th step of the horizon.
    """
    truth, repeated = dataset.targets(split), naive(dataset, split)
    seasonal = dataset.seasonal_error(next(iter(seasons_of(dataset).values())))
    n, horizon, _ = truth.shape
    block = 2 * horizon
    metrics: dict[str, dict[str, float]] = {}
    by_horizon: dict[str, np.ndarray] = {}
    for place, target in enumerate(dataset.target_names):
        prefix = f"{target}." if len(dataset.target_names) > 1 else ""
        losses = _with_naive(*_of_target(place, truth, predictions, repeated))
        finish = partial(summarise, seasonal_error=seasonal[place])
        of_windows = {name: value.mean(axis=1) for name, value in losses.items()}
        of_steps = {name: value.mean(axis=0) for name, value in losses.items()}
        metrics |= {prefix + k: v for k, v in intervals(of_windows, finish, block).items()}
        by_horizon |= {prefix + k: v for k, v in finish(of_steps).items()}
    if "nll" in predictions:
        metrics |= intervals({"nll": predictions["nll"].mean(axis=1)}, dict, block)
    about = {"split": split, "examples": n, "block": block}
    return about | {"metrics": metrics, "by_horizon": by_horizon}


def _of_target(place: int, truth, predictions, repeated):
    """The truth [n,h], the model's answers and the naive forecasts of one target, in float64."""

    def cut(arrays, names):
        return {name: arrays[name][:, :, place].astype(np.float64) for name in names}

    scored = [name for name in _SCORED if name in predictions]
    return truth[:, :, place].astype(np.float64), cut(predictions, scored), cut(repeated, repeated)


def _with_naive(truth, answers, repeated) -> dict[str, np.ndarray]:
    """The losses of the model, and of each naive forecast with its name behind."""
    losses = losses_of(truth, answers)
    for name, value in repeated.items():
        of_naive = losses_of(truth, {"prediction": value})
        losses |= {f"{loss}_{name}": each for loss, each in of_naive.items()}
    return losses


def losses_of(truth: np.ndarray, predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What each step of each window costs, [n,h]: "square", "size" and, with bounds, "pinball" (the
    mean of both bounds') and "inside"."""
    error = predictions["prediction"] - truth
    found = {"square": np.square(error), "size": np.abs(error)}
    if "low_90" in predictions:
        low, high = truth - predictions["low_90"], truth - predictions["high_90"]
        pinball = np.maximum(0.05 * low, -0.95 * low) + np.maximum(0.95 * high, -0.05 * high)
        found |= {"pinball": pinball / 2, "inside": ((low >= 0) & (high <= 0)).astype(float)}
    return found


def summarise(means: dict[str, np.ndarray], seasonal_error: float) -> dict[str, np.ndarray]:
    """Mean losses of :func:`losses_of`, naive ones with their names behind -> metrics."""
    found = {"rmse": np.sqrt(means["square"]), "mae": means["size"]}
    with np.errstate(divide="ignore", invalid="ignore"):
        found["mase"] = means["size"] / seasonal_error
    for own, name in (("pinball", "pinball"), ("inside", "coverage_90")):
        if own in means:
            found[name] = means[own]
    names = [name.removeprefix("square_") for name in means if name.startswith("square_")]
    for name in names:
        found[f"rmse_{name}"] = np.sqrt(means[f"square_{name}"])
        found[f"mae_{name}"] = means[f"size_{name}"]
    if names:
        best = np.min([found[f"rmse_{name}"] for name in names], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found["skill"] = 1 - found["rmse"] / best
    return found


def intervals(values: dict[str, np.ndarray], metrics, block: int, seed: int = 0) -> dict:
    """Metrics of means over consecutive windows, with 95% intervals by a block bootstrap.

    Args:
        values: each float [n], one a window, in the order of time.
        metrics: {name: means [...]} of these -> {metric: [...]}.
        block: windows that are resampled together.
        seed: of the resamples.

    Returns:
        {metric: {"value", "low", "high"}}; the bounds are NaN where n is less than two blocks.
    """
    n = len(next(iter(values.values())))
    found = metrics({name: value.mean() for name, value in values.items()})
    result = {k: {"value": float(v), "low": math.nan, "high": math.nan} for k, v in found.items()}
    if n < 2 * block:
        return result
    # A block may go over the end to the beginning, so that every window is equally likely.
    draw = np.random.default_rng(seed).integers(0, n, [RESAMPLES, math.ceil(n / block)])
    means = {}
    for name, value in values.items():
        total = np.concatenate([[0.0], np.concatenate([value, value[: block - 1]]).cumsum()])
        means[name] = ((total[block:] - total[:-block]) / block)[draw].mean(axis=1)
    tails = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    for name, resampled in metrics(means).items():
        low, high = np.percentile(resampled, tails)
        result[name] |= {"low": float(low), "high": float(high)}
    return result
