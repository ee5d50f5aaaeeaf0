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

Shapes. Regression: targets [n] or [n, m] against outputs [n, m·p], p outputs a target, those of a
target side by side; [n] and [n, 1] never broadcast to [n, n]. The loss of an example is the mean
over its m targets. Classification: targets are ids [n] or [n, 1], or soft labels [n, c], against
logits [n, c]. Further leading axes (time, say) are kept: [n, t, c] gives losses [n, t].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras import ops

Tensor = Any
_register = keras.saving.register_keras_serializable("epochal")
_LOG_2PI = math.log(2.0 * math.pi)
_SOFTPLUS_INVERSE_OF_1 = math.log(math.e - 1.0)


def match_targets(targets: Tensor, predictions: Tensor) -> tuple[Tensor, Tensor]:
    """Gives targets and predictions the same shape [..., m], without ever broadcasting.

    One of the two may lack a last axis of length 1. Raises ValueError where shapes do not fit.
    """
    given = f"targets of shape {tuple(targets.shape)}, predictions of {tuple(predictions.shape)}"
    rank = max(len(targets.shape), len(predictions.shape), 2)
    if len(targets.shape) == rank - 1:
        targets = ops.expand_dims(targets, -1)
    if len(predictions.shape) == rank - 1:
        predictions = ops.expand_dims(predictions, -1)
    if not _pair_up(targets.shape, predictions.shape):
        raise ValueError(f"Targets and predictions do not pair up: {given}.")
    return targets, predictions


def class_labels(targets: Tensor, outputs: Tensor) -> tuple[Tensor, bool]:
    """Reads classification targets against outputs [..., c]; returns (labels, are they soft).

    Ids [...] or [..., 1] come back as int32 [...]; soft labels [..., c] come back as they are.
    The rank tells them apart, not the dtype: Keras casts targets to float on the way here.
    Raises ValueError where the shapes fit neither.
    """
    shape, wanted = tuple(targets.shape), tuple(outputs.shape)
    if not wanted or wanted[-1] is None or wanted[-1] < 2:
        raise ValueError(
            f"Expected outputs [n, c] with a column for each of c >= 2 classes; got {wanted}. "
            "For two classes with a single logit use binary-cross-entropy."
        )
    if len(shape) == len(wanted) and shape[-1] == 1:
        targets, shape = ops.squeeze(targets, -1), shape[:-1]
    if _pair_up(shape, wanted[:-1]):
        return ops.cast(targets, "int32"), False
    if _pair_up(shape, wanted):
        return targets, True
    raise ValueError(
        f"Expected class ids {wanted[:-1]} or soft labels {wanted} for outputs {wanted}; "
        f"got targets of shape {shape}."
    )


def _pair_up(shape: Sequence[int | None], other: Sequence[int | None]) -> bool:
    """Same rank and no two known lengths that differ."""
    pairs = zip(shape, other, strict=False)
    return len(shape) == len(other) and all(None in (m, n) or m == n for m, n in pairs)


def _number(owner: Any, name: str, value: Any, low: float, high: float = math.inf) -> float:
    """The value as a float strictly between low and high, or a ValueError that says so."""
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not low < value < high:
        span = f"above {low:g}" if high == math.inf else f"between {low:g} and {high:g} (exclusive)"
        raise ValueError(
            f"{type(owner).__name__}: `{name}` must be a finite number {span}; got {value!r}."
        )
    return float(value)


def _smoothing(owner: Any, value: Any) -> float:
    return 0.0 if value == 0 else _number(owner, "label_smoothing", value, 0.0, 1.0)


def _level(owner: Any, value: Any) -> float:
    return _number(owner, "level", value, 0.0, 1.0)


