"""Residual networks for small images, and the plain networks they are compared with.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition (2015), section 4.2. What was new:
a block learns what to *add* to its input, ``y = relu(x + F(x))``, instead of a whole new y. The
identity is then the easiest thing to learn, gradients reach every layer through the sums, and depth
helps where plain stacks get worse, on the training set too.

A net of depth 6n + 2 is a 3x3 convolution, three stages of n blocks (2 convolutions each) with 16,
32 and 64 filters on maps of full, half and quarter size, global average pooling, and a linear
layer.

| depth | n | trainable weights (32x32x3, 10 classes) | with option B shortcuts |
|---|---|---|---|
| 20 | 3 | 269,722 | 272,474 |
| 32 | 5 | 464,154 | 466,906 |
| 44 | 7 | 658,586 | 661,338 |
| 56 | 9 | 853,018 | 855,770 |
| 110 | 18 | 1,727,962 | 1,730,714 |

Plain nets have exactly the weights of the residual nets with option A, whose shortcuts have none.

Deviations from the paper:

1. Sections 3.4 and 4.2: the weights start as in He et al. (Delving Deep, eq. 10): untruncated
   normal of variance 2 / fan-in, fan-in = 9 x input channels. So does the linear layer, which the
   text does not single out. Some later re-implementations take fan-out.
2. Batch normalisation: the paper gives no constants. Here epsilon is 1e-5 and the moving averages
   keep 0.9 a step; Keras's own constants are 1e-3 and 0.99.
3. Section 4.2 pads with zeros without saying on which side: stride-2 convolutions here pad one
   pixel on each side, so that their windows are centred on the pixels that the shortcut picks.
   TensorFlow's "same" would centre them one pixel off.
4. Section 3.3, option A pads the channels with zeros: here all new channels come after the old.
5. Inputs of other sizes than 32x32x3 are accepted; `width` scales all three stages. Both are
   unchanged by default. The output layer gives logits; the softmax is part of the loss.
"""

from collections.abc import Sequence
from functools import partial

import keras
import numpy as np
from keras import layers, ops

from .layers import FusedBatchNormalization

DEPTHS = (20, 32, 44, 56, 110)
_EPSILON = 1e-5
_MOMENTUM = 0.9


