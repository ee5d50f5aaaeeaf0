"""How far generated examples are from real ones, by features of both. NumPy, float64.

The distances depend on the features: compare only values with the same features and numbers.
"""

from __future__ import annotations

import numpy as np


def frechet(real: np.ndarray, made: np.ndarray) -> float:
    """Frechet distance of two Gaussians with the features' means and covariances.

    |m1 - m2|^2 + trace(S1 + S2 - 2 (S1 S2)^(1/2)), Heusel et al. 2017, equation 6; S with n - 1 in
    the denominator. Falls with more examples: it is biased upwards where these are few.

    Args:
        real, made: [n, d] and [m, d], two rows or more each.
    """
    real, made = real.astype(np.float64), made.astype(np.float64)
    gap = np.square(real.mean(axis=0) - made.mean(axis=0)).sum()
    one, two = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (real, made))
    # The trace of the root of S1 S2 is that of the symmetric S1^(1/2) S2 S1^(1/2).
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    both = np.linalg.eigvalsh(root @ two @ root)
    return float(gap + np.trace(one) + np.trace(two) - 2 * np.sqrt(np.clip(both, 0, None)).sum())


def kernel_distance(real: np.ndarray, made: np.ndarray, block: int = 1_000) -> float:
    """Squared maximum mean discrepancy with the kernel (x . y / d + 1)^3, unbiased.

    Binkowski et al. 2018 (KID), equation 4: the mean over blocks of so many rows of each. It can
    fall below 0.
    """
    real, made = real.astype(np.float64), made.astype(np.float64)
    size = min(block, len(real), len(made))
    found = []
    for start in range(0, min(len(real), len(made)) - size + 1, size):
        x, y = real[start : start + size], made[start : start + size]
        within = sum((_kernel(v, v).sum() - np.trace(_kernel(v, v))) for v in (x, y))
        found.append(within / (size * (size - 1)) - 2 * _kernel(x, y).mean())
    return float(np.mean(found))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def diversity(real: np.ndarray, made: np.ndarray, rows: int = 256) -> float:
    """Mean distance between generated examples over that between real ones; 0: all are the same."""

    def spread(values: np.ndarray) -> float:
        flat = values[:rows].reshape(min(rows, len(values)), -1).astype(np.float64)
        square = np.square(flat).sum(axis=1)
        gaps = square[:, None] + square - 2 * flat @ flat.T
        return float(np.sqrt(np.clip(gaps, 0, None)).mean())

    return spread(made) / max(spread(real), 1e-12)


def nearest_rows(queries: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Positions [n, count] of the nearest of ``rows`` [m, ...] by Euclidean distance."""
    flat = rows.reshape(len(rows), -1).astype(np.float32)
    asked = queries.reshape(len(queries), -1).astype(np.float32)
    gaps = np.square(flat).sum(axis=1) - 2 * asked @ flat.T
    return np.argsort(gaps, axis=1, kind="stable")[:, :count]
