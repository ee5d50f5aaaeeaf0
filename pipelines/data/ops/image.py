"""Ops that move pixels: size, place, orientation. Images [n,h,w,c], uint8 or float32.

The dtype stays. Images of unequal sizes pass one by one (n = 1) up to the op that makes them
equal, so an op never looks across the batch. Random ops draw from ``rng`` (see the package's
docstring); what they do without it is documented at each. Ops that change values are in
:mod:`.color`, ops that hide a part in :mod:`.erase`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import tensorflow as tf
from pydantic import AfterValidator, Field

from . import OpsError, op

Pixels = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _increasing(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError("expected the lower limit first")
    return limits


Areas = Annotated[
    tuple[Annotated[float, Field(gt=0.0, le=1.0)], Annotated[float, Field(gt=0.0, le=1.0)]],
    AfterValidator(_increasing),
]
Ratios = Annotated[
    tuple[Annotated[float, Field(gt=0.0)], Annotated[float, Field(gt=0.0)]],
    AfterValidator(_increasing),
]


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
    return _resized(images, height, width or height)


@op("image")
def resize_shorter(images: tf.Tensor, size: Size) -> tf.Tensor:
    """The shorter side to ``size`` pixels, the other in proportion; as :func:`resize` does it."""
    have = images.shape[1:3]
    height, width = have if have.is_fully_defined() else tf.unstack(tf.shape(images)[1:3])
    shorter = min(height, width) if have.is_fully_defined() else tf.minimum(height, width)
    # whole numbers, rounded half up: the same in Python and in TensorFlow
    sides = [(2 * size * side + shorter) // (2 * shorter) for side in (height, width)]
    return _resized(images, *sides)


@op("image", sets_size=True)
def central_crop(images: tf.Tensor, height: Size, width: Size | None = None) -> tf.Tensor:
    """The middle height x width. See :func:`random_crop` on images that are smaller."""
    return _central(images, height, width or height, "central_crop")


@op("image")
def pad(images: tf.Tensor, pixels: Pixels, value: float = 0.0) -> tf.Tensor:
    """``pixels`` of ``value`` on all four sides."""
    border = [[0, 0], [pixels, pixels], [pixels, pixels], [0, 0]]
    return tf.pad(images, border, constant_values=level(value, images, "pad"))


def level(value: float, images: tf.Tensor, name: str) -> tf.Tensor:
    """A pixel's value in the type of ``images``. OpsError for one that bytes do not have."""
    if images.dtype == tf.uint8 and not 0 <= value <= 255:
        raise OpsError(f"{name} fills bytes, from 0 to 255, before scale or standardize: {value}.")
    return tf.cast(value, images.dtype)


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


_AREA, _RATIO, _MIDDLE, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 224 / 256, 10


def _crop_of_window(
    read, height, width, size, scale=_AREA, ratio=_RATIO, middle=_MIDDLE, *, rng
) -> tf.Tensor:
    """random_resized_crop of one image, of which ``read`` gives a window: [1,size,size,c]."""
    top, left, down, across = (side[0] for side in _boxes(height, width, scale, ratio, rng))
    return _resized(read(top, left, down, across), size, size)[None]


@op("image", random=True, sets_size=True, each=True, of_window=_crop_of_window)
def random_resized_crop(
    images: tf.Tensor,
    size: Size,
    scale: Areas = _AREA,
    ratio: Ratios = _RATIO,
    middle: Annotated[float, Field(gt=0.0, le=1.0)] = _MIDDLE,
    *,
    rng=None,
) -> tf.Tensor:
    """A random rectangle of the image, resized to size x size, bilinear with antialiasing.

    Its area is a share of the image's, uniform in ``scale``, its width / height log-uniform in
    ``ratio``, its place uniform; after ten rectangles that do not fit, the largest one in the
    middle whose ratio is allowed. (Szegedy et al. 2015, arXiv:1409.4842, section 6: 8% to 100% and
    3/4 to 4/3; the log and the ten tries are common practice.) Any image is large enough.

    Evaluation: the shorter side to size / middle, then the middle size x size; with middle=1, for
    images that are small already, nothing is lost of a square.
    """
    if rng is None:
        shorter = resize_shorter(images, round(size / middle))
        return _central(shorter, size, size, "random_resized_crop")

    def crop(image, top, left, down, across):
        return _resized(image[top : top + down, left : left + across], size, size)

    boxes = _boxes(tf.shape(images)[1], tf.shape(images)[2], scale, ratio, rng)
    return one_by_one(crop, images, *boxes, shape=(size, size, images.shape[3]))


