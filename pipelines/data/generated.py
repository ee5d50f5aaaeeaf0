"""Pairs that a program makes: the standard tasks on which sequence models are understood.

========== =========================================================================================
``dates``  human-readable dates to ISO: "Tuesday, 3rd of May 1994" -> "1994-05-03"; each day of
           1950 to 2049 occurs at most once, so that test dates are unseen
``copy``   a word to itself: "fkwq" -> "fkwq"
``reverse`` a word backwards: "fkwq" -> "qwkf"
``sort``   its letters in order: "fkwq" -> "fkqw"
========== =========================================================================================

Words have 1 to 20 letters, all lengths equally often; ``reverse/40`` has up to 40. 20,000 pairs
each, the same ones in every run.
"""

from __future__ import annotations

import datetime

import numpy as np

from .source import Rows, Source, SourceError, fingerprint

NAMES = ("dates", "copy", "reverse", "sort")
PAIRS = 20_000
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
_CHANGE = {"copy": lambda word: word, "reverse": lambda word: word[::-1], "sort": sorted}
_FIRST_DAY = datetime.date(1950, 1, 1)
_DAYS = 36_525  # to 2049-12-31
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September",
           "October", "November", "December")  # fmt: skip
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def open_generated(name: str) -> Source:
    """The source of a name such as ``reverse`` or ``reverse/40``. SourceError for a bad length."""
    name, slash, longest = name.partition("/")
    draw = np.random.Generator(np.random.PCG64(2014))
    if name == "dates":
        if slash:
            raise SourceError(f"builtin:dates has no length; got {longest!r} after it.")
        pairs = [_date(day, draw) for day in draw.permutation(_DAYS)[:PAIRS].tolist()]
    else:
        if slash and not (longest.isdigit() and 1 <= int(longest) <= 1000):
            raise SourceError(
                f"builtin:{name}/{longest}: after the slash stands the longest word, 1 to 1000 "
                "letters."
            )
        lengths = draw.integers(1, int(longest or 20) + 1, PAIRS)
        words = ["".join(draw.choice(_LETTERS, length)) for length in lengths]
        pairs = [(word, "".join(_CHANGE[name](word))) for word in words]
    source, target = (np.array(column, object) for column in zip(*pairs, strict=True))
    columns = {"source": source, "target": target}
    groups = np.unique(source, return_inverse=True)[1].astype(np.int64)  # short words come again
    about = {"origin": "made by epochal", "fingerprint": fingerprint(columns), "rows": len(pairs)}
    rows = {"train": Rows(columns, groups=groups)}
    return Source("pairs", "translation", (), rows, "ISO date" if name == "dates" else name, about)


def _date(days: int, draw: np.random.Generator) -> tuple[str, str]:
    """A day since 1950 in one of twelve ways of writing it, and in ISO 8601."""
    day = _FIRST_DAY + datetime.timedelta(days=days)
    month, weekday = _MONTHS[day.month - 1], _WEEKDAYS[day.weekday()]
    nth = f"{day.day}{_ending(day.day)}"
    written = (
        f"{month} {day.day}, {day.year}",
        f"{day.day} {month} {day.year}",
        f"{weekday}, {month} {day.day}, {day.year}",
        f"{weekday}, {nth} of {month} {day.year}",
        f"the {nth} of {month}, {day.year}",
        f"{month[:3]} {day.day} {day.year}",
        f"{day.day} {month[:3].lower()} {day.year}",
        f"{day.day}-{month[:3]}-{day.year}",
        f"{day.day}.{day.month}.{day.year}",
        f"{day.month:02}/{day.day:02}/{day.year}",
        f"{weekday[:3]} {day.day} {month[:3]} {day.year}",
        f"{day.year} {month} {nth}",
    )
    return written[int(draw.integers(len(written)))], day.isoformat()


def _ending(day: int) -> str:
    if 11 <= day <= 13:
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
