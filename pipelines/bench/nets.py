"""Training steps of convolutional nets: ours, as Keras users have them, and PyTorch's."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np


def need(module: str):
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise SystemExit(f"this side needs {module!r}: pip install 'epochal[bench]'") from None


def clock() -> tuple[Any, list[float]]:
    """A callback and the list of seconds it fills: each epoch up to its last training step."""
    import keras

    seconds: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            self.ended = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            seconds.append(self.ended - self.began)

    return Clock(), seconds


def steps_per_second(model, dataset, *, steps: int, epochs: int) -> float:
    """The median rate over epochs of ``fit``, the first one left out."""
    callback, seconds = clock()
    model.fit(
        dataset,
        steps_per_epoch=steps,
        epochs=epochs,
        callbacks=[callback],
        verbose=0,
        shuffle=False,
    )
    return steps / statistics.median(seconds[1:])


def compile_by_adam(model, ours: bool, **options) -> None:
    """With Adam and cross-entropy, of ours or of Keras's."""
    import keras

    from ...models import losses, optimizers

    if ours:
        model.compile(optimizers.Adam(), losses.CrossEntropy(), **options)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(), loss, **options)


def resnet20(side: str, *, policy: str, jit: bool, quick: bool) -> dict[str, Any]:
    """Training steps of ResNet-20 on random 32x32x3 images, batch 128."""
    import keras
    import tensorflow as tf

    from ...models import create_model, losses

    keras.config.set_dtype_policy(policy)
    build = create_model if side == "ours" else _stock_resnet20
    model = build("resnet20", input_shape=(32, 32, 3), num_classes=10)
    # The same optimizer and loss on both sides: the layers are what differs.
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), losses.CrossEntropy(), jit_compile=jit)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(128, 32, 32, 3)).astype("float32"))
    y = tf.constant(rng.integers(0, 10, 128))
    data = tf.data.Dataset.from_tensors((x, y)).repeat().prefetch(2)
    rate = steps_per_second(model, data, steps=5 if quick else 15, epochs=2 if quick else 4)
    return {"rate": rate * 128, "unit": "images/s"}


def _stock_resnet20(name: str, input_shape, num_classes: int):
    """The same net as a Keras user writes it: Conv2D, BatchNormalization, Activation."""
    import keras
    from keras import layers, ops

    def unit(x, width, stride):
        convolve = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
        y = layers.Conv2D(width, 3, stride, **convolve)(x)
        y = layers.Activation("relu")(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(width, 3, 1, **convolve)(y))
        if stride > 1 or x.shape[-1] != width:
            x = x[:, ::stride, ::stride]
            x = ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, width - x.shape[-1]]])
        return layers.Activation("relu")(layers.Add()([x, y]))

    inputs = keras.Input(input_shape)
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    for width in (16, 32, 64):
        for block in range(3):
            x = unit(x, width, 2 if block == 0 and width > 16 else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes, dtype="float32")(x), name=name)


_PRODUCTS = ((2048, 2048, 2048), (8192, 512, 512))  # rows, inner, columns
_CONVOLUTIONS = ((8, 28, 128), (8, 14, 256), (32, 14, 256))  # images, side, channels
RESNET50_MULTIPLY_ADDS = 3_857_973_248  # of one image forward; `epochal show resnet50`


