"""Recurrent encoders and decoders, with and without attention."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import seq2seq
from epochal.models.losses import CrossEntropy
from epochal.models.metrics import Accuracy

TINY = {"vocabulary_size": 9, "target_vocabulary_size": 10, "units": 6, "embedding": 5}
VARIANTS = {
    "fixed": {"layers": 2},
    "bahdanau": {
        "layers": 1,
        "attention": "additive",
        "bidirectional": True,
        "reverse_source": False,
    },
    "luong": {"layers": 2, "attention": "multiplicative"},
    "luong-feeding": {"layers": 2, "attention": "multiplicative", "input_feeding": True},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def made(variant, **options):
    return seq2seq.Seq2Seq(**{**TINY, **VARIANTS[variant], "seed": 0, **options})


def trainable(model) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def pairs(n, seed=0, words=9, shortest=2, longest=5):
    """Sources, and as targets the same words from the last to the first."""
    rng = np.random.default_rng(seed)
    source, answer = np.zeros((n, longest), "int32"), np.zeros((n, longest + 1), "int32")
    for i, size in enumerate(rng.integers(shortest, longest + 1, size=n)):
        source[i, :size] = rng.integers(3, words, size=size)
        answer[i, :size], answer[i, size] = source[i, :size][::-1], 2
    target = np.concatenate([np.ones((n, 1), "int32"), answer[:, :-1]], axis=1)
    return {"source": source, "target": np.where(answer == 0, 0, target)}, answer


def test_counts_of_the_papers():
    total = seq2seq.count(160_000, 80_000)
    words = 240_000 * 1_000 + 1_000 * 80_000 + 80_000
    assert (total, total - words) == (384_112_000, 64_032_000)
    takes = inspect.signature(seq2seq.count).parameters
    bahdanau, luong = (
        seq2seq.count(size, **{k: v for k, v in build.keywords.items() if k in takes})
        for size, build in ((30_000, seq2seq.seq2seq_bahdanau), (50_000, seq2seq.seq2seq_luong))
    )
    assert (bahdanau, luong) == (86_304_000, 217_082_000)


@each_variant
@pytest.mark.parametrize("layers", [1, 3])
def test_the_count_is_that_of_the_built_model(variant, layers):
    options = {**TINY, **VARIANTS[variant], "layers": layers}
    takes = inspect.signature(seq2seq.count).parameters
    expected = seq2seq.count(**{k: v for k, v in options.items() if k in takes})
    assert trainable(made(variant, layers=layers)) == expected


def numpy_forward(model, source, target):
    """Logits and attention weights in float64, one sentence, one word, one layer at a time."""

    def weights(layer):
        return [w.numpy().astype("float64") for w in layer.weights]

    def lstm(layer, x, h, c):
        w, u, b = weights(layer)
        i, f, g, o = np.split(x @ w + h @ u + b, 4)
        i, f, o = (1 / (1 + np.exp(-z)) for z in (i, f, o))
        c = f * c + i * np.tanh(g)
        return o * np.tanh(c), c

    def read(layer, xs):
        h = c = np.zeros(TINY["units"])
        hs = []
        for x in xs:
            h, c = lstm(layer, x, h, c)
            hs.append(h)
        return hs, (h, c)

    def attend(query, memory):
        if kind == "additive":
            u, w, v = weights(model.attention)
            scores = np.array([np.tanh(query @ w + m @ u) @ v[:, 0] for m in memory])
        else:
            (u,) = weights(model.attention)
            scores = np.array([query @ (m @ u) for m in memory])
        shares = np.exp(scores) / np.exp(scores).sum()
        return sum(a * m for a, m in zip(shares, memory, strict=True)), shares

    options = model.get_config()
    kind, feeding = options["attention"], options["input_feeding"]
    embed_source, embed_target = (
        weights(e)[0] for e in (model.source_embedding, model.target_embedding)
    )
    head, head_bias = weights(model.head)
    logits = np.zeros((*target.shape, len(head_bias)))
    seen = np.zeros((*target.shape, source.shape[1]))
    for n, (s, t) in enumerate(zip(source, target, strict=True)):
        s = s[s != 0]
        xs = [embed_source[w] for w in (s[::-1] if options["reverse_source"] else s)]
        states = []
        for layer in model.encoder:
            if options["bidirectional"]:
                forth, _ = read(layer.forward_layer, xs)
                back, state = read(layer.backward_layer, xs[::-1])
                xs = [np.concatenate(pair) for pair in zip(forth, back[::-1], strict=True)]
            else:
                xs, state = read(layer, xs)
            states.append(state)
        memory = xs[::-1] if options["reverse_source"] else xs
        fed = np.zeros(TINY["units"])
        for i, word in enumerate(t):
            x = embedded = embed_target[word]
            if kind == "additive":
                context, seen[n, i, : len(s)] = attend(states[-1][0], memory)
                x = np.concatenate([x, context])
            if feeding:
                x = np.concatenate([x, fed])
            for j, layer in enumerate(model.decoder):
                states[j] = lstm(layer, x, *states[j])
                x = states[j][0]
            if kind == "additive":  # maxout over pairs
                w, b = weights(model.readout)
                x = (np.concatenate([context, x, embedded]) @ w + b).reshape(-1, 2).max(-1)
            if kind == "multiplicative":
                context, seen[n, i, : len(s)] = attend(x, memory)
                fed = x = np.tanh(np.concatenate([context, x]) @ weights(model.readout)[0])
            logits[n, i] = x @ head + head_bias
    return logits, seen


@each_variant
def test_it_equals_the_papers_in_numpy(variant):
    model = made(variant)
    for weight in model.weights:  # larger than at the start, so that everything matters
        weight.assign(np.random.default_rng(len(weight.path)).normal(size=weight.shape) * 0.7)
    x, _ = pairs(4)
    logits, weights = numpy_forward(model, **x)
    np.testing.assert_allclose(model(x), logits, atol=1e-5)
    if model.attention is not None:
        np.testing.assert_allclose(model.attend(**x), weights, atol=1e-5)
        assert np.all(model.attend(**x).numpy()[weights == 0] == 0)


def test_all_steps_at_once_are_the_steps_one_by_one():
    model = made("luong")
    x, _ = pairs(3)
    memory, mask, states = model.encode(x["source"])
    logits, weights = model.decode(x["target"], memory, mask, states)
    one_by_one = model._step_by_step(x["target"], memory, mask, states, False, False)
    np.testing.assert_allclose(model._logits(one_by_one[0]), logits, atol=1e-6)
    np.testing.assert_allclose(one_by_one[1], weights, atol=1e-6)


@each_variant
def test_padding_and_the_future_change_nothing(variant):
    model = made(variant)
    x, _ = pairs(6)
    before = model(x).numpy()
    wider = {name: np.pad(ids, ((0, 0), (0, 3))) for name, ids in x.items()}
    np.testing.assert_allclose(model(wider).numpy()[:, : before.shape[1]], before, atol=1e-6)
    later = np.where(np.arange(before.shape[1]) < 3, x["target"], 7)
    after = model({**x, "target": later}).numpy()
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    assert not np.allclose(after[:, 3:], before[:, 3:])
    assert np.abs(model({**x, "source": x["source"] % 8 + 1}).numpy() - before).max() > 1e-3


def test_the_loss_is_the_mean_over_real_tokens():
    model = made("luong")
    x, y = pairs(7)
    model.compile("sgd", CrossEntropy(), metrics=[Accuracy()], jit_compile=False)
    loss, accuracy = model.evaluate(x, y, verbose=0)
    z, _ = numpy_forward(model, **x)
    logp = np.take_along_axis(z, y[..., None], -1)[..., 0] - np.log(np.exp(z).sum(-1))
    assert loss == pytest.approx(-logp[y != 0].mean(), abs=1e-5)
    assert accuracy == pytest.approx((z.argmax(-1) == y)[y != 0].mean(), abs=1e-6)


def test_scheduled_sampling_feeds_the_models_own_words():
    """With a share of 1 training sees what the model would have said itself, from the start on."""
    x, _ = pairs(5)
    model = made("fixed", scheduled_sampling=1.0, scheduled_sampling_batches=1)
    said = x["target"][:, :1]
    for _ in range(x["target"].shape[1] - 1):
        z = model({**x, "target": said}).numpy()[:, -1]
        said = np.concatenate([said, 1 + z[:, 1:].argmax(-1)[:, None]], axis=1).astype("int32")
    own = model({**x, "target": said}).numpy()
    told = model(x).numpy()
    assert not np.allclose(own, told)
    np.testing.assert_allclose(model(x, training=True), own, atol=1e-5)
    np.testing.assert_array_equal(model(x), told)
    assert int(model.batches) == 1


def test_the_share_of_own_words_rises_over_the_batches():
    x, _ = pairs(400)
    model = made("fixed", layers=1, scheduled_sampling=0.8, scheduled_sampling_batches=4)
    told = model(x).numpy()
    shares = []
    for _ in range(6):
        second = model(x, training=True).numpy()[:, 1]  # its input is told, or the model's own
        shares.append(np.mean(np.abs(second - told[:, 1]).max(-1) > 1e-6))
    # 4 standard errors of a share among 400; the model's own word is never the one told here
    np.testing.assert_allclose(shares, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8], atol=0.1)


@each_variant
def test_gradient_reaches_every_weight(variant):
    model = made(variant)
    x, y = pairs(12)
    with tf.GradientTape() as tape:
        loss = CrossEntropy()(y, model(x, training=True))
    gradients = tape.gradient(loss, [w.value for w in model.trainable_weights])
    for gradient, weight in zip(gradients, model.trainable_weights, strict=True):
        assert gradient is not None, f"no gradient for {weight.path}"
        size = np.abs(tf.convert_to_tensor(gradient)).max()
        assert 0 < size < np.inf, f"no gradient for {weight.path}"


def test_a_step_in_bfloat16_and_a_saved_model_that_stays_so(tmp_path):
    model = made("bahdanau", dropout=0.1, scheduled_sampling=0.5, end_id=3, dtype="mixed_bfloat16")
    x, y = pairs(8)
    # Attention's gradients are small at first: a step of ordinary size would be rounded off.
    model.compile(keras.optimizers.SGD(100.0), CrossEntropy(), jit_compile=False)
    before = model.get_weights()
    model.train_on_batch(x, y)
    for old, weight in zip(before, model.weights, strict=True):
        assert np.isfinite(weight.numpy()).all()
        assert not np.array_equal(old, weight.numpy()), f"{weight.path} did not move"
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    assert model(x).dtype == tf.float32
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.get_config() == model.get_config()
    assert loaded.decoder[0].compute_dtype == "bfloat16"
    assert int(loaded.batches) == 1
    np.testing.assert_array_equal(loaded(x), model(x))


def test_a_seed_decides_weights_dropout_and_sampling():
    x, _ = pairs(6)
    options = {"dropout": 0.3, "scheduled_sampling": 0.5, "scheduled_sampling_batches": 1}
    one, same, other = (made("luong", **options, seed=seed) for seed in (1, 1, 2))
    for _ in range(2):
        np.testing.assert_array_equal(one(x, training=True), same(x, training=True))
    assert not np.allclose(one(x), other(x))
    # As a resumed run does it: all variables by position, random states and counters among them.
    for variable, value in zip(other.variables, [v.numpy() for v in one.variables], strict=True):
        variable.assign(value)
    np.testing.assert_array_equal(one(x, training=True), other(x, training=True))


@pytest.mark.parametrize("variant", ["fixed", "luong-feeding"])
def test_the_greedy_translation_is_the_likeliest_token_each_time(variant):
    model = made(variant)
    x, _ = pairs(4)
    found = model.translate(x["source"], beam=1, alpha=0.0, length=5)
    for row, ids, score in zip(x["source"], found["ids"].numpy(), found["score"], strict=True):
        target, total = [1], 0.0
        while target[-1] != 2 and len(target) <= 5:
            z = model({"source": row[None], "target": np.array([target])})[0, -1].numpy()
            target.append(1 + int(z[1:].argmax()))
            total += z[target[-1]] - np.log(np.exp(z).sum())
        tokens = target[1:]
        assert ids.tolist() == tokens + [0] * (5 - len(tokens))
        assert float(score) == pytest.approx(total, abs=1e-4)


@pytest.mark.slow
def test_translation_can_be_exported(tmp_path):
    model = made("luong-feeding")
    source = tf.constant(pairs(3)[0]["source"])
    module = tf.Module()
    module.weights = [w.value for w in model.weights]
    module.translate = model.translator(beam=2, length=6)
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    expected, found = module.translate(source), loaded.translate(source)
    np.testing.assert_array_equal(found["ids"], expected["ids"])
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5)


@pytest.mark.parametrize("variant", [pytest.param("bahdanau", marks=pytest.mark.slow), "luong"])
def test_a_small_one_learns_to_reverse(variant):
    options = {"layers": 1, "units": 24, "embedding": 12, "reverse_source": False}
    model = made(variant, **options)
    model.compile(keras.optimizers.Adam(0.02), CrossEntropy(), jit_compile=False)
    x, y = pairs(4_800)
    model.fit(x, y, batch_size=32, shuffle=False, verbose=0)
    x, y = pairs(100, seed=1)
    ids = model.translate(x["source"], beam=2, length=6)["ids"].numpy()
    assert np.mean((ids == y).all(1)) > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "dot"}, 'None, "additive" or "multiplicative"'),
        ({"input_feeding": True}, "input_feeding is an option of the last"),
        ({"units": 0}, "at least 1"),
        ({"end_id": 10}, "above start_id and end_id"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"scheduled_sampling": 1.5}, r"one in \[0, 1\]"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        seq2seq.Seq2Seq(**{**TINY, **options})


def test_without_attention_there_is_nothing_to_show():
    x, _ = pairs(2)
    with pytest.raises(ValueError, match="no attention"):
        made("fixed").attend(**x)
