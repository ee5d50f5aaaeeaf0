"""The network of :mod:`.dqn` in NumPy, for acting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


class Snapshot:
    """The values of :class:`.dqn.DQN` computed by NumPy.

    For the one or few observations of a step this is faster than a call into TensorFlow, and it
    can't be overtaken by training.
    """

    def __init__(self, options: dict[str, Any], weights: dict[str, list[np.ndarray]]):
        self._options, self._weights = options, weights
        self._pixels = len(options["input_shape"]) == 3

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """[n, *input_shape] -> action values float32 [n, A]."""
        x = observations.astype(np.float32)
        if self._pixels:
            x *= np.float32(1 / 255)
        for i, (_, _, stride) in enumerate(self._options["convolutions"], 1):
            x = _relu(_convolve(x, *self._weights[f"conv_{i}"], stride))
        x = x.reshape(len(x), -1)
        if not self._options["dueling"]:
            return self._stream(x, "", "values")
        advantage = self._stream(x, "advantage_", "advantages")
        return self._stream(x, "value_", "value") + (
            advantage - advantage.mean(axis=1, keepdims=True)
        )

    def _stream(self, x: np.ndarray, prefix: str, last: str) -> np.ndarray:
        for i in range(1, len(self._options["hidden"]) + 1):
            kernel, bias = self._weights[f"{prefix}hidden_{i}"]
            x = _relu(x @ kernel + bias)
        kernel, bias = self._weights[last]
        return x @ kernel + bias


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0, out=x)


def _convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """[n, h, w, c] -> [n, h', w', filters] without padding: one product of all windows."""
    height, width, _, filters = kernel.shape
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(1, 2))
    windows = windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
    flat = windows.reshape(math.prod(windows.shape[:3]), -1)
    return (flat @ kernel.reshape(-1, filters) + bias).reshape(*windows.shape[:3], filters)
