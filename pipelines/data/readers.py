"""Where the examples of a split lie (in memory, in image files, in record files), as streams.

Each reader gives ``train`` (unbounded, see :mod:`.stream`), ``split`` (in order, evaluation form),
``targets`` (original units) and ``raw`` (to look at).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from ..recipe import Data
from .preprocess import Preprocess
from .source import Records, Rows
from .stream import (
    FOREVER,
    SHARDS,
    WINDOWS,
    Draws,
    deterministic,
    end_at_once,
    parallel,
    permute,
    positions,
)


class Reader:
    """Examples of one split of a source, by row number; subclasses know where they lie.

    Args:
        preprocess: raw examples -> model input; may learn its states after this.

    Attributes:
        scale: (mean, standard deviation) by which targets are standardised, or None.
        views: how often an example is augmented in training; with several, x is [n,views,...].
    """

    def __init__(self, preprocess: Preprocess):
        self.preprocess = preprocess
        self.scale: tuple[float, float] | None = None
        self.views = 1

    def count(self, indices) -> int:
        """Examples that these rows make."""
        return len(indices)

    def _draws(self, *key) -> list[Draws]:
        """Those of each view, of examples with this seed, epochs and indices."""
        return [Draws(*key).view(number) for number in range(self.views)]

    def _target(self, y: tf.Tensor) -> tf.Tensor:
        if self.scale is None:
            return y
        mean, deviation = self.scale
        return (y - np.float32(mean)) * np.float32(1.0 / deviation)

    def _batches(self, rows, batch_size, seed, count: int | None = None):
        """Rows (epoch, index, item, [target]): opened one by one, then in batches.

        Random ops act if a seed is given, and only then are incomplete batches dropped.
        """
        pre, random = self.preprocess, seed is not None
        stop = len(pre.steps) if count is None else count
        apart = min(pre.apart if random else pre.alone, stop)

        def first(epoch, index, item, *target):
            draws = self._draws(seed, epoch[None], index[None]) if random else [None]
            return epoch, index, tuple(self._open(item, d, apart) for d in draws), *target

        def second(epoch, index, views, *target):
            draws = self._draws(seed, epoch, index) if random else [None]
            made = [pre.run(x, d, apart, stop) for x, d in zip(views, draws, strict=True)]
            made = made if count is not None else [pre.finish(x) for x in made]
            x = _together(made)
            return (x, *(self._target(y) for y in target)) if target else x

        if count is not None and count < pre.alone:
            batch_size = 1  # still of unequal sizes
        rows = parallel(rows, first).batch(batch_size, drop_remainder=random)
        return parallel(rows, second)

    def _open(self, item: tf.Tensor, draws: Draws | None, stop: int) -> tf.Tensor:
        """An item through the first ``stop`` ops, without a batch dimension."""
        return self.preprocess.run(item[None], draws, 0, stop)[0] if stop else item


def _together(views: list[tf.Tensor]) -> tf.Tensor:
    """Views, each [n,...], as [n,views,...]; a single one as it is."""
    return views[0] if len(views) == 1 else tf.stack(views, axis=1)


def hold(array: np.ndarray) -> tf.Tensor:
    """A tensor in main memory. Streams capture it: it never becomes part of a graph."""
    with tf.device("CPU:0"):
        if array.dtype.kind in "OU":
            return tf.constant(array.tolist(), tf.string)
        # identity: the tensor of tf.constant alone keeps a second copy alive
        return tf.identity(tf.constant(array))


class ArrayReader(Reader):
    """Rows in memory. They are held once: the tensors, of which ``rows`` becomes a view."""

    def __init__(self, rows: Rows, preprocess: Preprocess):
        super().__init__(preprocess)
        self.columns = {name: hold(column) for name, column in rows.columns.items()}
        self.target = None if rows.target is None else hold(rows.target)
        self.rows = Rows(
            {
                name: column if column.dtype.kind in "OU" else np.asarray(memoryview(tensor))
                for (name, column), tensor in zip(
                    rows.columns.items(), self.columns.values(), strict=True
                )
            },
            rows.target,
        )

    def _gather(self, index: tf.Tensor):
        columns = {name: tf.gather(column, index) for name, column in self.columns.items()}
        data = columns["image"] if self.preprocess.kind == "image" else columns
        target = None if self.target is None else self._target(tf.gather(self.target, index))
        return data, target

    def train(self, indices, batch_size, seed, start_step, shuffle, window) -> tf.data.Dataset:
        """The unbounded training stream; see the module's docstring."""
        own = tf.constant(indices, tf.int64)

        def batch(step):
            epoch, position = positions(step, batch_size, len(indices), seed, shuffle)
            index = tf.gather(own, position)
            data, target = self._gather(index)
            x = _together([self.preprocess(data, d) for d in self._draws(seed, epoch, index)])
            return x if target is None else (x, target)

        steps = tf.data.Dataset.range(start_step, FOREVER)
        return parallel(steps, batch)

    def split(self, indices, batch_size, count: int | None = None) -> tf.data.Dataset:
        """The rows in order, last batch smaller; only through ``count`` ops if given."""
        own = tf.constant(indices, tf.int64)

        def batch(step):
            data, target = self._gather(own[step * batch_size : (step + 1) * batch_size])
            if count is not None:
                return self.preprocess.run(data, stop=count)
            x = self.preprocess(data)
            return x if target is None else (x, target)

        steps = tf.data.Dataset.range(math.ceil(len(indices) / batch_size))
        return deterministic(parallel(steps, batch))

    def targets(self, indices) -> np.ndarray | None:
        """In original units or ids, [len(indices)]."""
        return None if self.rows.target is None else self.rows.target[indices]

    def raw(self, indices) -> dict[str, np.ndarray]:
        """Raw columns of these rows; images as {"image": uint8 or float32 [m,h,w,c]}."""
        return self.rows.take(indices).columns


