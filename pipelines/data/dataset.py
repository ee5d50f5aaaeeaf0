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
from .preprocess import numpy_columns, open_preprocess
from .readers import Reader, make_reader
from .source import Records, Rows, Source, SourceError, open_source, require_finite
from .splits import carve, deal, in_time
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
        preprocess: raw examples -> model input.
        about: the source's facts (origin, licence, fingerprint, …).
    """

    def __init__(self, data: Data, source: Source):
        self._data, self.about = data, source.about
        self.task, self.kind, self.classes = source.task, source.kind, source.classes
        if data.task == "generation":
            self.task = "generation"
            _check_generation(data, source)
        self.target_name = source.target_name
        self._by_time = source.in_time if data.split is None else data.split == "time"
        self._indices = _split(data, source, self._by_time)  # split -> (split of the source, rows)
        for name, (_, rows) in self._indices.items():
            if not len(rows):
                raise SourceError(f"The {name} split of {data.source} has no examples.")
        self.preprocess = open_preprocess(source.kind, data.ops, _inputs(source))
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
        self.mixes = data.mixup is not None or data.cutmix is not None
        self._check_mixing()
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

    def split(self, name: str) -> tf.data.Dataset:
        """The examples of a split in order, in evaluation form; the last batch is smaller."""
        reader, rows = self._find(name)
        return reader.split(rows, self._data.batch_size)

    def targets(self, name: str) -> np.ndarray | None:
        """A split's targets in their original units, class ids or strings, [n]; None without."""
        reader, rows = self._find(name)
        return reader.targets(rows)

    def raw(self, name: str, indices: Any) -> dict[str, Any]:
        """Raw examples, e.g. to show: {"image": uint8 [m,h,w,c] (a list where sizes differ)} or
        columns. ``indices`` are positions within the split, as in :meth:`split`."""
        reader, rows = self._find(name)
        return reader.raw(rows[np.asarray(indices, np.int64)])

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

    def _check_mixing(self) -> None:
        if self.mixes and self.task not in ("classification", "regression"):
            raise SourceError(
                f"data.mixup and data.cutmix mix targets too, but {self._data.source} has no "
                "labels. Leave them out."
            )
        if self.mixes and self.kind == "text":
            raise SourceError(
                "data.mixup and data.cutmix mix numbers, and text becomes ids: half of one word "
                "and half of another is no word. Leave them out."
            )
        if self._data.cutmix is not None and len(self.input_shape) != 3:
            raise SourceError(
                "data.cutmix pastes a rectangle of one image into another, but the model's input "
                f"is {list(self.input_shape)}, not [height, width, channels]. Use data.mixup"
                + (", or take flatten out of data.ops." if self.kind == "image" else ".")
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
    except SourceError:  # texts whose other columns are no classes
        return open_source(data.model_copy(update={"task": "language-model"}), arrays)


def _check_generation(data: Data, source: Source) -> None:
    """What is made has to be given back in the data's own values: pixels 0..255, or points."""
    if source.kind not in ("image", "features") or len(_inputs(source)) == 0:
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
    if source.kind == "image" and _inputs(source)["dtype"] != "uint8":
        raise SourceError("A generator makes images of pixels 0..255: give uint8 images.")


def _no_examples(data: Data) -> Iterator:
    """Refuses as soon as an op asks for an example: one that was told its numbers does not."""
    raise SourceError(
        f"An op of {data.ops!r} learns from the training examples, and {data.source} has none. "
        "Give it its numbers, e.g. standardize(mean=(0.5,), std=(0.25,))."
    )
    yield  # what makes it a generator


def _split(data: Data, source: Source, by_time: bool) -> dict[str, tuple[str, np.ndarray]]:
    """Split -> (split of the source it comes from, row numbers)."""
    if not source.splits:
        return {}
    train = source.splits["train"]
    labels = train.target if isinstance(train, Rows) and source.task == "classification" else None
    if by_time:
        labels = None
    groups = train.groups if isinstance(train, Rows) else None
    rest, test = np.arange(len(train)), None
    if data.folds is not None:
        number = (data.folds, data.fold)
        rest, test = _fold(data, source, rest, number, labels, groups, by_time)
    parted = data.validation_folds is not None
    if parted and "validation" in source.splits:
        raise SourceError(
            f"data.validation_folds does not go with {data.source}, which has a validation split."
        )

    def carve_from(rows: np.ndarray, **settings) -> dict[str, np.ndarray]:
        found = carve(
            len(rows),
            data.split_seed,
            labels=None if labels is None else labels[rows],
            classes=source.classes,
            groups=None if groups is None else groups[rows],
            by_time=by_time,
            **settings,
        )
        return {name: rows[places] for name, places in found.items()}

    fewer = {
        "train_examples": data.train_examples,
        "train_fraction": data.train_fraction,
        "train_seed": data.train_seed,
    }
    no_validation = parted or "validation" in source.splits
    carved = carve_from(
        rest,
        validation_fraction=0.0 if no_validation else data.validation_fraction,
        test_fraction=0.0 if "test" in source.splits or data.folds else data.test_fraction,
        **({} if parted else fewer),
    )
    if parted:
        left, number = carved["train"], (data.validation_folds, data.validation_fold)
        train_rows, validation = _fold(data, source, left, number, labels, groups, by_time)
        carved |= carve_from(train_rows, **fewer)
        carved["validation"] = validation
    found = {name: ("train", rows) for name, rows in carved.items()}
    own = {n: (n, np.arange(len(rows))) for n, rows in source.splits.items() if n != "train"}
    if test is not None:
        own["test"] = ("train", test)
    both = found | own
    return {name: both[name] for name in ("train", "validation", "test") if name in both}


def _fold(data: Data, source: Source, rows, number: tuple[int, int], labels, groups, by_time: bool):
    """Of these rows those that are left for training, and those of one fold of several."""
    folds, fold = number
    if by_time:
        before, inside = in_time(len(rows), folds, fold)
    else:
        labels = None if labels is None else labels[rows]
        groups = None if groups is None else groups[rows]
        own = deal(len(rows), folds, data.split_seed, labels=labels, classes=source.classes,
                   groups=groups)  # fmt: skip
        before, inside = np.flatnonzero(own != fold), np.flatnonzero(own == fold)
    return rows[before], rows[inside]


def _inputs(source: Source) -> dict[str, Any]:
    """What :class:`Preprocess` needs to know about raw examples."""
    if not source.splits:
        return dict(source.about["image"])
    if source.kind in ("text", "pairs"):
        return {"task": source.task}
    train = source.splits["train"]
    if isinstance(train, Records):
        height, width, channels = train.shape
        return {"height": height, "width": width, "channels": channels, "dtype": "uint8"}
    if source.kind == "columns":
        return {
            name: "float32" if column.dtype.kind == "f" else "string"
            for name, column in train.columns.items()
        }
    if source.kind == "features":
        shape = train.columns["features"].shape[1:]
        return {"features": shape[0] if len(shape) == 1 else list(shape)}
    if "path" in train.columns:
        return dict(source.about["image"])
    _, height, width, channels = train.columns["image"].shape
    dtype = train.columns["image"].dtype.name
    return {"height": height, "width": width, "channels": channels, "dtype": dtype}
