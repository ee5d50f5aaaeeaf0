"""Activations against the formulas of their papers, compiled in training, plain in inference."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import norm

from epochal.models import activations
from epochal.models.activations import gelu, gelu_tanh, relu

# The tanh of TensorFlow is 1 a little early: a few 1e-6 in the slope at -5.
WITHIN = {"float64": 1e-13, "float32": 5e-6, "bfloat16": 5e-3, "float16": 1e-3}


def by_erf(z):
    """GELU and its derivative."""
    return z * norm.cdf(z), norm.cdf(z) + z * norm.pdf(z)


def by_tanh(z):
    """The approximation, and its derivative."""
    bent = np.tanh((2 / np.pi) ** 0.5 * (z + 0.044715 * z**3))
    slope = (2 / np.pi) ** 0.5 * (1 + 3 * 0.044715 * z**2)
    return z * (1 + bent) / 2, (1 + bent) / 2 + z * (1 - bent**2) / 2 * slope


@pytest.fixture(params=[True, False], ids=["xla", "no xla"])
def with_xla(request, monkeypatch):
    monkeypatch.setattr(activations, "_xla_is_here", lambda: request.param)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize(("ours", "formula"), [(gelu, by_erf), (gelu_tanh, by_tanh)])
def test_gelu_and_its_gradient_equal_their_formulas(ours, formula, dtype, training, with_xla):
    x = tf.cast(tf.concat([np.linspace(-9, 9, 2_002), [0.0, -40.0, 40.0]], 0), dtype)
    x = tf.reshape(x, [5, 401])
    upstream = tf.cast(tf.math.sin(tf.range(5 * 401, dtype=tf.float32)) + 2, dtype)
    upstream = tf.reshape(upstream, x.shape)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = ours(x, training=training)
    found = y, tape.gradient(y, x, upstream)
    z, g = (np.asarray(tf.cast(value, tf.float64)) for value in (x, upstream))
    value, slope = formula(z)
    for a, b in zip(found, (value, g * slope), strict=True):
        assert (a.dtype, a.shape) == (dtype, (5, 401))
        a = np.asarray(tf.cast(a, tf.float64))
        np.testing.assert_allclose(a, b, rtol=WITHIN[dtype], atol=WITHIN[dtype] * np.abs(b).max())


def test_gelu_equals_that_of_keras_and_relu_too():
    x = tf.random.stateless_normal([3, 7], (0, 1))
    for training in (True, False):
        np.testing.assert_allclose(gelu(x, training), keras.ops.gelu(x, False), rtol=1e-6)
        np.testing.assert_allclose(gelu_tanh(x, training), keras.ops.gelu(x), rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(relu(x, training), keras.ops.relu(x))


def test_shapes_that_are_not_known_beforehand_are_traced_once_for_all():
    traces = []

    @tf.function(input_signature=[tf.TensorSpec([None, None, 4])])
    def step(x):
        traces.append(None)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = gelu(x, training=True)
        assert y.shape.as_list() == [None, None, 4]
        return tape.gradient(y, x)

    for n in range(1, 9):
        assert step(tf.ones([n, n, 4])).shape == (n, n, 4)
    assert len(traces) == 1


def test_a_step_of_training_is_compiled_and_an_answer_is_not():
    def functions(training):
        graph = tf.function(lambda x: gelu(x, training)).get_concrete_function(tf.ones([2, 4]))
        library = graph.graph.as_graph_def().library.function
        return [f for f in library if f.attr["_XlaMustCompile"].b]

    assert activations._xla_is_here()
    assert functions(training=True)
    assert not functions(training=False)
