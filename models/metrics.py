"""What is reported while a model is trained: ordinary Keras metrics.

They add up sums over examples in float64, so that a metric over batches of unequal size, or over
millions of examples, equals the metric over all of them at once (sums also add up over replicas).

Regression metrics read a network's raw outputs through the loss that they were trained with, and
report in the target's own units where training standardises targets:

    RootMeanSquaredError(loss=GaussianNLL(), scale=target_stddev, offset=target_mean)
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from .loss_base import class_labels, match_targets, second_of_two

Tensor = Any
# A package name of its own: losses have the same class names, and one would replace the other.
_register = keras.saving.register_keras_serializable("epochal.metrics")


class _Sums(keras.metrics.Metric):
    """A metric that is a function of sums over examples."""

    def _add_sums(self, *names: str) -> None:
        for name in names:
            variable = self.add_variable((), "zeros", dtype="float64", name=name)
            setattr(self, f"_{name}", variable)

    def _add_mean(self, values: Tensor, sample_weight: Tensor | None) -> None:
        values = ops.cast(values, "float64")
        weights = _weights(sample_weight, values)
        self._total.assign_add(ops.sum(weights * values))
        self._weight.assign_add(ops.sum(weights))

    def _mean(self) -> Tensor:
        return ops.divide_no_nan(self._total, self._weight)


def _weights(sample_weight: Tensor | None, values: Tensor) -> Tensor:
    """Sample weights in the shape of the values: [n] or [n, 1] hold for all of an example."""
    if sample_weight is None:
        return ops.ones_like(values)
    weights = ops.convert_to_tensor(sample_weight, dtype="float64")
    if len(weights.shape) == len(values.shape) + 1 and weights.shape[-1] == 1:
        weights = ops.squeeze(weights, -1)
    while len(weights.shape) < len(values.shape):
        weights = ops.expand_dims(weights, -1)
    return ops.broadcast_to(weights, ops.shape(values))


# --------------------------------------------------------------------------------- classification


@_register
class Accuracy(_Sums):
    """Share of examples whose likeliest class is the right one.

    Targets are ids [n] or [n, 1], or soft labels [n, c]: then the class with the largest share is
    the right one, so that what is reported on mixed examples (MixUp) is how often the network
    finds the greater part. Outputs are logits, probabilities or shares [n, c], or a single column
    [n, 1] for class 1 of two. Of equal outputs, and of equal shares, the lowest class id wins; a
    row with NaN counts as wrong.

    Args:
        from_logits: for outputs [n, 1] only: class 1 is above 0 (logit) or above 0.5 (probability).
    """

    def __init__(self, from_logits: bool = True, *, name: str = "accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.from_logits = bool(from_logits)
        self._add_sums("total", "weight")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None):
        targets = ops.convert_to_tensor(y_true)
        outputs = ops.convert_to_tensor(y_pred, dtype="float32")
        if len(outputs.shape) < 2 or outputs.shape[-1] == 1:
            targets = second_of_two(ops.cast(targets, "float32"), outputs)
            targets, outputs = match_targets(targets, outputs)
            said = outputs > (0.0 if self.from_logits else 0.5)
            right = ops.squeeze(ops.logical_and(said == (targets > 0.5), _is_number(outputs)), -1)
        else:
            right = _rank_of_class(targets, outputs, first_only=True) < 1
        self._add_mean(right, _masked(sample_weight, y_pred))

    def result(self) -> Tensor:
        return ops.cast(self._mean(), self.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "from_logits": self.from_logits}


@_register
class TopKAccuracy(_Sums):
    """Share of examples whose right class is among the k likeliest. Shapes as in Accuracy.

    Of equal outputs the lowest class ids come first, so k = 1 is Accuracy and constant outputs
    earn nothing (``in_top_k`` would call every class of a tie right).

    Args:
        k: from 1 to the number of classes.
    """

    def __init__(self, k: int = 5, *, name: str | None = None, dtype=None):
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"TopKAccuracy: `k` must be a whole number of 1 or more; got {k!r}.")
        super().__init__(name=name or f"top_{k}_accuracy", dtype=dtype)
        self.k = k
        self._add_sums("total", "weight")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None):
        outputs = ops.convert_to_tensor(y_pred, dtype="float32")
        if self.k > outputs.shape[-1]:
            raise ValueError(
                f"TopKAccuracy: k={self.k} of {outputs.shape[-1]} classes is always right; choose "
                "a smaller k."
            )
        rank = _rank_of_class(ops.convert_to_tensor(y_true), outputs)
        self._add_mean(rank < self.k, _masked(sample_weight, y_pred))

    def result(self) -> Tensor:
        return ops.cast(self._mean(), self.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "k": self.k}


def _masked(sample_weight: Tensor | None, outputs: Tensor) -> Tensor | None:
    """Sample weights that leave out what a layer masked (padding of sequences), as Keras does."""
    mask = getattr(outputs, "_keras_mask", None)
    if mask is None:
        return sample_weight
    mask = ops.cast(mask, "float64")
    return mask if sample_weight is None else mask * _weights(sample_weight, mask)


def _is_number(values: Tensor) -> Tensor:
    return ops.logical_not(ops.isnan(values))


def _rank_of_class(targets: Tensor, outputs: Tensor, first_only: bool = False) -> Tensor:
    """How many classes come before the right one, [n]; c for rows with NaN.

    With first_only, 0 or 1: whether another class comes first, at the price of an argmax.
    """
    labels, soft = class_labels(targets, outputs)
    if soft:
        labels = ops.cast(ops.argmax(labels, axis=-1), "int32")
    if first_only:
        best = ops.cast(ops.argmax(outputs, axis=-1), "int32")
        rank = ops.cast(ops.not_equal(best, labels), "int32")
    else:
        own = ops.take_along_axis(outputs, ops.expand_dims(labels, -1), axis=-1)
        lower_id = ops.arange(outputs.shape[-1], dtype="int32") < ops.expand_dims(labels, -1)
        before = ops.logical_or(outputs > own, ops.logical_and(ops.equal(outputs, own), lower_id))
        rank = ops.sum(ops.cast(before, "int32"), axis=-1)
    return ops.where(ops.all(_is_number(outputs), axis=-1), rank, outputs.shape[-1])


# ------------------------------------------------------------------------------------ regression


class _Regression(_Sums):
    """Base of the regression metrics.

    Args of every regression metric:
        loss: turns raw outputs into predictions by its `predict`; None: outputs are predictions.
        scale, offset: targets and predictions are multiplied by `scale` (above 0) and `offset` is
            added before they are compared: standard deviation and mean of the raw targets.
    """

    def __init__(self, loss=None, scale=1.0, offset=0.0, *, name=None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        owner = type(self).__name__
        if loss is not None and not callable(getattr(loss, "predict", None)):
            raise ValueError(
                f"{owner}: `loss` must be None or a loss of epochal.models.losses, which has a "
                f"`predict`; got {loss!r}."
            )
        if not (_is_finite(scale) and scale > 0):
            raise ValueError(f"{owner}: `scale` must be a finite number above 0; got {scale!r}.")
        if not _is_finite(offset):
            raise ValueError(f"{owner}: `offset` must be a finite number; got {offset!r}.")
        self.loss, self.scale, self.offset = loss, float(scale), float(offset)

    def _pairs(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and predictions as training sees them: both [..., m], float64."""
        outputs = ops.convert_to_tensor(y_pred)
        if self.loss is not None:
            outputs = self.loss.predict(outputs)["prediction"]
        pair = match_targets(ops.convert_to_tensor(y_true), outputs)
        return tuple(ops.cast(values, "float64") for values in pair)

    def get_config(self) -> dict[str, Any]:
        loss = None if self.loss is None else keras.saving.serialize_keras_object(self.loss)
        return {**super().get_config(), "loss": loss, "scale": self.scale, "offset": self.offset}

    @classmethod
    def from_config(cls, config: dict[str, Any]):
        config = dict(config)
        if isinstance(config.get("loss"), dict):
            config["loss"] = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**config)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


