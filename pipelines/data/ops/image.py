"""Ops for images: functions of a batch [n,h,w,c], uint8 or float32.

All but ``scale`` and ``standardize`` return the dtype they were given; what leaves the whole chain
is cast to float32. Images of unequal sizes pass one by one (n = 1) up to the op that makes them
equal, so an op never looks across the batch. Random ops draw from ``rng`` (see the package's
docstring); what they do without it is documented at each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
import tensorflow as tf
from pydantic import Field

from . import OpsError, op

Pixels = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


@op("image")
def scale(images: tf.Tensor, low: float = 0.0, high: float = 1.0) -> tf.Tensor:
    """Pixel values 0..255 (uint8, or float32 on that scale) to ``low``..``high``, float32."""
    return tf.cast(images, tf.float32) * ((high - low) / 255.0) + low


def _moments(
    batches: Iterable[np.ndarray],
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> dict[str, Any]:
    """Mean and standard deviation a channel, over all pixels, in float64 and one pass."""
    if (mean is None) != (std is None):
        raise OpsError("Op 'standardize': give both mean and std, or neither to learn them.")
    if mean is not None:
        return {"mean": list(mean), "std": list(std)}
    count, average, squares = 0, 0.0, 0.0
    for batch in batches:
        values = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
        here, new = values.mean(axis=0), count + len(values)
        shift = here - average  # Chan's update: exact where large values vary little
        squares = squares + ((values - here) ** 2).sum(axis=0)
        squares = squares + shift**2 * (count * len(values) / new)
        average = average + shift * (len(values) / new)
        count = new
    deviation = np.sqrt(squares / count)
    return {"mean": average.tolist(), "std": np.where(deviation > 0, deviation, 1.0).tolist()}


@op("image", fit=_moments)
def standardize(
    images: tf.Tensor,
    mean: tuple[float, ...] | None = None,
    std: tuple[Annotated[float, Field(gt=0.0)], ...] | None = None,
    *,
    state: dict[str, Any],
) -> tf.Tensor:
    """(x - mean) / standard deviation, one pair a channel, float32.

    Learnt from the training split, or given in the units of what enters the op. A channel that
    never varies is divided by 1.
    """
    channels = images.shape[-1]
    if {len(state["mean"]), len(state["std"])} - {1, channels}:
        raise OpsError(
            f"Op 'standardize': {len(state['mean'])} means and {len(state['std'])} deviations, "
            f"but the images have {channels} channels. Give one, or one a channel."
        )
    values = tf.cast(images, tf.float32)
    # Times the reciprocal: inside a tf.function TensorFlow would turn a division into it, and
    # training, which runs in tf.data, would differ from serving in the last bit.
    inverse = 1.0 / np.asarray(state["std"], np.float32)
    return (values - np.asarray(state["mean"], np.float32)) * inverse


@op("image")
def flatten(images: tf.Tensor) -> tf.Tensor:
    """[n,h,w,c] to [n, h*w*c]."""
    height, width, channels = images.shape[1:]
    return tf.reshape(images, [-1, height * width * channels])


@op("image", sets_size=True)
def resize(images: tf.Tensor, height: Size, width: Size | None = None) -> tf.Tensor:
    """To height x width (a square if one number is given), bilinear with antialiasing.

    The aspect ratio is not kept. uint8 is rounded back to uint8.
    """
    size = (height, width or height)
    return like(tf.image.resize(images, size, antialias=True), images.dtype)


@op("image", sets_size=True)
def central_crop(images: tf.Tensor, height: Size, width: Size | None = None) -> tf.Tensor:
    """The middle height x width. See :func:`random_crop` on images that are smaller."""
    return _central(images, height, width or height, "central_crop")


@op("image")
def pad(images: tf.Tensor, pixels: Pixels, value: float = 0.0) -> tf.Tensor:
    """``pixels`` of ``value`` on all four sides."""
    border = [[0, 0], [pixels, pixels], [pixels, pixels], [0, 0]]
    return tf.pad(images, border, constant_values=tf.cast(value, images.dtype))


@op("image", random=True, sets_size=True)
def random_crop(images: tf.Tensor, size: Size, padding: Pixels = 0, *, rng=None) -> tf.Tensor:
    """A random size x size window of the image with a border of ``padding`` zeros.

    Evaluation: the middle size x size of the image without the border. In a set of equal images an
    image too small for the window is an error; in a set of unequal ones it is padded with zeros.
    """
    if rng is None:
        return _central(images, size, size, "random_crop")
    images = _at_least(pad(images, padding), size, size, "random_crop")
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    return _window(images, rng.integers(height - size + 1), rng.integers(width - size + 1), size)


@op("image", random=True)
def flip_lr(images: tf.Tensor, probability: Share = 0.5, *, rng=None) -> tf.Tensor:
    """Mirrors left and right with this probability. Evaluation: the image as it is."""
    if rng is None:
        return images
    chosen = rng.uniform() < probability
    return tf.where(chosen[:, None, None, None], tf.reverse(images, [2]), images)


@op("image", random=True)
def translate(images: tf.Tensor, max_pixels: Pixels, *, rng=None) -> tf.Tensor:
    """Moves by whole pixels, -max..max down and across, filling with zeros.

    Evaluation: the image as it is.
    """
    if rng is None:
        return images
    shape, moves = tf.shape(images), 2 * max_pixels + 1
    top, left = rng.integers(moves), rng.integers(moves)
    moved = _window(pad(images, max_pixels), top, left, shape[1], shape[2])
    return tf.ensure_shape(moved, images.shape)


@op("image", random=True)
def cutout(images: tf.Tensor, size: Size, value: float = 0.0, *, rng=None) -> tf.Tensor:
    """Fills a size x size square around a random pixel, cut off at the border (DeVries & Taylor
    2017, arXiv:1708.04552, section 3). Evaluation: the image as it is."""
    if rng is None:
        return images
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    top, left = rng.integers(height) - size // 2, rng.integers(width) - size // 2
    rows, columns = tf.range(height)[None], tf.range(width)[None]
    inside_rows = (rows >= top[:, None]) & (rows < top[:, None] + size)
    inside_columns = (columns >= left[:, None]) & (columns < left[:, None] + size)
    inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
    return tf.where(inside, tf.cast(value, images.dtype), images)


@op("image")
def grayscale(images: tf.Tensor) -> tf.Tensor:
    """One channel of luminance: .299 R + .587 G + .114 B, in 1/256ths; one channel stays."""
    if images.shape[-1] == 1:
        return images
    if images.dtype == tf.uint8:  # whole numbers: gray pixels stay exactly as they are
        weights = tf.constant([77, 150, 29], tf.int32)
        total = tf.reduce_sum(tf.cast(images, tf.int32) * weights, -1, keepdims=True)
        return tf.cast(tf.bitwise.right_shift(total + 128, 8), tf.uint8)
    weights = tf.constant([77, 150, 29], images.dtype) / 256.0
    return tf.reduce_sum(images * weights, -1, keepdims=True)


@op("image")
def rgb(images: tf.Tensor) -> tf.Tensor:
    """Three channels; a single one is repeated."""
    return images if images.shape[-1] == 3 else tf.repeat(images, 3, axis=-1)


def like(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Float values as ``dtype``; to uint8 rounded and limited to 0..255."""
    if dtype != tf.uint8:
        return tf.cast(values, dtype)
    return tf.cast(tf.clip_by_value(tf.round(values), 0.0, 255.0), tf.uint8)


def _window(images, top, left, height, width=None):
    """A height x width window with its corner at top, left [n], one for each image."""
    rows = top[:, None] + tf.range(height)[None]
    columns = left[:, None] + tf.range(height if width is None else width)[None]
    return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _central(images, height, width, name):
    images = _at_least(images, height, width, name)
    top, left = (tf.shape(images)[1] - height) // 2, (tf.shape(images)[2] - width) // 2
    middle = images[:, top : top + height, left : left + width]
    return tf.ensure_shape(middle, (images.shape[0], height, width, images.shape[3]))


def _at_least(images, height, width, name):
    """Images of unknown size, padded evenly with zeros to at least height x width."""
    have = images.shape[1:3]
    if have.is_fully_defined():
        if have[0] < height or have[1] < width:
            raise OpsError(
                f"Op {name!r}: a window of {height}x{width} does not fit into images of "
                f"{have[0]}x{have[1]}. Put pad(…) or resize(…) before it, or make it smaller."
            )
        return images
    shape = tf.shape(images)
    down, across = tf.maximum(height - shape[1], 0), tf.maximum(width - shape[2], 0)
    border = [[0, 0], [down // 2, down - down // 2], [across // 2, across - across // 2], [0, 0]]
    return tf.pad(images, border)
