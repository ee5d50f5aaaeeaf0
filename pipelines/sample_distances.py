"""How far generated examples are from real ones, by features of both. NumPy, float64.

The distances depend on the features: compare only values with the same features and numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..models.gan import BEATEN

_SAME = 0.05  # diversity below which a generator has collapsed
_OF_CLASS = 5  # examples of a class below which its diversity says nothing
_CELLS = 2**23  # numbers and distances held in float64 at a time: 64 MiB each


def frechet(real: np.ndarray, made: np.ndarray) -> float:
    """Frechet distance of two Gaussians with the features' means and covariances.

    |m1 - m2|^2 + trace(S1 + S2 - 2 (S1 S2)^(1/2)), Heusel et al. 2017, equation 6; S with n - 1 in
    the denominator. Falls with more examples: it is biased upwards where these are few.

    Args:
        real, made: [n, d] and [m, d], two rows or more each.
    """
    real, made = real.astype(np.float64), made.astype(np.float64)
    gap = np.square(real.mean(axis=0) - made.mean(axis=0)).sum()
    one, two = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (real, made))
    # The trace of the root of S1 S2 is that of the symmetric S1^(1/2) S2 S1^(1/2).
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    both = np.linalg.eigvalsh(root @ two @ root)
    return float(gap + np.trace(one) + np.trace(two) - 2 * np.sqrt(np.clip(both, 0, None)).sum())


def kernel_distance(real: np.ndarray, made: np.ndarray, block: int = 1_000) -> float:
    """Squared maximum mean discrepancy with the kernel (x . y / d + 1)^3, unbiased.

    Binkowski et al. 2018 (KID), equation 4: the mean over blocks of so many rows of each, which are
    to be in random order: blocks of one class each would be compared. It can fall below 0.
    """
    real, made = real.astype(np.float64), made.astype(np.float64)
    size = min(block, len(real), len(made))
    found = []
    for start in range(0, min(len(real), len(made)) - size + 1, size):
        x, y = real[start : start + size], made[start : start + size]
        within = sum((_kernel(v, v).sum() - np.trace(_kernel(v, v))) for v in (x, y))
        found.append(within / (size * (size - 1)) - 2 * _kernel(x, y).mean())
    return float(np.mean(found))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def diversity(real: np.ndarray, made: np.ndarray, rows: int = 256) -> float:
    """Mean distance between generated examples over that between real ones; 0: all are the same.

    Of the first rows of each, which are to be in random order. NaN where the real ones are all the
    same.
    """

    def spread(values: np.ndarray) -> float:
        flat = values[:rows].reshape(min(rows, len(values)), -1).astype(np.float64)
        flat -= flat[0]  # of rows that are all the same nothing is left, not even round-off
        square = np.square(flat).sum(axis=1)
        gaps = square[:, None] + square - 2 * flat @ flat.T
        return float(np.sqrt(np.clip(gaps, 0, None)).mean())

    return _ratio(spread(made), spread(real))


def class_diversity(
    real: np.ndarray, labels: np.ndarray, made: np.ndarray, ids: np.ndarray
) -> float:
    """:func:`diversity` within the class where it is smallest; 0: a class has but one sample.

    The classes of a generator that ignores its noise still differ from each other, which hides it
    from the diversity of all. NaN where no class has five real and five generated examples.

    Args:
        real, made: [n, ...] and [m, ...], in random order.
        labels, ids: their classes, [n] and [m].
    """
    found = [np.nan]
    for each in np.unique(ids):
        pair = [rows[of == each] for rows, of in ((real, labels), (made, ids))]
        size = min(map(len, pair))
        if size >= _OF_CLASS:
            found.append(diversity(*(rows[:size] for rows in pair)))
    return float(np.fmin.reduce(found))


def collapse(spread: float, lost: float | None, within: float = np.nan) -> str | None:
    """What is wrong with a game, in a sentence, or None.

    Args:
        spread: :func:`diversity`.
        lost: the discriminator's loss, None where it has no least value.
        within: :func:`class_diversity` of a conditional model, else NaN.
    """
    for found, which in ((spread, "samples"), (within, "samples of one class")):
        if found < _SAME:
            return (
                f"the generator has collapsed: its {which} lie {found:.2g} times as far apart as "
                "real examples. Try a smaller learning rate, another loss, or more critic_steps."
            )
    if lost is not None and lost < BEATEN:
        return (
            f"the discriminator's loss is {lost:.2g}: it knows every sample and has won. Make it "
            "smaller or slower, or take the loss wasserstein-gp."
        )
    return None


def precision_recall(
    real: np.ndarray, made: np.ndarray, neighbors: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Which generated examples lie among the real ones, and which real ones among the generated.

    Kynkaanniemi et al. 2019 (arXiv:1904.06991), section 3: a set's region is the union of balls
    around its examples, each as far as the k-th nearest of the others. Precision, how good samples
    are, is the share of generated examples in the region of the real ones; recall, how much of the
    real ones is made at all, is the share of real examples in the region of the generated ones.

    Args:
        real, made: features [n, d] and [m, d].
        neighbors: k, 3 in the paper; less than n and m.

    Returns:
        Booleans [m] and [n], whose means are precision and recall.

    Raises ValueError for sets with k examples or fewer.
    """
    if min(len(real), len(made)) <= neighbors:
        raise ValueError(
            f"Balls as far as the {neighbors}th neighbour need more than {neighbors} examples; got "
            f"{len(real)} real and {len(made)} generated ones."
        )
    # The middle changes no distance, and small numbers lose fewer digits in squares.
    middle = real.mean(axis=0, dtype=np.float64)
    real, made = real - middle, made - middle
    return _inside(made, real, neighbors), _inside(real, made, neighbors)


