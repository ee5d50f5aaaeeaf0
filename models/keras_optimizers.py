"""The optimizers that Keras has too, and the weight decay that all optimizers here share.

Import them from :mod:`.optimizers`; its text has their updates and the exclusion rule.

SGD and Adam update a variable by one kernel of TensorFlow's. Keras's own are made of some ten
operations, each of which reads and writes as much memory as the variable takes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

EXCLUDE = ("bias", "gamma", "beta")

_logger = logging.getLogger(__name__)
_register = keras.saving.register_keras_serializable("epochal")


class OptimizerMixin:
    """Mixed in before a Keras optimizer: weight decay with a rule that is part of the config, and
    learning rates for single layers."""

    def __init__(
        self,
        learning_rate: Any,
        weight_decay: float | None = 0.0,
        weight_decay_exclude: Sequence[str] = EXCLUDE,
        layer_rates: Mapping[str, float] | None = None,
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
        self.layer_rates = {name: float(rate) for name, rate in (layer_rates or {}).items()}

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
        self._rates = [_first(_path(v).split("/"), self.layer_rates) for v in variables]
        super().build(variables)

    def _apply_weight_decay(self, variables):
        decay = self.weight_decay
        for rate, group in self._by_rate(variables):
            # lr * decay is what counts: this is the decay at the layer's own rate.
            self.weight_decay = None if decay is None else decay * rate
            super()._apply_weight_decay([variables[i] for i in group])
        self.weight_decay = decay

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        for rate, group in self._by_rate(trainable_variables):
            super()._backend_update_step(
                [grads[i] for i in group],
                [trainable_variables[i] for i in group],
                learning_rate if rate == 1.0 else learning_rate * rate,
            )

    def _by_rate(self, variables) -> list[tuple[float, list[int]]]:
        """Each factor of the learning rate, and the places of the variables that have it."""
        found: dict[float, list[int]] = {}
        for place, variable in enumerate(variables):
            rate = self._rates[self._get_variable_index(variable)]
            found.setdefault(rate, []).append(place)
        return list(found.items())

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
            "layer_rates": dict(self.layer_rates),
        }


def _dense(gradient, variable):
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows = variable.shape[0]
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, rows)


def _path(variable) -> str:
    return getattr(variable, "path", None) or variable.name.split(":")[0]


def _last_names(variable) -> set[str]:
    return set(_path(variable).split("/")[-2:])


def _first(names: list[str], rates: dict[str, float]) -> float:
    """The rate of the outermost layer that has one; 1 where none has."""
    return next((rates[name] for name in names if name in rates), 1.0)


@_register
class SGD(OptimizerMixin, keras.optimizers.SGD):
    """Stochastic gradient descent, with momentum where asked for.

    Args:
        learning_rate: a number or a schedule.
        momentum: share of the last step that is kept, in [0, 1].
        nesterov: look ahead along the momentum (no effect without momentum).
        **kwargs: see :mod:`.optimizers`.
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

    def update_step(self, gradient, variable, learning_rate):
        if not self.momentum:
            super().update_step(gradient, variable, learning_rate)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=_resource(variable),
            accum=_resource(self.momentums[self._get_variable_index(variable)]),
            lr=tf.cast(learning_rate, variable.dtype),
            grad=tf.cast(gradient, variable.dtype),
            momentum=tf.constant(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
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
class RMSprop(OptimizerMixin, keras.optimizers.RMSprop):
    """Divides by a running root mean square of the gradient (Hinton 2012; Graves 2013).

    Args:
        learning_rate: a number or a schedule.
        rho: decay of the running averages.
        momentum: share of the last step that is kept.
        epsilon: added to the mean square, inside the root.
        centered: subtract the squared running mean of the gradient (Graves 2013; DQN).
        **kwargs: see :mod:`.optimizers`.
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
class Adam(OptimizerMixin, keras.optimizers.Adam):
    """Adam in the form before section 2.1 of Kingma and Ba 2014 (``epsilon`` is "epsilon hat").

    With ``weight_decay`` it is AdamW. Algorithm 1 of the paper adds its epsilon to the root of the
    *corrected* second moment instead: with 1e-8 there, the difference vanishes in a few steps.

    Args:
        learning_rate: a number or a schedule.
        beta_1: decay of the mean of the gradient.
        beta_2: decay of the mean of its square.
        epsilon: added to the root of the uncorrected second moment.
        amsgrad: divide by the largest second moment so far (Reddi et al. 2018).
        **kwargs: see :mod:`.optimizers`.
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
        gradient = tf.cast(gradient, dtype)
        # The kernel knows the betas in the variable's precision, and so must the corrections.
        rounded = float if self.amsgrad else tf.as_dtype(dtype).as_numpy_dtype
        correction_1, correction_2 = bias_corrections(self, rounded)
        rate = tf.cast(learning_rate, dtype) * tf.cast(ops.sqrt(correction_2) / correction_1, dtype)
        if not self.amsgrad:
            tf.raw_ops.ResourceApplyAdam(
                var=_resource(variable),
                m=_resource(mean),
                v=_resource(square),
                beta1_power=tf.zeros([], dtype),  # the rate has the corrections
                beta2_power=tf.zeros([], dtype),
                lr=rate,
                beta1=tf.constant(self.beta_1, dtype),
                beta2=tf.constant(self.beta_2, dtype),
                epsilon=tf.constant(self.epsilon, dtype),
                grad=gradient,
            )
            return
        self.assign_add(mean, (gradient - mean) * (1 - self.beta_1))
        self.assign_add(square, (tf.square(gradient) - square) * (1 - self.beta_2))
        top = self._velocity_hats[index]
        self.assign(top, tf.maximum(top, square))
        self.assign_sub(variable, rate * mean / (tf.sqrt(top) + self.epsilon))


def _resource(variable):
    """What TensorFlow's kernels take of a variable; of a mirrored one, this replica's."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle


def bias_corrections(optimizer, rounded: Callable = float) -> tuple[Any, Any]:
    """1 - beta_1^t and 1 - beta_2^t as float64 scalars: in float32 a small difference is coarse.

    ``rounded`` gives the betas as they are used.
    """
    t = ops.cast(optimizer.iterations + 1, "float64")
    beta_1, beta_2 = (float(rounded(beta)) for beta in (optimizer.beta_1, optimizer.beta_2))
    return 1 - beta_1**t, 1 - beta_2**t


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
