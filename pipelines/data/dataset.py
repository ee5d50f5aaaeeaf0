"""Opens the data of a recipe: source, splits, preprocessing, streams."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from ..recipe import Data
from . import mixing
from . import ops as chains
from .ops import OpsError
from .partition import partition
from .preprocess import numpy_columns, open_preprocess
from .readers import Reader, make_reader
from .source import Records, Source, SourceError, open_source, require_finite
from .stream import deterministic, parallel

_KIND_OF_SCHEME = {
    "folder": "image",
    "images": "image",
    "labels": "image",
    "csv": "columns",
    "text": "text",
    "pairs": "pairs",
    "series": "series",
}
_NOT_PIXELS = frozenset({"scale", "standardize", "flatten"})


class Dataset:
    """Three splits and the code between them and the model. Made by :func:`load`.

    Attributes:
        task: "classification", "regression", "unlabelled", "language-model" or "translation";
            "forecasting" of series; "generation" where data.task says so; "representation" of
            :class:`.views.ViewsDataset`.
        kind: "image", "features", "columns", "text" or "pairs"; "series" for
            :class:`.forecasting.SeriesDataset`.
        classes: names by class id; () unless classification.
        sizes: split -> number of examples; empty where the source only names classes.
        num_targets: number of classes, or of ids that a token can be; 1 for regression, 0 without
            labels.
        vocabulary_size: number of ids of text, padding included; None for other kinds.
        fill_id: the id that fills rows of text up, see :class:`.tokenizers.Tokenizer`; else 0.
        target_scale: (mean, standard deviation) that training targets are standardised by, in the
            target's units; (0, 1) where they are not.
        mixes: whether training examples are mixtures of two (``data.mixup``, ``data.cutmix``).
        batch_size: examples of a training batch.
        preprocess: raw examples -> model input.
        about: the source's facts (origin, licence, fingerprint, …).
    """

    def __init__(self, data: Data, source: Source):
        self._data, self.about, self.batch_size = data, source.about, data.batch_size
        self.task, self.kind, self.classes = source.task, source.kind, source.classes
        if data.task == "generation":
            self.task = "generation"
            _check_generation(data, source)
        self.target_name = source.target_name
        self._by_time = source.in_time if data.split is None else data.split == "time"
        # split -> (split of the source, rows)
        self._indices = partition(data, source, self._by_time)
        for name, (_, rows) in self._indices.items():
            if not len(rows):
                raise SourceError(f"The {name} split of {data.source} has no examples.")
        self.preprocess = open_preprocess(source.kind, data.ops, source.raw_inputs())
        self._readers: dict[str, Reader] = {
            name: make_reader(rows, self.preprocess, data) for name, rows in source.splits.items()
        }
        self._check_labels(source)
        self.target_scale = self._scale()
        if self.target_scale != (0.0, 1.0):
            for reader in self._readers.values():
                reader.scale = self.target_scale
        self.preprocess.fit(self._examples)
        self._check_numbers()
        self.sizes = {
            name: self._readers[origin].count(rows)
            for name, (origin, rows) in self._indices.items()
        }
        if self.kind == "pairs":  # what an answer may need; part of the export
            reader, rows = self._find("train")
            longest = int(reader.ids["target"].lengths[rows].max()) + 1
            self.preprocess.inputs["longest"] = longest
        self.input_shape = tuple(self.preprocess.tensor_spec().shape[1:])
        self._check_mirror()
        self.mixes = data.mixup is not None or data.cutmix is not None
        if self.mixes:
            mixing.check(data, self.task, self.kind, self.input_shape)
        tokenizer = getattr(self.preprocess, "tokenizer", None)
        self.vocabulary_size = None if tokenizer is None else tokenizer.vocabulary_size
        self.fill_id = 0 if tokenizer is None else tokenizer.fill_id
        self.num_targets = {
            "classification": len(self.classes),
            "regression": 1,
            "unlabelled": 0,
            "generation": len(self.classes),
        }.get(self.task, self.vocabulary_size)
        self.steps_per_epoch = math.ceil(self.sizes.get("train", 0) / data.batch_size)

    def train(self, seed: int, start_step: int = 0) -> tf.data.Dataset:
        """The unbounded stream of full training batches (x, y), from ``start_step`` on.

        y holds class ids [n] or numbers [n]; where the data are mixed, shares of classes [n,c].
        Text and pairs: see :mod:`.tokens`.
        Order and augmentation are functions of (seed, epoch, index): the stream from a step is the
        stream from the beginning at that step.
        """
        reader, rows = self._find("train")
        data = self._data
        batches = reader.train(
            rows, data.batch_size, seed, start_step, data.shuffle, data.shuffle_window
        )
        if self.mixes:
            mix = mixing.mixer(data, len(self.classes), seed)
            batches = parallel(batches.enumerate(start_step), mix)
        return deterministic(batches)

    def split(self, name: str, positions: np.ndarray | None = None) -> tf.data.Dataset:
        """The examples of a split in order, in evaluation form; the last batch is smaller.

        Of images and tables those at these positions alone, if given, int64 [m], which ascend.
        """
        reader, rows = self._find(name)
        return reader.split(rows if positions is None else rows[positions], self._data.batch_size)

    def targets(self, name: str) -> np.ndarray | None:
        """A split's targets in their original units, class ids or strings, [n]; None without."""
        reader, rows = self._find(name)
        return reader.targets(rows)

    def raw(self, name: str, indices: Any) -> dict[str, Any]:
        """Raw examples, e.g. to show: {"image": uint8 [m,h,w,c] (a list where sizes differ)} or
        columns. ``indices`` are positions within the split, as in :meth:`split`."""
        reader, rows = self._find(name)
        return reader.raw(rows[np.asarray(indices, np.int64)])

    def images(self, name: str) -> tf.data.Dataset:
        """A split's images in order as they are before all ops: batches [m,h,w,c]."""
        reader, rows = self._find(name)
        return reader.split(rows, 256, 0)

    def paths(self, name: str) -> np.ndarray | None:
        """The files that a split's examples are, in order, str [n]; None where they are none."""
        reader, rows = self._find(name)
        known = getattr(reader, "rows", None)
        found = None if known is None else known.columns.get("path")
        return None if found is None else found[rows]

    def rows(self, name: str) -> np.ndarray:
        """A split's examples as row numbers of the source's split that they come from, [n]."""
        return self._find(name)[1]

    def describe(self) -> dict[str, Any]:
        """Everything about the data that JSON can hold; the run directory's dataset.json."""
        return {
            "source": self._data.source,
            "kind": self.kind,
            "task": self.task,
            "classes": list(self.classes),
            "target": self.target_name,
            "target_scale": list(self.target_scale),
            "sizes": dict(self.sizes),
            "split": "time" if self._by_time else "random",
            "split_seed": self._data.split_seed,
            "input_shape": list(self.input_shape),
            "preprocess": self.preprocess.to_dict(),
            "about": self.about,
        }

    def _find(self, name: str) -> tuple[Reader, np.ndarray]:
        if name not in self._indices:
            raise SourceError(
                f"There is no split {name!r}; the data have {', '.join(self._indices)}. A "
                f"split is carved out where data.{name}_fraction is above 0."
                if name in ("validation", "test")
                else f"There is no split {name!r}; the data have {', '.join(self._indices)}."
            )
        origin, rows = self._indices[name]
        return self._readers[origin], rows

    def _examples(self, count: int):
        """The training examples through the first ``count`` ops; see Preprocess.fit."""
        if not self._indices:
            return _no_examples(self._data)
        reader, rows = self._find("train")
        if self.kind in ("text", "pairs"):
            return reader.python(rows, count)
        if self.kind == "image":
            return reader.split(rows, 256, count).as_numpy_iterator()
        block = next(iter(reader.split(rows, len(rows), count)))
        return iter([numpy_columns(block)])

    def _scale(self) -> tuple[float, float]:
        if not self._data.standardize_target:
            return 0.0, 1.0
        if self.task != "regression":
            raise SourceError(
                f"data.standardize_target is for regression, but the task is {self.task}."
            )
        values = self.targets("train").astype(np.float64)
        mean, deviation = float(values.mean()), float(values.std())
        if deviation == 0:
            raise SourceError(
                f"All {len(values)} training targets are {mean:g}: there is nothing to learn, and "
                "they cannot be standardised."
            )
        return mean, deviation

    def _check_mirror(self) -> None:
        if not getattr(self.preprocess, "mirrored", False):
            return
        if self.task != "classification" or len(self.input_shape) != 3:
            raise OpsError(
                "flip_lr(average=True) averages class probabilities over an image and its mirror "
                f"image; here the task is {self.task} and the model's input {self.input_shape}. "
                "Leave average out."
            )

    def _check_labels(self, source: Source) -> None:
        if self.task not in ("classification", "regression"):
            return
        for name, (origin, rows) in self._indices.items():
            if isinstance(source.splits[origin], Records):
                continue  # known only after a pass over the files
            values = source.splits[origin].target[rows]
            if self.task == "regression":
                require_finite(f"Targets of the {name} split of {self._data.source}", values)
            elif name == "train":
                absent = sorted(set(range(len(self.classes))) - set(np.unique(values).tolist()))
                if absent:
                    shown = ", ".join(repr(self.classes[i]) for i in absent[:5])
                    raise SourceError(
                        f"The training split of {self._data.source} has no example of "
                        f"{len(absent)} of {len(self.classes)} classes ({shown}). A class can only "
                        "be learnt from examples: add some, or take the class out everywhere."
                    )

    def _check_numbers(self) -> None:
        """Tables: every value must be a finite number once the ops have run."""
        if self.kind not in ("features", "columns"):
            return
        for name in self._indices:
            reader, rows = self._find(name)
            columns = next(iter(reader.split(rows, len(rows), len(self.preprocess.steps))))
            self.preprocess.finish(columns)  # refuses text
            for column, values in columns.items():
                bad = np.flatnonzero(
                    ~np.isfinite(values.numpy()).reshape(len(rows), -1).all(axis=1)
                )
                if len(bad):
                    shown = ", ".join(str(row) for row in rows[bad[:5]])
                    raise OpsError(
                        f"After the ops, {column!r} has NaN or infinite values in {len(bad)} of "
                        f"{len(rows)} rows of the {name} split (row {shown}, counted from 0). Add "
                        'impute to data.ops before other ops, e.g. "impute|standardize".'
                    )


