"""A run's answers: raw inputs in, words and numbers out. The export is this; so is ``predict``.

Names of inputs. A column of a table keeps its name as in the file wherever TensorFlow can carry it.
It cannot carry blanks, signs other than ``_ - .``, letters outside ASCII, Python's reserved words,
and two names that differ only in case or in such signs; these become the nearest possible name
(``median income`` -> ``median_income``), and ``signature.json`` names the column of every input.
"""

from __future__ import annotations

import keyword
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import forecasts, masked_texts, served_samples, served_text
from .data import SourceError, load
from .run import Run, RunError
from .supervised import with_mirror

log = logging.getLogger(__name__)


def input_names(columns: Iterable[str]) -> dict[str, str]:
    """Column -> the name of its input in the signature; see the module's text. Unique.

    >>> input_names(["age", "median income", "class"])
    {'age': 'age', 'median income': 'median_income', 'class': 'class_'}
    """
    columns = list(columns)
    names: dict[str, str] = {}
    taken: set[str] = set()

    def same(name: str) -> str:  # what TensorFlow compares
        return re.sub(r"[^a-z0-9]", "_", name.lower())

    # Names that can stay come first, so that a changed one never pushes them aside.
    for column in sorted(columns, key=lambda c: _possible(c) != c):
        name = base = _possible(column) or f"column_{columns.index(column) + 1}"
        number = 1
        while same(name) in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(same(name))
        names[column] = name
    return {column: names[column] for column in columns}


def _possible(column: str) -> str:
    plain = unicodedata.normalize("NFKD", column)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", plain)
    plain = re.sub(r"^[^A-Za-z0-9]+", "", plain)
    return f"{plain}_" if keyword.iskeyword(plain) or plain == "self" else plain


class Served(tf.Module):
    """From raw inputs to answers in words and numbers: what is exported and what predicts.

    Args:
        model: network or KNN; its outputs are those that ``loss.predict`` reads.
        loss: turns outputs into probabilities or predictions.
        preprocess: raw inputs -> model inputs.
        about: the run's dataset.json: task, classes, target_scale.

    Attributes:
        names: raw input (as in the data) -> input of the signature.
        raw: tf.function {input: [n, ...]} -> {output: [n, ...]}; ``tensor``: x [n, ...] -> the
            same.
    """

    def __init__(self, model: keras.Model, loss, preprocess, about: dict[str, Any]):
        super().__init__(name="served")
        task = about["task"]
        if task == "unlabelled":
            raise RunError(
                f"This run's data are {task}: its model has no answer to export or predict."
            )
        # The variables alone are saved: a Keras object in the file would ask for Keras on loading.
        self.state = [variable.value for variable in model.variables]
        self.tables = getattr(preprocess, "modules", None)  # lookup tables have to be found too
        specs = preprocess.raw_signature()
        self.names = input_names(specs)
        self.more: dict[str, Any] = {}  # further signatures
        if task in served_text.TASKS:
            answer, self.more = served_text.answers(model, preprocess)
        else:
            answer = _answers(model, loss, preprocess, about)

        def raw(inputs):
            return answer(preprocess.serve({own: inputs[key] for own, key in self.names.items()}))

        named = {
            key: tf.TensorSpec(specs[own].shape, specs[own].dtype, name=key)
            for own, key in self.names.items()
        }
        spec = preprocess.tensor_spec()
        if not isinstance(spec, dict):
            spec = tf.TensorSpec(spec.shape, spec.dtype, name="x")
        self.raw = tf.function(raw, input_signature=[named], autograph=False)
        self.tensor = tf.function(answer, input_signature=[spec], autograph=False)

    @classmethod
    def of(cls, run: Run) -> Served:
        """The functions of a finished run."""
        generates = run.dataset["task"] == "generation"  # it answers to no example
        preprocess = served_samples.Seeds(run.model) if generates else run.preprocess
        return cls(run.model, run.loss, preprocess, run.dataset)

    @cached_property
    def signatures(self) -> dict[str, Any]:
        """Name of the signature -> concrete function."""
        functions = {"serving_default": self.raw, "tensor": self.tensor, **self.more}
        return {name: function.get_concrete_function() for name, function in functions.items()}


