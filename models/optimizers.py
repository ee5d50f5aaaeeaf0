"""Element 4, the algorithm: optimizers as ordinary Keras objects, and :func:`build` for trainers.

| name | default rate | update (t counts from 1; g: gradient; m, v: running means) | paper |
|---|---|---|---|
| sgd | 0.01 | w -= lr g | Robbins and Monro 1951 |
| momentum | 0.01 | u = momentum u - lr g; w += u | Polyak 1964 |
| nesterov | 0.01 | u as above; w += momentum u - lr g | Sutskever 2013, section 2 |
| rmsprop | 0.001 | w -= lr g / sqrt(v + epsilon) | Hinton 2012; Graves 2013 |
| adam | 0.001 | w -= lr sqrt(1-b2^t)/(1-b1^t) m / (sqrt(v) + epsilon) | Kingma 2014 |
| adamw | 0.001 | adam, with weight decay 0.01 by default | Loshchilov 2017 |
| radam | 0.001 | adam, rectified; its first steps go without v | Liu 2019, alg. 2 |
| lars | 0.3 | momentum at a rate for each layer, lr trust norm(w)/norm(g) | You 2017, alg. 1 |
| lookahead | `inner`'s | every k steps, from slow weights half-way to fast | Zhang 2019, alg. 1 |

SGD and RMSprop are Keras's own updates. Keras's Adam computes its bias corrections in float32, by
which the first steps are off by about 1e-5 of their size: ours does that in float64.

All share **weight decay with an exclusion rule that survives saving**: ``weight_decay`` shrinks the
weights before each update, ``w -= lr * weight_decay * w`` (decoupled from the gradient; in LARS it
is part of the gradient, as in its paper), except for variables whose own name, or whose layer's
name, is in ``weight_decay_exclude``. These two are the last parts of ``variable.path``; the earlier
ones are not compared, because Keras forgets the name of an enclosing Sequential when a model is
saved and loaded. Further keyword arguments are those of every Keras optimizer:
``global_clipnorm``, ``use_ema``, ``ema_momentum``, ``name``, ...

Sparse gradients (of an embedding) are made dense first: Keras squares a row's several
contributions one by one, where the square of their sum is meant, in Adam's second moment and in
the norm for clipping alike.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from .schedules import (  # the classes and needs_callback are part of this module's names
    SCHEDULES,
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    OneCycle,
    Step,
    build_schedule,
    check_options,
    named,
    needs_callback,
    options_of,
    schedule_options,
)

__all__ = [
    "EXCLUDE",
    "LARS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "InverseSqrt",
    "Linear",
    "Lookahead",
    "Momentum",
    "Nesterov",
    "OneCycle",
    "RAdam",
    "RMSprop",
    "Step",
    "build",
    "default_learning_rate",
    "needs_callback",
    "options",
    "schedule_options",
]

EXCLUDE = ("bias", "gamma", "beta")

_logger = logging.getLogger(__name__)
_register = keras.saving.register_keras_serializable("epochal")


class _Optimizer:
    """Mixed in before a Keras optimizer: weight decay with a rule that is part of the config."""

    def __init__(
        self,
        learning_rate: Any,
        weight_decay: float | None = 0.0,
        weight_decay_exclude: Sequence[str] = EXCLUDE,
        **kwargs: Any,
    ):
        if isinstance(learning_rate, int | float):
            learning_rate = float(learning_rate)
            if not (math.isfinite(learning_rate) and learning_rate >= 0):
                raise ValueError(
                    f"learning_rate must be finite and not negative, not {learning_rate}."
                )
        weight_decay = float(weight_decay or 0.0)
        if not (math.isfinite(weight_decay) and weight_decay >= 0):
            raise ValueError(f"weight_decay must be finite and not negative, not {weight_decay}.")
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay or None, **kwargs)
        if isinstance(weight_decay_exclude, str):
            weight_decay_exclude = (weight_decay_exclude,)
        self.weight_decay_exclude = tuple(weight_decay_exclude)

    def build(self, variables):
        if self.built:
            return
        names = [_last_names(variable) for variable in variables]
        self._decays = tuple(not names_of & {*self.weight_decay_exclude} for names_of in names)
        unused = {*self.weight_decay_exclude} - {*EXCLUDE}.union(*names)
        if unused and self.weight_decay:
            _logger.warning(
                "weight_decay_exclude names %s, which is no variable and no variable's layer.",
                ", ".join(sorted(unused)),
            )
        super().build(variables)

    def apply(self, grads, trainable_variables=None):
        if any(isinstance(gradient, tf.IndexedSlices) for gradient in grads):
            if trainable_variables is None:
                trainable_variables = self._trainable_variables
            trainable_variables = list(trainable_variables)
            grads = [_dense(g, v) for g, v in zip(grads, trainable_variables, strict=True)]
        super().apply(grads, trainable_variables)

    def _use_weight_decay(self, variable):
        return self._decays[self._get_variable_index(variable)]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "weight_decay": self.weight_decay or 0.0,
            "weight_decay_exclude": list(self.weight_decay_exclude),
        }


def _dense(gradient, variable):
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows = variable.shape[0]
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, rows)


def _last_names(variable) -> set[str]:
    path = getattr(variable, "path", None) or variable.name.split(":")[0]
    return set(path.split("/")[-2:])


@_register
class SGD(_Optimizer, keras.optimizers.SGD):
    """Stochastic gradient descent, with momentum where asked for.

    Args:
        learning_rate: a number or a schedule.
        momentum: share of the last step that is kept, in [0, 1].
        nesterov: look ahead along the momentum (no effect without momentum).
        **kwargs: see the module.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate, momentum=float(momentum), nesterov=nesterov, **kwargs
        )


