"""Recurrent networks for labels, forecasts and text: long short-term memory, and its rivals.

Hochreiter, Schmidhuber: Long short-term memory (1997). What was new: a cell whose state is *added
to*, behind gates that open and close. The gradient of a plain recurrent network is multiplied by
the same matrix at every step, and so vanishes or explodes; along the cell's sum it passes through
unchanged for as long as the gates keep it. The forget gate came in 2000 (Gers et al.), the GRU in
2014 (Cho et al.: one state, two gates), the plain network in 1990 (Elman).

A network is an embedding (for token ids), a stack of recurrent layers and a linear layer:

| task | reads | answers |
|---|---|---|
| "classification", "regression" | ids [n, t] or numbers [n, t, f] | [n, num_classes] from the end |
| "forecasting" | numbers [n, t, f] (+ known future [n, h, k]) | [n, h, num_classes] |
| "language-model" | ids [n, t] | logits [n, t, vocabulary_size] of each next id |

The loss decides how many outputs a forecast has: ``loss.num_outputs(targets)`` gives the
``num_classes`` for quantiles, a Gaussian, or plain values of one or more targets.

| name | options | trainable weights |
|---|---|---|
| rnn | input_shape=(28, 28), num_classes=10 | 21,386 |
| gru | the same | 61,962 |
| lstm | the same | 81,674 |
| lstm | task="language-model", vocabulary_size=10000, hidden=(650, 650), | 19,775,200 |
|      | embedding=650 | |

The last one is the "medium" network of Zaremba, Sutskever, Vinyals: Recurrent neural network
regularization (2014): dropout acts on what goes into each layer and into the last linear one, never
on the way from step to step.

Deviations from the papers:

1. The forget gate's bias starts at 1 (proposed by Gers et al., measured by Jozefowicz et al. 2015),
   so that the cell remembers before it has learnt what to forget. Kernels start as in Glorot and
   Bengio (2010), recurrent ones orthogonal; Zaremba et al. draw all from one uniform range.
2. No peepholes, no truncated gradient: back-propagation through all steps of the input.
3. Zaremba et al. hand the last state of a batch on to the next one; here each sequence starts from
   a state of zero, so that examples can be shuffled.
4. The GRU applies its reset gate after the product (``reset_after``), which is one product a step.
5. Inputs that are numbers, not embedded ids, are not dropped out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import decoding
from .layers import seeded, seeds
from .recurrent import LSTM

CELLS = {
    "lstm": LSTM,
    "gru": partial(keras.layers.GRU, use_cudnn=False),
    "rnn": keras.layers.SimpleRNN,
}
TASKS = ("classification", "regression", "forecasting", "language-model")


def recurrent_net(
    cell: str,
    input_shape: Sequence[int | None] = (None,),
    num_classes: int | None = None,
    task: str = "classification",
    hidden: Sequence[int] = (128,),
    vocabulary_size: int | None = None,
    embedding: int = 128,
    bidirectional: bool = False,
    dropout: float = 0.0,
    future_shape: Sequence[int] | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Network of one or more recurrent layers for one of four tasks, see above.

    Args:
        cell: "lstm", "gru" or "rnn".
        input_shape: (t,) for ids, (t, f) for numbers; None for t takes any length.
        num_classes: outputs (of each step of a forecast); a language model has vocabulary_size.
        task: "classification", "regression", "forecasting" or "language-model".
        hidden: units of each recurrent layer.
        vocabulary_size: ids 0 to vocabulary_size - 1, where 0 is padding, skipped by all layers;
            None: inputs are numbers.
        embedding: width of the vectors that ids become.
        bidirectional: each layer reads both ways, and has twice the units (labels only).
        dropout: share of what enters each layer set to zero in training, in [0, 1).
        future_shape: forecasting: (horizon, k), with k >= 0 numbers known of each future step, such
            as the calendar.
        seed: of weights and dropout; None draws them from ``keras.utils.set_random_seed``.

    Returns:
        Model with raw float32 outputs; a forecaster with k > 0 takes {"history": [n, t, f],
        "future": [n, horizon, k]}, every other model one array.

    Raises:
        ValueError: an option out of range, or one that its task does not have.
    """
    _check(cell, input_shape, num_classes, task, hidden, vocabulary_size, bidirectional, dropout)
    if (future_shape is not None) != (task == "forecasting"):
        raise ValueError(
            "Forecasting needs future_shape=(horizon, known numbers of each step), and no other "
            f"task has it; got task={task!r}, future_shape={future_shape!r}."
        )
    if task == "language-model":
        return RecurrentLanguageModel(
            vocabulary_size, cell, hidden, embedding, dropout, seed=seed, name=cell
        )
    parts = _Parts(cell, hidden, dropout, seed, keras.config.dtype_policy())
    input_name = "history" if task == "forecasting" else "inputs"
    if vocabulary_size is None:
        x = inputs = keras.Input(input_shape, name=input_name)
    else:
        inputs = keras.Input(input_shape, dtype="int32", name=input_name)
        x = parts.drop(parts.embedding(vocabulary_size, embedding)(inputs), "embedding")
    x, states, _ = parts.stack(x, bidirectional=bidirectional)
    if task != "forecasting":
        return keras.Model(inputs, parts.outputs(num_classes)(x), name=cell)
    horizon, known = future_shape
    if not known:  # all steps at once, from the last state
        x = parts.outputs(horizon * num_classes)(x)
        x = keras.layers.Reshape((horizon, num_classes), dtype="float32", name="steps")(x)
        return keras.Model(inputs, x, name=cell)
    # A second stack walks through the future, from the states that the first has ended in.
    future = keras.Input((horizon, known), name="future")
    x, *_ = parts.stack(future, every=True, initial=states, prefix="future_")
    outputs = parts.outputs(num_classes)(x)
    return keras.Model({"history": inputs, "future": future}, outputs, name=cell)