def resnet50(side: str, *, policy: str, jit: bool = False, quick: bool) -> dict[str, Any]:
    """Training steps of ResNet-50 on random 224x224x3 images, batch 8, by SGD with momentum.

    The side "matrix products" is a limit: how many images a second the products of the forward and
    the backward pass allow, if all run as fast as the fastest product or convolution of this
    precision by itself. The ratio to it is the share of the processor's peak.

    Where the rest goes, by a profile of a step in float32 on 2 cores (1,060 ms, of which 784 at the
    peak): 86% of the time of all operations are convolutions, at 85% of the peak where they run
    alone (the gradients by weights of 3x3 kernels at 65%, since TensorFlow's kernel orders its sums
    anew); 8% batch normalisation, 3% ReLU and sums, 1% the update, 0.3% copies of inputs.

    What paid: the fused kernel of batch normalisation, products of matrices in place of 1x1
    convolutions (3% of a step), their strided inputs picked once for block and shortcut (1%), one
    kernel for the update (below 1%, as it runs beside others). What did not: XLA (two to three
    times slower), one operation at a time (2% slower), huge pages and an allocator that keeps its
    memory (within 1%), a 1x1 kernel's gradient by slices of its input (slower than the stride),
    a 3x3 kernel's gradient as nine products (alone twice as fast on maps of 7x7 in bfloat16, else
    equal or slower; within 1% of a step), the 7x7 stem as 4x4 on squares of 2x2 pixels (1.5 times
    slower). ReLU and its sum cannot be fused into the normalisation's gradient: that kernel is
    for GPUs.
    """
    batch, steps, epochs = 8, 2 if quick else 5, 2 if quick else 4
    if side == "matrix products":
        # the gradients by inputs and by weights cost as much as the forward pass, each
        rate = _product_rate(policy) / (3 * RESNET50_MULTIPLY_ADDS)
        return {"rate": rate, "unit": "images/s"}
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, 224, 224, 3)).astype("float32")
    y = rng.integers(0, 1000, batch)
    if side == "PyTorch":
        rate = _torch_steps_per_second(x, y, policy, steps, epochs)
        return {"rate": rate * batch, "unit": "images/s"}
    import keras
    import tensorflow as tf

    from ...models import create_model, losses, optimizers

    keras.config.set_dtype_policy(policy)
    optimizer: Any = keras.optimizers.SGD(0.1, momentum=0.9)
    if side == "ours":
        model, optimizer = create_model("resnet50"), optimizers.Momentum(0.1)
    elif side == "keras.applications":
        model = keras.applications.ResNet50(weights=None, classifier_activation=None)
    else:
        model = _stock_resnet50()
    model.compile(optimizer, losses.CrossEntropy(), jit_compile=jit)
    data = tf.data.Dataset.from_tensors((tf.constant(x), tf.constant(y))).repeat().prefetch(2)
    rate = steps_per_second(model, data, steps=steps, epochs=epochs)
    return {"rate": rate * batch, "unit": "images/s"}


def _stock_resnet50():
    """ResNet-50 as a Keras user writes it from the paper: without biases before normalisation."""
    import keras
    from keras import layers

    def unit(x, filters, kernel, stride=1, relu=True):
        x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        return layers.Activation("relu")(x) if relu else x

    inputs = keras.Input((224, 224, 3))
    x = layers.MaxPooling2D(3, 2, "same")(unit(inputs, 64, 7, 2))
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = unit(unit(x, width, 1, stride), width, 3)
            y = unit(y, 4 * width, 1, relu=False)
            if not block:
                x = unit(x, 4 * width, 1, stride, relu=False)
            x = layers.Activation("relu")(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(1000, dtype="float32")(x))


def _torch_steps_per_second(x, y, policy: str, steps: int, epochs: int) -> float:
    """The same net, optimizer and data in PyTorch, channels last; bfloat16 by its autocast."""
    torch = need("torch")
    nn = torch.nn

    def unit(into, out, kernel, stride=1, relu=True):
        parts = [
            nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(out),
        ]
        return nn.Sequential(*parts, *([nn.ReLU(inplace=True)] if relu else []))

    class Block(nn.Module):
        def __init__(self, into, width, stride):
            super().__init__()
            self.body = nn.Sequential(
                unit(into, width, 1, stride),
                unit(width, width, 3),
                unit(width, 4 * width, 1, relu=False),
            )
            same = into == 4 * width
            self.short = nn.Identity() if same else unit(into, 4 * width, 1, stride, relu=False)

        def forward(self, x):
            return torch.relu(self.short(x) + self.body(x))

    parts, into = [unit(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            parts.append(Block(into, width, 2 if stage and not block else 1))
            into = 4 * width
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, 1000)).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(y)
    seconds = []
    for _ in range(epochs):
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=policy == "mixed_bfloat16"):
                loss = nn.functional.cross_entropy(model(images).float(), labels)
            loss.backward()
            optimizer.step()
        float(loss.detach())
        seconds.append(time.perf_counter() - began)
    return steps / statistics.median(seconds[1:])


def _product_rate(policy: str) -> float:
    """Multiply-adds a second of the fastest of a few matrix products and 3x3 convolutions.

    No single shape is a limit: in bfloat16 a large product brings both its sides into the
    processor's order first, convolutions like those of stages 2 and 3 do so for the weights alone.
    """
    import tensorflow as tf

    dtype = "bfloat16" if policy == "mixed_bfloat16" else "float32"

    def random(*shape):
        return tf.cast(tf.random.normal(shape), dtype)

    best = 0.0
    for rows, inner, columns in _PRODUCTS:
        left, right = random(rows, inner), random(inner, columns)
        run = tf.function(lambda left=left, right=right: tf.matmul(left, right))
        best = max(best, rows * inner * columns / _seconds(run))
    for images, side, channels in _CONVOLUTIONS:
        x, kernel = random(images, side, side, channels), random(3, 3, channels, channels)
        run = tf.function(lambda x=x, kernel=kernel: tf.nn.conv2d(x, kernel, 1, "SAME"))
        best = max(best, images * side**2 * 9 * channels**2 / _seconds(run))
    return best


def _seconds(run) -> float:
    run()
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
