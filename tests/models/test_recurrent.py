"""The LSTM layer against a transcription in NumPy, and against Keras's own layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models.recurrent import LSTM

MASK = np.array([[1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
N, T, F, UNITS = 3, 6, 4, 5


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def transcription(x, weights, h, c, mask, d_outputs, d_h, d_c):
    """Outputs, last states, and the gradients of (x, W, U, b, h0, c0), step by step in float64."""
    w, u, b = weights
    steps, outputs, h0, c0 = [], [], h, c
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ w + h @ u + b, 4, axis=1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        new_c = f * c + i * g
        on = mask[:, t, None]
        steps.append((h, c, i, f, g, o, new_c, on))
        h, c = np.where(on, o * np.tanh(new_c), h), np.where(on, new_c, c)
        outputs.append(h)
    dx, dw, du, db = np.zeros_like(x), np.zeros_like(w), np.zeros_like(u), np.zeros_like(b)
    for t, (h_, c_, i, f, g, o, new_c, on) in reversed(list(enumerate(steps))):
        d_h = d_h + d_outputs[:, t]
        d_o = d_h * np.tanh(new_c)
        d_new = d_c + d_h * o * (1 - np.tanh(new_c) ** 2)
        dz = [d_new * g * i * (1 - i), d_new * c_ * f * (1 - f), d_new * i * (1 - g**2)]
        dz = np.concatenate([*dz, d_o * o * (1 - o)], axis=1) * on
        dx[:, t], dw, du = dz @ w.T, dw + x[:, t].T @ dz, du + h_.T @ dz
        db = db + dz.sum(0)
        d_h, d_c = np.where(on, dz @ u.T, d_h), np.where(on, d_new * f, d_c)
    return (np.stack(outputs, 1), h, c), (dx, dw, du, db, d_h, d_c), (h0, c0)


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, T, F))
    weights = [rng.normal(size=s) for s in ((F, 4 * UNITS), (UNITS, 4 * UNITS), (4 * UNITS,))]
    return x, weights, [rng.normal(size=(N, UNITS)) for _ in range(2)]


def run(layer, x, states, mask, upstream):
    """Values of (outputs, h, c) and gradients of (x, weights, h0, c0) of sum(value * upstream)."""
    x, *states = (tf.constant(v, tf.float32) for v in (x, *states))
    weights = [w.value for w in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch([x, *states])
        values = layer(x, initial_state=states, mask=mask)
        loss = sum(tf.reduce_sum(v * u) for v, u in zip(values, upstream, strict=True))
    return values, tape.gradient(loss, [x, *weights, *states])


def built(kind, weights, **options):
    layer = kind(UNITS, return_state=True, **options)
    layer.build((None, None, F))
    layer.set_weights(weights)
    return layer


@pytest.mark.parametrize("masked", [False, True])
def test_it_equals_the_equations_and_their_gradients(masked):
    x, weights, states = arrays()
    rng = np.random.default_rng(1)
    upstream = [rng.normal(size=s) for s in ((N, T, UNITS), (N, UNITS), (N, UNITS))]
    mask = MASK if masked else np.ones((N, T), bool)
    layer = built(LSTM, weights, return_sequences=True)
    values, gradients = run(layer, x, states, tf.constant(mask) if masked else None, upstream)
    seen = np.cumsum(mask, 1)[..., None] > 0  # before its first token a row's output is 0
    expected, slopes, _ = transcription(
        x, weights, *states, mask, upstream[0] * seen, *upstream[1:]
    )
    expected = (expected[0] * seen, *expected[1:])
    for value, right in zip((*values, *gradients), (*expected, *slopes), strict=True):
        np.testing.assert_allclose(value, right, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_it_equals_keras(backwards, sequences, masked):
    x, weights, states = arrays(2)
    rng = np.random.default_rng(3)
    first = (N, T, UNITS) if sequences else (N, UNITS)
    upstream = [rng.normal(size=s) for s in (first, (N, UNITS), (N, UNITS))]
    options = {"return_sequences": sequences, "go_backwards": backwards}
    results = [
        run(
            built(kind, weights, **options, **more),
            x,
            states,
            tf.constant(MASK) if masked else None,
            upstream,
        )
        for kind, more in ((LSTM, {}), (keras.layers.LSTM, {"use_cudnn": False}))
    ]
    for ours, theirs in zip(*map(tf.nest.flatten, results), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def net(kind):
    keras.utils.set_random_seed(0)
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(9, 4, keras.initializers.RandomNormal(stddev=2.0), mask_zero=True)(
        ids
    )
    x = keras.layers.Bidirectional(kind(5, return_sequences=True))(x)
    x = kind(6, use_bias=False)(x)
    return keras.Model(ids, keras.layers.Dense(3, dtype="float32")(x))


def theirs(units, **options):
    return keras.layers.LSTM(units, use_cudnn=False, **options)


def batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 9, size=(40, 7))
    ids[::2, 5:] = 0
    return ids.astype("int32"), rng.integers(0, 3, size=40)


@pytest.mark.parametrize(
    ("policy", "jit", "tolerance"), [("float32", False, 1e-4), ("mixed_bfloat16", True, 0.1)]
)
def test_training_moves_weights_as_keras_does(policy, jit, tolerance):
    """Bidirectional and stacked, with padding, through ``compile`` and a step of training."""
    x, y = batch()
    moved = []
    keras.config.set_dtype_policy(policy)
    try:
        for kind, compiled in ((LSTM, jit), (theirs, False)):
            model = net(kind)
            model.compile(
                keras.optimizers.SGD(100.0),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                jit_compile=compiled,
            )
            before = model.get_weights()
            model.train_on_batch(x, y)
            moved.append([a - b for a, b in zip(model.get_weights(), before, strict=True)])
    finally:
        keras.config.set_dtype_policy("float32")
    for ours, right in zip(*moved, strict=True):
        assert np.abs(right).max() > 1e-2
        assert np.abs(ours - right).max() < tolerance * np.abs(right).max()


def test_the_cell_keeps_its_digits_in_bfloat16():
    """A sum of 400 equal parts: in bfloat16 itself it would stop growing at 256 of them."""
    layer = LSTM(1, return_state=True, dtype="mixed_bfloat16")
    layer.build((None, None, 1))
    layer.set_weights([np.zeros((1, 4)), np.zeros((1, 4)), np.array([20.0, 20.0, 20.0, 0.0])])
    *_, c = layer(np.ones((1, 400, 1), "float32"))
    assert layer.compute_dtype == "bfloat16"
    assert c.dtype == tf.bfloat16
    assert abs(float(c[0, 0]) - 400) <= 2  # what bfloat16 can say of 400


def test_what_it_does_not_compute_is_left_to_keras():
    x, weights, states = arrays()
    for options in ({"activation": "relu"}, {"recurrent_activation": "hard_sigmoid"}):
        ours, right = (
            built(kind, weights, **options)(tf.constant(x, tf.float32), initial_state=states)
            for kind in (LSTM, theirs)
        )
        np.testing.assert_allclose(ours[0], right[0], atol=1e-6)
    dropped = built(LSTM, weights, dropout=0.9)
    assert not np.allclose(dropped(x, training=True)[0], dropped(x)[0])


def test_saved_and_loaded_it_is_the_same_layer(tmp_path):
    model = net(LSTM)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    x, _ = batch()
    np.testing.assert_array_equal(model(x), loaded(x))
    assert type(loaded.layers[-2]) is LSTM
    assert type(loaded.layers[-3].backward_layer) is LSTM
