"""Numbers in time: ``series:PATH`` and ``series:@NAME``, columns to forecast and others to help.

A file is a table (see :mod:`.delimited`) with a row for each step of time, from the oldest to the
newest. The first column of time stamps is the clock; the columns of numbers are what is known at
that time; columns of text are left out, with a note. The steps are equally long and complete:
nothing is filled in, because what should stand in a gap is the user's to say.

Time stamps are dates or times in ISO 8601, ``2014-01-31`` or ``2014-01-31T23:30`` (a blank in place
of the T, and seconds, are fine), of one time zone and without an offset. Where all of them name the
same day and time of their months, the step is so many months, of 28 to 31 days each.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..recipe import Data
from . import catalog, delimited, table
from .columns import catalogued, float32, summary, typed, which_rows
from .source import Rows, Source, SourceError, nearest

_STAMP = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}(:\d{2}){0,2})?"
_UNITS = {"day": 86_400, "hour": 3_600, "minute": 60, "second": 1}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """The time from one row to the next: so many seconds, or (one of the two is 0) months."""

    seconds: int = 0
    months: int = 0

    def __str__(self) -> str:
        if self.months:
            count, unit = self.months, "month"
        else:
            unit = next(name for name, size in _UNITS.items() if self.seconds % size == 0)
            count = self.seconds // _UNITS[unit]
        return f"{count} {unit}{'s' * (count != 1)}"

    def after(self, time: np.datetime64, count: int) -> np.ndarray:
        """The ``count`` time stamps that follow ``time``: datetime64[s] [count]."""
        steps = np.arange(1, count + 1)
        if not self.months:
            return time.astype("datetime64[s]") + steps * np.timedelta64(self.seconds, "s")
        month = time.astype("datetime64[M]")
        within = time.astype("datetime64[s]") - month.astype("datetime64[s]")
        later = month + steps * np.timedelta64(self.months, "M")
        return later.astype("datetime64[s]") + within


def step_of(about: Mapping[str, Any]) -> Step:
    """The step of a series, from its ``about``."""
    return Step(**about["time"]["step"])


def open_series(data: Data) -> Source:
    """Opens the series of a recipe.

    Args:
        data: ``source`` is "series:PATH" or "series:@NAME"; ``target`` the column to forecast, or
            several with commas between them (by default the catalogue's choice, else the last
            column of numbers).

    Returns:
        Source of kind "series" and task "forecasting": everything in "train", the clock
        datetime64[s] [t] and the columns of numbers float32 [t]. ``about`` has ``targets``,
        ``time`` (the clock's name, first and last time stamp, the step), and of every column what
        is known of it and its range.

    Raises:
        SourceError: for a file that is missing or malformed, without time stamps or numbers, with
            unreadable, doubled or unsorted time stamps, gaps or missing values, and for targets
            that are no columns of numbers. The message names rows.
    """
    where = data.source.removeprefix("series:")
    entry = catalog.get(where) if where.startswith("@") else None
    if entry is not None and entry.kind != "series":
        known = ", ".join(f"@{name}" for name, e in catalog.SETS.items() if e.kind == "series")
        raise SourceError(
            f"The data set {where!r} holds {entry.kind}, no series in time. Series are {known}."
        )
    path = catalog.locate(where) if entry else Path(where).expanduser()
    stored, raw = delimited.read_bytes(path)
    texts, _ = delimited.parse(raw, path.name)
    clock, times, step = read_clock(texts, path.name)
    columns, summaries, notes = {}, {}, []
    for name, text in texts.items():
        if name == clock:
            continue
        values, form = typed(text)
        if form in ("text", "empty"):
            what = "has no value at all" if form == "empty" else "holds text"
            notes.append(f"Column {name!r} {what} and is left out.")
            continue
        columns[name] = _complete(name, float32(name, values, notes), path.name)
        summaries[name] = summary(text, values, form) | catalogued(entry, name)
    if not columns:
        raise SourceError(
            f"{path.name} has no column of numbers beside its time stamps ({clock!r}): there is "
            "nothing to forecast."
        )
    wanted = data.target or (entry.target if entry else None) or list(columns)[-1]
    targets = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in targets:
        if name not in columns:
            raise SourceError(
                f"{path.name} has no column of numbers {name!r} to forecast. "
                f"{nearest(name, columns)}Its columns of numbers are {', '.join(columns)}."
            )
    for note in notes:
        _log.warning("%s: %s", path.name, note)
    about = {
        "file": path.name,
        "origin": entry.origin if entry else "",
        "licence": entry.licence if entry else "",
        "fingerprint": hashlib.sha256(stored).hexdigest(),
        "columns": summaries,
        "notes": notes,
    }
    return series_source(clock, times, step, columns, targets, about)


def series_source(
    clock: str,
    times: np.ndarray,
    step: Step,
    columns: dict[str, np.ndarray],
    targets: list[str],
    about: dict[str, Any],
) -> Source:
    """The source of a series that is read: see :func:`open_series`.

    Args:
        clock: what the time stamps are called.
        times: datetime64[s] [t], one step apart.
        step: from row to row.
        columns: float32 [t] each.
        targets: those to forecast.
        about: what else is known; gets ``rows``, ``targets`` and ``time``.
    """
    about = about | {
        "rows": len(times),
        "targets": targets,
        "time": {
            "column": clock,
            "first": str(times[0]),
            "last": str(times[-1]),
            "step": {"seconds": step.seconds, "months": step.months},
        },
    }
    rows = Rows({clock: times, **columns})
    return Source(
        "series", "forecasting", (), {"train": rows}, ", ".join(targets), about, in_time=True
    )


def read_clock(texts: Mapping[str, pa.Array], file: str) -> tuple[str, np.ndarray, Step]:
    """The column of time stamps, its values (datetime64[s] [t]) and their step. SourceError."""
    for name, text in texts.items():
        stamps = pc.match_substring_regex(text, _STAMP)
        if 2 * (pc.sum(stamps).as_py() or 0) > len(text):
            times = _times(name, text, file)
            return name, times, _regular(times, file)
    raise SourceError(
        f"{file} has no column of time stamps. Write dates and times as 2014-01-31 or "
        "2014-01-31T23:30, a row for each step of time."
    )


def read_rows(path: Path | str, names: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray], Step]:
    """Time stamps, columns (float32 [t], NaN where missing) and step of a file to forecast from.

    Args:
        path: a table as for :func:`open_series`; values may be missing.
        names: the columns of numbers to read.

    Raises:
        SourceError: as :func:`open_series`; a column that is missing or holds text.
    """
    path = Path(path).expanduser()
    texts, _ = delimited.parse(delimited.read_bytes(path)[1], path.name)
    _, times, step = read_clock(texts, path.name)
    return times, table.read_rows(path, dict.fromkeys(names, "number")), step


def _times(name: str, text: pa.Array, file: str) -> np.ndarray:
    try:
        return _as_times(text).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        wrong = np.array([not _is_time(value) for value in text])
        first = text[int(wrong.argmax())].as_py()
        raise SourceError(
            f"{file}: the time stamps in {name!r} cannot be read in {which_rows(wrong)}, "
            f"such as {first!r}. Write them as 2014-01-31 or 2014-01-31T23:30, in one time zone "
            "and without its offset."
        ) from None


def _as_times(text: Any) -> Any:
    return text.cast(pa.timestamp("s"))


def _is_time(value: pa.Scalar) -> bool:
    try:
        _as_times(value)
    except pa.ArrowInvalid:
        return False
    return True


def _regular(times: np.ndarray, file: str) -> Step:
    """The step, where it is the same everywhere. Raises SourceError naming rows."""
    if len(times) < 2:
        raise SourceError(f"{file} has one row; a series needs two to have a step of time.")
    seconds = times.astype(np.int64)
    months = times.astype("datetime64[M]").astype(np.int64)
    within = times - times.astype("datetime64[M]").astype("datetime64[s]")
    monthly = bool((within == within[0]).all())
    gaps = np.diff(months if monthly else seconds)
    if (gaps <= 0).any():
        row = int((gaps <= 0).argmax())
        what = "the same" if times[row] == times[row + 1] else "an earlier"
        raise SourceError(
            f"{file}: in {which_rows(np.append(False, gaps <= 0))} the time stamp is not "
            f"later than the one above: after {times[row]} comes {what} time, {times[row + 1]}. "
            "Sort the rows by time, and keep one row for each time."
        )
    found, counts = np.unique(gaps, return_counts=True)
    usual = int(found[counts.argmax()])
    step = Step(months=usual) if monthly else Step(seconds=usual)
    if len(found) > 1:
        other = np.append(False, gaps != usual)
        row = int(other.argmax())
        raise SourceError(
            f"{file}: the step from row to row is {step}, but another in {which_rows(other)}:"
            f" after {times[row - 1]} comes {times[row]}. Give every step its row; what stands in "
            "a gap (the value before, an interpolation) is for you to decide."
        )
    return step


def _complete(name: str, values: np.ndarray, file: str) -> np.ndarray:
    missing = np.isnan(values)
    if missing.any():
        raise SourceError(
            f"{file}: column {name!r} has no value in {which_rows(missing)}. Fill them in "
            "(with the value before, or an interpolation), or leave the column out."
        )
    return values
