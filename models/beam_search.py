"""Decoding by beam search, which keeps several prefixes; and translations, which end by it.

Graph code on models that are step functions: see :mod:`.decoding`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from .decoding import Step, generate, until_done

MORE_THAN_SOURCE = 50  # tokens that a translation may be longer (Vaswani et al. 2017, section 6.1)


def length_penalty(length, alpha: float):
    """((5 + length) / 6) ** alpha, what log-probabilities are divided by (Wu et al. 2016, eq. 14).

    alpha = 0 compares plain probabilities, and so prefers short sequences; with 1 it is, but for
    the 5, the mean over the tokens. ``length`` counts the end token.
    """
    return ((5.0 + tf.cast(length, tf.float32)) / 6.0) ** alpha


def beam_search(
    step: Step,
    state: Any,
    first: tf.Tensor,
    *,
    beam: int,
    length: int,
    end_id: int,
    alpha: float = 0.6,
    limits: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The best sequence of each row among those that a beam of the likeliest prefixes meets.

    In each step the ``2 beam`` likeliest one-token extensions of a row's prefixes are looked at.
    Those that end are complete; the likeliest ``beam`` of the others are the next prefixes. The
    best complete one, by log-probability / :func:`length_penalty`, is the answer. A row stops when
    no prefix can beat it any more, or at its limit; where nothing is complete by then, the
    likeliest prefix is the answer.

    Args:
        step: see above; called with n x beam sequences, those of a row side by side.
        state: before the first token, tensors [n, ...].
        first: int32 [n]: the token that all sequences start from; not part of the answer.
        beam: number of prefixes, 1 or more.
        length: the most tokens of any answer, the end token included.
        end_id: the token that ends a sequence.
        alpha: see :func:`length_penalty`; 0 or above.
        limits: int32 [n], the most tokens of each row's answer, at most ``length``.

    Returns:
        Tokens [n, length] int32, the end token included, and scores [n] float32.

    Source: Sutskever et al. 2014, section 3.2, for the search; Wu et al. 2016 for the score.
    """
    if beam < 1 or length < 1 or alpha < 0:
        raise ValueError(
            "beam and length must be at least 1 and alpha not negative; "
            f"got beam={beam!r}, length={length!r}, alpha={alpha!r}."
        )
    rows = tf.shape(first)[0]
    limits = tf.fill([rows], length) if limits is None else tf.minimum(limits, length)
    no = tf.fill([rows], -float("inf"))

    def body(position, tokens, prefixes, likely, best, score, done, state):
        logits, after = step(tf.reshape(tokens, [-1]), position, state)
        words = tf.shape(logits)[1]
        logp = tf.nn.log_softmax(tf.cast(logits, tf.float32))
        logp = tf.where(tf.range(words) == 0, -float("inf"), logp)
        logp = tf.reshape(logp, [rows, beam, words]) + likely[:, :, None]
        logp = tf.reshape(logp, [rows, beam * words])
        logp, index = tf.math.top_k(logp, 2 * beam)
        parents, tokens = index // words, index % words
        now = tf.range(length) == position

        def extended(which):  # [n, k] of the 2 beam candidates -> their tokens [n, k, length]
            parent = tf.gather(parents, which, batch_dims=1)
            token = tf.gather(tokens, which, batch_dims=1)
            return tf.where(now, token[..., None], tf.gather(prefixes, parent, batch_dims=1))

        # Complete ones: the likeliest is the best, as all of them have the same length.
        complete = tf.where(tokens == end_id, logp, -float("inf"))
        found = tf.reduce_max(complete, axis=1) / length_penalty(position + 1, alpha)
        which = tf.argmax(complete, axis=1, output_type=tf.int32)[:, None]
        better = (found > score) & ~done
        best = tf.where(better[:, None], extended(which)[:, 0], best)
        score = tf.where(better, found, score)
        # The others go on.
        logp = tf.where(tokens == end_id, -float("inf"), logp)
        likely, which = tf.math.top_k(logp, beam)
        prefixes = extended(which)
        chosen = tf.gather(tokens, which, batch_dims=1)
        kept = tf.gather(parents, which, batch_dims=1) + tf.range(rows)[:, None] * beam
        after = tf.nest.map_structure(lambda s: tf.gather(s, tf.reshape(kept, [-1])), after)
        # Where nothing is complete at the limit the likeliest prefix is the answer.
        last = position + 1 >= limits
        bound = likely[:, 0] / length_penalty(limits, alpha)
        give_up = last & (score == -float("inf")) & ~done
        best = tf.where(give_up[:, None], prefixes[:, 0], best)
        score = tf.where(give_up, bound, score)
        done |= last | (score >= bound)
        return position + 1, chosen, prefixes, likely, best, score, done, after

    nothing = tf.zeros([rows, beam, length], tf.int32)
    loop = (
        tf.constant(0),
        tf.tile(first[:, None], [1, beam]),
        nothing,
        # All prefixes are the same at first: only one of them counts.
        tf.tile([[0.0] + [-float("inf")] * (beam - 1)], [rows, 1]),
        nothing[:, 0],
        no,
        limits <= 0,
        tf.nest.map_structure(lambda s: tf.repeat(s, beam, axis=0), state),
    )
    *_, best, score, _, _ = until_done(6, body, loop)
    return best, score


def translate(
    step: Step,
    state: Any,
    source: tf.Tensor,
    *,
    start_id: int,
    end_id: int,
    beam: int,
    alpha: float,
    length: int,
) -> dict[str, tf.Tensor]:
    """Answers to source ids [n, s]: {"ids": [n, length], "score": [n]}.

    By :func:`beam_search`, or for ``beam`` 1 greedily. An answer has at most MORE_THAN_SOURCE
    tokens more than its source, and at most ``length``, the end token included; its score is
    log-probability / :func:`length_penalty`.
    """
    limits = tf.reduce_sum(tf.cast(source != 0, tf.int32), axis=1) + MORE_THAN_SOURCE
    first = tf.fill([tf.shape(source)[0]], start_id)
    options = {"length": length, "limits": limits, "end_id": end_id}
    if beam > 1:
        ids, score = beam_search(step, state, first, beam=beam, alpha=alpha, **options)
    else:
        ids, score = generate(step, state, first[:, None], **options)
        tokens = tf.reduce_sum(tf.cast(ids != 0, tf.int32), axis=1)
        score /= length_penalty(tokens, alpha)
    return {"ids": ids, "score": score}