class _MeanOfErrors(_Regression):
    def __init__(self, loss=None, scale=1.0, offset=0.0, *, name=None, dtype=None):
        super().__init__(loss, scale, offset, name=name, dtype=dtype)
        self._add_sums("total", "weight")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None):
        own_units = (v * self.scale + self.offset for v in self._pairs(y_true, y_pred))
        self._add_mean(self._error(*own_units), sample_weight)

    def result(self) -> Tensor:
        return ops.cast(self._mean(), self.dtype)


@_register
class MeanAbsoluteError(_MeanOfErrors):
    """Mean of |prediction - target|, in the target's units."""

    def __init__(self, loss=None, scale=1.0, offset=0.0, *, name="mae", dtype=None):
        super().__init__(loss, scale, offset, name=name, dtype=dtype)

    def _error(self, targets, predictions):
        return ops.abs(predictions - targets)


@_register
class RootMeanSquaredError(_MeanOfErrors):
    """Root of the mean of (prediction - target)² over all examples, in the target's units."""

    def __init__(self, loss=None, scale=1.0, offset=0.0, *, name="rmse", dtype=None):
        super().__init__(loss, scale, offset, name=name, dtype=dtype)

    def _error(self, targets, predictions):
        return ops.square(predictions - targets)

    def result(self) -> Tensor:
        return ops.cast(ops.sqrt(self._mean()), self.dtype)


