"""The Transformer: counts, equations, masks, decoding, training."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import create_model, transformer
from epochal.models.losses import CrossEntropy
from epochal.models.metrics import Accuracy
from epochal.models.schedules import InverseSqrt
from epochal.models.summary import table

TINY = {"vocabulary_size": 11, "width": 8, "layers": 2, "heads": 2, "hidden": 12}
ONE = {**TINY, "layers": 1}  # where a decoder is traced


def trainable(model) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def pairs(n, seed=0, low=3, words=11, shortest=2, longest=5):
    """Sources, and as targets the same words from the last to the first."""
    rng = np.random.default_rng(seed)
    source, answer = np.zeros((n, longest), "int32"), np.zeros((n, longest + 1), "int32")
    for i, size in enumerate(rng.integers(shortest, longest + 1, size=n)):
        source[i, :size] = rng.integers(low, words, size=size)
        answer[i, :size], answer[i, size] = source[i, :size][::-1], 2
    target = np.concatenate([np.ones((n, 1), "int32"), answer[:, :-1]], axis=1)
    return {"source": source, "target": np.where(answer == 0, 0, target)}, answer


def test_counts_of_the_paper():
    base, big = ({"layers": 6, "width": w, "hidden": 4 * w} for w in (512, 1024))
    assert transformer.count(37_000, **base) == 63_045_632
    assert transformer.count(37_000, **base, attention_bias=True) == 63_082_496
    assert transformer.count(37_000, **big) == 214_171_648
    assert transformer.count(37_000, **big, attention_bias=True) == 214_245_376


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("attention_bias", [False, True])
def test_the_count_is_that_of_the_built_model(norm, attention_bias):
    options = {**TINY, "norm": norm, "attention_bias": attention_bias}
    model = transformer.Transformer(**options)
    takes = inspect.signature(transformer.count).parameters
    expected = transformer.count(**{k: v for k, v in options.items() if k in takes})
    assert trainable(model) == expected


def test_paper_sizes_by_name():
    small = create_model("transformer-small", vocabulary_size=100)
    assert trainable(small) == transformer.count(100, width=128, layers=2, hidden=512)
    for name, width in (("base", 512), ("big", 1024)):
        options = getattr(transformer, f"transformer_{name}").keywords
        assert (options["width"], options["hidden"]) == (width, 4 * width)
        assert options["width"] // options["heads"] == 64


def test_the_table_counts_multiply_adds():
    model = transformer.Transformer(**TINY, length=5)
    rows = table(model).rows
    t, d, h, words = 5, 8, 12, 11
    attention, dense = 4 * t * d * d + 2 * t * t * d, 2 * t * d * h
    costs = [row.multiply_adds for row in rows if row.multiply_adds]
    assert costs == [attention + dense] * 2 + [2 * attention + dense] * 2 + [t * d * words]
    assert table(model).complete
    assert sum(row.parameters for row in rows) == trainable(model)


def numpy_forward(model, source, target):
    """The whole post-LN model in float64, from the paper's text; weights found by name."""

    def dense(layer, x):
        y = x @ layer.kernel.numpy().astype("float64")
        return y + layer.bias.numpy() if layer.use_bias else y

    def norm(layer, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * layer.gamma.numpy() + layer.beta.numpy()

    def attend(layer, x, memory, seen):
        q, k, v = dense(layer.query, x), dense(layer.key, memory), dense(layer.value, memory)
        out = []
        for qh, kh, vh in zip(*(np.split(a, layer.heads, -1) for a in (q, k, v)), strict=True):
            scores = np.where(seen, qh @ kh.T / np.sqrt(qh.shape[-1]), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ vh)
        return dense(layer.project, np.concatenate(out, -1))

    def embed(ids):
        width = matrix.shape[1]
        p, i = np.arange(len(ids))[:, None], np.arange(width // 2)
        angles = p / 10_000 ** (2 * i / width)
        places = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(len(ids), width)
        return matrix[ids] * np.sqrt(width) + places

    matrix = model.get_layer("embedding").embeddings.numpy().astype("float64")
    logits = []
    for s, t in zip(source, target, strict=True):
        x, y = embed(s), embed(t)
        for i in (1, 2):
            b = model.get_layer(f"encoder_{i}")
            x = norm(b.attention_norm, x + attend(b.attention, x, x, s != 0))
            x = norm(b.dense_norm, x + dense(b.contract, np.maximum(dense(b.expand, x), 0)))
        for i in (1, 2):
            b = model.get_layer(f"decoder_{i}")
            past = np.tril(np.ones((len(t), len(t)), bool))
            y = norm(b.attention_norm, y + attend(b.attention, y, y, past))
            y = norm(b.cross_norm, y + attend(b.cross, y, x, s != 0))
            y = norm(b.dense_norm, y + dense(b.contract, np.maximum(dense(b.expand, y), 0)))
        logits.append(y @ matrix.T)
    return np.stack(logits)


def test_it_equals_the_paper_in_numpy():
    model = transformer.Transformer(**TINY, seed=0)
    x, _ = pairs(4)
    np.testing.assert_allclose(model(x), numpy_forward(model, **x), atol=1e-5)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_padding_and_the_future_change_nothing(norm):
    model = transformer.Transformer(**TINY, norm=norm, seed=0)
    x, _ = pairs(6)
    before = model(x).numpy()
    wider = {name: np.pad(ids, ((0, 0), (0, 3))) for name, ids in x.items()}
    after = model(wider).numpy()[:, : before.shape[1]]
    np.testing.assert_allclose(after, before, atol=1e-6)
    later = x["target"].copy()
    later[:, 3:] = 7
    after = model({**x, "target": later}).numpy()
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    assert not np.allclose(after[:, 3:], before[:, 3:])
    assert np.abs(model({**x, "source": x["source"][:, ::-1]}) - before).max() > 1e-3


def test_the_loss_is_the_mean_over_real_tokens():
    model = transformer.Transformer(**TINY, dropout=0.0, seed=0)
    x, y = pairs(7)
    model.compile("sgd", CrossEntropy(label_smoothing=0.1), metrics=[Accuracy()])
    loss, accuracy = model.evaluate(x, y, verbose=0)
    z = numpy_forward(model, **x)
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    shares = 0.9 * np.eye(11)[y] + 0.1 / 11
    real = y != 0
    assert loss == pytest.approx(-(shares * logp).sum(-1)[real].mean(), abs=1e-5)
    assert accuracy == pytest.approx((z.argmax(-1) == y)[real].mean(), abs=1e-6)


def test_the_papers_schedule_is_exact():
    schedule = InverseSqrt(d_model=512)
    for t in (1, 2, 3_999, 4_000, 4_001, 100_000):  # the paper counts from 1, optimizers from 0
        exact = 512**-0.5 * min(t**-0.5, t * 4_000**-1.5)
        assert float(schedule(t - 1)) == pytest.approx(exact, rel=1e-6)


def test_gradient_reaches_every_weight():
    model = transformer.Transformer(**TINY, attention_bias=True, norm="pre", seed=0)
    x, y = pairs(16)
    with tf.GradientTape() as tape:
        loss = CrossEntropy()(y, model(x, training=True))
    gradients = tape.gradient(loss, [w.value for w in model.trainable_weights])
    for gradient, weight in zip(gradients, model.trainable_weights, strict=True):
        assert gradient is not None, f"no gradient for {weight.path}"
        size = np.abs(tf.convert_to_tensor(gradient)).max()
        assert np.isfinite(size)
        # The same number added to all scores of a query changes no weight: its gradient is 0.
        assert (size > 1e-7) != weight.path.endswith("key/bias"), weight.path


def test_a_step_in_bfloat16_and_a_saved_model_that_stays_so(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = transformer.Transformer(**TINY, dropout=0.1, seed=0)
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = pairs(8)
    model.compile("sgd", CrossEntropy(), jit_compile=False)
    before = model.get_weights()
    model.train_on_batch(x, y)
    for old, weight in zip(before, model.weights, strict=True):
        assert weight.dtype == "float32"
        assert np.isfinite(weight.numpy()).all()
        assert not np.array_equal(old, weight.numpy()), f"{weight.path} did not move"
    logits = model(x)
    assert logits.dtype == tf.float32
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.get_layer("decoder_2").cross.query.compute_dtype == "bfloat16"
    np.testing.assert_array_equal(loaded(x), logits)


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    options = {"norm": "pre", "activation": "gelu", "attention_bias": True, "end_id": 3}
    model = transformer.Transformer(**TINY, **options)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.get_config() == model.get_config()
    x, _ = pairs(3)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_a_seed_decides_weights_and_dropout():
    x, _ = pairs(3)
    one, same, other = (transformer.Transformer(**TINY, seed=seed) for seed in (1, 1, 2))
    for _ in range(2):
        np.testing.assert_array_equal(one(x, training=True), same(x, training=True))
    assert not np.allclose(one(x, training=True), one(x))
    assert not np.allclose(one(x), other(x))
    # As a resumed run does it: all variables by position, random states among them.
    for variable, value in zip(other.variables, [v.numpy() for v in one.variables], strict=True):
        variable.assign(value)
    np.testing.assert_array_equal(one(x, training=True), other(x, training=True))


@pytest.mark.parametrize("beam", [1, 3])
def test_a_cache_changes_no_token_and_a_row_needs_no_batch(beam):
    model = transformer.Transformer(**ONE, seed=4)
    source = tf.constant(pairs(6)[0]["source"])
    translate = model.translator(beam, length=9)
    cached, again = translate(source), model.translator(beam, length=9, cache=False)(source)
    np.testing.assert_array_equal(cached["ids"], again["ids"])
    np.testing.assert_allclose(cached["score"], again["score"], atol=1e-5)
    alone = translate(tf.pad(source[2:3], [[0, 0], [0, 4]]))
    np.testing.assert_array_equal(alone["ids"][0], cached["ids"][2])
    np.testing.assert_allclose(alone["score"][0], cached["score"][2], atol=1e-5)


def test_the_greedy_translation_is_the_likeliest_token_each_time():
    model = transformer.Transformer(**ONE, seed=4)
    source = pairs(3)[0]["source"]
    found = model.translate(source, beam=1, length=5)
    for row, ids, score in zip(source, found["ids"].numpy(), found["score"].numpy(), strict=True):
        target, total = [1], 0.0
        while target[-1] != 2 and len(target) <= 5:
            z = model({"source": row[None], "target": np.array([target])})[0, -1].numpy()
            target.append(1 + int(z[1:].argmax()))
            total += z[target[-1]] - np.log(np.exp(z).sum())
        tokens = target[1:]
        assert ids.tolist() == tokens + [0] * (5 - len(tokens))
        assert score == pytest.approx(total / ((5 + len(tokens)) / 6) ** 0.6, abs=1e-5)


def test_translation_can_be_exported(tmp_path):
    model = transformer.Transformer(**ONE, seed=4)
    source = tf.constant(pairs(3)[0]["source"])
    module = tf.Module()
    module.weights = [w.value for w in model.weights]
    module.translate = model.translator(beam=2, length=6)
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    expected, found = module.translate(source), loaded.translate(source)
    np.testing.assert_array_equal(found["ids"], expected["ids"])
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5)


def test_a_small_one_learns_to_reverse_six_words():
    options = {"width": 32, "layers": 1, "heads": 4, "hidden": 64, "dropout": 0.0, "norm": "pre"}
    model = transformer.Transformer(9, **options, seed=0)
    model.compile(keras.optimizers.Adam(0.01, beta_2=0.98), CrossEntropy(), jit_compile=False)
    x, y = pairs(6_400, words=9, longest=6, shortest=6)
    model.fit(x, y, batch_size=32, shuffle=False, verbose=0)
    x, y = pairs(100, seed=1, words=9, longest=6, shortest=6)
    ids = model.translate(x["source"], beam=1, length=7)["ids"].numpy()
    assert np.mean((ids == y).all(1)) > 0.8


@pytest.mark.parametrize(
    "options", [{"vocabulary_size": 2}, {"layers": 0}, {"heads": 3}, {"norm": "mid"}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"at least 1|do not divide|norm must be"):
        transformer.Transformer(**{**TINY, **options})