def _boxes(height, width, scale, ratio, rng) -> tuple[tf.Tensor, ...]:
    """top, left, height, width, each int32 [n], of random_resized_crop's rectangles."""
    # float64: no rounding that could differ between one image and a batch of them
    h, w = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    area = tf.cast(rng.uniform(*scale, count=_TRIES), tf.float64) * h * w
    logarithm = rng.uniform(math.log(ratio[0]), math.log(ratio[1]), count=_TRIES)
    aspect = tf.exp(tf.cast(logarithm, tf.float64))
    down, across = tf.round(tf.sqrt(area / aspect)), tf.round(tf.sqrt(area * aspect))
    fits = (down >= 1) & (down <= h) & (across >= 1) & (across <= w)
    first = tf.argmax(fits, axis=1)  # the first True
    found = tf.reduce_any(fits, axis=1)
    # where none fits: all of the shorter side, and of the other what the ratio allows
    allowed = tf.clip_by_value(w / h, *ratio)
    largest_down, largest_across = tf.minimum(h, w / allowed), tf.minimum(w, h * allowed)
    down = tf.where(found, tf.gather(down, first, batch_dims=1), tf.round(largest_down))
    across = tf.where(found, tf.gather(across, first, batch_dims=1), tf.round(largest_across))
    down, across = (tf.maximum(tf.cast(side, tf.int32), 1) for side in (down, across))
    free = [tf.cast(height, tf.int32) - down, tf.cast(width, tf.int32) - across]
    top, left = (tf.where(found, rng.integers(f + 1), f // 2) for f in free)
    return top, left, down, across


@op("image", random=True)
def flip_lr(
    images: tf.Tensor, probability: Share = 0.5, average: bool = False, *, rng=None
) -> tf.Tensor:
    """Mirrors left and right with this probability. Evaluation: the image as it is.

    With ``average`` the answers of a finished run, exported ones included, are the mean of the
    class probabilities for the image and for its mirror image, as Krizhevsky et al. (2012, section
    4.1) average over both, in five places each. They take twice the time; the validation of each
    epoch looks at the image alone.
    """
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


def like(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Float values as ``dtype``; to uint8 rounded and limited to 0..255."""
    if dtype != tf.uint8:
        return tf.cast(values, dtype)
    return tf.cast(tf.clip_by_value(tf.round(values), 0.0, 255.0), tf.uint8)


def require_uint8(name: str, images: tf.Tensor, otherwise: str = "") -> None:
    """Raises OpsError for images whose values need not be 0..255."""
    if images.dtype != tf.uint8:
        raise OpsError(
            f"Op {name!r} works on uint8 images, but {images.dtype.name} enters it. Put it before "
            f"scale or standardize in data.ops{otherwise}."
        )


def one_by_one(
    function: Callable[..., tf.Tensor], images: tf.Tensor, *draws: tf.Tensor, shape=None
) -> tf.Tensor:
    """``function(image [h,w,c], *draws of this image)`` for each image of a batch.

    Args:
        function: keeps the dtype.
        images: [n,h,w,c].
        draws: each [n] or [n,...].
        shape: of the results; by default that of an image.
    """
    shape = images.shape[1:] if shape is None else shape
    if images.shape[0] == 1:
        return tf.ensure_shape(function(images[0], *(draw[0] for draw in draws)), shape)[None]
    spec = tf.TensorSpec(shape, images.dtype)
    return tf.map_fn(lambda row: function(*row), (images, *draws), fn_output_signature=spec)


def _resized(images, height, width):
    return like(tf.image.resize(images, (height, width), antialias=True), images.dtype)


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