@_register
class MeanAbsoluteRelativeError(_MeanOfErrors):
    """MARE: mean of |prediction - target| / max(|target|, floor); 0.1 is 10%.

    Args beyond those of every regression metric:
        floor: above 0, in the target's own units (after scale and offset); the error of smaller
            targets, zero among them, is measured in units of it.
    """

    def __init__(self, loss=None, scale=1.0, offset=0.0, floor=1e-3, *, name="mare", dtype=None):
        super().__init__(loss, scale, offset, name=name, dtype=dtype)
        if not (_is_finite(floor) and floor > 0):
            raise ValueError(
                "MeanAbsoluteRelativeError: `floor` must be a finite number above 0; got "
                f"{floor!r}."
            )
        self.floor = float(floor)

    def _error(self, targets, predictions):
        return ops.abs(predictions - targets) / ops.maximum(ops.abs(targets), self.floor)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "floor": self.floor}


@_register
class R2(_Regression):
    """Share of the targets' variance that is explained: 1 - sum (y - f)² / sum (y - mean y)².

    1 is perfect, 0 is as good as always answering the mean of these targets; it can be negative.
    For constant targets it is 1 where the predictions are exact, else 0 (as in scikit-learn).
    Several targets an example are pooled.
    """

    def __init__(self, loss=None, scale=1.0, offset=0.0, *, name="r2", dtype=None):
        super().__init__(loss, scale, offset, name=name, dtype=dtype)
        self._add_sums("residual", "first", "second", "weight")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None):
        # R2 is the same in all units; without the offset the sums of squares cancel less.
        targets, predictions = self._pairs(y_true, y_pred)
        weights = _weights(sample_weight, targets)
        self._residual.assign_add(ops.sum(weights * ops.square(targets - predictions)))
        self._first.assign_add(ops.sum(weights * targets))
        self._second.assign_add(ops.sum(weights * ops.square(targets)))
        self._weight.assign_add(ops.sum(weights))

    def result(self) -> Tensor:
        total = self._second - ops.divide_no_nan(ops.square(self._first), self._weight)
        # What rounding leaves of the variance of constant targets is not variance.
        constant = total <= 1e-13 * self._second
        share = 1.0 - self._residual / ops.where(constant, 1.0, total)
        exact = ops.cast(self._residual == 0.0, "float64")
        return ops.cast(ops.where(constant, exact, share), self.dtype)


@_register
class Coverage(_Regression):
    """Share of targets inside the loss's central interval of probability `level`.

    A calibrated model covers `level` of the targets of new data.

    Args:
        loss: one with an `interval`: gaussian, laplace, gaussian-mixture, quantile.
        level: between 0 and 1.
    """

    def __init__(self, loss, level=0.9, scale=1.0, offset=0.0, *, name="coverage", dtype=None):
        super().__init__(loss, scale, offset, name=name, dtype=dtype)
        if not callable(getattr(loss, "interval", None)):
            raise ValueError(
                "Coverage: `loss` must have an `interval` (gaussian, laplace, gaussian-mixture, "
                f"quantile); got {loss!r}."
            )
        if not (_is_finite(level) and 0 < level < 1):
            raise ValueError(f"Coverage: `level` must lie between 0 and 1; got {level!r}.")
        self.level = float(level)
        self._add_sums("total", "weight")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None):
        low, high = self.loss.interval(ops.convert_to_tensor(y_pred), self.level)
        targets, low = match_targets(ops.cast(ops.convert_to_tensor(y_true), low.dtype), low)
        targets, high = match_targets(targets, high)
        inside = ops.logical_and(targets >= low, targets <= high)
        self._add_mean(inside, sample_weight)

    def result(self) -> Tensor:
        return ops.cast(self._mean(), self.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "level": self.level}
