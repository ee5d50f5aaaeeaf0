"""What is given to be answered, as rows for a run: files, standard input, arrays, texts."""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from . import ahead
from .data import SourceError, delimited, table
from .data.source import nearest
from .data.text import texts_of
from .run import Run

_STDIN = "-"
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif")

Row = tuple[Any, dict[str, Any]]
"""A name for the answer, and {raw input: value}."""


def rows_of(inputs: Any, run: Run) -> Iterator[Row]:
    """The rows of what :func:`.predict.predict` takes, of all but series and generators."""
    kind = run.dataset["kind"]
    if kind == "image":
        return _images(inputs, run)
    if kind in ("text", "pairs"):
        return _texts(inputs, run)
    if kind == "control":
        return _observations(inputs, run)
    return _columns(inputs, run) if kind == "columns" else _features(inputs, run)


def windows(inputs: Any, run: Run) -> Iterator[ahead.Window]:
    """The histories that a forecast starts from, of a run on a series."""
    if isinstance(inputs, Mapping | np.ndarray):
        return ahead.from_arrays(inputs, run)
    return (ahead.from_file(path, run, name) for name, path in _tables(inputs))


def _images(inputs: Any, run: Run) -> Iterator[Row]:
    own = next(iter(run.preprocess.raw_signature()))
    if own == "image":  # float pixels: no file holds such
        pixels = np.asarray(inputs, np.float32)
        shape = run.preprocess.raw_signature()[own].shape.as_list()[1:]
        pixels = pixels[None] if pixels.ndim == len(shape) else pixels
        if list(pixels.shape[1:]) != shape:
            raise SourceError(
                f"This run takes float32 images {shape}; got an array {list(pixels.shape)}."
            )
        return ((i, {own: image}) for i, image in enumerate(pixels, 1))
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    if isinstance(inputs, np.ndarray) and (
        inputs.ndim < 3 or (inputs.ndim == 3 and inputs.shape[-1] in (1, 3, 4))
    ):
        inputs = [inputs]
    return ((name, {own: content}) for name, content in _contents(inputs))


def _observations(inputs: Any, run: Run) -> Iterator[Row]:
    (own, spec), *_ = run.preprocess.raw_signature().items()
    shape = spec.shape.as_list()[1:]
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    if len(inputs) and isinstance(inputs[0], str | os.PathLike):
        rows = [_observations(_load(Path(path)), run) for path in inputs]
        return ((i, values) for i, (_, values) in enumerate(chain.from_iterable(rows), 1))
    array = np.asarray(inputs, spec.dtype.as_numpy_dtype)
    array = array[None] if array.ndim == len(shape) else array
    if list(array.shape[1:]) != shape:
        raise SourceError(
            f"This run takes observations {shape} of {spec.dtype.name}; got an array "
            f"{list(array.shape)}."
        )
    return ((i, {own: one}) for i, one in enumerate(array, 1))


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise _unreadable(path, error) from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is no .npy file of observations: {error}") from None


def _contents(inputs: Iterable) -> Iterator[tuple[Any, bytes]]:
    for number, one in enumerate(inputs, 1):
        if isinstance(one, np.ndarray):
            yield number, _encode(one)
        elif str(one) == _STDIN:
            yield "standard input", sys.stdin.buffer.read()
        elif isinstance(one, str | os.PathLike):
            path = Path(one)
            try:
                content = path.read_bytes()
            except OSError as error:
                raise _unreadable(path, error) from None
            yield str(path), content
        else:
            raise SourceError(
                f"Input {number} is a {type(one).__name__}. This run takes images: paths of image "
                "files, or uint8 arrays [h,w,c]."
            )


def _encode(image: np.ndarray) -> bytes:
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        raise SourceError(
            f"Images from Python are uint8 arrays [h,w,c] with 1, 3 or 4 channels; got "
            f"{image.dtype} {list(image.shape)}. Convert values to 0..255 first."
        )
    return tf.io.encode_png(image).numpy()


def _unreadable(path: Path, error: OSError) -> SourceError:
    if isinstance(error, FileNotFoundError):
        # By the stem: equal endings would make any two files of a folder look alike.
        there = {p.stem: p.name for p in path.parent.glob("*") if p.is_file()}
        near = difflib.get_close_matches(path.stem, there, n=1)
        hint = f" Did you mean {there[near[0]]!r}?" if near else ""
        return SourceError(f"There is no file {path}.{hint}")
    if isinstance(error, IsADirectoryError):
        return SourceError(f"{path} is a folder. Name the image files, e.g. {path}/*.png.")
    return SourceError(f"{path} cannot be read: {error.strerror}.")


