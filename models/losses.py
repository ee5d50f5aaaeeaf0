"""Element 3, the loss: what a network is told to make small.

A loss turns a prediction and the truth into one number for each example. Every class here is an
ordinary ``keras.losses.Loss``: it goes into ``compile``, takes sample weights, is saved with the
model, and is computed in float32 also where the network runs in bfloat16 or float16. Beyond Keras
each one knows its ``task``, how wide the network's output must be (``num_outputs``) and how raw
outputs become an answer (``predict``; likelihoods and quantiles also ``interval``).

======================  ==========================================================  ==============
name                    per example, e = f - y                                      outputs/target
======================  ==========================================================  ==============
mse                     e²; one outlier of 100 weighs as much as 10,000 errors of 1  f
mae                     |e|; the fit goes to the median, outliers pull no harder     f
mare                    |e| / max(|y|, floor)                                        f
huber                   e²/2 up to delta, then linear                                f
log-cosh                log cosh e, a smooth Huber                                   f
quantile                pinball loss at each tau                                     one a quantile
cross-entropy           -log softmax(z)[y]                                           c logits
binary-cross-entropy    the same for two classes                                     1 logit
focal                   cross-entropy times (1 - p)^gamma                            c logits
zero-one                1 if the class is wrong (no gradient; for voting models)     c shares
gaussian, laplace       -log density                                                 centre, scale
poisson                 -log probability of a count                                  log rate
categorical             -log probability of a class                                  c logits
gaussian-mixture        -log density of K Gaussians                                  3 K
======================  ==========================================================  ==============

The rows from gaussian on, and cross-entropy, are defined in :mod:`.likelihoods`. Its text says what
"MLE" (maximum likelihood) is, and why minimising MSE, MAE or cross-entropy is a case of it.

Shapes. Regression: targets [n] or [n, m] against outputs [n, m·p], p outputs a target, those of a
target side by side; [n] and [n, 1] never broadcast to [n, n]. The loss of an example is the mean
over its m targets. Classification: targets are ids [n] or [n, 1], or soft labels [n, c], against
logits [n, c]. Further leading axes (time, say) are kept: [n, t, c] gives losses [n, t].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from .likelihoods import (
    CategoricalNLL,
    CrossEntropy,
    GaussianMixtureNLL,
    GaussianNLL,
    LaplaceNLL,
    PoissonNLL,
)
from .loss_base import (
    ClassificationLoss,
    RegressionLoss,
    TaskLoss,
    Tensor,
    check_level,
    check_number,
    check_smoothing,
    class_labels,
    drop_single,
    match_targets,
    second_of_two,
)

__all__ = [
    "BinaryCrossEntropy",
    "CategoricalNLL",
    "CrossEntropy",
    "Focal",
    "GaussianMixtureNLL",
    "GaussianNLL",
    "Huber",
    "LaplaceNLL",
    "LogCosh",
    "MeanAbsoluteError",
    "MeanAbsoluteRelativeError",
    "MeanSquaredError",
    "PoissonNLL",
    "Quantile",
    "TaskLoss",
    "ZeroOne",
]

_register = keras.saving.register_keras_serializable("epochal")


# ------------------------------------------------------------------------------------ regression


@_register
class MeanSquaredError(RegressionLoss):
    """(f - y)²: maximum likelihood under Gaussian noise of fixed variance; fits the mean."""

    default_name = "mean_squared_error"

    def _of_error(self, error, y):
        return ops.square(error)


@_register
class MeanAbsoluteError(RegressionLoss):
    """|f - y|: maximum likelihood under Laplace noise of fixed scale; fits the median."""

    default_name = "mean_absolute_error"

    def _of_error(self, error, y):
        return ops.abs(error)


@_register
class MeanAbsoluteRelativeError(RegressionLoss):
    """MARE, |f - y| / max(|y|, floor): 0.1 is an error of 10% of the target.

    At y = 0 a relative error has no meaning; here the error of every target with |y| < `floor` is
    measured in units of `floor`, so a zero target costs |f| / floor: finite, and continuous in y.
    Relative errors depend on where zero is: train on targets that are not standardised.

    Args:
        floor: in the target's units, above 0: the smallest magnitude whose own size matters.
    """

    default_name = "mean_absolute_relative_error"
    _options = ("floor",)

    def __init__(self, floor: float = 1e-3, **keras_options: Any):
        super().__init__(**keras_options)
        self.floor = check_number(self, "floor", floor, 0.0)

    def _of_error(self, error, y):
        return ops.abs(error) / ops.maximum(ops.abs(y), self.floor)


@_register
class Huber(RegressionLoss):
    """e²/2 where |e| <= delta, else delta (|e| - delta/2): squares for errors, not for outliers.

    Its gradient is e clipped to ±delta. Source: Huber 1964. Keras has the same convention.

    Args:
        delta: in the target's units, above 0.
    """

    default_name = "huber"
    _options = ("delta",)

    def __init__(self, delta: float = 1.0, **keras_options: Any):
        super().__init__(**keras_options)
        self.delta = check_number(self, "delta", delta, 0.0)

    def _of_error(self, error, y):
        size = ops.abs(error)
        inside = ops.minimum(size, self.delta)  # also keeps a huge error from being squared
        return 0.5 * ops.square(inside) + self.delta * (size - inside)


@_register
class LogCosh(RegressionLoss):
    """log cosh e: about e²/2 near zero and |e| - log 2 far away; smooth everywhere.

    cosh overflows float32 from |e| = 89 on and its logarithm cancels near 0; so |e| <= 1 takes
    log1p(2 sinh²(e/2)) and the rest |e| + log1p(exp(-2|e|)) - log 2.
    """

    default_name = "log_cosh"

    def _of_error(self, error, y):
        size = ops.abs(error)
        near = ops.log1p(2.0 * ops.square(ops.sinh(0.5 * ops.clip(error, -1.0, 1.0))))
        far = size + ops.softplus(-2.0 * size) - math.log(2.0)
        return ops.where(size <= 1.0, near, far)


@_register
class Quantile(RegressionLoss):
    """Pinball loss: max(tau (y - f), (tau - 1)(y - f)), the mean over several quantiles tau.

    An output that minimises it has a share tau of the targets below it. Source: Koenker & Bassett
    1978. The network has one output for each quantile, in increasing order of tau; in training they
    may cross. `predict` and `interval` sort them: the sorted ones never lose more than the unsorted
    (Chernozhukov et al. 2010), and a 5% quantile never lies above a 95% quantile.

    Args:
        quantiles: one number or several, increasing, each between 0 and 1.
    """

    default_name = "quantile"
    _options = ("quantiles",)

    def __init__(
        self,
        quantiles: float | Sequence[float] = (0.05, 0.5, 0.95),
        **keras_options: Any,
    ):
        super().__init__(**keras_options)
        several = quantiles if isinstance(quantiles, (list, tuple)) else [quantiles]
        self.quantiles = [check_number(self, "quantiles", tau, 0.0, 1.0) for tau in several]
        if not self.quantiles or sorted(set(self.quantiles)) != self.quantiles:
            raise ValueError(
                "Quantile: `quantiles` must be one or more numbers in increasing order, without "
                f"repetition; got {quantiles!r}."
            )
        self.outputs_per_target = len(self.quantiles)

    def _per_target(self, y, parameters):
        below = ops.expand_dims(y, -1) - parameters  # > 0 where the target is above the output
        tau = self._floats(self.quantiles)
        return ops.mean(ops.maximum(tau * below, (tau - 1.0) * below), axis=-1)

    def predict(self, outputs: Tensor) -> dict[str, Tensor]:
        """{"prediction": [n], "quantiles": [n, q]}, quantiles in increasing order.

        The prediction is the median, where 0.5 is not among the quantiles interpolated linearly
        between its neighbours (or the nearest quantile, where 0.5 lies outside all of them).
        """
        quantiles = ops.sort(self._parameters(outputs), axis=-1)
        weights = [np.interp(0.5, self.quantiles, row) for row in np.eye(len(self.quantiles))]
        middle = ops.sum(quantiles * self._floats(weights), axis=-1)
        if quantiles.shape[-2] == 1:
            quantiles = ops.squeeze(quantiles, -2)
        return {"prediction": drop_single(middle), "quantiles": quantiles}

    def interval(self, outputs: Tensor, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """(low, high), each [n], between the quantiles (1 - level)/2 and (1 + level)/2.

        Raises ValueError where these two are not among the trained quantiles.
        """
        level = check_level(self, level)
        wanted = (0.5 - 0.5 * level, 0.5 + 0.5 * level)
        found = [[i for i, q in enumerate(self.quantiles) if abs(q - w) < 1e-6] for w in wanted]
        if not all(found):
            raise ValueError(
                f"Quantile: an interval of level {level:g} needs the quantiles {wanted[0]:g} and "
                f"{wanted[1]:g}; trained were {self.quantiles}."
            )
        quantiles = ops.sort(self._parameters(outputs), axis=-1)
        low, high = (drop_single(quantiles[..., index]) for (index,) in found)
        return low, high


# --------------------------------------------------------------------------------- classification


@_register
class BinaryCrossEntropy(ClassificationLoss):
    """Cross-entropy of two classes from one logit z of class 1; P(1) = sigmoid(z).

    t log(1 + exp(-z)) + (1 - t) log(1 + exp(z)) with targets t: ids 0 and 1, or probabilities of
    class 1, shape [n] or [n, 1] against outputs [n, 1]; or soft labels [n, 2]. The loss of any
    other target (classes numbered 1 and 2, or -1 and 1) is NaN.

    Args:
        label_smoothing: from 0 to below 1: trains on (1 - s) t + s / 2.
    """

    default_name = "binary_cross_entropy"
    _options = ("label_smoothing",)

    def __init__(self, label_smoothing: float = 0.0, **keras_options: Any):
        super().__init__(**keras_options)
        self.label_smoothing = check_smoothing(self, label_smoothing)

    def num_outputs(self, num_targets: int = 2) -> int:
        """One logit for two classes."""
        if num_targets != 2:
            raise ValueError(
                f"binary-cross-entropy is for two classes; got num_targets={num_targets!r}. "
                "Use cross-entropy for more."
            )
        return 1

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        targets, logits = self._floats(y_true), self._one_logit(y_pred)
        targets, logits = match_targets(second_of_two(targets, logits), logits)
        targets = ops.where((targets >= 0.0) & (targets <= 1.0), targets, math.nan)
        targets = (1.0 - self.label_smoothing) * targets + 0.5 * self.label_smoothing
        losses = targets * ops.softplus(-logits) + (1.0 - targets) * ops.softplus(logits)
        return ops.squeeze(losses, -1)

    def predict(self, outputs: Tensor) -> dict[str, Tensor]:
        """{"probabilities": [n, 2]} of class 0 and class 1."""
        logits = self._one_logit(outputs)
        return {"probabilities": ops.sigmoid(ops.concatenate([-logits, logits], axis=-1))}

    def _one_logit(self, outputs):
        outputs = self._floats(outputs)
        if len(outputs.shape) == 1:
            outputs = ops.expand_dims(outputs, -1)
        if outputs.shape[-1] != 1:
            raise ValueError(
                f"binary-cross-entropy expects one logit, outputs [n, 1]; got {outputs.shape}. "
                "Use cross-entropy for a logit per class."
            )
        return outputs


@_register
class Focal(ClassificationLoss):
    """-alpha_y (1 - p_y)^gamma log p_y: cross-entropy that looks away from what is already right.

    Source: Lin et al. 2017, eq. 5, with softmax for several classes; soft labels t give
    -sum_k t_k alpha_k (1 - p_k)^gamma log p_k. p and 1 - p are kept as logarithms, so that the
    gradient stays finite for every gamma when p rounds to 1. An id outside 0..c-1 costs NaN.

    Args:
        gamma: 0 or above; 0 is cross-entropy, 2 the paper's choice.
        alpha: weights of the classes: None for equal ones, a sequence with one a class, or one
            number between 0 and 1 for two classes as in the paper: class 1 alpha, class 0 1-alpha.
    """

    default_name = "focal"
    _options = ("gamma", "alpha")

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        **keras_options: Any,
    ):
        super().__init__(**keras_options)
        self.gamma = 0.0 if gamma == 0 else check_number(self, "gamma", gamma, 0.0)
        if isinstance(alpha, (list, tuple)):
            self.alpha = [0.0 if a == 0 else check_number(self, "alpha", a, 0.0) for a in alpha]
        else:
            self.alpha = None if alpha is None else check_number(self, "alpha", alpha, 0.0, 1.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        logits = self._floats(y_pred)
        labels, soft = class_labels(ops.convert_to_tensor(y_true), logits)
        classes = logits.shape[-1]
        if not soft:
            known = ops.expand_dims((labels >= 0) & (labels < classes), -1)
            labels = ops.where(known, ops.one_hot(labels, classes), math.nan)
        labels = ops.cast(labels, logits.dtype)
        # Only the likeliest class can have p > 1/2: take its 1 - p from the other classes.
        top = ops.cast(ops.one_hot(ops.argmax(logits, axis=-1), classes), "bool")
        rest = ops.logsumexp(ops.where(top, -1e30, logits), axis=-1, keepdims=True)
        margin = rest - ops.max(logits, axis=-1, keepdims=True)
        log_p = ops.where(top, -ops.softplus(margin), ops.log_softmax(logits))
        p_of_rest = ops.where(top, 0.0, ops.softmax(logits))
        log_not_p = ops.where(top, -ops.softplus(-margin), ops.log1p(-p_of_rest))
        weights = labels * self._class_weights(classes)
        return -ops.sum(weights * ops.exp(self.gamma * log_not_p) * log_p, axis=-1)

    def _class_weights(self, classes: int) -> Tensor:
        if self.alpha is None:
            return self._floats(np.ones(classes))
        weights = self.alpha if isinstance(self.alpha, list) else [1.0 - self.alpha, self.alpha]
        if len(weights) != classes:
            raise ValueError(
                f"Focal: `alpha` must have one weight for each of {classes} classes; got "
                f"{self.alpha!r}."
            )
        return self._floats(weights)


@_register
class ZeroOne(ClassificationLoss):
    """1 where the largest share is not on the right class, else 0: the error rate.

    For models that answer with shares of votes and are not trained by gradients (KNN): the loss is
    flat, its gradient does not exist. Of equal shares the lowest class id wins.
    """

    default_name = "zero_one"
    takes_mixtures = False

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        shares = self._floats(y_pred)
        labels, soft = class_labels(ops.convert_to_tensor(y_true), shares)
        labels = ops.argmax(labels, axis=-1) if soft else labels
        wrong = ops.not_equal(ops.cast(ops.argmax(shares, axis=-1), "int32"), labels)
        return ops.cast(wrong, self.dtype)

    def predict(self, outputs: Tensor) -> dict[str, Tensor]:
        """{"probabilities": the shares as they are, [n, c]}."""
        return {"probabilities": self._floats(outputs)}
