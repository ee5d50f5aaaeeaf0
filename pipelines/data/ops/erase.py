"""Ops that hide a part of an image in training. Images [n,h,w,c]; the dtype stays."""

from __future__ import annotations

import tensorflow as tf

from . import op
from .image import Areas, Ratios, Share, Size, level, one_by_one, require_uint8

_TRIES = 50


@op("image", random=True)
def cutout(images: tf.Tensor, size: Size, value: float = 0.0, *, rng=None) -> tf.Tensor:
    """Fills a size x size square around a random pixel, cut off at the border (DeVries & Taylor
    2017, arXiv:1708.04552, section 3). Evaluation: the image as it is."""
    filling = level(value, images, "cutout")
    if rng is None:
        return images
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    top, left = rng.integers(height) - size // 2, rng.integers(width) - size // 2
    return tf.where(rectangles(images, top, left, size, size), filling, images)


@op("image", random=True, each=True)
def random_erasing(
    images: tf.Tensor,
    probability: Share = 0.5,
    area: Areas = (0.02, 0.4),
    ratio: Ratios = (0.3, 10 / 3),
    value: float | None = None,
    *,
    rng=None,
) -> tf.Tensor:
    """Fills a random rectangle with noise (Zhong et al. 2017, arXiv:1708.04896, algorithm 1).

    Its area is a share of the image's, uniform in ``area``, its height / width uniform in
    ``ratio``, its corner uniform in the image; the first of fifty rectangles that lies inside
    counts (the paper tries for ever). Evaluation: the image as it is.

    Args:
        probability: with which an image is changed at all.
        value: what fills it; by default every number is drawn from 0..255, the paper's choice,
            for which the op must come before ``scale`` and ``standardize``.
    """
    if value is None:
        require_uint8("random_erasing", images, ", or give a value")
    else:
        value = level(value, images, "random_erasing")
    if rng is None:
        return images
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    chosen = rng.uniform() < probability
    size = rng.uniform(*area, count=_TRIES) * tf.cast(height * width, tf.float32)
    aspect = rng.uniform(*ratio, count=_TRIES)
    down = tf.cast(tf.round(tf.sqrt(size * aspect)), tf.int32)
    across = tf.cast(tf.round(tf.sqrt(size / aspect)), tf.int32)
    top, left = rng.integers(height, count=_TRIES), rng.integers(width, count=_TRIES)
    fits = (down > 0) & (across > 0) & (top + down <= height) & (left + across <= width)
    chosen = chosen & tf.reduce_any(fits, axis=1)
    first = tf.argmax(fits, axis=1)
    box = [tf.gather(side, first, batch_dims=1) for side in (top, left, down, across)]

    def erased(image, top, left, down, across, key):
        inside = rectangles(image[None], *(side[None] for side in (top, left, down, across)))[0]
        if value is not None:
            return tf.where(inside, value, image)
        shape = (down, across, image.shape[2])
        noise = tf.random.stateless_uniform(shape, key, 0, 256, tf.int32, alg="philox")
        beyond = [[top, height - top - down], [left, width - left - across], [0, 0]]
        return tf.where(inside, tf.pad(tf.cast(noise, image.dtype), beyond), image)

    def perhaps(image, chosen, *rest):
        return tf.cond(chosen, lambda: erased(image, *rest), lambda: image)

    return one_by_one(perhaps, images, chosen, *box, rng.keys())


def rectangles(images, top, left, height, width) -> tf.Tensor:
    """Which pixels lie in each image's rectangle, bool [n,h,w,1].

    Args:
        images: [n,h,w,c].
        top, left: int32 [n]; may lie outside.
        height, width: int32 [n], or one number for all.
    """
    rows, columns = tf.range(tf.shape(images)[1])[None], tf.range(tf.shape(images)[2])[None]

    def between(places, low, length):
        low = low[:, None]
        length = length[:, None] if isinstance(length, tf.Tensor) else length
        return (places >= low) & (places < low + length)

    inside_rows, inside_columns = between(rows, top, height), between(columns, left, width)
    return inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