class _Parts:
    """Makes the layers of one network, each with a seed of its own."""

    def __init__(self, cell, hidden, dropout, seed, dtype):
        self.cell, self.hidden, self.dropout = cell, hidden, dropout
        self.seed, self.dtype = seeds(seed), dtype

    def embedding(self, vocabulary_size, width):
        return keras.layers.Embedding(
            vocabulary_size,
            width,
            mask_zero=True,
            embeddings_initializer=seeded("uniform", self.seed()),
            dtype=self.dtype,
            name="embedding",
        )

    def drop(self, x, name):
        if not self.dropout:
            return x
        layer = keras.layers.Dropout(
            self.dropout, seed=self.seed(), dtype=self.dtype, name=f"{name}_dropout"
        )
        return layer(x)

    def stack(self, x, every=False, initial=None, bidirectional=False, prefix=""):
        """The recurrent layers on x: (outputs of the last step, or of every one; the states that
        the layers end in; the layers)."""
        states, made = [], []
        for i, units in enumerate(self.hidden):
            name = f"{prefix}{self.cell}_{i + 1}"
            layer = CELLS[self.cell](
                units,
                kernel_initializer=seeded("glorot_uniform", self.seed()),
                recurrent_initializer=seeded("orthogonal", self.seed()),
                return_sequences=every or i + 1 < len(self.hidden),
                return_state=True,
                dtype=self.dtype,
                name=name,
            )
            if bidirectional:
                layer = keras.layers.Bidirectional(layer, dtype=self.dtype, name=name)
            x, *state = layer(x, initial_state=None if initial is None else initial[i])
            x = self.drop(x, name)
            states.append(state)
            made.append(layer)
        return x, states, made

    def outputs(self, width, dtype="float32"):
        return keras.layers.Dense(
            width,
            kernel_initializer=seeded("glorot_uniform", self.seed()),
            dtype=dtype,
            name="outputs",
        )


