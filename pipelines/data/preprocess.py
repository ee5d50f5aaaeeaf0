"""From raw examples to what the model takes: one piece of code for evaluation, training, serving.

Images are decoded, brought to the channels of the source (and to its size, where all its images
have one), and go through the chain of ops; tables go through the ops and are concatenated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from . import ops as chains
from .decode import decode_rgb, is_jpeg, jpeg_window, to_channels
from .ops import OpsError
from .ops.image import like
from .source import SourceError


class Preprocess:
    """A chain of ops with what it has learnt from the training split.

    Args:
        kind: "image", "features" or "columns".
        chain: the recipe's ``data.ops``.
        inputs: JSON-able facts about raw examples. Images: ``height`` and ``width`` (None if they
            vary), ``channels``, ``dtype``. Features: ``features``, their number, or [t, f] of
            sequences. Columns: name -> "float32" or "string".
        states: what each op has learnt (None for ops that learn nothing); :meth:`fit` finds it.

    Raises:
        OpsError: an op that is unknown or does not fit the kind.
        SourceError: images of unequal size and no op that makes them equal.
    """

    def __init__(
        self,
        kind: str,
        chain: str,
        inputs: dict[str, Any],
        states: list[dict[str, Any] | None] | None = None,
    ):
        self.kind, self.chain, self.inputs = kind, chain, dict(inputs)
        self.steps = chains.build(chain, kind)
        self.states = list(states or [None] * len(self.steps))
        #: Leading ops that see images one by one, because they come in unequal sizes.
        self.alone = 0
        if kind == "image" and self.inputs["height"] is None:
            sizing = [place for place, (_, entry) in enumerate(self.steps) if entry.sets_size]
            if not sizing:
                raise SourceError(
                    "The images are of unequal sizes and no op makes them equal. Add one to "
                    'data.ops, e.g. "resize(224, 224)" or "resize(256, 256)|random_crop(224)".'
                )
            self.alone = sizing[0] + 1
        #: Leading ops that training runs one image after the other, in parallel: up to the last
        #: that looks at single images anyway.
        each = [place for place, (_, entry) in enumerate(self.steps) if entry.each]
        self.apart = max(self.alone, each[-1] + 1 if each else 0)

    @property
    def mirrored(self) -> bool:
        """Whether answers are averaged over both sides: ``flip_lr(average=True)``."""
        return any(
            step.name == "flip_lr" and (step.kwargs.get("average") or True in step.args[1:2])
            for step, _ in self.steps
        )

    def fit(self, read: Callable[[int], Iterable[Any]]) -> Preprocess:
        """Lets each op that learns look at the training split; returns self.

        Args:
            read: count -> the training examples as the first ``count`` ops leave them, in
                evaluation form, unshuffled: NumPy image batches, or the one dict of columns.
        """
        for place, (step, entry) in enumerate(self.steps):
            if entry.fit is None:
                continue
            data = read(place)
            if self.kind != "image":
                data = next(iter(data))
            self.states[place] = entry.fit(data, *step.args, **step.kwargs)
        return self

    def run(self, data: Any, rng=None, start: int = 0, stop: int | None = None) -> Any:
        """Applies ops ``start:stop`` to a batch; random ones act only if ``rng`` is given."""
        for place in range(len(self.steps))[start:stop]:
            step, entry = self.steps[place]
            extra: dict[str, Any] = {}
            if entry.fit is not None:
                extra["state"] = self.states[place]
            if entry.random:
                extra["rng"] = None if rng is None else rng.at(place)
            data = _fence(entry.apply(data, *step.args, **step.kwargs, **extra))
        return data

    def finish(self, data: Any) -> tf.Tensor:
        """What the ops leave as one float32 tensor [n,...]; columns side by side."""
        if self.kind == "image":
            return tf.cast(data, tf.float32)
        parts = []
        for name, column in data.items():
            if column.dtype == tf.string:
                raise OpsError(
                    f"The column {name!r} holds text, and no op turns it into numbers. Add "
                    f'one_hot("{name}") to data.ops.'
                )
            column = tf.cast(column, tf.float32)
            parts.append(column[:, None] if column.shape.rank == 1 else column)
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)

    def __call__(self, data: Any, rng=None) -> tf.Tensor:
        """Raw batch (decoded images of equal size, or columns) -> model input [n,...] float32."""
        return self.finish(self.run(data, rng))

    def open(self, content: tf.Tensor, rng=None, stop: int = 0) -> tf.Tensor:
        """An encoded image through the first ``stop`` ops, [h,w,c].

        Of a JPEG whose first op only looks at a window of it, that window alone is decoded.
        """

        def whole(stop):
            image = self.decode(content)
            return self.run(image[None], rng, 0, stop)[0] if stop else image

        if not stop or rng is None or self.steps[0][1].of_window is None:
            return whole(stop)
        step, entry = self.steps[0]

        def part():
            height, width, read = jpeg_window(content)

            def own(*window):
                return to_channels(read(*window), self.inputs["channels"])

            draws = rng.at(0)
            return entry.of_window(own, height, width, *step.args, **step.kwargs, rng=draws)[0]

        first = tf.cond(is_jpeg(content), part, lambda: whole(1))
        return self.run(first[None], rng, 1, stop)[0]

    def decode(self, content: tf.Tensor) -> tf.Tensor:
        """An encoded image -> uint8 [h,w,c] with the source's channels (and its size, if one)."""
        image = to_channels(decode_rgb(content), self.inputs["channels"])
        height, width = self.inputs["height"], self.inputs["width"]
        if height is None:
            return image
        same = tf.reduce_all(tf.shape(image)[:2] == [height, width])

        def resized():
            return like(tf.image.resize(image, (height, width), antialias=True), tf.uint8)

        return tf.ensure_shape(
            tf.cond(same, lambda: image, resized), (height, width, self.inputs["channels"])
        )

    def serve(self, raw: dict[str, tf.Tensor]) -> tf.Tensor:
        """The inputs of :meth:`raw_signature` -> model input [n,...]; core TensorFlow ops only.

        A row's answer does not depend on the other rows.
        """
        if self.kind != "image":
            return self({name: raw[name] for name in self.raw_signature()})
        if self.inputs["dtype"] != "uint8":
            return self(raw["image"])

        def one(content):
            return self.run(self.decode(content)[None], stop=self.alone)[0]

        size = (self.inputs["height"], self.inputs["width"], self.inputs["channels"])
        spec = tf.TensorSpec(size, tf.uint8)
        if self.alone:
            spec = self._after_alone(size[2])
        images = tf.map_fn(one, raw["image_bytes"], fn_output_signature=spec)
        return self.finish(self.run(images, start=self.alone))

    def _after_alone(self, channels: int) -> tf.TensorSpec:
        """What an image of any size is after the ops that see images one by one."""
        traced = tf.function(lambda image: self.run(image, stop=self.alone), autograph=False)
        signature = tf.TensorSpec((1, None, None, channels), tf.uint8)
        known = traced.get_concrete_function(signature).structured_outputs
        return tf.TensorSpec(known.shape[1:], known.dtype)

    def raw_signature(self) -> dict[str, tf.TensorSpec]:
        """The inputs of serving. Images: ``image_bytes``, or ``image`` where the source gave
        float32 pixels, whose range no file format fixes."""
        inputs = self.inputs
        if self.kind == "image":
            if inputs["dtype"] == "uint8":
                return {"image_bytes": tf.TensorSpec([None], tf.string, name="image_bytes")}
            size = [None, inputs["height"], inputs["width"], inputs["channels"]]
            return {"image": tf.TensorSpec(size, tf.float32, name="image")}
        if self.kind == "features":
            shape = [None, *np.atleast_1d(inputs["features"]).tolist()]
            return {"features": tf.TensorSpec(shape, tf.float32, name="features")}
        return {
            name: tf.TensorSpec([None], tf.as_dtype(dtype), name=name)
            for name, dtype in inputs.items()
        }

    def tensor_spec(self) -> tf.TensorSpec:
        """Shape and dtype of the model's input, [None, ...] float32."""
        signature = self.raw_signature()
        traced = tf.function(self.serve, autograph=False).get_concrete_function(signature)
        shape = traced.structured_outputs.shape
        return tf.TensorSpec([None, *shape[1:]], tf.float32, name="tensor")

    def to_dict(self) -> dict[str, Any]:
        """All of it in values that JSON can hold."""
        return {
            "kind": self.kind,
            "ops": self.chain,
            "inputs": dict(self.inputs),
            "states": [None if state is None else dict(state) for state in self.states],
        }


