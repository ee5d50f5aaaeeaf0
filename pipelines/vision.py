"""What a model of images sees: its first weights, its feature maps, where its answer comes from.

- *First weights*: the kernels of the first convolution; of a net without convolutions the rows of
  its first matrix, in the shape of an image. A linear classifier has one of these "templates" a
  class.
- *Feature maps*: what the stages of a net make of an example. A stage ends where the maps change
  their size.
- *Grad-CAM* (Selvaraju et al. 2017, Grad-CAM, section 3). For the score y of an answer (a logit,
  not a probability) and maps A_k of Z positions,

      alpha_k = 1/Z sum_ij dy/dA_kij        L = ReLU(sum_k alpha_k A_k)

  so that L is large where maps that speak for the answer are active. If the maps are averaged over
  all positions and go through one linear layer of weights w, alpha_k is w_k / Z and L the class
  activation map of Zhou et al. (2016), up to the scale and to what ReLU cuts off.

Models are functional or sequential Keras models, images [n, h, w, channels]. Where a model or its
data have no such thing, the answer is None or empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

SMALLEST = 4  # positions a side: smaller maps hardly say where

_CONVOLUTIONS = (
    layers.Conv2D,
    layers.DepthwiseConv2D,
    layers.SeparableConv2D,
    layers.Conv2DTranspose,
)
# Their outputs are no maps of a stage: they only move values, or prepare the next stage's.
_MOVERS = (
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.ZeroPadding2D,
    layers.Cropping2D,
    layers.UpSampling2D,
    layers.Dropout,
    layers.SpatialDropout2D,
)


# --- The model's graph ------------------------------------------------------------------------


def _nodes(model) -> list:
    """The nodes of a model's graph, inputs first; empty for a model without a graph."""
    graph = getattr(model, "_functional", None) or model
    depths = getattr(graph, "_nodes_by_depth", {})
    return [node for depth in sorted(depths, reverse=True) for node in depths[depth]]


def _within(layer) -> Iterator[Any]:
    """A layer and those inside it, in the order of computation where that is known."""
    yield layer
    nodes = [node.operation for node in _nodes(layer) if not node.is_input]
    for inner in nodes or getattr(layer, "_layers", ()):
        yield from _within(inner)


def _convolves(layer) -> bool:
    return any(
        isinstance(inner, _CONVOLUTIONS) and inner.data_format == "channels_last"
        for inner in _within(layer)
    )


def stages(model: keras.Model) -> dict[str, Any]:
    """The maps worth a look: layer name -> symbolic maps [n, h, w, c], from first to last.

    The first are those of the first convolution, behind its normalisation and non-linearity; then
    for each size of maps the last ones of that size, pooling and padding aside. Empty without
    convolutions, or where the model has no graph to follow.
    """
    found: dict[Any, tuple[str, Any]] = {}
    seen: set[int] = set()  # tensors behind a convolution
    head = None
    for node in _nodes(model):
        layer, maps = node.operation, node.outputs[0]
        inputs = {id(tensor) for tensor in node.input_tensors}
        convolves = _convolves(layer)
        if not (convolves or inputs & seen) or len(maps.shape) != 4:
            continue
        seen.add(id(maps))
        if isinstance(layer, _MOVERS) or math.prod(size or 2 for size in maps.shape[1:3]) == 1:
            continue
        if head is None or (
            not convolves and inputs == {id(head[1])} and maps.shape == head[1].shape
        ):
            head = (layer.name, maps)
        found.pop(maps.shape[1:3], None)
        found[maps.shape[1:3]] = (layer.name, maps)
    return dict([head, *found.values()]) if head else {}


def deepest(model: keras.Model) -> tuple[str, Any] | None:
    """The last maps, or rather the last ones that are large enough to say where."""
    every = list(stages(model).items())
    large = [one for one in every if min(n or SMALLEST for n in one[1].shape[1:3]) >= SMALLEST]
    return (large or every or [None])[-1]


# --- Computing --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """The weights that look at the image itself."""

    layer: str
    kernels: np.ndarray
    """float32 [n, h, w, channels]."""
    dense: bool
    """Whether each sees the whole image, not a window of it."""


def first_weights(model: keras.Model, image_shape: tuple[int, ...]) -> Weights | None:
    """The kernels of the first convolution, or the first matrix as images of ``image_shape``.

    None where these do not fit the image, or are single pixels.
    """
    for layer in _within(model):
        if not isinstance(layer, (*_CONVOLUTIONS, layers.Dense)):
            continue
        if isinstance(layer, layers.Conv2D):
            height, width, channels, _ = layer.kernel.shape
            if channels == image_shape[-1] and height * width > 1:
                kernels = keras.ops.convert_to_numpy(layer.kernel)
                return Weights(layer.name, np.moveaxis(kernels, -1, 0), dense=False)
        elif isinstance(layer, layers.Dense) and layer.kernel.shape[0] == math.prod(image_shape):
            kernels = keras.ops.convert_to_numpy(layer.kernel)
            return Weights(layer.name, kernels.T.reshape(-1, *image_shape), dense=True)
        return None
    return None


def feature_maps(model: keras.Model, x) -> dict[str, np.ndarray]:
    """The maps of :func:`stages` of images x [n, h, w, c]: layer -> float32 [n, h', w', c']."""
    symbolic = stages(model)
    if not symbolic:
        return {}
    look = keras.Model(model.inputs[0], symbolic, name="feature_maps")
    maps = look(tf.convert_to_tensor(x), training=False)
    return {name: tf.cast(maps[name], tf.float32).numpy() for name in symbolic}


def grad_cam(model: keras.Model, x, score: Callable[[tf.Tensor], tf.Tensor]) -> np.ndarray | None:
    """Where in the images a score comes from; see the module's text.

    Args:
        model: from images to raw outputs.
        x: float32 [n, h, w, c], as the model takes them.
        score: outputs [n, ...] -> the score y of each image's answer, [n]; for class 3
            ``lambda outputs: outputs[:, 3]``.

    Returns:
        float32 [n, h', w'], 0 or more, in the score's units, on the positions of the last maps that
        have at least 4 a side (else of the last); None for a model without feature maps.
    """
    last = deepest(model)
    if last is None:
        return None
    both = keras.Model(model.inputs[0], [last[1], model.outputs[0]], name="grad_cam")
    x = tf.convert_to_tensor(x)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        maps, outputs = both(x, training=False)
        # Rows do not depend on each other: the sum's gradient holds every row's own.
        total = tf.reduce_sum(score(outputs))
    slopes = tape.gradient(total, maps, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    maps, slopes = tf.cast(maps, tf.float32), tf.cast(slopes, tf.float32)
    alpha = tf.reduce_mean(slopes, axis=(1, 2), keepdims=True)
    return tf.nn.relu(tf.reduce_sum(alpha * maps, axis=-1)).numpy()
