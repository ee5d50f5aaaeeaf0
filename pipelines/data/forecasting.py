"""The data of a forecasting recipe: a series, split by time and cut into windows.

The splits cut the rows: the first train, later ones validate, the last test. A window belongs to
the split in which its whole horizon lies. Its history may reach back into an earlier split, since
that is known when the forecast is made; no horizon overlaps two splits, so what is measured was
never trained on. Statistics come from the rows of training windows alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..recipe import Data
from .dataset import Dataset
from .ops.series import Frame
from .source import Source, SourceError
from .splits import carve
from .windows import SeriesPreprocess, WindowReader, lay_out


class SeriesDataset(Dataset):
    """The data of a forecasting recipe. Made by :func:`.dataset.load`.

    Attributes beyond those of :class:`.dataset.Dataset`:
        target_names: the columns that are forecast, m.
        future_shape: (horizon, k): k numbers are known of each step to forecast.
        times: datetime64[s] of all rows.
        season: the recipe's ``data.season``.
        target_scale: (means, standard deviations), each a tuple of m numbers.
    """

    def __init__(self, data: Data, source: Source):
        # Not the base's steps: here splits are of rows, and examples are cut from them after.
        _refuse(data)
        self._data, self.about = data, source.about
        self.task, self.kind, self.classes = source.task, source.kind, ()
        self.target_name = source.target_name
        self.target_names = tuple(source.about["targets"])
        self.season = data.season
        self.mixes, self._by_time = False, True
        columns = dict(source.splits["train"].columns)
        self.times = columns.pop(source.about["time"]["column"])
        frame = Frame(columns, self.target_names, self.times)
        whole = lay_out(data.ops, frame)
        history, horizon, self._stride = whole.window
        self._split(history, horizon)
        used = slice(self.origins("train")[0] - history, self.origins("train")[-1] + horizon)
        inputs = {"history": history, "horizon": horizon, "columns": list(whole.columns)}
        self.preprocess = SeriesPreprocess(data.ops, inputs | {"known": list(whole.known)})
        self.preprocess.fit(
            replace(frame, columns={n: v[used] for n, v in columns.items()}, times=self.times[used])
        )
        scales = [self.preprocess.scale_of(name) for name in self.target_names]
        self.target_scale = tuple(zip(*scales, strict=True))
        self._readers = {"train": WindowReader(whole, self.preprocess)}
        self.sizes = {name: len(origins) for name, (_, origins) in self._indices.items()}
        self.input_shape = (history, len(whole.columns))
        self.future_shape = (horizon, len(whole.known))
        self.num_targets, self.vocabulary_size = len(self.target_names), None
        self.steps_per_epoch = math.ceil(self.sizes["train"] / data.batch_size)

    def _split(self, history: int, horizon: int) -> None:
        """Rows to splits, and to each split the origins of its windows."""
        data, rows = self._data, len(self.times)
        if rows < history + horizon:
            raise SourceError(
                f"{data.source} has {rows} rows, and window({history}, {horizon}) needs "
                f"{history + horizon}. Shorten the window, or give a longer series."
            )
        self._rows = carve(
            rows,
            data.split_seed,
            validation_fraction=data.validation_fraction,
            test_fraction=data.test_fraction,
            by_time=True,
        )
        self._indices = {}
        for name in ("train", "validation", "test"):
            if name not in self._rows:
                continue
            begin, end = self._rows[name][0], self._rows[name][-1] + 1
            stride = self._stride if name == "train" else 1
            # From the end: the latest training window is the nearest to what is to be forecast.
            origins = np.arange(end - horizon, max(begin, history) - 1, -stride)[::-1]
            if not len(origins):
                needed = f"{history + horizon} of them" if name == "train" else f"{horizon}"
                raise SourceError(
                    f"The {name} split of {data.source} has {len(self._rows[name])} rows; "
                    f"window({history}, {horizon}) needs {needed} there. Shorten the window, "
                    "change data.validation_fraction or data.test_fraction, or give a longer "
                    "series."
                )
            self._indices[name] = ("train", origins)
        origins, wanted = self.origins("train"), data.train_examples
        if data.train_fraction is not None:
            wanted = max(1, round(data.train_fraction * len(origins)))
        if wanted is not None:
            if wanted > len(origins):
                raise SourceError(
                    f"data.train_examples is {data.train_examples}, but the training split has "
                    f"only {len(origins)} windows. Ask for at most so many, or leave the key out."
                )
            self._indices["train"] = ("train", origins[-wanted:])

    def origins(self, name: str) -> np.ndarray:
        """The rows where the horizons of a split's windows begin, int64 [n], in order."""
        return self._indices[name][1]

    def seasonal(self, name: str, season: int) -> np.ndarray | None:
        """The seasonal naive forecast of a split's windows, [n,h,m] in the targets' own units.

        None where the first window has no season of rows before it.
        """
        reader, origins = self._find(name)
        return None if origins[0] < season else reader.seasonal(origins, season)

    def seasonal_error(self, season: int) -> np.ndarray:
        """Mean of |y(t) - y(t - season)| over the training rows, [m]; NaN where they are fewer."""
        values = self._readers["train"].truth[self._rows["train"]].astype(np.float64)
        if len(values) <= season:
            return np.full(self.num_targets, np.nan)
        return np.abs(values[season:] - values[:-season]).mean(axis=0)

    def describe(self) -> dict[str, Any]:
        """As :meth:`.Dataset.describe`, with the shape of what is known of the future."""
        return super().describe() | {"future_shape": list(self.future_shape)}


def _refuse(data: Data) -> None:
    """Raises SourceError for keys that series have no use for."""
    refused = {
        "split": data.split == "random" and "neighbours of training rows would be in the test",
        "task": data.task is not None and "a series is forecast",
        "mixup": data.mixup is not None and "it mixes single arrays with one target",
        "folds": data.folds is not None and "what comes after a fold would forecast it",
        "validation_folds": data.validation_folds is not None
        and "what comes after a fold would forecast it",
        "cutmix": data.cutmix is not None and "it pastes images",
        "standardize_target": data.standardize_target
        and "the op standardize scales the targets of a series with its other columns",
    }
    for key, reason in refused.items():
        if reason:
            raise SourceError(f"data.{key} does not go with {data.source}: {reason}. Leave it out.")
