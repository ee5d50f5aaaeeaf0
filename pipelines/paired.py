"""Differences between paired scores, with intervals that hold for few pairs, and words for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
_FEW = 20  # pairs below which the bootstrap covers too little, and Student's t is used


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its 95% interval; NaN bounds for a single pair."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return bool(self.low > 0 or self.high < 0)


def difference(scores: np.ndarray, base: np.ndarray) -> Difference:
    """How far ``scores`` lie above ``base``, pair by pair.

    Below 20 pairs the interval is Student's, mean ± t s / sqrt(n), which is exact for normal
    differences; from 20 on the bias-corrected bootstrap (Efron 1987), which assumes no shape.

    Args:
        scores: [n], one for each seed or fold.
        base: [n], the same seeds or folds in the same order.

    Raises:
        ValueError: unequal lengths, no pair.
    """
    scores, base = (np.asarray(values, np.float64) for values in (scores, base))
    if scores.shape != base.shape or scores.ndim != 1 or not len(scores):
        raise ValueError(f"Pairs need equal lengths; got {scores.shape} and {base.shape}.")
    gaps = scores - base
    return mean_interval(gaps)


def mean_interval(values: np.ndarray) -> Difference:
    """The mean of values [n] and its 95% interval, as in :func:`difference`."""
    values = np.asarray(values, np.float64)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Difference(mean, np.nan, np.nan, n)
    if np.ptp(values) == 0:
        return Difference(mean, mean, mean, n)
    if n < _FEW:
        low, high = stats.t.interval(LEVEL, n - 1, loc=mean, scale=stats.sem(values))
    else:
        found = stats.bootstrap(
            (values,), np.mean, confidence_level=LEVEL, method="BCa", rng=np.random.default_rng(0)
        )
        low, high = found.confidence_interval
    return Difference(mean, float(low), float(high), n)


def verdict(name: str, found: Difference, unit: str, higher_is_better: bool, scale: float) -> str:
    """One sentence that claims no more than the interval carries.

    Args:
        name: of the variant.
        found: its difference from the base.
        unit: of the scaled difference, e.g. "points" of percent, or "" for none.
        higher_is_better: of the metric.
        scale: what the difference is multiplied by before it is written.
    """
    mean, low, high = (scale * value for value in (found.mean, found.low, found.high))
    numbers = f"{mean:+.3g}{' ' + unit if unit else ''}"
    if found.pairs < 2:
        return f"{name}: {numbers} with one seed; no interval, no claim"
    interval = f"{numbers} [{low:+.3g}, {high:+.3g}]"
    if not found.is_clear:
        return f"{name}: {interval}, no difference shown with {found.pairs} seeds"
    return f"{name}: {interval}, {'better' if (mean > 0) == higher_is_better else 'worse'}"
