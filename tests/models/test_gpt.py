"""GPT: counts, equations, masks, decoding with a cache and without, scores, training."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import decoding, gpt, gpt_steps
from epochal.models.losses import CrossEntropy

TINY = {"vocabulary_size": 11, "width": 8, "layers": 2, "heads": 2, "hidden": 12, "context": 12}


def trainable(model) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def counted(**options) -> int:
    takes = inspect.signature(gpt.count).parameters
    return gpt.count(**{k: v for k, v in options.items() if k in takes})


def uneven(model, seed=0):
    """Biases start at 0 and scales at 1, which would hide them."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=w.shape) * 0.5 for w in model.get_weights()])
    return model


def texts(n, t, seed=0, padded=True):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 11, size=(n, t)).astype("int32")
    if padded:
        for row, size in zip(ids, rng.integers(1, t + 1, size=n), strict=True):
            row[size:] = 0
    return ids


@pytest.mark.parametrize(
    ("name", "vocabulary", "weights"),
    [
        ("gpt1", 40_478, 116_534_784),
        ("gpt2_small", 50_257, 124_439_808),
        ("gpt2_medium", 50_257, 354_823_168),
        ("gpt2_large", 50_257, 774_030_080),
        ("gpt2_xl", 50_257, 1_557_611_200),
        ("gpt3_125m", 50_257, 125_226_240),
        ("gpt3_350m", 50_257, 355_871_744),
        ("gpt3_760m", 50_257, 760_300_032),
        ("gpt3_1_3b", 50_257, 1_315_723_264),
        ("gpt3_2_7b", 50_257, 2_651_553_280),
        ("gpt3_6_7b", 50_257, 6_658_404_352),
        ("gpt3_13b", 50_257, 12_853_386_240),
        ("gpt3_175b", 50_257, 174_604_259_328),
    ],
)
def test_counts_of_the_papers(name, vocabulary, weights):
    options = getattr(gpt, name).keywords
    assert counted(vocabulary_size=vocabulary, **options) == weights
    assert options["width"] % options["heads"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_count_is_that_of_the_built_model(seed):
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 4))
    options = {
        "vocabulary_size": int(rng.integers(2, 90)),
        "width": heads * int(rng.integers(1, 7)),
        "layers": int(rng.integers(1, 4)),
        "heads": heads,
        "hidden": int(rng.integers(1, 40)) if seed % 2 else None,
        "context": int(rng.integers(1, 30)),
        "norm": ("pre", "post")[seed % 2],
    }
    assert trainable(gpt.GPT(**options)) == counted(**options)


def test_gpt2_small_built():
    model = gpt.gpt2_small(50_257, seed=0)
    assert trainable(model) == 124_439_808


def test_what_no_machine_holds_is_refused_before_it_is_built():
    with pytest.raises(ValueError, match=r"174,604,259,328 weights.*698 GB.*gpt\.count"):
        gpt.gpt3_175b(50_257)


# --- The equations ----------------------------------------------------------------------------


