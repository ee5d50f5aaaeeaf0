"""GPT one token at a time, for decoding: the equations of its layers, made ready for a loop.

A step of one token reads every weight once and does little else: the memory's speed is its limit.
What keeps it there, beside plain products of matrices:

- Weights are read, and cast to the compute dtype, before the loop: in bfloat16 a step reads half
  the bytes, and float32 weights are not cast again for every token.
- A product with a single row runs on one core in TensorFlow. Each kernel is cut into ``_PARTS``
  blocks of rows, whose products run side by side; the blocks share the kernel's memory. In
  bfloat16 only the matrix of logits is: the sums of blocks would be rounded once more.
- Keys and values of earlier tokens lie in two pieces. New ones are appended to the short piece,
  which is appended to the long one every ``_RECENT`` tokens: appending copies, as TensorFlow's
  scatter does not work in place on CPUs.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from .blocks import ACTIVATIONS

_PARTS = 2
_RECENT = 32  # tokens


class Steps:
    """The weights of a :class:`.gpt.GPT`, in the graph where this object is made.

    Args:
        parts: the model's layers, its attribute ``parts``.
        options: its configuration.
        dtype: its compute dtype.
    """

    def __init__(self, parts: dict[str, Any], options: dict[str, Any], dtype: str):
        self.heads, self.size = options["heads"], options["width"] // options["heads"]
        self.dtype = tf.as_dtype(dtype)
        self.pre = options["norm"] == "pre"
        self.activation = ACTIVATIONS[options["activation"]]
        self.norm = parts["norm"]
        self.embeddings = tf.convert_to_tensor(parts["embedding"].embeddings)
        self.positions = tf.convert_to_tensor(parts["positions"].embeddings)
        rows = _blocks(self.embeddings, _PARTS)  # each [v / parts, width]
        self.logits_kernels = [tf.cast(block, self.dtype) for block in rows]
        self.blocks = [self._ready(block) for block in parts["blocks"]]

    def _ready(self, block) -> dict[str, Any]:
        attention = block.attention
        dense = {
            "query": attention.query, "key": attention.key, "value": attention.value,
            "project": attention.project, "expand": block.expand, "contract": block.contract,
        }  # fmt: skip
        parts = _PARTS if self.dtype == tf.float32 else 1
        ready = {
            name: (
                [tf.cast(kernel, self.dtype) for kernel in _blocks(layer.kernel, parts)],
                tf.cast(tf.convert_to_tensor(layer.bias), self.dtype),
            )
            for name, layer in dense.items()
        }
        norms = {"attention_norm": block.attention_norm, "dense_norm": block.dense_norm}
        return {**ready, **norms, "window": attention.window}

    def begin(self, caches) -> dict[str, Any]:
        """The state of :meth:`__call__` after the tokens whose keys and values these are."""
        recent = tf.nest.map_structure(lambda past: past[:, :, :0], caches)
        return {"long": caches, "recent": recent}

    def __call__(self, tokens, position, state) -> tuple[tf.Tensor, dict[str, Any]]:
        """Tokens [n] at ``position`` -> logits float32 [n, v], and the state after them."""
        full = tf.shape(state["recent"][0][0])[2] == _RECENT
        long, recent = tf.cond(
            full,
            lambda: (
                tf.nest.map_structure(_append, state["long"], state["recent"]),
                tf.nest.map_structure(lambda past: past[:, :, :0], state["recent"]),
            ),
            lambda: (state["long"], state["recent"]),
        )
        x = tf.cast(tf.gather(self.embeddings, tokens), self.dtype)
        x += tf.cast(self.positions[position], self.dtype)
        after = []
        for i, block in enumerate(self.blocks):
            x, new = self._block(block, x, long[i], recent[i])
            after.append(new)
        x = tf.cast(self.norm(x), self.dtype)
        logits = [tf.matmul(x, rows, transpose_b=True) for rows in self.logits_kernels]
        return tf.cast(tf.concat(logits, axis=1), tf.float32), {"long": long, "recent": after}

    def _block(self, block, x, long, recent):
        def norm(y, name):
            return tf.cast(block[name](y), self.dtype)

        y, recent = self._attend(block, norm(x, "attention_norm") if self.pre else x, long, recent)
        x = x + y if self.pre else norm(x + y, "attention_norm")
        y = norm(x, "dense_norm") if self.pre else x
        y = self._dense(block["contract"], self.activation(self._dense(block["expand"], y)))
        return (x + y if self.pre else norm(x + y, "dense_norm")), recent

    def _attend(self, block, x, long, recent):
        """Attention of x [n, d] to the past and itself; see :class:`.MultiHeadAttention`."""
        shape = [-1, self.heads, 1, self.size]
        query, key, value = (
            tf.reshape(self._dense(block[name], x), shape) for name in ("query", "key", "value")
        )
        recent = _append(recent[0], key), _append(recent[1], value)
        query *= tf.cast(self.size**-0.5, self.dtype)
        scores = tf.concat(
            [tf.matmul(query, keys, transpose_b=True) for keys in (long[0], recent[0])], axis=-1
        )
        scores = tf.cast(scores, tf.float32)
        before, all_ = tf.shape(long[0])[2], tf.shape(scores)[-1]
        if block["window"] is not None:
            ago = all_ - 1 - tf.range(all_)
            scores += tf.where(ago < block["window"], 0.0, -1e9)
        weights = tf.cast(tf.nn.softmax(scores), self.dtype)
        mixed = tf.matmul(weights[..., :before], long[1])
        mixed += tf.matmul(weights[..., before:], recent[1])
        mixed = tf.reshape(mixed, [-1, self.heads * self.size])
        return self._dense(block["project"], mixed), recent

    def _dense(self, weights, x):
        kernels, bias = weights
        sizes = [kernel.shape[0] for kernel in kernels]
        pieces = tf.split(x, sizes, axis=1) if len(sizes) > 1 else [x]
        products = [tf.matmul(a, b) for a, b in zip(pieces, kernels, strict=True)]
        return tf.add_n(products) + bias


def _blocks(matrix, parts: int) -> list[tf.Tensor]:
    """A matrix cut into blocks of rows. Slices of the first axis share its memory."""
    matrix = tf.convert_to_tensor(matrix)
    size = -(-matrix.shape[0] // parts)
    return [matrix[i : i + size] for i in range(0, matrix.shape[0], size)]


def _append(past, new):
    return tf.concat([past, new], axis=2)
