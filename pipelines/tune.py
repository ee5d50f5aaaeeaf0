"""Search for better settings of a recipe, on the validation split alone.

A search is a KerasTuner search: an oracle proposes (:mod:`.oracle`), a tuner trains, several
processes may share the work (:mod:`.workers`). Each trial is an ordinary run directory,
``trial-001``, so that a killed search goes on in the middle of a trial, and proposes the trials
that it would have proposed. The first trial is the recipe as it stands, where the space has it.

The test split is not read. What counts is the objective at the epoch whose weights a run keeps.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
from keras_tuner.engine import base_tuner
from keras_tuner.engine.trial import TrialStatus
from keras_tuner.errors import FailedTrialError

from ..models.hints import did_you_mean
from . import choices, hyperband, studies, tune_report, workers
from .claim import Busy
from .data import load
from .oracle import TUNERS, Oracle
from .plan import recorded_by
from .recipe import Recipe, RecipeError, override
from .run import Run, RunError, write_atomic
from .space import Space
from .train import train

log = logging.getLogger(__name__)
# Keys that change which examples are asked, or what for: scores would not compare, and the test
# split could end up in training.
_FIXED = ("source", "validation_fraction", "test_fraction", "split", "split_seed", "folds", "fold",
          "validation_folds", "validation_fold", "target", "group", "text", "task")  # fmt: skip


def tune(
    recipe: Recipe | str,
    trials: int | None = None,
    *,
    hours: float | None = None,
    tuner: str = "bayesian",
    space: Sequence[str] = (),
    objective: str | None = None,
    folds: int | None = None,
    directory: str | os.PathLike | None = None,
    role: str | None = None,
    chief: str = workers.LOOPBACK,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    data: Any = None,
) -> dict[str, Any]:
    """Trains a recipe with settings from a search space and keeps the best.

    Args:
        recipe: a recipe or its name. Its seed is that of every trial, and of the search.
        trials: how many in all, those of an interrupted search included.
        hours: no new trial begins later than so many hours from now. With ``trials`` too, whatever
            comes first; one of the two is needed.
        tuner: one of :data:`.oracle.TUNERS`.
        space: entries as :mod:`.space` describes them; by default those of the recipe.
        objective: a recorded validation quantity, e.g. val_accuracy; by default the task's usual
            one.
        folds: score a trial by the mean over so many validation folds, a run each.
        directory: where the search goes; by default runs/tune-NAME-K. A search of the same plan
            goes on there.
        role: "chief" to propose and no more, "worker" to train what the chief proposes; several
            workers share one directory. By default this process does both.
        chief: "HOST:PORT" of the chief. Whoever reaches the port can take part.
        callbacks: further Keras callbacks, given to every run.
        data: arrays, for recipes whose source is ``python``.

    Returns:
        {"recipe", "tuner", "objective", "stopped", "trials": [{"trial", "values", "score", "error",
        "seconds", "directory"}], "best", "start" (the recipe as it stands, or None), "importance",
        "best_recipe", "directory"}; also written as tune.json, tune.csv, README.md, best.json (a
        recipe that ``train`` takes) and plots. For a worker {"role", "trials"} alone.

    Raises:
        RecipeError: keys, values, an objective or a space that make no sense; before any training.
        RunError: the directory holds another search; every trial failed.
    """
    from .recipes import get_recipe, search_space

    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    space = list(space) or search_space(recipe.name)
    searched = _check(recipe, trials, hours, tuner, space, folds, role)
    objective = _objective(recipe, objective, searched, data)
    plan = {
        "recipe": recipe.model_dump(mode="json"),
        "space": space,
        "tuner": tuner,
        "objective": objective.name,
        "folds": folds,
    }
    oracle = (workers.SharedOracle if role else Oracle)(
        searched, tuner, objective, trials, recipe.seed, searched.start(recipe),
        math.inf if hours is None else time.time() + 3600 * hours,
        hyperband.bracket_rungs(recipe) if tuner == "hyperband" else (),
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        if role:
            stack.enter_context(workers.part(role, chief))
        if role == "worker":
            workers.wait_for_chief(oracle)
            place = studies.directory_of("tune", recipe.name, directory, plan)
            studies.require_plan(place, plan)
            mine = Tuner(oracle, recipe, place, folds, callbacks, data)
            mine.search()
            return {"role": role, "trials": mine.trained}
        place = studies.directory_of("tune", recipe.name, directory, plan)
        stack.enter_context(studies.held(place, plan))
        oracle._set_project_dir(str(place), "oracle")
        oracle.reload()
        oracle.on_end = lambda trial: log.info("%s", tune_report.line(oracle, trial, place))
        if role == "chief":
            workers.serve(oracle, chief)
        else:
            Tuner(oracle, recipe, place, folds, callbacks, data).search()
        log.info("%s", oracle.stopped)
        return tune_report.report(oracle, recipe, place)


def _check(recipe, trials, hours, tuner, space, folds, role) -> Space:
    """The search space, once everything is known to make sense. Raises RecipeError."""
    if trials is None and hours is None:
        raise RecipeError("A search needs an end: give --trials or --hours.")
    for name, value, least in (("trials", trials, 1), ("folds", folds, 2)):
        if value is not None and value < least:
            raise RecipeError(f"--{name} must be at least {least}; got {value}.")
    if hours is not None and not hours > 0:
        raise RecipeError(f"--hours must be above 0; got {hours}.")
    if tuner not in TUNERS:
        raise RecipeError(f"There is no tuner {tuner!r}; there are {', '.join(TUNERS)}.")
    if role not in (None, "chief", "worker"):
        raise RecipeError(f"A role is chief or worker; got {role!r}.")
    searched = Space.parse(space)
    if tuner == "hyperband" and hyperband.KEY in {d.key for d in searched.dimensions}:
        raise RecipeError(f"Hyperband sets {hyperband.KEY}; leave it out of the space.")
    for dimension in searched.dimensions:
        if dimension.key in {f"data.{key}" for key in _FIXED}:
            raise RecipeError(
                f"{dimension.key} cannot be searched: it changes the examples or the question that "
                "trials are compared on."
            )
    for point in searched.corners():
        choices.check_recipe(override(recipe, point))
    return searched


def _objective(recipe, name: str | None, space: Space, data: Any) -> keras_tuner.Objective:
    """The objective with its direction. Raises RecipeError for one that no run records."""
    dataset = load(recipe.data, data)
    loss = choices.build_loss(recipe.loss)
    recorded = studies.own_metrics(dataset)  # what is measured in the end
    if recorded is None:
        recorded = recorded_by(dataset, loss)
    if not recorded:
        raise RecipeError(studies.no_usual(recipe.name, [], "--objective"))
    if "validation" not in dataset.sizes:
        raise RecipeError(
            "A search chooses on a validation split, and the data have none: set "
            "data.validation_fraction."
        )
    if name is None:
        usual = [m for m in studies.USUAL if m in recorded]
        if not usual and "loss" not in recorded:
            named = [f"val_{metric}" for metric in recorded]
            raise RecipeError(studies.no_usual(recipe.name, named, "--objective"))
        name = f"val_{usual[0] if usual else 'loss'}"
    known = [f"val_{metric}" for metric in recorded]
    if name not in known:
        hint = did_you_mean(name, known, 0.3)
        raise RecipeError(
            f"--objective {name!r} is no validation quantity that {recipe.name} records.{hint} "
            f"There are {', '.join(known)}."
        )
    if name == "val_loss" and any(d.key.split(".")[0] == "loss" for d in space.dimensions):
        raise RecipeError(
            "The values of different losses do not compare: give an --objective other than "
            f"val_loss. There are {', '.join(known)}."
        )
    upwards = studies.higher_is_better(name.removeprefix("val_"))
    return keras_tuner.Objective(name, "max" if upwards else "min")


class Tuner(base_tuner.BaseTuner):
    """KerasTuner's loop around :func:`.train.train`: asks for trials, trains and reports them."""

    def __init__(self, oracle: Oracle, recipe, place: Path, folds, callbacks, data):
        super().__init__(oracle, directory=str(place), project_name="oracle")
        self.recipe, self.place, self.folds = recipe, place, folds
        self.callbacks, self.data = callbacks, data
        self.trained = 0
        self._asked = False

    def run_trial(self, trial, *args, **kwargs) -> dict[str, float]:
        """The objective of a trial. Raises FailedTrialError, with the cause in error.txt."""
        folder = tune_report.folder(self.place, trial.trial_id)
        (folder / "error.txt").unlink(missing_ok=True)
        try:
            recipe = override(self.recipe, sent(trial.hyperparameters.values))
            score = float(np.mean([self._score(*one) for one in self._runs(recipe, folder)]))
            if not math.isfinite(score):
                raise RunError(f"{self.oracle.objective.name} is {score}.")
        except Exception as error:
            # Whatever it is: one that fails is a result too, and the search goes on.
            cause = str(error) or type(error).__name__
            write_atomic(folder / "error.txt", cause)
            raise FailedTrialError(cause) from error
        return {self.oracle.objective.name: score}

    def _runs(self, recipe: Recipe, folder: Path) -> Iterator[tuple[Recipe, Path]]:
        if self.folds is None:
            yield recipe, folder
            return
        for fold in range(self.folds):
            changes = {"data.validation_folds": self.folds, "data.validation_fold": fold}
            yield override(recipe, changes), folder / f"fold-{fold + 1}"

    def _score(self, recipe: Recipe, folder: Path) -> float:
        while True:
            try:
                run = train(recipe, folder, self.data, callbacks=self.callbacks)
                break
            except Busy:  # its worker was believed dead; what it leaves is then taken up
                time.sleep(2)
        value = objective_of(run, self.oracle.objective.name)
        keras.backend.clear_session()  # memory stays that of one run
        gc.collect()
        return value

    def _try_run_and_update_trial(self, trial, *args, **kwargs):
        """As the base class, without a traceback on the terminal for each failure."""
        try:
            self._run_and_update_trial(trial, *args, **kwargs)
            trial.status = TrialStatus.COMPLETED
        except FailedTrialError as error:
            trial.status, trial.message = TrialStatus.FAILED, str(error)

    # KerasTuner's hooks around trials

    def pre_create_trial(self):
        if self._asked:  # the answer was to wait
            time.sleep(1)
        self._asked = True

    def on_trial_begin(self, trial):
        self._pulse = workers.Pulse(self.oracle, trial.trial_id) if self._is_worker() else None

    def on_trial_end(self, trial):
        if self._pulse:
            self._pulse.stop()
        self.oracle.end_trial(trial)
        self.trained += 1
        self._asked = False

    # All state is in the oracle's trials.

    def save(self):
        """Nothing."""

    def reload(self):
        """Nothing."""


def sent(values: dict[str, Any]) -> dict[str, Any]:
    """Values as they were proposed: KerasTuner sends floats with 32 bits, which four digits of
    :mod:`.space` survive."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}


def objective_of(run: Run, name: str) -> float:
    """What was recorded on validation in the epoch whose weights the run keeps; of games and
    representations what was measured on it in the end."""
    measured = run.metrics.get("validation", {}).get(name.removeprefix("val_"))
    if run.recipe.data.task in ("generation", "representation") and measured:
        return measured["value"]
    best = run.metrics["best_epoch"]
    rows = [row for row in run.history if row["epoch"] == best]
    if not rows or name not in rows[0]:
        raise RunError(f"{run.path} records no {name}.")
    return rows[0][name]
