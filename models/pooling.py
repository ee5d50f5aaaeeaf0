"""What heads take of a sequence of vectors: the first one, their mean, or those at some places."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

_register = keras.saving.register_keras_serializable("epochal")


@_register
class Pooler(keras.layers.Layer):
    """tanh(W x_1 + b) of the first token of x [n, t, d]: [n, d]."""

    def __init__(self, initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape):
        self.dense = keras.layers.Dense(
            input_shape[-1],
            "tanh",
            kernel_initializer=self.initializer,
            dtype=self.dtype_policy,
            name="dense",
        )
        self.dense.build((None, input_shape[-1]))

    def call(self, x):
        return self.dense(x[:, 0])

    def compute_mask(self, x, previous_mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return input_shape[0], input_shape[-1]

    def multiply_adds(self, input_shapes, output_shape) -> int:
        """One product."""
        return output_shape[-1] ** 2

    def get_config(self):
        initializer = keras.initializers.serialize(self.initializer)
        return {**super().get_config(), "initializer": initializer}


@_register
class MeanPooling(keras.layers.Layer):
    """Mean of x [n, t, d] over the real tokens, then divided by its length: float32 [n, d]."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x, mask=None):
        real = tf.ones(tf.shape(x)[:2]) if mask is None else tf.cast(mask, tf.float32)
        total = tf.einsum("ntd,nt->nd", tf.cast(x, tf.float32), real)
        # The mean's direction is the sum's. A row of padding alone has none, and stays 0.
        return tf.math.l2_normalize(total, axis=-1, epsilon=1e-24)

    def compute_mask(self, x, previous_mask=None):
        return None

    def compute_output_spec(self, x, mask=None):
        return keras.KerasTensor((x.shape[0], x.shape[-1]), "float32")

    def multiply_adds(self, input_shapes, output_shape) -> int:
        """None: it adds."""
        return 0


@_register
class AtPositions(keras.layers.Layer):
    """Of (x [n, t, d], positions int32 [n, m]) the vectors at these positions, [n, m, d].

    Position 0, the first token, is never hidden: it fills rows with fewer positions, masked out.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs):
        x, positions = inputs
        return tf.gather(x, positions, batch_dims=1)

    def compute_mask(self, inputs, previous_mask=None):
        return ops.not_equal(inputs[1], 0)

    def compute_output_spec(self, inputs):
        x, positions = inputs
        return keras.KerasTensor((*positions.shape, x.shape[-1]), x.dtype)

    def multiply_adds(self, input_shapes, output_shape) -> int:
        """None: it looks up."""
        return 0
