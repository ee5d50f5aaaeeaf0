"""Stop strings are found in the text, however tokens cut it."""

import numpy as np
import pytest
import tensorflow as tf

from epochal.models import decoding, gpt, gpt_steps
from epochal.models.stop_strings import StopStrings

PIECES = np.array([b"", b"a", b"b", b"ab", b"ba", b"\n", b"a\nb", "é".encode()], object)


def written(rows, stops):
    """What stands in each row after its tokens, and where it was to end."""
    stop = np.array([[s.encode() for s in row] for row in stops], object)
    writer = StopStrings(PIECES, tf.constant(stop.reshape(len(rows), -1), tf.string))

    @tf.function
    def run():
        state, done = writer.begin(), tf.zeros([len(rows)], tf.bool)
        for tokens in zip(*rows, strict=True):
            state = writer(tf.constant(tokens), ~done, *state)
            done = state[1] >= 0
        return writer.cut(*state)

    return [text.decode() for text in run().numpy()]


def test_the_first_stop_string_ends_a_text():
    rng = np.random.default_rng(0)
    rows = rng.integers(1, len(PIECES), (40, 6))
    stops = [
        [("", "ab", "ba\n", "a\nb", "é", "bb")[i] for i in rng.integers(0, 6, 2)] for _ in rows
    ]
    ended = 0
    for row, stop, given in zip(rows, stops, written(rows, stops), strict=True):
        # As it is written, token by token: what ends first, counts.
        text, expected = "", None
        for token in row:
            text += PIECES[token].decode()
            places = [text.find(s) for s in stop if s and s in text]
            if places:
                expected = text[: min(places)]
                break
        ended += expected is not None
        assert given == (text if expected is None else expected)
    assert 10 < ended < 40


def test_without_stop_strings_a_text_is_whole():
    assert written([[3, 6, 7]], [[]]) == ["aba\nbé"]


def test_generation_ends_at_a_stop_string(monkeypatch):
    """Of eight letters, greedily: the text that is written without it, up to the string."""
    monkeypatch.setattr(gpt_steps, "_RECENT", 3)
    model = gpt.GPT(8, width=8, layers=2, heads=2, context=16, seed=3)
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(size=w.shape) * 0.7 for w in model.get_weights()])
    prompt = np.array([[1, 2, 0], [4, 0, 0], [5, 6, 7]], "int32")
    whole = model.generate(prompt, 12, temperature=0.0, pieces=PIECES)
    plain = model.generate(prompt, 12, temperature=0.0)
    np.testing.assert_array_equal(whole["ids"], plain["ids"])
    texts = [text.decode() for text in whole["text"].numpy()]
    for row, text in zip(plain["ids"].numpy(), texts, strict=True):
        assert text == b"".join(PIECES[i] for i in row).decode()
    stop = [texts[0][2:4], "no such"]
    found = model.generate(prompt, 12, temperature=0.0, pieces=PIECES, stop=stop)
    for row, text, given in zip(found["ids"].numpy(), texts, found["text"].numpy(), strict=True):
        assert given.decode() == text.split(stop[0])[0]
        said = b"".join(PIECES[i] for i in row if i).decode()
        assert text.startswith(said)
        assert (stop[0] in said) == (stop[0] in text)
    assert (found["ids"].numpy()[0] == 0).any()
    with pytest.raises(ValueError, match="give pieces"):
        model.generate(prompt, 2, stop=["a"])


def test_settings_of_single_rows_are_those_of_all():
    """top_p and the penalty of a row: as if all had them."""
    logits = tf.constant([[9.0, 1.0, 0.9, 0.2, -1.0]] * 4)

    def run(top_p, penalty):
        return decoding.generate(
            lambda tokens, position, state: (logits, state),
            (),
            tf.constant([[1], [2], [1], [3]]),
            length=5,
            temperature=tf.ones([4]),
            seed=tf.range(4, dtype=tf.int64),
            top_p=top_p,
            repetition_penalty=penalty,
        )[0].numpy()

    mixed = run(tf.constant([1.0, 0.6, 1.0, 0.6]), tf.constant([1.0, 1.0, 3.0, 3.0]))
    for row, (top_p, penalty) in enumerate([(1.0, 1.0), (0.6, 1.0), (1.0, 3.0), (0.6, 3.0)]):
        np.testing.assert_array_equal(mixed[row], run(top_p, penalty)[row])
    assert len({tuple(row) for row in mixed}) == 4
