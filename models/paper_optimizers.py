"""The optimizers that Keras does not have, written from their papers: RAdam, LARS, Lookahead.

Import them from :mod:`.optimizers`; its text says what they share with the others.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from .keras_optimizers import (
    SGD,
    Adam,
    Momentum,
    Nesterov,
    OptimizerMixin,
    RMSprop,
    bias_corrections,
)
from .schedules import check_options, options_of

_register = keras.saving.register_keras_serializable("epochal")


@_register
class RAdam(OptimizerMixin, keras.optimizers.Optimizer):
    """Rectified Adam (Liu et al. 2019, algorithm 2): Adam that needs no warm-up.

    The length of the second moment's average, ``rho_t = rho_inf - 2 t b2^t / (1 - b2^t)`` with
    ``rho_inf = 2 / (1 - b2) - 1``, says whether its variance is tractable. If so, Adam's step is
    multiplied by ``sqrt((rho_t-4)(rho_t-2) rho_inf / ((rho_inf-4)(rho_inf-2) rho_t))``; if not, the
    step is ``lr m / (1 - b1^t)`` without the second moment.

    Args:
        learning_rate: a number or a schedule.
        beta_1: decay of the mean of the gradient.
        beta_2: decay of the mean of its square.
        epsilon: added to the root of the uncorrected second moment (not in the paper; as in the
            authors' code and in :class:`Adam`).
        threshold: "paper" rectifies where rho_t > 4, "authors" (their code) where rho_t >= 5. With
            ``beta_2=0.999`` the first rectified step is t = 5 or t = 6.
        unrectified: the step before that: "momentum" (the paper) or "skip" (their code's default:
            the weights keep still, apart from weight decay).
        **kwargs: see :mod:`.optimizers`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        threshold: str = "paper",
        unrectified: str = "momentum",
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, **kwargs)
        _one_of("threshold", threshold, ("paper", "authors"))
        _one_of("unrectified", unrectified, ("momentum", "skip"))
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.threshold, self.unrectified = threshold, unrectified

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._means, self._squares = self.add_optimizer_variables(variables, ["mean", "square"])

    def update_step(self, gradient, variable, learning_rate):
        dtype = variable.dtype
        index = self._get_variable_index(variable)
        mean, square = self._means[index], self._squares[index]
        gradient = ops.cast(gradient, dtype)
        self.assign_add(mean, (gradient - mean) * (1 - self.beta_1))
        self.assign_add(square, (ops.square(gradient) - square) * (1 - self.beta_2))
        rectified, plain = self._factors()
        rate = ops.cast(learning_rate, dtype)
        scale = ops.cast(rectified, dtype) / (ops.sqrt(square) + self.epsilon)
        step = ops.where(rectified > 0, scale, ops.cast(plain, dtype)) * mean
        self.assign_sub(variable, rate * step)

    def _factors(self):
        """What m / (sqrt(v) + epsilon), or m, is multiplied by: float64 scalars.

        rho_t is the small difference of two large numbers: float32 would get the threshold wrong.
        """
        t = ops.cast(self.iterations + 1, "float64")
        correction_1, correction_2 = bias_corrections(self)
        rho_inf = 2 / (1 - self.beta_2) - 1
        rho = rho_inf - 2 * t * (1 - correction_2) / correction_2
        tractable = rho > 4 if self.threshold == "paper" else rho >= 5
        safe = ops.maximum(rho, 4.0)
        rectification = (safe - 4) * (safe - 2) / safe
        rectification *= rho_inf / ((rho_inf - 4) * (rho_inf - 2)) if rho_inf > 4 else 0.0
        rectified = ops.sqrt(rectification * correction_2) / correction_1
        plain = 1 / correction_1 if self.unrectified == "momentum" else ops.zeros_like(t)
        return ops.where(tractable, rectified, ops.zeros_like(t)), plain

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "threshold": self.threshold,
            "unrectified": self.unrectified,
        }