def _check(cell, input_shape, num_classes, task, hidden, vocabulary_size, bidirectional, dropout):
    if cell not in CELLS or task not in TASKS:
        raise ValueError(
            f"cell must be one of {', '.join(CELLS)} and task one of {', '.join(TASKS)}; "
            f"got {cell!r} and {task!r}."
        )
    rank = 2 if vocabulary_size is None else 1
    if len(input_shape) != rank:
        raise ValueError(
            "input_shape must be (t,) for ids of a vocabulary_size, and (t, f) for numbers "
            f"without; got {tuple(input_shape)!r} and vocabulary_size={vocabulary_size!r}."
        )
    if not hidden or min(hidden) < 1 or not 0.0 <= dropout < 1.0:
        raise ValueError(
            "hidden must be one or more numbers of units, and dropout a share in [0, 1); "
            f"got {tuple(hidden)!r} and {dropout!r}."
        )
    if task == "language-model":
        if vocabulary_size is None or num_classes not in (None, vocabulary_size):
            raise ValueError(
                "A language model needs vocabulary_size, and answers a logit for each id; got "
                f"vocabulary_size={vocabulary_size!r}, num_classes={num_classes!r}."
            )
    elif num_classes is None or num_classes < 1:
        raise ValueError(f"num_classes must be at least 1 for {task}; got {num_classes!r}.")
    if bidirectional and task not in ("classification", "regression"):
        raise ValueError(f"{task} cannot read both ways: it would see what it has to tell.")


@keras.saving.register_keras_serializable("epochal")
class RecurrentLanguageModel(keras.Model):
    """Ids [n, t] int32 to float32 logits [n, t, vocabulary_size] of each next id.

    The outputs carry the mask of the ids (0 is padding), with which Keras takes losses and metrics
    over real tokens. Arguments are those of :func:`recurrent_net`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        cell: str = "lstm",
        hidden: Sequence[int] = (128,),
        embedding: int = 128,
        dropout: float = 0.0,
        seed: int | None = None,
        name: str = "language_model",
        dtype: Any = None,
    ):
        dtype = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        parts = _Parts(cell, hidden, dropout, seed, dtype)
        embed = parts.embedding(vocabulary_size, embedding)
        head = parts.outputs(vocabulary_size, dtype)
        ids = keras.Input((None,), dtype="int32", name="inputs")
        x, _, recurrent = parts.stack(parts.drop(embed(ids), "embedding"), every=True)
        # The largest product stays in the compute dtype, what the loss sees is float32.
        logits = keras.layers.Activation("linear", dtype="float32", name="logits")(head(x))
        super().__init__(ids, logits, name=name)
        self.embed, self.recurrent, self.head = embed, recurrent, head
        self._generators: dict = {}
        self._options = {
            "vocabulary_size": vocabulary_size,
            "cell": cell,
            "hidden": list(hidden),
            "embedding": embedding,
            "dropout": dropout,
            "seed": seed,
            "name": name,
            "dtype": keras.dtype_policies.serialize(dtype),
        }

    def get_config(self):
        return dict(self._options)

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def generator(
        self, length: int, end_id: int | None = None, pieces: np.ndarray | None = None
    ) -> tf.types.experimental.GenericFunction:
        """A graph function that continues prompts by at most ``length`` tokens.

        Its inputs and outputs, and ``pieces``, are those of :func:`.decoding.generator`.
        """

        def step(tokens, position, states):
            x, after = tf.identity(self.embed(tokens)), []  # without the mask: none is skipped
            for layer, state in zip(self.recurrent, states, strict=True):
                x, state = layer.cell(x, state)
                after.append(state)
            return self.head(x), after

        def first_state(rows):
            return [layer.get_initial_state(rows) for layer in self.recurrent]

        return decoding.generator(step, first_state, length, end_id, pieces=pieces)

    def generate(
        self,
        prompt,
        length: int,
        temperature: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        end_id: int | None = None,
    ) -> dict:
        """Continues prompts [n, p] by ``length`` tokens: {"ids": [n, length], "score": [n]}.

        Rows draw from streams of their own, seeded with ``seed``, ``seed + 1``, ...
        """
        key = (length, end_id)
        if key not in self._generators:
            self._generators[key] = self.generator(*key)
        run = self._generators[key]
        return decoding.continued(run, prompt, length, temperature, top_k, seed)


lstm, gru, rnn = (partial(recurrent_net, cell) for cell in CELLS)
