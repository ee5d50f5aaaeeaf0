"""Confidence intervals of a split's metrics.

Every metric comes with a 95% interval: the percentile bootstrap over the split's examples (Efron
1979), 1,000 seeded resamples that all metrics share. It says how far the value would move with
another draw of test examples; it does not contain the randomness of training. Resampling adds noise
to every bin of the calibration error and so raises it on average: its resamples are moved down by
that average before the percentiles are taken and, but for differences, cut off at 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap

LEVEL = 0.95
RESAMPLES = 1_000
_RAISED = ("calibration_error",)  # by resampling, on average
_CELLS = 2**21  # resampled indices held at a time: 16 MiB, and a few times that in metrics

Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]
"""From resampled positions [b, n] to {metric: [b]}, so that one bootstrap serves all metrics."""


def intervals(
    statistic: Statistic, n: int, seed: int = 0, *, differences: bool = False
) -> dict[str, dict[str, float]]:
    """Values of all metrics on n examples with their 95% percentile bootstrap intervals.

    Args:
        statistic: resampled positions int [b, n] -> {metric: [b]}.
        n: examples. A single example has no interval: its bounds are NaN.
        seed: of the resamples.
        differences: the values are those of two models subtracted, and may lie below 0.

    Returns:
        {metric: {"value", "low", "high"}}.
    """
    everything = np.arange(n)
    values = {name: float(v[0]) for name, v in statistic(everything[None]).items()}
    if n < 2:
        return {k: {"value": v, "low": np.nan, "high": np.nan} for k, v in values.items()}

    def stacked(index: np.ndarray, axis: int) -> np.ndarray:
        found = statistic(np.atleast_2d(index))
        table = np.stack([found[name] for name in values])
        return table if index.ndim > 1 else table[:, 0]

    with warnings.catch_warnings():
        # R2 of a resample of equal targets is NaN, and so are then its bounds: SciPy need not say.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (everything,),
            stacked,
            n_resamples=RESAMPLES,
            batch=max(1, min(RESAMPLES, _CELLS // n)),
            confidence_level=LEVEL,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(seed),
        )
    interval, averages = found.confidence_interval, found.bootstrap_distribution.mean(axis=-1)
    result = {}
    for name, low, high, average in zip(values, *interval, averages, strict=True):
        if name in _RAISED:
            floor = -np.inf if differences else 0.0
            low, high = (max(floor, bound - average + values[name]) for bound in (low, high))
        result[name] = {"value": values[name], "low": float(low), "high": float(high)}
    return result