def _inside(queries: np.ndarray, centres: np.ndarray, neighbors: int) -> np.ndarray:
    """Whether each query [n, d] lies in a ball around one of the centres [m, d]."""
    radius = np.concatenate(
        # the nearest of all is the centre itself
        [np.partition(gaps, neighbors, axis=1)[:, neighbors] for gaps in _gaps(centres, centres)]
    )
    return np.concatenate([(gaps <= radius).any(axis=1) for gaps in _gaps(queries, centres)])


def nearest_rows(
    queries: np.ndarray, rows: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions int64 [n, count] of the nearest of ``rows`` [m, ...], and how far they are.

    Distances are Euclidean, float64 [n, count], the nearest first.
    """
    places, distances = [], []
    for gaps in _gaps(queries, rows):
        near = np.argpartition(gaps, count - 1, axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(gaps, near, 1), axis=1, kind="stable")
        places.append(np.take_along_axis(near, order, 1))
        distances.append(np.sqrt(np.take_along_axis(gaps, places[-1], 1)))
    return np.concatenate(places), np.concatenate(distances)


def _gaps(queries: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Squared distances of queries to all rows, float64 [b, m], some queries at a time."""
    queries, rows = (values.reshape(len(values), -1) for values in (queries, rows))
    parts = _parts(rows, max(1, _CELLS // rows.shape[1]))
    square = np.concatenate([np.square(part.astype(np.float64)).sum(axis=1) for part in parts])
    for asked in _parts(queries, max(1, _CELLS // len(rows))):
        asked = asked.astype(np.float64)
        gaps = np.concatenate([asked @ part.astype(np.float64).T for part in parts], axis=1)
        gaps *= -2
        gaps += square
        gaps += np.square(asked).sum(axis=1)[:, None]
        yield np.maximum(gaps, 0, out=gaps)


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def novelty(made: np.ndarray, held_out: np.ndarray, train: np.ndarray) -> float:
    """How far generated examples are from the nearest training ones, over how far real ones are.

    The median over ``made`` over the median over ``held_out``, real examples that were not trained
    on. Near 1: samples are as new as other real examples are. Near 0: they are copies. NaN where
    most of ``held_out`` is in ``train`` too.
    """
    return _ratio(*(np.median(nearest_rows(rows, train, 1)[1]) for rows in (made, held_out)))


def _ratio(ours: float, theirs: float) -> float:
    return float(ours / theirs) if theirs > 0 else np.nan
