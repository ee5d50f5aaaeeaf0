"""The members of an ensemble that is trained: by seed, by fold, by snapshot; of several recipes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from .recipe import Recipe, RecipeError, override
from .run import Run, appearing
from .train import train

log = logging.getLogger(__name__)
BY = ("seed", "fold", "snapshot")


@dataclass(frozen=True)
class Training:
    """A run that gives one member, or with ``snapshots`` so many."""

    recipe: Recipe
    folder: str
    snapshots: int = 0


def plan(recipes: Sequence[Recipe], members: int, by: str) -> list[Training]:
    """The trainings of an ensemble.

    Args:
        recipes: with different names.
        members: of each recipe.
        by: one of :data:`BY`.

    Raises:
        RecipeError: another ``by``, two recipes of a name, a length that does not divide into
            cycles.
    """
    if by not in BY:
        raise RecipeError(f"There is no --by {by!r}; choose {', '.join(BY)}.")
    names = [recipe.name for recipe in recipes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"The recipe {twice[0]} is given twice; raise --members instead.")
    if by == "fold" and members < 2:
        raise RecipeError("Members by fold are two or more of each recipe.")
    found = []
    for recipe in recipes:
        inside = f"{recipe.name}/" if len(recipes) > 1 else ""
        if by == "snapshot":
            found.append(Training(_in_cycles(recipe, members), f"{inside}cycles", members))
            continue
        for number in range(members):
            if by == "seed":
                changes = {"seed": recipe.seed + number}
                folder = f"seed-{recipe.seed + number}"
            else:
                changes = {"data.validation_folds": members, "data.validation_fold": number}
                folder = f"fold-{number + 1}"
            found.append(Training(override(recipe, changes), inside + folder))
    return found


def train_all(
    trainings: Sequence[Training], place: Path, callbacks: Sequence, data: Any
) -> list[Run]:
    """Trains, or goes on, and returns the members, in order."""
    found = []
    for number, one in enumerate(trainings, 1):
        log.info("%s, training %d of %d", one.recipe.name, number, len(trainings))
        folder = place / one.folder
        if one.snapshots:
            keep = Snapshots(folder, one.recipe.algorithm.epochs // one.snapshots)
            train(one.recipe, folder, data, callbacks=[*callbacks, keep])
            found += [Run(folder, snapshot(cycle)) for cycle in range(1, one.snapshots + 1)]
        else:
            found.append(train(one.recipe, folder, data, callbacks=callbacks))
        keras.backend.clear_session()
    return found


def snapshot(cycle: int) -> str:
    """The file of a snapshot in its run directory; cycles count from 1."""
    return f"snapshots/cycle-{cycle}.keras"


def _in_cycles(recipe: Recipe, cycles: int) -> Recipe:
    epochs = recipe.algorithm.epochs
    if not epochs or epochs % cycles:
        length = f"{epochs} epochs" if epochs else f"{recipe.algorithm.steps} steps"
        raise RecipeError(
            f"{cycles} snapshots need a whole number of epochs each; {recipe.name} has {length} in "
            f"all. Give an --algorithm.epochs that {cycles} divides."
        )
    return override(
        recipe,
        {
            "algorithm.schedule": f"cosine(cycles={cycles})",
            "algorithm.early_stopping": "none",
            "algorithm.ema": "none",
        },
    )


class Snapshots(keras.callbacks.Callback):
    """Saves the model at the end of each cycle.

    The trainer's checkpoint of an epoch comes after this callback: a run that was killed between
    the two trains the epoch again, and saves the same model again.

    Args:
        directory: of the run.
        epochs: of a cycle.
    """

    def __init__(self, directory: Path, epochs: int):
        super().__init__()
        self.directory, self.epochs = directory, epochs

    def on_epoch_end(self, epoch, logs=None):
        cycle, rest = divmod(epoch + 1, self.epochs)
        if not rest:
            with appearing(self.directory / snapshot(cycle)) as temporary:
                self.model.save(temporary)
