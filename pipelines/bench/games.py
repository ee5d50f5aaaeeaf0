"""Training steps of a DCGAN and of SimCLR: ours, of stock Keras layers, and PyTorch's."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from .nets import need, steps_per_second

DCGAN = {"batch": 64, "side": 28, "noise": 100, "generator": (256, 128), "discriminator": (64, 128)}
"""The paper's widths for two doublings, which is what 28 pixels allow."""
SIMCLR = {"batch": 128, "side": 32, "width": 64, "projection": 128, "temperature": 0.5}
"""ResNet-20, whose last width is 64, on 32x32x3, and the two-layer head."""
_ADAM = {"learning_rate": 2e-4, "beta_1": 0.5}


def dcgan(side: str, *, quick: bool) -> dict[str, Any]:
    """Training images a second: a step of the discriminator and one of the generator, by Adam."""
    s, rng = DCGAN, np.random.default_rng(0)
    x = rng.integers(0, 256, (s["batch"], s["side"], s["side"], 1)).astype("float32")
    steps, epochs = (2, 2) if quick else (10, 4)
    if side == "PyTorch":
        rate = _torch_rate(_torch_dcgan(x)[0], steps, epochs)
    else:
        model = _our_dcgan() if side == "ours" else _stock_dcgan()
        rate = steps_per_second(model, _repeat(x), steps=steps, epochs=epochs)
    return {"rate": rate * s["batch"], "unit": "images/s"}


def simclr(side: str, *, quick: bool) -> dict[str, Any]:
    """Training images a second, of two views each, by SGD with momentum on NT-Xent."""
    s, rng = SIMCLR, np.random.default_rng(0)
    x = rng.normal(size=(s["batch"], 2, s["side"], s["side"], 3)).astype("float32")
    steps, epochs = (2, 2) if quick else (6, 4)
    if side == "PyTorch":
        rate = _torch_rate(_torch_simclr(x)[0], steps, epochs)
    else:
        model = _our_simclr() if side == "ours" else _stock_simclr()
        rate = steps_per_second(model, _repeat(x), steps=steps, epochs=epochs)
    return {"rate": rate * s["batch"], "unit": "images/s"}


def _repeat(x: np.ndarray):
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(tf.constant(x)).repeat().prefetch(2)


# --- DCGAN ----------------------------------------------------------------------------------------


def _our_dcgan():
    from ...models import create_model, gan_losses
    from ...models.optimizers import Adam

    s = DCGAN
    model = create_model("dcgan", input_shape=(s["side"], s["side"], 1), noise_size=s["noise"])
    model.compile(Adam(**_ADAM), gan_losses.NonSaturating())
    return model


def _stock_dcgan():
    """The same nets and game as a Keras user writes them: stock layers, train_step."""
    import keras
    import tensorflow as tf
    from keras import layers

    s, low = DCGAN, DCGAN["side"] // 4
    start = {"kernel_initializer": keras.initializers.RandomNormal(stddev=0.02)}
    z = keras.Input((s["noise"],))
    y = layers.Dense(low * low * s["generator"][0], **start)(z)
    y = layers.Reshape((low, low, s["generator"][0]))(y)
    y = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(y))
    y = layers.Conv2DTranspose(s["generator"][1], 5, 2, "same", **start)(y)
    y = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(y))
    y = layers.Conv2DTranspose(1, 5, 2, "same", activation="tanh", **start)(y)
    generator = keras.Model(z, y)
    x = keras.Input((s["side"], s["side"], 1))
    y = layers.Conv2D(s["discriminator"][0], 5, 2, "same", **start)(x)
    y = layers.LeakyReLU(0.2)(y)
    y = layers.Conv2D(s["discriminator"][1], 5, 2, "same", **start)(y)
    y = layers.LeakyReLU(0.2)(layers.BatchNormalization(momentum=0.9)(y))
    discriminator = keras.Model(x, layers.Dense(1, **start)(layers.Flatten()(y)))
    judge = keras.losses.BinaryCrossentropy(from_logits=True)

    class Game(keras.Model):
        def train_step(self, real):
            real = real / 127.5 - 1.0
            n = tf.shape(real)[0]
            made = generator(tf.random.normal([n, s["noise"]]), training=True)
            with tf.GradientTape() as tape:
                yes, no = (discriminator(images, training=True) for images in (real, made))
                loss = judge(tf.ones_like(yes), yes) + judge(tf.zeros_like(no), no)
            weights = discriminator.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            with tf.GradientTape() as tape:
                made = generator(tf.random.normal([n, s["noise"]]), training=True)
                no = discriminator(made, training=True)
                wish = judge(tf.ones_like(no), no)
            weights = generator.trainable_variables
            other.apply_gradients(zip(tape.gradient(wish, weights), weights, strict=True))
            return {"loss": loss, "generator_loss": wish}

        def call(self, noise):
            return generator(noise)

    model, other = Game(), keras.optimizers.Adam(**_ADAM)
    model.compile(keras.optimizers.Adam(**_ADAM))
    model.nets, model.built = [generator, discriminator], True
    model.optimizer.build(discriminator.trainable_variables)
    other.build(generator.trainable_variables)
    return model


