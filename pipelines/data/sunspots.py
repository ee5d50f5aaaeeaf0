"""The sunspots of each year from 1700 to 2008, as statsmodels carries them.

The oldest series of measurements that forecasters try themselves on (Yule 1927): a cycle of 9 to 14
years, of very unequal height. The file is read where statsmodels is installed, without importing
it.
"""

from __future__ import annotations

import csv
from importlib import metadata
from pathlib import Path

import numpy as np

from .series import Step, series_source
from .source import Source, SourceError, fingerprint

_FILE = "statsmodels/datasets/sunspots/sunspots.csv"
_CLOCK, _COLUMN = "year", "sunspots"


def open_sunspots(data) -> Source:
    """``builtin:sunspots``: the column ``sunspots`` float32 [309], a row on 1 January of each year.

    Source of kind "series", as :func:`.series.open_series` gives it. Raises SourceError where
    statsmodels is missing, or for another target than the only column.
    """
    if data.target not in (None, _COLUMN):
        raise SourceError(
            f"data.target is {data.target!r}; builtin:sunspots has the column {_COLUMN!r} alone. "
            "Leave the key out."
        )
    path, version = _locate()
    with open(path, newline="") as file:
        years, numbers = zip(*list(csv.reader(file))[1:], strict=True)
    times = np.array(years, "datetime64[Y]").astype("datetime64[s]")
    columns = {_COLUMN: np.array(numbers, np.float32)}
    about = {
        "origin": f"statsmodels {version}, datasets.sunspots (National Geophysical Data Center)",
        "licence": "public domain",
        "fingerprint": fingerprint({_CLOCK: np.array(years, object), **columns}),
        "columns": {
            _COLUMN: {
                "type": "number",
                "missing": 0,
                "min": float(columns[_COLUMN].min()),
                "max": float(columns[_COLUMN].max()),
                "mean": float(columns[_COLUMN].mean()),
                "unit": "",
                "meaning": "mean daily number of sunspots in the year",
            }
        },
        "notes": [],
    }
    return series_source(_CLOCK, times, Step(months=12), columns, [_COLUMN], about)


def _locate() -> tuple[Path, str]:
    """The file, and the version of statsmodels."""
    try:
        installed = metadata.distribution("statsmodels")
    except metadata.PackageNotFoundError:
        raise SourceError(
            "builtin:sunspots is read from the data that come with statsmodels, which is not "
            "installed: pip install 'epochal[series]'"
        ) from None
    path = Path(installed.locate_file(_FILE))
    if not path.is_file():
        raise SourceError(
            f"The installed statsmodels {installed.version} has no {_FILE}. Install another "
            "version: pip install 'epochal[series]'"
        )
    return path, installed.version
