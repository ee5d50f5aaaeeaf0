"""Tables: ``csv:PATH`` and ``csv:@NAME``, one column to predict and the others to predict it from.

A file is read whole (UTF-8, with a header, plain or gzip); :mod:`.columns` says what its columns
are. Where different values fall together in float32, a warning is logged. A column without any
value is left out. A column whose every value is different (an id, free text, a row number) is kept,
since the recipe's ops decide what is used, and a warning says how to drop it. Warnings are also
kept in ``about["notes"]``.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..recipe import Data
from . import catalog, delimited
from .columns import (
    MISSING,
    catalogued,
    float32,
    not_numbers,
    notes_on,
    strings,
    summary,
    typed,
    which_rows,
)
from .source import Rows, Source, SourceError, nearest

MAX_INFERRED_CLASSES = 20
_log = logging.getLogger(__name__)


def open_table(data: Data) -> Source:
    """Opens the csv source of a recipe.

    Args:
        data: ``source`` is "csv:PATH" or "csv:@NAME"; ``target`` the column to predict (by default
            the catalogue's choice, else the last column); ``task`` overrides what is inferred:
            text, true/false, two different integers, or up to 20 that occur three times each on
            average, mean classification, other numbers regression; ``group`` the column that tells
            which rows belong together.

    Returns:
        Source of kind "columns": everything in "train" (splits are carved elsewhere), float32 and
        str arrays [n]; target int64 class ids [n] (classes sorted, integers by value) or float32
        [n]. ``about`` has origin, licence, fingerprint (SHA-256 of the file), and a summary of
        every column over all rows, for display only.

    Raises:
        SourceError: for a file that is missing or malformed (see :func:`.delimited.parse`), a
            target that is missing, constant, not finite or does not suit the task, infinite
            features, and a group that is missing, also of single rows.
    """
    path, entry = _resolve(data.source.removeprefix("csv:"))
    stored, raw = delimited.read_bytes(path)
    texts, delimiter = delimited.parse(raw, path.name)
    target_name = data.target or (entry.target if entry else None) or list(texts)[-1]
    if target_name not in texts:
        raise SourceError(
            f"{path.name} has no column {target_name!r} to predict. {nearest(target_name, texts)}"
            f"Its columns are {', '.join(texts)}."
        )
    groups = None if data.group is None else _groups(data.group, target_name, texts, path.name)
    notes: list[str] = []
    in_time = entry is not None and entry.kind == "series"
    if in_time and data.split == "random":
        notes.append(
            "The rows follow each other in time: a random split puts neighbours of training rows "
            "into the test, and its score says little about the future. Leave data.split out."
        )
    columns: dict[str, np.ndarray] = {}
    summaries: dict[str, dict[str, Any]] = {}
    target = classes = task = None
    for name, text in texts.items():
        values, form = typed(text)
        if name == target_name:
            _require_present(name, values, form)
            task = _task(name, text, values, form, data.task)
            target, classes = _target(name, values, form, task)
        elif name == data.group:
            pass  # it tells which rows belong together, and is no input
        elif form == "empty":
            notes.append(f"Column {name!r} has no value at all and is left out.")
            continue
        else:
            columns[name] = float32(name, values, notes) if form != "text" else values
            notes += notes_on(name, text, values, form)
        summaries[name] = summary(text, values, form) | catalogued(entry, name)
    if not columns:
        raise SourceError(f"{path.name}: beside the target {target_name!r} no column has values.")
    for note in notes:
        _log.warning("%s: %s", path.name, note)
    about = {
        "file": path.name,
        "origin": entry.origin if entry else "",
        "licence": entry.licence if entry else "",
        "fingerprint": hashlib.sha256(stored).hexdigest(),
        "delimiter": delimited.DELIMITERS[delimiter],
        "rows": len(target),
        "columns": summaries,
        "notes": notes,
    }
    rows = Rows(columns, target, groups)
    return Source("columns", task, classes, {"train": rows}, target_name, about, in_time)


def _groups(name: str, target: str, texts: Mapping[str, pa.Array], file: str) -> np.ndarray:
    """int64 [n], equal where the column is; SourceError where it cannot be the recipe's group."""
    if name not in texts:
        raise SourceError(
            f"{file} has no column {name!r} to group the rows by. {nearest(name, texts)}"
            f"Its columns are {', '.join(texts)}."
        )
    if name == target:
        raise SourceError(
            f"{file}: data.group {name!r} is the target. Give another column of "
            f"{', '.join(texts)}, or none."
        )
    values = strings(texts[name])
    wrong = np.array([value.lower() in MISSING for value in values])
    if wrong.any():
        raise SourceError(
            f"{file}: the group {name!r} is missing in {which_rows(wrong)}. Give each row a group, "
            "one of its own if it belongs to no other."
        )
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def read_rows(path: Path | str, forms: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Columns of known names and forms from another file, for prediction.

    Args:
        path: a CSV or TSV file with a header; columns that are not asked for are passed over.
        forms: column name -> "number" or "text", as in training.

    Returns:
        Arrays [n]: float32 with NaN for missing, str with "" for missing.

    Raises:
        SourceError: for a malformed file, a missing column, a value that is no number.
    """
    path = Path(path).expanduser()
    texts, _ = delimited.parse(delimited.read_bytes(path)[1], path.name)
    found = {}
    for name, form in forms.items():
        if name not in texts:
            raise SourceError(
                f"{path.name} has no column {name!r}. {nearest(name, texts)}Expected the columns "
                f"{', '.join(forms)}."
            )
        if form == "text":
            found[name] = strings(texts[name])
            continue
        values, found_form = typed(texts[name], codes=False)
        if found_form == "text":
            first = not_numbers(texts[name])[0]
            raise SourceError(
                f"{path.name}: column {name!r} takes numbers, found "
                f"{texts[name][first].as_py()!r} in row {first + 1} below the header."
            )
        found[name] = float32(name, values, [])
    return found


def _resolve(where: str) -> tuple[Path, catalog.Entry | None]:
    if not where.startswith("@"):
        return Path(where).expanduser(), None
    entry = catalog.get(where)
    if not entry.columns:
        raise SourceError(
            f"The data set {where!r} holds {entry.kind}, not a table ({entry.title}). `csv:` reads "
            f"{', '.join(name for name, e in catalog.SETS.items() if e.kind == 'table')}."
        )
    return catalog.locate(where), entry


def _require_present(name: str, values: np.ndarray, form: str) -> None:
    if form == "empty":
        raise SourceError(f"The target {name!r} has no value in any row. Set `data.target`.")
    if form == "text":
        wrong = values == ""
    else:
        with np.errstate(over="ignore"):
            wrong = ~np.isfinite(values.astype(np.float32))
    if wrong.any():
        raise SourceError(
            f"The target {name!r} is missing or not finite in {which_rows(wrong)}. Leave these "
            "rows out, or fill them in."
        )


def _task(name: str, text: pa.Array, values: np.ndarray, form: str, wanted: str | None) -> str:
    distinct = len(set(values)) if form == "text" else np.unique(values).size
    whole = form != "text" and bool((values % 1 == 0).all())
    # Codes repeat: twelve rents that all differ are numbers, however few they are.
    repeated = distinct <= 2 or distinct <= min(MAX_INFERRED_CLASSES, len(values) // 3)
    codes = form in ("text", "boolean") or (whole and repeated)
    task = wanted or ("classification" if codes else "regression")
    if task == "regression" and form == "text":
        example = values[[*not_numbers(text), 0][0]]
        raise SourceError(
            f"`data.task` is regression, but the target {name!r} holds text such as {example!r}. "
            "Make it numbers, or set `data.task` to classification."
        )
    if task == "classification" and form == "number" and not whole:
        example = values[values % 1 != 0][0]
        raise SourceError(
            f"`data.task` is classification, but the target {name!r} holds numbers such as "
            f"{example:g}. Give classes as text or integers, or set `data.task` to regression."
        )
    if task == "classification" and distinct > max(MAX_INFERRED_CLASSES, len(values) // 2):
        raise SourceError(
            f"The target {name!r} has {distinct} different values in {len(values)} rows: no "
            "classes to learn. Set `data.target` to the column to predict"
            + (", or `data.task` to regression." if form != "text" else ".")
        )
    return task


def _target(
    name: str, values: np.ndarray, form: str, task: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(class ids int64 [n], class names) or (float32 [n], ())."""
    if task == "regression":
        values = float32(name, values, [])
    elif form == "boolean":
        values = np.where(values == 1, "true", "false").astype(object)
    distinct, ids = np.unique(values, return_inverse=True)
    names = tuple(v if isinstance(v, str) else f"{v:.16g}" for v in distinct)
    if len(distinct) < 2:
        raise SourceError(
            f"The target {name!r} is {names[0]} in every row: there is nothing to learn. Set "
            "`data.target` to the column to predict."
        )
    if task == "regression":
        return values, ()
    return ids.reshape(-1).astype(np.int64), names
