"""Recurrent networks for labels, forecasts and text."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import create_model, lstm
from epochal.models.losses import CrossEntropy, GaussianNLL, MeanSquaredError, Quantile
from epochal.models.metrics import Accuracy
from epochal.models.summary import table

CELLS = ("rnn", "gru", "lstm")


def trainable(model) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def ids(n, t, words=9, seed=0):
    """Token ids with padding on the right, at least two real ones a row."""
    rng = np.random.default_rng(seed)
    found = rng.integers(1, words, size=(n, t))
    found[np.arange(t) >= rng.integers(2, t + 1, size=(n, 1))] = 0
    return found.astype("int32")


def test_counts_by_hand():
    for name, gates, biases in (("rnn", 1, 1), ("gru", 3, 2), ("lstm", 4, 1)):
        model = create_model(name, input_shape=(28, 28), num_classes=10)
        by_hand = gates * 128 * (28 + 128 + biases) + 128 * 10 + 10
        assert trainable(model) == by_hand
    both = lstm.lstm((7,), 3, hidden=(5, 4), vocabulary_size=9, embedding=6, bidirectional=True)
    first, second = 2 * 4 * 5 * (6 + 5 + 1), 2 * 4 * 4 * (10 + 4 + 1)
    assert trainable(both) == 9 * 6 + first + second + 8 * 3 + 3


def test_zaremba_medium():
    model = lstm.lstm(
        task="language-model", vocabulary_size=10_000, hidden=(650, 650), embedding=650
    )
    assert trainable(model) == 19_775_200


def test_cost_of_both_directions():
    model = lstm.lstm((7, 3), 2, hidden=(5,), bidirectional=True)
    rows = {row.name: row for row in table(model).rows}
    assert rows["lstm_1"].multiply_adds == 2 * 7 * 4 * 5 * (3 + 5)


def test_the_forget_gate_starts_open():
    model = lstm.lstm((7, 3), 2, hidden=(5, 4))
    for layer in ("lstm_1", "lstm_2"):
        i, f, g, o = np.split(model.get_layer(layer).cell.bias.numpy(), 4)
        assert np.all(f == 1)
        assert not np.any([i, g, o])


@pytest.mark.parametrize("cell", CELLS)
def test_padding_changes_nothing(cell):
    x = ids(6, 5)
    wider = np.pad(x, ((0, 0), (0, 3)))
    for options in (
        {"num_classes": 3, "bidirectional": True},
        {"task": "language-model"},
    ):
        model = lstm.recurrent_net(cell, hidden=(4, 3), vocabulary_size=9, seed=0, **options)
        before, after = model(x).numpy(), model(wider).numpy()
        if before.ndim == 3:
            before, after = before[x != 0], after[:, :5][x != 0]
        np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_a_language_model_does_not_see_the_future(cell):
    model = lstm.recurrent_net(cell, task="language-model", vocabulary_size=9, hidden=(4, 3))
    x = ids(4, 6)
    later = np.where(np.arange(6) < 3, x, 8)
    before, after = model(x).numpy(), model(later).numpy()
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize("cell", CELLS)
def test_generation_follows_the_network(cell):
    """Greedy tokens from stepping cells are those of the whole network, prompt by prompt."""
    model = lstm.recurrent_net(
        cell, task="language-model", vocabulary_size=9, hidden=(6, 5), seed=1
    )
    prompts = [[3, 4, 5], [7]]
    found = model.generate(np.array([[3, 4, 5], [7, 0, 0]]), 4, temperature=0.0)
    for prompt, new, score in zip(prompts, found["ids"].numpy(), found["score"], strict=True):
        text, total = list(prompt), 0.0
        for _ in range(4):
            z = model(np.array([text], "int32"))[0, -1].numpy()
            text.append(1 + int(z[1:].argmax()))
            total += z[text[-1]] - np.log(np.exp(z).sum())
        assert new.tolist() == text[len(prompt) :]
        assert float(score) == pytest.approx(total, abs=1e-5)


def test_generation_can_be_exported(tmp_path):
    model = lstm.lstm(task="language-model", vocabulary_size=9, hidden=(4,), seed=0)
    module = tf.Module()
    module.weights = [w.value for w in model.weights]
    module.generate = model.generator(length=5, end_id=2)
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    given = (
        tf.constant([[3, 0], [4, 5]]),
        tf.constant([5, 3]),
        tf.constant([1.0, 0.0]),
        tf.constant([0, 3]),
        tf.constant([1, 2], tf.int64),
    )
    expected, found = module.generate(*given), loaded.generate(*given)
    np.testing.assert_array_equal(found["ids"], expected["ids"])
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5)


def test_dropout_is_on_what_goes_up_not_on_what_goes_on():
    """Zaremba et al.: before each layer and before the last linear one; cells have none."""
    model = lstm.lstm(task="language-model", vocabulary_size=9, hidden=(4, 4), dropout=0.5, seed=0)
    order = [type(layer).__name__ for layer in model.layers]
    twice = ["Dropout", "LSTM"] * 2
    assert order == ["InputLayer", "Embedding", *twice, "Dropout", "Dense", "Activation"]
    assert all(layer.dropout == layer.recurrent_dropout == 0 for layer in model.recurrent)
    numbers = lstm.lstm((5, 3), 2, dropout=0.5)
    assert [type(layer).__name__ for layer in numbers.layers][:2] == ["InputLayer", "LSTM"]


@pytest.mark.parametrize(
    ("loss", "targets"),
    [(Quantile((0.1, 0.5, 0.9)), 2), (GaussianNLL(), 1), (MeanSquaredError(), 3)],
)
def test_forecasts_of_several_steps_and_targets(loss, targets):
    rng = np.random.default_rng(0)
    history, future = rng.normal(size=(4, 7, 3)), rng.normal(size=(4, 5, 2))
    y = rng.normal(size=(4, 5, targets))
    width = loss.num_outputs(targets)
    for known in (0, 2):
        model = lstm.lstm(
            (7, 3), width, task="forecasting", hidden=(4, 3), future_shape=(5, known), seed=0
        )
        x = {"history": history, "future": future} if known else history
        outputs = model(x)
        assert outputs.shape == (4, 5, width)
        assert np.shape(loss(y, outputs)) == ()
        assert loss.call(y, outputs).shape == (4, 5)
        if known:  # step 2 knows the future up to itself, and the history
            later = future.copy()
            later[:, 3:] += 1
            moved = np.abs(model({**x, "future": later}) - outputs).max(axis=(0, 2))
            assert np.all(moved[:3] == 0)
            assert np.all(moved[3:] > 0)
            past = np.abs(model({**x, "history": history + 1}) - outputs).max(axis=(0, 2))
            assert np.all(past > 0)


@pytest.mark.parametrize("task", ["classification", "forecasting", "language-model"])
def test_gradient_reaches_every_weight_and_bfloat16_trains(task, tmp_path):
    options = {
        "classification": {"input_shape": (6,), "vocabulary_size": 9, "num_classes": 3},
        "forecasting": {"input_shape": (6, 2), "num_classes": 2, "future_shape": (3, 1)},
        "language-model": {"vocabulary_size": 9},
    }[task]
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = lstm.lstm(task=task, hidden=(4, 4), dropout=0.2, seed=0, **options)
    finally:
        keras.config.set_dtype_policy("float32")
    x, rng = ids(16, 6), np.random.default_rng(1)
    if task == "forecasting":
        x = {"history": rng.normal(size=(16, 6, 2)), "future": rng.normal(size=(16, 3, 1))}
    y = {
        "classification": np.arange(16) % 3,
        "forecasting": rng.normal(size=(16, 3, 2)),
        "language-model": x,
    }[task]
    before = model.get_weights()
    loss = MeanSquaredError() if task == "forecasting" else CrossEntropy()
    model.compile(keras.optimizers.SGD(1.0), loss, jit_compile=False)
    model.train_on_batch(x, y)
    for old, weight in zip(before, model.weights, strict=True):
        assert weight.dtype == "float32"
        assert np.isfinite(weight.numpy()).all()
        assert not np.array_equal(old, weight.numpy()), f"{weight.path} did not move"
    assert model(x).dtype == tf.float32
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert loaded.get_layer("lstm_1").compute_dtype == "bfloat16"


def test_the_loss_of_a_language_model_is_the_mean_over_real_tokens():
    model = lstm.lstm(task="language-model", vocabulary_size=9, hidden=(4,), seed=0)
    x = ids(5, 6)
    y = np.where(x == 0, 0, (x + 1) % 9)
    model.compile("sgd", CrossEntropy(), metrics=[Accuracy()], jit_compile=False)
    loss, accuracy = model.evaluate(x, y, verbose=0)
    z = model(x).numpy().astype("float64")
    logp = np.take_along_axis(z, y[..., None], -1)[..., 0] - np.log(np.exp(z).sum(-1))
    assert loss == pytest.approx(-logp[x != 0].mean(), abs=1e-5)
    assert accuracy == pytest.approx((z.argmax(-1) == y)[x != 0].mean(), abs=1e-6)


def test_it_remembers_the_first_of_twelve_tokens():
    """The class is the first token; the eleven others say nothing."""
    rng = np.random.default_rng(0)
    x = rng.integers(5, 9, size=(1_600, 12)).astype("int32")
    x[:, 0] = y = rng.integers(1, 5, size=1_600)
    model = lstm.lstm((12,), 5, vocabulary_size=9, hidden=(16,), embedding=8, seed=0)
    model.compile(
        keras.optimizers.Adam(0.03), CrossEntropy(), metrics=[Accuracy()], jit_compile=False
    )
    model.fit(x, y, batch_size=32, epochs=5, shuffle=False, verbose=0)
    assert model.evaluate(x[:300], y[:300], verbose=0)[1] > 0.95


def test_a_language_model_learns_to_count():
    start = np.random.default_rng(0).integers(0, 6, size=(640, 1))
    text = (1 + (start + np.arange(9)) % 6).astype("int32")
    model = lstm.lstm(task="language-model", vocabulary_size=7, hidden=(12,), embedding=6, seed=0)
    model.compile(keras.optimizers.Adam(0.03), CrossEntropy(), jit_compile=False)
    model.fit(text[:, :-1], text[:, 1:], batch_size=32, epochs=3, shuffle=False, verbose=0)
    new = model.generate([[4, 5], [6, 1]], 8, temperature=0.0)["ids"].numpy()
    assert new.tolist() == [[6, 1, 2, 3, 4, 5, 6, 1], [2, 3, 4, 5, 6, 1, 2, 3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lsmt"}, "cell must be one of lstm, gru, rnn"),
        ({"task": "translation"}, "task one of classification"),
        ({"input_shape": (5, 3), "vocabulary_size": 9}, r"\(t,\) for ids"),
        ({"input_shape": (5,)}, r"\(t, f\) for numbers"),
        ({"hidden": ()}, "one or more numbers of units"),
        ({"dropout": 1.0}, r"share in \[0, 1\)"),
        ({"num_classes": None}, "num_classes must be at least 1"),
        ({"task": "forecasting"}, "needs future_shape"),
        ({"future_shape": (3, 0)}, "no other task has it"),
        ({"task": "language-model"}, "needs vocabulary_size"),
        (
            {"task": "forecasting", "future_shape": (3, 0), "bidirectional": True},
            "cannot read both ways",
        ),
    ],
)
def test_bad_options_are_refused(options, message):
    given = {"cell": "lstm", "input_shape": (5, 3), "num_classes": 2, **options}
    with pytest.raises(ValueError, match=message):
        lstm.recurrent_net(**given)
