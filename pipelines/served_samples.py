"""Answers of a generator: numbers of samples in, images or points out. See :mod:`.served`.

A sample is a function of its seed alone, and of its class where the model is conditional: the seed
decides the noise by TensorFlow's stateless generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import tensorflow as tf

from .data.source import SourceError, nearest
from .run import write_atomic

_BATCH = 64  # answers at a time
_ROWS = 256  # samples at a time


class Seeds:
    """From the seeds of samples to noise; the interface of :class:`.data.preprocess.Preprocess`
    that serving uses."""

    def __init__(self, model):
        self.noise_size = model.options["noise_size"]
        self.classes = model.options["num_classes"] if model.options["conditional"] else 0

    def raw_signature(self) -> dict[str, tf.TensorSpec]:
        names = ("seed", "class_id") if self.classes else ("seed",)
        return {name: tf.TensorSpec([None], tf.int64, name=name) for name in names}

    def tensor_spec(self) -> Any:
        noise = tf.TensorSpec([None, self.noise_size], tf.float32, name="noise")
        if not self.classes:
            return noise
        return {"noise": noise, "class_id": self.raw_signature()["class_id"]}

    def serve(self, raw: dict[str, tf.Tensor]) -> Any:
        """{"seed", "class_id"} [n] -> noise [n, z], or that and the class ids."""
        noise = noise_of(raw["seed"], self.noise_size)
        if not self.classes:
            return noise
        ids = raw["class_id"]
        wrong = tf.reduce_any((ids < 0) | (ids >= self.classes))
        check = tf.debugging.Assert(~wrong, [f"class_id must be 0 to {self.classes - 1}"])
        with tf.control_dependencies([check] if check is not None else []):
            return {"noise": noise, "class_id": tf.identity(ids)}


def noise_of(seeds, size: int) -> tf.Tensor:
    """Noise [n, size] of seeds int64 [n], each row from its own seed."""

    def one(seed):
        return tf.random.stateless_normal([size], tf.stack([seed, tf.zeros_like(seed)]))

    return tf.map_fn(one, tf.cast(seeds, tf.int64), fn_output_signature=tf.float32)


def answers(model):
    """A function: noise (and class ids) -> ``image_bytes`` [n] (PNG) and ``image`` uint8
    [n, h, w, c], or for points ``features`` float32 [n, f]."""

    def answer(x):
        values = model([x["noise"], x["class_id"]] if isinstance(x, dict) else x, training=False)
        values = tf.cast(values, tf.float32)
        if values.shape.rank != 4:
            return {"features": values}
        image = tf.cast(tf.round(tf.clip_by_value(values, 0.0, 255.0)), tf.uint8)
        files = tf.map_fn(tf.io.encode_png, image, fn_output_signature=tf.string)
        return {"image_bytes": files, "image": image}

    return answer


class Sampler:
    """Seeds [n] (and class ids) -> samples [n, h, w, c] uint8, or [n, f] float32, by one graph that
    follows the model's weights."""

    def __init__(self, model):
        self.model, self.conditional = model, model.options["conditional"]
        prepare, make = Seeds(model), answers(model)

        def run(raw):
            made = make(prepare.serve(raw))
            return made.get("image", made.get("features"))

        self._run = tf.function(run, autograph=False, input_signature=[prepare.raw_signature()])

    def __call__(self, seeds: np.ndarray, class_ids: np.ndarray | None = None) -> np.ndarray:
        parts = []
        for start in range(0, len(seeds), _ROWS):
            raw = {"seed": tf.constant(seeds[start : start + _ROWS], tf.int64)}
            if self.conditional:
                raw["class_id"] = tf.constant(class_ids[start : start + _ROWS], tf.int64)
            parts.append(self._run(raw).numpy())
        return np.concatenate(parts)


def examples(model, count: int) -> tuple[dict[str, np.ndarray], Any]:
    """The first seeds as raw inputs, and the noise of the same."""
    prepare = Seeds(model)
    rows = {"seed": np.arange(count, dtype=np.int64)}
    if prepare.classes:
        rows["class_id"] = rows["seed"] % prepare.classes
    x = prepare.serve({name: tf.constant(value) for name, value in rows.items()})
    return rows, tf.nest.map_structure(lambda tensor: tensor.numpy(), x)


def expected(model, x: Any) -> dict[str, np.ndarray]:
    """What the Keras model answers. Files are left out: a last bit may tip a pixel over."""
    found = answers(model)(tf.nest.map_structure(tf.constant, x))
    return {name: value.numpy() for name, value in found.items() if name != "image_bytes"}


def predict(run, served, inputs: Any) -> Iterator[dict[str, Any]]:
    """Samples of seeds. Images are written to ``samples/`` in the run directory.

    Args:
        run: a run of a generator.
        served: its functions.
        inputs: seeds, whole numbers or text of them; of a conditional model "SEED:CLASS", the class
            by its name or number.

    Yields:
        {"input", "file"} of images, {"input", "features"} of points.

    Raises:
        SourceError: no whole number, an unknown class, or none where one is needed.
    """
    conditional = run.model.options["conditional"]
    classes = list(run.dataset["classes"]) if conditional else []
    inputs = [inputs] if isinstance(inputs, str | int | np.integer) else inputs
    rows = ((str(one), _read(str(one), classes)) for one in inputs)
    while batch := list(islice(rows, _BATCH)):
        raw = {"seed": tf.constant([seed for _, (seed, _) in batch], tf.int64)}
        if conditional:
            raw["class_id"] = tf.constant([chosen for _, (_, chosen) in batch], tf.int64)
        found = {name: value.numpy() for name, value in served.raw(raw).items()}
        for i, (name, (seed, chosen)) in enumerate(batch):
            if "features" in found:
                yield {"input": name, "features": found["features"][i].tolist()}
                continue
            file = f"seed-{seed}" + (f"-class-{chosen}" if conditional else "")
            path = run.path / "samples" / f"{file}.png"
            write_atomic(path, found["image_bytes"][i])
            yield {"input": name, "file": str(path)}


def _read(text: str, classes: list[str]) -> tuple[int, int]:
    """(seed, class id) of "SEED" or "SEED:CLASS"."""
    number, colon, name = text.partition(":")
    try:
        seed = int(number)
    except ValueError:
        seed = 2**63
    if not -(2**63) <= seed < 2**63:
        raise SourceError(f"{text!r} is no seed: a generator takes whole numbers, such as 0 1 2.")
    if not classes:
        if colon:
            raise SourceError(f"{text!r}: this model takes no class. Give the seed {number} alone.")
        return seed, 0
    if name in classes:
        return seed, classes.index(name)
    if name.isdigit() and int(name) < len(classes):
        return seed, int(name)
    raise SourceError(
        f"{text!r} names no class. {nearest(name, classes)}Write {number}:CLASS, with one of "
        f"{', '.join(classes)}, or its number."
    )
