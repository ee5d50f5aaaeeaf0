"""From strings to padded ids: one chain of ops for training, evaluation and serving.

Each op has two faces that agree (see :mod:`.ops.text`). Training uses the fast one: every text is
turned into ids once, in Python. Serving uses the one of core TensorFlow ops.

Ids are int32; rows are filled up on the right with padding, id 0 in vocabularies of our own, and
else ``tokenizer.fill_id``. What the model gets:

==================  ====================================  ====================================
task                x                                     y
==================  ====================================  ====================================
classification      ids [n,t]                             class ids [n]
language-model      ids [n,context]                       the ids that come next [n,context]
translation         {"source": ids [n,s],                 the target's ids and the end [n,t]
                    "target": start, then ids [n,t]}
==================  ====================================  ====================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from . import ops as chains
from .ids import Ids, Through
from .ops import OpsError
from .ops.text import TextOp, Tokenizer
from .source import Rows
from .stored import StoredTexts, directory, fingerprint_of
from .stream import FOREVER, deterministic, parallel, permute, positions

_BUCKETS = 2**31  # the key of the order of a window's batches; see stream.py
PAD_TO = 8  # widths of training batches: multiples, so that fewer kernels are prepared


class TextPreprocess:
    """The chain of a recipe's ``data.ops`` on text.

    Args:
        kind: "text" or "pairs" (then the chain acts on sources and targets alike).
        chain: the recipe's ``data.ops``; one of its ops is a tokenizer.
        inputs: {"task": the source's task}; for pairs also "longest", the tokens of the longest
            training target with its end, once they are known.
        states: what each op has learnt; :meth:`fit` finds it.

    Raises:
        OpsError: an op that is unknown or not for text.
    """

    def __init__(self, kind: str, chain: str, inputs: dict[str, Any], states: list | None = None):
        self.kind, self.chain, self.inputs = kind, chain, dict(inputs)
        self.steps = chains.build(chain, "text")
        self.states = list(states or [None] * len(self.steps))

    def fit(self, read: Callable[[int], Iterable]) -> TextPreprocess:
        """Lets each op that learns look at the training texts; returns self.

        Args:
            read: count -> the training texts as the first ``count`` ops leave them; an iterable.
        """
        for place, (step, entry) in enumerate(self.steps):
            if entry.fit is not None:
                self.states[place] = entry.fit(read(place), *step.args, **step.kwargs)
        self.tokenizer  # noqa: B018  raises where there is none
        return self

    @cached_property
    def modules(self) -> list[TextOp]:
        """The ops, with their tables: what an export has to keep."""
        found = [self._module(place) for place in range(len(self.steps))]
        for module in found:
            if hasattr(module, "follow"):
                module.follow(_tokenizer(found, self.chain))
        return found

    def _module(self, place: int) -> TextOp:
        step, entry = self.steps[place]
        state = {} if entry.fit is None else {"state": self.states[place]}
        return entry.apply(*step.args, **step.kwargs, **state)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The op that turns text into ids. Raises OpsError where the chain has none."""
        return _tokenizer(self.modules, self.chain)

    def python(self, texts: Iterable[str]) -> list[list[int]]:
        """Texts to ids."""
        rows = list(texts)
        for module in self.modules:
            rows = module.python(rows)
        return rows

    def through(self, texts: Callable[[], Iterable[str]], count: int | None = None) -> Through:
        """What ``texts()`` gives, through the first ``count`` ops, or all."""
        first = self.modules if count is None else [self._module(i) for i in range(count)]
        return Through(texts, first)

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """string [n] -> ids int32 [n,t], padded; core TensorFlow ops."""
        rows = texts
        for module in self.modules:
            rows = module.graph(rows)
        if self.inputs["task"] == "masked-language-model":  # whose examples are enclosed, too
            edge = tf.ones([rows.nrows(), 1], rows.dtype)
            start, end = edge * self.tokenizer.start_id, edge * self.tokenizer.end_id
            rows = tf.concat([start, rows[:, : self.inputs["context"] - 2], end], axis=1)
        return _pad(tf.cast(rows, tf.int32), 1, self.tokenizer.fill_id)

    def serve(self, raw: dict[str, tf.Tensor]) -> tf.Tensor:
        """The input of :meth:`raw_signature` -> ids [n,t]."""
        return self(raw[self.input_name])

    @property
    def input_name(self) -> str:
        """``text``, or ``prompt`` where it is continued."""
        return "prompt" if self.inputs["task"] == "language-model" else "text"

    def raw_signature(self) -> dict[str, tf.TensorSpec]:
        """The input of serving."""
        return {self.input_name: tf.TensorSpec([None], tf.string, name=self.input_name)}

    def tensor_spec(self) -> tf.TensorSpec:
        """The ids, [None, None] int32."""
        return tf.TensorSpec([None, None], tf.int32, name="tensor")

    def to_dict(self) -> dict[str, Any]:
        """All of it in values that JSON can hold."""
        return {
            "kind": self.kind,
            "ops": self.chain,
            "inputs": dict(self.inputs),
            "states": list(self.states),
        }


def _tokenizer(modules: list[TextOp], chain: str) -> Tokenizer:
    for module in modules:
        found = getattr(module, "tokenizer", module)  # of another chain, or itself
        if isinstance(found, Tokenizer):
            return found
    raise OpsError(
        f"data.ops is {chain!r}, which has no tokenizer. Text needs one, e.g. "
        '"nfkc|lowercase|wordpiece(8000)|max_tokens(128)" or "characters".'
    )


class TextReader:
    """The texts of one split of a source, by row number: for classes, and for translation.

    Args:
        rows: with the column ``text``, or ``source`` and ``target``.
        preprocess: strings -> ids; may learn its states after this.
        bucket: ``data.bucket_batches``.
    """

    def __init__(self, rows: Rows, preprocess: TextPreprocess, bucket: int = 1):
        self.rows, self.preprocess, self.bucket = rows, preprocess, bucket
        self.target = None if rows.target is None else tf.constant(rows.target)

    def python(self, indices, count: int) -> Through:
        """All texts of these rows, through the first ``count`` ops."""
        columns = self.rows.columns.values()
        texts = lambda: (column[row] for column in columns for row in indices)  # noqa: E731
        return self.preprocess.through(texts, count)

    @cached_property
    def ids(self) -> dict[str, Ids]:
        """Column -> its rows as ids; those of stored texts are stored as well."""
        with tf.init_scope():  # not in the graph of whatever map asks for them first
            return {name: self._ids(column) for name, column in self.rows.columns.items()}

    def _ids(self, column) -> Ids:
        place, preprocess = None, self.preprocess
        if isinstance(column, StoredTexts):
            made_from = [fingerprint_of({"text": column}), preprocess.chain, preprocess.states]
            place = directory("ids", made_from)
        return Ids(preprocess.through(lambda: column), preprocess.tokenizer.vocabulary_size, place)

    def count(self, indices) -> int:
        """Examples that these rows make."""
        return len(indices)

    def train(self, indices, batch_size, seed, start_step, shuffle, window) -> tf.data.Dataset:
        """The unbounded training stream; see :mod:`.stream`, and ``data.bucket_batches``."""
        own = tf.constant(indices, tf.int64)
        rows = self._order(self._sizes()[indices], batch_size, seed, start_step, shuffle)
        return parallel(rows, lambda _, place: self._batch(tf.gather(own, place), PAD_TO))

    def _order(self, lengths, batch_size, seed, start_step, shuffle) -> tf.data.Dataset:
        """Epochs and places, int64 [batch_size] each, of examples of these lengths [n]."""
        group, lengths = self.bucket, tf.convert_to_tensor(lengths)

        def batches(number):  # those of a window of `group` batches, [group, batch_size]
            n = len(lengths)
            epoch, place = positions(number, group * batch_size, n, seed, shuffle)
            if group > 1:
                order = tf.argsort(tf.gather(lengths, place), stable=True)
                epoch, place = tf.gather(epoch, order), tf.gather(place, order)
            found = [tf.reshape(one, [group, batch_size]) for one in (epoch, place)]
            turn = permute(tf.range(group, dtype=tf.int64), group, seed, number, _BUCKETS)
            return tuple(tf.gather(one, turn) if shuffle and group > 1 else one for one in found)

        windows = tf.data.Dataset.range(start_step // group, FOREVER)
        return parallel(windows, batches).unbatch().skip(start_step % group)

    def _sizes(self) -> np.ndarray:
        """What rows are sorted by for batches of little padding, int64 [n].

        A pair's target decides, with its end and as wide as it will be padded, since a token of it
        costs more than one of the source (attention to the source, logits); among equal ones the
        source does. Of LibreOffice's help this computes 11% less than sorting by the sum.
        """
        if "text" in self.ids:
            return self.ids["text"].lengths
        source, target = (self.ids[name].lengths for name in ("source", "target"))
        return -(-(target + 1) // PAD_TO) * (source.max() + 1) + source

    def split(self, indices, batch_size, count: int | None = None) -> tf.data.Dataset:
        """The rows in order, last batch smaller."""
        own = tf.constant(indices, tf.int64)
        steps = tf.data.Dataset.range(math.ceil(len(indices) / batch_size))
        batch = parallel(
            steps, lambda i: self._batch(own[i * batch_size : (i + 1) * batch_size], 1)
        )
        return deterministic(batch)

    def _batch(self, index: tf.Tensor, pad_to: int):
        tokenizer = self.preprocess.tokenizer
        fill = tokenizer.fill_id
        if "text" in self.ids:
            x = _pad(self.ids["text"].gather(index), pad_to, fill)
            return x if self.target is None else (x, tf.gather(self.target, index))
        source = _pad(self.ids["source"].gather(index), pad_to, fill)
        target = self.ids["target"].gather(index)
        edge = tf.ones([tf.shape(index)[0], 1], tf.int32)
        given = tf.concat([edge * tokenizer.start_id, target], axis=1)
        asked = tf.concat([target, edge * tokenizer.end_id], axis=1)
        return {"source": source, "target": _pad(given, pad_to, fill)}, _pad(asked, pad_to, fill)

    def targets(self, indices) -> np.ndarray | None:
        """Class ids; of pairs the target strings."""
        if self.rows.target is not None:
            return self.rows.target[indices]
        return self.rows.columns["target"][indices] if "target" in self.rows.columns else None

    def raw(self, indices) -> dict[str, np.ndarray]:
        """The strings of these rows, by column."""
        return self.rows.take(indices).columns


def _pad(rows: tf.RaggedTensor, pad_to: int, fill: int) -> tf.Tensor:
    """int32 [n,t], padded with ``fill``; t is at least 1 and a multiple of ``pad_to``."""
    longest = tf.maximum(tf.reduce_max(rows.row_lengths()), 1)
    width = (longest + pad_to - 1) // pad_to * pad_to
    return rows.to_tensor(fill, shape=tf.stack([-1, width]))
