"""The Transformer's block against a transcription in NumPy, over its options."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models.blocks import TransformerBlock

N, T, S, D, HEADS, HIDDEN = 2, 4, 3, 6, 2, 10
REAL = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
MEMORY = np.array([[1, 1, 0], [1, 1, 1]], bool)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def dense(layer, x):
    y = x @ layer.kernel.numpy().astype("float64")
    return y + layer.bias.numpy() if layer.use_bias else y


def norm(layer, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * layer.gamma.numpy() + layer.beta.numpy()


def attention(layer, x, memory, seen):
    """seen [n, t, s]; all heads by reshaping."""

    def heads(y):
        return y.reshape(*y.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)

    q, k, v = (
        heads(dense(la, y))
        for la, y in zip((layer.query, layer.key, layer.value), (x, memory, memory), strict=True)
    )
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(D / HEADS)
    weights = softmax(np.where(seen[:, None], scores, -np.inf))
    mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape)
    return dense(layer.project, mixed)


def erf_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {"relu": lambda x: np.maximum(x, 0), "gelu": erf_gelu, "gelu_tanh": tanh_gelu}


def transcription(block, x, memory=None, real=None, memory_real=None, causal=False):
    pre = block.norm == "pre"
    real = np.ones(x.shape[:2], bool) if real is None or causal else real
    seen = np.repeat(real[:, None], x.shape[1], axis=1)
    if causal:
        seen = seen & np.tril(np.ones((x.shape[1],) * 2, bool))

    def residual(layer, sublayer):
        return x + sublayer(norm(layer, x)) if pre else norm(layer, x + sublayer(x))

    x = residual(block.attention_norm, lambda y: attention(block.attention, y, y, seen))
    if block.cross is not None:
        seen = np.repeat(memory_real[:, None], x.shape[1], axis=1)
        x = residual(block.cross_norm, lambda y: attention(block.cross, y, memory, seen))
    act = ACTIVATIONS[block.activation]
    return residual(block.dense_norm, lambda y: dense(block.contract, act(dense(block.expand, y))))


def made(**options):
    block = TransformerBlock(HEADS, HIDDEN, **options)
    block.build((None, None, D))
    rng = np.random.default_rng(0)
    block.set_weights([rng.normal(size=w.shape) for w in block.get_weights()])
    return block


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "gelu", "attention_bias": True},
        {"norm": "pre", "activation": "gelu_tanh", "causal": True, "attention_bias": True},
        {"causal": True, "cross": True},
        {"norm": "pre", "cross": True},
    ],
    ids=["transformer-encoder", "bert", "gpt", "transformer-decoder", "pre-cross"],
)
def test_it_equals_the_transcription(options):
    block = made(**options)
    x, memory = random(N, T, D), random(N, S, D, seed=1)
    given = {"mask": tf.constant(REAL)}
    right = {"real": REAL, "causal": options.get("causal", False)}
    if options.get("cross"):
        given |= {"memory": memory, "memory_mask": tf.constant(MEMORY)}
        right |= {"memory": memory, "memory_real": MEMORY}
    np.testing.assert_allclose(block(x, **given), transcription(block, x, **right), atol=2e-5)


def test_masks_travel_with_the_activations():
    """Given as Keras masks they do what they do as arguments, and go on to the next layer."""
    block, decoder = made(), made(causal=True, cross=True)
    x, memory = tf.constant(random(N, T, D)), tf.constant(random(N, S, D, seed=1))
    masking = keras.layers.Masking(mask_value=7.0)
    x = tf.where(REAL[..., None], x, 7.0)
    memory = tf.where(MEMORY[..., None], memory, 7.0)
    y = block(masking(x))
    explicit = block(x, mask=tf.constant(REAL))
    np.testing.assert_array_equal(y.numpy()[REAL], explicit.numpy()[REAL])
    assert not np.allclose(y.numpy()[REAL], block(x).numpy()[REAL])
    np.testing.assert_array_equal(y._keras_mask, REAL)
    z = decoder(y, memory=masking(memory))
    explicit = decoder(tf.identity(y), memory=memory, memory_mask=tf.constant(MEMORY))
    np.testing.assert_array_equal(z, explicit)


def test_token_by_token_with_a_cache_is_all_at_once():
    block = made(causal=True, cross=True, norm="pre")
    x, memory = random(N, T, D), random(N, S, D, seed=1)
    whole = block(x, memory=memory, memory_mask=tf.constant(MEMORY))
    pair = block.cross.keys_values(tf.constant(memory))
    cache = [tf.zeros([N, HEADS, 0, D // HEADS])] * 2
    for t in range(T):
        y, cache = block(x[:, t : t + 1], memory=pair, memory_mask=tf.constant(MEMORY), cache=cache)
        np.testing.assert_allclose(y[:, 0], whole[:, t], atol=1e-5)


def test_dropout_acts_where_the_paper_has_it():
    """On each sub-layer's output before the sum: with everything dropped x is left."""
    block = made(norm="pre", cross=True, dropout=0.999999, seed=0)
    x, memory = random(N, T, D), random(N, S, D, seed=1)
    np.testing.assert_allclose(block(x, memory=memory, training=True), x, atol=1e-6)
    assert not np.allclose(block(x, memory=memory), x)


def test_residual_kernels_can_start_smaller():
    block = TransformerBlock(
        2,
        800,
        cross=True,
        initializer=keras.initializers.RandomNormal(stddev=0.02),
        residual_initializer=keras.initializers.RandomNormal(stddev=0.002),
        seed=0,
    )
    block.build((None, None, 200))
    small = (block.attention.project, block.cross.project, block.contract)
    large = (block.attention.query, block.cross.key, block.attention.value, block.expand)
    for layers, stddev in ((small, 0.002), (large, 0.02)):
        for layer in layers:
            assert np.std(layer.kernel) == pytest.approx(stddev, rel=0.03)
    kernels = [la.kernel.numpy().ravel()[:9] / np.std(la.kernel) for la in (*small, *large)]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)


def test_config_round_trips():
    block = TransformerBlock(
        2,
        8,
        norm="pre",
        activation="gelu",
        causal=True,
        cross=True,
        attention_bias=True,
        dropout=0.1,
        attention_dropout=0.2,
        epsilon=1e-5,
        initializer=keras.initializers.RandomNormal(stddev=0.02),
        seed=3,
        dtype="mixed_bfloat16",
    )
    twin = TransformerBlock.from_config(block.get_config())
    assert twin.get_config() == block.get_config()
    for layer in (block, twin):
        layer.build((None, None, 4))
    for one, other in zip(block.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert twin.attention.query.compute_dtype == "bfloat16"
    x = twin(random(1, 2, 4), memory=random(1, 2, 4))
    assert x.dtype == tf.bfloat16


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="post, pre and activation"):
        TransformerBlock(2, 8, norm="middle")
    with pytest.raises(ValueError, match="relu, gelu, gelu_tanh"):
        TransformerBlock(2, 8, activation="tanh")
