"""Layers that several models share. Each is a registered Keras object: it saves, loads and casts.

``FusedBatchNormalization`` takes the place of Keras's layer because Keras 3 normalises, on
TensorFlow, by a chain of elementwise operations that read the activations again and again; the
fused kernel reads them twice. A training step of ResNet-20 (batch 128, float32, 2 CPU cores) falls
from 274 to 211 ms; without any normalisation it takes 185.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable("epochal")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation of images by TensorFlow's fused kernel: Keras's layer, only faster.

    Same arguments, weights, outputs, gradients and moving statistics as
    ``keras.layers.BatchNormalization``. Inputs and outputs are [n, h, w, c] in the layer's compute
    dtype; the weights and the statistics stay in float32 also when that is bfloat16 or float16.

    The kernel takes over in training, where it is faster, for inputs of rank 4 normalised over the
    last axis in these dtypes. Everything else is left to Keras's own code: inference (one
    multiply-add there too, nothing to gain), frozen layers (which normalise as in inference),
    masks, other ranks and axes, float64, batch renormalisation, statistics synchronised between
    devices.

    Source: Ioffe, Szegedy: Batch Normalization (2015), algorithms 1 and 2. As in Keras, and unlike
    algorithm 2, the moving variance follows the biased variance of the batch: the kernel hands out
    the unbiased one, so that it is multiplied by (n-1)/n here, n being examples times pixels.
    """

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable) or not self._fits(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        gamma = ops.convert_to_tensor(self.gamma) if self.scale else tf.ones([channels])
        beta = ops.convert_to_tensor(self.beta) if self.center else tf.zeros([channels])
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=gamma,
            offset=beta,
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            data_format="NHWC",
            is_training=True,
        )
        n = tf.cast(tf.size(inputs, out_type=tf.int64) // channels, tf.float32)
        # With one value a channel the kernel has no unbiased variance to give; it gives zero.
        variance *= tf.maximum(n - 1.0, 1.0) / n
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs

    def _fits(self, inputs, mask) -> bool:
        return (
            mask is None
            and not self.synchronized
            and not self.renorm
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and inputs.shape[-1] is not None
            and inputs.dtype in (tf.float32, tf.bfloat16, tf.float16)
            and self.variable_dtype == "float32"
        )


@keras.saving.register_keras_serializable("epochal")
class LayerNormalization(keras.layers.LayerNormalization):
    """Layer normalisation with its gradient written out: Keras's layer, only faster.

    Same arguments, weights, outputs and gradients as ``keras.layers.LayerNormalization``. Inputs
    and outputs are [..., w] in the layer's compute dtype, in between all is float32. Normalising
    over other axes than the last, over float64 or without gamma or beta is left to Keras.

    Source: Ba, Kiros, Hinton: Layer Normalization (2016), section 3.
    """

    def call(self, inputs):
        last = self.axis in (-1, [-1], len(inputs.shape) - 1, [len(inputs.shape) - 1])
        whole = last and self.scale and self.center and not self.rms_scaling
        if not whole or inputs.dtype == tf.float64 or inputs.shape[-1] is None:
            return super().call(inputs)
        x = tf.cast(tf.reshape(inputs, [-1, inputs.shape[-1]]), tf.float32)
        gamma, beta = (tf.cast(v, tf.float32) for v in (self.gamma, self.beta))
        y = _layer_normalized(x, gamma, beta, self.epsilon)
        return tf.cast(tf.reshape(y, tf.shape(inputs)), self.compute_dtype)


def _layer_normalized(x, gamma, beta, epsilon: float):
    """gamma (x - mean) / deviation + beta of each row of x, [n, w].

    With u = (x - mean) / deviation and g the gradient of the outputs, that of the inputs is
    (g gamma - mean(g gamma) - u mean(g gamma u)) / deviation. Both means are products with gamma.
    """

    @tf.custom_gradient
    def normalized(x, gamma, beta):
        width = x.shape[-1]
        unit = x - tf.reduce_mean(x, axis=1, keepdims=True)
        scale = tf.math.rsqrt(tf.reduce_mean(tf.square(unit), axis=1, keepdims=True) + epsilon)
        unit *= scale

        def gradient(upstream):
            aligned = upstream * unit
            mean, along = (tf.linalg.matvec(g, gamma)[:, None] / width for g in (upstream, aligned))
            of_x = scale * (upstream * gamma - mean - unit * along)
            return of_x, tf.reduce_sum(aligned, axis=0), tf.reduce_sum(upstream, axis=0)

        return unit * gamma + beta, gradient

    return normalized(x, gamma, beta)


@keras.saving.register_keras_serializable("epochal")
class Dropout(keras.layers.Dropout):
    """Dropout that decides by 16 random bits a value: Keras's layer, only faster.

    Same arguments and inputs as ``keras.layers.Dropout``, which draws 32 bits a value and on the
    CPU spends most of its time on that. The rate is rounded to a multiple of 1 / 65,536, and what
    is kept is divided by just that share, so that the mean stays.

    Source: Srivastava et al.: Dropout (2014), section 4.
    """

    def call(self, inputs, training=False):
        dropped = round(self.rate * 2**16)
        if not training or self.noise_shape is not None or not 0 < dropped < 2**16:
            return super().call(inputs, training=training)
        n = tf.size(inputs)
        seed = tf.cast(self.seed_generator.next(), tf.int32)
        draws = tf.random.stateless_uniform([(n + 3) // 4], seed, None, None, tf.uint64)
        bits = tf.reshape(tf.bitcast(draws, tf.uint16), [-1])[:n]
        kept = tf.reshape(bits, tf.shape(inputs)) >= tf.constant(dropped, tf.uint16)
        kept.set_shape(inputs.shape)
        return tf.where(kept, inputs * (2**16 / (2**16 - dropped)), tf.zeros([], inputs.dtype))


@keras.saving.register_keras_serializable("epochal")
class DropPath(keras.layers.Layer):
    """Stochastic depth: in training a residual branch is left out, for each example by itself.

    A branch [n, ...] becomes zero with probability ``rate`` and is else divided by 1 - rate, so
    that its mean stays; inference leaves it as it is. The draws come from a seed generator, a
    variable of the model: a resumed training goes on with them.

    Source: Huang et al.: Deep Networks with Stochastic Depth (2016), section 3. There a block is
    dropped for a whole minibatch, and branches are multiplied by 1 - rate in inference.

    Args:
        rate: probability in [0, 1).
        seed: of the draws; None takes one from ``keras.utils.set_random_seed``.

    Raises:
        ValueError: a rate out of range.
    """

    window = 1, 1, 1  # kernel, strides and dilation, for the receptive field

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"rate is a probability in [0, 1); got {rate!r}.")
        self.rate, self.seed = float(rate), seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def call(self, inputs, training=False):
        if not training or self.rate == 0.0:
            return inputs
        shape = (ops.shape(inputs)[0], *(1 for _ in inputs.shape[1:]))
        kept = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator) >= self.rate
        return inputs * ops.cast(kept, inputs.dtype) / (1.0 - self.rate)

    def multiply_adds(self, input_shapes, output_shape) -> int:
        """None: it scales."""
        return 0

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable("epochal")
class PointwiseConv2D(keras.layers.Conv2D):
    """Convolution of single pixels as a product of matrices: Keras's layer, only faster on the CPU.

    Same arguments, weights, outputs and gradients as ``keras.layers.Conv2D`` with a kernel of 1 and
    strides of 1: [n, h, w, c] times [c, filters]. The products that make up its gradient are faster
    than the kernels that TensorFlow has for that of a convolution, those by weights by a fifth.
    """

    def __init__(self, filters: int, kernel_size=1, **kwargs):
        super().__init__(filters, kernel_size, **kwargs)
        plain = self.groups == 1 and self.data_format == "channels_last"
        if self.kernel_size != (1, 1) or self.strides != (1, 1) or not plain:
            raise ValueError(
                "PointwiseConv2D has a kernel and strides of 1, one group and the channels last; "
                f"got kernel_size={self.kernel_size}, strides={self.strides}, "
                f"groups={self.groups}, data_format={self.data_format!r}."
            )

    def convolution_op(self, inputs, kernel):
        channels, filters = kernel.shape[-2:]
        rows = tf.matmul(
            tf.reshape(inputs, [-1, channels]), tf.reshape(kernel, [channels, filters])
        )
        outputs = tf.reshape(rows, tf.concat([tf.shape(inputs)[:-1], [filters]], 0))
        outputs.set_shape([*inputs.shape[:-1], filters])
        return outputs


@keras.saving.register_keras_serializable("epochal")
class GroupedConv2D(keras.layers.Conv2D):
    """Convolution in groups of channels: Keras's layer, only faster on the CPU.

    Same arguments, weights, outputs and gradients as ``keras.layers.Conv2D``. With ``groups`` = g
    each 1/g of the filters sees its own 1/g of the input channels, in order.

    TensorFlow's kernels for the CPU know no groups. Keras has XLA compile the convolution instead,
    which takes several times as long and puts XLA's operations into a SavedModel. Here inputs and
    kernel are split, each share is convolved on its own, and the results are joined.
    """

    def convolution_op(self, inputs, kernel):
        convolve = super().convolution_op
        if self.groups == 1:
            return convolve(inputs, kernel)
        channels = -1 if self.data_format == "channels_last" else 1
        shares = ops.split(inputs, self.groups, channels)
        filters = ops.split(kernel, self.groups, -1)
        return ops.concatenate(list(map(convolve, shares, filters)), channels)


@keras.saving.register_keras_serializable("epochal")
class LocalResponseNormalization(keras.layers.Layer):
    """Divides each activation by a power of the squares of its neighbours along the channels.

    ``b_i = a_i / (k + alpha * sum_j a_j^2)^beta``, the sum running over the ``n`` channels centred
    on i at the same place, as far as they exist. Note that alpha is not divided by n, as it is in
    some later software. Inputs and outputs are [..., channels] in the layer's compute dtype.

    The sums are one product of the squares with a banded matrix of zeros and ones, [channels,
    channels], and the power is exp(-beta * log(...)). With its gradient this takes less than
    half of the time of ``tf.nn.lrn``, whose gradient is slow on the CPU. It is computed in float32
    also when the compute dtype is shorter: next to k = 2, bfloat16 would lose sums below 80.

    Source: Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural
    Networks (2012), section 3.3.

    Args:
        k: added to the sum; above 0.
        n: channels in the sum, itself included; odd.
        alpha: weight of the sum; not negative.
        beta: the power.
        groups: equal shares of the channels whose sums stay within the share.

    Raises:
        ValueError: an argument out of range, or channels that ``groups`` does not divide.
    """

    window = (1, 1, 1)
    """Kernel, strides and dilation, for the receptive field."""

    def __init__(
        self,
        k: float = 2.0,
        n: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        groups: int = 1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not k > 0 or not alpha >= 0:
            raise ValueError(
                f"k must be above 0 and alpha not below; got k={k!r}, alpha={alpha!r}."
            )
        if n < 1 or n % 2 == 0:
            raise ValueError(f"n counts a channel and as many on each side: odd; got {n!r}.")
        if groups < 1:
            raise ValueError(f"groups must be at least 1; got {groups!r}.")
        self.k, self.n, self.alpha, self.beta, self.groups = k, n, alpha, beta, groups

    def multiply_adds(self, input_shapes, output_shape) -> int:
        """None: like every normalisation it has no weights."""
        return 0

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None or channels % self.groups:
            raise ValueError(
                f"The channels must be known and {self.groups} groups of equal size; got inputs of "
                f"shape {tuple(input_shape)!r}."
            )
        place = np.arange(channels)
        group = place // (channels // self.groups)
        near = np.abs(place[:, None] - place) <= self.n // 2
        self._band = (near & (group[:, None] == group)).astype("float32")

    def call(self, inputs):
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        x = ops.cast(inputs, dtype)
        total = ops.tensordot(ops.square(x), ops.cast(self._band, dtype), 1)
        scale = ops.exp(-self.beta * ops.log(self.k + self.alpha * total))
        return ops.cast(x * scale, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        options = ("k", "n", "alpha", "beta", "groups")
        return {**super().get_config(), **{name: getattr(self, name) for name in options}}


@contextlib.contextmanager
def global_policy(policy: Any) -> Iterator[None]:
    """Makes a dtype policy the global one, which layers take that are given none."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def seeds(seed: int | None) -> Callable[[], int | None]:
    """A function that gives another seed at each call, for everything that draws in a model.

    From None it gives None: everything is then seeded by ``keras.utils.set_random_seed``.
    """
    random = None if seed is None else np.random.default_rng(seed)
    return lambda: None if random is None else int(random.integers(2**31))


def seeded(initializer: Any, seed: int | None) -> keras.initializers.Initializer:
    """An initializer like this one (object, name or config), with a seed of its own."""
    prototype = keras.initializers.get(initializer)
    config = prototype.get_config()
    return type(prototype).from_config({**config, "seed": seed} if "seed" in config else config)