def load(data: Data, arrays: Any = None) -> Dataset:
    """Opens, splits and checks the data of a recipe.

    Args:
        data: the recipe's data slot.
        arrays: what is learnt from when ``data.source`` is "python"; see
            :func:`epochal.pipelines.data.source.open_source`.

    Raises:
        OpsError: a chain of ops that cannot be built (before any data are read, where the
            source's scheme tells what kind of data it gives).
        SourceError: data that cannot be found, read or learnt from.
    """
    if data.source.startswith("gym:") and arrays is None:
        from .control import ControlDataset

        return ControlDataset(data)
    if data.replay is not None:
        raise SourceError(
            f"data.replay is for environments (gym:NAME); {data.source} is not acted in. Leave it "
            "out."
        )
    chains.parse(data.ops)
    kind = _KIND_OF_SCHEME.get(data.source.partition(":")[0])
    if kind is not None and arrays is None:
        chains.build(data.ops, "text" if kind == "pairs" else kind)
    if data.task == "masked-language-model":
        from .masked import MaskedDataset

        return MaskedDataset(data, _with_labels(data, arrays))
    if data.masking is not None:
        raise SourceError(
            "data.masking is for data.task=masked-language-model. Set that, or leave it out."
        )
    if data.task == "representation":
        from .views import ViewsDataset

        return ViewsDataset(data, open_source(data.model_copy(update={"task": None}), arrays))
    source = open_source(data, arrays)
    if source.kind == "series":
        from .forecasting import SeriesDataset

        return SeriesDataset(data, source)
    return Dataset(data, source)


