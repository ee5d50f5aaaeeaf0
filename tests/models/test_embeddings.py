"""Token embeddings and sinusoidal positions against their formulas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models.embeddings import (
    LearnedPositions,
    SegmentEmbedding,
    SinusoidalPositions,
    TokenEmbedding,
)


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


def test_logits_can_have_biases_and_padding_another_id():
    layer = TokenEmbedding(7, 4, pad_id=3, use_bias=True)
    ids = np.array([[3, 1, 0], [6, 3, 3]], "int32")
    right = [[True, True, True], [True, False, False]]  # elsewhere a 3 is a token
    np.testing.assert_array_equal(layer(ids)._keras_mask, right)
    layer.bias.assign(np.arange(7.0))
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    right = x @ layer.embeddings.numpy().T + np.arange(7)
    np.testing.assert_allclose(layer(x, reverse=True), right, atol=1e-6)
    twin = TokenEmbedding.from_config(layer.get_config())
    assert (twin.pad_id, twin.use_bias) == (3, True)


def test_learnt_positions_and_segments_are_added():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    positions, segments = LearnedPositions(5), SegmentEmbedding(2)
    ids = np.array([[0, 0, 1], [0, 1, 1]], "int32")
    first, late, kinds, none = positions(x), positions(x, position=2), segments(x, ids), segments(x)
    table = positions.embeddings.numpy()
    np.testing.assert_allclose(first - x, np.stack([table[:3]] * 2), atol=1e-6)
    np.testing.assert_allclose(late - x, np.stack([table[2:]] * 2), atol=1e-6)
    table = segments.embeddings.numpy()
    np.testing.assert_allclose(kinds - x, table[ids], atol=1e-6)
    np.testing.assert_allclose(none - x, np.broadcast_to(table[0], x.shape), atol=1e-6)
    with pytest.raises(ValueError, match="6 tokens are more than the 5 positions"):
        positions(x, position=3)
    for layer in (positions, segments):
        assert layer.from_config(layer.get_config()).get_config() == layer.get_config()
