"""The two networks of a GAN, dense (2014) or convolutional (DCGAN, 2015). See :mod:`.gan`."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

import keras
from keras import layers, ops

from .layers import FusedBatchNormalization
from .spectral import SpectralConv2D, SpectralDense

NORMALIZATIONS = ("none", "batch", "layer", "spectral")
WIDTHS = ("hidden", "discriminator_hidden")
_COUNTS = ("noise_size", "critic_steps", "pieces", "filters", "discriminator_filters")
_SMALLEST = 4  # side of the maps where a generator begins and a discriminator ends, at least
_KERNEL = 5
_SLOPE = 0.2
_MOMENTUM = 0.9  # of the moving statistics, which sampling uses
Draw = Callable[[], int | None]


def halvings(side: int) -> int:
    """How often maps of this side are halved: while it is even and what is left is 4 or more.

    >>> [halvings(side) for side in (64, 32, 28, 8, 7)]
    [4, 3, 2, 1, 0]
    """
    count = 0
    while side % 2 == 0 and side // 2 >= _SMALLEST:
        side, count = side // 2, count + 1
    return count


def generator(options: dict[str, Any], draw: Draw, name: str) -> keras.Model:
    """noise [n, z] (and class ids [n]) -> float32 [n, *input_shape]: images in -1..1, points.

    ``options`` are the model's, and ``dtype``, the policy of the layers; the last is in float32.
    """
    shape = options["input_shape"]
    noise = keras.Input((options["noise_size"],), name="noise")
    inputs, x = [noise], noise
    if options["conditional"]:
        inputs.append(keras.Input((), dtype="int32", name="class_id"))
        ask = layers.Concatenate(dtype=options["dtype"], name="ask")
        x = ask([x, _one_hot(inputs[1], options)])
    build = _up if options["convolutional"] else _dense_up
    x = build(x, options, draw)
    x = layers.Activation("tanh" if len(shape) == 3 else "linear", dtype="float32", name="made")(x)
    return keras.Model(_alone(inputs), x, name=name)


def discriminator(options: dict[str, Any], draw: Draw) -> keras.Model:
    """[n, *input_shape] (and class ids [n]) -> logits float32 [n, 1], high for real ones.

    ``options`` as for :func:`generator`.
    """
    shape = options["input_shape"]
    x = keras.Input(shape, name="example")
    inputs = [x]
    if options["conditional"]:
        inputs.append(keras.Input((), dtype="int32", name="class_id"))
    build = _down if options["convolutional"] else _dense_down
    x = build(inputs, options, draw)
    dense = SpectralDense if options["normalization"] == "spectral" else layers.Dense
    x = dense(1, name="logit", **_start(options, draw) | {"dtype": "float32"})(x)
    return keras.Model(_alone(inputs), x, name="discriminator")


def _dense_up(x, options, draw):
    for i, units in enumerate(options["hidden"], 1):
        x = layers.Dense(units, activation="relu", name=f"hidden_{i}", **_start(options, draw))(x)
    shape = options["input_shape"]
    x = layers.Dense(math.prod(shape), name="values", **_start(options, draw))(x)
    return layers.Reshape(shape, dtype=options["dtype"], name="shape")(x)


def _dense_down(inputs, options, draw):
    dtype, spectral = options["dtype"], options["normalization"] == "spectral"
    x = layers.Flatten(dtype=dtype, name="flatten")(inputs[0])
    if options["conditional"]:
        x = layers.Concatenate(dtype=dtype, name="told")([x, _one_hot(inputs[1], options)])
    dense, pieces = SpectralDense if spectral else layers.Dense, options["pieces"]
    for i, units in enumerate(options["discriminator_hidden"], 1):
        start = _start(options, draw, spectral)
        x = dense(units * pieces, name=f"hidden_{i}", **start)(x)
        if i > 1 or options["normalization"] == "layer":
            x = _normalized(x, options, i)
        if pieces > 1:  # maxout (Goodfellow et al. 2013): the largest of several linear functions
            x = layers.Reshape((units, pieces), dtype=dtype, name=f"pieces_{i}")(x)
            x = ops.max(x, axis=-1)
        else:
            x = layers.LeakyReLU(_SLOPE, dtype=dtype, name=f"leaky_{i}")(x)
    return x


def _up(x, options, draw):
    height, width, channels = options["input_shape"]
    count = min(halvings(height), halvings(width))
    filters = [options["filters"] * 2**i for i in reversed(range(count))]
    low = (height >> count, width >> count, filters[0])
    x = layers.Dense(math.prod(low), name="project", **_start(options, draw))(x)
    x = layers.Reshape(low, dtype=options["dtype"], name="maps")(x)
    for i, many in enumerate([*filters[1:], channels], 1):
        x = _batch_normalized(x, options, i)
        x = layers.ReLU(dtype=options["dtype"], name=f"relu_{i}")(x)
        start = _start(options, draw)
        x = layers.Conv2DTranspose(many, _KERNEL, 2, "same", name=f"up_{i}", **start)(x)
    return x


def _down(inputs, options, draw):
    x, dtype, spectral = inputs[0], options["dtype"], options["normalization"] == "spectral"
    height, width, _ = options["input_shape"]
    if options["conditional"]:  # a map of ones for the class, of zeros for every other
        told = _one_hot(inputs[1], options)
        told = layers.Reshape((1, 1, options["num_classes"]), dtype=dtype, name="told")(told)
        told = layers.UpSampling2D((height, width), dtype=dtype, name="maps")(told)
        x = layers.Concatenate(dtype=dtype, name="example_told")([x, told])
    conv = SpectralConv2D if spectral else layers.Conv2D
    for i in range(1, min(halvings(height), halvings(width)) + 1):
        many, start = (
            options["discriminator_filters"] * 2 ** (i - 1),
            _start(options, draw, spectral),
        )
        x = conv(many, _KERNEL, strides=2, padding="same", name=f"down_{i}", **start)(x)
        if i > 1:
            x = _normalized(x, options, i)
        x = layers.LeakyReLU(_SLOPE, dtype=dtype, name=f"leaky_{i}")(x)
    return layers.Flatten(dtype=dtype, name="flatten")(x)


def _normalized(x, options, i: int):
    if options["normalization"] == "batch":
        return _batch_normalized(x, options, i)
    if options["normalization"] == "layer":
        named = {"dtype": options["dtype"], "name": f"norm_{i}"}
        if len(x.shape) == 2:
            return layers.LayerNormalization(**named)(x)
        # As Gulrajani et al.: over all of an example, with a scale and an offset for each channel;
        # Keras's layer normalisation over several axes has them for each element.
        return layers.GroupNormalization(groups=1, **named)(x)
    return x


def _batch_normalized(x, options, i: int):
    norm = FusedBatchNormalization(
        momentum=_MOMENTUM, epsilon=1e-5, dtype=options["dtype"], name=f"norm_{i}"
    )
    return norm(x)


def _alone(inputs: list):
    return inputs if len(inputs) > 1 else inputs[0]


def _one_hot(ids, options):
    return ops.one_hot(ids, options["num_classes"], dtype=keras.config.floatx())


def _start(options: dict[str, Any], draw: Draw, spectral: bool = False) -> dict[str, Any]:
    """How a layer starts: N(0, 0.02) in DCGAN, else Glorot's uniform; biases at 0. And dtype."""
    kinds = keras.initializers
    normal = options["convolutional"]
    start = kinds.RandomNormal(0.0, 0.02, draw()) if normal else kinds.GlorotUniform(draw())
    found: dict[str, Any] = {"kernel_initializer": start, "dtype": options["dtype"]}
    return found | ({"spectral_seed": draw()} if spectral else {})