class FileReader(Reader):
    """Image files, read and decoded when they are needed."""

    def __init__(self, rows: Rows, preprocess: Preprocess):
        super().__init__(preprocess)
        self.rows = rows
        self.paths = hold(rows.columns["path"])
        self.target = None if rows.target is None else hold(rows.target)

    def _open(self, item, draws, stop):
        return self.preprocess.open(tf.io.read_file(item), draws, stop)

    def _row(self, epoch, index):
        target = () if self.target is None else (tf.gather(self.target, index),)
        return (epoch, index, tf.gather(self.paths, index), *target)

    def train(self, indices, batch_size, seed, start_step, shuffle, window) -> tf.data.Dataset:
        """The unbounded training stream; see the module's docstring."""
        own = tf.constant(indices, tf.int64)

        def names(step):
            epoch, position = positions(step, batch_size, len(indices), seed, shuffle)
            return self._row(epoch, tf.gather(own, position))

        steps = tf.data.Dataset.range(start_step, FOREVER)
        rows = parallel(steps, names).unbatch()
        return self._batches(rows, batch_size, seed)

    def split(self, indices, batch_size, count: int | None = None) -> tf.data.Dataset:
        """The rows in order, last batch smaller; only through ``count`` ops if given."""
        own = tf.data.Dataset.from_tensor_slices(np.asarray(indices, np.int64))
        rows = own.map(lambda index: self._row(tf.zeros_like(index), index))
        batches = self._batches(rows, batch_size, None, count)
        if count is not None and self.target is not None:
            batches = batches.map(lambda x, y: x)
        return deterministic(batches)

    def targets(self, indices) -> np.ndarray | None:
        """Class ids, [len(indices)]."""
        return None if self.rows.target is None else self.rows.target[indices]

    def raw(self, indices) -> dict[str, Any]:
        """{"image": decoded images, uint8; [m,h,w,c], or a list where sizes differ; "path"}."""
        paths = self.rows.columns["path"][indices]
        images = [self.preprocess.decode(tf.io.read_file(str(path))).numpy() for path in paths]
        equal = self.preprocess.inputs["height"] is not None
        return {"image": np.stack(images) if equal and images else images, "path": paths}


