"""What a source of data is, and how its name in a recipe becomes one.

``open_source`` reads names such as ``builtin:digits`` and hands them to the module of the scheme.
Loads no TensorFlow itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import numpy as np

from ...models.hints import did_you_mean

Kind = Literal["image", "features", "columns", "text", "pairs", "series"]
Task = Literal[
    "classification", "regression", "unlabelled", "language-model", "translation", "forecasting"
]

# scheme -> (module, function, what stands after the colon)
SCHEMES: dict[str, tuple[str, str, str]] = {
    "builtin": (
        "builtin",
        "open_builtin",
        "digits, iris, wine, breast_cancer, diabetes, docstrings, dates, copy, reverse, sort, "
        "ring, sunspots or adding/LENGTH",
    ),
    "tfds": ("tfds", "open_tfds", "NAME or NAME/CONFIG of a prepared TensorFlow Datasets set"),
    "folder": ("images", "open_folder", "PATH of class folders, or of train/ and test/ with them"),
    "images": ("images", "open_images", "PATH of images without labels, at any depth"),
    "labels": ("labels", "open_labels", "PATH of a text file with a class a line, or their number"),
    "csv": ("table", "open_table", "PATH of a CSV file, or @NAME of the catalogue"),
    "text": (
        "text",
        "open_text",
        "PATH of a table with a column of text, of .txt files (or a pattern of them), or @NAME of "
        "the catalogue",
    ),
    "gym": ("control", "ControlDataset", "NAME of a gymnasium environment, e.g. CartPole-v1"),
    "pairs": ("text", "open_pairs", "PATH of a table of sources and targets, or @NAME"),
    "series": ("series", "open_series", "PATH of a CSV file with time stamps, or @NAME"),
}


class SourceError(ValueError):
    """Data that cannot be used. The message is one paragraph and says what to do."""


@dataclass(frozen=True)
class Rows:
    """Examples with random access.

    Attributes:
        columns: equal lengths; ``{"image": uint8 [n,h,w,c]}``, ``{"path": str [n]}``,
            ``{"features": float32 [n,f] or [n,t,f]}``, ``{"text": str [n]}``, ``{"source": str [n],
            "target": str [n]}``, or one array for each column of a table: float32 (NaN is missing)
            or str ("" is missing); for series datetime64[s] and float32.
        target: int64 class ids or float32 values, [n]; None where there are no labels.
        groups: int64 [n]; rows of one group are near-duplicates and stay in one split. None: each
            row stands for itself.
    """

    columns: dict[str, np.ndarray]
    target: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at these positions, in this order (copied)."""
        return Rows(
            {name: column[indices] for name, column in self.columns.items()},
            None if self.target is None else self.target[indices],
            None if self.groups is None else self.groups[indices],
        )


@dataclass(frozen=True)
class Records:
    """Examples that are only read in order, from record files: sets too large for memory.

    Attributes:
        files: TFRecord files, in the order of the set.
        shard_lengths: examples in each file.
        shape: of one example: (height, width, channels), None where it varies.
        parse: serialized example -> (uint8 [h,w,c], target scalar), graph-safe.
        parse_target: serialized example -> target alone.
    """

    files: tuple[str, ...]
    shard_lengths: tuple[int, ...]
    shape: tuple[int | None, ...]
    parse: Callable[[Any], Any]
    parse_target: Callable[[Any], Any]

    def __len__(self) -> int:
        return sum(self.shard_lengths)