def _count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def check(options: dict[str, Any]) -> None:
    """Raises ValueError for options that cannot be built; says which, and what can."""
    shape = options["input_shape"]
    if len(shape) not in (1, 3) or None in shape:
        raise ValueError(
            f"A GAN makes images [h, w, c] of one size or points [f]; got {list(shape)}."
        )
    if options["convolutional"]:
        if len(shape) != 3:
            raise ValueError(f"Points of {shape[0]} numbers have no pixels: use gan, not dcgan.")
        if min(halvings(side) for side in shape[:2]) < 1:
            raise ValueError(
                f"dcgan doubles maps of at least {_SMALLEST} pixels, and cannot make "
                f"{shape[0]}x{shape[1]}: take even sides from 8 pixels, such as 28, 32 or 64 "
                "(data.ops resize), or the model gan."
            )
    if options["normalization"] not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be one of {', '.join(NORMALIZATIONS)}; got "
            f"{options['normalization']!r}."
        )
    if options["conditional"] and options["num_classes"] < 2:
        raise ValueError("A conditional GAN needs data with two classes or more.")
    for name in _COUNTS:
        if not _count(options[name]):
            raise ValueError(f"{name} must be an integer of 1 or more; got {options[name]!r}.")
    for name in WIDTHS:
        if not isinstance(options[name], tuple) or not all(map(_count, options[name])):
            raise ValueError(
                f"{name} are the widths of the hidden layers, a list of integers of 1 or more such "
                f"as [128, 128]; got {options[name]!r}."
            )
    if not 0.0 <= options["average"] < 1.0 or options["generator_rate"] <= 0:
        raise ValueError(
            "average is the share of a running mean that is kept, at least 0 and below 1, and "
            f"generator_rate a factor above 0; got {options['average']!r} and "
            f"{options['generator_rate']!r}."
        )
