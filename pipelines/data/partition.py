"""Which rows of a source are a recipe's training, validation and test examples."""

from __future__ import annotations

import numpy as np

from ..recipe import Data
from .source import Rows, Source, SourceError
from .splits import carve, deal, in_time


def partition(data: Data, source: Source, by_time: bool) -> dict[str, tuple[str, np.ndarray]]:
    """Split -> (split of the source it comes from, row numbers); {} of a source without examples.

    Raises:
        SourceError: folds or fractions that the source does not go with.
    """
    if not source.splits:
        return {}
    train = source.splits["train"]
    labels = train.target if isinstance(train, Rows) and source.task == "classification" else None
    if by_time:
        labels = None
    groups = train.groups if isinstance(train, Rows) else None
    rest, test = np.arange(len(train)), None
    if data.folds is not None:
        number = (data.folds, data.fold)
        rest, test = _fold(data, source, rest, number, labels, groups, by_time)
    parted = data.validation_folds is not None
    if parted and "validation" in source.splits:
        raise SourceError(
            f"data.validation_folds does not go with {data.source}, which has a validation split."
        )

    # Only plain texts are documents one after the other, in whatever task they are learnt.
    plain = source.kind == "text" and source.in_time
    unit = "document(s), which end at empty lines," if plain else "examples"

    def carve_from(rows: np.ndarray, **settings) -> dict[str, np.ndarray]:
        found = carve(
            len(rows),
            data.split_seed,
            labels=None if labels is None else labels[rows],
            classes=source.classes,
            groups=None if groups is None else groups[rows],
            by_time=by_time,
            unit=unit,
            **settings,
        )
        return {name: rows[places] for name, places in found.items()}

    fewer = {
        "train_examples": data.train_examples,
        "train_fraction": data.train_fraction,
        "train_seed": data.train_seed,
    }
    no_validation = parted or "validation" in source.splits
    carved = carve_from(
        rest,
        validation_fraction=0.0 if no_validation else data.validation_fraction,
        test_fraction=0.0 if "test" in source.splits or data.folds else data.test_fraction,
        **({} if parted else fewer),
    )
    if parted:
        left, number = carved["train"], (data.validation_folds, data.validation_fold)
        train_rows, validation = _fold(data, source, left, number, labels, groups, by_time)
        carved |= carve_from(train_rows, **fewer)
        carved["validation"] = validation
    found = {name: ("train", rows) for name, rows in carved.items()}
    own = {n: (n, np.arange(len(rows))) for n, rows in source.splits.items() if n != "train"}
    if test is not None:
        own["test"] = ("train", test)
    both = found | own
    return {name: both[name] for name in ("train", "validation", "test") if name in both}


def _fold(data: Data, source: Source, rows, number: tuple[int, int], labels, groups, by_time: bool):
    """Of these rows those that are left for training, and those of one fold of several."""
    folds, fold = number
    if by_time:
        before, inside = in_time(len(rows), folds, fold)
    else:
        labels = None if labels is None else labels[rows]
        groups = None if groups is None else groups[rows]
        own = deal(len(rows), folds, data.split_seed, labels=labels, classes=source.classes,
                   groups=groups)  # fmt: skip
        before, inside = np.flatnonzero(own != fold), np.flatnonzero(own == fold)
    return rows[before], rows[inside]
