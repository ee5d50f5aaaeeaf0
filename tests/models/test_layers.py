"""The fused batch normalisation against Keras's layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models.layers import FusedBatchNormalization

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
