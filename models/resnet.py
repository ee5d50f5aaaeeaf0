"""Residual networks for ImageNet, their pre-activation form, and the blocks of both families.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition (2015). What was new: a block
learns what to *add* to its input, ``y = relu(x + F(x))``, instead of a whole new y. The identity is
then the easiest thing to learn, gradients reach every layer through the sums, and depth helps where
plain stacks get worse, on the training set too.

``version`` "v1" is this paper. "v1.5" halves the maps in the 3x3 convolution of a bottleneck
instead of the first 1x1, which throws three quarters of its input away; published PyTorch weights
are of this form (Goyal 2017, section 5.1). "v2" is He et al.: Identity Mappings in Deep Residual
Networks (2016): normalisation and ReLU come *before* each convolution and nothing after the sum, so
that the shortcuts of a stage are one undisturbed path. Nets of two-layer blocks (18, 34) are the
same in v1 and v1.5.

A 7x7 convolution and a max pooling, four stages of blocks on maps of 1/4 to 1/32 of the image's
size (table 1 of 2015: 56, 28, 14, 7 for 224), global average pooling, a linear layer. 18 and 34
have blocks of two 3x3 convolutions with 64, 128, 256 and 512 filters; 50, 101 and 152 bottlenecks,
1x1, 3x3, 1x1, of which the last has four times as many. For 224x224x3 and 1000 classes:

| name | blocks a stage | trainable weights | with moving statistics | multiply-adds, v1 | v1.5 |
|---|---|---|---|---|---|
| resnet18 | 2 2 2 2 | 11,689,512 | 11,699,112 | 1,814,073,344 | the same |
| resnet34 | 3 4 6 3 | 21,797,672 | 21,814,696 | 3,663,761,408 | the same |
| resnet50 | 3 4 6 3 | 25,557,032 | 25,610,152 | 3,857,973,248 | 4,089,184,256 |
| resnet101 | 3 4 23 3 | 44,549,160 | 44,654,504 | 7,570,194,432 | 7,801,405,440 |
| resnet152 | 3 8 36 3 | 60,192,808 | 60,344,232 | 11,282,415,616 | 11,513,626,624 |
| plain18 | 2 2 2 2 | 11,515,688 | 11,523,496 | 1,794,805,760 | |
| plain34 | 3 4 6 3 | 21,623,848 | 21,639,080 | 3,644,493,824 | |

The paper's table 1 gives 1.8, 3.6, 3.8, 7.6 and 11.3 thousand million for the residual nets. The
nets for images of 32x32 pixels (section 4.2) are in :mod:`.resnet_cifar`.

Deviations from the papers:

1. 2015, section 3.4: the weights start as in He et al. (Delving Deep, eq. 10): untruncated normal
   of variance 2 / fan-in. So does the linear layer, which the text does not single out. Many later
   re-implementations take fan-out.
2. Batch normalisation: the papers give no constants. Here epsilon is 1e-5 and the moving averages
   keep 0.9 a step; Keras's own constants are 1e-3 and 0.99.
3. Padding: the papers don't say on which side. Here every convolution and the pooling see
   kernel // 2 zeros on each side, as in the authors' and PyTorch's code, so that windows of stride
   2 are centred on the pixels that the shortcut picks; TensorFlow's "same" is one pixel off. After
   a ReLU zeros are as good as the minus infinity that PyTorch pads the pooling with.
4. 2015, section 3.3, option A pads the channels with zeros: here all new channels come after the
   old. In v2 it copies the raw sum, option B projects the activated one, as the authors' code does.
5. 2016 does not say where a bottleneck of an ImageNet net halves the maps: here in the 3x3.
6. Options that the papers do not have, off by default: ``stem="small"`` (a 3x3 convolution of
   stride 1, no pooling: for images of 32 to 64 pixels, as SimCLR uses it on CIFAR), ``width``,
   ``zero_init_residual`` (Goyal 2017, section 5.1) and ``drop_path`` (Huang 2016).
7. The output layer gives logits; the softmax is part of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import keras
import numpy as np
from keras import layers, ops

from .finetune import start_from
from .layers import DropPath, FusedBatchNormalization, PointwiseConv2D, seeds

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
VERSIONS = ("v1", "v1.5", "v2")
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
        # A pooling of single pixels: the gradient of a strided slice takes several times as long.
        picked = ops.average_pool(inputs, 1, self.strides) if self.strides > 1 else inputs
        missing = self.filters - inputs.shape[-1]
        return ops.pad(picked, ((0, 0), (0, 0), (0, 0), (0, missing)))

    def compute_output_shape(self, input_shape):
        n, *size, _ = input_shape
        return (n, *(None if s is None else -(-s // self.strides) for s in size), self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


def conv(x, filters: int, kernel: int, strides: int, seed, name: str):
    """Convolution without bias on maps padded by kernel // 2 on each side.

    A layer of its own pads: TensorFlow's convolution and pooling kernels for explicit padding spare
    the copy, but on CPUs they are tens of times slower in bfloat16. Another picks the pixels that a
    1x1 convolution of stride 2 sees, since the gradient of one of stride 1 is faster.
    """
    padding = "same"
    if kernel == 1:
        x, strides = picked(x, strides, name), 1
    elif strides > 1:
        padding = "valid"
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    kind = PointwiseConv2D if kernel == 1 else layers.Conv2D
    return kind(
        filters,
        kernel,
        strides=strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=he_normal(seed),
        name=name,
    )(x)


def picked(x, strides: int, name: str):
    """Every so many-th pixel, by a pooling of single pixels."""
    return layers.AveragePooling2D(1, strides, name=f"{name}_pick")(x) if strides > 1 else x


def norm(x, name: str, gamma: str = "ones"):
    """Batch normalisation with this family's constants."""
    return FusedBatchNormalization(
        momentum=_MOMENTUM, epsilon=_EPSILON, gamma_initializer=gamma, name=name
    )(x)