@_register
class Momentum(SGD):
    """:class:`SGD` with a momentum of 0.9 by default (Polyak 1964)."""

    def __init__(self, learning_rate: Any = 0.01, momentum: float = 0.9, **kwargs: Any):
        super().__init__(learning_rate, momentum, **kwargs)


@_register
class Nesterov(SGD):
    """:class:`SGD` with Nesterov's momentum, 0.9 by default (Sutskever et al. 2013, section 2)."""

    def __init__(self, learning_rate: Any = 0.01, momentum: float = 0.9, **kwargs: Any):
        super().__init__(learning_rate, momentum, **{**kwargs, "nesterov": True})


@_register
class RMSprop(_Optimizer, keras.optimizers.RMSprop):
    """Divides by a running root mean square of the gradient (Hinton 2012; Graves 2013).

    Args:
        learning_rate: a number or a schedule.
        rho: decay of the running averages.
        momentum: share of the last step that is kept.
        epsilon: added to the mean square, inside the root.
        centered: subtract the squared running mean of the gradient (Graves 2013; DQN).
        **kwargs: see the module.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate,
            rho=rho,
            momentum=momentum,
            epsilon=epsilon,
            centered=centered,
            **kwargs,
        )


@_register
class Adam(_Optimizer, keras.optimizers.Adam):
    """Adam in the form before section 2.1 of Kingma and Ba 2014 (``epsilon`` is "epsilon hat").

    With ``weight_decay`` it is AdamW. Algorithm 1 of the paper adds its epsilon to the root of the
    *corrected* second moment instead: with 1e-8 there, the difference vanishes in a few steps.

    Args:
        learning_rate: a number or a schedule.
        beta_1: decay of the mean of the gradient.
        beta_2: decay of the mean of its square.
        epsilon: added to the root of the uncorrected second moment.
        amsgrad: divide by the largest second moment so far (Reddi et al. 2018).
        **kwargs: see the module.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            amsgrad=amsgrad,
            **kwargs,
        )

    def update_step(self, gradient, variable, learning_rate):
        dtype = variable.dtype
        index = self._get_variable_index(variable)
        mean, square = self._momentums[index], self._velocities[index]
        gradient = ops.cast(gradient, dtype)
        self.assign_add(mean, (gradient - mean) * (1 - self.beta_1))
        self.assign_add(square, (ops.square(gradient) - square) * (1 - self.beta_2))
        if self.amsgrad:
            top = self._velocity_hats[index]
            self.assign(top, ops.maximum(top, square))
            square = top
        correction_1, correction_2 = _corrections(self)
        rate = ops.cast(learning_rate, dtype)
        rate *= ops.cast(ops.sqrt(correction_2) / correction_1, dtype)
        self.assign_sub(variable, rate * mean / (ops.sqrt(square) + self.epsilon))


def _corrections(optimizer) -> tuple[Any, Any]:
    """1 - beta_1^t and 1 - beta_2^t as float64 scalars: in float32 a small difference is coarse."""
    t = ops.cast(optimizer.iterations + 1, "float64")
    return 1 - optimizer.beta_1**t, 1 - optimizer.beta_2**t