@dataclass(frozen=True)
class Source:
    """A data set as it comes, before splits and preprocessing.

    Attributes:
        kind: what an example is.
        task: what its target is.
        classes: names in the order of the class ids; () for regression.
        splits: "train", "validation" and "test" where the source defines them; none where it only
            names classes.
        target_name: what is predicted, e.g. the column's name.
        about: JSON-able facts: origin, licence, fingerprint (SHA-256), columns, skipped files.
        in_time: the rows follow each other in time, so that a random split would put neighbours
            of training rows into the test.
    """

    kind: Kind
    task: Task
    classes: tuple[str, ...]
    splits: dict[str, Rows | Records]
    target_name: str = "target"
    about: dict[str, Any] = field(default_factory=dict)
    in_time: bool = False

    def raw_inputs(self) -> dict[str, Any]:
        """What :class:`.preprocess.Preprocess` needs to know about raw examples."""
        if not self.splits:
            return dict(self.about["image"])
        if self.kind in ("text", "pairs"):
            return {"task": self.task}
        train = self.splits["train"]
        if isinstance(train, Records):
            height, width, channels = train.shape
            return {"height": height, "width": width, "channels": channels, "dtype": "uint8"}
        if self.kind == "columns":
            return {
                name: "float32" if column.dtype.kind == "f" else "string"
                for name, column in train.columns.items()
            }
        if self.kind == "features":
            shape = train.columns["features"].shape[1:]
            return {"features": shape[0] if len(shape) == 1 else list(shape)}
        if "path" in train.columns:
            return dict(self.about["image"])
        _, height, width, channels = train.columns["image"].shape
        dtype = train.columns["image"].dtype.name
        return {"height": height, "width": width, "channels": channels, "dtype": dtype}


def open_source(data, arrays: Any = None) -> Source:
    """Opens the source of a recipe's data.

    Args:
        data: the data slot of a recipe (:class:`epochal.pipelines.recipe.Data`).
        arrays: what was given from Python when ``data.source`` is "python": ``(x, y)``, ``x``, or
            ``{"train": ..., "validation": ..., "test": ...}`` of these or of tf.data datasets.

    Raises:
        SourceError: for an unknown scheme or name, a path that does not exist, unusable content.
    """
    scheme, colon, rest = data.source.partition(":")
    if arrays is not None:
        if data.source != "python":
            raise SourceError(
                f"Data were given from Python, but the recipe's source is {data.source!r}. Set "
                "`data.source` to 'python', or leave the data out."
            )
        return _call("python", "open_arrays", data, arrays)
    if data.source == "python":
        raise SourceError(
            "The recipe's source is 'python': its data come from a Python program. Give them, as "
            "in train(recipe, data=(x, y)), or set `data.source` to a source such as "
            "'builtin:digits'."
        )
    if scheme not in SCHEMES:
        raise SourceError(
            f"{data.source!r} is not a source: {nearest(scheme, SCHEMES)}Write one of "
            + ", ".join(f"{name}:… ({what})" for name, (_, _, what) in SCHEMES.items())
            + "."
        )
    if not colon or not rest:
        raise SourceError(
            f"{data.source!r} names no data: after `{scheme}:` comes {SCHEMES[scheme][2]}."
        )
    return _call(*SCHEMES[scheme][:2], data)


def _call(module: str, function: str, *arguments) -> Source:
    return getattr(import_module(f".{module}", __package__), function)(*arguments)


def nearest(name: str, known) -> str:
    """'Did you mean …? ' for messages, or ''."""
    hint = did_you_mean(name, list(known), 0.5)
    return f"{hint.lstrip()} " if hint else ""


def fingerprint(arrays: Mapping[str, np.ndarray | None]) -> str:
    """SHA-256 over names, shapes, dtypes and values; strings count by their UTF-8 bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        if array is None:
            continue
        kind = "str" if array.dtype.kind in "OUS" else array.dtype.str
        digest.update(f"{name}|{array.shape}|{kind}|".encode())
        if kind == "str":
            for text in array if array.ndim == 1 else array.ravel():
                digest.update(str(text).encode() + b"\0")
        else:
            for start in range(0, len(array), 4096) if array.ndim else ():
                digest.update(np.ascontiguousarray(array[start : start + 4096]).data)
    return digest.hexdigest()


def require_finite(what: str, values: np.ndarray) -> None:
    """Raises SourceError naming the first rows where ``values`` [n,...] are NaN or infinite."""
    if values.dtype.kind != "f":
        return
    bad: list[int] = []
    for start in range(0, len(values), 4096):
        block = values[start : start + 4096]
        rows = ~np.isfinite(block).reshape(len(block), -1).all(axis=1)
        bad += (np.flatnonzero(rows) + start).tolist()
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        raise SourceError(
            f"{what}: NaN or infinite values in {len(bad)} of {len(values)} rows (row {shown}, "
            "counted from 0). Repair or leave out these rows."
        )
