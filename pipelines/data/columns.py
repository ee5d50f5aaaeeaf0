"""Columns of a file: what the values that stand there as text are.

- **number**: float32, NaN where missing. Every value reads as a decimal number, or is one of the
  words for "missing" (empty, NA, N/A, NaN, null, None, #N/A, ?). Integer codes stay numbers; digits
  with leading zeros ("00713") are codes, hence text. `true`/`false` become 1 and 0, which is also
  how a served model takes them.
- **text**: str, "" where missing; outer blanks do not count. Dates are text.

float32 holds about 7 digits. Integers beyond 2^24 (ids, times in seconds) can fall together; where
they do, a note says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import catalog
from .source import SourceError

MISSING = ("", "na", "n/a", "nan", "null", "none", "#n/a", "?")
# A number in lower-case text, infinities included.
_NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|^[-+]?(inf|infinity)$"
_COMMONEST = 5  # text values that a summary shows, cut to so many characters:
_SHOWN_CHARACTERS = 60


def strings(text: pa.Array) -> np.ndarray:
    """Python strings as objects [n]."""
    return np.array(text.to_pylist(), dtype=object)


def typed(text: pa.Array, codes: bool = True) -> tuple[np.ndarray, str]:
    """(float64 with NaN or str objects [n], form: number, boolean, text or empty).

    ``codes``: whether digits with leading zeros make a column text.
    """
    lower = pc.utf8_lower(text)
    missing = pc.is_in(lower, value_set=pa.array(MISSING))
    present = pc.filter(lower, pc.invert(missing))
    if not len(present):
        return np.full(len(text), np.nan), "empty"
    blanked = pc.if_else(missing, pa.scalar(None, pa.string()), lower)
    if pc.all(pc.is_in(present, value_set=pa.array(["true", "false"]))).as_py():
        flags = pc.equal(blanked, "true").cast(pa.float64())
        return flags.to_numpy(zero_copy_only=False), "boolean"
    if not (codes and pc.any(pc.match_substring_regex(present, r"^0\d+$")).as_py()):
        try:
            numbers = blanked.cast(pa.float64())
            return pc.fill_null(numbers, np.nan).to_numpy(zero_copy_only=False), "number"
        except pa.ArrowInvalid:
            pass
    return strings(text), "text"


def float32(name: str, values: np.ndarray, notes: list[str]) -> np.ndarray:
    """Refuses infinities; notes where rounding to float32 makes different values equal."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    infinite = np.isinf(narrow)
    if infinite.any():
        raise SourceError(
            f"Column {name!r} is infinite or beyond float32 (3.4e38) in {which_rows(infinite)}. "
            "Leave the value empty if it is missing, or repair it."
        )
    present = values[~np.isnan(values)]
    if present.size and np.abs(present).max() >= 2**24:
        before, after = np.unique(present).size, np.unique(present.astype(np.float32)).size
        if after < before:
            notes.append(
                f"Column {name!r}: its {before} different values become {after} in float32, which "
                "holds about 7 digits. Subtract an offset, or drop the column if it is an id."
            )
    return narrow


def not_numbers(text: pa.Array) -> np.ndarray:
    """Positions of the values that are neither numbers nor words for missing."""
    lower = pc.utf8_lower(text)
    known = pc.or_(
        pc.match_substring_regex(lower, _NUMBER), pc.is_in(lower, value_set=pa.array(MISSING))
    )
    return np.flatnonzero(~known.to_numpy(zero_copy_only=False))


def notes_on(name: str, text: pa.Array, values: np.ndarray, form: str) -> list[str]:
    """Notes on a column that only tells the rows apart, or is text for the sake of a few values."""
    notes = []
    advice = f"If it tells nothing about new rows, put drop({name!r}) first among the ops."
    if form == "text":
        if len(values) > 1 and len(set(values)) == len(values):
            notes.append(f"Column {name!r} is text that differs in every row (an id?). {advice}")
        others = not_numbers(text)
        if 0 < len(others) <= 0.1 * len(values):
            notes.append(
                f"Column {name!r} is read as text because of {len(others)} of {len(values)} "
                f"values, such as {values[others[0]]!r} in row {others[0] + 1} below the header."
            )
    elif len(values) > 2 and set(np.diff(values)) in ({1.0}, {-1.0}):
        notes.append(f"Column {name!r} numbers the rows one by one. {advice}")
    return notes


def which_rows(wrong: np.ndarray) -> str:
    """Where ``wrong`` [n] is true, for messages: "2 of 9 rows (row 3, 4; ...)"."""
    found = (np.flatnonzero(wrong) + 1).tolist()
    shown = ", ".join(map(str, found[:5])) + (", …" if len(found) > 5 else "")
    return f"{len(found)} of {len(wrong)} rows (row {shown}; the first below the header is row 1)"


def summary(text: pa.Array, values: np.ndarray, form: str) -> dict[str, Any]:
    """What a column holds: its form, and its range or commonest values."""
    if form == "text":
        present = pc.filter(text, pc.not_equal(text, ""))
        counts = [(c["values"].as_py(), c["counts"].as_py()) for c in pc.value_counts(present)]
        commonest = sorted(counts, key=lambda pair: (-pair[1], pair[0]))[:_COMMONEST]
        return {
            "type": "text",
            "missing": len(text) - len(present),
            "categories": len(counts),
            "commonest": {value[:_SHOWN_CHARACTERS]: count for value, count in commonest},
        }
    present = values[~np.isnan(values)]
    return {
        "type": form,
        "missing": len(values) - len(present),
        "min": float(present.min()),
        "max": float(present.max()),
        "mean": float(present.mean()),
    }


def catalogued(entry: catalog.Entry | None, name: str) -> dict[str, str]:
    """Unit and meaning of a column, where the catalogue has them."""
    if not entry or name not in entry.columns:
        return {}
    return {"unit": entry.columns[name].unit, "meaning": entry.columns[name].meaning}