@_register
class AdamW(Adam):
    """:class:`Adam` with a weight decay of 0.01 by default (Loshchilov and Hutter 2017)."""

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        weight_decay: float = 0.01,
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay=weight_decay, **kwargs
        )


@_register
class RAdam(_Optimizer, keras.optimizers.Optimizer):
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
        **kwargs: see the module.
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
        correction_1, correction_2 = _corrections(self)
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
class LARS(_Optimizer, keras.optimizers.Optimizer):
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
        **kwargs: see the module; SimCLR uses weight_decay=1e-6.
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


@_register
class Lookahead(_Optimizer, keras.optimizers.Optimizer):
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
        **kwargs: see the module.
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
        _one_of("inner", inner, _INNER)
        inner_options = dict(inner_options or {})
        allowed = {k: v for k, v in options(inner).items() if k != "learning_rate"}
        check_options(f"inner optimizer {inner!r}", inner_options, allowed)
        if learning_rate is None:
            learning_rate = default_learning_rate(inner)
        super().__init__(learning_rate=learning_rate, **kwargs)
        if sync_period < 1 or not 0 < slow_step <= 1:
            raise ValueError(
                "sync_period must be at least 1 and slow_step above 0 and at most 1, not "
                f"{sync_period} and {slow_step}."
            )
        self.inner, self.inner_options = inner, inner_options
        self.sync_period, self.slow_step = sync_period, slow_step
        self._fast = OPTIMIZERS[inner](**inner_options)

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


OPTIMIZERS: dict[str, type] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
    "radam": RAdam,
    "lars": LARS,
    "lookahead": Lookahead,
}
_INNER = ("sgd", "momentum", "nesterov", "rmsprop", "adam", "radam")


def build(
    name: str,
    options: dict[str, Any] | None = None,
    *,
    schedule: tuple[str, dict[str, Any]] = ("constant", {}),
    steps: int,
    weight_decay: float | None = None,
    weight_decay_exclude: Sequence[str] = EXCLUDE,
    clip_norm: float | None = None,
    ema: float | None = None,
) -> keras.optimizers.Optimizer:
    """The optimizer that a recipe describes.

    Args:
        name: a key of ``OPTIMIZERS``.
        options: its own options, see :func:`options`. ``learning_rate`` is the peak of the
            schedule; without it the optimizer's default applies.
        schedule: a key of ``SCHEDULES`` and its options. ``constant`` and ``plateau`` give a rate
            that can be assigned to; plateau needs the callback of :func:`needs_callback` as well.
        steps: optimizer steps of the whole training, the length of the schedule.
        weight_decay: None for the optimizer's default: none, but 0.01 for adamw.
        weight_decay_exclude: words, see the module.
        clip_norm: gradients are scaled down to at most this global L2 norm.
        ema: momentum of the average of the weights; it never overwrites them during training (use
            ``callbacks.SwapEMA`` to validate with it), only at the end of Keras's ``fit``.

    Raises:
        ValueError: unknown name or option (the nearest and all valid ones are named), or values
            that make no sense together.
    """
    chosen = dict(options or {})
    kind = named("optimizer", name, OPTIMIZERS)
    check_options(f"optimizer {name!r}", chosen, options_of(kind))
    if weight_decay is not None:
        chosen["weight_decay"] = weight_decay
    default = default_learning_rate(chosen.get("inner", name))
    chosen["learning_rate"] = build_schedule(
        *schedule, learning_rate=chosen.get("learning_rate"), default=default, steps=steps
    )
    if ema is not None:
        chosen |= {"use_ema": True, "ema_momentum": float(ema), "ema_overwrite_frequency": None}
    return kind(
        **chosen, weight_decay_exclude=tuple(weight_decay_exclude), global_clipnorm=clip_norm
    )


def options(name: str) -> dict[str, Any]:
    """The options that :func:`build` takes for an optimizer, with their defaults."""
    return options_of(named("optimizer", name, OPTIMIZERS))


def default_learning_rate(name: str) -> float:
    """The documented default of an optimizer; of lookahead's default inner one for lookahead."""
    found = options(name)
    return default_learning_rate(found["inner"]) if "inner" in found else found["learning_rate"]


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{option} is one of {', '.join(allowed)}; not {value!r}.")
