"""Attention: weights over the positions of a memory, and the memory's mean under them.

Masks are boolean, True where a position is real. What is masked has a weight of exactly 0, but that
a row without any real position looks at its first.
"""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import layers, ops

from .layers import Dropout, seeded, seeds

_register = keras.saving.register_keras_serializable("epochal")


@_register
class GlobalAttention(layers.Layer):
    """Weights over all positions of a memory, and the memory's mean under them.

    ``additive``: v tanh(W query + U memory), ``multiplicative``: query W memory; then a softmax
    over the real positions, in float32.

    Args:
        kind: "additive" or "multiplicative".
        width: of the queries, and of what goes through the tanh.
        seed: of weights; None draws them from ``keras.utils.set_random_seed``.
    """

    def __init__(self, kind: str, width: int, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.kind, self.width, self.seed = kind, width, seed

    def build(self, query_shape, memory_shape):
        draw = seeds(self.seed)

        def weight(name, *shape):
            initializer = seeded("glorot_uniform", draw())
            return self.add_weight(shape=shape, initializer=initializer, name=name)

        self.memory_kernel = weight("memory_kernel", memory_shape[-1], self.width)
        if self.kind == "additive":
            self.query_kernel = weight("query_kernel", query_shape[-1], self.width)
            self.scale = weight("scale", self.width, 1)

    def keys(self, memory):
        """What of the scores depends on the memory alone, [n, s, width]: computed once."""
        return ops.matmul(memory, tf.cast(self.memory_kernel, memory.dtype))

    def call(self, query, memory, keys=None, key_mask=None):
        """Means [n, t, m] and weights [n, t, s] of queries [n, t, q] over a memory [n, s, m].

        ``keys`` are what :meth:`keys` says of the memory, ``key_mask`` [n, s] what of it is real.
        """
        keys = self.keys(memory) if keys is None else keys
        if self.kind == "additive":
            query = ops.matmul(query, self.query_kernel)
            mixed = tf.tanh(query[:, :, None] + keys[:, None])
            scores = ops.matmul(mixed, self.scale)[..., 0]
        else:
            scores = tf.matmul(query, keys, transpose_b=True)
        scores = tf.cast(scores, tf.float32)
        if key_mask is not None:
            scores += tf.where(_some_seen(key_mask), 0.0, -1e9)[:, None]
        weights = tf.nn.softmax(scores)
        return tf.matmul(tf.cast(weights, memory.dtype), memory), weights

    def get_config(self):
        config = {"kind": self.kind, "width": self.width, "seed": self.seed}
        return {**super().get_config(), **config}


@_register
class MultiHeadAttention(layers.Layer):
    """softmax(q k^T / sqrt(e)) v in several heads of width e = d / heads (Vaswani 2017, 3.2).

    The softmax is computed in float32 whatever the compute dtype.

    Args:
        heads: a divisor of the input's width d.
        causal: position i sees positions up to i only.
        window: how many of them at most, the nearest, itself included; None: all. Needs `causal`.
        use_bias: of the four projections.
        dropout: share of the attention weights set to zero in training.
        initializer: of the projections' kernels.
        output_initializer: of the last one's; None: as the others.
        seed: of weights and dropout; None draws them from ``keras.utils.set_random_seed``.
    """

    def __init__(
        self,
        heads: int,
        causal: bool = False,
        window: int | None = None,
        use_bias: bool = False,
        dropout: float = 0.0,
        initializer="glorot_uniform",
        output_initializer=None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if window is not None and (window < 1 or not causal):
            raise ValueError(
                "window counts at least 1 position of the past, in causal attention; got "
                f"window={window!r}, causal={causal!r}."
            )
        self.supports_masking = True
        self.heads, self.causal, self.use_bias, self.dropout = heads, causal, use_bias, dropout
        self.window = window
        self.initializer = keras.initializers.get(initializer)
        self.output_initializer = keras.initializers.get(output_initializer or initializer)
        self.seed = seed
        draw = seeds(seed)
        self._seeds = [draw() for _ in range(4)]
        self.drop = Dropout(dropout, seed=draw(), dtype="float32") if dropout else None

    def build(self, input_shape):
        width = input_shape[-1]
        if width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {width}.")
        kinds = [self.initializer] * 3 + [self.output_initializer]
        names = ("query", "key", "value", "output")
        self.query, self.key, self.value, self.project = (
            layers.Dense(
                width,
                use_bias=self.use_bias,
                kernel_initializer=seeded(kind, seed),
                dtype=self.dtype_policy,
                name=name,
            )
            for name, kind, seed in zip(names, kinds, self._seeds, strict=True)
        )
        for dense in (self.query, self.key, self.value, self.project):
            dense.build((None, None, width))

    def keys_values(self, memory):
        """Keys and values of a memory [n, s, d], each [n, heads, s, e], to be used repeatedly."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def call(self, x, memory=None, key_mask=None, cache=None, training=None):
        """Attention of x [n, t, d], to itself or to a memory.

        Args:
            memory: what keys and values are made of, [n, s, d], or the pair that
                :meth:`keys_values` made; None: x itself.
            key_mask: bool [n, s], False for keys that nobody sees; None: all are real.
            cache: keys and values of the tokens before x, each [n, heads, past, e], past 0 or more;
                for attention to x itself.

        Returns:
            [n, t, d]; with a cache also the pair of keys and values that ends with x's own.
        """
        query = self._split(self.query(x)) * (x.shape[-1] // self.heads) ** -0.5
        if isinstance(memory, (tuple, list)):
            keys, values = memory
        else:
            keys, values = self.keys_values(x if memory is None else memory)
        if cache is not None:
            # A copy of what is there. Writing into a cache of full length would copy that, too:
            # TensorFlow's scatter does not work in place on CPUs.
            keys = tf.concat([cache[0], keys], axis=2)
            values = tf.concat([cache[1], values], axis=2)
        scores = tf.cast(tf.matmul(query, keys, transpose_b=True), tf.float32)
        seen = None if key_mask is None else _some_seen(key_mask)[:, None, None, :]
        if self.causal and (x.shape[1] != 1 or self.window):
            t, s = tf.shape(query)[2], tf.shape(keys)[2]
            ago = s - t + tf.range(t)[:, None] - tf.range(s)
            past = ago >= 0 if self.window is None else (ago >= 0) & (ago < self.window)
            seen = past if seen is None else past & seen
        if seen is not None:
            # Added, not selected: scores that are small beside 1e9 vanish in it, and exp gives 0.
            scores += tf.where(seen, 0.0, -1e9)
        weights = tf.nn.softmax(scores)
        if self.drop is not None:
            weights = self.drop(weights, training=training)
        mixed = tf.matmul(tf.cast(weights, values.dtype), values)
        mixed = tf.transpose(mixed, [0, 2, 1, 3])
        outputs = self.project(tf.reshape(mixed, tf.shape(x)))
        return outputs if cache is None else (outputs, (keys, values))

    def _split(self, x):
        """[n, t, d] -> [n, heads, t, e]"""
        n, t = tf.unstack(tf.shape(x)[:2])
        x = tf.reshape(x, [n, t, self.heads, x.shape[-1] // self.heads])
        return tf.transpose(x, [0, 2, 1, 3])

    def get_config(self):
        return {
            **super().get_config(),
            "heads": self.heads,
            "causal": self.causal,
            "window": self.window,
            "use_bias": self.use_bias,
            "dropout": self.dropout,
            "initializer": keras.initializers.serialize(self.initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
            "seed": self.seed,
        }


def _some_seen(key_mask):
    """A mask [n, s] with its first position in rows that have no real one.

    Softmax would spread over their padding: the answer to an empty text would depend on how long
    the others in its batch are.
    """
    nothing = ~tf.reduce_any(key_mask, axis=1, keepdims=True)
    return key_mask | (nothing & (tf.range(tf.shape(key_mask)[1]) == 0))
