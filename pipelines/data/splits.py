"""Which examples are for training, validation and test: by time, or by the split seed alone.

The order behind a split is a hash of (seed, purpose, example), not a generator's stream, so that it
stays the same with every version of NumPy. NumPy only.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from .source import SourceError

_PURPOSES = {"test": 1, "validation": 2, "train": 3}
_FOLDS = 4


def hash_order(n: int, seed: int, purpose: int) -> np.ndarray:
    """0..n-1 in the order of their hashes: a permutation that only depends on the arguments.

    The hash is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators", section 5).
    """
    return np.argsort(_hashes(n, seed, purpose), kind="stable")


def uniform(n: int, seed: int, purpose: str) -> np.ndarray:
    """n numbers on [0, 1), float64, multiples of 2^-24 (exact in float32): a function of the
    arguments alone, as the order of :func:`hash_order` is."""
    number = zlib.crc32(purpose.encode()) & 0xFF_FFFF
    return (_hashes(n, seed, number) >> np.uint64(40)).astype(np.float64) * 2.0**-24


def _hashes(n: int, seed: int, purpose: int) -> np.ndarray:
    key = _mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], np.uint64) + np.uint64(purpose << 40))
    return _mix(np.arange(n, dtype=np.uint64) ^ key)


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def carve(
    n: int,
    seed: int,
    *,
    validation_fraction: float = 0.0,
    test_fraction: float = 0.0,
    train_examples: int | None = None,
    train_seed: int | None = None,
    train_fraction: float | None = None,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
    groups: np.ndarray | None = None,
    by_time: bool = False,
    unit: str = "examples",
) -> dict[str, np.ndarray]:
    """Splits 0..n-1 into "train" and, for fractions above 0, "validation" and "test".

    Args:
        n: number of examples.
        seed: the recipe's ``split_seed``.
        validation_fraction: share of what the test leaves.
        test_fraction: share of all.
        train_examples: keep only so many for training.
        train_seed: decides which; by default ``seed``.
        train_fraction: keep only this share of them; rounded, and 1 at least.
        labels: class ids [n]; then every class is represented in proportion in every split, and
            at least once. Without, the split is plain.
        classes: names for error messages.
        groups: group of each example [n]; a group goes into one split as a whole, so that its
            near-duplicates are not learnt before they are asked. The sizes are then those that
            whole groups give, at least the ones asked for. Not together with ``labels``.
        by_time: the test is the end of the rows, validation what comes before it, and of what is
            left the latest ``train_examples`` train. Neither seed nor labels matter.
        unit: what the error of too few calls them.

    Returns:
        Sorted, disjoint int64 indices; together 0..n-1 unless ``train_examples`` is given.

    Raises:
        SourceError: a class with too few examples, an empty split, too few training examples.
    """
    rest = np.arange(n)
    parts: dict[str, np.ndarray] = {}
    fractions = {"test": test_fraction, "validation": validation_fraction}
    wanted = [name for name, fraction in fractions.items() if fraction > 0]
    if labels is not None and wanted:
        _require_examples(labels, wanted, classes)
    if n < 1 + len(wanted):
        raise SourceError(
            f"{n} {unit} cannot be split into training, {' and '.join(wanted)}. Give more, or "
            "set data.validation_fraction and data.test_fraction to 0."
        )
    for left, name in enumerate(wanted):
        reserve = len(wanted) - left  # one example for each split still to come
        count = min(max(1, round(fractions[name] * len(rest))), len(rest) - reserve)
        if by_time:
            rest, parts[name] = np.split(rest, [len(rest) - count])
        elif groups is not None:
            parts[name], rest = _take_groups(rest, count, seed, _PURPOSES[name], groups)
        else:
            parts[name], rest = _take(rest, count, seed, _PURPOSES[name], labels, reserve)
    if train_fraction is not None:
        train_examples = max(1, round(train_fraction * len(rest)))
    if train_examples is not None:
        asked = f"data.train_examples is {train_examples}"
        if train_fraction is not None:
            asked = (
                f"data.train_fraction is {train_fraction:g}, which are {train_examples} examples"
            )
        if train_examples > len(rest):
            raise SourceError(
                f"data.train_examples is {train_examples}, but the training split has only "
                f"{len(rest)} examples. Ask for at most so many, or leave the key out."
            )
        if labels is not None and train_examples < len(np.unique(labels[rest])):
            raise SourceError(
                f"{asked}, but there are "
                f"{len(np.unique(labels[rest]))} classes and each needs a training example."
            )
        if by_time:
            rest = rest[-train_examples:]
        else:
            chosen_by = seed if train_seed is None else train_seed
            rest, _ = _take(rest, train_examples, chosen_by, _PURPOSES["train"], labels, 0)
    return {"train": rest} | {k: parts[k] for k in ("validation", "test") if k in parts}


def deal(
    n: int,
    folds: int,
    seed: int,
    *,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """The fold of each of n examples, int64 [n]; sizes differ as little as possible.

    Args:
        n: number of examples.
        folds: their number, 2 or more.
        seed: the recipe's ``split_seed``; another one deals another way.
        labels: class ids [n]: every class is spread evenly over the folds.
        classes: names for error messages.
        groups: [n]: a group falls into one fold as a whole.

    Raises:
        SourceError: fewer examples, examples of a class, or groups than folds.
    """
    if labels is not None:
        ids, counts = np.unique(labels, return_counts=True)
        few = [
            (classes[i] if i < len(classes) else i, count)
            for i, count in zip(ids.tolist(), counts.tolist(), strict=True)
            if count < folds
        ]
        if few:
            shown = ", ".join(f"{name} ({count})" for name, count in few[:5])
            raise SourceError(
                f"{folds} folds need {folds} examples of each class or more; too few has: {shown}. "
                "Use fewer folds, or leave these classes out."
            )
    number = n if groups is None else len(np.unique(groups))
    if number < folds:
        what = "examples" if groups is None else "groups of near-duplicates"
        raise SourceError(f"{number} {what} cannot be dealt into {folds} folds. Use fewer folds.")
    order = hash_order(n, seed, _FOLDS)
    if groups is None:
        if labels is not None:  # class after class, so that dealing in turn spreads each evenly
            order = order[np.argsort(labels[order], kind="stable")]
        found = np.empty(n, np.int64)
        found[order] = np.arange(n) % folds
        return found
    names, own, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = hash_order(len(names), seed, _FOLDS)
    order = order[np.argsort(-sizes[order], kind="stable")]  # large ones first, to the emptiest
    home, held = np.empty(len(names), np.int64), np.zeros(folds, np.int64)
    for group in order:
        home[group] = np.argmin(held)
        held[home[group]] += sizes[group]
    return home[own]


def in_time(n: int, folds: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """(what trains, what tests) of a fold by time: block fold + 1 of folds + 1, and all before it.

    Raises SourceError where a block would be empty.
    """
    if n < folds + 1:
        raise SourceError(f"{n} rows cannot be cut into {folds + 1} blocks of time.")
    edges = np.linspace(0, n, folds + 2).round().astype(np.int64)
    return np.arange(edges[fold + 1]), np.arange(edges[fold + 1], edges[fold + 2])


def _take(rest, count, seed, purpose, labels, reserve):
    """``count`` of the indices ``rest``, chosen by hash (by class if labelled), and the others."""
    rank = np.empty(rest.max() + 1, np.int64)
    order = hash_order(len(rank), seed, purpose)
    rank[order] = np.arange(len(rank))
    groups = (
        [rest] if labels is None else [rest[labels[rest] == c] for c in np.unique(labels[rest])]
    )
    chosen = np.concatenate(
        [
            group[np.argsort(rank[group])][:share]
            for group, share in zip(groups, _shares(groups, count, reserve), strict=True)
        ]
    )
    mask = np.zeros(len(rank), bool)
    mask[chosen] = True
    return np.sort(chosen), rest[~mask[rest]]


def _take_groups(rest, count, seed, purpose, groups):
    """Whole groups of ``rest`` in the order of their hashes, until they hold ``count`` examples."""
    names, own, sizes = np.unique(groups[rest], return_inverse=True, return_counts=True)
    order = hash_order(len(names), seed, purpose)
    enough = np.searchsorted(np.cumsum(sizes[order]), count) + 1
    chosen = np.zeros(len(names), bool)
    chosen[order[:enough]] = True
    if chosen.all():
        raise SourceError(
            f"The {len(rest)} examples form {len(names)} groups of near-duplicates, too few to set "
            f"{count} examples apart without tearing a group. Lower data.validation_fraction and "
            "data.test_fraction."
        )
    return rest[chosen[own]], rest[~chosen[own]]


def _shares(groups, count, reserve):
    """How many of each group: proportional, largest remainders, 1 at least, ``reserve`` left."""
    sizes = np.array([len(group) for group in groups])
    exact = sizes * (count / sizes.sum())
    shares = np.floor(exact).astype(np.int64)
    missing = count - shares.sum()
    shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1
    shares = np.clip(shares, 1, np.maximum(sizes - reserve, 1))
    # The limits can move the total; even it out where there is most room.
    while shares.sum() > count and (shares > 1).any():
        shares[np.argmax(np.where(shares > 1, shares - exact, -np.inf))] -= 1
    while shares.sum() < count and (shares < sizes - reserve).any():
        shares[np.argmin(np.where(shares < sizes - reserve, shares - exact, np.inf))] += 1
    return shares


def _require_examples(labels, wanted, classes):
    ids, counts = np.unique(labels, return_counts=True)
    needed = 1 + len(wanted)
    few = [(int(i), int(c)) for i, c in zip(ids, counts, strict=True) if c < needed]
    if few:
        shown = ", ".join(f"{classes[i] if i < len(classes) else i!s} ({c})" for i, c in few[:5])
        raise SourceError(
            f"A stratified split into training, {' and '.join(wanted)} needs at least {needed} "
            f"examples of each class; too few has: {shown}{', …' if len(few) > 5 else ''}. Add "
            "examples, leave these classes out, or set data.validation_fraction or "
            "data.test_fraction to 0."
        )
