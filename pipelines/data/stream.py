"""tf.data streams whose order and augmentation are functions of (seed, epoch, index).

Example number i = step * batch_size + j of the training stream is position i % n of epoch i // n;
the position goes through a keyed permutation to an example. No state is carried from one step to
the next, so a stream that starts at a step is the stream from the beginning at that step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

FOREVER = 2**62
ORDER = 0  # the third part of the key: 0 is the order, 1 the shards, the rest are draws of ops
SHARDS = 1
WINDOWS = 2**30  # and from here on, the windows of streamed files
MIXING = 2**13  # as the place of an op: behind every chain, and all views of it
_FIRST_DRAW = 2
_DRAWS_AN_OP = 64
_VIEW = 2**10  # places of ops between two views of an example
_PART = 2**21 - 1  # a third of a key's 64 bits


def permute(index: tf.Tensor, n: Any, seed: int, epoch: tf.Tensor, salt: Any) -> tf.Tensor:
    """Where a permutation of 0..n-1 that is keyed by (seed, epoch, salt) sends ``index`` [m].

    The kernel of ``tf.random.experimental.index_shuffle`` (a Simon cipher), with 16 rounds: at the
    four that function is fixed to, neighbours of a 60,000-row set stay correlated (0.3).

    Of each part of its key the kernel reads half as many bits as n has, and 8 at least: 20 for the
    draws below, but 8 for a set of some thousand rows, where seeds 0 and 256 would give one order.
    So the key is hashed, and every bit of seed, epoch and salt counts.
    """
    index = tf.cast(index, tf.int64)
    epoch = tf.broadcast_to(tf.cast(epoch, tf.int64), tf.shape(index))
    key = _hashed(_hashed(_hashed(_word(seed)) ^ _word(epoch)) ^ _word(salt))
    parts = tf.stack([key, _shifted(key, 21), _shifted(key, 42)], axis=1)
    keys = tf.cast(parts & _word(_PART), tf.int64)
    last = tf.cast(n, tf.int64) - 1
    return tf.raw_ops.RandomIndexShuffle(index=index, seed=keys, max_index=last, rounds=16)


def _word(value: Any) -> tf.Tensor:
    """An integer, or integers, as uint64; of Python's the low 64 bits."""
    if isinstance(value, int):
        return tf.constant(value & 0xFFFF_FFFF_FFFF_FFFF, tf.uint64)
    return tf.cast(value, tf.uint64)


def _hashed(word: tf.Tensor) -> tf.Tensor:
    """SplitMix64's output for a state (Steele, Lea and Flood 2014, section 5), uint64."""
    word += tf.constant(0x9E3779B97F4A7C15, tf.uint64)
    word = (word ^ _shifted(word, 30)) * tf.constant(0xBF58476D1CE4E5B9, tf.uint64)
    word = (word ^ _shifted(word, 27)) * tf.constant(0x94D049BB133111EB, tf.uint64)
    return word ^ _shifted(word, 31)


def _shifted(word: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(word, _word(bits))


class Draws:
    """Random numbers for a batch, [n], one a row, each a function of (seed, epoch, index, place).

    With ``count`` a method gives several numbers a row, [n,count].

    Args:
        seed: the training seed.
        epochs: int64 [n].
        indices: int64 [n], the examples' numbers in the source.
        place: position of the op in its chain; see :meth:`at`.
        number: of the view; see :meth:`view`.
    """

    def __init__(
        self, seed: int, epochs: tf.Tensor, indices: tf.Tensor, place: int = 0, number: int = 0
    ):
        self._key, self._number = (seed, epochs, indices), number
        self._salt = _FIRST_DRAW + (place + number * _VIEW) * _DRAWS_AN_OP

    def at(self, place: int) -> Draws:
        """The draws of the op at this position of the chain."""
        return Draws(*self._key, place, self._number)

    def view(self, number: int) -> Draws:
        """The draws of another view of the same examples; without it they are those of view 0."""
        return Draws(*self._key, 0, number)

    def _unit(self, count: int | None) -> tf.Tensor:
        """float64 [n] or [n,count], uniform on [0, 1): whole numbers of 40 bits, divided."""
        seed, epochs, indices = self._key
        salt, self._salt = self._salt, self._salt + 1
        if count is None:
            return tf.cast(permute(indices, 2**40, seed, epochs, salt), tf.float64) * 2.0**-40
        own = indices[:, None] * count + tf.range(count, dtype=tf.int64)
        bits = permute(tf.reshape(own, [-1]), 2**40, seed, tf.repeat(epochs, count), salt)
        return tf.reshape(tf.cast(bits, tf.float64) * 2.0**-40, [-1, count])

    def uniform(self, low: float = 0.0, high: float = 1.0, count: int | None = None) -> tf.Tensor:
        """float32, uniform on [low, high)."""
        unit = tf.floor(self._unit(count) * 2.0**24) * 2.0**-24  # as fine as float32, and below 1
        return tf.cast(unit, tf.float32) * (high - low) + low

    def integers(self, bound: Any, count: int | None = None) -> tf.Tensor:
        """int32, uniform on 0..bound-1."""
        return tf.cast(self._unit(count) * tf.cast(bound, tf.float64), tf.int32)

    def normal(self, count: int | None = None) -> tf.Tensor:
        """float64, of mean 0 and standard deviation 1 (Box and Muller 1958); two draws each."""
        radius = tf.sqrt(-2.0 * tf.math.log(1.0 - self._unit(count)))
        return radius * tf.cos(2.0 * math.pi * self._unit(count))

    def keys(self) -> tf.Tensor:
        """int64 [n,2]: seeds for TensorFlow's stateless random ops."""
        return tf.cast(self._unit(2) * 2.0**40, tf.int64)


def positions(step: tf.Tensor, batch_size: int, n: int, seed: int, shuffle: bool):
    """Epochs and positions, int64 [batch_size], of the examples of a step."""
    number = step * batch_size + tf.range(batch_size, dtype=tf.int64)
    epoch, position = number // n, number % n
    return epoch, permute(position, n, seed, epoch, ORDER) if shuffle and n > 1 else position


def parallel(dataset: tf.data.Dataset, function: Callable[..., Any]) -> tf.data.Dataset:
    """``dataset.map(function)`` for several elements at a time, results in order.

    Without AutoGraph: it would rewrite the source of every op, which takes seconds, and wrap their
    errors in its own.
    """
    plain = tf.autograph.experimental.do_not_convert(function)
    return dataset.map(plain, num_parallel_calls=tf.data.AUTOTUNE)


def deterministic(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The dataset in a fixed order, two batches ahead."""
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # The rewriting would copy every captured tensor, that is, the whole set in memory; what it
    # would add, parallel maps and prefetching, stands in the pipelines already.
    options.experimental_optimization.apply_default_optimizations = False
    end_at_once(options)
    return dataset.with_options(options).prefetch(2)


def end_at_once(options: tf.data.Options) -> None:
    """Lets an iterator be deleted without waiting for tf.data's autotuning.

    Autotuning has a thread that looks at the pipeline at ever longer intervals, up to a minute. It
    is woken to stop before it can see that it has to, and sleeps on: whoever deletes the iterator,
    at the end of a training or by Ctrl-C, waits for its next look. Without it a parallel map takes
    as many elements at a time as there are cores.
    """
    options.autotune.enabled = False
    options.autotune.initial_parallelism = 1024  # at most; by itself 16
