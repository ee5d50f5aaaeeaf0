"""Layers against Keras's where these are the same but slower; stochastic depth by its formula."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models.layers import (
    Dropout,
    DropPath,
    FusedBatchNormalization,
    LayerNormalization,
    PointwiseConv2D,
)

SHAPE = (4, 3, 5, 6)


def pair(shape=SHAPE, **options):
    """The fused and the stock layer with equal, uneven weights."""
    random = np.random.default_rng(0)
    made = [
        FusedBatchNormalization(**options),
        keras.layers.BatchNormalization(**options),
    ]
    for layer in made:
        layer.build(shape)
    values = [random.uniform(0.5, 2.0, w.shape) for w in made[0].weights]
    for layer in made:
        layer.set_weights(values)
    return made


def inputs(shape=SHAPE, dtype="float32"):
    x = np.random.default_rng(1).normal(3.0, 2.0, shape)
    return tf.constant(x.astype("float32"), dtype)


def step(layer, x, **options):
    """Outputs and gradients of a loss that tells every element apart."""
    weights = tf.constant(np.random.default_rng(2).normal(size=x.shape), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, **options)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2 * weights)
    sources = [x, *(w.value for w in layer.trainable_weights)]
    return y, tape.gradient(loss, sources)


def close(a, b, tolerance=1e-5):
    a, b = np.asarray(tf.cast(a, tf.float32)), np.asarray(tf.cast(b, tf.float32))
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9, "epsilon": 1e-5},
        {"scale": False},
        {"center": False},
        {"axis": 3},
    ],
)
def test_outputs_gradients_and_statistics_equal_keras(options):
    fused, stock = pair(**options)
    x = inputs()
    for _ in range(2):
        ours, theirs = step(fused, x), step(stock, x)
        close(ours[0], theirs[0])
        assert len(ours[1]) == len(theirs[1])
        for a, b in zip(ours[1], theirs[1], strict=True):
            close(a, b)
    close(fused.moving_mean, stock.moving_mean)
    # Without (n-1)/n the variance would be off by 1/59 of its change, 200 times the tolerance.
    close(fused.moving_variance, stock.moving_variance)
    close(fused(x, training=False), stock(x, training=False))


def test_the_kernel_is_used_in_training_only():
    fused, _ = pair()

    def operations(layer, x, **options):
        graph = tf.function(lambda x: layer(x, **options)).get_concrete_function(x).graph
        return {op.type for op in graph.get_operations()}

    assert "FusedBatchNormV3" in operations(fused, inputs(), training=True)
    assert "FusedBatchNormV3" not in operations(fused, inputs(), training=False)
    flat = FusedBatchNormalization()
    assert "FusedBatchNormV3" not in operations(flat, inputs((8, 6)), training=True)


@pytest.mark.parametrize(
    ("shape", "options"),
    [((8, 6), {}), ((4, 5, 6), {}), ((4, 3, 5, 6), {"axis": 1}), ((2, 2, 3, 2, 6), {})],
)
def test_other_shapes_step_aside(shape, options):
    fused, stock = pair(shape, **options)
    x = inputs(shape)
    ours, theirs = step(fused, x), step(stock, x)
    close(ours[0], theirs[0], 1e-6)
    close(fused.moving_variance, stock.moving_variance, 1e-6)


def test_a_mask_steps_aside():
    fused, stock = pair()
    mask = tf.constant(np.random.default_rng(3).random(SHAPE[:3]) < 0.5)
    ours, theirs = step(fused, inputs(), mask=mask), step(stock, inputs(), mask=mask)
    close(ours[0], theirs[0], 1e-6)
    close(fused.moving_mean, stock.moving_mean, 1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_keeps_statistics_in_float32(dtype):
    fused, stock = pair(dtype=f"mixed_{dtype}")
    x = inputs(dtype=dtype)
    ours, theirs = step(fused, x), step(stock, x)
    assert ours[0].dtype == dtype
    assert ours[1][0].dtype == dtype
    assert {w.dtype for w in fused.weights} == {"float32"}
    # One rounding of the output; the statistics are not rounded at all.
    close(ours[0], theirs[0], 1e-2)
    for a, b in zip(ours[1], theirs[1], strict=True):
        close(a, b, 2e-2)
    close(fused.moving_mean, stock.moving_mean, 1e-6)
    close(fused.moving_variance, stock.moving_variance)


def test_frozen_it_normalises_as_in_inference():
    fused, _ = pair()
    fused.trainable = False
    before = [w.numpy() for w in fused.weights]
    close(fused(inputs(), training=True), fused(inputs(), training=False), 1e-7)
    for old, new in zip(before, fused.weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_one_value_a_channel():
    fused, stock = pair()
    x = inputs((1, 1, 1, 6))
    close(fused(x, training=True), stock(x, training=True))
    close(fused.moving_variance, stock.moving_variance)


def test_it_compiles_with_xla():
    fused, stock = pair()
    compiled = tf.function(lambda x: step(fused, x), jit_compile=True)
    ours, theirs = compiled(inputs()), step(stock, inputs())
    close(ours[0], theirs[0])
    close(ours[1][0], theirs[1][0])
    close(fused.moving_variance, stock.moving_variance)


def test_saved_and_loaded_it_is_the_same_layer(tmp_path):
    image = keras.Input((3, 5, 6))
    layer = FusedBatchNormalization(momentum=0.8, epsilon=1e-4, name="norm")
    model = keras.Model(image, layer(image))
    model(inputs(), training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    twin = loaded.get_layer("norm")
    assert type(twin) is FusedBatchNormalization
    assert (twin.momentum, twin.epsilon) == (0.8, 1e-4)
    np.testing.assert_array_equal(model(inputs()), loaded(inputs()))


def equal_layers(ours, theirs, shape):
    for layer in (ours, theirs):
        layer.build(shape)
    random = np.random.default_rng(3)
    ours.set_weights([random.uniform(0.5, 2.0, w.shape) for w in ours.weights])
    theirs.set_weights(ours.get_weights())


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.3}, {"axis": 1}, {"center": False}])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_layer_normalisation_and_its_gradients_equal_keras(options, dtype):
    ours, theirs = (
        kind(**options, dtype=dtype)
        for kind in (LayerNormalization, keras.layers.LayerNormalization)
    )
    equal_layers(ours, theirs, (4, 3, 8))
    x = inputs((4, 3, 8), ours.compute_dtype)
    found, expected = step(ours, x), step(theirs, x)
    assert found[0].dtype == expected[0].dtype == ours.compute_dtype
    close(found[0], expected[0])
    for a, b in zip(found[1], expected[1], strict=True):
        close(a, b, 1e-5 if dtype == "float32" else 2e-2)
    compiled = tf.function(lambda x: step(ours, x), jit_compile=True)(x)
    for a, b in zip(compiled[1], expected[1], strict=True):
        close(a, b, 1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("bias", [False, True])
def test_a_pointwise_convolution_and_its_gradients_equal_keras(bias):
    ours = PointwiseConv2D(5, use_bias=bias, activation="relu")
    theirs = keras.layers.Conv2D(5, 1, use_bias=bias, activation="relu")
    equal_layers(ours, theirs, SHAPE)
    x = inputs()
    assert ours(keras.Input(SHAPE[1:])).shape == (None, *SHAPE[1:3], 5)
    found, expected = step_of(ours, x), step_of(theirs, x)
    for a, b in zip(found, expected, strict=True):
        close(a, b)
    with pytest.raises(ValueError, match=r"got kernel_size=\(1, 1\), strides=\(2, 2\)"):
        PointwiseConv2D(5, strides=2)


def step_of(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(y**3)
    return [y, *tape.gradient(loss, [x, *(w.value for w in layer.trainable_weights)])]


@pytest.mark.parametrize("shape", [(1000, 37), (3, 41, 23)])
def test_dropout_drops_its_share_keeps_the_mean_and_goes_on_from_its_state(shape):
    layer = Dropout(0.3, seed=1)
    x = tf.ones(shape)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    share = round(0.3 * 65_536) / 65_536
    assert set(np.unique(y)) == {0.0, np.float32(1 / (1 - share))}
    spread = (0.3 * 0.7 / x.shape.num_elements()) ** 0.5
    assert abs(float(tf.reduce_mean(tf.cast(y == 0, tf.float32))) - 0.3) < 4 * spread
    np.testing.assert_array_equal(tape.gradient(y, x), y)  # of ones
    state = layer.seed_generator.state.numpy()
    second = layer(x, training=True)
    assert not np.array_equal(y, second)
    layer.seed_generator.state.assign(state)
    np.testing.assert_array_equal(layer(x, training=True), second)
    np.testing.assert_array_equal(layer(x), x)
    np.testing.assert_array_equal(Dropout(0.0)(x, training=True), x)
    assert not np.asarray(Dropout(1.0, seed=0)(x, training=True)).any()


def test_faster_layers_are_saved_and_loaded(tmp_path):
    x = y = keras.Input((4, 4, 3))
    for layer in (PointwiseConv2D(6), LayerNormalization(), Dropout(0.5, seed=2)):
        y = layer(y)
    model = keras.Model(x, y)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    batch = inputs((2, 4, 4, 3))
    np.testing.assert_array_equal(again(batch), model(batch))
    assert [type(layer) for layer in again.layers] == [type(layer) for layer in model.layers]


def test_drop_path_leaves_out_whole_examples_and_keeps_the_mean():
    layer = DropPath(0.25, seed=1)
    x = np.random.default_rng(0).uniform(1, 2, (4000, 2, 3, 1)).astype("float32")
    y = np.asarray(layer(x, training=True))
    kept = y[:, 0, 0, 0] != 0
    np.testing.assert_allclose(y[kept], x[kept] / 0.75, rtol=1e-6)
    assert not y[~kept].any()
    assert abs(kept.mean() - 0.75) < 0.03  # more than 4 standard deviations
    again = np.asarray(layer(x, training=True))[:, 0, 0, 0] != 0
    assert (kept != again).any()
    np.testing.assert_array_equal(layer(x), x)
    np.testing.assert_array_equal(DropPath(0.0)(x, training=True), x)
    with pytest.raises(ValueError, match="probability"):
        DropPath(1.0)


def test_drop_path_goes_on_where_its_state_was_restored():
    """The draws are a function of a variable: what a resumed training restores."""
    x = np.ones((64, 2), "float32")
    image = keras.Input((2,))
    model = keras.Model(image, DropPath(0.5, seed=3)(image))
    model(x, training=True)
    state = [v.numpy() for v in model.variables]
    assert state
    following = [np.asarray(model(x, training=True)) for _ in range(2)]
    twin = keras.Model(image, DropPath(0.5, seed=9)(image))
    for variable, value in zip(twin.variables, state, strict=True):
        variable.assign(value)
    for expected in following:
        np.testing.assert_array_equal(twin(x, training=True), expected)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
def test_drop_path_in_mixed_precision_under_xla_saved_and_loaded(policy, tmp_path):
    image = keras.Input((3, 5, 6))
    model = keras.Model(image, DropPath(0.5, seed=2, dtype=policy, name="drop")(image))
    compiled = tf.function(lambda x: model(x, training=True), jit_compile=True)
    y = compiled(inputs())
    assert y.dtype == ("bfloat16" if policy == "mixed_bfloat16" else "float32")
    model.save(tmp_path / "m.keras")
    twin = keras.saving.load_model(tmp_path / "m.keras").get_layer("drop")
    assert (type(twin), twin.rate, twin.seed) == (DropPath, 0.5, 2)
