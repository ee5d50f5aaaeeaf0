"""Token ids to vectors and back, and where in a sequence they stand."""

from __future__ import annotations

import math

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from .decoding import lengths

_register = keras.saving.register_keras_serializable("epochal")


class _Tokens(keras.Operation):
    """ids [n, t] -> bool [n, t]: all but the padding on the right."""

    def __init__(self, pad_id: int):
        super().__init__()
        self.pad_id = pad_id

    def call(self, ids):
        return tf.sequence_mask(lengths(ids, self.pad_id), tf.shape(ids)[1])

    def compute_output_spec(self, ids):
        return keras.KerasTensor(ids.shape, "bool")


@_register
class TokenEmbedding(layers.Layer):
    """Ids to vectors, and with ``reverse=True`` vectors to logits by the same matrix.

    - ids [n, t] int32 -> [n, t, width], times ``scale``; starts the mask, False
      at the ``pad_id`` on the right; among the others it is a token (the end of a text, for GPT-2).
    - x [n, t, width] -> logits x E^T (+ bias), [n, t, vocabulary_size] float32.

    Source: Press, Wolf: Using the output embedding to improve language models (2017); the scale
    sqrt(width) is the Transformer's (section 3.4).

    Args:
        vocabulary_size: rows of the matrix, padding included.
        width: columns.
        scale: multiplies the vectors, not the logits.
        initializer: of the matrix.
        pad_id: the id that is padding.
        use_bias: whether logits have biases, which start at 0.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int,
        scale: float = 1.0,
        initializer="uniform",
        pad_id: int = 0,
        use_bias: bool = False,
        **kwargs,
    ):
        # The matrix is not cast as a whole: only the rows that are looked up are.
        super().__init__(autocast=False, **kwargs)
        self.vocabulary_size, self.width, self.scale = vocabulary_size, width, scale
        self.initializer = keras.initializers.get(initializer)
        self.pad_id, self.use_bias = pad_id, use_bias
        self.supports_masking = True

    def build(self, input_shape=None):
        self.embeddings = self.add_weight(
            shape=(self.vocabulary_size, self.width),
            initializer=self.initializer,
            name="embeddings",
        )
        if self.use_bias:
            self.bias = self.add_weight(
                shape=(self.vocabulary_size,), initializer="zeros", name="bias"
            )

    def call(self, inputs, reverse: bool = False):
        matrix = ops.convert_to_tensor(self.embeddings)
        if not reverse:
            found = ops.cast(tf.gather(matrix, ops.cast(inputs, "int32")), self.compute_dtype)
            return found if self.scale == 1.0 else found * self.scale
        flat = tf.reshape(ops.cast(inputs, self.compute_dtype), [-1, self.width])
        # Against rows of the matrix as it lies in memory: no transposed copy of it.
        logits = tf.matmul(flat, tf.cast(matrix, self.compute_dtype), transpose_b=True)
        shape = tf.concat([tf.shape(inputs)[:-1], [self.vocabulary_size]], axis=0)
        logits = ops.cast(logits, "float32")
        if self.use_bias:
            logits += ops.cast(self.bias, "float32")
        return tf.reshape(logits, shape)

    def compute_mask(self, inputs, previous_mask=None):
        if ops.dtype(inputs).startswith("int"):
            return _Tokens(self.pad_id)(inputs)
        return previous_mask

    def compute_output_spec(self, inputs, reverse: bool = False):
        if reverse:
            return keras.KerasTensor((*inputs.shape[:-1], self.vocabulary_size), "float32")
        return keras.KerasTensor((*inputs.shape, self.width), self.compute_dtype)

    def multiply_adds(self, input_shapes, output_shape) -> int | None:
        """None to look up; vocabulary_size x width a token for logits."""
        if output_shape[-1] != self.vocabulary_size or len(input_shapes[0]) < 3:
            return 0
        places = output_shape[1:-1]
        return None if None in places else math.prod(places) * self.vocabulary_size * self.width

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "width": self.width,
            "scale": self.scale,
            "initializer": keras.initializers.serialize(self.initializer),
            "pad_id": self.pad_id,
            "use_bias": self.use_bias,
        }


@_register
class SinusoidalPositions(layers.Layer):
    """Adds to x [n, t, d] what tells position p: sin(p / w_i), cos(p / w_i), w_i = 10000^(2i/d).

    Column 2i has the sine, 2i+1 the cosine (Vaswani et al. 2017, section 3.5). Nothing is learnt,
    and no length is fixed.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x, position=0):
        """``position`` (integer scalar) is that of the first token of x."""
        width = x.shape[-1]
        columns = np.arange(width)
        rates = (10_000.0 ** (-(columns // 2 * 2) / width)).astype("float32")
        places = tf.cast(position + tf.range(tf.shape(x)[1]), tf.float32)
        # cos a = sin(a + pi / 2)
        angles = places[:, None] * rates + (columns % 2 * (math.pi / 2)).astype("float32")
        return x + tf.cast(tf.sin(angles), x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def multiply_adds(self, input_shapes, output_shape) -> int:
        """None: it adds."""
        return 0


@_register
class LearnedPositions(layers.Layer):
    """Adds to x [n, t, d] a learnt vector for each position, of which there are ``length``.

    Gehring et al.: Convolutional sequence to sequence learning (2017), section 3.1; BERT and GPT
    have it so.

    Raises:
        ValueError: x is longer than ``length``. Where that shows in the running graph alone,
            TensorFlow raises an InvalidArgumentError on CPUs.
    """

    def __init__(self, length: int, initializer="uniform", **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.length, self.initializer = length, keras.initializers.get(initializer)

    def build(self, input_shape):
        self.embeddings = self.add_weight(
            shape=(self.length, input_shape[-1]), initializer=self.initializer, name="embeddings"
        )

    def call(self, x, position=0):
        """``position`` (integer scalar) is that of the first token of x."""
        t = x.shape[1]
        if isinstance(position, int) and t is not None and position + t > self.length:
            raise ValueError(
                f"{position + t} tokens are more than the {self.length} positions that have been "
                "learnt. Shorten the texts, or build the model with a longer context."
            )
        places = position + tf.range(tf.shape(x)[1])
        return x + ops.cast(tf.gather(ops.convert_to_tensor(self.embeddings), places), x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def multiply_adds(self, input_shapes, output_shape) -> int:
        """None: it adds."""
        return 0

    def get_config(self):
        initializer = keras.initializers.serialize(self.initializer)
        return {**super().get_config(), "length": self.length, "initializer": initializer}


@_register
class SegmentEmbedding(layers.Layer):
    """Adds to x [n, t, d] a learnt vector of the segment that a token belongs to.

    Devlin et al.: BERT (2018), section 3 ("sentence A" and "sentence B").
    """

    def __init__(self, segments: int = 2, initializer="uniform", **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.segments, self.initializer = segments, keras.initializers.get(initializer)

    def build(self, input_shape, *_):
        self.embeddings = self.add_weight(
            shape=(self.segments, input_shape[-1]), initializer=self.initializer, name="embeddings"
        )

    def call(self, x, segment_ids=None):
        """``segment_ids`` int32 [n, t] from 0 on; None: all tokens are of segment 0."""
        table = ops.convert_to_tensor(self.embeddings)
        rows = tf.zeros([1, 1], tf.int32) if segment_ids is None else segment_ids
        return x + ops.cast(tf.gather(table, rows), x.dtype)

    def compute_output_shape(self, input_shape, *_):
        return input_shape

    def multiply_adds(self, input_shapes, output_shape) -> int:
        """None: it adds."""
        return 0

    def get_config(self):
        initializer = keras.initializers.serialize(self.initializer)
        return {**super().get_config(), "segments": self.segments, "initializer": initializer}