class RecordReader(Reader):
    """Record files read in order: a seeded order of the files, and in it of every window."""

    def __init__(self, records: Records, preprocess: Preprocess):
        super().__init__(preprocess)
        self.records = records
        lengths = np.array(records.shard_lengths, np.int64)
        self._starts = np.cumsum(lengths) - lengths

    def _members(self, indices) -> tf.Tensor:
        mask = np.zeros(len(self.records), bool)
        mask[indices] = True
        return tf.constant(mask)

    def _read(self, shards: tf.Tensor, members: tf.Tensor) -> tf.data.Dataset:
        """(index, serialized) of the examples that belong to the split, shard after shard."""
        files, starts = tf.constant(self.records.files), tf.constant(self._starts)

        def one(shard):
            return tf.data.TFRecordDataset(files[shard]).enumerate(starts[shard])

        rows = tf.data.Dataset.from_tensor_slices(shards).flat_map(one)
        return rows.filter(lambda index, _: tf.gather(members, index))

    def _batches(self, rows, batch_size, seed, count=None):
        def parse(epoch, index, serialized):
            return (epoch, index, *self.records.parse(serialized))

        rows = rows.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        return super()._batches(rows, batch_size, seed, count)

    def train(self, indices, batch_size, seed, start_step, shuffle, window) -> tf.data.Dataset:
        """The unbounded training stream. A start inside an epoch skips over its records."""
        members, n, shards = self._members(indices), len(indices), len(self.records.files)

        def epoch_rows(epoch):
            order = tf.range(shards, dtype=tf.int64)
            if shuffle:
                order = permute(order, shards, seed, epoch, SHARDS)
            rows = self._read(order, members)
            if shuffle:  # not Dataset.shuffle: its order also depends on TensorFlow's global seed

                def mix(number, block):
                    length = tf.shape(block[0], tf.int64)[0]
                    place = permute(tf.range(length), length, seed, epoch, WINDOWS + number)
                    return tuple(tf.gather(column, place) for column in block)

                rows = rows.batch(window).enumerate().map(mix).unbatch()
            return rows.map(lambda index, serialized: (epoch, index, serialized))

        first, skipped = divmod(start_step * batch_size, n)
        epochs = tf.data.Dataset.range(first, FOREVER)
        rows = epochs.flat_map(epoch_rows).skip(skipped)
        return self._batches(rows, batch_size, seed)

    def _in_order(self, indices) -> tf.data.Dataset:
        order = tf.range(len(self.records.files), dtype=tf.int64)
        options = tf.data.Options()
        end_at_once(options)
        return self._read(order, self._members(indices)).with_options(options)

    def split(self, indices, batch_size, count: int | None = None) -> tf.data.Dataset:
        """The rows in file order, last batch smaller; only through ``count`` ops if given."""
        rows = self._in_order(indices).map(lambda index, item: (index * 0, index, item))
        batches = self._batches(rows, batch_size, None, count)
        return deterministic(batches.map(lambda x, y: x) if count is not None else batches)

    def targets(self, indices) -> np.ndarray:
        """In original units or ids, [len(indices)]; reads through the files."""
        targets = self._in_order(indices).map(
            lambda _, item: self.records.parse_target(item), num_parallel_calls=tf.data.AUTOTUNE
        )
        blocks: Iterator[np.ndarray] = targets.batch(4096).as_numpy_iterator()
        return np.concatenate(list(blocks))

    def raw(self, indices) -> dict[str, Any]:
        """{"image": uint8 [m,h,w,c], or a list where sizes differ}; reads through the files."""
        found = {}
        rows = self._in_order(np.asarray(indices)).map(
            lambda index, item: (index, self.records.parse(item)[0])
        )
        for index, item in rows.as_numpy_iterator():
            found[int(index)] = item
        items = [found[int(index)] for index in indices]
        return {"image": np.stack(items) if None not in self.records.shape and items else items}


def make_reader(rows: Rows | Records, preprocess: Preprocess, data: Data):
    """The reader for these examples of a recipe's data."""
    if preprocess.kind in ("text", "pairs"):
        from .packed import PackedReader
        from .tokens import TextReader

        if data.task == "masked-language-model":
            from .masked import MaskedReader

            return MaskedReader(rows, preprocess, data)
        if preprocess.inputs["task"] == "language-model":
            return PackedReader(rows, preprocess, data.context)
        return TextReader(rows, preprocess, data.bucket_batches)
    if isinstance(rows, Records):
        return RecordReader(rows, preprocess)
    if "path" in rows.columns and preprocess.kind == "image":
        return FileReader(rows, preprocess)
    return ArrayReader(rows, preprocess)
