"""From a series to examples: windows of history and horizon, and what the model sees of them.

An example is named by its *origin*, the row where its horizon begins: the model sees the
``history`` rows before it and what is known in advance of the ``horizon`` rows from it on, and
forecasts the targets there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from . import ops as chains
from .ops import OpsError
from .ops.series import Frame
from .readers import Reader, hold
from .source import SourceError
from .stream import FOREVER, deterministic, parallel, positions


class SeriesPreprocess:
    """A chain of ops on series with what it has learnt: raw windows -> model input.

    The counterpart of :class:`.preprocess.Preprocess`.

    Args:
        chain: the recipe's ``data.ops``.
        inputs: ``history`` and ``horizon`` in steps, ``columns`` of the history and of them
            ``known`` ones of the future, in the order of the arrays. :func:`lay_out` finds them.
        states: what each op has learnt; :meth:`fit` finds it.
    """

    kind = "series"

    def __init__(
        self,
        chain: str,
        inputs: dict[str, Any],
        states: list[dict[str, Any] | None] | None = None,
    ):
        self.chain, self.inputs = chain, dict(inputs)
        self.steps = chains.build(chain, self.kind)
        self.states = list(states or [None] * len(self.steps))

    def fit(self, frame: Frame) -> SeriesPreprocess:
        """Lets the ops that learn look at the training rows, as the source has them."""
        for place, (step, entry) in enumerate(self.steps):
            if entry.fit is not None:
                self.states[place] = entry.fit(frame, *step.args, **step.kwargs)
            frame = self._apply(place, frame)
        return self

    def _apply(self, place: int, frame: Frame) -> Frame:
        step, entry = self.steps[place]
        state = {} if entry.fit is None else {"state": self.states[place]}
        return entry.apply(frame, *step.args, **step.kwargs, **state)

    def scaled(self, values: tf.Tensor, names: list[str]) -> tf.Tensor:
        """Raw values [..., t, columns] of these columns as the model takes them."""
        frame = Frame(dict(zip(names, tf.unstack(values, len(names), axis=-1), strict=True)))
        for place in range(len(self.steps)):
            frame = self._apply(place, frame)
        return tf.stack([frame.columns[name] for name in names], axis=-1)

    def scale_of(self, target: str) -> tuple[float, float]:
        """(mean, standard deviation) that a target is standardised by; (0, 1) where it is not."""
        for (step, _), state in zip(self.steps, self.states, strict=True):
            if step.name == "standardize":
                if not state["scale"][target]:
                    raise SourceError(
                        f"The target {target!r} is {state['mean'][target]:g} in every training "
                        "row: there is nothing to learn. Set data.target to another column."
                    )
                return state["mean"][target], 1 / state["scale"][target]
        return 0.0, 1.0

    def serve(self, raw: dict[str, tf.Tensor]) -> Any:
        """The inputs of :meth:`raw_signature` -> those of the model; core TensorFlow ops only."""
        history = self.scaled(raw["history"], self.inputs["columns"])
        if not self.inputs["known"]:
            return history
        return {"history": history, "future": self.scaled(raw["future"], self.inputs["known"])}

    def raw_signature(self) -> dict[str, tf.TensorSpec]:
        """``history`` [n,t,f] and, where anything is known of it, ``future`` [n,h,k]; float32."""
        shapes = {
            "history": [None, self.inputs["history"], len(self.inputs["columns"])],
            "future": [None, self.inputs["horizon"], len(self.inputs["known"])],
        }
        return {n: tf.TensorSpec(s, tf.float32, name=n) for n, s in shapes.items() if s[-1]}

    def tensor_spec(self) -> Any:
        """The model's inputs: the same shapes, in a dictionary if there are two."""
        signature = self.raw_signature()
        return signature if self.inputs["known"] else signature["history"]

    def to_dict(self) -> dict[str, Any]:
        """All of it in values that JSON can hold."""
        states = [None if state is None else dict(state) for state in self.states]
        return {"kind": self.kind, "ops": self.chain, "inputs": self.inputs, "states": states}


