"""Muon, after the decade: momentum whose steps have the same length in all directions.

Import it from :mod:`.optimizers`; its text says what it shares with the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from .keras_optimizers import OptimizerMixin, bias_corrections

_register = keras.saving.register_keras_serializable("epochal")
# Of p(x) = a x + b x^3 + c x^5: steep at 0, so that small singular values grow fast. It does not
# converge to 1; after five rounds those above 1e-3 or so lie between 0.7 and 1.2, which is enough.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


@_register
class Muon(OptimizerMixin, keras.optimizers.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

    The update of a weight matrix has a few large singular values and many small ones, along which
    little would be learnt. With U S V^T its decomposition, Muon goes along U V^T instead:

    - ``u = momentum u + g``, ``d = g + momentum u`` (without nesterov ``d = u``);
    - ``d = d / |d|``, and five times ``A = d d^T; d = a d + (b A + c A A) d``, Newton's and
      Schulz's iteration with coefficients that bring the singular values near 1;
    - ``w -= lr sqrt(max(1, outputs / inputs)) d``.

    This is for the matrices and convolutions between the layers; a kernel [h, w, inputs, outputs]
    counts as a matrix [h w inputs, outputs]. Everything else has Adam's update, at the rate
    ``lr adam_rate``: vectors, tensors of other ranks, and the layers ``adam_layers``.

    Differs from the authors' code: the iteration runs in the precision of the weights, there in
    bfloat16.

    Args:
        learning_rate: a number or a schedule.
        momentum: share of the last step that is kept.
        nesterov: look ahead along the momentum.
        adam_rate: factor of the learning rate where Adam updates.
        beta_1: Adam's decay of the mean of the gradient.
        beta_2: Adam's decay of the mean of its square.
        epsilon: added to the root of the uncorrected second moment, as in :class:`Adam`.
        adam_layers: names of variables and of layers (of which one is part of ``variable.path``)
            that have Adam's update: what enters a network and what leaves it.
        **kwargs: see :mod:`.optimizers`. Weights shrink by ``lr * weight_decay``, whichever update
            they have.
    """

    def __init__(
        self,
        learning_rate: Any = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        adam_rate: float = 0.05,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        adam_layers: Sequence[str] = ("embeddings", "outputs"),
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, **kwargs)
        if not adam_rate >= 0:
            raise ValueError(f"adam_rate is a factor and not negative, not {adam_rate}.")
        self.momentum, self.nesterov, self.adam_rate = momentum, nesterov, float(adam_rate)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.adam_layers = (adam_layers,) if isinstance(adam_layers, str) else tuple(adam_layers)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._orthogonal = [self._is_hidden(variable) for variable in variables]
        self._means = self.add_optimizer_variables(variables, "mean")
        others = [v for v, hidden in zip(variables, self._orthogonal, strict=True) if not hidden]
        squares = iter(self.add_optimizer_variables(others, "square"))
        self._squares = [None if hidden else next(squares) for hidden in self._orthogonal]

    def _is_hidden(self, variable) -> bool:
        names = variable.path.split("/")
        return len(variable.shape) in (2, 4) and not {*names} & {*self.adam_layers}

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        gradient = ops.cast(gradient, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype)
        mean, square = self._means[index], self._squares[index]
        if square is None:
            self.assign(mean, self.momentum * mean + gradient)
            step = gradient + self.momentum * mean if self.nesterov else mean
            outputs = variable.shape[-1]
            step = ops.reshape(step, (-1, outputs))
            scale = max(1.0, outputs / step.shape[0]) ** 0.5
            update = scale * ops.reshape(orthogonal(step), variable.shape)
        else:
            self.assign_add(mean, (gradient - mean) * (1 - self.beta_1))
            self.assign_add(square, (ops.square(gradient) - square) * (1 - self.beta_2))
            first, second = bias_corrections(self)
            scale = ops.cast(self.adam_rate * ops.sqrt(second) / first, variable.dtype)
            update = scale * mean / (ops.sqrt(square) + self.epsilon)
        self.assign_sub(variable, rate * update)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "adam_rate": self.adam_rate,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "adam_layers": list(self.adam_layers),
        }


def orthogonal(matrix):
    """About U V^T of a matrix U S V^T, [m, n] -> [m, n]; zeros stay zeros."""
    a, b, c = _QUINTIC
    wide = matrix.shape[0] < matrix.shape[1]
    x = matrix if wide else ops.transpose(matrix)  # the products below are then the smaller ones
    x = x / (ops.sqrt(ops.sum(ops.square(x))) + 1e-7)
    for _ in range(_ROUNDS):
        products = ops.matmul(x, ops.transpose(x))
        x = a * x + ops.matmul(b * products + c * ops.matmul(products, products), x)
    return x if wide else ops.transpose(x)
