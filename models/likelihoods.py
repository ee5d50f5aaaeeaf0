"""Losses that are likelihoods: what maximum likelihood is, and a class for each distribution.

Import them from :mod:`.losses`, whose text has the table of all losses and their shapes.
Cross-entropy is among them because it is one, to the last constant.

What "MLE" is
-------------
*Maximum likelihood estimation* is not one more formula beside MSE and CE: it is the recipe that all
of them come from. Let the network output, for each input x, a probability distribution p(y | x; w)
instead of one value. The *likelihood* of the weights w is the probability that this model gives to
the data that were really seen. Examples are independent, so it is a product,

    L(w) = p(y_1 | x_1; w) p(y_2 | x_2; w) ... p(y_n | x_n; w),

and the best weights are those under which the data are least surprising: w* = argmax L(w). The
logarithm is monotone and turns the product into a sum, the minus sign turns the maximum into a
minimum, 1/n changes nothing; what is left is an ordinary loss, the negative log-likelihood (NLL)

    loss(w) = -(1/n) sum_i log p(y_i | x_i; w)        (in nats, as log is the natural one).

Choosing a loss *is* choosing how the targets scatter around the prediction f(x):

* Gaussian scatter of one fixed standard deviation s. p(y) = exp(-(y-f)²/(2s²)) / (s sqrt(2 pi)), so
  -log p = (y-f)²/(2s²) + log s + log(2 pi)/2. Only the first term contains the weights:
  **minimising MSE is maximum likelihood with a Gaussian of fixed variance.** Its thin tails call a
  far outlier nearly impossible, which is why the fit bends towards it.
* Laplace scatter of fixed scale b. p(y) = exp(-|y-f|/b) / (2b), so -log p = |y-f|/b + log(2b):
  **minimising MAE is maximum likelihood with a Laplace distribution of fixed scale.** Its heavier
  tails expect outliers; so prefer the absolute value where the data are noisy.
* A class drawn with probabilities softmax(z). -log p(y) = -log softmax(z)[y]:
  **cross-entropy is maximum likelihood of a categorical distribution**; no constant is left over.
  The right class's logit has to rise *relative to the others*: adding the same number to all logits
  changes nothing.

``GaussianNLL(stddev=s)``, ``LaplaceNLL(scale=b)`` and ``CategoricalNLL()`` are these cases. Once
the scale is an output of the network too (``GaussianNLL()``), log s is no longer a constant: the
model pays e²/(2s²) where it is sure and wrong, and log s where it is unsure, and so learns *how
wrong it will be* for each x; ``interval`` reads that off. All constants are kept, so that values of
different distributions can be compared on the same data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from .loss_base import (
    ClassificationLoss,
    RegressionLoss,
    Tensor,
    check_level,
    check_number,
    check_smoothing,
    class_labels,
    drop_single,
)

_register = keras.saving.register_keras_serializable("epochal")
_LOG_2PI = math.log(2.0 * math.pi)
_SOFTPLUS_INVERSE_OF_1 = math.log(math.e - 1.0)


def positive_scale(raw: Tensor, floor: float) -> Tensor:
    """A network's raw output as a standard deviation: floor + softplus(raw + log(e - 1)).

    Softplus rather than exp (a log variance): it grows linearly, so that one bad step cannot
    multiply the scale by e^10 or overflow, and its slope stays in (0, 1). raw = 0 gives
    1 + floor: on standardised targets training starts as plain MSE or MAE. Without a floor an
    example that is fitted exactly would earn an unbounded reward (scale -> 0, log density ->
    infinity) and drown all others.
    """
    return floor + ops.softplus(raw + _SOFTPLUS_INVERSE_OF_1)


class _CentreAndScale(RegressionLoss):
    """A distribution on the line: outputs (centre, raw scale), or (centre) with a fixed scale."""

    def _set_scale(self, name: str, fixed: float | None, floor: float) -> None:
        self._fixed = None if fixed is None else check_number(self, name, fixed, 0.0)
        self._floor = check_number(self, f"min_{name}", floor, 0.0)
        self.outputs_per_target = 2 if self._fixed is None else 1

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        centre = parameters[..., 0]
        if self._fixed is not None:
            return centre, ops.full_like(centre, self._fixed)
        return centre, positive_scale(parameters[..., 1], self._floor)

    def predict(self, outputs: Tensor) -> dict[str, Tensor]:
        """{"prediction": [n], "stddev": [n]}: the distribution's mean and standard deviation."""
        centre, scale = self._split(self._parameters(outputs))
        return {
            "prediction": drop_single(centre),
            "stddev": drop_single(scale * self._stddev_of_scale),
        }

    def interval(self, outputs: Tensor, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """(low, high), each [n]: the central interval of probability `level` (0 to 1)."""
        half = self._half_width(check_level(self, level))
        centre, scale = self._split(self._parameters(outputs))
        return drop_single(centre - half * scale), drop_single(centre + half * scale)


@_register
class GaussianNLL(_CentreAndScale):
    """log s + (y - f)²/(2 s²) + log(2 pi)/2, in nats. Outputs a target: mean f, raw scale of s.

    Learnt variance: Nix & Weigend 1994. See :func:`positive_scale` for raw scale -> s.

    Args:
        stddev: None learns s; a number fixes it, and the network has the mean alone.
        min_stddev: the smallest s that can be learnt, in the target's units.
    """

    default_name = "gaussian_nll"
    _options = ("stddev", "min_stddev")
    _stddev_of_scale = 1.0

    def __init__(self, stddev: float | None = None, min_stddev: float = 1e-3, **keras_options: Any):
        super().__init__(**keras_options)
        self._set_scale("stddev", stddev, min_stddev)
        self.stddev, self.min_stddev = self._fixed, self._floor

    def _per_target(self, y, parameters):
        mean, stddev = self._split(parameters)
        return ops.log(stddev) + 0.5 * ops.square((y - mean) / stddev) + 0.5 * _LOG_2PI

    def _half_width(self, level):
        return NormalDist().inv_cdf(0.5 + 0.5 * level)


@_register
class LaplaceNLL(_CentreAndScale):
    """log(2b) + |y - f|/b, in nats. Outputs a target: median f, raw scale of b; stddev sqrt(2) b.

    Args:
        scale: None learns b; a number fixes it, and the network has the median alone.
        min_scale: the smallest b that can be learnt, in the target's units.
    """

    default_name = "laplace_nll"
    _options = ("scale", "min_scale")
    _stddev_of_scale = math.sqrt(2.0)

    def __init__(self, scale: float | None = None, min_scale: float = 1e-3, **keras_options: Any):
        super().__init__(**keras_options)
        self._set_scale("scale", scale, min_scale)
        self.scale, self.min_scale = self._fixed, self._floor

    def _per_target(self, y, parameters):
        centre, scale = self._split(parameters)
        return ops.log(2.0 * scale) + ops.abs(y - centre) / scale

    def _half_width(self, level):
        return -math.log1p(-level)


@_register
class PoissonNLL(RegressionLoss):
    """exp(h) - y h + log y!, in nats, for counts y; the output h is the logarithm of the rate.

    Targets must be counts (>= 0, not standardised): a graph cannot raise on a negative one, its
    loss is NaN, so that training stops instead of learning from it. Log rates above 88 overflow
    float32. The terms cancel (for y = 10^6 all but 7 of 10^7), so they are added up in float64.
    """

    default_name = "poisson_nll"
    takes_mixtures = False

    def _per_target(self, y, parameters):
        count = ops.cast(y, "float64")
        log_rate = ops.cast(parameters[..., 0], "float64")
        # keras.ops has no log-gamma.
        nll = ops.exp(log_rate) - count * log_rate + tf.math.lgamma(count + 1.0)
        return ops.cast(ops.where(count < 0.0, math.nan, nll), self.dtype)

    def predict(self, outputs: Tensor) -> dict[str, Tensor]:
        """{"prediction": rate, "stddev": its square root}, each [n]."""
        log_rate = drop_single(self._parameters(outputs)[..., 0])
        return {"prediction": ops.exp(log_rate), "stddev": ops.exp(0.5 * log_rate)}


@_register
class CrossEntropy(ClassificationLoss):
    """-log softmax(z)[y], or -sum_k t_k log softmax(z)_k for soft labels t. From logits.

    Ids and soft labels are told apart by shape ([n] or [n, 1] against [n, c]). An id outside
    0..c-1 is an error or a NaN loss (on GPUs, under XLA, and with label smoothing of few classes),
    never a silent number. Where outputs carry a Keras mask (padding of sequences), the mean over a
    batch is the mean over its real tokens.

    Args:
        label_smoothing: from 0 to below 1: trains on (1 - s) t + s / c (Szegedy et al. 2016, §7).
        class_weights: one number a class, by which the losses of its examples are multiplied (those
            of soft labels by the mean weight of their shares); "balanced": n / (c n_k), the
            inverse of a class's share, which :meth:`balance` finds in the training labels.
    """

    default_name = "cross_entropy"
    _options = ("label_smoothing", "class_weights")

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | str | None = None,
        **keras_options: Any,
    ):
        super().__init__(**keras_options)
        self.label_smoothing = check_smoothing(self, label_smoothing)
        several = isinstance(class_weights, list | tuple)
        if several:
            class_weights = [
                0.0 if w == 0 else check_number(self, "class_weights", w, 0.0)
                for w in class_weights
            ]
        if not several and class_weights not in (None, "balanced"):
            raise ValueError(
                'CrossEntropy: `class_weights` are one number a class, "balanced" or None; got '
                f"{class_weights!r}."
            )
        self.class_weights = class_weights

    def balance(self, labels: Any) -> None:
        """Makes "balanced" weights of training labels, ids [n]. They average to 1 over these."""
        if self.class_weights == "balanced":
            counts = np.bincount(np.asarray(labels, np.int64).reshape(-1))
            self.class_weights = (counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist()

    def num_outputs(self, num_targets: int) -> int:
        """As many as there are classes. Raises ValueError for another number of class_weights."""
        if isinstance(self.class_weights, list) and len(self.class_weights) != num_targets:
            raise ValueError(
                f"CrossEntropy: `class_weights` has {len(self.class_weights)} numbers, and there "
                f"are {num_targets} classes."
            )
        return super().num_outputs(num_targets)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        losses = self._unweighted(y_true, y_pred)
        if self.class_weights is None:
            return losses
        if self.class_weights == "balanced":
            raise ValueError(
                "CrossEntropy: balanced class_weights are made of training labels: call "
                "balance(labels) first, or give the numbers."
            )
        logits = self._floats(y_pred)
        labels, soft = class_labels(ops.convert_to_tensor(y_true), logits)
        weights = self._floats(self.class_weights)
        if soft:
            return losses * ops.sum(ops.cast(labels, logits.dtype) * weights, axis=-1)
        return losses * ops.take(weights, labels)

    def _unweighted(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        logits = self._floats(y_pred)
        labels, soft = class_labels(ops.convert_to_tensor(y_true), logits)
        classes, s = logits.shape[-1], self.label_smoothing
        if not soft and classes >= _MANY_CLASSES:
            return _over_many(logits, labels, s)
        if not soft and not s:
            return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        if soft:
            shares = (1.0 - s) * ops.cast(labels, logits.dtype) + s / classes
            return -ops.sum(shares * ops.log_softmax(logits), axis=-1)
        # One kernel over shares; the sum's two terms, each by itself, would read the logits again.
        shares = tf.one_hot(labels, classes, 1.0 - s + s / classes, s / classes, dtype=logits.dtype)
        losses = tf.nn.softmax_cross_entropy_with_logits(shares, logits)
        return ops.where((labels >= 0) & (labels < classes), losses, math.nan)


_MANY_CLASSES = 1_000


def _over_many(logits: tf.Tensor, labels: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Cross-entropies [...] of logits [..., c] and ids [...] where c is large, as in vocabularies.

    On the CPU TensorFlow's kernel for this takes 20 ms for 1,024 rows of 8,000, and the kernel of
    the softmax 1.5. From that follows all that is needed: with m the largest logit,
    log sum exp z = m - log softmax(m), which never underflows, and the gradient is the softmax,
    less the label's share.
    """
    classes = logits.shape[-1]
    ids = tf.reshape(labels, [-1])
    own = tf.stack([tf.range(tf.size(ids)), ids], axis=1)

    @tf.custom_gradient
    def losses(z):
        shares = tf.nn.softmax(z)
        total = tf.reduce_max(z, axis=1) - tf.math.log(tf.reduce_max(shares, axis=1))
        right = tf.gather_nd(z, own)
        if smoothing:
            right = (1.0 - smoothing) * right + smoothing * tf.reduce_mean(z, axis=1)

        def gradient(upstream):
            found = shares - smoothing / classes if smoothing else shares
            found *= upstream[:, None]
            return tf.tensor_scatter_nd_sub(found, own, (1.0 - smoothing) * upstream)

        return total - right, gradient

    found = losses(tf.reshape(logits, [-1, classes]))
    found = tf.where((ids >= 0) & (ids < classes), found, math.nan)
    return tf.reshape(found, tf.shape(labels))


@_register
class CategoricalNLL(CrossEntropy):
    """-log softmax(z)[y], in nats: cross-entropy without smoothing, under its likelihood name."""

    default_name = "categorical_nll"
    _options = ()

    def __init__(self, **keras_options: Any):
        super().__init__(**keras_options)


@_register
class GaussianMixtureNLL(RegressionLoss):
    """-log sum_k w_k N(y; m_k, s_k), in nats: for targets with several likely values.

    A mixture density network (Bishop 1994). Outputs a target: K logits of w, K means, K raw scales.

    Args:
        components: K, 1 or more.
        min_stddev: the smallest s_k, in the target's units.
    """

    default_name = "gaussian_mixture_nll"
    _options = ("components", "min_stddev")

    def __init__(self, components: int = 3, min_stddev: float = 1e-3, **keras_options: Any):
        super().__init__(**keras_options)
        if isinstance(components, bool) or not isinstance(components, int) or components < 1:
            raise ValueError(
                "GaussianMixtureNLL: `components` must be a whole number of 1 or more; got "
                f"{components!r}."
            )
        self.components = components
        self.min_stddev = check_number(self, "min_stddev", min_stddev, 0.0)
        self.outputs_per_target = 3 * components

    def _split(self, parameters):
        logits, means, raw = ops.split(parameters, 3, axis=-1)
        return ops.log_softmax(logits), means, positive_scale(raw, self.min_stddev)

    def _per_target(self, y, parameters):
        log_weights, means, stddevs = self._split(parameters)
        z = (ops.expand_dims(y, -1) - means) / stddevs
        log_density = -ops.log(stddevs) - 0.5 * ops.square(z) - 0.5 * _LOG_2PI
        return -ops.logsumexp(log_weights + log_density, axis=-1)

    def predict(self, outputs: Tensor) -> dict[str, Tensor]:
        """{"prediction": [n], "stddev": [n]}: mean and standard deviation of the mixture."""
        log_weights, means, stddevs = self._split(self._parameters(outputs))
        weights = ops.exp(log_weights)
        mean = ops.sum(weights * means, axis=-1, keepdims=True)
        variance = ops.sum(weights * (ops.square(stddevs) + ops.square(means - mean)), axis=-1)
        return {
            "prediction": drop_single(ops.squeeze(mean, -1)),
            "stddev": drop_single(ops.sqrt(variance)),
        }

    def interval(self, outputs: Tensor, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """(low, high), each [n]: the central interval of probability `level` (0 to 1).

        A quantile of the mixture lies between the smallest and the largest of its components'
        quantiles; bisection of the cumulative distribution finds it between these.
        """
        level = check_level(self, level)
        log_weights, means, stddevs = self._split(self._parameters(outputs))

        def quantile(p: float) -> Tensor:
            of_components = means + NormalDist().inv_cdf(p) * stddevs

            def halve(_, bracket):
                low, high = bracket
                middle = 0.5 * (low + high)
                z = (ops.expand_dims(middle, -1) - means) / stddevs
                below = ops.sum(ops.exp(log_weights) * 0.5 * ops.erfc(-z / math.sqrt(2.0)), -1) < p
                return ops.where(below, middle, low), ops.where(below, high, middle)

            bracket = (ops.min(of_components, -1), ops.max(of_components, -1))
            low, high = ops.fori_loop(0, 50, halve, bracket)
            return drop_single(0.5 * (low + high))

        return quantile(0.5 - 0.5 * level), quantile(0.5 + 0.5 * level)