def lay_out(chain: str, frame: Frame) -> Frame:
    """The series with the columns, known ones and window that the chain gives it, unscaled.

    Raises:
        OpsError: a chain that does not end with its only window, or has another op twice.
    """
    steps = chains.build(chain, "series")
    names = [step.name for step, _ in steps]
    if names[-1:] != ["window"]:
        raise OpsError(
            f"The ops of a series end with window(history, horizon), which cuts the examples; got "
            f'{chain!r}. Write, for instance, "standardize|window(336, 48)".'
        )
    for name in names:
        if names.count(name) > 1:
            raise OpsError(f"{name!r} stands more than once in {chain!r}. Name it once.")
    for step, entry in steps:
        if entry.fit is None:
            frame = entry.apply(frame, *step.args, **step.kwargs)
    return frame


class WindowReader(Reader):
    """Windows of one series in memory, by their origins.

    Args:
        frame: the whole series, laid out and unscaled.
        preprocess: fitted.
    """

    def __init__(self, frame: Frame, preprocess: SeriesPreprocess):
        super().__init__(preprocess)
        inputs = preprocess.inputs
        self.history, self.horizon = inputs["history"], inputs["horizon"]
        places = {name: place for place, name in enumerate(inputs["columns"])}
        self._known = [places[name] for name in inputs["known"]]
        self._targets = [places[name] for name in frame.targets]
        self.values = np.stack([frame.columns[name] for name in inputs["columns"]], axis=-1)
        self.truth = self.values[:, self._targets]  # float32 [t,m]
        scaled = preprocess.scaled(tf.constant(self.values), inputs["columns"]).numpy()
        self._scaled, self._future, self._ahead = (
            hold(scaled[:, part]) for part in (slice(None), self._known, self._targets)
        )

    def _gather(self, origin: tf.Tensor) -> tuple[Any, tf.Tensor]:
        past = origin[:, None] + tf.range(-self.history, 0, dtype=tf.int64)
        ahead = origin[:, None] + tf.range(self.horizon, dtype=tf.int64)
        x = tf.gather(self._scaled, past)
        if self._known:
            x = {"history": x, "future": tf.gather(self._future, ahead)}
        return x, tf.gather(self._ahead, ahead)

    def train(self, indices, batch_size, seed, start_step, shuffle, window) -> tf.data.Dataset:
        """The unbounded training stream; see :mod:`.stream`."""
        own = tf.constant(indices, tf.int64)

        def batch(step):
            _, position = positions(step, batch_size, len(indices), seed, shuffle)
            return self._gather(tf.gather(own, position))

        return parallel(tf.data.Dataset.range(start_step, FOREVER), batch)

    def split(self, indices, batch_size) -> tf.data.Dataset:
        """The windows in order, last batch smaller."""
        own = tf.constant(indices, tf.int64)

        def batch(step):
            return self._gather(own[step * batch_size : (step + 1) * batch_size])

        steps = tf.data.Dataset.range(math.ceil(len(indices) / batch_size))
        return deterministic(parallel(steps, batch))

    def targets(self, indices) -> np.ndarray:
        """What happened, float32 [n,h,m], in the targets' own units."""
        return self.truth[indices[:, None] + np.arange(self.horizon)]

    def raw(self, indices) -> dict[str, np.ndarray]:
        """{"history": [n,t,f], "future": [n,h,k] where anything is known}, unscaled."""
        past = self.values[indices[:, None] + np.arange(-self.history, 0)]
        if not self._known:
            return {"history": past}
        ahead = self.values[:, self._known][indices[:, None] + np.arange(self.horizon)]
        return {"history": past, "future": ahead}

    def seasonal(self, indices, season: int) -> np.ndarray:
        """The seasonal naive forecast, [n,h,m]: the last value seen at the same time of the season.

        That is ``season`` steps before each step, or as many seasons as it takes to come before
        the origin. The first window must have a season of rows before its origin.
        """
        ahead = np.arange(self.horizon)
        back = ahead - season * (ahead // season + 1)
        return self.truth[indices[:, None] + back]
