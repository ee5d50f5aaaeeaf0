"""GPT one token at a time, for decoding: the equations of its layers, made ready for a loop.

A step of one token reads every weight once and does little else: the memory's speed is its limit.
What keeps it there, beside plain products of matrices:

- Weights are read, cast to the compute dtype and laid out anew before the loop. A step in bfloat16
  reads half the bytes.
- A row-major matrix is read by a product with a few rows at less than half of the memory's speed:
  oneDNN copies it in pieces first. So a kernel is cut into blocks of columns, 128 bytes wide, and
  one batched product takes them all, each where it lies and the cores side by side. Laying out
  takes as long as two or three tokens and, in float32, as much memory as the weights again.
- Keys and values of earlier tokens lie in two pieces. New ones are appended to the short piece,
  which is appended to the long one every ``_RECENT`` tokens: appending copies, as TensorFlow's
  scatter does not work in place on CPUs.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from .blocks import ACTIVATIONS

_BLOCK = 128  # bytes: two cache lines
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
        self.logits_kernel = _laid_out(self.embeddings, self.dtype, transposed=True)
        self.blocks = [self._ready(block) for block in parts["blocks"]]

    def _ready(self, block) -> dict[str, Any]:
        attention = block.attention
        dense = {
            "ask": (attention.query, attention.key, attention.value),
            "project": (attention.project,),
            "expand": (block.expand,),
            "contract": (block.contract,),
        }
        ready = {
            name: (
                tf.concat([_laid_out(layer.kernel, self.dtype) for layer in layers], axis=0),
                [tf.cast(tf.convert_to_tensor(layer.bias), self.dtype) for layer in layers],
            )
            for name, layers in dense.items()
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
        logits = _product(x, self.logits_kernel)[:, : self.embeddings.shape[0]]
        return tf.cast(logits, tf.float32), {"long": long, "recent": after}

    def _block(self, block, x, long, recent):
        def norm(y, name):
            return tf.cast(block[name](y), self.dtype)

        y, recent = self._attend(block, norm(x, "attention_norm") if self.pre else x, long, recent)
        x = x + y if self.pre else norm(x + y, "attention_norm")
        y = norm(x, "dense_norm") if self.pre else x
        (y,) = _dense(block["expand"], y)
        (y,) = _dense(block["contract"], self.activation(y))
        return (x + y if self.pre else norm(x + y, "dense_norm")), recent

    def _attend(self, block, x, long, recent):
        """Attention of x [n, d] to the past and itself; see :class:`.MultiHeadAttention`."""
        shape = [-1, self.heads, 1, self.size]
        query, key, value = (tf.reshape(y, shape) for y in _dense(block["ask"], x))
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
        return _dense(block["project"], mixed)[0], recent


def _dense(layers, x) -> list[tf.Tensor]:
    """Dense layers of one x [n, k], whose blocks of columns follow each other."""
    kernels, biases = layers
    together = tf.split(_product(x, kernels), len(biases), axis=1)
    return [y[:, : b.shape[0]] + b for y, b in zip(together, biases, strict=True)]


def _product(x, blocks):
    """x [n, k] times blocks of columns [m, k, b] -> [n, m b]."""
    products = tf.transpose(tf.matmul(x[None], blocks), [1, 0, 2])
    return tf.reshape(products, [-1, blocks.shape[0] * blocks.shape[2]])


def _laid_out(matrix, dtype, transposed: bool = False):
    """A matrix [k, c], or its transpose, as blocks of columns [m, k, b], b being 128 bytes.

    Columns of zeros fill the last block.
    """
    matrix = tf.cast(tf.convert_to_tensor(matrix), dtype)
    width = _BLOCK // matrix.dtype.size
    if transposed:
        matrix = tf.pad(matrix, [[0, -matrix.shape[0] % width], [0, 0]])
        return tf.transpose(tf.reshape(matrix, [-1, width, matrix.shape[1]]), [0, 2, 1])
    matrix = tf.pad(matrix, [[0, 0], [0, -matrix.shape[1] % width]])
    return tf.transpose(tf.reshape(matrix, [matrix.shape[0], -1, width]), [1, 0, 2])


def _append(past, new):
    return tf.concat([past, new], axis=2)
