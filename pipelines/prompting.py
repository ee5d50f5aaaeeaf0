"""What a language model makes of given texts: how likely they are, and which of several answers is.

likelihood("runs/gpt", ["to be or not to be"])
prompt = few_shot([("great fun", "good"), ("a bore", "bad")], "I slept")
choose("runs/gpt", [prompt], [" good", " bad"])
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from .data import SourceError
from .run import Run, RunError

_ROWS = 16  # scored at a time, of similar length


def likelihood(run: Run | str | os.PathLike, texts: Sequence[str]) -> list[dict[str, Any]]:
    """How likely texts are: of each its ``log_likelihood``, ``tokens`` and ``perplexity``.

    The log-likelihood (nats) is that of all tokens but the first, each given those before it;
    ``tokens`` is their number and the perplexity exp(-log_likelihood / tokens). A text of more
    tokens than the context is read in windows, each of which begins half a context after the one
    before, so that no token but the first ones is told from less than half a context.

    Raises:
        RunError: the run is of no language model, or not finished.
        SourceError: a text of fewer than two tokens, which tells nothing.
    """
    run = _language_model(run)
    ids = run.preprocess.python(list(texts))
    for text, row in zip(texts, ids, strict=True):
        if len(row) < 2:
            raise SourceError(
                f"The text {text!r} has {len(row)} tokens: a likelihood is of tokens after others. "
                "Give two or more."
            )
    found = _sums(run, ids, [1] * len(ids))
    return [
        {
            "log_likelihood": float(total),
            "tokens": len(row) - 1,
            "perplexity": math.exp(-total / (len(row) - 1)),
        }
        for total, row in zip(found, ids, strict=True)
    ]


def few_shot(
    examples: Sequence[tuple[str, str]],
    text: str,
    instruction: str = "",
    form: str = "{text}\n=> {answer}",
    between: str = "\n\n",
) -> str:
    """A prompt that shows a task by examples (Brown et al. 2020, section 2) and ends before the
    answer to ``text``.

    Args:
        examples: (text, answer), in the order of the prompt.
        text: what is asked.
        instruction: stands before all.
        form: of an example, with {text} and, at its end, {answer}.
        between: what separates examples.

    Raises:
        ValueError: a form without {text}, or that does not end with {answer}.
    """
    if "{text}" not in form or not form.endswith("{answer}"):
        raise ValueError(f"form has to hold {{text}} and to end with {{answer}}; got {form!r}.")
    shown = [form.replace("{answer}", b).replace("{text}", a) for a, b in examples]
    asked = form.removesuffix("{answer}").rstrip(" ").replace("{text}", text)
    return between.join([*([instruction] if instruction else []), *shown, asked])


def choose(
    run: Run | str | os.PathLike,
    prompts: Sequence[str],
    answers: Sequence[str],
    per_token: bool = False,
) -> list[dict[str, Any]]:
    """Which of several answers a model finds likeliest after each prompt.

    Args:
        run: a finished run of a language model.
        prompts: e.g. of :func:`few_shot`.
        answers: as they go on after a prompt, mostly with a blank before: " good".
        per_token: compare means over the answer's tokens in place of sums, which favour short ones.

    Returns:
        Of each prompt {"answer", "log_likelihoods": {answer: nats}, "probabilities": {answer: p}},
        the probabilities among these answers.

    Raises:
        RunError: the run is of no language model, or not finished.
        SourceError: prompt and answer are longer than the context, or an answer adds no token.
    """
    run = _language_model(run)
    if len(set(answers)) < 2:
        raise SourceError(f"There is nothing to choose: the answers are {list(answers)}.")
    context = run.model.get_config().get("context")
    starts = run.preprocess.python(list(prompts))
    rows, begins = [], []
    for prompt, start in zip(prompts, starts, strict=True):
        whole = run.preprocess.python([prompt + one for one in answers])
        # A tokenizer may join the end of the prompt with an answer, and what is compared has to
        # begin at the same place for all.
        pairs = zip(start, *whole, strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, pairs))
        if not same:
            raise SourceError(
                f"The prompt {prompt[-40:]!r} has no token of its own before the answers, and the "
                "first token of a text has no likelihood. Give it a word or more."
            )
        for answer, row in zip(answers, whole, strict=True):
            if same >= len(row):
                raise SourceError(f"{answer!r} adds no token to the prompt {prompt[-40:]!r}.")
            if context is not None and len(row) > context:
                raise SourceError(
                    f"Prompt and answer {answer!r} have {len(row)} tokens, and the model's context "
                    f"has {context}. Show fewer examples."
                )
            rows.append(row)
            begins.append(same)
    totals = _sums(run, rows, begins)
    if per_token:
        totals = totals / np.array([len(row) - b for row, b in zip(rows, begins, strict=True)])
    found = []
    for scores in totals.reshape(len(prompts), len(answers)):
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        found.append(
            {
                "answer": answers[int(scores.argmax())],
                "log_likelihoods": dict(zip(answers, scores.tolist(), strict=True)),
                "probabilities": dict(zip(answers, shares.tolist(), strict=True)),
            }
        )
    return found


def _language_model(run: Run | str | os.PathLike) -> Run:
    run = run if isinstance(run, Run) else Run(run)
    if run.dataset["task"] != "language-model":
        raise RunError(
            f"{run.path} is a run for {run.dataset['task']}; only a language model says how likely "
            "texts are."
        )
    return run


def _windows(row: list[int], begin: int, context: int | None) -> Iterator[tuple[list[int], int]]:
    """Pieces of a row, and in each the place from which tokens count: every token once."""
    # A piece has the tokens that go in and, behind them, the last that is asked for.
    size = len(row) if context is None else context + 1
    start = 0
    while True:
        yield row[start : start + size], begin - start
        if start + size >= len(row):
            return
        begin = max(begin, start + size)
        start += max(1, size // 2)


@functools.lru_cache(maxsize=1)
def _scorer(model):
    """A graph function: the log-likelihood [n] of the ids [n, t] that are ``real`` [n, t]."""

    @tf.function(reduce_retracing=True, autograph=False)
    def score(ids, real):
        logits = tf.cast(model(ids[:, :-1], training=False), tf.float32)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, 1:], logits)
        return -tf.reduce_sum(loss * real[:, 1:], axis=1)

    return score


def _sums(run: Run, rows: list[list[int]], begins: list[int]) -> np.ndarray:
    """The log-likelihood of each row's tokens from a place on, [n]."""
    context = run.model.get_config().get("context")
    pieces = [
        (number, piece, place)
        for number, (row, begin) in enumerate(zip(rows, begins, strict=True))
        for piece, place in _windows(row, begin, context)
    ]
    pieces.sort(key=lambda one: len(one[1]))
    fill, model = run.preprocess.tokenizer.fill_id, run.model

    score = _scorer(model)
    totals = np.zeros(len(rows))
    for start in range(0, len(pieces), _ROWS):
        some = pieces[start : start + _ROWS]
        width = max(len(piece) for _, piece, _ in some)
        ids = np.full((len(some), width), fill, np.int32)
        real = np.zeros((len(some), width), np.float32)
        for i, (_, piece, place) in enumerate(some):
            ids[i, : len(piece)] = piece
            real[i, max(place, 0) : len(piece)] = 1.0
        for (number, *_), value in zip(some, score(ids, real).numpy(), strict=True):
            totals[number] += value
    return totals
