"""Ids of many texts, end to end, in memory or in a file, and the long row that they make."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from .ops import OpsError
from .ops.text import TextOp
from .stored import Arrays, arrays, in_blocks, tensor

_SMALL = 2**16  # ids below are stored in two bytes


class Through:
    """Texts as ops leave them, made while one goes through them; as often as one likes.

    Args:
        texts: -> strings.
        modules: the ops.
    """

    def __init__(self, texts: Callable[[], Iterable[str]], modules: list[TextOp]):
        self.texts, self.modules = texts, modules

    def __iter__(self) -> Iterator:
        for block in self.blocks():
            yield from block

    def blocks(self) -> Iterator[list]:
        """Lists of strings, or of lists of ids; see :func:`.stored.in_blocks`."""
        before, rest = 0, iter(in_blocks(self.texts()))
        for rows in rest:
            count = len(rows)
            try:
                for module in self.modules:
                    rows = module.python(rows)
            except OpsError as error:
                if not before and next(rest, None) is None:  # its counts are those of all texts
                    raise
                which = f"{count} texts behind the first {before}"
                if not before:
                    which = f"first {count} texts"
                raise OpsError(f"Of the {which}: {error}") from None
            before += count
            yield rows


class Ids:
    """Rows of ids, end to end: row i is ``values[splits[i] : splits[i + 1]]``.

    Args:
        rows: lists of ids.
        vocabulary_size: ids are below.
        place: where they lie if they don't lie in memory; :func:`.stored.directory`.

    Attributes:
        values: tensor [tokens]; int32, in files of small vocabularies uint16; see :meth:`at`.
        splits: tensor int64 [n + 1].
        array: the same for NumPy.
        starts: int64 [n], of the rows; NumPy.
        lengths: int64 [n]; NumPy.
        place: as given.
    """

    def __init__(self, rows: Through, vocabulary_size: int, place: Path | None = None):
        self.place = place
        small = place is not None and vocabulary_size <= _SMALL
        found = arrays(place, lambda: _joined(rows, np.uint16 if small else np.int32))
        self.values, self.splits = tensor(found["values"]), tensor(found["splits"])
        self.array = np.asarray(memoryview(self.values))
        splits = np.asarray(memoryview(self.splits))
        self.starts, self.lengths = splits[:-1], np.diff(splits)

    def at(self, places: tf.Tensor) -> tf.Tensor:
        """The ids at places of :attr:`values`, int32 as they come."""
        return tf.cast(tf.gather(self.values, places), tf.int32)

    def gather(self, index: tf.Tensor) -> tf.RaggedTensor:
        """The rows at ``index`` [n], int32 [n, None]."""
        rows = tf.RaggedTensor.from_row_splits(self.values, self.splits, validate=False)
        return tf.cast(tf.gather(rows, index), tf.int32)


def _joined(rows: Through, dtype) -> Iterator[Arrays]:
    total = 0
    yield {"values": np.zeros(0, dtype), "splits": np.zeros(1, np.int64)}
    for block in rows.blocks():
        splits = total + np.cumsum([len(row) for row in block], dtype=np.int64)
        total = int(splits[-1])
        values = np.concatenate([np.asarray(row, dtype) for row in block])
        yield {"values": values, "splits": splits}


def key_of(indices) -> str:
    """A name for these row numbers."""
    return hashlib.sha256(np.ascontiguousarray(indices, np.int64)).hexdigest()


class Packed:
    """Some rows of ids as one long row, each with an end behind it.

    A single one is not ended: it is a cut out of a longer text.

    Args:
        ids: of all rows.
        indices: which.
        end: the id of the end.
    """

    def __init__(self, ids: Ids, indices: np.ndarray, end: int):
        self._ids, self._end = ids, end
        lengths = ids.lengths[indices] + (len(indices) > 1)
        ends = np.cumsum(lengths)
        self._ended, self._length = len(indices) > 1, int(ends[-1])
        # A token's place among all ids is its place here and what its row has been moved by.
        self._ends, self._moved = tensor(ends), tensor(ids.starts[indices] - (ends - lengths))

    def __len__(self) -> int:
        return self._length

    def at(self, places: tf.Tensor) -> tf.Tensor:
        """The tokens at ``places``, int64 of any shape, as int32 of that shape."""
        row = tf.searchsorted(self._ends, tf.reshape(places, [-1]), side="right")
        row = tf.reshape(row, tf.shape(places))
        theirs = places + tf.gather(self._moved, row)
        if not self._ended:
            return self._ids.at(theirs)
        last = places == tf.gather(self._ends, row) - 1
        return tf.where(
            last, self._end, self._ids.at(tf.where(last, tf.zeros_like(theirs), theirs))
        )
