"""Hyperband (Li et al. 2018): many short trainings, and longer ones of the best third of them.

A bracket begins with n settings trained for r epochs; the best third trains for 3 r, the best ninth
for 9 r, and so on to the recipe's own epochs. Brackets begin with ever fewer and longer trainings,
in case short ones mislead. Every length is trained from the start: a learning rate's schedule spans
the whole training, so that a short one is not the beginning of a long one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .recipe import Recipe, RecipeError

KEY = "algorithm.epochs"
_FACTOR = 3


@dataclass(frozen=True)
class Rung:
    """The trials of one length in one bracket, by number.

    ``below`` are the trials that it takes its settings from; empty for the first of a bracket.
    """

    epochs: int
    trials: range
    below: range


def bracket_rungs(recipe: Recipe) -> list[Rung]:
    """All rungs of one pass (algorithm 1 of the paper), in the order of their trials.

    Raises RecipeError for recipes whose length is not three epochs or more.
    """
    longest = recipe.algorithm.epochs or 0
    if longest < _FACTOR:
        raise RecipeError(
            f"Hyperband trains for a part of algorithm.epochs, which must be {_FACTOR} or more; "
            f"{recipe.name} has {recipe.algorithm.epochs}."
        )
    # Rounded against 2.999..., the logarithm of 27 in floats.
    most = int(math.log(longest, _FACTOR) + 1e-9)
    rungs, number = [], 0
    for halvings in range(most, -1, -1):
        settings = math.ceil((most + 1) / (halvings + 1) * _FACTOR**halvings)
        below = range(0)
        for step in range(halvings + 1):
            count = settings // _FACTOR**step
            epochs = max(1, round(longest / _FACTOR ** (halvings - step)))
            rungs.append(Rung(epochs, range(number, number + count), below))
            below = rungs[-1].trials
            number += count
    return rungs


def rung_of(rungs: list[Rung], number: int) -> Rung:
    """The rung of a trial; after the last bracket the first one begins again."""
    total = rungs[-1].trials.stop
    passes, inside = divmod(number, total)
    rung = next(rung for rung in rungs if inside in rung.trials)
    shift = passes * total

    def moved(trials: range) -> range:
        return range(trials.start + shift, trials.stop + shift) if trials else trials

    return Rung(rung.epochs, moved(rung.trials), moved(rung.below))