def relu(x, name: str):
    return layers.ReLU(name=name)(x)


def he_normal(seed=None) -> keras.initializers.Initializer:
    """Untruncated normal of variance 2 / fan-in (Delving Deep, eq. 10)."""
    return keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal", seed)


# --- Blocks: a block is the list of its convolutions, (filters, kernel, strides) each ------------

Convolutions = Sequence[tuple[int, int, int]]


def post_activation(x, convolutions: Convolutions, shortcut, zero_init, drop, draw, name: str):
    """relu(shortcut(x) + F(x)), F = conv, BN, relu, ..., conv, BN (2015).

    Args:
        shortcut: None (a plain net's block), "A" parameter-free, or "B" a 1x1 convolution with
            normalisation where the shape changes.
        zero_init: whether the last gamma starts at zero, and with it F.
        drop: (rate, seed) of the block's drop path; None for none.
        draw: gives each layer its seed.
    """
    (filters, kernel, strides), *rest = convolutions
    if kernel == 1 and strides > 1:  # of v1: the shortcut sees the same pixels
        x, convolutions = picked(x, strides, name), [(filters, 1, 1), *rest]
    y = x
    for i, (filters, kernel, strides) in enumerate(convolutions, start=1):
        last = i == len(convolutions)
        y = conv(y, filters, kernel, strides, draw(), f"{name}_conv{i}")
        y = norm(y, f"{name}_norm{i}", "zeros" if zero_init and last else "ones")
        if not last:
            y = relu(y, f"{name}_relu{i}")
    if shortcut is not None:
        if _changes(x, convolutions):
            x = _project(x, convolutions, shortcut, draw, name)
            x = norm(x, f"{name}_shortcut_norm") if shortcut == "B" else x
        y = layers.Add(name=f"{name}_add")([x, _drop(y, drop, name)])
    return relu(y, f"{name}_relu{len(convolutions)}")


def pre_activation(x, convolutions: Convolutions, shortcut, first, drop, draw, name: str):
    """shortcut(x) + F(x), F = BN, relu, conv, ..., BN, relu, conv (2016); arguments as above.

    Where the shape changes, option B projects what the block's first BN and relu leave. ``first``:
    the net's first block, which the stem has normalised and activated (2016, appendix).
    """
    activated = x if first else relu(norm(x, f"{name}_norm1"), f"{name}_relu1")
    y = activated
    for i, (filters, kernel, strides) in enumerate(convolutions, start=1):
        if i > 1:
            y = relu(norm(y, f"{name}_norm{i}"), f"{name}_relu{i}")
        y = conv(y, filters, kernel, strides, draw(), f"{name}_conv{i}")
    if _changes(x, convolutions):
        x = _project(x if shortcut == "A" else activated, convolutions, shortcut, draw, name)
    return layers.Add(name=f"{name}_add")([x, _drop(y, drop, name)])


