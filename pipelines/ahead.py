"""Forecasts from new data: the last rows of a file, or windows as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from .data import SourceError
from .data.ops.series import CYCLES, Frame
from .data.series import read_rows, step_of
from .data.windows import lay_out
from .run import Run
from .served import Served


@dataclass(frozen=True)
class Window:
    """What one forecast is made from.

    Attributes:
        name: the file, or the window's number from 1.
        inputs: "history" [t,f] and, where anything is known of it, "future" [h,k]; raw float32.
        times: datetime64[s] [h] of the steps to forecast; None where arrays were given.
    """

    name: Any
    inputs: dict[str, np.ndarray]
    times: np.ndarray | None = None


def from_file(path: Path, run: Run, name: str) -> Window:
    """The forecast that follows the last row of a file in which all targets have a value.

    The rows from there on say what is known of the future: of a model that was trained with
    ``known(...)`` the next ``horizon`` of them are needed, with values in these columns. Columns
    that the model does not know are passed over.

    Raises:
        SourceError: a file that cannot be read, has another step than that of training, too few
            rows, or missing values where the model needs them.
    """
    about, inputs = run.dataset["about"], run.preprocess.inputs
    history, horizon, targets = inputs["history"], inputs["horizon"], about["targets"]
    times, columns, step = read_rows(path, list(about["columns"]))
    if step != step_of(about):
        raise SourceError(
            f"{path.name} has a row every {step}; this run was trained on a row every "
            f"{step_of(about)}. Give the same step."
        )
    given = np.logical_and.reduce([np.isfinite(columns[name]) for name in targets])
    end = int(np.flatnonzero(given)[-1]) + 1 if given.any() else 0
    if end < history:
        raise SourceError(
            f"{path.name} has {end} rows up to the last one with a value of {', '.join(targets)}; "
            f"this run looks back {history}. Give at least so many."
        )
    ahead = [name for name in about["columns"] if name in inputs["known"]]
    if ahead and len(times) < end + horizon:
        raise SourceError(
            f"{path.name} has {len(times) - end} rows after {times[end - 1]}, where the values of "
            f"{', '.join(targets)} end; this run needs {horizon}, with what is known in advance "
            f"({', '.join(ahead)}) and the other columns empty."
        )
    first = end - history
    frame = {}
    for column, values in columns.items():
        stop = end + horizon if column in ahead else end
        missing = np.flatnonzero(~np.isfinite(values[first:stop])) + first
        if len(missing):
            raise SourceError(
                f"{path.name}: column {column!r} has no value in {len(missing)} rows that the "
                f"forecast needs, the first at {times[missing[0]]}. Fill them in."
            )
        frame[column] = np.full(history + horizon, np.nan, np.float32)
        frame[column][: stop - first] = values[first:stop]
    later = step.after(times[end - 1], horizon)
    whole = lay_out(
        run.preprocess.chain,
        Frame(frame, tuple(targets), np.concatenate([times[first:end], later])),
    )
    return Window(
        name,
        {
            key: np.stack([whole.columns[column] for column in names], axis=-1)[part]
            for key, names, part in (
                ("history", inputs["columns"], slice(history)),
                ("future", inputs["known"], slice(history, None)),
            )
            if names
        },
        later,
    )


def from_arrays(inputs: Any, run: Run) -> Iterator[Window]:
    """Windows from "history" [n,t,f] or [t,f] and "future" [n,h,k] or [h,k]; raw values.

    Raises SourceError for arrays of other names or shapes, or that are not finite.
    """
    specs = run.preprocess.raw_signature()
    given = inputs if isinstance(inputs, Mapping) else {"history": inputs}
    wanted = ", ".join(f"{name} {list(spec.shape)}" for name, spec in specs.items())
    if set(given) != set(specs):
        raise SourceError(
            f"This run takes {wanted}; got {', '.join(given)}. Or give a CSV file with time stamps."
        )
    arrays = {}
    for name, spec in specs.items():
        array = np.asarray(given[name], np.float32)
        array = array[None] if array.ndim == 2 else array
        if not spec.shape.is_compatible_with(array.shape):
            raise SourceError(f"This run takes {wanted}; {name} has the shape {list(array.shape)}.")
        if not np.isfinite(array).all():
            raise SourceError(f"{name} has missing or infinite values. Fill them in.")
        arrays[name] = array
    if len({len(array) for array in arrays.values()}) > 1:
        raise SourceError("history and future have unequal numbers of windows.")
    for i in range(len(arrays["history"])):
        yield Window(i + 1, {name: array[i] for name, array in arrays.items()})


def answers(served: Served, run: Run, window: Window) -> Iterator[dict[str, Any]]:
    """The forecast of a window: one dictionary of JSON-able values a step and target.

    ``input`` (the file or the window's number), ``step`` (from 1), ``time`` (of files), ``target``,
    ``forecast`` and, where the model has them, ``stddev`` or ``quantile_0.05`` and so on.
    """
    asked = {name: tf.constant(array[None]) for name, array in window.inputs.items()}
    found = {name: value.numpy()[0] for name, value in served.raw(asked).items()}
    for step, forecast in enumerate(found["forecast"]):
        for place, target in enumerate(run.dataset["about"]["targets"]):
            answer = {"input": window.name, "step": step + 1}
            if window.times is not None:
                answer["time"] = str(window.times[step])
            answer |= {"target": target, "forecast": float(forecast[place])}
            if "stddev" in found:
                answer["stddev"] = float(found["stddev"][step, place])
            for i, level in enumerate(getattr(run.loss, "quantiles", ())):
                answer[f"quantile_{level:g}"] = float(found["quantiles"][step, place, i])
            yield answer


def describe_columns(run: Run, name: str) -> list[dict[str, str]]:
    """Of the input "history" or "future" each column: its name, unit and meaning, as far as known.

    What :func:`.data.ops.series.calendar` makes is described so that it can be computed elsewhere.
    """
    about = run.dataset["about"]["columns"]
    names = run.preprocess.inputs["columns" if name == "history" else "known"]
    found = []
    for column in names:
        known = about.get(column, {})
        cycle, _, function = column.rpartition("_")
        if column not in about and cycle in CYCLES:
            known = {"meaning": f"{function}(2 pi x), x = {CYCLES[cycle][1]}"}
        found.append({"name": column} | {k: known[k] for k in ("unit", "meaning") if known.get(k)})
    return found
