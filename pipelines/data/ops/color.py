"""Ops that change the values of pixels. Images [n,h,w,c], uint8 or float32.

``scale`` and ``standardize`` give float32; the others return the dtype they were given, and what
leaves the whole chain is cast to float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any

import numpy as np
import tensorflow as tf
from pydantic import Field

from . import OpsError, op
from .image import Share, like, one_by_one, require_uint8

Strength = Annotated[float, Field(ge=0.0)]
Three = tuple[float, float, float]


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
    average, covariance = _mean_and_covariance(batches)
    deviation = np.sqrt(np.diag(covariance))
    return {"mean": average.tolist(), "std": np.where(deviation > 0, deviation, 1.0).tolist()}


def _mean_and_covariance(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of the channels, over all pixels: [c] and [c,c], in float64 and one pass."""
    count, average, products = 0, 0.0, 0.0
    for batch in batches:
        values = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
        here, new = values.mean(axis=0), count + len(values)
        shift = here - average  # Chan's update: exact where large values vary little
        centred = values - here
        products = products + centred.T @ centred
        products = products + np.outer(shift, shift) * (count * len(values) / new)
        average = average + shift * (len(values) / new)
        count = new
    return average, products / count


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


@op("image", random=True, each=True)
def color_jitter(
    images: tf.Tensor,
    brightness: Strength = 0.0,
    contrast: Strength = 0.0,
    saturation: Strength = 0.0,
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0,
    probability: Share = 1.0,
    *,
    rng=None,
) -> tf.Tensor:
    """Brightness, contrast, saturation and hue at random, in an order of each image's own.

    With ``probability`` all of it happens to an image, else nothing.

    The first three blend the image with black, with its mean luminance and with its luminance, by
    a factor uniform in 1 ± strength (not below 0); hue turns by -hue..hue of the colour circle.
    (Chen et al. 2020, arXiv:2002.05709, appendix A, with strength s: .8s, .8s, .8s and .2s, with
    probability 0.8.) uint8 images only. Evaluation: the image as it is.
    """
    require_uint8("color_jitter", images)
    if rng is None:
        return images
    limits = {
        _brighten: (max(0.0, 1.0 - brightness), 1.0 + brightness),
        _contrast: (max(0.0, 1.0 - contrast), 1.0 + contrast),
        _saturate: (max(0.0, 1.0 - saturation), 1.0 + saturation),
        _turn_hue: (-hue, hue),
    }
    if images.shape[-1] == 1:  # gray has neither
        del limits[_saturate], limits[_turn_hue]
    active = [change for change, (low, high) in limits.items() if low < high]
    if not active:
        return images
    amounts = [rng.uniform(*limits[change]) for change in active]
    order = tf.argsort(rng.uniform(count=len(active)), axis=1)

    def changed(change, values, amount):
        return tf.clip_by_value(change(values, amount), 0.0, 255.0)

    def jitter(image, order, *amounts):
        values = tf.cast(image, tf.float32)
        for place in range(len(active)):  # the change whose turn it is, and no other, is computed
            turns = [
                partial(changed, change, values, amount)
                for change, amount in zip(active, amounts, strict=True)
            ]
            values = tf.ensure_shape(tf.switch_case(order[place], turns), image.shape)
        return like(values, image.dtype)

    if probability == 1.0:
        return one_by_one(jitter, images, order, *amounts)

    def perhaps(image, chosen, *draws):  # what is not chosen is not computed
        return tf.cond(chosen, lambda: jitter(image, *draws), lambda: image)

    return one_by_one(perhaps, images, rng.uniform() < probability, order, *amounts)


@op("image", random=True)
def random_grayscale(images: tf.Tensor, probability: Share = 0.2, *, rng=None) -> tf.Tensor:
    """The luminance in all three channels with this probability; one channel stays as it is.

    (Chen et al. 2020, arXiv:2002.05709, appendix A: 20%.) Evaluation: the image as it is.
    """
    if rng is None or images.shape[-1] == 1:
        return images
    chosen = (rng.uniform() < probability)[:, None, None, None]
    return tf.where(chosen, grayscale(images), images)


def _brighten(values: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return values * factor


def _contrast(values: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return blend(tf.reduce_mean(grayscale(values)), values, factor)


def _saturate(values: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return blend(grayscale(values), values, factor)


def _turn_hue(values: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    return tf.image.adjust_hue(values, share)


def blend(other: tf.Tensor, values: tf.Tensor, factor: Any) -> tf.Tensor:
    """``values`` at factor 1, ``other`` at 0, in a straight line between and beyond; float32."""
    return other + factor * (values - other)


def _principal(
    batches: Iterable[np.ndarray],
    std: Strength = 0.1,
    deviations: Three | None = None,
    directions: tuple[Three, Three, Three] | None = None,
) -> dict[str, Any]:
    """Principal directions of the channels (rows) and the standard deviations along them."""
    if (deviations is None) != (directions is None):
        raise OpsError(
            "Op 'pca_noise': give both deviations and directions, or neither to learn them."
        )
    if deviations is not None:
        return {"deviations": list(deviations), "directions": [list(row) for row in directions]}
    variances, vectors = np.linalg.eigh(_mean_and_covariance(batches)[1])
    vectors = vectors.T[::-1]  # rows, the largest variance first
    # A direction and its opposite are the same: the one whose largest entry is positive.
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    return {
        "deviations": np.sqrt(np.maximum(variances[::-1], 0.0)).tolist(),
        "directions": (vectors * np.sign(largest)).tolist(),
    }


@op("image", fit=_principal, random=True)
def pca_noise(
    images: tf.Tensor,
    std: Strength = 0.1,
    deviations: Three | None = None,
    directions: tuple[Three, Three, Three] | None = None,
    *,
    state: dict[str, Any],
    rng=None,
) -> tf.Tensor:
    """Adds one colour to a whole image, drawn along the principal directions of the colours.

    sum_i a_i s_i p_i with a_i ~ N(0, std), one triple an image; p_i are the eigenvectors of the
    covariance of the channels over all pixels of the training split, and s_i² its eigenvalues
    (Krizhevsky et al. 2012, section 4.1). The paper writes the eigenvalues s_i² themselves, whose
    unit is a squared pixel value; its author's code (cuda-convnet2, convdata.py) and this op take
    the standard deviations s_i. What that code does next, dividing the image by 1 + std, is left
    out. Evaluation: the image as it is.

    Args:
        std: standard deviation of a_i.
        deviations: s_i in the units of what enters the op, instead of learning them.
        directions: p_i, a row each, of length 1; with ``deviations``.
    """
    channels, known = images.shape[-1], len(state["deviations"])
    if channels != known:
        raise OpsError(
            f"Op 'pca_noise': {known} directions, but the images have {channels} channels. Put "
            f"{'rgb' if known == 3 else 'grayscale'} before it, or leave directions out."
        )
    if rng is None:
        return images
    spread = std * np.asarray(state["deviations"])[:, None] * np.asarray(state["directions"])
    amounts = rng.normal(count=known)
    # not a product of matrices: its sums may depend on how many images there are
    colour = tf.reduce_sum(amounts[:, :, None] * spread, axis=1)
    colour = tf.cast(colour, tf.float32)[:, None, None, :]
    return like(tf.cast(images, tf.float32) + colour, images.dtype)
