"""Residual networks for small images, and the plain networks they are compared with.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition (2015), section 4.2. What was new,
and the blocks, stand in :mod:`.resnet`.

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

Deviations from the paper: 1 to 4 and 7 of :mod:`.resnet` (start of the weights, constants of the
normalisation, side of the padding, order of the new channels, logits), and

1. inputs of other sizes than 32x32x3 are accepted, and ``width`` scales all three stages; both are
   unchanged by default;
2. ``drop_path`` (Huang 2016) and ``zero_init_residual`` (Goyal 2017, section 5.1) are later
   options, off by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import keras

from .finetune import start_from
from .resnet import check_sizes, conv, head, norm, relu, seeds, stages

DEPTHS = (20, 32, 44, 56, 110)


def cifar_resnet(
    depth: int,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    width: int = 16,
    shortcut: str = "A",
    drop_path: float = 0.0,
    zero_init_residual: bool = False,
    weights: str | None = None,
    freeze: str | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Residual net of ``depth`` = 6n + 2 layers.

    Args:
        depth: number of layers with weights: 8, 14, 20, 26, ...
        input_shape: height, width and channels of one image; at least 4x4.
        num_classes: number of outputs.
        width: filters of the first stage; the others have twice and four times as many.
        shortcut: "A" parameter-free, "B" a 1x1 convolution where the shape changes.
        drop_path: probability that the last block is dropped in training; linearly fewer before.
        zero_init_residual: start the last gamma of every block at zero, so that the net starts as
            its shortcuts.
        weights: a SimCLR run whose encoder to start from, see :func:`.finetune.take_encoder`.
        freeze: don't train the layers up to and with this stage, e.g. "stem" or "stage2".
        seed: of the initial weights and the drop path; None draws them from
            ``keras.utils.set_random_seed``.

    Returns:
        Model from [n, *input_shape] to raw float32 outputs [n, num_classes].

    Raises:
        ValueError: an option out of range, or weights that do not fit.
    """
    if shortcut not in ("A", "B"):
        raise ValueError(f'shortcut must be "A" or "B"; got {shortcut!r}.')
    options = {"shortcut": shortcut, "zero_init": zero_init_residual, "drop_path": drop_path}
    model = _cifar_net(f"resnet{depth}", depth, input_shape, num_classes, width, seed, **options)
    return start_from(model, weights, False, freeze)


def cifar_plain(
    depth: int,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    width: int = 16,
    seed: int | None = None,
) -> keras.Model:
    """The same layers without shortcuts; arguments, result and errors of :func:`cifar_resnet`."""
    return _cifar_net(f"plain{depth}", depth, input_shape, num_classes, width, seed, shortcut=None)


def _cifar_net(name, depth, input_shape, num_classes, width, seed, **options) -> keras.Model:
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ...); got {depth!r}.")
    check_sizes(input_shape, 4, num_classes, width, options)
    draw = seeds(seed)
    inputs = keras.Input(input_shape, name="inputs")
    x = relu(norm(conv(inputs, width, 3, 1, draw(), "stem_conv"), "stem_norm"), "stem_relu")
    x = stages(x, [(depth - 2) // 6] * 3, width, draw, seed, **options)
    return keras.Model(inputs, head(x, num_classes, draw), name=name)


resnet20, resnet32, resnet44, resnet56, resnet110 = (partial(cifar_resnet, d) for d in DEPTHS)
plain20, plain32, plain44, plain56, plain110 = (partial(cifar_plain, d) for d in DEPTHS)
