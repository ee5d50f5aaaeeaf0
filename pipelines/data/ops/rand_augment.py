"""RandAugment (Cubuk, Zoph, Shlens & Le 2019, arXiv:1909.13719): a few of 14 changes, at random.

Each image draws its own changes, and only those are computed. The arithmetic is Pillow's, in which
the authors' ranges were found: whole numbers, cut off and not rounded where Pillow cuts off.

=================  ====================================  ==========================================
change             at strength m = magnitude / 10        what it does
=================  ====================================  ==========================================
identity                                                 nothing
auto_contrast                                            stretches each channel to 0..255
equalize                                                 evens out each channel's histogram
rotate             ±30 m degrees                         around the middle
shear_x, shear_y   ±0.3 m                                from the top left corner
translate_x, _y    ±150/331 m of the width, the height   moves by whole pixels
solarize           from 256 (1 - m) on                   inverts bright values
posterize          4 m bits                              drops so many of the lower bits, at most 7
color              factor 1 ± 0.9 m, not below 0         blends with gray
contrast           factor 1 ± 0.9 m, not below 0         blends with the mean gray
brightness         factor 1 ± 0.9 m, not below 0         blends with black
sharpness          factor 1 ± 0.9 m, not below 0         blends with a smoothed image
=================  ====================================  ==========================================

The 14 changes and the scale to 10 are those of the paper's section 3, the ranges at 10 those of
AutoAugment (Cubuk et al. 2018, arXiv:1805.09501, appendix), to which it refers; for its largest
network the paper goes on to 28. What comes into view is gray (128). Deviations, all of them from
the authors' code (github tensorflow/tpu, models/official/efficientnet/autoaugment.py):

1. The code draws from 16 changes: with invert, cutout and solarize_add, without identity; and
   skips the change drawn with a probability between 0.2 and 0.8. The paper has neither.
2. The code's solarize and posterize become *weaker* as the magnitude grows, and its four blends go
   from 0.1 to 1.9, so that magnitude 5 changes nothing. Here strength grows with magnitude, up or
   down by a coin.
3. The code moves by up to 100 pixels whatever the size; here 150 of 331, AutoAugment's image.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

import tensorflow as tf
from pydantic import Field

from . import op
from .color import blend, grayscale
from .image import one_by_one, require_uint8

_FILL = 128.0  # of what comes into view: the authors' gray


@op("image", random=True, each=True)
def rand_augment(
    images: tf.Tensor,
    num_ops: Annotated[int, Field(ge=1)] = 2,
    magnitude: Annotated[float, Field(ge=0.0, le=30.0)] = 9.0,
    *,
    rng=None,
) -> tf.Tensor:
    """``num_ops`` of 14 changes of colour and shape, each drawn anew for every image.

    uint8 images only: place it before ``scale`` or ``standardize``. The defaults are the paper's
    for ResNet-50 on ImageNet. Evaluation: the image as it is.

    Args:
        num_ops: changes an image, one after the other; the same one may come twice.
        magnitude: their strength, 0 to 10 and beyond; see the table of this module.
    """
    require_uint8("rand_augment", images)
    if rng is None:
        return images
    chosen = rng.integers(len(CHANGES), count=num_ops)
    signs = tf.where(rng.uniform(count=num_ops) < 0.5, -1.0, 1.0)
    strength = magnitude / 10.0

    def augment(image, chosen, signs):
        for place in range(num_ops):
            changes = [
                partial(change, image, strength, signs[place]) for change in CHANGES.values()
            ]
            image = tf.ensure_shape(tf.switch_case(chosen[place], changes), image.shape)
        return image

    return one_by_one(augment, images, chosen, signs)


# Each change: (image uint8 [h,w,c], strength 0 to 3, sign -1.0 or 1.0) -> uint8 [h,w,c].


def _identity(image, strength, sign):
    return image


def _auto_contrast(image, strength, sign):
    low = tf.cast(tf.reduce_min(image, [0, 1]), tf.float64)[:, None]
    high = tf.cast(tf.reduce_max(image, [0, 1]), tf.float64)[:, None]
    levels = tf.range(256, dtype=tf.float64)
    span = tf.maximum(high - low, 1.0)
    factor = 255.0 / span
    stretched = tf.clip_by_value(levels * factor - low * factor, 0.0, 255.0)
    return _by_table(image, tf.where(high > low, stretched, levels))


def _equalize(image, strength, sign):
    channels = image.shape[-1]
    counts = tf.math.bincount(
        tf.reshape(_places(image), [-1]), minlength=256 * channels, maxlength=256 * channels
    )
    counts = tf.reshape(counts, [channels, 256])
    brightest = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), axis=1, keepdims=True)
    in_brightest = tf.gather(counts, brightest, batch_dims=1)
    step = (tf.reduce_sum(counts, axis=1, keepdims=True) - in_brightest) // 255
    below = tf.cumsum(counts, axis=1, exclusive=True)
    even = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    return _by_table(image, tf.where(step > 0, even, tf.range(256)))


def _places(image) -> tf.Tensor:
    """Of each value in a table [c * 256]."""
    return tf.cast(image, tf.int32) + 256 * tf.range(image.shape[-1])


def _by_table(image, table) -> tf.Tensor:
    """Values through a table [c,256] of numbers from 0 to 255, cut off to whole ones."""
    return tf.gather(tf.reshape(tf.cast(table, tf.uint8), [-1]), _places(image))


def _rotate(image, strength, sign):
    angle = sign * (math.radians(30.0) * strength)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    y, x = (size[0] - 1.0) / 2.0, (size[1] - 1.0) / 2.0
    return _moved(
        image, (cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y)
    )


def _shear_x(image, strength, sign):
    amount = sign * (0.3 * strength)
    return _moved(image, (1.0, amount, 0.5 * amount, 0.0, 1.0, 0.0))


def _shear_y(image, strength, sign):
    amount = sign * (0.3 * strength)
    return _moved(image, (1.0, 0.0, 0.0, amount, 1.0, 0.5 * amount))


def _translate_x(image, strength, sign):
    pixels = sign * (150.0 / 331.0 * strength) * tf.cast(tf.shape(image)[1], tf.float32)
    return _moved(image, (1.0, 0.0, tf.round(pixels), 0.0, 1.0, 0.0))


def _translate_y(image, strength, sign):
    pixels = sign * (150.0 / 331.0 * strength) * tf.cast(tf.shape(image)[0], tf.float32)
    return _moved(image, (1.0, 0.0, 0.0, 0.0, 1.0, tf.round(pixels)))


def _moved(image, matrix) -> tf.Tensor:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f), the nearest one there."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.stack([*matrix, 0.0, 0.0])[None],
        output_shape=tf.shape(image)[:2],
        fill_value=_FILL,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]


def _solarize(image, strength, sign):
    threshold = max(0, round(256 * (1.0 - strength)))
    return tf.where(tf.cast(image, tf.int32) < threshold, image, 255 - image)


def _posterize(image, strength, sign):
    dropped = min(7, round(4 * strength))
    return tf.bitwise.bitwise_and(image, tf.constant(256 - 2**dropped, tf.uint8))


def _color(image, strength, sign):
    return _blended(grayscale(image), image, strength, sign)


def _contrast(image, strength, sign):
    gray = tf.reduce_mean(tf.cast(grayscale(image), tf.float64))
    return _blended(tf.floor(gray + 0.5), image, strength, sign)


def _brightness(image, strength, sign):
    return _blended(0.0, image, strength, sign)


def _sharpness(image, strength, sign):
    values = tf.cast(image, tf.int32)
    rows = values[:-2] + values[1:-1] + values[2:]
    square = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = values[1:-1, 1:-1]
    smooth = (2 * (square + 4 * inner) + 13) // 26  # the middle counts 5 of 13, rounded
    border = [[1, 1], [1, 1], [0, 0]]
    smooth = values + tf.pad(smooth - inner, border)  # the outermost pixels stay
    return _blended(smooth, image, strength, sign)


def _blended(other: Any, image, strength, sign) -> tf.Tensor:
    factor = tf.maximum(0.0, 1.0 + sign * (0.9 * strength))
    values = blend(tf.cast(other, tf.float32), tf.cast(image, tf.float32), factor)
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


CHANGES = {
    "identity": _identity,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "solarize": _solarize,
    "posterize": _posterize,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
