"""The linear model and the multi-layer perceptron."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import create_model

DERIVATIVES = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype)),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "none": (lambda z: z, np.ones_like),
}


def back_propagation(x, targets, weights, activation, loss):
    """Loss and gradients of a two-layer net, example by example, as the docstring derives them."""
    w1, b1, w2, b2 = weights
    act, slope = DERIVATIVES[activation]
    total, grads = 0.0, [np.zeros_like(w) for w in weights]
    for row, t in zip(x, targets, strict=True):
        z = w1.T @ row + b1
        h = act(z)
        y = w2.T @ h + b2
        if loss == "mse":
            total += np.mean((y - t) ** 2)
            d = 2 / len(y) * (y - t)
        else:
            p = np.exp(y) / np.exp(y).sum()
            total -= np.sum(t * np.log(p))
            d = p - t
        e = (w2 @ d) * slope(z)
        for grad, one in zip(grads, (np.outer(row, e), e, np.outer(h, d), d), strict=True):
            grad += one / len(x)
    return total / len(x), grads


@pytest.mark.parametrize("activation", DERIVATIVES)
@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_the_tape_equals_back_propagation_by_hand(activation, loss):
    random = np.random.default_rng(0)
    x = random.normal(size=(5, 4))
    targets = random.normal(size=(5, 3)) if loss == "mse" else np.eye(3)[random.integers(0, 3, 5)]
    model = create_model(
        "mlp", input_shape=(4,), num_classes=3, hidden=(6,), activation=activation, seed=1
    )
    for weight in model.trainable_weights:  # biases too
        weight.assign(random.normal(size=weight.shape))
    with tf.GradientTape() as tape:
        outputs = model(x)
        if loss == "mse":
            value = tf.reduce_mean((outputs - targets) ** 2)
        else:
            value = tf.reduce_mean(
                tf.nn.softmax_cross_entropy_with_logits(targets.astype("float32"), outputs)
            )
    ours = tape.gradient(value, [w.value for w in model.trainable_weights])
    weights = [w.numpy().astype("float64") for w in model.trainable_weights]
    by_hand, expected = back_propagation(x, targets, weights, activation, loss)
    np.testing.assert_allclose(value, by_hand, rtol=1e-5)
    for a, b in zip(ours, expected, strict=True):
        assert np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_without_non_linearity_depth_is_one_linear_layer():
    model = create_model("mlp", input_shape=(5,), num_classes=2, hidden=(7, 6), activation="none")
    for layer in model.layers:
        if layer.weights:
            layer.bias.assign(np.random.default_rng(0).normal(size=layer.bias.shape))
    w, b = np.eye(5), np.zeros(5)
    for layer in (layer for layer in model.layers if layer.weights):
        kernel = layer.kernel.numpy().astype("float64")
        w, b = w @ kernel, b @ kernel + layer.bias.numpy()
    x = np.random.default_rng(1).normal(size=(9, 5))
    np.testing.assert_allclose(model(x), x @ w + b, atol=1e-6)


def test_counts_and_shapes():
    model = create_model("mlp", input_shape=(4, 3, 2), num_classes=5, hidden=(8, 6))
    assert model.count_params() == (24 * 8 + 8) + (8 * 6 + 6) + (6 * 5 + 5)
    assert model(np.zeros((3, 4, 3, 2))).shape == (3, 5)
    normed = create_model(
        "mlp", input_shape=(24,), num_classes=5, hidden=(8, 6), batch_norm=True
    )  # no biases, but gamma and beta
    trainable = sum(int(np.prod(w.shape)) for w in normed.trainable_weights)
    assert trainable == (24 * 8 + 16) + (8 * 6 + 12) + (6 * 5 + 5)
    linear = create_model("linear", input_shape=(4, 3), num_classes=1)
    assert linear.count_params() == 13
    assert linear.name == "linear"


@pytest.mark.parametrize(
    ("activation", "variance"), [("relu", 2 / 400), ("tanh", 2 / 700), ("none", 2 / 700)]
)
def test_initial_weights_fit_the_activation(activation, variance):
    model = create_model(
        "mlp", input_shape=(400,), num_classes=2, hidden=(300,), activation=activation, seed=3
    )
    kernel = model.get_layer("hidden_1").kernel.numpy()
    np.testing.assert_allclose(kernel.var(), variance, rtol=0.03)
    assert not model.get_layer("hidden_1").bias.numpy().any()


def test_seeds():
    def weights(**options):
        model = create_model(
            "mlp", input_shape=(4,), num_classes=2, hidden=(3, 3), dropout=0.5, **options
        )
        dropped = model(np.ones((8, 4)), training=True).numpy()
        return [w.numpy() for w in model.trainable_weights if len(w.shape) == 2] + [dropped]

    def equal(a, b):
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    assert equal(weights(seed=5), weights(seed=5))
    assert not equal(weights(seed=5), weights(seed=6))
    # Unseeded layers follow the process's seed, dropout included.
    keras.utils.set_random_seed(7)
    first = weights()
    keras.utils.set_random_seed(7)
    assert equal(first, weights())
    assert not equal(first, weights())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradient_reaches_every_weight_in_bfloat16(batch_norm):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = create_model(
            "mlp",
            input_shape=(6,),
            num_classes=3,
            hidden=(16, 8),
            dropout=0.1,
            batch_norm=batch_norm,
            seed=0,
        )
    finally:
        keras.config.set_dtype_policy("float32")
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    before = [w.numpy() for w in model.trainable_weights]
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, np.arange(32) % 3, batch_size=32, verbose=0)
    assert model(x).dtype == tf.float32
    for old, weight in zip(before, model.trainable_weights, strict=True):
        assert weight.dtype == "float32"
        assert not np.array_equal(old, weight.numpy()), f"no gradient for {weight.path}"
        assert np.isfinite(weight.numpy()).all()


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    model = create_model(
        "mlp", input_shape=(2, 3), num_classes=2, hidden=(4,), batch_norm=True, dropout=0.5
    )
    x = np.random.default_rng(0).normal(size=(5, 2, 3))
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(model(x), keras.saving.load_model(tmp_path / "m.keras")(x))


def test_it_learns_what_no_linear_model_can():
    x = np.random.default_rng(0).uniform(-1, 1, (256, 2)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype("int64")  # exclusive or

    def accuracy(name, **options):
        model = create_model(name, input_shape=(2,), num_classes=2, **options)
        model.compile(
            keras.optimizers.Adam(0.02),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(x, y, batch_size=64, epochs=25, verbose=0)
        return np.mean(model.predict(x, verbose=0).argmax(1) == y)

    keras.utils.set_random_seed(0)
    assert accuracy("mlp", hidden=(32,), seed=0) > 0.95
    assert accuracy("linear") < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "relu, sigmoid, tanh, none"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"hidden": (8, 0)}, "widths"),
        ({"hidden": (2.5,)}, "widths"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("mlp", input_shape=(2,), num_classes=2, **options)
