"""Where a text that is written token by token holds a string at which it is to end.

Decided on the text, not on tokens: one string can be cut into tokens in many ways, and may end
within one. All of it is core TensorFlow operations, to be called inside a ``tf.function``.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

_NONE = 2**31 - 1


class StopStrings:
    """Writes texts, and finds the first stop string in each.

    Args:
        pieces: bytes [v]: what each token adds to a text.
        stop: string [n, k]: the stop strings of each row, as bytes of UTF-8; "" is none.
    """

    def __init__(self, pieces: np.ndarray, stop: tf.Tensor):
        self.pieces = tf.constant(pieces)
        self.longest = max(1, *(len(piece) for piece in pieces))
        self.rows, self.kinds = tf.unstack(tf.shape(stop))
        self.stop = tf.repeat(tf.reshape(stop, [-1]), self.longest)  # [n k longest]
        self.sizes = tf.strings.length(self.stop)

    def begin(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The state before any token: texts [n], and where a stop string begins, -1 nowhere."""
        return tf.fill([self.rows], ""), tf.fill([self.rows], -1)

    def __call__(self, tokens, ours, texts, places) -> tuple[tf.Tensor, tf.Tensor]:
        """The state after tokens [n]; only rows that are ``ours`` [n] go on."""
        before = tf.strings.length(texts)
        texts = tf.strings.join([texts, tf.where(ours, tf.gather(self.pieces, tokens), "")])
        # What is new ends within the last piece: so many places where it may begin.
        each = self.kinds * self.longest
        shift = tf.tile(tf.range(self.longest), [self.rows * self.kinds])
        begins = tf.repeat(before, each) - self.sizes + 1 + shift
        ends = begins + self.sizes
        possible = (begins >= 0) & (ends <= tf.repeat(tf.strings.length(texts), each))
        possible &= self.sizes > 0
        found = tf.strings.substr(
            tf.repeat(texts, each), tf.where(possible, begins, 0), tf.where(possible, self.sizes, 0)
        )
        begins = tf.where(possible & (found == self.stop), begins, _NONE)
        first = tf.reduce_min(tf.reshape(begins, [self.rows, each]), axis=1)
        return texts, tf.where((places < 0) & (first < _NONE), first, places)

    @staticmethod
    def cut(texts, places) -> tf.Tensor:
        """The texts up to their stop strings [n]."""
        return tf.strings.substr(
            texts, tf.zeros_like(places), tf.where(places < 0, tf.strings.length(texts), places)
        )
