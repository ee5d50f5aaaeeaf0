"""BERT and GPT in training: ours, keras-hub's, and Hugging Face's on PyTorch, with random weights.

A training step is by Adam on full rows (nothing is padded, masks are given all the same), dropout
0.1, as each library's users write it: ``compile`` and ``fit``, or a loop over batches. In bf16 the
weights are float32 and products bfloat16: Keras's mixed_bfloat16, PyTorch's autocast.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .language_nets import (
    TINY,
    fit_rate,
    hugging_face,
    hugging_face_bert,
    hugging_face_gpt,
    keras_hub_bert,
    keras_hub_gpt,
    our_bert,
    our_gpt,
    policy,
    random_ids,
    torch_rate,
)

TRAINED = {"batch": 16, "length": 128, "vocabulary": 30_522}
BERT = {"layers": 4, "width": 256, "heads": 4, "hidden": 1024, "context": 128, "dropout": 0.1}
GPT = {"layers": 6, "width": 384, "heads": 6, "hidden": 1536, "context": 128, "dropout": 0.1}
HIDDEN_WORDS = 20  # of 128: 15%


def bert(
    side: str,
    *,
    quick: bool,
    task: str = "classification",
    precision: str = "float32",
    jit: bool = False,
    threads: int | None = None,
    tiny: bool = False,
) -> dict[str, Any]:
    """Training tokens a second of BERT 4x256, two classes or 20 hidden words a row.

    Of the hidden words, Hugging Face's model computes the logits of every position: it has no other
    way. The loss is over the same ones.
    """
    sizes, rows = BERT | (TINY if tiny else {}), _rows(tiny)
    n, t, vocabulary = rows["batch"], rows["length"], rows["vocabulary"]
    ids, rng = random_ids(n, t, vocabulary=vocabulary), np.random.default_rng(1)
    places = np.sort(rng.permuted(np.tile(np.arange(t), (n, 1)), axis=1)[:, :HIDDEN_WORDS]).astype(
        "int32"
    )
    classes = rng.integers(0, 2, n)
    y = classes if task == "classification" else np.take_along_axis(ids, places, axis=1)
    steps, epochs = (4, 3) if quick else (10, 5)
    if side == "Hugging Face":
        torch, transformers = hugging_face(threads)
        model = hugging_face_bert(transformers, task, sizes, vocabulary)
        flat = torch.from_numpy((np.arange(n)[:, None] * t + places).ravel()).long()

        def answers(given):
            logits = model(**given).logits
            return logits if task == "classification" else logits.flatten(0, 1)[flat]

        rate = torch_rate(torch, model, answers, ids, y, precision, steps, epochs)
    else:
        policy(precision, threads)
        build = our_bert if side == "ours" else keras_hub_bert
        model, x = build(task, sizes, vocabulary, ids, places)
        rate = fit_rate(model, x, y, side == "ours", jit, steps, epochs)
    return {"rate": rate * ids.size, "unit": "tokens/s"}


def gpt(
    side: str,
    *,
    quick: bool,
    precision: str = "float32",
    jit: bool = False,
    threads: int | None = None,
    tiny: bool = False,
) -> dict[str, Any]:
    """Training tokens a second of a GPT-2 of 6 layers and width 384, the next token everywhere."""
    sizes, rows = GPT | (TINY if tiny else {}), _rows(tiny)
    vocabulary = rows["vocabulary"]
    both = random_ids(rows["batch"], rows["length"] + 1, vocabulary=vocabulary)
    ids, following = both[:, :-1].copy(), both[:, 1:].copy()
    steps, epochs = (2, 3) if quick else (3, 4)
    if side == "Hugging Face":
        torch, transformers = hugging_face(threads)
        model = hugging_face_gpt(transformers, sizes, vocabulary)

        def answers(given):
            return model(**given, use_cache=False).logits.flatten(0, 1)

        rate = torch_rate(torch, model, answers, ids, following, precision, steps, epochs)
    else:
        policy(precision, threads)
        if side == "ours":
            model, x = our_gpt(sizes, vocabulary), ids
        else:
            model = keras_hub_gpt(sizes, vocabulary)
            x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        rate = fit_rate(model, x, following, side == "ours", jit, steps, epochs)
    return {"rate": rate * ids.size, "unit": "tokens/s"}


def _rows(tiny: bool) -> dict[str, int]:
    return TRAINED | ({"batch": 2, "length": 24, "vocabulary": 50} if tiny else {})
