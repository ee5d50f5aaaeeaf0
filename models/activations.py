"""What stands between the two dense layers of a Transformer: ReLU and GELU.

GELU is x Phi(x), Phi being the normal distribution: by the error function, as in BERT, or by its
approximation with a tanh, as in GPT. (Hendrycks, Gimpel: Gaussian Error Linear Units, 2016,
section 2.)

Operation by operation TensorFlow reads and writes all values a dozen times, for the gradient a
dozen times more. In training XLA compiles each direction into one loop, which takes a third to half
of the time: of a step of BERT 4 to 8%. A new number of values costs a tenth of a second, once. In
inference they are plain operations, so that a SavedModel needs no XLA; as they are in training
where TensorFlow comes without it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import tensorflow as tf
from keras import ops


def relu(x, training: bool | None = False):
    """max(x, 0); the same in training."""
    return ops.relu(x)


def _erf(x):
    """Phi(x), and its derivative."""
    share = 0.5 + 0.5 * tf.math.erf(0.5**0.5 * x)
    return share, (2 * math.pi) ** -0.5 * tf.exp(-0.5 * tf.square(x))


def _tanh(x):
    """What stands for Phi(x), and its derivative."""
    scale, cubic = (2 / math.pi) ** 0.5, 0.044715
    bent = tf.tanh(scale * (x + cubic * x * x * x))
    slope = scale * (1.0 + 3.0 * cubic * tf.square(x))
    return 0.5 + 0.5 * bent, 0.5 * (1.0 - tf.square(bent)) * slope


def _gelu(phi: Callable) -> Callable:
    """x phi(x), for a function that gives phi and its derivative."""

    def value(x):
        wide = _wide(x)
        return tf.cast(wide * phi(wide)[0], x.dtype)

    def gradient(x, upstream):
        wide = _wide(x)
        share, density = phi(wide)
        return tf.cast(tf.cast(upstream, wide.dtype) * (share + wide * density), x.dtype)

    fast_value, fast_gradient = _compiled(value), _compiled(gradient)

    @tf.custom_gradient
    def fast(x):
        return fast_value(x), lambda upstream: fast_gradient(x, upstream)

    def gelu(x, training: bool | None = False):
        """x Phi(x) for x of any shape and float dtype, in float32 at least in between."""
        x = tf.convert_to_tensor(x)
        return fast(x) if training and _xla_is_here() else value(x)

    return gelu


def _wide(x):
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


def _compiled(function: Callable) -> Callable:
    """An elementwise function by XLA. It sees flat arrays, and so is traced once for each dtype."""
    flat = tf.function(function, jit_compile=True, autograph=False, reduce_retracing=True)

    def call(x, *more):
        y = flat(*(tf.reshape(value, [-1]) for value in (x, *more)))
        y = tf.reshape(y, tf.shape(x))
        y.set_shape(x.shape)
        return y

    return call


@functools.cache
def _xla_is_here() -> bool:
    """Whether this TensorFlow can compile: some are built without XLA, on Macs for example."""
    with tf.init_scope():
        try:
            tf.function(tf.exp, jit_compile=True, autograph=False)(tf.zeros([1]))
        except tf.errors.OpError:
            return False
    return True


gelu, gelu_tanh = _gelu(_erf), _gelu(_tanh)
