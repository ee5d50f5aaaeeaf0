"""Answers in words: translations, and the continuation of a prompt. See :mod:`.served`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from .texts import ALPHA, BEAM, TASKS

__all__ = ["TASKS", "answers", "examples", "expected"]

LONGEST = 256  # new tokens in an answer to a prompt, at most
# What ``serving_default`` continues a prompt with; ``generate`` leaves the choice to the caller.
TEMPERATURE, SEED = 0.8, 0
_PROMPT = 40  # characters of an example's prompt


def answers(model, preprocess):
    """Two functions of ids: answer(x [n, t]) -> {output: [n]}, and ``generate`` or None.

    ``generate`` is a tf.function of one dict: prompt, max_new_tokens, temperature, top_k, seed.
    """
    tokenizer = preprocess.tokenizer
    if preprocess.inputs["task"] == "translation":
        translate = model.translator(BEAM, ALPHA, preprocess.inputs["longest"])

        def answer(x):
            found = translate(x)
            return {"translation": tokenizer.decode(found["ids"]), "score": found["score"]}

        return answer, None

    run = model.generator(LONGEST, tokenizer.end_id)

    def write(x, max_new_tokens, temperature, top_k, seed):
        return {"text": tokenizer.decode(run(x, max_new_tokens, temperature, top_k, seed)["ids"])}

    def answer(x):
        n = tf.shape(x)[0]
        seed = tf.fill([n], tf.constant(SEED, tf.int64))
        return write(x, tf.fill([n], LONGEST), tf.fill([n], TEMPERATURE), tf.fill([n], 0), seed)

    def generate(inputs):
        inputs = dict(inputs)
        return write(preprocess(inputs.pop("prompt")), **inputs)

    kinds = {
        "prompt": tf.string,
        "max_new_tokens": tf.int32,
        "temperature": tf.float32,
        "top_k": tf.int32,
        "seed": tf.int64,
    }
    specs = {name: tf.TensorSpec([None], kind, name=name) for name, kind in kinds.items()}
    return answer, tf.function(generate, input_signature=[specs], autograph=False)


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
    run = model.generator(LONGEST, tokenizer.end_id)
    n = len(x)
    ids = run(
        tf.constant(x),
        tf.fill([n], LONGEST),
        tf.fill([n], TEMPERATURE),
        tf.fill([n], 0),
        tf.fill([n], tf.constant(SEED, tf.int64)),
    )["ids"]
    return {"text": _strings(tokenizer.decode_python(ids.numpy().tolist()))}


def _strings(texts) -> np.ndarray:
    return np.array([text.encode() for text in texts], object)
