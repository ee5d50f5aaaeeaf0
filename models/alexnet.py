"""AlexNet: the convolutional network that won ImageNet 2012 and began the decade.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks
(2012). What was new was less any one part than that all of them together, on two graphics cards,
made a network of 60 million weights trainable, with 15.3% of top-5 errors where the next best had
26.2%:

- ReLU in place of tanh, for speed of training (section 3.1);
- two towers, one a card, that meet only in the third convolution and in the dense layers (3.2);
- local response normalisation: strong responses quieten their neighbours (3.3);
- pooling windows that overlap (3.4);
- dropout in the hidden dense layers, and images shifted, mirrored and recoloured (section 4).

| layer | at 227x227x3, 1000 classes | two towers | ungrouped | 2014 |
|---|---|---|---|---|
| conv1 | 11x11, stride 4: 55x55x96 | 34,944 | 34,944 | 23,296 (64 filters) |
| norm1, pool1 | 27x27x96 | | | no normalisation |
| conv2 | 5x5: 27x27x256 | 307,456 | 614,656 | 307,392 (192 filters) |
| norm2, pool2 | 13x13x256 | | | no normalisation |
| conv3 | 3x3: 13x13x384 | 885,120 | 885,120 | 663,936 |
| conv4 | 3x3: 13x13x384 | 663,936 | 1,327,488 | 884,992 (256 filters) |
| conv5 | 3x3: 13x13x256 | 442,624 | 884,992 | 590,080 |
| pool5 | 6x6x256 = 9,216 | | | |
| fc6 | 4,096 | 37,752,832 | 37,752,832 | 37,752,832 |
| fc7 | 4,096 | 16,781,312 | 16,781,312 | 16,781,312 |
| outputs | 1,000 | 4,097,000 | 4,097,000 | 4,097,000 |
| total | `alexnet`, `-ungrouped`, `-2014` | 60,965,224 | 62,378,344 | 61,100,840 |

`alexnet-2014` goes back to Krizhevsky: One weird trick for parallelizing convolutional neural
networks (2014), and has the form that later libraries kept: one tower, fewer filters, no
normalisation, 224x224 pixels padded by 2, and an average over 6x6 cells that lets it take others.

The inputs are pixels from 0 to 255 less their mean, not divided by their standard deviation, as in
the paper (section 2). The constants count on it: weights of deviation 0.01 would hardly pass on a
signal of size 1, and the normalisation would be the division by a constant.

Deviations from the paper:

1. Section 3.5 and figure 2 say 224x224 pixels, of which no 11x11 windows 4 apart make 55x55 places.
   227 do, which is the size here. Other sizes get up to three rows and columns of zeros, so that
   the windows use all of the image: 224 becomes 227.
2. Images below 67 pixels, which would be gone before the last pooling, get a small form: conv1 is
   5x5 with stride 1 and keeps the size; all else stays. 28x28 pixels give maps of 28, 13, 6 and 2.
3. `width` scales all widths. Weights of layers that thereby see fewer inputs start so much larger
   than N(0, 0.01) that their outputs have the size that the full net's have (section 5).
4. The towers are groups of channels on one device. Each normalises among its own channels; section
   3.3 does not say, but the cards do not speak to each other there.
5. Section 4.2 halves the outputs of the hidden dense layers after training; here dropout doubles
   what it keeps during training.
6. The output layer gives logits; the softmax is part of the loss.
7. What is left open about the form of 2014, weights at the start and dropout, is that of 2012.
"""

import math
from collections.abc import Sequence
from functools import partial

import keras
import numpy as np
from keras import layers

from .finetune import start_from
from .layers import GroupedConv2D, LocalResponseNormalization, seeds

ACTIVATIONS = ("relu", "tanh")
# Filters of the five convolutions in units, of which the full nets have 32; fc6 and fc7 have 128.
_FILTERS_2012 = (3, 8, 12, 12, 8)
_FILTERS_2014 = (2, 6, 12, 8, 8)
_FULL_UNIT = 32
_HIDDEN = 128
# Images below this are too small for stride 4: the three poolings need 15, 7 and 3 pixels.
_LARGE = 67
_SMALLEST = 15


