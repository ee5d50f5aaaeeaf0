"""The model behind Bayesian optimisation: a Gaussian process of the scores, and what to try next.

The process (Rasmussen and Williams 2006, chapter 2) has a Matern 5/2 kernel and a noise term,
fitted by maximum likelihood. Its length is one for all coordinates: with a few dozen trials,
lengths of their own are fitted to chance (Hartmann's function of six variables after 25 trials:
-2.2 with them, -2.7 without, means of 6 seeds). The next point maximises the expected improvement
(Jones, Schonlau and Welch 1998, equation 15) over random candidates and refinements of the best.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel


class Surrogate:
    """A Gaussian process of losses (lower is better) over encoded points.

    Args:
        x: [n, columns], on [0, 1].
        y: [n], finite.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.shape = normal_scores(y)
        self.y = self.shape(y)
        kernel = ConstantKernel(1.0, (0.05, 20.0)) * Matern(0.5, (0.05, 10.0), nu=2.5)
        kernel += WhiteKernel(1e-3, (1e-6, 0.3))
        self.process = GaussianProcessRegressor(kernel)
        with warnings.catch_warnings():  # a length at its bound is an answer, not a fault
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.process.fit(x, self.y)
        # The noise is in the scores, not in what is looked for.
        self.noise = self.process.kernel_.k2.noise_level

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [m] of the noiseless, transformed loss at points x."""
        mean, deviation = self.process.predict(x, return_std=True)
        return mean, np.sqrt(np.maximum(deviation**2 - self.noise, 1e-12))

    def expected_improvement(self, x: np.ndarray) -> np.ndarray:
        """By how much a point is expected to fall below the best mean so far: [m]."""
        mean, deviation = self.predict(x)
        best = self.process.predict(self.process.X_train_).min()
        gap = (best - mean) / deviation
        return deviation * (gap * stats.norm.cdf(gap) + stats.norm.pdf(gap))


def normal_scores(y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What makes losses [n] more alike to a normal sample, with mean 0 and variance 1: a rising
    function of losses.

    The Yeo-Johnson transformation draws in the long tail that nearly diverged trainings leave,
    which would otherwise flatten everything else.
    """
    y = np.asarray(y, np.float64)
    middle, spread = np.median(y), np.subtract(*np.percentile(y, [75, 25]))
    spread = spread or y.std()
    if len(y) < 3 or not y.std() > 1e-12 * max(1.0, np.abs(y).max()):
        return lambda losses: np.asarray(losses, np.float64) - y.mean()

    def clipped(losses: np.ndarray) -> np.ndarray:
        # Larger outliers would drive the transformation itself.
        return np.clip((np.asarray(losses, np.float64) - middle) / spread, None, 10.0)

    power = stats.yeojohnson_normmax(clipped(y))
    shaped = stats.yeojohnson(clipped(y), power)
    return lambda losses: (stats.yeojohnson(clipped(losses), power) - shaped.mean()) / shaped.std()