def _changes(x, convolutions: Convolutions) -> bool:
    return any(strides > 1 for *_, strides in convolutions) or x.shape[-1] != convolutions[-1][0]


def _project(x, convolutions: Convolutions, shortcut: str, draw, name: str):
    filters, strides = convolutions[-1][0], max(strides for *_, strides in convolutions)
    if shortcut == "A":
        return ParameterFreeShortcut(filters, strides, name=f"{name}_shortcut")(x)
    return conv(x, filters, 1, strides, draw(), f"{name}_shortcut")


def _drop(y, drop: tuple[float, int] | None, name: str):
    return y if drop is None else DropPath(*drop, name=f"{name}_drop")(y)


def stages(
    x,
    blocks: Sequence[int],
    width: int,
    draw,
    seed: int | None,
    *,
    bottleneck: bool = False,
    version: str = "v1",
    shortcut: str | None = "B",
    zero_init: bool = False,
    drop_path: float = 0.0,
):
    """Stages of ``blocks`` blocks; each after the first halves the maps and doubles the filters.

    The layers of stage s, block b are called ``stage<s>_<b>_...``, both from 1. Block l of L is
    dropped with probability ``drop_path`` l / L (Huang 2016, section 3, eq. 4).
    """
    if drop_path:
        # Seeds of their own, so that the weights start the same with and without drop path. NumPy's
        # global generator is what `keras.utils.set_random_seed` seeds beside Python's, from which
        # initializers draw.
        source = np.random.randint(2**31) if seed is None else [seed, 1]  # noqa: NPY002
        drops = np.random.default_rng(source)
    done = 0
    for stage, count in enumerate(blocks):
        filters = width * 2**stage
        for block in range(count):
            strides = 2 if stage > 0 and block == 0 else 1
            if not bottleneck:
                convolutions = [(filters, 3, strides), (filters, 3, 1)]
            elif version == "v1":
                convolutions = [(filters, 1, strides), (filters, 3, 1), (4 * filters, 1, 1)]
            else:
                convolutions = [(filters, 1, 1), (filters, 3, strides), (4 * filters, 1, 1)]
            done += 1
            drop = None
            if drop_path:
                drop = (drop_path * done / sum(blocks), int(drops.integers(2**31)))
            name = f"stage{stage + 1}_{block + 1}"
            if version == "v2":
                x = pre_activation(x, convolutions, shortcut, done == 1, drop, draw, name)
            else:
                x = post_activation(x, convolutions, shortcut, zero_init, drop, draw, name)
    return x


def head(x, num_classes: int, draw):
    """Global average pooling and a linear layer: float32 logits, also in mixed precision."""
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return layers.Dense(
        num_classes, kernel_initializer=he_normal(draw()), dtype="float32", name="outputs"
    )(x)


# --- Models for ImageNet ------------------------------------------------------------------------