class TaskLoss(keras.losses.Loss):
    """Base of all losses here. Beyond Keras's interface each subclass has:

    - ``task``: "classification" or "regression";
    - ``num_outputs(num_targets)``: width of the network's last layer for so many classes, or
      regression targets (1 for a scalar);
    - ``predict(outputs)``: raw outputs as {"probabilities": [n, c]}, or {"prediction": [n], ...}
      (float32; core operations, so that it can be exported);
    - for most likelihoods and Quantile ``interval(outputs, level)``: (low, high), each [n].

    Args of every loss, beside its own:
        reduction: as in Keras: "sum_over_batch_size" (the default), "sum",
            "mean_with_sample_weight" or "none".
        name: label in logs; by default the class's name in snake case.
        dtype: "float32" (default) or "float64"; what it is computed in whatever the outputs are.
    """

    task: ClassVar[str]
    default_name: ClassVar[str]
    _options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(
            name=name or self.default_name,
            reduction=reduction,
            dtype=dtype or ("float64" if keras.config.floatx() == "float64" else "float32"),
        )
        if self.dtype not in ("float32", "float64"):
            raise ValueError(
                f"{type(self).__name__}: losses are computed in float32 or float64, because sums "
                f"over examples lose their digits in less; got dtype={dtype!r}. Outputs in "
                "bfloat16 or float16 are cast by the loss itself."
            )

    def get_config(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in self._options}
        return {**super().get_config(), "dtype": self.dtype, **options}

    def _floats(self, values: Tensor) -> Tensor:
        return ops.convert_to_tensor(values, dtype=self.dtype)


# ------------------------------------------------------------------------------------ regression


