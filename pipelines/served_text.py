"""Answers in words: translations, and the continuation of a prompt. See :mod:`.served`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from . import generation
from .texts import ALPHA, BEAM, TASKS

__all__ = ["TASKS", "answers", "examples", "expected"]

_PROMPT = 40  # characters of an example's prompt


def answers(model, preprocess):
    """answer(x [n, t]) -> {output: [n]}, and further signatures by name, see
    :func:`.generation.functions`."""
    tokenizer = preprocess.tokenizer
    if preprocess.inputs["task"] == "translation":
        translate = model.translator(BEAM, ALPHA, preprocess.inputs["longest"])

        def answer(x):
            found = translate(x)
            return {"translation": tokenizer.decode(found["ids"]), "score": found["score"]}

        return answer, {}

    return generation.functions(model, preprocess)


def examples(dataset, split: str, count: int) -> tuple[dict[str, np.ndarray], Any]:
    """Raw texts of a split by the name of the input, and their ids [n, t]; of prompts None."""
    name = dataset.preprocess.input_name
    if dataset.task == "language-model":
        texts = next(iter(dataset.raw(split, [0]).values()))
        words = str(texts[0])[: _PROMPT * count].split(" ")
        share = max(1, len(words) // count)
        prompts = [" ".join(words[i * share : (i + 1) * share]) or "a" for i in range(count)]
        return {name: _strings(prompts)}, None
    raw = dataset.raw(split, np.arange(count))
    batch = next(iter(dataset.split(split).unbatch().batch(count)))[0]
    ids = batch["source"] if isinstance(batch, dict) else batch
    return {name: _strings(raw["source" if "source" in raw else "text"])}, ids.numpy()


def expected(model, preprocess, x: np.ndarray) -> dict[str, np.ndarray]:
    """What the Keras model answers to ids [n, t], decoded in Python."""
    tokenizer = preprocess.tokenizer
    if preprocess.inputs["task"] == "translation":
        found = model.translate(x, BEAM, ALPHA, preprocess.inputs["longest"])
        return {
            "translation": _strings(tokenizer.decode_python(found["ids"].numpy().tolist())),
            "score": found["score"].numpy(),
        }
    settings = generation.Generation()
    end = tokenizer.end_id if tokenizer.end_id >= 0 else None
    run = model.generator(settings.most, end)
    n = len(x)
    ids = run(
        tf.constant(x),
        tf.fill([n], settings.most),
        tf.fill([n], settings.temperature),
        tf.fill([n], settings.top_k),
        tf.fill([n], tf.constant(settings.seed, tf.int64)),
    )["ids"]
    return {"text": _strings(tokenizer.decode_python(ids.numpy().tolist()))}


def _strings(texts) -> np.ndarray:
    return np.array([text.encode() for text in texts], object)