def open_preprocess(kind: str, chain: str, inputs: dict[str, Any], states: list | None = None):
    """The code between raw examples of a kind and the model: its arguments are the classes'.

    Returns:
        :class:`Preprocess`, for text and pairs :class:`.tokens.TextPreprocess`, for series
        :class:`.windows.SeriesPreprocess`, for environments :class:`.control.Observations`.
    """
    if kind == "series":
        from .windows import SeriesPreprocess

        return SeriesPreprocess(chain, inputs, states)
    if kind in ("text", "pairs"):
        from .tokens import TextPreprocess

        return TextPreprocess(kind, chain, inputs, states)
    if kind == "control":
        from .control import Observations

        return Observations(**inputs)
    return Preprocess(kind, chain, inputs, states)


def restore(saved: dict[str, Any]):
    """Reads what ``to_dict`` gave back into :func:`open_preprocess`'s result."""
    return open_preprocess(saved["kind"], saved["ops"], saved["inputs"], saved["states"])


def _fence(data: Any) -> Any:
    """Keeps TensorFlow's graph optimiser from merging the constants of two ops.

    It does so in a tf.function, and not eagerly or in tf.data: serving would differ from training
    in the last bit. It does not look past EnsureShape, which costs nothing.
    """
    if isinstance(data, dict):
        return {name: tf.ensure_shape(column, column.shape) for name, column in data.items()}
    return tf.ensure_shape(data, data.shape)


def numpy_columns(columns: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    """Columns as NumPy; text as Python str."""
    return {
        name: np.array([text.decode() for text in column.numpy()], dtype=object)
        if column.dtype == tf.string
        else column.numpy()
        for name, column in columns.items()
    }