def _torch_dcgan(x: np.ndarray) -> tuple[Any, list]:
    """A function that makes a step, and what it learns."""
    torch = need("torch")
    nn, s, low = torch.nn, DCGAN, DCGAN["side"] // 4
    first, second = s["generator"]
    generator = nn.Sequential(
        nn.Linear(s["noise"], first * low * low),
        nn.Unflatten(1, (first, low, low)),
        nn.BatchNorm2d(first), nn.ReLU(),
        nn.ConvTranspose2d(first, second, 5, 2, 2, 1), nn.BatchNorm2d(second), nn.ReLU(),
        nn.ConvTranspose2d(second, 1, 5, 2, 2, 1), nn.Tanh(),
    )  # fmt: skip
    first, second = s["discriminator"]
    discriminator = nn.Sequential(
        nn.Conv2d(1, first, 5, 2, 2), nn.LeakyReLU(0.2),
        nn.Conv2d(first, second, 5, 2, 2), nn.BatchNorm2d(second), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(second * low * low, 1),
    )  # fmt: skip
    nets = [net.to(memory_format=torch.channels_last) for net in (generator, discriminator)]
    adam = {"lr": _ADAM["learning_rate"], "betas": (_ADAM["beta_1"], 0.999), "fused": True}
    theirs, ours = (torch.optim.Adam(net.parameters(), **adam) for net in nets)
    judge, learnt = nn.BCEWithLogitsLoss(), list(generator.parameters())
    real = _channels_first(torch, x / 127.5 - 1)
    yes, no = torch.ones(len(x), 1), torch.zeros(len(x), 1)

    def step():
        with torch.no_grad():
            made = generator(torch.randn(len(x), s["noise"]))
        ours.zero_grad(set_to_none=True)
        loss = judge(discriminator(real), yes) + judge(discriminator(made), no)
        loss.backward()
        ours.step()
        wish = judge(discriminator(generator(torch.randn(len(x), s["noise"]))), yes)
        # not backward, which would also work out how the discriminator is to change
        for weight, slope in zip(learnt, torch.autograd.grad(wish, learnt), strict=True):
            weight.grad = slope
        theirs.step()
        return loss

    return step, [*learnt, *discriminator.parameters()]


# --- SimCLR ---------------------------------------------------------------------------------------


def _our_simclr():
    from ...models import create_model
    from ...models.contrastive import NTXent
    from ...models.optimizers import Momentum

    s = SIMCLR
    model = create_model(
        "simclr", input_shape=(s["side"], s["side"], 3), encoder="resnet20",
        projection=s["projection"],
    )  # fmt: skip
    model.compile(Momentum(0.1), NTXent(s["temperature"]))
    return model


def _stock_simclr():
    """The same nets and loss as a Keras user writes them: stock layers, train_step."""
    import keras
    import tensorflow as tf
    from keras import layers

    from .nets import _stock_resnet20

    s = SIMCLR
    whole = _stock_resnet20("resnet20", (s["side"], s["side"], 3), 2)
    h = whole.layers[-1].input
    z = layers.Dense(s["width"], use_bias=False)(h)
    z = layers.ReLU()(layers.BatchNormalization()(z))
    z = layers.Dense(s["projection"], use_bias=False)(z)
    net = keras.Model(whole.input, layers.BatchNormalization(center=False)(z))

    class Contrast(keras.Model):
        def train_step(self, views):
            n = tf.shape(views)[0]
            both = tf.concat([views[:, 0], views[:, 1]], axis=0)
            with tf.GradientTape() as tape:
                z = tf.math.l2_normalize(net(both, training=True), axis=1)
                logits = tf.matmul(z, z, transpose_b=True) / s["temperature"]
                logits -= 1e9 * tf.eye(2 * n)
                partners = tf.concat([tf.range(n, 2 * n), tf.range(n)], axis=0)
                loss = 2 * tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(partners, logits)
                )
            weights = net.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            return {"loss": loss}

        def call(self, images):
            return net(images)

    model = Contrast()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    model.nets, model.built = [net], True
    model.optimizer.build(net.trainable_variables)
    return model


def _torch_simclr(x: np.ndarray) -> tuple[Any, list]:
    """A function that makes a step, and what it learns."""
    torch = need("torch")
    nn, s = torch.nn, SIMCLR

    class Block(nn.Module):
        def __init__(self, into, width, stride):
            super().__init__()
            self.stride, self.more = stride, width - into
            self.body = nn.Sequential(
                nn.Conv2d(into, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
            )  # fmt: skip

        def forward(self, x):
            short = x[:, :, :: self.stride, :: self.stride]
            if self.more:
                short = nn.functional.pad(short, (0, 0, 0, 0, 0, self.more))
            return torch.relu(short + self.body(x))

    parts, into = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for width in (16, 32, 64):
        for block in range(3):
            parts.append(Block(into, width, 2 if block == 0 and width > 16 else 1))
            into = width
    last = nn.BatchNorm1d(s["projection"])
    last.bias.requires_grad_(False)
    net = nn.Sequential(
        *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(into, s["width"], bias=False), nn.BatchNorm1d(s["width"]), nn.ReLU(),
        nn.Linear(s["width"], s["projection"], bias=False), last,
    ).to(memory_format=torch.channels_last)  # fmt: skip
    learnt = [weight for weight in net.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(learnt, 0.1, momentum=0.9)
    n = len(x)
    both = _channels_first(torch, np.concatenate([x[:, 0], x[:, 1]]))
    partners = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
    itself = 1e9 * torch.eye(2 * n)

    def step():
        optimizer.zero_grad(set_to_none=True)
        z = nn.functional.normalize(net(both))
        loss = 2 * nn.functional.cross_entropy(z @ z.T / s["temperature"] - itself, partners)
        loss.backward()
        optimizer.step()
        return loss

    return step, learnt


def _channels_first(torch, x: np.ndarray):
    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


def _torch_rate(step, steps: int, epochs: int) -> float:
    """Steps a second: the median over epochs, the first one left out."""
    seconds = []
    for _ in range(epochs):
        began = time.perf_counter()
        for _ in range(steps):
            loss = step()
        float(loss.detach())
        seconds.append(time.perf_counter() - began)
    return steps / statistics.median(seconds[1:])
