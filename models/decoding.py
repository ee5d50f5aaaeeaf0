"""From a model that scores the next token to whole sequences, greedy or sampled.

All of it is graph code of core TensorFlow operations, to be called inside a ``tf.function``. It
knows a model only by its

    step(tokens [m] int32, position, state) -> (logits [m, v], state)

where ``tokens`` stand at ``position`` (an int32 scalar, counted from 0) of m sequences, and
``state`` is any nest of tensors [m, ...] that holds what the model remembers of them (recurrent
states, attention keys and values). Rows never mix: the answer of one depends on no other.

Id 0, or another that a model says, is padding: it fills what comes after the end of a sequence,
and is never chosen, unless it is the end token as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from .stop_strings import StopStrings

Step = Callable[[tf.Tensor, tf.Tensor, Any], tuple[tf.Tensor, Any]]


def lengths(ids, pad_id: int = 0):
    """int32 [n]: the tokens of each row of ids [n, t], up to the last that is no padding."""
    places = tf.range(1, tf.shape(ids)[1] + 1)
    return tf.reduce_max(tf.where(ids != pad_id, places, 0), axis=1)


def generate(
    step: Step,
    state: Any,
    prompt: tf.Tensor,
    *,
    length: int,
    limits: tf.Tensor | None = None,
    begin: tf.Tensor | int = 0,
    end_id: int | None = None,
    pad_id: int = 0,
    temperature: tf.Tensor | None = None,
    top_k: tf.Tensor | None = None,
    top_p: tf.Tensor | float = 1.0,
    repetition_penalty: tf.Tensor | float = 1.0,
    seed: tf.Tensor | None = None,
    writer: StopStrings | None = None,
) -> tuple[tf.Tensor, ...]:
    """Continues each row of a batch, token by token.

    Args:
        step: see above.
        state: before token number ``begin`` of the prompt.
        prompt: ids [n, p] int32, at least one a row, padded on the right.
        length: the most tokens that any row gets; fixes the shape of the answer.
        limits: int32 [n], the most tokens that each row gets, at most ``length``.
        begin: tokens of the prompt that ``state`` knows, fewer than any row has.
        end_id: a row ends with this token; None: only at its limit.
        pad_id: what the prompt is padded with, and the answer.
        temperature: float32 [n]: logits are divided by it; 0 takes the likeliest token (of equal
            ones the lowest id). None: 0 for all.
        top_k: int32 [n]: draw among the k likeliest tokens; 0 among all. None: 0 for all.
        top_p: draw among the likeliest tokens that together have this probability (Holtzman et
            al.: The curious case of neural text degeneration, 2020, section 3.1); for all rows, or
            float32 [n].
        repetition_penalty: logits of tokens that are in the prompt or the answer are divided by it,
            or multiplied where negative (Keskar et al.: CTRL, 2019, section 4.1, whose division
            alone would favour what has a negative logit); for all rows, or float32 [n].
        seed: int64 [n]: the same row with the same seed gets the same tokens, in any batch.
        writer: ends a row whose text holds one of its stop strings.

    Returns:
        New tokens [n, length] int32, the end token or those of the stop string included, and their
        log-probability [n] under the model (temperature 1, all tokens); with ``writer`` also texts
        [n], up to the stop string.
    """
    rows, width = tf.unstack(tf.shape(prompt))
    given = tf.maximum(lengths(prompt, pad_id), 1)
    limits = tf.fill([rows], length) if limits is None else tf.minimum(limits, length)
    draws = None
    if temperature is not None:
        top_k = tf.zeros([rows], tf.int32) if top_k is None else top_k
        # One stream a row, all of it drawn here: its shape must not depend on the batch.
        draws = tf.map_fn(
            lambda key: tf.random.stateless_uniform([length], tf.stack([key, 0])),
            tf.zeros([rows], tf.int64) if seed is None else seed,
            fn_output_signature=tf.TensorSpec([length], tf.float32),
        )

    top_p, repetition_penalty = _each(top_p, rows), _each(repetition_penalty, rows)

    def body(position, tokens, new, total, done, state, written):
        logits, after = step(tokens, position, state)
        logits = scored = tf.cast(logits, tf.float32)
        whole = tf.reduce_logsumexp(logits, axis=1)
        if repetition_penalty is not None:
            logits = tf.cond(
                tf.reduce_any(repetition_penalty != 1.0),
                lambda: _penalised(
                    logits, tf.concat([prompt, new], axis=1), repetition_penalty[:, None], pad_id
                ),
                lambda: logits,
            )
        if end_id != pad_id:
            logits = tf.where(tf.range(tf.shape(logits)[1]) == pad_id, -float("inf"), logits)
        place = position + 1 - given  # which new token this is, in each row
        if draws is None:
            chosen = tf.argmax(logits, axis=1, output_type=tf.int32)
        else:
            draw = tf.gather(draws, tf.clip_by_value(place, 0, length - 1), batch_dims=1)
            chosen = _draw(logits, temperature, top_k, top_p, draw)
        ours = (place >= 0) & ~done
        gain = tf.gather(scored, chosen, batch_dims=1) - whole
        total += tf.where(ours, gain, 0.0)
        new = tf.where(ours[:, None] & (tf.range(length) == place[:, None]), chosen[:, None], new)
        ended = place + 1 >= limits
        if end_id is not None:
            ended |= chosen == end_id
        if writer is not None:
            written = writer(chosen, ours, *written)
            ended |= written[1] >= 0
        # Where the prompt goes on it is followed; what ended is fed padding.
        told = prompt[:, tf.minimum(position + 1, width - 1)]
        tokens = tf.where(place < 0, told, tf.where(done, pad_id, chosen))
        return position + 1, tokens, new, total, done | (ours & ended), after, written

    first = (
        tf.convert_to_tensor(begin),
        prompt[:, begin],
        tf.fill([rows, length], pad_id),
        tf.zeros([rows]),
        limits <= 0,
        state,
        () if writer is None else writer.begin(),
    )
    _, _, new, total, *_, written = until_done(4, body, first)
    return (new, total) if writer is None else (new, total, writer.cut(*written))


def _each(value: tf.Tensor | float, rows) -> tf.Tensor | None:
    """A setting as float32 [rows]; None where all of them have it at 1, which does nothing."""
    if isinstance(value, int | float):
        return None if value == 1.0 else tf.fill([rows], tf.constant(value, tf.float32))
    return value


def generator(
    step: Step,
    first_state: Callable[[tf.Tensor], Any],
    length: int,
    end_id: int | None = None,
    *,
    ready: Callable[[tf.Tensor, Any], tuple[Step, Any]] | None = None,
    context: int | None = None,
    pieces: np.ndarray | None = None,
    **options: Any,
) -> tf.types.experimental.GenericFunction:
    """:func:`generate` as a graph function of fixed signature, which can be exported.

    It takes ``prompt`` [n, p] int32, ``max_new_tokens`` [n] int32, ``temperature`` [n] float32,
    ``top_k`` [n] int32 and ``seed`` [n] int64, and returns {"ids": [n, length], "score": [n]}, the
    score being the log-probability. With ``pieces`` it takes ``top_p`` [n] and
    ``repetition_penalty`` [n] float32 and ``stop`` [n, k] string too, and returns "text" [n] too.

    Args:
        step: of :func:`generate`.
        first_state: the state of n rows before any token.
        length: of :func:`generate`.
        end_id: of :func:`generate`.
        ready: ``ready(ids [n, m], state)`` is a step, in place of ``step``, and the state after m
            tokens, 0 or more, that all rows have, computed at once. It is called in the graph
            before the loop. None: prompts are read token by token.
        context: tokens of prompt and answer at which a row ends; a prompt that fills it gets none.
        pieces: bytes [v]: what each token adds to a text, for stop strings.
        **options: ``pad_id``, ``top_p`` and ``repetition_penalty`` of :func:`generate`.
    """
    signature = [
        tf.TensorSpec([None, None], tf.int32, "prompt"),
        tf.TensorSpec([None], tf.int32, "max_new_tokens"),
        tf.TensorSpec([None], tf.float32, "temperature"),
        tf.TensorSpec([None], tf.int32, "top_k"),
        tf.TensorSpec([None], tf.int64, "seed"),
    ]
    if pieces is not None:
        signature += [
            tf.TensorSpec([None], tf.float32, "top_p"),
            tf.TensorSpec([None], tf.float32, "repetition_penalty"),
            tf.TensorSpec([None, None], tf.string, "stop"),
        ]

    def run(prompt, settings):
        prompt = prompt[:, :context]
        given = tf.maximum(lengths(prompt, options.get("pad_id", 0)), 1)
        limits = settings.pop("max_new_tokens")
        if context is not None:
            limits = tf.minimum(limits, context - given)
        begin, state, one = tf.constant(0), first_state(tf.shape(prompt)[0]), step
        if ready is not None:
            begin = tf.reduce_min(given) - 1
            one, state = ready(prompt[:, :begin], state)
        found = generate(
            one, state, prompt, length=length, limits=limits, begin=begin, end_id=end_id, **settings
        )
        return dict(zip(("ids", "score", "text"), found, strict=False))

    def plain(prompt, max_new_tokens, temperature, top_k, seed):
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        return run(prompt, options | settings | {"top_k": top_k, "seed": seed})

    def full(prompt, max_new_tokens, temperature, top_k, seed, top_p, repetition_penalty, stop):
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k}
        settings |= {"seed": seed, "top_p": top_p, "repetition_penalty": repetition_penalty}
        return run(prompt, options | settings | {"writer": StopStrings(pieces, stop)})

    chosen = plain if pieces is None else full
    return tf.function(chosen, input_signature=signature, autograph=False)


def continued(
    run, prompt, length: int, temperature: float, top_k: int, seed: int, *more: Any
) -> dict:
    """The answer of a :func:`generator`'s function, with the same settings for all rows.

    Rows draw from streams of their own, seeded with ``seed``, ``seed + 1``, ... With pieces, more
    are top_p, the repetition penalty, and a sequence of stop strings.
    """
    prompt = tf.cast(prompt, tf.int32)
    n = tf.shape(prompt)[0]
    return run(
        prompt,
        tf.fill([n], length),
        tf.fill([n], float(temperature)),
        tf.fill([n], top_k),
        seed + tf.range(tf.cast(n, tf.int64)),
        *(tf.fill([n], float(value)) for value in more[:2]),
        *(tf.tile(tf.constant([list(stop)], tf.string), [n, 1]) for stop in more[2:]),
    )


def _draw(logits, temperature, top_k, top_p: tf.Tensor | None, draw):
    """Tokens [n] from logits [n, v]: where the cumulative probability first exceeds ``draw``."""
    likeliest = tf.argmax(logits, axis=1, output_type=tf.int32)

    def drawn():
        sampled = _sample(logits, temperature, top_k, top_p, draw)
        return tf.where(temperature > 0, sampled, likeliest)

    return tf.cond(tf.reduce_any(temperature > 0), drawn, lambda: likeliest)


def _sample(logits, temperature, top_k, top_p: tf.Tensor | None, draw):
    most = tf.clip_by_value(tf.reduce_max(top_k), 1, tf.shape(logits)[1])
    best = tf.math.top_k(logits, most).values
    lowest = tf.gather(best, tf.clip_by_value(top_k - 1, 0, most - 1), batch_dims=1)
    out = (top_k > 0)[:, None] & (logits < lowest[:, None])
    sharp = tf.where(temperature > 0, temperature, 1.0)[:, None]
    shares = tf.nn.softmax(tf.where(out, -float("inf"), logits) / sharp)
    if top_p is not None:
        few = tf.reduce_any(top_p < 1.0)
        shares = tf.cond(few, lambda: _likeliest(shares, top_p), lambda: shares)
    reached = tf.cumsum(shares, axis=1)
    return tf.reduce_sum(tf.cast(reached <= draw[:, None] * reached[:, -1:], tf.int32), axis=1)


def _likeliest(shares, top_p):
    """Probabilities [n, v] without the unlikely ones that ``top_p`` [n] leaves out."""
    likely = tf.sort(shares, axis=1, direction="DESCENDING")
    kept = tf.cumsum(likely, axis=1, exclusive=True) < top_p[:, None]  # the likeliest always
    kept |= (top_p >= 1.0)[:, None]
    least = tf.reduce_min(tf.where(kept, likely, 1.0), axis=1, keepdims=True)
    return tf.where(shares < least, 0.0, shares)


def _penalised(logits, ids, penalty: tf.Tensor, pad_id: int):
    """Logits [n, v] with those of ids [n, m] lowered, padding excepted."""
    found = tf.gather(logits, ids, batch_dims=1)
    lower = tf.where(found > 0, found / penalty, found * penalty)
    lower = tf.where(ids == pad_id, found, lower)
    row = tf.broadcast_to(tf.range(tf.shape(ids)[0])[:, None], tf.shape(ids))
    return tf.tensor_scatter_nd_update(logits, tf.stack([row, ids], axis=-1), lower)


def until_done(done: int, body, variables: tuple) -> tuple:
    """Runs body until all rows are done, the variable number ``done``.

    Of the variables' shapes only the last axis is fixed: a cache grows, and so do batches.
    """

    def loose(value):
        rank = len(value.shape)
        last = list(value.shape[-1:]) if rank > 1 else [None] * rank
        return tf.TensorShape([None] * (rank - 1) + last)

    return tf.while_loop(
        lambda *now: ~tf.reduce_all(now[done]),
        body,
        variables,
        shape_invariants=tf.nest.map_structure(loose, variables),
    )
