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

from .control import dqn, dqn_atari
from .decoding import generate
from .games import dcgan, simclr
from .input import input_images
from .language import bert, gpt
from .nets import clock, need, resnet20, resnet50
from .sequences import decode, lstm, transformer


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
        index = need("faiss").IndexFlatL2(784)
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
    from ...models.callbacks import StopOnDivergence
    from .. import choices
    from .. import recipe as r
    from ..checkpoint import Recorder, TensorBoard
    from ..data import load
    from ..plan import Plan, build_optimizer, early_stopping

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
        stateful = [early, StopOnDivergence()]
        recorder = Recorder(Path(directory), stateful, early)
        ours = [*stateful, TensorBoard(Path(directory)), recorder]
        for epoch in range(2 * pairs + 2):
            name = "bare fit" if epoch % 2 else "ours"
            callback, found = clock()
            network.fit(
                stream, initial_epoch=epoch, epochs=epoch + 1,
                steps_per_epoch=steps, callbacks=[*(ours if name == "ours" else []), callback],
                verbose=0, shuffle=False,
            )  # fmt: skip
            seconds[name] += found
    rates = {name: steps / statistics.median(found[1:]) for name, found in seconds.items()}
    return {"rates": rates, "unit": "steps/s"}


CASES = {
    "bert": bert,
    "dcgan": dcgan,
    "decode": decode,
    "dqn": dqn,
    "dqn_atari": dqn_atari,
    "generate": generate,
    "gpt": gpt,
    "input": input_images,
    "knn": knn,
    "lstm": lstm,
    "resnet20": resnet20,
    "resnet50": resnet50,
    "simclr": simclr,
    "train_loop": train_loop,
    "transformer": transformer,
}


def main(text: str) -> None:
    """Runs the side that the JSON request names and prints its rate."""
    request = json.loads(text)
    print(json.dumps(CASES[request.pop("case")](request.pop("side"), **request)))


if __name__ == "__main__":
    main(sys.argv[1])
