"""BERT: counts, equations of every head, masks, training."""

import inspect
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import bert, create_model
from epochal.models.losses import CrossEntropy
from epochal.models.metrics import Accuracy
from epochal.models.summary import table

TINY = {"vocabulary_size": 11, "width": 8, "layers": 2, "heads": 2, "hidden": 12, "context": 12}
CLASSES = {"classification": 3, "tokens": 4}


def trainable(model) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def counted(**options) -> int:
    takes = inspect.signature(bert.count).parameters
    return bert.count(**{k: v for k, v in options.items() if k in takes and v is not None})


def uneven(model, seed=0):
    """Biases start at 0 and scales at 1, which would hide them."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=w.shape) * 0.5 for w in model.get_weights()])
    return model


def texts(n, t, seed=0):
    """Ids padded on the right, and the segments of two sentences."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 11, size=(n, t)).astype("int32")
    segments = np.zeros_like(ids)
    for row, kind, size in zip(ids, segments, rng.integers(2, t + 1, size=n), strict=True):
        row[size:], kind[size // 2 : size] = 0, 1
    return ids, segments


def made(head, inputs=("ids",), **options):
    given = {**TINY, "head": head, "num_classes": CLASSES.get(head), "inputs": inputs, **options}
    return uneven(bert.BERT(**given))


@pytest.mark.parametrize(
    ("size", "encoder", "pretraining"),
    [
        ("tiny", 4_385_920, 4_433_468),
        ("mini", 11_170_560, 11_267_900),
        ("small", 28_763_648, 29_058_876),
        ("medium", 41_373_184, 41_668_412),
        ("base", 109_482_240, 110_106_428),
        ("large", 335_141_888, 336_226_108),
    ],
)
def test_counts_of_the_papers(size, encoder, pretraining):
    options = {"vocabulary_size": 30_522, **getattr(bert, f"bert_{size}").keywords}
    assert counted(**options) == encoder
    assert counted(**options, head="pretraining") == pretraining
    assert options["width"] // options["heads"] == 64


@pytest.mark.parametrize("head", bert.HEADS)
def test_the_count_is_that_of_the_built_model(head):
    rng = np.random.default_rng(len(head))
    for _ in range(2):
        heads = int(rng.integers(1, 4))
        options = {
            "vocabulary_size": int(rng.integers(2, 90)),
            "width": heads * int(rng.integers(1, 7)),
            "layers": int(rng.integers(1, 4)),
            "heads": heads,
            "hidden": int(rng.integers(1, 40)),
            "context": int(rng.integers(1, 30)),
            "segments": int(rng.integers(1, 4)),
            "num_classes": CLASSES.get(head),
            "head": head,
        }
        assert trainable(bert.BERT(**options)) == counted(**options)


def test_bert_base_built():
    model = create_model("bert-base", vocabulary_size=30_522, head="pretraining", seed=0)
    assert trainable(model) == 110_106_428


def test_weights_start_as_the_authors_do():
    model = bert.BERT(400, width=64, layers=2, heads=4, context=200, head="pretraining", seed=0)
    for weight in model.trainable_weights:
        kind = weight.path.rpartition("/")[2]
        if kind in ("kernel", "embeddings") and weight.shape[0] > 2:
            assert np.abs(weight).max() <= 0.0401, weight.path
            assert np.std(weight) == pytest.approx(0.02 * 0.88, rel=0.15), weight.path
        elif kind in ("beta", "bias"):
            assert not np.any(weight)


def test_the_table_counts_multiply_adds():
    model = bert.BERT(**TINY, head="classification", num_classes=3, length=5)
    t, d, h = 5, 8, 12
    block = 4 * t * d * d + 2 * t * t * d + 2 * t * d * h
    costs = [row.multiply_adds for row in table(model).rows if row.multiply_adds]
    assert costs == [block] * 2 + [d * d, d * 3]
    assert table(model).complete


# --- The equations ----------------------------------------------------------------------------


def erf_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def dense(layer, x):
    return x @ layer.kernel.numpy().astype("float64") + layer.bias.numpy()


def norm(layer, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * layer.gamma.numpy() + layer.beta.numpy()


def numpy_encoder(model, ids, segments):
    """Vectors of one text [t], padding included, in float64; weights found by name."""
    options = model.get_config()
    tables = [
        model.get_layer(f"{name}").embeddings.numpy().astype("float64")
        for name in ("embedding", "segment_embedding", "position_embedding")
    ]
    x = tables[0][ids] + tables[1][segments] + tables[2][: len(ids)]
    x = norm(model.get_layer("embedding_norm"), x)
    for i in range(options["layers"]):
        b = model.get_layer(f"block_{i + 1}")
        a, out = b.attention, []
        q, k, v = dense(a.query, x), dense(a.key, x), dense(a.value, x)
        for qh, kh, vh in zip(*(np.split(m, options["heads"], -1) for m in (q, k, v)), strict=True):
            scores = np.where(ids != 0, qh @ kh.T / np.sqrt(qh.shape[-1]), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ vh)
        x = norm(b.attention_norm, x + dense(a.project, np.concatenate(out, -1)))
        x = norm(b.dense_norm, x + dense(b.contract, erf_gelu(dense(b.expand, x))))
    return x


def numpy_answer(model, ids, segments, positions=None):
    """What the head answers to one text."""
    x, head = numpy_encoder(model, ids, segments), model.get_config()["head"]
    layer = model.get_layer
    if head == "embedding":
        mean = x[ids != 0].mean(0)
        return mean / np.linalg.norm(mean)
    if head == "tokens":
        return dense(layer("outputs"), x)
    if head in ("mlm", "pretraining"):
        y = x if positions is None else x[positions]
        y = norm(layer("mlm_norm"), erf_gelu(dense(layer("mlm_dense"), y)))
        words = y @ layer("embedding").embeddings.numpy().T + layer("embedding").bias.numpy()
        if head == "mlm":
            return words
    pooled = np.tanh(dense(layer("pooler").dense, x[0]))
    if head == "classification":
        return dense(layer("outputs"), pooled)
    if head == "pretraining":
        return {"mlm": words, "nsp": dense(layer("nsp"), pooled)}
    return {"hidden": x, "pooled": pooled}


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("head", bert.HEADS)
def test_it_equals_the_paper_in_numpy(head, segmented):
    model = made(head, ("ids", "segments") if segmented else ("ids",))
    ids, segments = texts(4, 7)
    found = model({"ids": ids, "segments": segments} if segmented else ids)
    segments = segments if segmented else 0 * segments
    right = [numpy_answer(model, *row) for row in zip(ids, segments, strict=True)]
    for key in found if isinstance(found, dict) else [None]:
        one = found if key is None else found[key]
        assert one.dtype == tf.float32
        expected = np.stack([row if key is None else row[key] for row in right])
        np.testing.assert_allclose(one, expected, atol=1e-5, rtol=1e-5)


def test_words_can_be_told_where_they_are_hidden_alone():
    model = made("pretraining", ("ids", "segments", "positions"))
    ids, segments = texts(3, 7)
    positions = np.array([[1, 2], [1, 0], [0, 0]], "int32")
    found = model({"ids": ids, "segments": segments, "positions": positions})
    for row in range(3):
        right = numpy_answer(model, ids[row], segments[row], positions[row])
        np.testing.assert_allclose(found["mlm"][row], right["mlm"], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(found["mlm"]._keras_mask, positions != 0)


@pytest.mark.parametrize("head", bert.HEADS)
def test_padding_changes_nothing(head):
    model = made(head)
    ids, _ = texts(4, 7)
    before, after = model(ids), model(np.pad(ids, ((0, 0), (0, 3))))
    for one, other in zip(tf.nest.flatten(before), tf.nest.flatten(after), strict=True):
        one, other = one.numpy(), other.numpy()[:, : one.shape[1]]
        real = ids != 0 if one.ndim == 3 else slice(None)
        np.testing.assert_allclose(other[real], one[real], atol=1e-5)
        if one.ndim == 3:
            found = before if head != "pretraining" else before["mlm"]
            found = before["hidden"] if head == "encoder" else found
            np.testing.assert_array_equal(found._keras_mask, real)
    changed = ids.copy()
    changed[:, 1] = 1 + changed[:, 1] % 10
    for one, other in zip(tf.nest.flatten(before), tf.nest.flatten(model(changed)), strict=True):
        assert np.abs(other.numpy() - one.numpy()).max() > 1e-3


def test_a_text_without_tokens_is_answered_whatever_its_batch():
    """Finite numbers with finite gradients, which no other text's length changes."""
    for head in bert.HEADS:
        model = made(head)
        short, long = (tf.nest.flatten(model(np.zeros((1, t), "int32"))) for t in (2, 9))
        for one, other in zip(short, long, strict=True):
            np.testing.assert_allclose(other[:, :1], one[:, :1], atol=1e-6)
        with tf.GradientTape() as tape:
            found = tf.nest.flatten(model(np.zeros((1, 3), "int32"), training=True))
            loss = tf.add_n([tf.reduce_sum(part) for part in found])
        for gradient in tape.gradient(loss, [w.value for w in model.trainable_weights]):
            assert gradient is None or np.all(np.isfinite(tf.convert_to_tensor(gradient)))


# --- Training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("head", bert.HEADS)
def test_gradient_reaches_every_weight(head):
    model = made(head, ("ids", "segments"))
    ids, segments = texts(16, 12)
    with tf.GradientTape() as tape:
        found = tf.nest.flatten(model({"ids": ids, "segments": segments}, training=True))
        weigh = np.random.default_rng(0).normal
        loss = tf.add_n([tf.reduce_sum(one * weigh(size=one.shape)) for one in found])
    gradients = tape.gradient(loss, [w.value for w in model.trainable_weights])
    for gradient, weight in zip(gradients, model.trainable_weights, strict=True):
        assert gradient is not None, f"no gradient for {weight.path}"
        size = np.abs(tf.convert_to_tensor(gradient)).max()
        assert np.isfinite(size)
        # The same number added to all scores of a query changes no weight: its gradient is 0.
        assert (size > 1e-4) != weight.path.endswith("key/bias"), weight.path


@pytest.mark.parametrize("head", bert.HEADS)
def test_saved_and_loaded_it_answers_the_same(head, tmp_path):
    options = {"pad_id": 3, "activation": "gelu_tanh", "attention_dropout": 0.2, "epsilon": 1e-6}
    model = made(head, ("ids", "segments"), **options)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.get_config() == model.get_config()
    x = dict(zip(("ids", "segments"), texts(3, 6), strict=True))
    for one, other in zip(tf.nest.flatten(model(x)), tf.nest.flatten(loaded(x)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_step_in_bfloat16():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = bert.BERT(**TINY, head="pretraining", inputs=bert.INPUTS, seed=0)
    finally:
        keras.config.set_dtype_policy("float32")
    ids, segments = texts(8, 6)
    positions = np.tile([[1, 0]], (8, 1)).astype("int32")
    x = {"ids": ids, "segments": segments, "positions": positions}
    y = {"mlm": np.tile([[4, 0]], (8, 1)).astype("int32"), "nsp": np.arange(8) % 2}
    losses = {"mlm": CrossEntropy(), "nsp": CrossEntropy()}
    model.compile("sgd", losses, jit_compile=False)
    before = model.get_weights()
    model.train_on_batch(x, y)
    for old, weight in zip(before, model.weights, strict=True):
        assert weight.dtype == "float32"
        assert np.all(np.isfinite(weight.numpy()))
        assert weight.path.endswith("key/bias") or not np.array_equal(old, weight.numpy())
    assert all(one.dtype == tf.float32 for one in model(x).values())
    assert model.get_layer("block_2").attention.query.compute_dtype == "bfloat16"


def test_a_seed_decides_weights_and_dropout():
    ids, _ = texts(3, 6)
    one, same, other = (bert.BERT(**TINY, num_classes=2, seed=seed) for seed in (1, 1, 2))
    for _ in range(2):
        np.testing.assert_array_equal(one(ids, training=True), same(ids, training=True))
    assert not np.allclose(one(ids, training=True), one(ids))
    assert not np.allclose(one(ids), other(ids))


def test_a_small_one_learns_which_of_two_words_stands_first():
    """Not to be told from the words alone: positions and attention must work."""
    rng = np.random.default_rng(0)
    ids = np.where(rng.random((3_200, 8)) < 0.5, 5, 6).astype("int32")
    ids[:, 0] = 1
    for row in ids:
        row[1 + rng.permutation(7)[:2]] = 3, 4
    first = np.argmax((ids == 3) | (ids == 4), axis=1)
    labels = (ids[np.arange(len(ids)), first] == 4).astype("int32")
    options = {"width": 32, "layers": 2, "heads": 4, "dropout": 0.0, "context": 8}
    model = bert.BERT(7, **options, num_classes=2, seed=0)
    model.compile(
        keras.optimizers.Adam(0.001), CrossEntropy(), metrics=[Accuracy()], jit_compile=False
    )
    model.fit(ids[:3_000], labels[:3_000], batch_size=32, epochs=4, shuffle=False, verbose=0)
    assert model.evaluate(ids[3_000:], labels[3_000:], verbose=0)[1] > 0.9


def test_bad_options_are_refused():
    for options, words in (
        ({"layers": 0}, "at least 1"),
        ({"pad_id": 11}, "pad_id"),
        ({"heads": 3}, "do not divide"),
        ({"head": "regression"}, "encoder, mlm, pretraining"),
        ({"head": "tokens"}, "num_classes must be at least 1"),
        ({"head": "mlm", "num_classes": 3}, "has no classes"),
        ({"inputs": ("ids", "positions")}, "ids and more of ids, segments for encoder"),
        ({"inputs": ("segments",)}, "inputs must be ids"),
    ):
        with pytest.raises(ValueError, match=words):
            bert.BERT(**{**TINY, **options})
    model = bert.BERT(**TINY)
    with pytest.raises(ValueError, match="13 tokens are more than the 12 positions"):
        model(np.ones((1, 13), "int32"))
