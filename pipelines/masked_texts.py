"""What a pre-trained BERT knows of language, and texts as points.

====================== =========================================================================
``mlm_loss``           mean -log probability of the hidden tokens, in nats
``mlm_accuracy``       share of the hidden tokens that the model finds likeliest
``nsp_accuracy``       share of examples of which it tells rightly whether the second part follows
====================== =========================================================================

Gaps are the same in every evaluation. Exported, it answers texts with embeddings: the mean of the
last layer over the text, of length 1; fine-tuning makes more of it.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..models.pooling import MeanPooling
from .data.masked import TASK
from .intervals import intervals

__all__ = ["TASK", "embedder", "measure"]

SAMPLES = 3


def measure(model, dataset, split: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metrics of a split with 95% intervals, and texts whose gaps the model has filled.

    Returns:
        ({"split", "examples", "metrics", "samples": [{"text", "filled"}]}, {"nll", "right",
        "tokens" [n] and with a question which text follows "nsp" [n]}).
    """
    found = score(model, dataset, split)

    def statistic(index: np.ndarray) -> dict[str, np.ndarray]:
        tokens = np.maximum(found["tokens"][index].sum(axis=-1), 1.0)
        values = {
            "mlm_loss": found["nll"][index].sum(axis=-1) / tokens,
            "mlm_accuracy": found["right"][index].sum(axis=-1) / tokens,
        }
        if "nsp" in found:
            values["nsp_accuracy"] = found["nsp"][index].mean(axis=-1)
        return values

    n = len(found["nll"])
    result = {"split": split, "examples": n, "metrics": intervals(statistic, n)}
    return result | {"samples": fill(model, dataset, split)}, found


def score(model, dataset, split: str) -> dict[str, np.ndarray]:
    """Of each example: the sum of -log p (nats) over hidden tokens, how many were found, how many
    there are, and whether it was told rightly if the second part follows."""

    @tf.function(autograph=False, reduce_retracing=True)
    def answer(x, y):
        outputs = model(x, training=False)
        logits = outputs["mlm"] if dataset.next_sentence else outputs
        asked = y["mlm"] if dataset.next_sentence else y
        real = tf.cast(x["positions"] != 0, tf.float32)
        nll = tf.nn.sparse_softmax_cross_entropy_with_logits(asked, tf.cast(logits, tf.float32))
        right = tf.cast(tf.argmax(logits, axis=-1, output_type=asked.dtype) == asked, tf.float32)
        sums = {"nll": nll * real, "right": right * real, "tokens": real}
        found = {name: tf.reduce_sum(values, axis=1) for name, values in sums.items()}
        if dataset.next_sentence:
            told = tf.argmax(outputs["nsp"], axis=-1, output_type=y["nsp"].dtype)
            found["nsp"] = tf.cast(told == y["nsp"], tf.float32)
        return found

    parts = [answer(*batch) for batch in dataset.split(split)]
    return {
        name: np.concatenate([part[name].numpy() for part in parts]).astype(np.float64)
        for name in parts[0]
    }


def fill(model, dataset, split: str) -> list[dict[str, str]]:
    """Three examples with their gaps, and the likeliest pieces in them."""
    tokenizer = dataset.preprocess.tokenizer
    x, _ = next(iter(dataset.split(split).unbatch().batch(SAMPLES)))
    outputs = model(x, training=False)
    best = tf.argmax(outputs["mlm"] if dataset.next_sentence else outputs, axis=-1).numpy()
    samples = []
    for ids, positions, words in zip(x["ids"].numpy(), x["positions"].numpy(), best, strict=True):
        gaps, filled = ids.copy(), ids.copy()
        hidden = positions > 0
        gaps[positions[hidden]] = tokenizer.mask_id
        filled[positions[hidden]] = words[hidden]
        # The ends of the two parts would end the text.
        kept = [row[row != tokenizer.end_id].tolist() for row in (gaps, filled)]
        texts = tokenizer.decode_python(kept)
        samples.append(dict(zip(("text", "filled"), texts, strict=True)))
    return samples


def embedder(model):
    """ids int32 [n, t] -> {"embedding": float32 [n, width]}: all of the text is segment 0."""
    options = model.get_config()
    inputs = {one.name: one for one in model.inputs if one.name != "positions"}
    encoder = keras.Model(inputs, model.get_layer(f"block_{options['layers']}").output)
    mean = MeanPooling()

    def answer(x):
        x = tf.convert_to_tensor(x)
        given = {"ids": x, "segments": tf.zeros_like(x)}
        hidden = encoder({name: given[name] for name in inputs}, training=False)
        return {"embedding": mean(hidden, mask=x != options["pad_id"])}

    return answer