def _texts(inputs: Any, run: Run) -> Iterator[Row]:
    own = run.preprocess.input_name
    inputs = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    for number, one in enumerate(inputs, 1):
        if not isinstance(one, str | os.PathLike):
            raise SourceError(
                f"Input {number} is a {type(one).__name__}. This run takes text: strings, or "
                "paths of files with a text a line."
            )
        if str(one) == _STDIN:
            lines = sys.stdin.buffer.read().decode("utf-8", "replace").splitlines()
        elif _is_file(one):
            lines = texts_of(Path(one), run.recipe.data)
        else:
            lines = [str(one)]
        for line in lines:
            yield _short(line), {own: line.encode("utf-8", "replace")}


def _is_file(text: str | os.PathLike) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or a zero byte
        return False


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


def _columns(inputs: Any, run: Run) -> Iterator[Row]:
    specs = run.preprocess.raw_signature()
    forms = {n: "text" if s.dtype == tf.string else "number" for n, s in specs.items()}
    if isinstance(inputs, Mapping):
        return _rows(_given(inputs, forms))
    if isinstance(inputs, np.ndarray):
        raise SourceError(
            "This run was trained on a table. Give {column: values} with the columns "
            f"{', '.join(forms)}, or the path of a CSV file."
        )
    return _rows_of_files(inputs, lambda path: table.read_rows(path, forms))


def _given(inputs: Mapping[str, Any], forms: dict[str, str]) -> dict[str, np.ndarray]:
    for name in forms:
        if name not in inputs:
            raise SourceError(
                f"The column {name!r} is missing. {nearest(name, inputs)}Expected "
                f"{', '.join(forms)}."
            )
    found = {}
    for name, form in forms.items():
        values = np.atleast_1d(np.asarray(inputs[name]))
        try:
            found[name] = values.astype(str if form == "text" else np.float32)
        except (TypeError, ValueError) as error:
            raise SourceError(f"The column {name!r} takes numbers: {error}.") from None
    lengths = {len(values) for values in found.values()}
    if len(lengths) > 1:
        raise SourceError(f"The columns are of unequal lengths: {sorted(lengths)}.")
    return found


def _features(inputs: Any, run: Run) -> Iterator[Row]:
    count = run.preprocess.inputs["features"]
    if isinstance(count, list):
        return _sequences(inputs, count)
    if isinstance(inputs, np.ndarray) or (
        isinstance(inputs, list | tuple) and inputs and not isinstance(inputs[0], str | os.PathLike)
    ):
        array = np.atleast_2d(np.asarray(inputs, np.float32))
        if array.ndim != 2 or array.shape[1] != count:
            raise SourceError(
                f"This run takes {count} numbers a row; got an array {list(array.shape)}."
            )
        return _rows({"features": array})

    def read(path: Path) -> dict[str, np.ndarray]:
        header = delimited.parse(delimited.read_bytes(path)[1], path.name)[0]
        known = run.dataset["about"].get("columns") or []
        names = list(known) if set(known) & set(header) else list(header)
        target = run.dataset["target"]
        if len(names) > count and target in names:
            names.remove(target)
        if len(names) != count:
            raise SourceError(
                f"{path.name} has {len(names)} columns ({', '.join(names[:6])}, …); this run takes "
                f"{count} numbers a row"
                + (f": {', '.join(known[:6])}, …" if known else ", in the order of training")
                + "."
            )
        columns = table.read_rows(path, dict.fromkeys(names, "number"))
        return {"features": np.stack([columns[name] for name in names], axis=1)}

    return _rows_of_files(inputs, read)


def _sequences(inputs: Any, shape: list[int]) -> Iterator[Row]:
    wanted = f"This run takes sequences of numbers, arrays [n, {shape[0]}, {shape[1]}]"
    try:
        array = np.asarray(inputs, np.float32)
    except (TypeError, ValueError):
        raise SourceError(f"{wanted}; got {inputs!r}.") from None
    array = array[None] if array.ndim == 2 else array
    if list(array.shape[1:]) != shape:
        raise SourceError(f"{wanted}; got {list(array.shape)}.")
    return _rows({"features": array})


def _rows_of_files(inputs: Any, read) -> Iterator[Row]:
    for _, path in _tables(inputs):
        yield from _rows(read(path))


def _tables(inputs: Any) -> Iterator[tuple[str, Path]]:
    """Names and paths of CSV files; what comes on standard input lies in one until the next is
    asked for."""
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise SourceError(f"Expected the path of a CSV file, got a {type(path).__name__}.")
        if str(path).lower().endswith(_IMAGE_ENDINGS):
            raise SourceError(f"{path} is an image; this run takes the rows of a CSV file.")
        if str(path) == _STDIN:
            with tempfile.TemporaryDirectory() as place:  # the reader looks at a file as a whole
                file = Path(place) / "standard input.csv"
                file.write_bytes(sys.stdin.buffer.read())
                yield "standard input", file
        else:
            yield str(path), Path(path)


def _rows(columns: dict[str, np.ndarray]) -> Iterator[Row]:
    for i in range(len(next(iter(columns.values())))):
        row = {name: values[i] for name, values in columns.items()}
        yield i + 1, {k: v.encode() if isinstance(v, str) else v for k, v in row.items()}
