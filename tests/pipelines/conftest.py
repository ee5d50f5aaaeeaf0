"""Small finished runs, made without the trainer: for evaluate, predict and export."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# "median income" and "class" cannot be names of inputs; some numbers and towns are missing.
HEADER = ("median income", "town", "a-b", "class", "price $")
ROWS = [
    (
        1 + i % 7,
        ("Bonn", "Köln", "")[i % 3],
        "" if i % 11 == 5 else i / 10,
        i % 2,
        100 + 10 * (i % 7),
    )
    for i in range(66)
]


@dataclass
class Made:
    """A run with its data: ``run`` and ``dataset``; arrays where it was trained on such."""

    run: Any
    dataset: Any
    arrays: Any = None
    extra: dict = field(default_factory=dict)


def make(directory: Path, name: str, data, loss: str, layers, arrays=None) -> Made:
    """A run directory with a Sequential of these layers (or with a KNN), trained for one epoch."""
    import keras

    from epochal.pipelines.choices import build_loss
    from epochal.pipelines.data import load
    from epochal.pipelines.recipe import Recipe
    from epochal.pipelines.run import Run, write_atomic, write_json

    recipe = Recipe(name=name, data=data, model="mlp", loss=loss, algorithm={"epochs": 1})
    dataset = load(recipe.data, arrays)
    loss = build_loss(recipe.loss)
    keras.utils.set_random_seed(0)
    width = loss.num_outputs(dataset.num_targets)
    if callable(layers):
        model = layers(dataset.input_shape, width, capacity=dataset.sizes["train"], k=3)
    else:
        head = keras.layers.Dense(width, dtype="float32")
        model = keras.Sequential([keras.Input(dataset.input_shape), *layers, head])
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(dataset.train(0), steps_per_epoch=dataset.steps_per_epoch, epochs=1, verbose=0,
              shuffle=False)  # fmt: skip
    directory.mkdir(parents=True)
    write_atomic(directory / "recipe.json", recipe.to_json())
    write_json(directory / "dataset.json", dataset.describe())
    model.save(directory / "model.keras")
    return Made(Run(directory), dataset, arrays)


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def digits(runs) -> Made:
    """Images, ten classes; batch normalisation, AlexNet's layers and dropout."""
    from keras import layers

    from epochal.models.layers import GroupedConv2D, LocalResponseNormalization

    body = [
        layers.Conv2D(8, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        LocalResponseNormalization(groups=2),
        GroupedConv2D(8, 3, groups=2),
        layers.Flatten(),
        layers.Dropout(0.5),
    ]
    data = {"source": "builtin:digits", "ops": "translate(1)|standardize"}
    return make(runs / "digits", "digits", data, "cross-entropy", body)


@pytest.fixture(scope="session")
def housing(runs) -> Made:
    """A table with awkward column names, text and missing values; standardised likelihood."""
    from keras import layers

    file = runs / "housing.csv"
    with open(file, "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([HEADER, *ROWS])
    data = {
        "source": f"csv:{file}",
        "ops": "impute|one_hot|standardize",
        "batch_size": 8,
        "standardize_target": True,
        "task": "regression",
    }
    return make(runs / "housing", "housing", data, "gaussian", [layers.Dense(8, "relu")])


@pytest.fixture(scope="session")
def diabetes(runs) -> Made:
    """Arrays of features, quantile regression, from scikit-learn."""
    data = {"source": "builtin:diabetes", "ops": "standardize", "standardize_target": True}
    return make(runs / "diabetes", "diabetes", data, "quantile", [])


@pytest.fixture(scope="session")
def arrays(runs) -> Made:
    """Two classes with one logit, on arrays from Python."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(80, 3)).astype(np.float32)
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).astype(np.int64)
    data = {"source": "python", "batch_size": 8}
    return make(runs / "arrays", "arrays", data, "binary-cross-entropy", [], (x, y))


@pytest.fixture(scope="session")
def neighbors(runs) -> Made:
    """k nearest neighbours of features, by votes."""
    from epochal.models.knn import knn

    data = {"source": "builtin:iris", "shuffle": False, "batch_size": 16}
    return make(runs / "neighbors", "neighbors", data, "zero-one", knn)