@_register
class LARS(OptimizerMixin, keras.optimizers.Optimizer):
    """Layer-wise adaptive rates for large batches (You, Gitman and Ginsburg 2017, algorithm 1).

    For each weight: ``local = trust |w| / (|g| + weight_decay |w|)``;
    ``u = momentum u + lr local (g + weight_decay w)``; ``w -= u``. Where |w| or the divisor is 0,
    ``local`` is 1. Variables under ``weight_decay_exclude`` (biases and normalisation parameters)
    have neither decay nor adaptation, ``local = 1``, as in SimCLR. The decay is inside the
    gradient, so ``lr * weight_decay`` is not the share by which weights shrink here.

    Args:
        learning_rate: a number or a schedule; SimCLR: 0.3 times batch size / 256.
        momentum: share of the last step that is kept.
        trust: the trust coefficient.
        divisor: "sum-of-norms" as above (the paper) or "norm-of-sum": |g + weight_decay w|
            (SimCLR's code).
        nesterov: look ahead along the momentum.
        **kwargs: see :mod:`.optimizers`; SimCLR uses weight_decay=1e-6.
    """

    def __init__(
        self,
        learning_rate: Any = 0.3,
        momentum: float = 0.9,
        trust: float = 0.001,
        divisor: str = "sum-of-norms",
        nesterov: bool = False,
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, **kwargs)
        _one_of("divisor", divisor, ("sum-of-norms", "norm-of-sum"))
        self.momentum, self.trust, self.divisor = momentum, trust, divisor
        self.nesterov = nesterov

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def _apply_weight_decay(self, variables):
        """Nothing: the decay is part of the gradient in `update_step`."""

    def update_step(self, gradient, variable, learning_rate):
        dtype = variable.dtype
        velocity = self._velocities[self._get_variable_index(variable)]
        gradient = ops.cast(gradient, dtype)
        rate = ops.cast(learning_rate, dtype)
        if self._use_weight_decay(variable):
            decay = self.weight_decay or 0.0
            decayed = gradient + decay * variable
            norm = _norm(variable)
            divisor = (
                _norm(gradient) + decay * norm if self.divisor == "sum-of-norms" else _norm(decayed)
            )
            usable = ops.logical_and(norm > 0, divisor > 0)
            ones = ops.ones_like(norm)
            rate *= ops.where(usable, self.trust * norm / ops.where(usable, divisor, ones), ones)
            gradient = decayed
        step = rate * gradient
        self.assign(velocity, self.momentum * velocity + step)
        update = self.momentum * velocity + step if self.nesterov else velocity
        self.assign_sub(variable, update)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "trust": self.trust,
            "divisor": self.divisor,
            "nesterov": self.nesterov,
        }


def _norm(tensor):
    return ops.sqrt(ops.sum(ops.square(tensor)))


_INNER: dict[str, type] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "rmsprop": RMSprop,
    "adam": Adam,
    "radam": RAdam,
}


@_register
class Lookahead(OptimizerMixin, keras.optimizers.Optimizer):
    """Slow weights that follow every k-th fast step (Zhang et al. 2019, algorithm 1).

    The model holds the fast weights, which ``inner`` updates. After every ``sync_period`` updates
    ``slow += slow_step * (fast - slow)`` and the fast weights restart there. The inner optimizer's
    state is kept over a synchronisation (the paper's default). The slow weights start as the
    model's weights at the first update.

    Args:
        learning_rate: of the inner optimizer, a number or a schedule; None: its own default.
        inner: sgd, momentum, nesterov, rmsprop, adam or radam.
        inner_options: options of the inner optimizer, e.g. ``{"beta_2": 0.98}``.
        sync_period: the paper's k, in optimizer steps.
        slow_step: the paper's alpha, in (0, 1].
        **kwargs: see :mod:`.optimizers`.
    """

    def __init__(
        self,
        learning_rate: Any = None,
        inner: str = "adam",
        inner_options: dict[str, Any] | None = None,
        sync_period: int = 6,
        slow_step: float = 0.5,
        **kwargs: Any,
    ):
        _one_of("inner", inner, tuple(_INNER))
        inner_options = dict(inner_options or {})
        allowed = options_of(_INNER[inner])
        default = allowed.pop("learning_rate")
        check_options(f"inner optimizer {inner!r}", inner_options, allowed)
        if learning_rate is None:
            learning_rate = default
        super().__init__(learning_rate=learning_rate, **kwargs)
        if sync_period < 1 or not 0 < slow_step <= 1:
            raise ValueError(
                "sync_period must be at least 1 and slow_step above 0 and at most 1, not "
                f"{sync_period} and {slow_step}."
            )
        self.inner, self.inner_options = inner, inner_options
        self.sync_period, self.slow_step = sync_period, slow_step
        self._fast = _INNER[inner](**inner_options)

    @property
    def variables(self):
        return [*super().variables, *self._fast.variables]

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._fast.build(variables)
        self._slow = self.add_optimizer_variables(variables, "slow")

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        self._fast.iterations.assign(self.iterations)

    def save_own_variables(self, store):
        for index, variable in enumerate(super().variables):  # Keras saves the inner one by itself
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store):
        for index, variable in enumerate(super().variables):
            variable.assign(store[str(index)])

    def update_step(self, gradient, variable, learning_rate):
        slow = self._slow[self._get_variable_index(variable)]
        before = ops.where(self.iterations > 0, slow, variable)
        self._fast.update_step(gradient, variable, learning_rate)
        sync = ops.equal((self.iterations + 1) % self.sync_period, 0)
        after = ops.where(sync, before + self.slow_step * (variable - before), before)
        self.assign(slow, after)
        self.assign(variable, ops.where(sync, after, variable))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "inner": self.inner,
            "inner_options": self.inner_options,
            "sync_period": self.sync_period,
            "slow_step": self.slow_step,
        }


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{option} is one of {', '.join(allowed)}; not {value!r}.")
