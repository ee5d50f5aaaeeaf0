"""Answers for new inputs: image files, the rows of a CSV file, texts, standard input, arrays.

The very function that is exported answers here, in process, 256 rows at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import tensorflow as tf

from . import ahead, served_samples
from .data import SourceError
from .generation import Generation, check_prompts
from .inputs import rows_of, windows
from .prompting import likelihood
from .run import Run
from .served import Served

BATCH = 256
TOP = 5


def predict(
    run: Run | str | os.PathLike, inputs: Any, settings: Generation | None = None
) -> list[dict[str, Any]]:
    """One answer for each input row, in order.

    Args:
        run: a finished run, or its directory.
        inputs: depends on what the run was trained on.

            - images: a path or several, "-" for one image file on standard input, or uint8 arrays
              [h,w], [h,w,c], [n,h,w,c] or a list of them;
            - a table: the path of a CSV file with a header ("-": standard input), of which the
              target and other columns are passed over, or {column: values};
            - text: a string or several; one that is the path of a file (.txt, or a table with the
              column of training) stands for its lines or rows, "-" for those of standard input;
            - an environment: observations, an array [n,...] or one of them, or .npy files of such;
            - a generator: seeds, whole numbers, or "SEED:CLASS" where it is conditional;
            - numbers: an array [n,f] or [f], or such a CSV file, its columns by name where the
              names of training are known, else in order; sequences: an array [n,t,f] or [t,f];
            - a series: a CSV file with time stamps, whose values are forecast from where they end
              (see :func:`.ahead.from_file`), or {"history": [n,t,f], "future": [n,h,k]}.

        settings: of language models: how prompts are continued.

    Returns:
        Each a dict of JSON-able values. ``input`` (a path, a row's number from 1, or the text), and

            - classification: ``label``, ``class_id``, ``probability``, ``probabilities`` {label: p}
              and with more than ten classes ``top5``, the most probable first: [{"label",
              "class_id", "probability"}];
            - regression: ``prediction`` and, where the model has them, ``stddev``, ``quantiles``;
            - environments: ``action``, counted from 0, and ``q_values``;
            - generators: ``file``, a PNG in the run directory, or of points ``features``;
            - a representation: ``embedding``, a list of numbers;
            - translation: ``translation`` and ``score``; a language model: ``text``;
            - KNN also ``neighbors``, nearest first: [{"id": position in the order of storing,
              "distance"}];
            - a series: one answer a step and target, see :func:`.ahead.answers`.

    Raises:
        SourceError: settings for a run that continues nothing, or a prompt that leaves no room in
            the model's context; a file that is missing or cannot be read, a missing column, a wrong
            number of features, values that lead to no answer.
        RunError: the run is not finished.
    """
    return list(answers(run, inputs, settings))


def answers(
    run: Run | str | os.PathLike, inputs: Any, settings: Generation | None = None
) -> Iterator[dict[str, Any]]:
    """:func:`predict`, one answer after the other: memory does not grow with their number."""
    run = run if isinstance(run, Run) else Run(run)
    if settings is not None and run.dataset["task"] != "language-model":
        raise SourceError(
            f"This run is for {run.dataset['task']}: it continues no prompt. Leave max_new_tokens, "
            "temperature and the like out."
        )
    served = Served.of(run)
    if run.dataset["task"] == "generation":
        yield from served_samples.predict(run, served, inputs)
        return
    if run.dataset["kind"] == "series":
        for window in windows(inputs, run):
            yield from ahead.answers(served, run, window)
        return
    rows = rows_of(inputs, run)
    while batch := list(islice(rows, BATCH)):
        names = [name for name, _ in batch]
        if run.dataset["task"] == "language-model":
            yield from _continued(run, served, names, batch, settings or Generation())
            continue
        raw = {
            served.names[own]: _stack([values[own] for _, values in batch]) for own in batch[0][1]
        }
        found = _ask(served, raw, names)
        for i, name in enumerate(names):
            yield _answer(name, {k: v[i] for k, v in found.items()}, run.dataset["classes"])


def _continued(run: Run, served: Served, names, batch, settings: Generation):
    prompts = [next(iter(values.values())) for _, values in batch]
    check_prompts(run, [prompt.decode() for prompt in prompts], settings)
    texts = served.more["generate_full"](settings.inputs(prompts))["text"].numpy()
    for name, text in zip(names, texts, strict=True):
        yield {"input": name, "text": text.decode()}


def scores(run: Run | str | os.PathLike, inputs: Any) -> Iterator[dict[str, Any]]:
    """How likely a language model finds texts, given as in :func:`predict`.

    See :func:`.prompting.likelihood`. The text comes along as ``input``.
    """
    run = run if isinstance(run, Run) else Run(run)
    if run.dataset["task"] != "language-model":
        likelihood(run, [])  # says so
    rows = rows_of(inputs, run)
    while batch := list(islice(rows, BATCH)):
        texts = [next(iter(values.values())).decode() for _, values in batch]
        for (name, _), found in zip(batch, likelihood(run, texts), strict=True):
            yield {"input": name, **found}


def _stack(values: list) -> np.ndarray:
    return np.array(values, object) if isinstance(values[0], bytes) else np.stack(values)


def _ask(served: Served, raw: dict[str, np.ndarray], names: list) -> dict[str, np.ndarray]:
    def ask(rows):
        return served.raw({key: tf.constant(value) for key, value in rows.items()})

    try:
        found = {name: value.numpy() for name, value in ask(raw).items()}
    except tf.errors.InvalidArgumentError:
        if "image_bytes" not in raw:
            raise
        for i, name in enumerate(names):  # which one was it?
            try:
                ask({key: value[i : i + 1] for key, value in raw.items()})
            except tf.errors.InvalidArgumentError:
                raise SourceError(
                    f"{name} cannot be read as an image: it is damaged, or no JPEG, PNG, BMP, "
                    "GIF or WebP file. Replace it or leave it out."
                ) from None
        raise
    if "translation" in found or "text" in found:
        return found
    main = ("probabilities", "prediction", "q_values", "embedding")
    values = next(found[k] for k in main if k in found)
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(names), -1).all(axis=1))
    if len(bad):
        name = names[bad[0]]
        raise SourceError(
            f"{f'Row {name}' if isinstance(name, int) else name} has no answer: missing or "
            "infinite values reach the model. Fill them in, or train with impute among the ops."
        )
    return found


def _answer(name: Any, found: dict[str, np.ndarray], classes: list[str]) -> dict[str, Any]:
    answer: dict[str, Any] = {"input": name}
    if "probabilities" in found:
        chosen = int(found["class_id"])
        answer |= {
            "label": found["label"].decode(),
            "class_id": chosen,
            "probability": float(found["probabilities"][chosen]),
            "probabilities": dict(zip(classes, found["probabilities"].tolist(), strict=True)),
        }
        if len(classes) > 2 * TOP:
            best = np.argsort(-found["probabilities"], kind="stable")[:TOP]
            answer["top5"] = [
                {
                    "label": classes[i],
                    "class_id": int(i),
                    "probability": float(found["probabilities"][i]),
                }
                for i in best
            ]
    elif "translation" in found or "text" in found:
        answer |= {
            key: value.decode() if isinstance(value, bytes) else float(value)
            for key, value in found.items()
        }
    else:
        plain = ("prediction", "stddev", "quantiles", "action", "q_values", "embedding")
        answer |= {key: found[key].tolist() for key in plain if key in found}
    if "neighbor_ids" in found:
        pairs = zip(found["neighbor_ids"].tolist(), found["distances"].tolist(), strict=True)
        answer["neighbors"] = [{"id": i, "distance": d} for i, d in pairs if i >= 0]
    return answer
