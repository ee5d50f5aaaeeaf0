"""Decoding against enumeration and plain Python, on models that are tables of random logits."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from epochal.models import beam_search, decoding

WORDS, END, LONGEST = 5, 2, 4


class Table:
    """The next token's logits depend on a row's whole past: one row of a table for each past."""

    def __init__(self, rows, seed=0, sharpness=2.0):
        size = (rows, WORDS ** (LONGEST + 2), WORDS)
        self.logits = np.random.default_rng(seed).normal(size=size).astype("float32") * sharpness

    def state(self, rows=None):
        """Which table, and a number that stands for the past."""
        rows = range(len(self.logits)) if rows is None else rows
        return [tf.constant(list(rows)), tf.zeros([len(rows)], tf.int32)]

    def step(self, tokens, position, state):
        row, past = state
        past = past * WORDS + tokens
        logits = tf.gather_nd(self.logits, tf.stack([row, past % self.logits.shape[1]], axis=1))
        return logits, [row, past]

    def logp(self, row, tokens, first=1):
        """Log-probability of each token of a sequence."""
        past, result = 0, []
        for last, token in zip([first, *tokens[:-1]], tokens, strict=True):
            past = past * WORDS + last
            z = self.logits[row, past].astype("float64")
            result.append(z[token] - np.log(np.exp(z).sum()))
        return result


def penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


def best_of_all(table, row, alpha, limit=LONGEST):
    """Over every sequence that ends within the limit."""
    scores = {}
    for size in range(1, limit + 1):
        for words in itertools.product([t for t in range(1, WORDS) if t != END], repeat=size - 1):
            tokens = (*words, END)
            scores[tokens] = sum(table.logp(row, tokens)) / penalty(size, alpha)
    return max(scores.items(), key=lambda item: item[1])


def padded(tokens, length=LONGEST):
    return [*tokens, *[0] * (length - len(tokens))]


def test_length_penalty():
    assert float(beam_search.length_penalty(1, 0.6)) == pytest.approx(1.0)
    assert float(beam_search.length_penalty(7, 0.0)) == 1.0
    assert float(beam_search.length_penalty(7, 1.0)) == pytest.approx(2.0)
    assert float(beam_search.length_penalty(tf.constant(13), 0.6)) == pytest.approx(3**0.6)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(alpha):
    table = Table(rows=8)
    search = tf.function(
        lambda state, first: beam_search.beam_search(
            table.step, state, first, beam=30, length=LONGEST, end_id=END, alpha=alpha
        )
    )
    ids, scores = search(table.state(), tf.ones([8], tf.int32))
    lengths = set()
    for row in range(8):
        tokens, score = best_of_all(table, row, alpha)
        assert ids[row].numpy().tolist() == padded(tokens)
        assert float(scores[row]) == pytest.approx(score, abs=1e-5)
        lengths.add(len(tokens))
    assert len(lengths) > 1


def plain_beam_search(table, row, beam, alpha, limit):
    prefixes, best = [((), 0.0)], ((), -np.inf)
    for size in range(1, limit + 1):
        grown = [
            ((*tokens, t), logp + table.logp(row, (*tokens, t))[-1])
            for tokens, logp in prefixes
            for t in range(1, WORDS)
        ]
        grown = sorted(grown, key=lambda item: -item[1])[: 2 * beam]
        for tokens, logp in grown:
            if tokens[-1] == END and logp / penalty(size, alpha) > best[1]:
                best = (tokens, logp / penalty(size, alpha))
        prefixes = [item for item in grown if item[0][-1] != END][:beam]
    if best[1] == -np.inf:
        best = (prefixes[0][0], prefixes[0][1] / penalty(limit, alpha))
    return best


@pytest.mark.parametrize("beam", [1, 2, 3])
def test_a_narrow_beam_keeps_the_likeliest_prefixes(beam):
    """Against a plain loop without early stop, each row with its own limit."""
    table = Table(rows=12, seed=1)
    table.logits[:4, :, END] -= 20.0  # four rows that rather don't end
    limits = np.array([1, 2, 3, 4] * 3)
    ids, scores = beam_search.beam_search(
        table.step,
        table.state(),
        tf.ones([12], tf.int32),
        beam=beam,
        length=LONGEST,
        end_id=END,
        alpha=0.6,
        limits=tf.constant(limits, tf.int32),
    )
    for row, limit in enumerate(limits):
        tokens, score = plain_beam_search(table, row, beam, 0.6, limit)
        assert ids[row].numpy().tolist() == padded(tokens), row
        assert float(scores[row]) == pytest.approx(score, abs=1e-5)
    if beam == 1:  # two candidates of four, and the end is the fourth
        assert END not in ids.numpy()[:4]


def test_a_beam_of_the_same_rows_alone_answers_the_same():
    table = Table(rows=6, seed=2)
    options = {"beam": 2, "length": LONGEST, "end_id": END}
    ids, scores = beam_search.beam_search(
        table.step, table.state(), tf.ones([6], tf.int32), **options
    )
    for row in range(6):
        alone = beam_search.beam_search(
            table.step, table.state([row]), tf.ones([1], tf.int32), **options
        )
        np.testing.assert_array_equal(alone[0][0], ids[row])
        np.testing.assert_allclose(alone[1][0], scores[row], rtol=1e-6)


@pytest.mark.parametrize("options", [{"beam": 0}, {"length": 0}, {"alpha": -0.1}])
def test_bad_options_are_refused(options):
    table = Table(rows=1)
    given = {"beam": 2, "length": 3, "end_id": END, **options}
    with pytest.raises(ValueError, match="at least 1 and alpha not negative"):
        beam_search.beam_search(table.step, table.state(), tf.ones([1], tf.int32), **given)


def greedy(table, row, prompt, limit, end=None):
    past, tokens, logp = 0, [], []
    for token in prompt:
        past = past * WORDS + token
    while len(tokens) < limit and (end is None or end not in tokens):
        z = table.logits[row, past % table.logits.shape[1]].astype("float64")
        tokens.append(1 + int(z[1:].argmax()))
        logp.append(z[tokens[-1]] - np.log(np.exp(z).sum()))
        past = past * WORDS + tokens[-1]
    return tokens, sum(logp)


@pytest.mark.parametrize("end", [None, END])
def test_greedy_follows_each_prompt_then_the_likeliest_token(end):
    table = Table(rows=5, seed=3)
    prompts = [[1], [3, 1], [4, 4, 3], [1], [3, 4]]
    limits = [3, 2, 1, 0, 3]
    ids, logp = decoding.generate(
        table.step,
        table.state(),
        tf.constant([padded(p, 3) for p in prompts]),
        length=3,
        limits=tf.constant(limits),
        end_id=end,
    )
    for row, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        tokens, expected = greedy(table, row, prompt, limit, end)
        assert ids[row].numpy().tolist() == padded(tokens, 3)
        assert float(logp[row]) == pytest.approx(expected, abs=1e-5)


def test_padding_is_never_chosen():
    table = Table(rows=3)
    table.logits[:, :, 0] += 100.0
    ids, _ = decoding.generate(table.step, table.state(), tf.ones([3, 1], tf.int32), length=3)
    assert np.all(ids.numpy() > 0)
    ids, _ = beam_search.beam_search(
        table.step, table.state(), tf.ones([3], tf.int32), beam=2, length=3, end_id=END
    )
    lengths = (ids.numpy() != 0).sum(1)
    assert np.all(ids.numpy()[:, 0] > 0)
    for row, size in zip(ids.numpy(), lengths, strict=True):
        assert size == 3 or row[size - 1] == END


def sampled(logits, rows, top_p=1.0, **options):
    """One token for each of many rows that have the same logits."""
    logits = tf.constant(logits, tf.float32)

    @tf.function
    def draw(seed):
        return decoding.generate(
            lambda tokens, position, state: (tf.repeat(logits[None], rows, axis=0), state),
            (),
            tf.ones([rows, 1], tf.int32),
            length=1,
            seed=seed,
            top_p=top_p,
            **{name: tf.fill([rows], value) for name, value in options.items()},
        )[0][:, 0]

    return draw(tf.range(rows, dtype=tf.int64)).numpy()


def test_draws_follow_the_softmax():
    logits = np.array([9.0, 0.0, 1.0, 2.0, -50.0])  # the first is padding
    for temperature in (1.0, 2.0):
        tokens = sampled(logits, 4000, temperature=temperature)
        p = np.exp(logits[1:] / temperature)
        shares = np.bincount(tokens, minlength=5) / 4000
        assert shares[0] == 0
        # 4 standard errors of a share of one half
        np.testing.assert_allclose(shares[1:], p / p.sum(), atol=0.032)


def test_top_k_and_temperature_zero():
    logits = np.array([0.0, 1.0, 1.2, 1.1, 0.9])
    assert set(sampled(logits, 300, temperature=1.0, top_k=2)) == {2, 3}
    assert set(sampled(logits, 300, temperature=1.0, top_k=9)) == {1, 2, 3, 4}
    assert set(sampled(logits, 50, temperature=0.0)) == {2}
    assert set(sampled(logits, 50, temperature=1.0, top_k=1)) == {2}


def test_top_p_keeps_the_fewest_that_reach_it():
    shares = np.array([0.0, 0.5, 0.3, 0.15, 0.05])
    logits = np.log(np.maximum(shares, 1e-9))
    for top_p, kept in ((0.01, {1}), (0.5, {1}), (0.51, {1, 2}), (0.79, {1, 2}), (0.81, {1, 2, 3})):
        assert set(sampled(logits, 400, temperature=1.0, top_p=top_p)) == kept
    tokens = sampled(logits, 4000, temperature=1.0, top_p=0.7)
    assert np.mean(tokens == 1) == pytest.approx(0.5 / 0.8, abs=0.032)
    # The temperature comes first: at 2 the shares are .38 .30 .21 .12.
    assert set(sampled(logits, 400, temperature=2.0, top_p=0.6)) == {1, 2}
    assert set(sampled(logits, 400, temperature=1.0, top_p=0.9, top_k=2)) == {1, 2}


def test_what_has_been_said_is_penalised():
    """Positive logits are divided, negative ones multiplied; padding and the score are not."""
    logits = tf.constant([[9.0, 2.0, 1.5, 1.1, -0.5], [9.0, -1.0, -1.5, -1.9, -3.0]])

    def step(tokens, position, state):
        return logits, state

    options = {"length": 4, "repetition_penalty": 2.0}
    ids, score = decoding.generate(step, (), tf.constant([[3, 0], [4, 0]]), **options)
    # first row: 2 -> 1, 1.5 -> .75, 1.1 is .55 from the start: then the highest is said again
    assert ids.numpy().tolist() == [[1, 2, 1, 1], [1, 2, 3, 1]]
    whole = np.log(np.exp(logits).sum(1))
    expected = [2.0 * 3 + 1.5 - 4 * whole[0], -1.0 * 2 - 1.5 - 1.9 - 4 * whole[1]]
    np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_a_row_can_begin_in_the_middle_of_its_prompt():
    table = Table(rows=3, seed=3)
    prompt = tf.constant([[1, 4, 3], [3, 2, 0], [4, 4, 3]])
    whole, score = decoding.generate(table.step, table.state(), prompt, length=2)
    _, state = table.step(prompt[:, 0], 0, table.state())
    late, same = decoding.generate(table.step, state, prompt, length=2, begin=1)
    np.testing.assert_array_equal(late, whole)
    np.testing.assert_allclose(same, score, rtol=1e-6)


def test_a_rows_draws_depend_on_its_seed_alone():
    table = Table(rows=6, seed=4, sharpness=0.5)
    prompt = tf.constant([[1, 0], [3, 4], [1, 0], [3, 0], [4, 1], [1, 0]])

    def draw(rows):
        run = decoding.generator(table.step, lambda n: table.state(rows), length=3)
        n = len(rows)
        return run(
            tf.gather(prompt, rows),
            tf.fill([n], 3),
            tf.constant([0.7, 1.0, 1.0, 1.3, 0.0, 1.0])[:n] if n == 6 else tf.ones([n]),
            tf.fill([n], 0),
            tf.constant([10 + row for row in rows], tf.int64),
        )["ids"].numpy()

    together = draw([0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(draw([5, 2, 1]), together[[5, 2, 1]])
    assert len({tuple(row) for row in together}) > 1


@pytest.mark.parametrize("beam", [1, 2])
def test_a_translation_is_at_most_50_tokens_longer_than_its_source(beam):
    """A model that rather never ends, but ends at once after a source that begins with 3."""
    words = np.array([[0, 1, -30, 9, 5, 4, 3, 2], [0, 1, 9, 5, 4, 3, 2, 0]], "float32")

    def step(tokens, position, state):
        return tf.gather(words, tf.cast(state == 3, tf.int32)), state

    source = tf.constant([[1, 1, 0], [1, 1, 1], [3, 1, 0]])
    options = {"start_id": 1, "end_id": 2, "beam": beam, "alpha": 1.0}
    found = beam_search.translate(step, source[:, 0], source, length=60, **options)
    assert (found["ids"].numpy() != 0).sum(1).tolist() == [52, 53, 1]
    logp = words.max(1) - np.log(np.exp(words).sum(1))
    expected = [logp[0] * 52 / (57 / 6), logp[0] * 53 / (58 / 6), logp[1]]
    np.testing.assert_allclose(found["score"], expected, rtol=1e-4)
    assert (
        beam_search.translate(step, source[:, 0], source, length=4, **options)["ids"].shape[1] == 4
    )
