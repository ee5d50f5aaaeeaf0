"""Gaussian blur. Images [n,h,w,c], uint8 or float32; the dtype stays."""

from __future__ import annotations

from typing import Annotated

import tensorflow as tf
from pydantic import AfterValidator, Field

from . import OpsError, op
from .image import Share, like


def _increasing(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 < limits[0] <= limits[1]:
        raise ValueError("expected two numbers above 0, the lower limit first")
    return limits


Deviations = Annotated[tuple[float, float], AfterValidator(_increasing)]


@op("image", random=True)
def gaussian_blur(
    images: tf.Tensor,
    probability: Share = 0.5,
    deviation: Deviations = (0.1, 2.0),
    kernel: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1,
    *,
    rng=None,
) -> tf.Tensor:
    """A Gaussian filter with this probability, its deviation in pixels uniform in ``deviation``.

    The filter reaches int(kernel * height / 2) pixels to each side, at least 1; beyond the border
    the image goes on as its mirror image, where the authors' code has black. (Chen et al. 2020,
    arXiv:2002.05709, appendix A: half of the images, 0.1 to 2.0, a tenth of the height; on 32x32
    pixels, appendix B.9, none.) Evaluation: the image as it is.
    """
    height, width = images.shape[1:3]
    if height is None or width is None:
        raise OpsError(
            "Op 'gaussian_blur' takes images of one size. Put it after the op that makes them "
            "equal, e.g. random_resized_crop(224)."
        )
    if rng is None:
        return images
    chosen = (rng.uniform() < probability)[:, None, None, None]
    reach = min(max(1, int(kernel * height / 2)), height - 1, width - 1)
    offsets = tf.range(-reach, reach + 1, dtype=tf.float32)
    weights = tf.exp(-tf.square(offsets / rng.uniform(*deviation)[:, None]) / 2.0)
    weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    values = tf.cast(images, tf.float32)
    values = tf.pad(values, [[0, 0], [reach, reach], [reach, reach], [0, 0]], "REFLECT")
    # A sum of shifted images, one weight an image and shift: first down, then across.
    taps = [weights[:, i, None, None, None] for i in range(2 * reach + 1)]
    values = tf.add_n([tap * values[:, i : i + height] for i, tap in enumerate(taps)])
    values = tf.add_n([tap * values[:, :, i : i + width] for i, tap in enumerate(taps)])
    return tf.where(chosen, like(values, images.dtype), images)
