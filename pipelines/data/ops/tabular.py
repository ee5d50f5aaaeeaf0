"""Ops on tables (kind "columns": a tensor [n] a column) and on arrays (kind "features": [n,f]).

What an op learns, it learns from the training split. Missing is NaN in numbers and "" in text,
outer blanks not counted. Numbers are float32, statistics are computed in float64. Everything is
core TensorFlow without lookup tables, so that it exports as it stands.

The usual chain for a table is ``impute|one_hot|standardize``; with ``impute|standardize|one_hot``
the 0/1 columns stay 0 and 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import numpy as np
import tensorflow as tf
from pydantic import Field

from ..source import nearest
from . import OpsError, op

MISSING = "missing"  # the category of missing text
MAX_CATEGORIES = 1_000
_BLANKS = " \t\n\r\v\f"  # what tf.strings.strip takes off
Table = dict[str, Any]
Names = str | tuple[str | int, ...]  # columns by name; of kind "features" by position


@op("columns")
def drop(table: Table, *names: str) -> Table:
    """Leave columns out.

    ``drop("id", "date")``. The served model still takes the columns, as the file has them, and
    takes no notice of them. Raises OpsError for an unknown column, or when none would be left.
    """
    _require_known("drop", names, table)
    if not names or len(set(names)) == len(table):
        raise OpsError(f"drop{names!r} must name at least one column and leave at least one.")
    return {name: column for name, column in table.items() if name not in names}


def _fit_impute(table: Table, indicator: bool = False) -> dict[str, Any]:
    state: dict[str, Any] = {"fill": {}, "indicated": {}}
    for name, column in table.items():
        if _is_text(column):
            state["fill"][name] = MISSING
            missing = np.array([not text for text in _stripped(column)])
        else:
            missing = np.isnan(column)
            empty = missing.all(axis=0)
            if empty.any():
                where = f"column {name!r}"
                if column.ndim == 2:
                    where = f"feature {np.flatnonzero(empty)[0]}"
                raise OpsError(
                    f"impute: {where} has no value in the training split, hence no median. Leave "
                    "it out of the data (of a table with the op drop)."
                )
            state["fill"][name] = np.nanmedian(column.astype(np.float64), axis=0).tolist()
        if indicator and missing.any():
            some = np.flatnonzero(missing.any(axis=0)).tolist() if missing.ndim > 1 else []
            state["indicated"][name] = some
            if column.ndim == 1 and f"{name}_missing" in table:
                raise OpsError(
                    f"impute(indicator=True) would add the column '{name}_missing', which the "
                    "table already has. Rename it, or use impute without the indicator."
                )
    return state


@op("features", "columns", fit=_fit_impute)
def impute(table: Table, indicator: bool = False, *, state: dict[str, Any]) -> Table:
    """Fill in missing values with what training data show.

    Numbers get the training median, text the category "missing". With ``indicator``, every column
    that had missing values in training is followed by a float32 0/1 column ``NAME_missing`` (for
    arrays these come last). Columns complete in training are filled too when served incomplete.
    """
    filled: Table = {}
    for name, column in table.items():
        fill = state["fill"][name]
        if column.dtype == tf.string:
            column = tf.strings.strip(column)
            missing = tf.equal(column, "")
        else:
            missing = tf.math.is_nan(column)
        filled[name] = tf.where(missing, tf.constant(fill, column.dtype), column)
        if name in state["indicated"]:
            flags = tf.cast(missing, tf.float32)
            if column.shape.rank == 1:
                filled[f"{name}_missing"] = flags
            else:
                flags = tf.gather(flags, state["indicated"][name], axis=1)
                filled[name] = tf.concat([filled[name], flags], axis=1)
    return filled


def _fit_one_hot(
    table: Table,
    columns: Names | None = None,
    min_count: int = 1,
    max_categories: int | None = None,
    other: bool = False,
) -> dict[str, Any]:
    state = {}
    for name in _chosen("one_hot", columns, table, _is_text):
        column = table[name]
        if column.ndim != 1:
            raise OpsError(f"one_hot: column {name!r} is no single column: it was encoded before.")
        text = _is_text(column)
        values = _stripped(column) if text else column.astype(np.float32).tolist()
        if any(value == "" or value != value for value in values):  # NaN differs from itself
            raise OpsError(
                f"one_hot: column {name!r} has missing values in the training split. Put `impute` "
                "before one_hot."
            )
        counts = Counter(values)
        kept = [value for value, count in counts.items() if count >= min_count]
        kept = sorted(kept, key=lambda value: (-counts[value], value))[:max_categories]
        if not kept and not other:
            raise OpsError(
                f"one_hot: no category of column {name!r} has min_count={min_count} rows in the "
                f"training split; the commonest has {max(counts.values())}."
            )
        if len(kept) > MAX_CATEGORIES and max_categories is None:
            raise OpsError(
                f"one_hot: column {name!r} has {len(kept)} categories in {len(values)} training "
                f"rows, more than {MAX_CATEGORIES}. If it is an id, a date or free text, put "
                f"drop({name!r}) first; otherwise keep the commonest with max_categories or "
                "min_count."
            )
        state[name] = sorted(kept)
    return {"categories": state}


@op("columns", fit=_fit_one_hot)
def one_hot(
    table: Table,
    columns: Names | None = None,
    min_count: Annotated[int, Field(ge=1)] = 1,
    max_categories: Annotated[int, Field(ge=1)] | None = None,
    other: bool = False,
    *,
    state: dict[str, Any],
) -> Table:
    """A text column as one 0/1 column for each category.

    The categories are those of the training split, sorted; a column becomes float32 [n,k].

    Args:
      columns: which; by default all text columns. A named column of numbers is taken as codes.
      min_count: training rows a category needs.
      max_categories: keep the commonest only. Without it, more than 1,000 are refused.
      other: one more slot, the last, for all other values. Without it such a row is all zeros.
    """
    encoded = dict(table)
    for name, categories in state["categories"].items():
        column = table[name]
        if column.dtype == tf.string:
            column = tf.strings.strip(column)
        # Comparing with up to 1,000 categories needs no table that an export would have to track.
        hits = tf.equal(column[:, None], tf.constant(categories, column.dtype, [len(categories)]))
        hits = tf.cast(hits, tf.float32)
        if other:
            hits = tf.concat([hits, 1.0 - tf.reduce_sum(hits, axis=1, keepdims=True)], axis=1)
        encoded[name] = hits
    return encoded


def fit_standardize(table: Table) -> dict[str, Any]:
    """Mean and 1 / standard deviation of each column, by name; the latter is 0 for constants."""
    state: dict[str, Any] = {"mean": {}, "scale": {}}
    for name, column in table.items():
        if _is_text(column):
            continue
        values = column.astype(np.float64)
        present = np.isfinite(values)
        count = np.maximum(present.sum(axis=0), 1)
        mean = np.where(present, values, 0).sum(axis=0) / count
        variance = np.where(present, values - mean, 0) ** 2
        spread = np.sqrt(variance.sum(axis=0) / count)
        # Compared, not computed: rounding would leave a constant column a tiny spread.
        lowest = np.where(present, values, np.inf).min(axis=0)
        constant = lowest >= np.where(present, values, -np.inf).max(axis=0)
        state["mean"][name] = mean.tolist()
        state["scale"][name] = np.where(constant, 0, 1 / np.where(constant, 1, spread)).tolist()
    return state


@op("features", "columns", fit=fit_standardize)
def standardize(table: Table, *, state: dict[str, Any]) -> Table:
    """(x - mean) / standard deviation of the training data.

    For each number of a row on its own (population standard deviation, missing values not
    counted). What is constant in training becomes 0. Text columns stay as they are.
    """
    return {
        name: (column - tf.constant(state["mean"][name], tf.float32))
        * tf.constant(state["scale"][name], tf.float32)
        if name in state["mean"]
        else column
        for name, column in table.items()
    }


def _fit_log1p(table: Table, columns: Names | None = None) -> dict[str, Any]:
    def lowest(name: str, values: np.ndarray) -> list[float]:
        low = float(np.nanmin(values, initial=np.inf))
        if low <= -1:
            raise OpsError(
                f"log1p: {name} goes down to {low:g} in the training split; log(1 + x) needs more "
                "than -1. Name the columns that it is meant for: log1p(('A', 'B'))."
            )
        return [low if np.isfinite(low) else 0.0]

    return _fit_each("log1p", columns, table, lowest)


@op("features", "columns", fit=_fit_log1p)
def log1p(table: Table, columns: Names | None = None, *, state: dict[str, Any]) -> Table:
    """log(1 + x).

    For counts and amounts with a long tail. ``columns`` are names, or positions of arrays;
    by default all columns of numbers. Raises OpsError where training data hold -1 or less; a served
    value of -1 or less counts as the smallest of training.
    """

    def apply(x: tf.Tensor, lowest: tf.Tensor) -> tf.Tensor:
        return tf.math.log1p(tf.where(x <= -1.0, lowest[..., 0], x))

    return _apply_each(table, state, apply)


def _fit_clip(table: Table, quantile: float, columns: Names | None = None) -> dict[str, Any]:
    def bounds(name: str, values: np.ndarray) -> list[float]:
        values = values[~np.isnan(values)]
        if not values.size:
            raise OpsError(f"clip: {name} has no value in the training split.")
        return np.quantile(values, [quantile, 1 - quantile]).tolist()

    return _fit_each("clip", columns, table, bounds)


@op("features", "columns", fit=_fit_clip)
def clip(
    table: Table,
    quantile: Annotated[float, Field(gt=0, lt=0.5)],
    columns: Names | None = None,
    *,
    state: dict[str, Any],
) -> Table:
    """Limit values to a range between two training quantiles.

    ``clip(0.01)`` limits to the range between the 1% and the 99% quantile (linearly interpolated).
    ``columns`` are names, or positions of arrays; by default all columns of numbers, 0/1 columns
    of one_hot excepted. Missing values stay missing.
    """

    def apply(x: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
        limited = tf.clip_by_value(x, limits[..., 0], limits[..., 1])
        return tf.where(tf.math.is_nan(x), x, limited)

    return _apply_each(table, state, apply)


def _is_text(column: np.ndarray) -> bool:
    return column.dtype.kind in "OUS"


def _stripped(column: np.ndarray) -> list[str]:
    return [text.strip(_BLANKS) for text in column.tolist()]


def _require_known(op_name: str, names: Iterable[Any], table: Table) -> None:
    for name in names:
        if name not in table:
            raise OpsError(
                f"{op_name}: there is no column {name!r}. {nearest(str(name), table)}At this "
                f"place of the chain there are {', '.join(table)}."
            )


def _chosen(
    op_name: str, names: Names | None, table: Table, default: Callable[[np.ndarray], bool]
) -> list[str]:
    """The columns named, or all that `default` accepts."""
    if names is None:
        return [name for name, column in table.items() if default(column)]
    named = (names,) if isinstance(names, str) else names
    _require_known(op_name, named, table)
    return list(named)


def _fit_each(
    op_name: str,
    names: Names | None,
    table: Table,
    learn: Callable[[str, np.ndarray], list[float]],
) -> dict[str, Any]:
    """{column: learnt}; for arrays {"features": {"positions": [...], "learnt": [...]}}."""
    if list(table) == ["features"] and table["features"].ndim == 2:
        array = table["features"]
        width = array.shape[1]
        positions = list(range(width) if names is None else names)
        for position in positions:
            if not isinstance(position, int) or not 0 <= position < width:
                raise OpsError(
                    f"{op_name}: {position!r} is no position of the features; they are counted "
                    f"from 0 to {width - 1}."
                )
        learnt = [learn(f"feature {position}", array[:, position]) for position in positions]
        return {"features": {"positions": positions, "learnt": learnt}}
    if any(column.ndim == 3 for column in table.values()):
        raise OpsError(
            f"{op_name} acts on rows of numbers, and these are sequences [t, f] of such."
        )
    chosen = _chosen(op_name, names, table, lambda c: not _is_text(c) and c.ndim == 1)
    for name in chosen:
        if _is_text(table[name]) or table[name].ndim != 1:
            raise OpsError(f"{op_name}: column {name!r} holds text or categories, not numbers.")
    return {name: learn(f"column {name!r}", table[name]) for name in chosen}


def _apply_each(
    table: Table,
    state: dict[str, Any],
    apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> Table:
    """``apply(x [n] or [n,f], learnt [k] or [f,k])`` to the columns or positions of the state."""
    changed = dict(table)
    for name, learnt in state.items():
        column = table[name]
        if isinstance(learnt, list):
            changed[name] = apply(column, tf.constant(learnt, tf.float32))
        elif learnt["positions"]:
            width, each = column.shape[1], np.asarray(learnt["learnt"], np.float32)
            everywhere = np.zeros((width, each.shape[1]), np.float32)
            everywhere[learnt["positions"]] = each
            touched = np.isin(np.arange(width), learnt["positions"])
            changed[name] = tf.where(touched, apply(column, tf.constant(everywhere)), column)
    return changed
