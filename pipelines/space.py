"""Search spaces: which keys of a recipe may take which values.

A space is text, one entry a key::

    algorithm.optimizer.name=choice(sgd,adam)
    algorithm.optimizer.learning_rate=log(1e-3,1) if algorithm.optimizer.name in sgd
    algorithm.optimizer.learning_rate=log(1e-4,1e-2) if algorithm.optimizer.name in adam
    model.dropout=float(0,0.6)
    data.batch_size=choice(32,64,128)
    algorithm.epochs=int(5,30,step=5)

A point is a dictionary key -> value that :func:`.recipe.override` takes. Numbers are rounded to
four digits: what is proposed, written down and trained is the same number, also after a journey
through a 32-bit float.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .recipe import Recipe, RecipeError, override
from .recipe_base import literal, split_values

_ENTRY = re.compile(r"(?P<kind>[a-z]+)\((?P<inside>.*)\)(?:\s+if\s+(?P<condition>.+))?", re.DOTALL)
_FORMS = "int(low,high), int(low,high,step=n), float(low,high), log(low,high), choice(a,b,...)"
# Where all points are looked at one by one; beyond, a space counts as endless for that purpose.
ENUMERABLE = 10_000


@dataclass(frozen=True)
class Dimension:
    """A key and the values it may take, perhaps only where another key has certain values."""

    key: str
    kind: str
    low: float = 0
    high: float = 0
    step: int = 1
    values: tuple[str, ...] = ()
    parent: str = ""
    parent_values: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """How many values there are; None for the continuous ones."""
        if self.kind == "int":
            return (self.high - self.low) // self.step + 1
        return len(self.values) or None

    @property
    def width(self) -> int:
        """Columns of :meth:`encode`."""
        return max(1, len(self.values))

    def decode(self, share: float) -> Any:
        """The value at a share of the range, on [0, 1]."""
        if self.size:
            place = min(int(share * self.size), self.size - 1)
            return self.values[place] if self.values else int(self.low + place * self.step)
        if self.kind == "log":
            return _rounded(self.low * (self.high / self.low) ** share)
        return _rounded(self.low + share * (self.high - self.low))

    def share(self, value: Any) -> float:
        """Where a value lies; :meth:`decode` gives it back."""
        if self.size:
            place = self.values.index(value) if self.values else (value - self.low) / self.step
            return (place + 0.5) / self.size
        if self.kind == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def encode(self, value: Any) -> list[float]:
        """Coordinates for a Gaussian process. Choices have no order: each is a direction, and two
        of them lie 0.7 of a range apart."""
        if self.values:
            return [0.5 * (value == one) for one in self.values]
        return [self.share(value)]

    def holds(self, value: Any) -> bool:
        """Whether it is one of the values."""
        if self.values:
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        inside = self.low <= value <= self.high
        if self.kind == "int":
            return inside and value == int(value) and (value - self.low) % self.step == 0
        return inside and value == _rounded(value)

    def grid(self, points: int) -> list[Any]:
        """All values of a choice; of a range, where it has more, so many from end to end."""
        count = self.size if self.values else min(self.size or points, points)
        if self.size:
            places = np.linspace(0, self.size - 1, count).round()
            return [self.decode((place + 0.5) / self.size) for place in places]
        return [self.decode(share) for share in np.linspace(0, 1, count)]


class Space:
    """The dimensions of a search, those that others depend on first.

    Args:
        dimensions: at least one; a key may stand several times where the conditions exclude each
            other.

    Raises:
        RecipeError: a condition that cannot be met, a key given twice.
    """

    def __init__(self, dimensions: Sequence[Dimension]):
        if not dimensions:
            raise RecipeError(
                "There is nothing to search: a space needs a key with two values or more, e.g. "
                "--space 'algorithm.optimizer.learning_rate=log(1e-4,1e-1)'."
            )
        depth = {dimension: _depth(dimension, dimensions) for dimension in dimensions}
        self.dimensions = tuple(sorted(dimensions, key=lambda dimension: depth[dimension]))
        for one, other in itertools.combinations(dimensions, 2):
            apart = one.parent == other.parent and one.parent and (
                set(one.parent_values).isdisjoint(other.parent_values)
            )  # fmt: skip
            if one.key == other.key and not apart:
                raise RecipeError(
                    f"The space names {one.key} twice. Give it once, or with conditions that "
                    "exclude each other."
                )

    @classmethod
    def parse(cls, entries: Sequence[str]) -> Space:
        """Reads entries "KEY=FORM" or "KEY=FORM if KEY in a,b". Raises RecipeError."""
        return cls([_read(entry) for entry in entries])

    @property
    def dimensionality(self) -> int:
        return len(self.dimensions)

    def active(self, dimension: Dimension, values: dict[str, Any]) -> bool:
        """Whether a dimension counts, given the values of those before it."""
        return not dimension.parent or values.get(dimension.parent) in dimension.parent_values

    def decode(self, shares: Sequence[float]) -> dict[str, Any]:
        """The point at these shares [dimensionality] of the ranges; what is not active is left
        out."""
        values: dict[str, Any] = {}
        for dimension, share in zip(self.dimensions, shares, strict=True):
            if self.active(dimension, values):
                values[dimension.key] = dimension.decode(float(share))
        return values

    def shares(self, values: dict[str, Any]) -> np.ndarray:
        """The inverse of :meth:`decode`; 0.5 for what is not active."""
        return np.array([
            dimension.share(values[dimension.key]) if self.active(dimension, values) else 0.5
            for dimension in self.dimensions
        ])  # fmt: skip

    def encode(self, values: dict[str, Any]) -> np.ndarray:
        """Coordinates [columns] for a Gaussian process; 0.5 for what is not active."""
        columns: list[float] = []
        for dimension in self.dimensions:
            on = self.active(dimension, values)
            columns += dimension.encode(values[dimension.key]) if on else [0.5] * dimension.width
        return np.array(columns)

    def holds(self, values: dict[str, Any]) -> bool:
        """Whether ``values`` is a point of the space."""
        on = [dimension for dimension in self.dimensions if self.active(dimension, values)]
        return {dimension.key for dimension in on} == set(values) and all(
            dimension.holds(values[dimension.key]) for dimension in on
        )

    def size(self) -> int | None:
        """How many points the space has, None for endlessly many or more than ENUMERABLE."""
        if any(dimension.size is None for dimension in self.dimensions):
            return None
        count = sum(1 for _ in itertools.islice(self.points(None), ENUMERABLE + 1))
        return count if count <= ENUMERABLE else None

    def points(self, resolution: int | None) -> Iterator[dict[str, Any]]:
        """Every point; ranges with more values than ``resolution`` are cut into so many."""

        def extend(values: dict[str, Any], place: int) -> Iterator[dict[str, Any]]:
            if place == self.dimensionality:
                yield values
                return
            dimension = self.dimensions[place]
            if not self.active(dimension, values):
                yield from extend(values, place + 1)
                return
            for value in dimension.grid(resolution or dimension.size):
                yield from extend({**values, dimension.key: value}, place + 1)

        return extend({}, 0)

    def corners(self) -> Iterator[dict[str, Any]]:
        """Points that between them have both ends and the inside of every range, and every
        choice."""
        for number, dimension in enumerate(self.dimensions):
            for one in dimension.grid(4):
                shares = np.zeros(self.dimensionality)
                shares[number] = dimension.share(one)
                self._allow(dimension, shares)
                yield self.decode(shares)

    def _allow(self, dimension: Dimension, shares: np.ndarray) -> None:
        """Sets the shares of those that a dimension depends on so that it is active."""
        if not dimension.parent:
            return
        for number, other in enumerate(self.dimensions):
            common = [v for v in other.values if v in dimension.parent_values]
            if other.key == dimension.parent and common:
                shares[number] = other.share(common[0])
                self._allow(other, shares)
                return

    def start(self, recipe: Recipe) -> dict[str, Any] | None:
        """The recipe as it stands, as a point; None where it lies outside of the space."""
        values: dict[str, Any] = {}
        tree = recipe.model_dump(mode="json")
        for dimension in self.dimensions:
            if not self.active(dimension, values):
                continue
            if dimension.values:
                same = [
                    v for v in dimension.values if override(recipe, {dimension.key: v}) == recipe
                ]
                value = same[0] if same else None
            else:
                value = _at(tree, dimension.key)
            if value is None or not dimension.holds(value):
                return None
            values[dimension.key] = value
        return values


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _at(tree: dict[str, Any], key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _depth(dimension: Dimension, dimensions: Sequence[Dimension], above: int = 0) -> int:
    """How many conditions stand one above the other. Raises RecipeError for impossible ones."""
    if not dimension.parent:
        return above
    parents = [other for other in dimensions if other.key == dimension.parent]
    known = [value for other in parents for value in other.values]
    if not known:
        raise RecipeError(
            f"{dimension.key} depends on {dimension.parent}, which is no choice of the space. Add "
            f"--space '{dimension.parent}=choice(...)', or leave the condition out."
        )
    if strange := [value for value in dimension.parent_values if value not in known]:
        raise RecipeError(
            f"{dimension.key} depends on {dimension.parent} being {strange[0]!r}, but that is one "
            f"of {', '.join(known)}."
        )
    if above > len(dimensions):
        raise RecipeError(f"The condition of {dimension.key} leads back to itself.")
    return max(_depth(other, dimensions, above + 1) for other in parents)


def _read(entry: str) -> Dimension:
    key, equals, form = (part.strip() for part in entry.partition("="))
    found = _ENTRY.fullmatch(form)
    if not equals or not key or found is None:
        raise RecipeError(f"Cannot read --space {entry!r}: write KEY=FORM, a form being {_FORMS}.")
    key = key.replace("-", "_")
    condition = _condition(entry, found["condition"])
    inside = [part.strip() for part in split_values(found["inside"])]
    if found["kind"] == "choice":
        if len(set(inside)) < 2 or not all(inside) or len(set(inside)) < len(inside):
            raise RecipeError(
                f"--space {entry!r}: a choice has two values or more, each of them once."
            )
        return Dimension(key, "choice", values=tuple(inside), **condition)
    return Dimension(key, found["kind"], **_range(entry, found["kind"], inside), **condition)


def _condition(entry: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    parent, word, values = text.partition(" in ")
    allowed = tuple(value.strip() for value in split_values(values))
    if not word or not all(allowed):
        raise RecipeError(f"Cannot read the condition of --space {entry!r}: write `if KEY in a,b`.")
    return {"parent": parent.strip().replace("-", "_"), "parent_values": allowed}


def _range(entry: str, kind: str, inside: list[str]) -> dict[str, Any]:
    """Bounds and step of int, float or log; RecipeError for any that make no sense."""
    step = 1
    if kind == "int" and len(inside) == 3 and inside[2].startswith("step="):
        step = literal(inside.pop().removeprefix("step=").strip())
    numbers = [literal(part) for part in inside]
    if kind not in ("int", "float", "log") or len(numbers) != 2:
        raise RecipeError(f"Cannot read --space {entry!r}: the forms are {_FORMS}.")
    wanted = int if kind == "int" else int | float
    if not all(isinstance(n, wanted) and not isinstance(n, bool) for n in [*numbers, step]):
        what = "whole numbers" if kind == "int" else "numbers"
        raise RecipeError(f"--space {entry!r}: the bounds of {kind} are {what}.")
    low, high = numbers if kind == "int" else map(_rounded, numbers)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RecipeError(
            f"--space {entry!r}: the lower bound must lie below the upper one. A key with a single "
            "value is no search: set it by --KEY VALUE."
        )
    if kind == "log" and low <= 0:
        raise RecipeError(f"--space {entry!r}: a logarithmic range starts above 0.")
    if kind == "int" and not 1 <= step <= high - low:
        raise RecipeError(f"--space {entry!r}: a step lies between 1 and {high - low}.")
    return {"low": low, "high": high, "step": step} if kind == "int" else {"low": low, "high": high}
