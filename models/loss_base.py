"""What the losses share: their base classes, the pairing of shapes, and checks of arguments.

:mod:`.losses` is the place to read about them and to import them from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

Tensor = Any


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


def second_of_two(targets: Tensor, outputs: Tensor) -> Tensor:
    """Of soft labels [..., 2] against one output [..., 1] the share of class 1, [..., 1].

    Targets of any other shape come back as they are.
    """
    soft = len(targets.shape) == len(outputs.shape) and targets.shape[-1] == 2
    return targets[..., 1:] if soft and outputs.shape[-1] == 1 else targets


def _pair_up(shape: Sequence[int | None], other: Sequence[int | None]) -> bool:
    """Same rank and no two known lengths that differ."""
    pairs = zip(shape, other, strict=False)
    return len(shape) == len(other) and all(None in (m, n) or m == n for m, n in pairs)


def check_number(owner: Any, name: str, value: Any, low: float, high: float = math.inf) -> float:
    """The value as a float strictly between low and high, or a ValueError that says so."""
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not low < value < high:
        span = f"above {low:g}" if high == math.inf else f"between {low:g} and {high:g} (exclusive)"
        raise ValueError(
            f"{type(owner).__name__}: `{name}` must be a finite number {span}; got {value!r}."
        )
    return float(value)


def check_smoothing(owner: Any, value: Any) -> float:
    return 0.0 if value == 0 else check_number(owner, "label_smoothing", value, 0.0, 1.0)


def check_level(owner: Any, value: Any) -> float:
    return check_number(owner, "level", value, 0.0, 1.0)


class TaskLoss(keras.losses.Loss):
    """Base of all losses here. Beyond Keras's interface each subclass has:

    - ``task``: "classification" or "regression";
    - ``takes_mixtures``: whether a target may be the mixture of two (MixUp, CutMix);
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
    takes_mixtures: ClassVar[bool] = True
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


class RegressionLoss(TaskLoss):
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
        return {"prediction": drop_single(self._parameters(outputs)[..., 0])}


def drop_single(values: Tensor) -> Tensor:
    return ops.squeeze(values, -1) if values.shape[-1] == 1 else values


class ClassificationLoss(TaskLoss):
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