def numpy_forward(model, ids, epsilon=1e-5):
    """Logits in float64, from the papers' text; weights found by name."""
    options = model.get_config()

    def dense(layer, x):
        return x @ layer.kernel.numpy().astype("float64") + layer.bias.numpy()

    def norm(layer, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x * layer.gamma.numpy() + layer.beta.numpy()

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def attend(layer, x, seen):
        q, k, v = dense(layer.query, x), dense(layer.key, x), dense(layer.value, x)
        out = []
        for qh, kh, vh in zip(*(np.split(a, options["heads"], -1) for a in (q, k, v)), strict=True):
            scores = np.where(seen, qh @ kh.T / np.sqrt(qh.shape[-1]), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ vh)
        return dense(layer.project, np.concatenate(out, -1))

    matrix = model.get_layer("embedding").embeddings.numpy().astype("float64")
    places = model.get_layer("positions").embeddings.numpy()
    logits = []
    for row in ids:
        x = matrix[row] + places[: len(row)]
        for i in range(options["layers"]):
            b = model.get_layer(f"block_{i + 1}")
            seen = np.tril(np.ones((len(row), len(row)), bool))
            if options["sparse_window"] and i % 2:
                seen &= np.triu(seen, 1 - options["sparse_window"])
            if options["norm"] == "pre":
                x = x + attend(b.attention, norm(b.attention_norm, x), seen)
                x = x + dense(b.contract, gelu(dense(b.expand, norm(b.dense_norm, x))))
            else:
                x = norm(b.attention_norm, x + attend(b.attention, x, seen))
                x = norm(b.dense_norm, x + dense(b.contract, gelu(dense(b.expand, x))))
        if options["norm"] == "pre":
            x = norm(model.get_layer("norm"), x)
        logits.append(x @ matrix.T)
    return np.stack(logits)


@pytest.mark.parametrize(
    "options", [{}, {"norm": "post"}, {"sparse_window": 2}], ids=["pre", "post", "sparse"]
)
def test_it_equals_the_papers_in_numpy(options):
    model = uneven(gpt.GPT(**TINY, **options))
    ids = texts(3, 7, padded=False)
    np.testing.assert_allclose(model(ids), numpy_forward(model, ids), atol=1e-5, rtol=1e-5)


def test_weights_start_as_gpt2s_do():
    model = gpt.GPT(400, width=64, layers=8, heads=4, context=200, seed=0)
    block = model.get_layer("block_5")
    for weight, stddev in (
        (model.get_layer("embedding").embeddings, 0.02),
        (model.get_layer("positions").embeddings, 0.01),
        (block.attention.query.kernel, 0.02),
        (block.expand.kernel, 0.02),
        (block.attention.project.kernel, 0.02 / 4),
        (block.contract.kernel, 0.02 / 4),
    ):
        assert np.std(weight) == pytest.approx(stddev, rel=0.05)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_and_the_future_change_nothing(norm):
    model = uneven(gpt.GPT(**TINY, norm=norm))
    ids = texts(4, 8)
    before, real = model(ids).numpy(), ids != 0
    np.testing.assert_array_equal(model(ids)._keras_mask, real)
    wider = model(np.pad(ids, ((0, 0), (0, 3)))).numpy()[:, :8]
    np.testing.assert_allclose(wider[real], before[real], atol=1e-5)
    later = np.where(real, ids, 7)
    np.testing.assert_allclose(model(later).numpy()[real], before[real], atol=1e-5)
    later = texts(4, 8, padded=False)
    before = model(later).numpy()
    later[:, 5:] = 1 + later[:, 5:] % 10
    after = model(later).numpy()
    np.testing.assert_allclose(after[:, :5], before[:, :5], atol=1e-6)
    assert np.abs(after[:, 5:] - before[:, 5:]).max() > 0.1


def test_another_padding_hides_nothing_but_on_the_right_from_the_loss():
    """As in published vocabularies, where id 0 is a word and the end of text pads: between two
    texts it is a token, and what follows it is learnt."""
    model = uneven(gpt.GPT(**TINY, pad_id=10))
    plain = uneven(gpt.GPT(**TINY))
    ids = np.array([[3, 0, 10, 4, 10, 10]], "int32")
    np.testing.assert_array_equal(model(ids), plain(ids))
    np.testing.assert_array_equal(model(ids)._keras_mask, [[True] * 4 + [False] * 2])


# --- Decoding ---------------------------------------------------------------------------------


def greedy(model, prompt, length, pad=0, end=None):
    ids, total = [int(i) for i in prompt], 0.0
    for _ in range(length):
        z = model(np.array([ids], "int32"))[0, -1].numpy().astype("float64")
        allowed = z.copy()
        if end != pad:
            allowed[pad] = -np.inf
        ids.append(int(allowed.argmax()))
        total += z[ids[-1]] - np.log(np.exp(z).sum())
        if ids[-1] == end:
            break
    return ids[len(prompt) :], total


@pytest.mark.parametrize("options", [{}, {"norm": "post"}, {"sparse_window": 3}])
def test_a_cache_changes_no_token(options, monkeypatch):
    monkeypatch.setattr(gpt_steps, "_RECENT", 3)  # so that pieces of the past are joined, too
    model = uneven(gpt.GPT(**TINY, **options), seed=1)
    prompt = texts(6, 5, seed=2)
    settings = (
        prompt,
        np.array([7, 6, 5, 0, 2, 7], "int32"),
        np.array([0, 1, 0, 1, 1, 0], "float32"),
        np.array([0, 0, 0, 0, 3, 0], "int32"),
        np.arange(6),
    )
    cached, plain = (model.generator(7, cache=cache)(*settings) for cache in (True, False))
    np.testing.assert_array_equal(cached["ids"], plain["ids"])
    np.testing.assert_allclose(cached["score"], plain["score"], atol=1e-4)
    assert len({row.tobytes() for row in cached["ids"].numpy()}) > 3
    for row in (0, 2, 5):
        size = int((prompt[row] != 0).sum())
        expected, score = greedy(model, prompt[row, :size], settings[1][row])
        assert cached["ids"][row].numpy()[: len(expected)].tolist() == expected
        assert float(cached["score"][row]) == pytest.approx(score, abs=1e-4)
    alone = model.generator(7)(*(part[2:3] for part in settings))
    np.testing.assert_array_equal(alone["ids"][0], cached["ids"][2])


def test_generate_takes_plain_arguments():
    model = uneven(gpt.GPT(**TINY), seed=1)
    prompt = texts(3, 4, seed=3)
    found = model.generate(prompt, 5, temperature=0.0)
    for row, ids in zip(prompt, found["ids"].numpy(), strict=True):
        assert ids.tolist() == greedy(model, row[row != 0], 5)[0]
    drawn = model.generate(prompt, 5, temperature=2.0, seed=4)["ids"]
    np.testing.assert_array_equal(drawn, model.generate(prompt, 5, temperature=2.0, seed=4)["ids"])
    assert not np.array_equal(drawn, model.generate(prompt, 5, temperature=2.0, seed=9)["ids"])
    one = model.generate(prompt, 5, temperature=2.0, seed=4, top_p=1e-6)["ids"]
    np.testing.assert_array_equal(one, found["ids"])


def test_the_end_of_text_may_be_the_padding_too():
    """GPT-2 has one token for both: it ends a row, and a prompt may begin with it."""
    model = uneven(gpt.GPT(**TINY, pad_id=10), seed=5)
    table = model.get_layer("embedding").embeddings
    table.assign(np.concatenate([table[:10], 1.5 * table[10:]]))  # so that it is chosen at times
    prompts = [[10], [10, 3, 0], [0, 0], [4, 10, 7, 1], [2, 0]]
    prompt = np.array([row + [10] * (4 - len(row)) for row in prompts], "int32")
    found = model.generate(prompt, 6, temperature=0.0, end_id=10)["ids"].numpy()
    ends = 0
    for row, ids in zip(prompts, found, strict=True):
        expected, _ = greedy(model, row, 6, pad=10, end=10)
        assert ids.tolist() == expected + [10] * (6 - len(expected))
        ends += len(expected) < 6
    assert 0 < ends < 5
    assert 10 not in model.generate(prompt, 6, temperature=0.0)["ids"].numpy()


def test_generation_stops_where_the_context_is_full():
    model = uneven(gpt.GPT(**TINY), seed=1)
    prompt = texts(3, 14, padded=False)
    prompt[0, 5:], prompt[1, 11:] = 0, 0
    n = np.full(3, 9, "int32")
    ids = model.generator(9)(prompt, n, np.ones(3, "float32"), 0 * n, np.arange(3))["ids"]
    assert (ids.numpy() != 0).sum(1).tolist() == [7, 1, 0]
    with pytest.raises(ValueError, match="14 tokens and 2 new .* context of 12"):
        model.generate(prompt, 2)
    with pytest.raises(ValueError, match="ask for 1 to 7 tokens"):
        model.generate(prompt[:1], 8)
    with pytest.raises(ValueError, match="14 tokens are more than the 12 positions"):
        model(prompt)


def test_bad_settings_and_foreign_ids_are_refused():
    model = gpt.GPT(**TINY)
    with pytest.raises(ValueError, match=r"ids 1 to 11 .* 0 to 10"):
        model.generate([[1, 11]], 2)
    with pytest.raises(ValueError, match="another tokenizer"):
        model.score([[1, -1]])
    for options in ({"temperature": -1.0}, {"top_p": 0.0}, {"repetition_penalty": 0.0}):
        with pytest.raises(ValueError, match="must not be negative"):
            model.generate([[1]], 2, **options)
    for options in ({"layers": 0}, {"heads": 3}, {"pad_id": 11}, {"sparse_window": 0}):
        with pytest.raises(ValueError, match=r"at least 1|do not divide|pad_id"):
            gpt.GPT(**{**TINY, **options})


def test_scores_are_the_sum_over_given_tokens():
    model = uneven(gpt.GPT(**TINY))
    ids = texts(5, 6, seed=3)
    ids[0, 1:] = 0  # nothing to tell
    found = model.score(ids)
    z = numpy_forward(model, ids)
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    for row, words in enumerate(ids):
        size = int((words != 0).sum())
        expected = sum(logp[row, i - 1, words[i]] for i in range(1, size))
        assert float(found["score"][row]) == pytest.approx(expected, abs=1e-4)
        assert int(found["tokens"][row]) == size - 1
    drawn = model.generate(ids[2:3, :2], 4, seed=1)
    both = np.concatenate([ids[2:3, :2], drawn["ids"]], axis=1)
    gain = model.score(both)["score"] - model.score(ids[2:3, :2])["score"]
    np.testing.assert_allclose(drawn["score"], gain, atol=1e-4)


def test_generation_can_be_exported(tmp_path):
    model = uneven(gpt.GPT(**TINY))
    module = tf.Module()
    module.weights = [w.value for w in model.weights]
    module.run = model.generator(5, top_p=0.9, repetition_penalty=1.3)
    n, prompt = np.full(4, 5, "int32"), texts(4, 5, seed=6)
    settings = prompt, n, np.ones(4, "float32"), 0 * n, np.arange(4)
    expected = module.run(*settings)["ids"]
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(loaded.run(*settings)["ids"], expected)


# --- Training ---------------------------------------------------------------------------------


def test_gradient_reaches_every_weight():
    model = gpt.GPT(**TINY, seed=0)
    ids = texts(16, 12, padded=False)
    with tf.GradientTape() as tape:
        loss = CrossEntropy()(ids[:, 1:], model(ids, training=True)[:, :-1])
    gradients = tape.gradient(loss, [w.value for w in model.trainable_weights])
    for gradient, weight in zip(gradients, model.trainable_weights, strict=True):
        assert gradient is not None, f"no gradient for {weight.path}"
        size = np.abs(tf.convert_to_tensor(gradient)).max()
        assert np.isfinite(size)
        # The same number added to all scores of a query changes no weight: its gradient is 0.
        assert (size > 1e-7) != weight.path.endswith("key/bias"), weight.path


def test_a_step_in_bfloat16_and_generation_in_it():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = gpt.GPT(**TINY, seed=0)
    finally:
        keras.config.set_dtype_policy("float32")
    ids = texts(8, 6, padded=False)
    model.compile("sgd", CrossEntropy(), jit_compile=False)
    before = model.get_weights()
    model.train_on_batch(ids[:, :-1], ids[:, 1:])
    for old, weight in zip(before, model.weights, strict=True):
        assert weight.dtype == "float32"
        assert np.all(np.isfinite(weight.numpy()))
        assert weight.path.endswith("key/bias") or not np.array_equal(old, weight.numpy())
    assert model(ids).dtype == tf.float32
    prompt = texts(3, 4)
    cached, plain = (
        model.generator(5, cache=cache)(
            prompt, np.full(3, 5, "int32"), np.zeros(3, "float32"), np.zeros(3, "int32"), range(3)
        )["ids"]
        for cache in (True, False)
    )
    np.testing.assert_array_equal(cached, plain)


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    options = {"sparse_window": 3, "activation": "gelu", "pad_id": 2, "attention_dropout": 0.2}
    model = gpt.GPT(**TINY, **options)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.get_config() == model.get_config()
    ids = texts(3, 6)
    np.testing.assert_array_equal(loaded(ids), model(ids))


def test_a_seed_decides_weights_and_dropout():
    ids = texts(3, 6)
    one, same, other = (gpt.GPT(**TINY, seed=seed) for seed in (1, 1, 2))
    for _ in range(2):
        np.testing.assert_array_equal(one(ids, training=True), same(ids, training=True))
    assert not np.allclose(one(ids, training=True), one(ids))
    assert not np.allclose(one(ids), other(ids))


def test_a_small_one_learns_to_repeat_what_it_has_read():
    """Three letters, again and again: after the first round all can be told by looking back."""
    rng = np.random.default_rng(0)
    ids = np.tile(rng.integers(1, 9, size=(3_200, 3)), 4).astype("int32")
    model = gpt.gpt(9, width=32, layers=2, heads=4, context=11, dropout=0.0, seed=0)
    model.compile(keras.optimizers.Adam(0.003), CrossEntropy(), jit_compile=False)
    model.fit(ids[:, :-1], ids[:, 1:], batch_size=32, epochs=2, shuffle=False, verbose=0)
    prompt = np.tile(rng.integers(1, 9, size=(50, 3)), 2)
    found = model.generate(prompt[:, :5], 6, temperature=0.0)["ids"].numpy()
    expected = np.tile(prompt, 2)[:, 5:11]
    assert np.mean(found == expected) > 0.9


def test_lengths_end_at_the_last_that_is_no_padding():
    ids = tf.constant([[0, 3, 0], [0, 0, 0], [1, 2, 3]])
    assert decoding.lengths(ids).numpy().tolist() == [2, 0, 3]
    assert decoding.lengths(ids, pad_id=3).numpy().tolist() == [3, 3, 2]
