"""MixUp and CutMix: a training batch mixed with itself in another order, inputs and targets.

The partner of an example comes from its own batch. lambda ~ Beta(alpha, alpha) is the share that
stays, one for the whole batch or one for each example. Classes become shares [n,c]; numbers are
averaged. Every draw is a function of (seed, step, position in the batch), so that a stream from
any step is the stream from the beginning at that step.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from ..recipe import Data
from .ops.erase import rectangles
from .source import SourceError
from .stream import MIXING, Draws, permute

Mix = Callable[[tf.Tensor, tuple[tf.Tensor, tf.Tensor]], tuple[tf.Tensor, tf.Tensor]]


def check(data: Data, task: str, kind: str, input_shape: tuple[int, ...]) -> None:
    """Raises SourceError where ``data.mixup`` or ``data.cutmix`` do not go with the examples."""
    if task not in ("classification", "regression"):
        raise SourceError(
            f"data.mixup and data.cutmix mix targets too, but {data.source} has no "
            "labels. Leave them out."
        )
    if kind == "text":
        raise SourceError(
            "data.mixup and data.cutmix mix numbers, and text becomes ids: half of one word "
            "and half of another is no word. Leave them out."
        )
    if data.cutmix is not None and len(input_shape) != 3:
        raise SourceError(
            "data.cutmix pastes a rectangle of one image into another, but the model's input "
            f"is {list(input_shape)}, not [height, width, channels]. Use data.mixup"
            + (", or take flatten out of data.ops." if kind == "image" else ".")
        )


def mixer(data: Data, num_classes: int, seed: int) -> Mix:
    """The function (step, (x, y)) -> (x, y), mixed, of training batches.

    x is float32 [n,...]; y comes as class ids or float32, [n], and leaves as [n,c] or [n].

    Args:
        data: whose ``mixup``, ``cutmix`` and ``mix_per`` count; where both are given, each batch
            draws one of them.
        num_classes: 0 for regression.
        seed: the training seed.
    """

    def mix(step, batch):
        x, y = batch
        y = tf.one_hot(y, num_classes) if num_classes else y
        n = tf.shape(x)[0]
        partner = permute(tf.range(n), n, seed, step, MIXING)
        rows = tf.range(n if data.mix_per == "example" else 1, dtype=tf.int64)
        draws = Draws(seed, tf.zeros_like(rows) + step, rows)

        # Each form has draws of its own, whether or not the other one is traced.
        def by_mixup():
            return mixup(x, y, partner, beta(data.mixup, draws.at(MIXING)))

        def by_cutmix():
            rng = draws.at(MIXING + 1)
            return cutmix(x, y, partner, beta(data.cutmix, rng), rng)

        if data.cutmix is None:
            return by_mixup()
        if data.mixup is None:
            return by_cutmix()
        return tf.cond(draws.at(MIXING + 2).uniform()[0] < 0.5, by_mixup, by_cutmix)

    return mix


def mixup(x, y, partner, share):
    """Both averaged: share * own + (1 - share) * partner's (Zhang et al. 2018, arXiv:1710.09412,
    section 2). ``share`` is [1] or [n]."""
    return tuple(_average(values, tf.gather(values, partner), share) for values in (x, y))


def cutmix(x, y, partner, share, rng):
    """A rectangle is the partner's (Yun et al. 2019, arXiv:1905.04899, section 3.1).

    Its sides are sqrt(1 - share) of the image's, its middle is uniform, and it is cut off at the
    border. Targets are averaged by the area that is left: the shares of the pixels.
    """
    height, width = x.shape[1:3]
    side = tf.sqrt(1.0 - share)
    down = tf.cast(tf.round(height * side), tf.int32)
    across = tf.cast(tf.round(width * side), tf.int32)
    top, left = rng.integers(height) - down // 2, rng.integers(width) - across // 2
    rows = tf.minimum(top + down, height) - tf.maximum(top, 0)
    columns = tf.minimum(left + across, width) - tf.maximum(left, 0)
    own = 1.0 - tf.cast(rows * columns, tf.float32) / (height * width)
    inside = rectangles(x, top, left, down, across)
    return tf.where(inside, tf.gather(x, partner), x), _average(y, tf.gather(y, partner), own)


def beta(alpha: float, rng: Draws) -> tf.Tensor:
    """float32, distributed as Beta(alpha, alpha), one for each row of ``rng``.

    G1 / (G1 + G2) of two gamma variates, as logarithms: below alpha = 0.05 or so the variates
    themselves underflow.
    """

    def logarithm():
        # Gamma(a) = Gamma(a + 1) U^(1/a) (Marsaglia and Tsang 2000, section 6)
        unit = 1.0 - tf.cast(rng.uniform(), tf.float64)
        greater = tf.random.stateless_gamma(
            tf.shape(unit), rng.keys()[0], tf.constant(alpha + 1.0, tf.float64), dtype=tf.float64
        )
        return tf.math.log(greater) + tf.math.log(unit) / alpha

    return tf.cast(tf.sigmoid(logarithm() - logarithm()), tf.float32)


def _average(own: tf.Tensor, other: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    share = tf.reshape(share, [-1, *[1] * (own.shape.rank - 1)])
    return share * own + (1.0 - share) * other