def _answers(model: keras.Model, loss, preprocess, about: dict[str, Any]):
    """x [n, ...] -> answers for classes, numbers, forecasts or observations, by name."""
    if about["task"] == "control":
        return lambda x: action_values(model, x)
    if about["task"] == "generation":
        return served_samples.answers(model)
    if about["task"] == masked_texts.TASK:
        return masked_texts.embedder(model)
    classes, scale = list(about["classes"]), about["target_scale"]

    def answer(x):
        outputs, more = respond(model, x)
        if (
            about["task"] == "forecasting"
        ):  # a recurrent layer does not know how many steps it gives
            outputs = tf.ensure_shape(outputs, [None, preprocess.inputs["horizon"], None])
        outputs = with_mirror(loss.predict(outputs), model, loss, x, preprocess)
        if about["task"] == "classification":
            probabilities = tf.cast(outputs["probabilities"], tf.float32)
            chosen = tf.argmax(probabilities, axis=-1)
            labels = tf.constant([name.encode() for name in classes])
            answers = {
                "probabilities": probabilities,
                "class_id": chosen,
                "label": tf.gather(labels, chosen),
            }
        elif about["task"] == "forecasting":
            answers = forecasts.answers(outputs, scale)
        else:
            mean, deviation = scale
            answers = {name: tf.cast(value, tf.float32) for name, value in outputs.items()}
            for name in ("prediction", "quantiles"):
                if name in answers:
                    answers[name] = answers[name] * deviation + mean
            if "stddev" in answers:
                answers["stddev"] = answers["stddev"] * deviation
        return answers | more

    return answer


def action_values(model: keras.Model, x) -> dict[str, tf.Tensor]:
    """Observations [n, ...] -> ``q_values`` float32 [n, a] and the best ``action`` int64 [n]."""
    values = tf.cast(model(x, training=False), tf.float32)
    return {"q_values": values, "action": tf.argmax(values, axis=-1)}


def respond(model: keras.Model, x) -> tuple[Any, dict[str, Any]]:
    """Outputs in evaluation form [n, ...], and what a model that remembers examples can say more:
    ``neighbor_ids`` int64 [n,k] (-1: fewer than k are stored) and ``distances`` float32 [n,k]."""
    if not hasattr(model, "neighbors"):
        return model(x, training=False), {}
    ids, distances = model.neighbors(x)  # one search for both
    return model.vote(ids, distances), {"neighbor_ids": ids, "distances": distances}


def examples(run: Run, data: Any = None, count: int = 4) -> tuple[dict[str, np.ndarray], Any]:
    """Raw examples of the validation split and the same rows as the evaluation pipeline has them.

    Args:
        run: a run.
        data: its arrays, where it was trained on such.
        count: how many, at most.

    Returns:
        ({input of the signature: [n, ...]}, x [n, ...], or a dictionary of such). Where the data
        cannot be opened any more, or have no examples, made-up rows and None.
    """
    if run.dataset["task"] == "generation":
        return served_samples.examples(run.model, count)
    names = input_names(run.preprocess.raw_signature())
    try:
        dataset = load(run.recipe.data, data)
    except SourceError as error:
        log.warning("the data of %s cannot be opened, example rows are made up: %s", run, error)
        return _made_up(run.preprocess, names, count), None
    if not dataset.sizes:
        return _made_up(run.preprocess, names, count), None
    split = "validation" if "validation" in dataset.sizes else "train"
    count = min(count, dataset.sizes[split])
    if dataset.task == masked_texts.TASK:
        documents = dataset.raw(split, np.arange(min(count, len(dataset.rows(split)))))
        return {key: _column(documents["text"]) for key in names.values()}, None
    if dataset.kind in ("text", "pairs"):
        return served_text.examples(dataset, split, count)
    if dataset.kind == "control":
        observations = dataset.observations(count)
        return {"observation": observations}, observations
    raw = dataset.raw(split, np.arange(count))
    if "image_bytes" in names:
        raw = {"image_bytes": [tf.io.encode_png(image).numpy() for image in raw["image"]]}
    batches = dataset.split(split).unbatch().batch(count)
    batch = next(iter(batches))
    x = batch[0] if isinstance(batch, tuple) else batch
    x = tf.nest.map_structure(lambda tensor: tensor.numpy(), x)
    return {key: _column(raw[own]) for own, key in names.items()}, x


def _column(values: Sequence | np.ndarray) -> np.ndarray:
    array = np.asarray(values, object if isinstance(values[0], str | bytes) else None)
    if array.dtype.kind in "OU":
        array = np.array([v.encode() if isinstance(v, str) else v for v in array], object)
    return array


def _made_up(preprocess, names: dict[str, str], count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for own, spec in preprocess.raw_signature().items():
        if own == "image_bytes":
            channels = preprocess.inputs["channels"]
            size = [preprocess.inputs["height"] or 64, preprocess.inputs["width"] or 64, channels]
            noise = draw.integers(0, 256, [count, *size]).astype(np.uint8)
            values = np.array([tf.io.encode_png(image).numpy() for image in noise], object)
        elif spec.dtype == tf.string:
            values = np.array([b""] * count, object)
        else:
            shape = [count, *spec.shape.as_list()[1:]]
            values = draw.uniform(0, 1, shape).astype(spec.dtype.as_numpy_dtype)
        made[names[own]] = values
    return made
