"""Token embeddings and sinusoidal positions against their formulas."""

import keras
import numpy as np
import tensorflow as tf

from epochal.models.embeddings import SinusoidalPositions, TokenEmbedding


def test_ids_become_scaled_rows_and_rows_become_logits():
    layer = TokenEmbedding(7, 4, scale=2.0)
    ids = np.array([[3, 1, 0], [6, 0, 0]], "int32")
    found = layer(ids)
    matrix = layer.embeddings.numpy()
    np.testing.assert_allclose(found, 2 * matrix[ids], rtol=1e-6)
    np.testing.assert_array_equal(found._keras_mask, ids != 0)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    np.testing.assert_allclose(layer(x, reverse=True), x @ matrix.T, atol=1e-6)
    assert len(layer.weights) == 1


def test_the_mask_of_what_goes_in_comes_out_with_the_logits():
    layer = TokenEmbedding(7, 4)
    ids = keras.Input((None,), dtype="int32")
    model = keras.Model(ids, layer(keras.layers.Dense(4)(layer(ids)), reverse=True))
    logits = model(np.array([[3, 1, 0]], "int32"))
    assert logits.shape == (1, 3, 7)
    np.testing.assert_array_equal(logits._keras_mask, [[True, True, False]])


def test_in_bfloat16_the_logits_are_float32():
    layer = TokenEmbedding(7, 4, scale=3.0, dtype="mixed_bfloat16")
    vectors = layer(np.array([[1, 2]], "int32"))
    assert vectors.dtype == tf.bfloat16
    assert layer.embeddings.dtype == "float32"
    assert layer(vectors, reverse=True).dtype == tf.float32


def test_positions_are_the_papers_sines_and_cosines():
    width, steps = 6, 50
    layer = SinusoidalPositions()
    zeros = np.zeros((1, steps, width), "float32")
    expected = np.zeros((steps, width))
    for p in range(steps):
        for i in range(width // 2):
            angle = p / 10_000 ** (2 * i / width)
            expected[p, 2 * i], expected[p, 2 * i + 1] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(layer(zeros)[0], expected, atol=1e-5)
    np.testing.assert_allclose(layer(zeros[:, :3], position=20)[0], expected[20:23], atol=1e-5)
    x = np.random.default_rng(0).normal(size=(2, 5, width)).astype("float32")
    np.testing.assert_allclose(layer(x) - x, np.stack([expected[:5]] * 2), atol=1e-5)


def test_an_odd_width_ends_with_a_sine():
    zeros = np.zeros((1, 4, 5), "float32")
    last = SinusoidalPositions()(zeros)[0, :, 4]
    np.testing.assert_allclose(last, np.sin(np.arange(4) / 10_000 ** (4 / 5)), atol=1e-6)