def _with_labels(data: Data, arrays: Any) -> Source:
    """The source of texts with its labels, by which splits are made, if it has such."""
    try:
        return open_source(data.model_copy(update={"task": None}), arrays)
    except SourceError:
        from .text import is_plain

        if is_plain(data.source):  # has no columns: it would be read again, for the same error
            raise
        # texts whose other columns are no classes
        return open_source(data.model_copy(update={"task": "language-model"}), arrays)


def _check_generation(data: Data, source: Source) -> None:
    """What is made has to be given back in the data's own values: pixels 0..255, or points."""
    if source.kind not in ("image", "features") or len(source.raw_inputs()) == 0:
        raise SourceError(
            f"data.task generation is for images and points; {data.source} gives {source.kind}."
        )
    changed = {step.name for step in chains.parse(data.ops)} & _NOT_PIXELS
    if changed or (source.kind == "features" and data.ops):
        raise SourceError(
            f"data.ops ({data.ops!r}) change the values, and a generator is to make examples in "
            "the data's own: leave out "
            + (", ".join(sorted(changed)) + "." if changed else "the ops of points.")
        )
    if source.kind == "image" and source.raw_inputs()["dtype"] != "uint8":
        raise SourceError("A generator makes images of pixels 0..255: give uint8 images.")


def _no_examples(data: Data) -> Iterator:
    """Refuses as soon as an op asks for an example: one that was told its numbers does not."""
    raise SourceError(
        f"An op of {data.ops!r} learns from the training examples, and {data.source} has none. "
        "Give it its numbers, e.g. standardize(mean=(0.5,), std=(0.25,))."
    )
    yield  # what makes it a generator
