"""Ops on series (kind "series"): what is known of each step of time, and how examples are cut.

A chain ends with ``window``; the usual one is
``"calendar('hour', 'weekday')|known('workday')|standardize|window(336, 48)"``. The ops act on a
:class:`Frame`: in training once, on the whole series with its time stamps; in serving on the rows
of a request, which have none. The columns that ``calendar`` makes then come with the request as
numbers, like all others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ..source import nearest
from . import OpsError, op, tabular

Length = Annotated[int, Field(ge=1)]

# What of the time goes round: name -> (share of the round in [0, 1) of datetime64[s], its meaning)
CYCLES = {
    "hour": (lambda time: _since(time, "D") / 86_400, "the time of day, from 0 at midnight to 1"),
    "weekday": (
        # Day 0, 1970-01-01, was a Thursday.
        lambda time: (time.astype("datetime64[D]").astype(np.int64) + 3) % 7 / 7,
        "the day of the week / 7, Monday being 0",
    ),
    "yearday": (
        lambda time: _since(time, "Y") / (366 * 86_400),
        "the time since New Year / 366 days",
    ),
}


def _since(time: np.ndarray, unit: str) -> np.ndarray:
    """Seconds since the day or year (D, Y) began."""
    return (time - time.astype(f"datetime64[{unit}]").astype("datetime64[s]")).astype(np.float64)


@dataclass(frozen=True)
class Frame:
    """A stretch of a series, or several of equal length.

    Attributes:
        columns: name -> float32 [..., t].
        targets: the columns to forecast.
        times: datetime64[s] [t]; None where a request is served.
        known: columns whose future is known: by the calendar, or by ``known``.
        window: (history, horizon, stride) in steps, once ``window`` has said so.
    """

    columns: dict[str, Any]
    targets: tuple[str, ...] = ()
    times: np.ndarray | None = None
    known: tuple[str, ...] = ()
    window: tuple[int, int, int] | None = None


@op("series")
def calendar(frame: Frame, *cycles: str) -> Frame:
    """What the time stamp says, as points on circles: sine and cosine of each cycle.

    ``calendar('hour', 'weekday', 'yearday')`` adds the columns ``hour_sin``, ``hour_cos`` and so
    on. On a circle 23:30 is near 0:00, which as numbers 23.5 and 0 are not. "hour" is the time of
    day to the second, "weekday" goes by whole days, "yearday" is the time since New Year, of 366
    days. They are known in advance.
    """
    if not cycles or set(cycles) - set(CYCLES):
        wrong = next(iter(set(cycles) - set(CYCLES)), "")
        raise OpsError(
            f"calendar{cycles!r}: {nearest(wrong, CYCLES)}Name one or more of {', '.join(CYCLES)}."
        )
    if frame.times is None:
        return frame
    made = {}
    for cycle in cycles:
        angle = 2 * np.pi * CYCLES[cycle][0](frame.times)
        made[f"{cycle}_sin"] = np.sin(angle).astype(np.float32)
        made[f"{cycle}_cos"] = np.cos(angle).astype(np.float32)
    if both := [name for name in made if name in frame.columns]:
        raise OpsError(f"calendar: the series has a column {both[0]!r} already. Rename it.")
    return replace(frame, columns=frame.columns | made, known=frame.known + tuple(made))


@op("series")
def known(frame: Frame, *columns: str) -> Frame:
    """Columns whose future is known when a forecast is made, such as holidays or prices on offer.

    ``known('workday')``. Their values over the horizon are then an input too; of all other columns
    the model sees the past alone.
    """
    if frame.times is None:
        return frame
    if not columns:
        raise OpsError("known() must name a column, such as known('workday').")
    for name in columns:
        if name in frame.targets:
            raise OpsError(f"known: {name!r} is what is to be forecast; it cannot be known.")
        if name not in frame.columns:
            raise OpsError(
                f"known: there is no column {name!r}. {nearest(name, frame.columns)}There are "
                f"{', '.join(frame.columns)}."
            )
    return replace(frame, known=tuple(dict.fromkeys(frame.known + columns)))


def _fit_standardize(frame: Frame) -> dict[str, Any]:
    return tabular.fit_standardize(frame.columns)


@op("series", fit=_fit_standardize)
def standardize(frame: Frame, *, state: dict[str, Any]) -> Frame:
    """(x - mean) / standard deviation of the training rows, for each column on its own.

    Targets too: losses then see errors in standard deviations, while metrics, forecasts and exports
    stay in the targets' own units. What is constant in training becomes 0.
    """
    return replace(frame, columns=tabular.standardize(frame.columns, state=state))


@op("series")
def window(frame: Frame, history: Length, horizon: Length, stride: Length = 1) -> Frame:
    """Examples: ``history`` steps that are seen, then ``horizon`` steps to forecast.

    ``window(336, 48)`` reads a week of half-hours and forecasts a day. Training windows begin every
    ``stride`` steps (the latest ends with the training rows); validation and test have one for
    every step. A window belongs to the split in which its whole horizon lies.
    """
    return replace(frame, window=(history, horizon, stride))