# --- Layers -----------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("epochal")
class ParameterFreeShortcut(layers.Layer):
    """Option A (section 3.3): every stride-th pixel, new channels filled with zeros.

    [n, h, w, c] -> [n, ceil(h / strides), ceil(w / strides), filters], filters >= c.
    """

    def __init__(self, filters: int, strides: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides

    @property
    def window(self) -> tuple[int, int, int]:
        """Kernel, strides and dilation, for the receptive field."""
        return 1, self.strides, 1

    def multiply_adds(self, input_shapes, output_shape) -> int:
        """None: it copies."""
        return 0

    def call(self, inputs):
        picked = inputs[:, :: self.strides, :: self.strides, :]
        missing = self.filters - inputs.shape[-1]
        return ops.pad(picked, ((0, 0), (0, 0), (0, 0), (0, missing)))

    def compute_output_shape(self, input_shape):
        n, *size, _ = input_shape
        return (n, *(None if s is None else -(-s // self.strides) for s in size), self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


def conv(x, filters: int, kernel: int, strides: int, seed, name: str):
    """Convolution without bias on maps padded by kernel // 2 on each side."""
    padding = "same"
    if strides > 1:
        padding = "valid"
        if kernel > 1:
            x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    return layers.Conv2D(
        filters,
        kernel,
        strides=strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=he_normal(seed),
        name=name,
    )(x)


def norm(x, name: str):
    """Batch normalisation with this family's constants."""
    return FusedBatchNormalization(momentum=_MOMENTUM, epsilon=_EPSILON, name=name)(x)


def he_normal(seed=None) -> keras.initializers.Initializer:
    """Untruncated normal of variance 2 / fan-in (Delving Deep, eq. 10)."""
    return keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal", seed)


# --- Blocks -----------------------------------------------------------------------------------


def basic_block(x, filters: int, strides: int, shortcut: str | None, draw, name: str):
    """relu(shortcut(x) + BN(conv(relu(BN(conv(x)))))); a plain net's block has no shortcut.

    ``shortcut`` is None, "A" (parameter-free) or "B" (a 1x1 convolution where the shape changes).
    """
    y = conv(x, filters, 3, strides, draw(), f"{name}_conv1")
    y = norm(y, f"{name}_norm1")
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = conv(y, filters, 3, 1, draw(), f"{name}_conv2")
    y = norm(y, f"{name}_norm2")
    if shortcut is not None:
        if strides > 1 or x.shape[-1] != filters:
            if shortcut == "A":
                x = ParameterFreeShortcut(filters, strides, name=f"{name}_shortcut")(x)
            else:
                x = conv(x, filters, 1, strides, draw(), f"{name}_shortcut")
                x = norm(x, f"{name}_shortcut_norm")
        y = layers.Add(name=f"{name}_add")([x, y])
    return layers.ReLU(name=f"{name}_relu2")(y)


# --- Models for small images (section 4.2) ------------------------------------------------------


def cifar_resnet(
    depth: int,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    width: int = 16,
    shortcut: str = "A",
    seed: int | None = None,
) -> keras.Model:
    """Residual net of ``depth`` = 6n + 2 layers.

    Args:
        depth: number of layers with weights: 8, 14, 20, 26, ...
        input_shape: height, width and channels of one image; at least 4x4.
        num_classes: number of outputs.
        width: filters of the first stage; the others have twice and four times as many.
        shortcut: "A" parameter-free, "B" a 1x1 convolution where the shape changes.
        seed: of the initial weights; None draws them from ``keras.utils.set_random_seed``.

    Returns:
        Model from [n, *input_shape] to raw float32 outputs [n, num_classes].

    Raises:
        ValueError: an option out of range.
    """
    if shortcut not in ("A", "B"):
        raise ValueError(f'shortcut must be "A" or "B"; got {shortcut!r}.')
    return _cifar_net(f"resnet{depth}", depth, input_shape, num_classes, width, shortcut, seed)


def cifar_plain(
    depth: int,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    width: int = 16,
    seed: int | None = None,
) -> keras.Model:
    """The same layers without shortcuts; arguments, result and errors of :func:`cifar_resnet`."""
    return _cifar_net(f"plain{depth}", depth, input_shape, num_classes, width, None, seed)


def _cifar_net(name, depth, input_shape, num_classes, width, shortcut, seed) -> keras.Model:
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ...); got {depth!r}.")
    if len(input_shape) != 3 or min(input_shape[:2]) < 4:
        raise ValueError(
            "input_shape must be (height, width, channels), at least 4x4; "
            f"got {tuple(input_shape)!r}."
        )
    if min(num_classes, width) < 1:
        raise ValueError(
            f"num_classes and width must be at least 1; got {num_classes!r} and {width!r}."
        )
    random = None if seed is None else np.random.default_rng(seed)

    def draw() -> int | None:
        """A seed of its own for every layer."""
        return None if random is None else int(random.integers(2**31))

    inputs = keras.Input(input_shape, name="inputs")
    x = conv(inputs, width, 3, 1, draw(), "stem_conv")
    x = norm(x, "stem_norm")
    x = layers.ReLU(name="stem_relu")(x)
    for stage in range(3):
        for block in range((depth - 2) // 6):
            strides = 2 if stage > 0 and block == 0 else 1
            filters = width * 2**stage
            x = basic_block(x, filters, strides, shortcut, draw, f"stage{stage + 1}_{block + 1}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(
        num_classes, kernel_initializer=he_normal(draw()), dtype="float32", name="outputs"
    )(x)
    return keras.Model(inputs, outputs, name=name)


resnet20, resnet32, resnet44, resnet56, resnet110 = (partial(cifar_resnet, d) for d in DEPTHS)
plain20, plain32, plain44, plain56, plain110 = (partial(cifar_plain, d) for d in DEPTHS)
