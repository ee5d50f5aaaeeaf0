"""The adding problem: what it is, and sequences [t, f] through the pipeline."""

import numpy as np
import pytest
import tensorflow as tf

from epochal.pipelines import predict, train
from epochal.pipelines.data import OpsError, SourceError, load
from epochal.pipelines.recipe import Data, Recipe


def test_the_adding_problem():
    data = load(Data(source="builtin:adding/11", train_examples=3_000))
    assert data.sizes == {"train": 3_000, "validation": 1_000, "test": 4_000}
    assert (data.input_shape, data.kind, data.task) == ((11, 2), "features", "regression")
    x, y = (np.concatenate(parts) for parts in zip(*data.split("train"), strict=True))
    numbers, marks = x[:, :, 0], x[:, :, 1]
    np.testing.assert_array_equal(marks[:, :5].sum(1), 1)
    np.testing.assert_array_equal(marks[:, 5:].sum(1), 1)
    np.testing.assert_allclose((numbers * marks).sum(1), y, rtol=1e-6)
    assert (marks.sum(0)[:5] > 500).all()  # 600 expected, every place occurs
    assert (marks.sum(0)[5:] > 400).all()  # 500
    assert 0 <= numbers.min() < 0.001 < 0.999 < numbers.max() < 1
    assert y.var() == pytest.approx(1 / 6, rel=0.05)
    assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 0.06
    other = load(Data(source="builtin:adding/11", train_examples=3_000, split_seed=1))
    assert not np.isin(other.targets("train"), y).all()
    # Splits are other examples, and the first ones stay when more are asked for.
    assert not np.isin(data.targets("test")[:100], y).all()
    more = load(Data(source="builtin:adding/11", train_examples=3_500))
    np.testing.assert_array_equal(more.targets("train")[:3_000], y)
    assert load(Data(source="builtin:adding", train_examples=10)).input_shape == (150, 2)
    with pytest.raises(SourceError, match="length of a sequence"):
        load(Data(source="builtin:adding/1"))


def test_standardised_sequences_serve_as_they_train():
    data = load(Data(source="builtin:adding/5", ops="standardize", train_examples=200))
    raw = data.raw("test", [0, 1])
    served = tf.function(data.preprocess.serve)({"features": tf.constant(raw["features"])})
    assert np.array_equal(served, next(iter(data.split("test")))[0][:2])
    with pytest.raises(OpsError, match="log1p acts on rows"):
        load(Data(source="builtin:adding/5", ops="log1p", train_examples=200))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    recipe = Recipe(
        name="short",
        data={"source": "builtin:adding/4", "train_examples": 2_000, "batch_size": 64},
        model="lstm(hidden=[16])",
        loss="mse",
        algorithm={"optimizer": "adam(learning_rate=0.02)", "steps": 250},
    )
    return train(recipe, tmp_path_factory.mktemp("runs") / "short")


def test_a_short_one_is_learnt(run):
    assert run.metrics["test"]["rmse"]["value"] < 0.15  # always answering 1: 0.41


def test_sequences_are_predicted_from_arrays(run):
    sequence = np.array([[0.25, 1], [0.9, 0], [0.1, 0], [0.5, 1]], np.float32)
    (answer,) = predict(run, sequence)
    assert answer["prediction"] == pytest.approx(0.75, abs=0.3)
    assert [a["input"] for a in predict(run, np.stack([sequence, sequence[::-1]]))] == [1, 2]
    for wrong in (sequence[:3], "sequences.csv"):
        with pytest.raises(SourceError, match=r"sequences of numbers, arrays \[n, 4, 2\]"):
            predict(run, wrong)