class _Regression(TaskLoss):
    """A loss with `outputs_per_target` network outputs for each target."""

    task = "regression"
    outputs_per_target = 1

    def num_outputs(self, num_targets: int = 1) -> int:
        """`num_targets` times the outputs that one target needs."""
        if num_targets < 1:
            raise ValueError(f"Expected at least one target; got num_targets={num_targets!r}.")
        return num_targets * self.outputs_per_target

    def _parameters(self, outputs: Tensor) -> Tensor:
        """Outputs [..., m·p] -> [..., m, p]; [n] counts as [n, 1]."""
        outputs = self._floats(outputs)
        if len(outputs.shape) == 1:
            outputs = ops.expand_dims(outputs, -1)
        width, each = outputs.shape[-1], self.outputs_per_target
        if not width or width % each:
            raise ValueError(
                f"{type(self).__name__} reads {each} outputs for each target; got outputs of "
                f"shape {tuple(outputs.shape)}. Make the last layer num_outputs(targets) wide."
            )
        return ops.reshape(outputs, (*ops.shape(outputs)[:-1], width // each, each))

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        parameters = self._parameters(y_pred)
        targets, _ = match_targets(self._floats(y_true), parameters[..., 0])
        return ops.mean(self._per_target(targets, parameters), axis=-1)

    def _per_target(self, y: Tensor, parameters: Tensor) -> Tensor:
        """Loss of each target, [..., m], from targets [..., m] and parameters [..., m, p]."""
        return self._of_error(parameters[..., 0] - y, y)

    def predict(self, outputs: Tensor) -> dict[str, Tensor]:
        """{"prediction": [n]} ([n, m] for m > 1 targets)."""
        return {"prediction": _drop_single(self._parameters(outputs)[..., 0])}


def _drop_single(values: Tensor) -> Tensor:
    return ops.squeeze(values, -1) if values.shape[-1] == 1 else values


@_register
class MeanSquaredError(_Regression):
    """(f - y)²: maximum likelihood under Gaussian noise of fixed variance; fits the mean."""

    default_name = "mean_squared_error"

    def _of_error(self, error, y):
        return ops.square(error)


@_register
class MeanAbsoluteError(_Regression):
    """|f - y|: maximum likelihood under Laplace noise of fixed scale; fits the median."""

    default_name = "mean_absolute_error"

    def _of_error(self, error, y):
        return ops.abs(error)


@_register
class MeanAbsoluteRelativeError(_Regression):
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
        self.floor = _number(self, "floor", floor, 0.0)

    def _of_error(self, error, y):
        return ops.abs(error) / ops.maximum(ops.abs(y), self.floor)


@_register
class Huber(_Regression):
    """e²/2 where |e| <= delta, else delta (|e| - delta/2): squares for errors, not for outliers.

    Its gradient is e clipped to ±delta. Source: Huber 1964. Keras has the same convention.

    Args:
        delta: in the target's units, above 0.
    """

    default_name = "huber"
    _options = ("delta",)

    def __init__(self, delta: float = 1.0, **keras_options: Any):
        super().__init__(**keras_options)
        self.delta = _number(self, "delta", delta, 0.0)

    def _of_error(self, error, y):
        size = ops.abs(error)
        inside = ops.minimum(size, self.delta)  # also keeps a huge error from being squared
        return 0.5 * ops.square(inside) + self.delta * (size - inside)


@_register
class LogCosh(_Regression):
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
class Quantile(_Regression):
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
        self.quantiles = [_number(self, "quantiles", tau, 0.0, 1.0) for tau in several]
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
        return {"prediction": _drop_single(middle), "quantiles": quantiles}

    def interval(self, outputs: Tensor, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """(low, high), each [n], between the quantiles (1 - level)/2 and (1 + level)/2.

        Raises ValueError where these two are not among the trained quantiles.
        """
        level = _level(self, level)
        wanted = (0.5 - 0.5 * level, 0.5 + 0.5 * level)
        found = [[i for i, q in enumerate(self.quantiles) if abs(q - w) < 1e-6] for w in wanted]
        if not all(found):
            raise ValueError(
                f"Quantile: an interval of level {level:g} needs the quantiles {wanted[0]:g} and "
                f"{wanted[1]:g}; trained were {self.quantiles}."
            )
        quantiles = ops.sort(self._parameters(outputs), axis=-1)
        low, high = (_drop_single(quantiles[..., index]) for (index,) in found)
        return low, high


# --------------------------------------------------------------------------------- classification


class _Classification(TaskLoss):
    """A loss on c logits."""

    task = "classification"

    def num_outputs(self, num_targets: int) -> int:
        """As many as there are classes."""
        if num_targets < 2:
            raise ValueError(f"Expected at least two classes; got num_targets={num_targets!r}.")
        return num_targets

    def predict(self, outputs: Tensor) -> dict[str, Tensor]:
        """{"probabilities": softmax of the logits, [n, c]}."""
        return {"probabilities": ops.softmax(self._floats(outputs), axis=-1)}


@_register
class CrossEntropy(_Classification):
    """-log softmax(z)[y], or -sum_k t_k log softmax(z)_k for soft labels t. From logits.

    Ids and soft labels are told apart by shape ([n] or [n, 1] against [n, c]). An id outside
    0..c-1 is an error on the CPU and a NaN loss on GPUs and under XLA, never a silent number.

    Args:
        label_smoothing: from 0 to below 1: trains on (1 - s) t + s / c (Szegedy et al. 2016, §7).
    """

    default_name = "cross_entropy"
    _options = ("label_smoothing",)

    def __init__(self, label_smoothing: float = 0.0, **keras_options: Any):
        super().__init__(**keras_options)
        self.label_smoothing = _smoothing(self, label_smoothing)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        logits = self._floats(y_pred)
        labels, soft = class_labels(ops.convert_to_tensor(y_true), logits)
        if soft:
            losses = -ops.sum(ops.cast(labels, logits.dtype) * ops.log_softmax(logits), axis=-1)
        else:
            losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        if self.label_smoothing:
            uniform = -ops.mean(ops.log_softmax(logits), axis=-1)
            losses = (1.0 - self.label_smoothing) * losses + self.label_smoothing * uniform
        return losses


@_register
class BinaryCrossEntropy(_Classification):
    """Cross-entropy of two classes from one logit z of class 1; P(1) = sigmoid(z).

    t log(1 + exp(-z)) + (1 - t) log(1 + exp(z)) with targets t: ids 0 and 1, or probabilities of
    class 1; shape [n] or [n, 1] against outputs [n, 1]. The loss of any other target (classes
    numbered 1 and 2, or -1 and 1) is NaN.

    Args:
        label_smoothing: from 0 to below 1: trains on (1 - s) t + s / 2.
    """

    default_name = "binary_cross_entropy"
    _options = ("label_smoothing",)

    def __init__(self, label_smoothing: float = 0.0, **keras_options: Any):
        super().__init__(**keras_options)
        self.label_smoothing = _smoothing(self, label_smoothing)

    def num_outputs(self, num_targets: int = 2) -> int:
        """One logit for two classes."""
        if num_targets != 2:
            raise ValueError(
                f"binary-cross-entropy is for two classes; got num_targets={num_targets!r}. "
                "Use cross-entropy for more."
            )
        return 1

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        targets, logits = match_targets(self._floats(y_true), self._one_logit(y_pred))
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
class Focal(_Classification):
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
        self.gamma = 0.0 if gamma == 0 else _number(self, "gamma", gamma, 0.0)
        if isinstance(alpha, (list, tuple)):
            self.alpha = [0.0 if a == 0 else _number(self, "alpha", a, 0.0) for a in alpha]
        else:
            self.alpha = None if alpha is None else _number(self, "alpha", alpha, 0.0, 1.0)

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
class ZeroOne(_Classification):
    """1 where the largest share is not on the right class, else 0: the error rate.

    For models that answer with shares of votes and are not trained by gradients (KNN): the loss is
    flat, its gradient does not exist. Of equal shares the lowest class id wins.
    """

    default_name = "zero_one"

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        shares = self._floats(y_pred)
        labels, soft = class_labels(ops.convert_to_tensor(y_true), shares)
        labels = ops.argmax(labels, axis=-1) if soft else labels
        wrong = ops.not_equal(ops.cast(ops.argmax(shares, axis=-1), "int32"), labels)
        return ops.cast(wrong, self.dtype)

    def predict(self, outputs: Tensor) -> dict[str, Tensor]:
        """{"probabilities": the shares as they are, [n, c]}."""
        return {"probabilities": self._floats(outputs)}


# ------------------------------------------------------------ likelihoods (see the module's text)


def positive_scale(raw: Tensor, floor: float) -> Tensor:
    """A network's raw output as a standard deviation: floor + softplus(raw + log(e - 1)).

    Softplus rather than exp (a log variance): it grows linearly, so that one bad step cannot
    multiply the scale by e^10 or overflow, and its slope stays in (0, 1). raw = 0 gives
    1 + floor: on standardised targets training starts as plain MSE or MAE. Without a floor an
    example that is fitted exactly would earn an unbounded reward (scale -> 0, log density ->
    infinity) and drown all others.
    """
    return floor + ops.softplus(raw + _SOFTPLUS_INVERSE_OF_1)


class _CentreAndScale(_Regression):
    """A distribution on the line: outputs (centre, raw scale), or (centre) with a fixed scale."""

    def _set_scale(self, name: str, fixed: float | None, floor: float) -> None:
        self._fixed = None if fixed is None else _number(self, name, fixed, 0.0)
        self._floor = _number(self, f"min_{name}", floor, 0.0)
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
            "prediction": _drop_single(centre),
            "stddev": _drop_single(scale * self._stddev_of_scale),
        }

    def interval(self, outputs: Tensor, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """(low, high), each [n]: the central interval of probability `level` (0 to 1)."""
        half = self._half_width(_level(self, level))
        centre, scale = self._split(self._parameters(outputs))
        return _drop_single(centre - half * scale), _drop_single(centre + half * scale)


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
class PoissonNLL(_Regression):
    """exp(h) - y h + log y!, in nats, for counts y; the output h is the logarithm of the rate.

    Targets must be counts (>= 0, not standardised): a graph cannot raise on a negative one, its
    loss is NaN, so that training stops instead of learning from it. Log rates above 88 overflow
    float32. The terms cancel (for y = 10^6 all but 7 of 10^7), so they are added up in float64.
    """

    default_name = "poisson_nll"

    def _per_target(self, y, parameters):
        count = ops.cast(y, "float64")
        log_rate = ops.cast(parameters[..., 0], "float64")
        # keras.ops has no log-gamma.
        nll = ops.exp(log_rate) - count * log_rate + tf.math.lgamma(count + 1.0)
        return ops.cast(ops.where(count < 0.0, math.nan, nll), self.dtype)

    def predict(self, outputs: Tensor) -> dict[str, Tensor]:
        """{"prediction": rate, "stddev": its square root}, each [n]."""
        log_rate = _drop_single(self._parameters(outputs)[..., 0])
        return {"prediction": ops.exp(log_rate), "stddev": ops.exp(0.5 * log_rate)}


@_register
class CategoricalNLL(CrossEntropy):
    """-log softmax(z)[y], in nats: cross-entropy without smoothing, under its likelihood name."""

    default_name = "categorical_nll"
    _options = ()

    def __init__(self, **keras_options: Any):
        super().__init__(**keras_options)


@_register
class GaussianMixtureNLL(_Regression):
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
        self.min_stddev = _number(self, "min_stddev", min_stddev, 0.0)
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
            "prediction": _drop_single(ops.squeeze(mean, -1)),
            "stddev": _drop_single(ops.sqrt(variance)),
        }

    def interval(self, outputs: Tensor, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """(low, high), each [n]: the central interval of probability `level` (0 to 1).

        A quantile of the mixture lies between the smallest and the largest of its components'
        quantiles; bisection of the cumulative distribution finds it between these.
        """
        level = _level(self, level)
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
            return _drop_single(0.5 * (low + high))

        return quantile(0.5 - 0.5 * level), quantile(0.5 + 0.5 * level)
