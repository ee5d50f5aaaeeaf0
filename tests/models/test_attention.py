"""Attention layers against transcriptions in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models.attention import GlobalAttention, MultiHeadAttention

N, T, S, D, HEADS = 2, 4, 5, 6, 3
REAL = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)  # of the S positions of a memory


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def dense(layer, x):
    y = x @ layer.kernel.numpy().astype("float64")
    return y + layer.bias.numpy() if layer.use_bias else y


def multi_head(layer, x, memory, real, causal=False):
    """One head after the other, one query after the other."""
    q, k, v = dense(layer.query, x), dense(layer.key, memory), dense(layer.value, memory)
    width = D // layer.heads
    mixed = np.zeros_like(q)
    for n in range(len(x)):
        for head in range(layer.heads):
            columns = slice(head * width, (head + 1) * width)
            for i in range(x.shape[1]):
                see = [j for j in range(memory.shape[1]) if real[n, j] and not (causal and j > i)]
                weights = softmax(k[n, see, columns] @ q[n, i, columns] / np.sqrt(width))
                mixed[n, i, columns] = weights @ v[n, see, columns]
    return dense(layer.project, mixed)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomised(layer, seed=0):
    """Biases start at 0, which would hide them."""
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("kind", ["self", "causal", "memory"])
def test_multi_head_attention_equals_loops(kind, use_bias):
    x = random(N, S, D) if kind != "memory" else random(N, T, D)
    memory = random(N, S, D, seed=1) if kind == "memory" else None
    layer = MultiHeadAttention(HEADS, causal=kind == "causal", use_bias=use_bias)
    layer.build((None, None, D))
    randomised(layer)
    assert len(layer.weights) == (8 if use_bias else 4)
    found = layer(x, memory=memory, key_mask=tf.constant(REAL))
    right = multi_head(layer, x, x if memory is None else memory, REAL, kind == "causal")
    # In a causal row 0 of padding only the first positions are real: every query sees some.
    np.testing.assert_allclose(found, right, atol=1e-5)
    unmasked = layer(x, memory=memory)
    right = multi_head(
        layer, x, x if memory is None else memory, np.ones_like(REAL), kind == "causal"
    )
    np.testing.assert_allclose(unmasked, right, atol=1e-5)


def test_keys_and_values_can_be_made_once():
    layer = MultiHeadAttention(HEADS)
    x, memory = random(N, T, D), random(N, S, D, seed=1)
    whole = layer(x, memory=memory, key_mask=tf.constant(REAL))
    pair = layer.keys_values(tf.constant(memory))
    assert pair[0].shape == (N, HEADS, S, D // HEADS)
    np.testing.assert_array_equal(whole, layer(x, memory=pair, key_mask=tf.constant(REAL)))


def test_a_cache_is_the_past():
    layer = randomised_causal()
    x = random(N, 6, D)
    whole = layer(x)
    cache = [tf.zeros([N, HEADS, 0, D // HEADS])] * 2
    parts = []
    for piece in (x[:, :2], x[:, 2:3], x[:, 3:6]):
        y, cache = layer(piece, cache=cache)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-6)
    assert cache[0].shape == (N, HEADS, 6, D // HEADS)


def test_a_row_of_padding_alone_does_not_depend_on_its_length():
    """It sees its first position, however much padding follows."""
    x, nothing = random(1, S, D), tf.zeros([1, S], tf.bool)
    for layer in (MultiHeadAttention(HEADS), GlobalAttention("additive", D)):
        long, short = (layer(x[:, :1], x[:, :size], key_mask=nothing[:, :size]) for size in (S, 2))
        long, short = (part[0] if isinstance(part, tuple) else part for part in (long, short))
        only = layer(x[:, :1], x[:, :1])
        np.testing.assert_allclose(long, short, atol=1e-6)
        np.testing.assert_allclose(long, only[0] if isinstance(only, tuple) else only, atol=1e-6)


def test_a_window_hides_what_is_further_away():
    layer = MultiHeadAttention(HEADS, causal=True, window=2, use_bias=True)
    layer.build((None, None, D))
    randomised(layer)
    x = random(N, 6, D)
    whole = layer(x).numpy()
    for i in range(6):  # alone with the one before it
        pair = layer(x[:, max(0, i - 1) : i + 1])[:, -1]
        np.testing.assert_allclose(pair, whole[:, i], atol=1e-5)
    cache = [tf.zeros([N, HEADS, 0, D // HEADS])] * 2
    for piece in (slice(0, 1), slice(1, 2), slice(2, 5), slice(5, 6)):
        y, cache = layer(x[:, piece], cache=cache)
        np.testing.assert_allclose(y, whole[:, piece], atol=1e-5)
    for options in ({"window": 0, "causal": True}, {"window": 2}):
        with pytest.raises(ValueError, match="at least 1 position of the past"):
            MultiHeadAttention(HEADS, **options)


def randomised_causal():
    layer = MultiHeadAttention(HEADS, causal=True, use_bias=True)
    layer.build((None, None, D))
    return randomised(layer)


def test_what_is_masked_changes_nothing():
    """Not a bit: weights are exactly 0, however large the values are."""
    layer = randomised_causal()
    x, other = random(N, S, D), random(N, S, D, seed=2) * 100
    changed = np.where(REAL[..., None], x, other)
    before, after = (layer(v, key_mask=tf.constant(REAL)).numpy() for v in (x, changed))
    np.testing.assert_array_equal(before[REAL], after[REAL])
    future = np.concatenate([x[:, :3], other[:, 3:]], axis=1)
    before, after = layer(x).numpy(), layer(future).numpy()
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.allclose(before[:, 3:], after[:, 3:])


def test_a_row_without_anything_real_stays_finite():
    layer = randomised_causal()
    nothing = tf.zeros([N, S], tf.bool)
    assert np.isfinite(layer(random(N, S, D), key_mask=nothing)).all()


def test_dropout_acts_on_weights_in_training():
    layer = MultiHeadAttention(HEADS, dropout=0.5, seed=3)
    x = random(N, S, D)
    plain = layer(x).numpy()
    assert not np.allclose(layer(x, training=True), plain)
    np.testing.assert_array_equal(layer(x), plain)


def test_heads_have_to_divide_the_width():
    with pytest.raises(ValueError, match="4 heads do not divide a width of 6"):
        MultiHeadAttention(4).build((None, None, 6))


def test_seeds_and_initializers():
    options = {"initializer": keras.initializers.RandomNormal(stddev=0.02)}
    one, same, other = (
        MultiHeadAttention(HEADS, **options, output_initializer="zeros", seed=seed)
        for seed in (0, 0, 1)
    )
    for layer in (one, same, other):
        layer.build((None, None, 300))
    np.testing.assert_array_equal(one.query.kernel, same.query.kernel)
    assert not np.allclose(one.query.kernel, other.query.kernel)
    assert not np.allclose(one.query.kernel, one.key.kernel)
    assert np.std(one.value.kernel) == pytest.approx(0.02, rel=0.02)
    assert not np.any(one.project.kernel)


@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_global_attention_equals_the_papers_formulas(kind):
    layer = GlobalAttention(kind, width=7)
    query = random(N, T, 7 if kind == "multiplicative" else 3)
    memory = random(N, S, D, seed=1)
    layer.build(query.shape, memory.shape)
    randomised(layer)
    u = layer.memory_kernel.numpy().astype("float64")
    means, weights = np.zeros((N, T, D)), np.zeros((N, T, S))
    for n in range(N):
        for t in range(T):
            see = np.flatnonzero(REAL[n])
            if kind == "additive":  # Bahdanau et al., A.1.2: v tanh(W s + U h)
                w, v = layer.query_kernel.numpy(), layer.scale.numpy()[:, 0]
                scores = [np.tanh(query[n, t] @ w + memory[n, j] @ u) @ v for j in see]
            else:  # Luong et al., eq. 8, general: s W h
                scores = [query[n, t] @ (memory[n, j] @ u) for j in see]
            weights[n, t, see] = softmax(np.array(scores))
            means[n, t] = weights[n, t] @ memory[n]
    mask = tf.constant(REAL)
    found = layer(query, memory, key_mask=mask)
    np.testing.assert_allclose(found[1], weights, atol=1e-5)
    np.testing.assert_allclose(found[0], means, atol=1e-5)
    again = layer(query, memory, layer.keys(tf.constant(memory)), key_mask=mask)
    np.testing.assert_array_equal(found[0], again[0])
    assert np.all(found[1].numpy()[0, :, 3:] == 0)


@pytest.mark.parametrize("make", [lambda: MultiHeadAttention(HEADS, dropout=0.1, seed=1)])
def test_configs_round_trip(make):
    layer = make()
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()
