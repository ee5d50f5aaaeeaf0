"""Numbers that are drawn in proportion to their size, by a tree of sums (Schaul et al. 2016)."""

from __future__ import annotations

import numpy as np


class Priorities:
    """Non-negative numbers with their sums in a binary tree; all methods work on arrays.

    A sum is always that of its two parts, never the old one plus a difference: so a tree built
    anew from the leaves is, bit for bit, the tree that grew.

    Args:
        size: how many numbers; they start as 0.
    """

    def __init__(self, size: int):
        self._size = size
        self._depth = max(1, int(size - 1).bit_length())
        self._base = 1 << self._depth
        self._sums = np.zeros(2 * self._base)  # node i has the parts 2 i and 2 i + 1; 1 is the root

    @property
    def leaves(self) -> np.ndarray:
        """float64 [size], a view."""
        return self._sums[self._base : self._base + self._size]

    @property
    def total(self) -> float:
        return float(self._sums[1])

    def set(self, leaves: np.ndarray, values: np.ndarray) -> None:
        """Sets numbers at positions [m], which are all different."""
        if not len(leaves):
            return
        nodes = np.asarray(leaves, np.int64) + self._base
        self._sums[nodes] = values
        for _ in range(self._depth):
            nodes = np.unique(nodes >> 1)
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def find(self, shares: np.ndarray) -> np.ndarray:
        """Positions [m] where the running sum passes shares [m], in [0, 1), of the total."""
        rest = np.asarray(shares, np.float64) * self.total
        nodes = np.ones(len(rest), np.int64)
        for _ in range(self._depth):
            left, right = self._sums[2 * nodes], self._sums[2 * nodes + 1]
            # Rounding may point behind the last number: never at a part that is 0.
            goes_right = ((rest >= left) & (right > 0)) | (left == 0)
            rest = np.where(goes_right, rest - left, rest)
            nodes = 2 * nodes + goes_right
        return nodes - self._base
