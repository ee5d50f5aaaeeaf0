"""``signature.json``: what an export takes, what it answers, and a request that works."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import tensorflow as tf

from .ahead import describe_columns
from .data.series import step_of
from .run import Run
from .served import Served

_MEANINGS = {
    "image_bytes": "an image file (JPEG, PNG, BMP, GIF or WebP) of any size",
    "image": "pixels, as in training",
    "features": "numbers in the order of training",
    "history": "the steps before the forecast, oldest first, and of each its columns",
    "future": "what is known in advance of the steps to forecast, and of each its columns",
    "x": "preprocessed examples: what the network takes",
    "text": "any text, in UTF-8",
    "observation": "as the environment gives it, frames of a stack oldest first",
    "q_values": "what is expected from each action: the discounted sum of rewards",
    "action": "the best one, counted from 0",
    "prompt": "the beginning of a text, in UTF-8",
    "max_new_tokens": "how many tokens are written, at most; fewer where the context ends",
    "temperature": "logits are divided by it; 0 takes the likeliest token each time",
    "top_k": "draw among the so many likeliest tokens; 0: among all",
    "top_p": "draw among the likeliest tokens that together have this probability; 1: among all",
    "repetition_penalty": "above 1 what has been said becomes less likely",
    "stop": 'strings, as many for each prompt; the answer ends before the first; "" is none',
    "seed": "the same seed and inputs give the same answer",
    "translation": "the best answer that a beam search finds",
    "score": "log-probability of the answer, divided by its length penalty",
    "probabilities": "one for each label, in the order of `labels`; they sum to 1",
    "class_id": "position of the most probable label",
    "label": "the most probable label",
    "prediction": "in the target's own unit",
    "forecast": "of each step ahead, and of each target, in its own unit",
    "stddev": "standard deviation of the prediction, in the target's own unit",
    "quantiles": "quantiles of the target, lowest first, in its own unit",
    "embedding": "what the encoder makes of the image or text; compare embeddings by their cosine",
    "neighbor_ids": "positions of the nearest examples in the order of storing; -1: none",
    "distances": "distances to them, nearest first, after preprocessing",
    "noise": "what is drawn from a seed: numbers of a standard normal distribution",
}
_OF_SAMPLES = {
    "class_id": "what is asked for: position in `labels`",
    "image_bytes": "the image as a PNG file",
    "image": "its pixels, 0 to 255",
    "features": "a point, its numbers in the order of training",
}


def describe(served: Served, run: Run, rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """What stands in signature.json: inputs, units, outputs and a request that works.

    Args:
        served: the functions.
        run: their run.
        rows: at least one row of raw inputs, by the signature's names.
    """
    about = run.dataset
    columns = about["about"].get("columns", {})
    own = {key: name for name, key in served.names.items()}
    # A number that is missing has no form in JSON.
    one = {name: np.nan_to_num(v[:1]) if v.dtype.kind == "f" else v[:1] for name, v in rows.items()}
    reply = {
        name: value.numpy()
        for name, value in served.raw({k: tf.constant(v) for k, v in one.items()}).items()
    }
    meanings = _MEANINGS | (_OF_SAMPLES if about["task"] == "generation" else {})
    signatures = {}
    for signature, function in served.signatures.items():
        inputs = {}
        for spec in function.structured_input_signature[0]:
            for each in tf.nest.flatten(spec):
                inputs[each.name] = {"dtype": each.dtype.name, "shape": each.shape.as_list()}
                inputs[each.name] |= _about_input(each.name, own.get(each.name), columns)
                if about["task"] == "generation" and each.name in _OF_SAMPLES:
                    inputs[each.name]["meaning"] = _OF_SAMPLES[each.name]
                if about["kind"] == "series" and signature == "serving_default":
                    inputs[each.name]["columns"] = describe_columns(run, each.name)
        outputs = {
            name: {"dtype": value.dtype.name, "shape": value.shape.as_list()}
            | ({"meaning": meanings[name]} if name in meanings else {})
            for name, value in function.structured_outputs.items()
        }
        signatures[signature] = {"inputs": inputs, "outputs": outputs}
    quantiles = getattr(run.loss, "quantiles", None)
    return {
        "recipe": run.recipe.name,
        "task": about["task"],
        "target": {"name": about["target"]} | _about_input("", about["target"], columns),
        **(
            {"targets": about["about"]["targets"], "step": str(step_of(about["about"]))}
            if about["kind"] == "series"
            else {}
        ),
        "labels": list(about["classes"]),
        **({"quantiles": list(np.atleast_1d(quantiles))} if quantiles is not None else {}),
        "signatures": signatures,
        "example": {
            "request": {"signature_name": "serving_default", "instances": _as_json(one)},
            "response": {"predictions": _as_json(reply)},
        },
    }


def _about_input(name: str, column: str | None, columns: Any) -> dict[str, Any]:
    if column in _MEANINGS:
        names = {"columns": list(columns)} if column == "features" and columns else {}
        return {"meaning": _MEANINGS[column]} | names
    if column is None:
        return {"meaning": _MEANINGS[name]} if name in _MEANINGS else {}
    known = columns.get(column, {}) if isinstance(columns, dict) else {}
    known = {k: known[k] for k in ("unit", "meaning") if known.get(k)}
    return ({"column": column} if name else {}) | known


def _as_json(arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Rows as TensorFlow Serving's REST interface writes them: files in base64, text as it is."""

    def plain(name: str, value: Any) -> Any:
        if name == "image_bytes":
            return {"b64": base64.b64encode(value).decode()}
        if isinstance(value, bytes):
            return value.decode()
        if np.ndim(value):
            return [plain(name, each) for each in value]
        return (
            float(str(value)) if value.dtype.kind == "f" else value.item()
        )  # 0.6, not 0.6000000238

    count = len(next(iter(arrays.values())))
    return [{name: plain(name, values[i]) for name, values in arrays.items()} for i in range(count)]
