"""One side of a benchmark, in a process of its own: ``python -m ...cases '{"case": ...}'``.

Prints one JSON line: ``{"rate": ..., "unit": ...}``, or ``{"rates": {side: ...}, ...}``.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .input import input_images


def _need(module: str):
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise SystemExit(f"this side needs {module!r}: pip install 'epochal[bench]'") from None


def _clock() -> tuple[Any, list[float]]:
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


def _steps_per_second(model, dataset, *, steps: int, epochs: int) -> float:
    """The median rate over epochs of ``fit``, the first one left out."""
    clock, seconds = _clock()
    model.fit(
        dataset, steps_per_epoch=steps, epochs=epochs, callbacks=[clock], verbose=0, shuffle=False
    )
    return steps / statistics.median(seconds[1:])


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
    rate = _steps_per_second(model, data, steps=5 if quick else 15, epochs=2 if quick else 4)
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


def knn(side: str, *, quick: bool, data: str = "noise") -> dict[str, Any]:
    """The five nearest of 60,000 stored rows for 2,000 queries, as float32 in [0, 1].

    ``noise`` is the worst case: all rows are about equally far from a query.
    """
    if data == "noise":
        rng = np.random.default_rng(0)
        memory, queries = (rng.integers(0, 256, (n, 784)) for n in (60_000, 2_000))
    else:
        from ..data import load
        from ..recipe import Data

        source = Data(source="tfds:fashion_mnist", validation_fraction=0.0)
        dataset = load(source)
        memory = dataset.raw("train", np.arange(60_000))["image"].reshape(-1, 784)
        queries = dataset.raw("test", np.arange(2_000))["image"].reshape(-1, 784)
    memory, queries = ((rows / 255.0).astype("float32") for rows in (memory, queries))
    if side == "ours":
        import tensorflow as tf

        from ...models import create_model

        model = create_model("knn", input_shape=(784,), num_classes=10, capacity=60_000, k=5)
        model.compile()
        labels = np.zeros(60_000, "int64")
        model.fit(memory, labels, batch_size=1_000, shuffle=False, verbose=0)
        search = tf.function(model.neighbors)
        batch = tf.constant(queries)

        def ask():
            return search(batch)[0].numpy()
    elif side == "faiss":
        index = _need("faiss").IndexFlatL2(784)
        index.add(memory)

        def ask():
            return index.search(queries, 5)[1]
    else:
        from sklearn.neighbors import NearestNeighbors

        tree = NearestNeighbors(n_neighbors=5, algorithm="brute", n_jobs=-1).fit(memory)

        def ask():
            return tree.kneighbors(queries)[1]

    ask()
    seconds = []
    for _ in range(1 if quick else 3):
        began = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - began)
    return {"rate": len(queries) / statistics.median(seconds), "unit": "queries/s"}


def train_loop(side: str, *, quick: bool, net: str = "mlp") -> dict[str, Any]:
    """Steps of ``fit`` with the trainer's callbacks and without any, epoch by epoch in turn.

    One process, one model and one stream of data, so that nothing else differs; an epoch's clock
    runs from its first to its last training step. The trainer's checkpoint after an epoch is not a
    part of a step.
    """
    from .. import choices
    from .. import recipe as r
    from ..checkpoint import Recorder, TensorBoard
    from ..data import load
    from ..train import Plan, build_optimizer, early_stopping, model_callbacks

    rng = np.random.default_rng(0)
    if net == "mlp":
        shape, count, batch, steps = (784,), 20_000, 128, 100
        model, ops = r.Choice(name="mlp", hidden=[512, 256]), ""
    else:
        shape, count, batch, steps = (8, 8, 1), 1_500, 64, 20
        model, ops = r.Choice(name="resnet20"), "scale"
    x = rng.integers(0, 256, (count, *shape)).astype("float32" if net == "mlp" else "uint8")
    y = rng.integers(0, 10, count)
    pairs = 2 if quick else 15
    recipe = r.Recipe(
        name="bench",
        data=r.Data(source="python", batch_size=batch, ops=ops, validation_fraction=0.0),
        model=model,
        loss=r.Choice(name="cross-entropy"),
        algorithm=r.Algorithm(
            epochs=2 * pairs + 2,
            steps_per_epoch=steps,
            early_stopping=r.EarlyStopping(monitor="loss", patience=10_000),
        ),
    )
    dataset = load(recipe.data, (x, y))
    loss = choices.build_loss(recipe.loss)
    network = choices.build_model(recipe, dataset, loss)
    plan = Plan(recipe, dataset.steps_per_epoch)
    network.compile(
        build_optimizer(recipe, plan.steps), loss, metrics=choices.build_metrics(dataset, loss)
    )
    stream = dataset.train(0)
    seconds: dict[str, list[float]] = {"ours": [], "bare fit": []}
    with tempfile.TemporaryDirectory() as directory:
        early = early_stopping(recipe, plan, dataset, loss)
        stateful = [early, model_callbacks.StopOnDivergence()]
        recorder = Recorder(Path(directory), stateful, early)
        ours = [*stateful, TensorBoard(Path(directory)), recorder]
        for epoch in range(2 * pairs + 2):
            name = "bare fit" if epoch % 2 else "ours"
            clock, found = _clock()
            network.fit(
                stream, initial_epoch=epoch, epochs=epoch + 1,
                steps_per_epoch=steps, callbacks=[*(ours if name == "ours" else []), clock],
                verbose=0, shuffle=False,
            )  # fmt: skip
            seconds[name] += found
    rates = {name: steps / statistics.median(found[1:]) for name, found in seconds.items()}
    return {"rates": rates, "unit": "steps/s"}


CASES = {"resnet20": resnet20, "knn": knn, "train_loop": train_loop, "input": input_images}


def main(text: str) -> None:
    """Runs the side that the JSON request names and prints its rate."""
    request = json.loads(text)
    print(json.dumps(CASES[request.pop("case")](request.pop("side"), **request)))


if __name__ == "__main__":
    main(sys.argv[1])