def alexnet_2012(
    towers: int,
    input_shape: Sequence[int] = (227, 227, 3),
    num_classes: int = 1000,
    width: int = 96,
    activation: str = "relu",
    response_norm: bool = True,
    pool_size: int = 3,
    dropout: float = 0.5,
    seed: int | None = None,
) -> keras.Model:
    """The network of 2012: five convolutions, three poolings, three dense layers.

    Args:
        towers: 2 as in the paper, or 1 for a net of the same widths that is not divided.
        input_shape: height, width and channels of one image, at least 15x15; below 67 pixels the
            first convolution is smaller (deviation 2). Pixels less their mean, not rescaled.
        num_classes: number of outputs.
        width: filters of the first convolution, a multiple of 3 times ``towers``; the other layers
            have 8/3, 4, 4, 8/3 and twice 128/3 as many.
        activation: "relu", or "tanh" to compare it with (section 3.1), whose biases start at 0.
        response_norm: False leaves local response normalisation out (section 3.3).
        pool_size: side of the pooling windows, which are 2 apart: 3, or 2 for windows that do not
            overlap (section 3.4); at 227 pixels both make maps of the same sizes.
        dropout: share of the hidden dense outputs set to zero in training, in [0, 1).
        seed: of initial weights and dropout; None draws them from ``keras.utils.set_random_seed``.

    Returns:
        Model from [n, *input_shape] to raw float32 outputs [n, num_classes].

    Raises:
        ValueError: an option out of range.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}.")
    if pool_size not in (2, 3):
        raise ValueError(f"pool_size must be 3 or 2; got {pool_size!r}.")
    _check(input_shape, _SMALLEST, num_classes, width, _FILTERS_2012[0] * towers, dropout)
    border = None
    if min(input_shape[:2]) >= _LARGE:
        missing = [-(side - 11) % 4 for side in input_shape[:2]]
        border = tuple((total // 2, total - total // 2) for total in missing)
    return _net(
        "alexnet" if towers == 2 else "alexnet-ungrouped",
        _FILTERS_2012,
        input_shape=input_shape,
        num_classes=num_classes,
        unit=width // _FILTERS_2012[0],
        border=border,
        dropout=dropout,
        seed=seed,
        towers=towers,
        activation=activation,
        response_norm=response_norm,
        pool_size=pool_size,
    )


def alexnet_2014(
    input_shape: Sequence[int] = (224, 224, 3),
    num_classes: int = 1000,
    width: int = 64,
    dropout: float = 0.5,
    weights: str | None = None,
    new_head: bool = False,
    freeze: str | None = None,
    seed: int | None = None,
) -> keras.Model:
    """The single tower of 2014; result and errors of :func:`alexnet_2012`.

    Args:
        input_shape: height, width and channels of one image, at least 63x63. Pixels less their
            mean, not rescaled.
        num_classes: number of outputs.
        width: filters of the first convolution, even; the other layers have 3, 6, 4, 4 and twice
            64 times as many.
        dropout: share of the hidden dense outputs set to zero in training, in [0, 1).
        weights: a file of torchvision's weights to start from, see :mod:`.checkpoints`. They were
            trained on rescaled pixels, ``TORCH`` in :mod:`epochal.pipelines.recipes`' ResNets:
            ``scale|standardize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))``.
        new_head: leave the file's last layer out; the model's own starts anew.
        freeze: don't train the layers up to and with this one, e.g. "conv5".
        seed: of initial weights and dropout; None draws them from ``keras.utils.set_random_seed``.
    """
    _check(input_shape, 63, num_classes, width, _FILTERS_2014[0], dropout)
    model = _net(
        "alexnet-2014",
        _FILTERS_2014,
        input_shape=input_shape,
        num_classes=num_classes,
        unit=width // _FILTERS_2014[0],
        border=((2, 2), (2, 2)),
        dropout=dropout,
        seed=seed,
        cells=6,
    )
    return start_from(model, weights, new_head, freeze)


def _check(input_shape, smallest, num_classes, width, multiple, dropout) -> None:
    if len(input_shape) != 3 or min(input_shape[:2]) < smallest:
        raise ValueError(
            f"input_shape must be (height, width, channels), at least {smallest}x{smallest}; got "
            f"{tuple(input_shape)!r}. Put resize(...) before it for smaller images."
        )
    if width < 1 or width % multiple:
        raise ValueError(f"width must be a positive multiple of {multiple}; got {width!r}.")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1; got {num_classes!r}.")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is a share in [0, 1); got {dropout!r}.")


def _net(
    name,
    filters,
    *,
    input_shape,
    num_classes,
    unit,
    border,
    dropout,
    seed,
    towers=1,
    activation="relu",
    response_norm=False,
    pool_size=3,
    cells=None,
) -> keras.Model:
    """All forms; the defaults are those of 2014.

    ``border`` is the zeros around the image, None for the small form's stem; ``cells`` the side of
    the grid that maps are averaged to, None to leave them.
    """
    draw = seeds(seed)
    # Section 5: it gives the ReLUs positive inputs at the start.
    bias = 1.0 if activation == "relu" else 0.0

    def options(fan_in: int, full_fan_in: int, bias: float, name: str) -> dict:
        """What layers with weights share; see deviation 3 for the deviation of the normal."""
        deviation = 0.01 * math.sqrt(full_fan_in / fan_in)
        return {
            "kernel_initializer": keras.initializers.RandomNormal(0.0, deviation, draw()),
            "bias_initializer": keras.initializers.Constant(bias),
            "name": name,
        }

    def conv(x, number: int, kernel: int, bias: float = 0.0, groups: int = 1, **geometry):
        full_fan_in = 11 * 11 * 3
        if number > 1:
            full_fan_in = kernel**2 * filters[number - 2] * _FULL_UNIT // groups
        return GroupedConv2D(
            filters[number - 1] * unit,
            kernel,
            groups=groups,
            activation=activation,
            **{"padding": "same", **geometry},
            **options(kernel**2 * x.shape[-1] // groups, full_fan_in, bias, f"conv{number}"),
        )(x)

    def norm(x, number: int):
        if not response_norm:
            return x
        return LocalResponseNormalization(groups=towers, name=f"norm{number}")(x)

    def pool(x, number: int):
        return layers.MaxPooling2D(pool_size, 2, name=f"pool{number}")(x)

    def hidden(x, number: int, full_fan_in: int):
        x = layers.Dense(
            _HIDDEN * unit,
            activation=activation,
            **options(x.shape[-1], full_fan_in, bias, f"fc{number}"),
        )(x)
        return layers.Dropout(dropout, seed=draw(), name=f"dropout{number}")(x) if dropout else x

    x = inputs = keras.Input(input_shape, name="inputs")
    if border is None:
        x = conv(x, 1, 5)
    else:
        if np.any(border):
            x = layers.ZeroPadding2D(border, name="pad")(x)
        x = conv(x, 1, 11, strides=4, padding="valid")
    x = pool(norm(x, 1), 1)
    x = conv(x, 2, 5, bias, towers)
    x = pool(norm(x, 2), 2)
    x = conv(x, 3, 3)
    x = conv(x, 4, 3, bias, towers)
    x = conv(x, 5, 3, bias, towers)
    x = pool(x, 5)
    if cells:
        x = layers.AdaptiveAveragePooling2D(cells, name="average")(x)
    x = layers.Flatten(name="flatten")(x)
    x = hidden(x, 6, 6 * 6 * filters[-1] * _FULL_UNIT)
    x = hidden(x, 7, _HIDDEN * _FULL_UNIT)
    outputs = layers.Dense(
        num_classes,
        dtype="float32",
        **options(x.shape[-1], _HIDDEN * _FULL_UNIT, 0.0, "outputs"),
    )(x)
    return keras.Model(inputs, outputs, name=name)


alexnet, alexnet_ungrouped = partial(alexnet_2012, 2), partial(alexnet_2012, 1)