def resnet(
    depth: int,
    input_shape: Sequence[int] = (224, 224, 3),
    num_classes: int = 1000,
    version: str = "v1",
    shortcut: str = "B",
    stem: str = "imagenet",
    width: int = 64,
    drop_path: float = 0.0,
    zero_init_residual: bool = False,
    include_top: bool = True,
    weights: str | None = None,
    new_head: bool = False,
    freeze: str | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Residual net of 18, 34, 50, 101 or 152 layers.

    The maps of a stage are to be had by ``finetune.features(model, ["stage1", ..., "stage4"])``.

    Args:
        depth: a key of ``BLOCKS``.
        input_shape: height, width and channels of one image; at least 32x32, 8x8 with a small stem.
        num_classes: number of outputs.
        version: "v1", "v1.5" or "v2"; see the module.
        shortcut: "A" parameter-free, "B" a 1x1 convolution where the shape changes.
        stem: "imagenet" (7x7 of stride 2, max pooling) or "small" (3x3 of stride 1).
        width: filters of the first stage; the others have twice, four and eight times as many.
        drop_path: probability that the last block is dropped in training; linearly fewer before.
        zero_init_residual: start the last gamma of every block at zero, so that the net starts as
            its shortcuts; v1 and v1.5 only.
        include_top: False leaves pooling and linear layer out: the model then gives the maps
            [n, h/32, w/32, c] of the last stage, in the compute dtype.
        weights: a file of published weights to start from, see :mod:`.checkpoints`.
        new_head: leave the file's classifier out; the model's own starts anew.
        freeze: don't train the layers up to and with this stage, e.g. "stem" or "stage2".
        seed: of the initial weights and the drop path; None draws them from
            ``keras.utils.set_random_seed``.

    Returns:
        Model from [n, *input_shape] to raw float32 outputs [n, num_classes].

    Raises:
        ValueError: an option out of range, or weights that do not fit.
    """
    if version not in VERSIONS:
        raise ValueError(f"version is one of {', '.join(VERSIONS)}; got {version!r}.")
    if shortcut not in ("A", "B"):
        raise ValueError(f'shortcut must be "A" or "B"; got {shortcut!r}.')
    if zero_init_residual and version == "v2":
        raise ValueError(
            "zero_init_residual sets the gamma that ends a block to zero; a block of version v2 "
            "ends with a convolution. Use v1 or v1.5, or leave it out."
        )
    model = _imagenet_net(
        f"resnet{depth}", depth, input_shape, num_classes, stem, width, include_top, seed,
        version=version, shortcut=shortcut, zero_init=zero_init_residual, drop_path=drop_path,
    )  # fmt: skip
    return start_from(model, weights, new_head, freeze)


def plain(
    depth: int,
    input_shape: Sequence[int] = (224, 224, 3),
    num_classes: int = 1000,
    stem: str = "imagenet",
    width: int = 64,
    seed: int | None = None,
) -> keras.Model:
    """The layers of resnet18 or resnet34 without shortcuts (2015, figure 4, left).

    Arguments, result and errors of :func:`resnet`.
    """
    return _imagenet_net(
        f"plain{depth}", depth, input_shape, num_classes, stem, width, True, seed, shortcut=None
    )


def _imagenet_net(
    name, depth, input_shape, num_classes, stem, width, include_top, seed, **options
) -> keras.Model:
    if depth not in BLOCKS:
        raise ValueError(f"depth is one of {', '.join(map(str, BLOCKS))}; got {depth!r}.")
    if stem not in ("imagenet", "small"):
        raise ValueError(f'stem must be "imagenet" or "small"; got {stem!r}.')
    check_sizes(input_shape, 32 if stem == "imagenet" else 8, num_classes, width, options)
    draw = seeds(seed)
    x = inputs = keras.Input(input_shape, name="inputs")
    if stem == "imagenet":
        x = conv(x, width, 7, 2, draw(), "stem_conv")
    else:
        x = conv(x, width, 3, 1, draw(), "stem_conv")
    x = relu(norm(x, "stem_norm"), "stem_relu")
    if stem == "imagenet":
        x = layers.ZeroPadding2D(1, name="stem_pad")(x)
        x = layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    x = stages(x, BLOCKS[depth], width, draw, seed, bottleneck=depth >= 50, **options)
    if options.get("version") == "v2":  # the activation that no block follows to give
        x = relu(norm(x, "stage4_norm"), "stage4_relu")
    return keras.Model(inputs, head(x, num_classes, draw) if include_top else x, name=name)


def check_sizes(input_shape, least: int, num_classes: int, width: int, options: dict) -> None:
    """Raises ValueError for sizes that no net of this family can have."""
    if len(input_shape) != 3 or min(input_shape[:2]) < least:
        raise ValueError(
            f"input_shape must be (height, width, channels), at least {least}x{least}; "
            f"got {tuple(input_shape)!r}."
        )
    if min(num_classes, width) < 1:
        raise ValueError(
            f"num_classes and width must be at least 1; got {num_classes!r} and {width!r}."
        )
    if not 0.0 <= options.get("drop_path", 0.0) < 1.0:
        raise ValueError(f"drop_path is a probability in [0, 1); got {options['drop_path']!r}.")


resnet18, resnet34, resnet50, resnet101, resnet152 = (partial(resnet, d) for d in BLOCKS)
plain18, plain34 = partial(plain, 18), partial(plain, 34)
