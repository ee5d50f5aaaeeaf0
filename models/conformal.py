"""Intervals that hold what they promise: conformalized quantile regression.

Romano, Patterson, Candès: Conformalized quantile regression (2019). A network's 5% and 95%
quantiles are what it learnt on training data, and of data that it has not seen they usually hold
less than 90%. Examples kept apart say how far the truth lies outside of them; both are then moved
by as much as it takes for the promised share of those examples to lie inside.

With exchangeable examples an interval of level 1 - a so widened holds at least 1 - a of new truths,
whatever the network and the distribution (theorem 1). Series change with time and their windows
overlap, so that the guarantee is not theirs; the correction still is the one that would have been
right on the latest data before the test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops


def needed(level: float) -> int:
    """The least number of examples from which an interval of a level can be widened."""
    # The tolerance: 0.95 - 0.05 is not 0.9 in binary.
    return math.ceil(level / (1 - level) - 1e-9)


def widening(low: np.ndarray, high: np.ndarray, truth: np.ndarray, level: float) -> np.ndarray:
    """How far the bounds of intervals have to move outwards, in the units of the truth.

    The ceil((n + 1) level)-th smallest of max(low - truth, truth - high) over n examples (Romano
    et al., eq. 6 and 8). Negative where the intervals are wider than they have to be.

    Args:
        low, high, truth: each [n, ...].
        level: share of truths that shall lie inside, in (0, 1).

    Returns:
        [...], one number for each place after the first axis.

    Raises:
        ValueError: n is below :func:`needed`.
    """
    n = len(truth)
    rank = math.ceil((n + 1) * level - 1e-9)
    if rank > n:
        raise ValueError(
            f"An interval of level {level:g} is widened by {needed(level)} examples or more; "
            f"got {n}."
        )
    return np.sort(np.maximum(low - truth, truth - high), axis=0)[rank - 1]


def pairs(quantiles: Sequence[float]) -> list[tuple[int, int, float]]:
    """Quantiles in increasing order -> (place of a, place of 1 - a, level 1 - 2a) for a < 1/2."""
    found = []
    for i, low in enumerate(quantiles):
        for j in range(i + 1, len(quantiles)):
            if abs(low + quantiles[j] - 1) < 1e-6:
                found.append((i, j, quantiles[j] - low))
    return found


@keras.saving.register_keras_serializable("epochal")
class ShiftQuantiles(keras.layers.Layer):
    """Sorts the quantiles that a network answers, and moves each by a number of its own.

    Outputs [n, h, m q], q quantiles of each of m targets in each of h steps, to the same; in
    float32. ``shift`` [h, m q] is a weight that is not trained: it starts at 0 and is assigned.
    A quantile that is moved inwards stops at its neighbour, so that the median, which is the
    forecast, stays what it was.

    Args:
        quantiles: q numbers in increasing order, those of each target.
    """

    def __init__(self, quantiles: Sequence[float], **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.quantiles = [float(tau) for tau in quantiles]

    def build(self, input_shape):
        self.shift = self.add_weight(
            shape=tuple(input_shape[1:]), initializer="zeros", trainable=False, name="shift"
        )

    def call(self, inputs):
        shape, q = ops.shape(inputs), len(self.quantiles)
        each = (*shape[:-1], shape[-1] // q, q)
        moved = ops.sort(ops.reshape(inputs, each), axis=-1)
        moved += ops.reshape(self.shift, each[1:])
        values = [moved[..., i] for i in range(q)]
        below = sum(tau <= 0.5 for tau in self.quantiles)  # the last of these stays
        above = sum(tau < 0.5 for tau in self.quantiles)  # and the first from here on
        for i in range(below - 2, -1, -1):
            values[i] = ops.minimum(values[i], values[i + 1])
        for i in range(above + 1, q):
            values[i] = ops.maximum(values[i], values[i - 1])
        return ops.reshape(ops.stack(values, axis=-1), shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def multiply_adds(self, input_shapes, output_shape) -> int:
        """None: it sorts and adds."""
        return 0

    def get_config(self):
        return {**super().get_config(), "quantiles": self.quantiles}
