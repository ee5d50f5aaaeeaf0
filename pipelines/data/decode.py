"""From the bytes of an image file to uint8 pixels, in core TensorFlow ops.

=====================  ============================================================================
file                   what becomes of it
=====================  ============================================================================
JPEG                   the pixels that Pillow gives (accurate integer DCT); CMYK is converted
                       without colour profiles
PNG                    palettes are looked up, transparency is dropped (what lies under it shows),
                       16 bits are scaled to 8 and rounded
BMP                    palettes of 256 colours are looked up, a fourth channel is dropped; files of
                       1 and 4 bits a pixel are refused
GIF                    the first frame; what is transparent in it is black
WebP                   of a moving one the first frame; transparency as in PNG
grayscale, any format  three equal channels; a set of nothing but grays has one
=====================  ============================================================================

What a JPEG's EXIF data say about orientation is ignored: a photo that only its EXIF tag turns
upright stays as it was taken, in training and in serving alike.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from .ops.color import grayscale

_ACCURATE = "INTEGER_ACCURATE"  # no slower than TensorFlow's default, which is up to 14 levels off
_MARGIN = 2  # pixels beyond a window of which its colours, stored at half the resolution, are made


def decode_rgb(content: tf.Tensor) -> tf.Tensor:
    """The bytes of a JPEG, PNG, BMP, GIF or WebP file -> uint8 [h,w,3]; see the module's text.

    Raises InvalidArgumentError for anything else and for truncated files.
    """

    def jpeg():
        return tf.io.decode_jpeg(content, channels=3, dct_method=_ACCURATE)

    def bitmap():  # decode_image refuses to convert a BMP's channels
        image = tf.io.decode_bmp(content)
        return tf.cond(
            tf.shape(image)[2] == 1,
            lambda: tf.gather(_bmp_palette(content), tf.cast(image[..., 0], tf.int32)),
            lambda: image[..., :3],
        )

    def deep():  # decode_image would keep the upper eight bits as they are
        levels = tf.cast(tf.io.decode_png(content, channels=3, dtype=tf.uint16), tf.int32)
        return tf.cast((levels + 128) // 257, tf.uint8)

    def other():
        return tf.io.decode_image(content, channels=3, expand_animations=False)

    def webp():
        return tf.io.decode_image(content, channels=0, expand_animations=False)[..., :3]

    start = tf.strings.join([tf.strings.substr(content, 0, 25), b"\0" * 25])
    is_bitmap = tf.strings.substr(start, 0, 2) == b"BM"
    is_png = tf.strings.substr(start, 0, 4) == b"\x89PNG"
    is_deep = is_png & (tf.strings.substr(start, 24, 1) == b"\x10")  # 16 bits a channel
    is_webp = tf.strings.substr(start, 8, 4) == b"WEBP"
    kind = tf.where(is_deep, 2, tf.where(is_webp, 3, 4))
    kind = tf.where(is_jpeg(content), 0, tf.where(is_bitmap, 1, kind))
    image = tf.switch_case(kind, [jpeg, bitmap, deep, webp, other])
    return tf.ensure_shape(image, (None, None, 3))


def _bmp_palette(content: tf.Tensor) -> tf.Tensor:
    """The colours of a BMP file of one byte a pixel, uint8 [256,3]; those not given are black.

    They stand before the pixels as blue, green, red and a spare byte.
    """

    def number(place):
        return tf.io.decode_raw(tf.strings.substr(content, place, 4), tf.int32)[0]

    start, end = 14 + number(14), number(10)
    count = tf.minimum((end - start) // 4, 256)
    colours = tf.io.decode_raw(tf.strings.substr(content, start, 4 * count), tf.uint8)
    colours = tf.reshape(colours, [-1, 4])[:, 2::-1]
    return tf.pad(colours, [[0, 256 - tf.shape(colours)[0]], [0, 0]])


def is_jpeg(content: tf.Tensor) -> tf.Tensor:
    """Whether the bytes are those of a JPEG file, bool."""
    return tf.strings.substr(content, 0, 3) == b"\xff\xd8\xff"


def jpeg_window(content: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, Callable[..., tf.Tensor]]:
    """A JPEG file's height and width, and ``read(top, left, height, width)`` -> uint8 [h,w,3].

    Exactly the pixels that :func:`decode_rgb` gives there; the others are not computed.
    """
    shape = tf.io.extract_jpeg_shape(content)

    def read(top, left, height, width):
        above, before = tf.minimum(top, _MARGIN), tf.minimum(left, _MARGIN)
        bottom = tf.minimum(top + height + _MARGIN, shape[0])
        right = tf.minimum(left + width + _MARGIN, shape[1])
        top, left = top - above, left - before
        image = tf.image.decode_and_crop_jpeg(
            content, tf.stack([top, left, bottom - top, right - left]), 3, dct_method=_ACCURATE
        )
        return image[above : above + height, before : before + width]

    return shape[0], shape[1], read


def to_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
    """uint8 [h,w,3] with 1 (luminance) or 3 channels; gray pixels keep their exact value."""
    return grayscale(image) if channels == 1 else image
