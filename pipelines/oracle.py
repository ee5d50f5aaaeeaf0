"""What to try next: KerasTuner's oracle with proposals of our own.

A proposal is a function of the seed, the trial's number, and the trials before it: there is no
random state that a killed search could lose. All that a search knows is in its trials' files.
Unlike KerasTuner's oracles, these honour a seed of 0, never propose a point twice, treat choices
as unordered, and take a failed trial or a score that is no finite number for what it is: reported
with its cause, and no better than the worst seen, so that its neighbourhood is avoided.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine import trial as kt
from scipy.stats import qmc
from threadpoolctl import threadpool_limits

from .hyperband import KEY, Rung, rung_of
from .recipe import RecipeError
from .run import write_atomic
from .space import ENUMERABLE, Space
from .surrogate import Surrogate

TUNERS = ("bayesian", "hyperband", "random", "grid")
GRID = 5  # values that a range is cut into
_CANDIDATES = 500
_ATTEMPTS = 1_000  # draws of nothing new after which a space counts as exhausted
_HOPELESS = 10  # failures after which a search without any success ends


class Oracle(keras_tuner.Oracle):
    """Proposes points of a space.

    Args:
        space: what may be proposed.
        tuner: one of TUNERS. "grid" goes through the grid in a random order, so that any part of it
            covers the space; ranges with more values are cut into GRID. "hyperband" draws at random
            and adds the key algorithm.epochs; see :mod:`.hyperband`.
        objective: name and direction.
        trials: at most so many; None for no limit.
        seed: decides everything that is random.
        start: a point that is tried first.
        until: no new trial begins after this time (of ``time.time``).
        rungs: of Hyperband.
    """

    def __init__(
        self,
        space: Space,
        tuner: str,
        objective: keras_tuner.Objective,
        trials: int | None,
        seed: int,
        start: dict[str, Any] | None = None,
        until: float = math.inf,
        rungs: Sequence[Rung] = (),
    ):
        # The base class ends a search after so many failures in a row, or at max_trials even
        # though a trial of a dead worker is still to be repeated: neither happens with None.
        super().__init__(
            objective=objective, max_trials=None, max_consecutive_failed_trials=None, seed=1
        )
        self.verbose = 0
        self.space, self.tuner, self.wanted = space, tuner, trials
        self.seed, self.start, self.until, self.rungs = seed, start, until, list(rungs)
        self.stopped = ""  # why no more trials are proposed
        self.on_end: Callable[[kt.Trial], None] = lambda trial: None
        self._points = self._all_points()

    def _all_points(self) -> list[dict[str, Any]] | None:
        """The points of a grid or a small discrete space in random order; None for other spaces."""
        resolution = GRID if self.tuner == "grid" else None
        if self.tuner != "grid" and self.space.size() is None:
            return None
        points = list(itertools.islice(self.space.points(resolution), ENUMERABLE + 1))
        if len(points) > ENUMERABLE:
            raise RecipeError(
                f"The grid has more than {ENUMERABLE:,} points. Take --tuner bayesian or random, "
                "or fewer keys."
            )
        return [points[i] for i in self._draw(0, "order").permutation(len(points))]

    def _draw(self, number: int, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, number, *purpose.encode()])

    # ------------------------------------------------------------------------------- proposals

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """KerasTuner's hook: the values of a new trial, or that there are no more."""
        if values := self._next(int(trial_id)):
            return {"status": kt.TrialStatus.RUNNING, "values": values}
        # While others still train, one of them may fall silent and its trial be free again.
        waits = bool(self.ongoing_trials)
        return {"status": kt.TrialStatus.IDLE if waits else kt.TrialStatus.STOPPED}

    def _next(self, number: int) -> dict[str, Any] | None:
        ended = [t for t in self.trials.values() if t.status != kt.TrialStatus.RUNNING]
        if self.wanted is not None and number >= self.wanted:
            self.stopped = f"all {number} trials done"
        elif time.time() >= self.until:
            self.stopped = "the time is over"
        elif len(ended) >= _HOPELESS and all(t.status == kt.TrialStatus.FAILED for t in ended):
            self.stopped = f"the first {len(ended)} trials failed"
        else:
            values = self._propose(number)
            what = "grid" if self.tuner == "grid" else "space"
            self.stopped = "" if values else f"all {number} points of the {what} have been tried"
            return values
        return None

    def _propose(self, number: int) -> dict[str, Any] | None:
        """The values of trial ``number``, which were never proposed before; None for no more, or
        for none before others have ended."""
        if self.tuner != "hyperband":
            known = {_name(trial.hyperparameters.values) for trial in self.trials.values()}
            return self._fresh(number, known)
        rung = rung_of(self.rungs, number)
        below = [self.trials[f"{one:04d}"] for one in rung.below]
        if any(trial.status == kt.TrialStatus.RUNNING for trial in below):
            return None
        rank = number - rung.trials.start
        chosen = self._sorted(below)[rank : rank + 1]
        settings = [_without_epochs(trial.hyperparameters.values) for trial in chosen]
        # Where too few of the rung below succeeded, a new setting gets their chance.
        known = {_name(_without_epochs(t.hyperparameters.values)) for t in self.trials.values()}
        values = settings[0] if settings else self._fresh(number, known)
        return values and {**values, KEY: rung.epochs}

    def _sorted(self, trials: list[kt.Trial]) -> list[kt.Trial]:
        """Those that succeeded, the best first."""
        done = [trial for trial in trials if trial.status == kt.TrialStatus.COMPLETED]
        done.sort(key=lambda trial: trial.trial_id)
        return sorted(done, key=lambda t: t.score, reverse=self.objective.direction == "max")

    def _fresh(self, number: int, known: set[str]) -> dict[str, Any] | None:
        """A point that is not among the known ones; None where there is no other."""
        if number == 0 and self.start is not None:
            return self.start
        free = None
        if self._points is not None:
            free = [point for point in self._points if _name(point) not in known]
            if not free or self.tuner == "grid":
                return free[0] if free else None
        if self.tuner == "bayesian":
            # On matrices this small, threads only wait for each other.
            with threadpool_limits(1):
                if surrogate := self.surrogate():
                    return self._best(number, free, known, surrogate)
        return free[0] if free else self._spread(number, known)

    @property
    def initial(self) -> int:
        """Finished trials before the Gaussian process chooses."""
        return min(2 * self.space.dimensionality + 2, 10)

    def _spread(self, number: int, known: set[str]) -> dict[str, Any] | None:
        """Point ``number`` of a scrambled Sobol sequence, which fills the space evenly; a random
        one where that is known; None where all are, as in a range of a few rounded numbers."""
        if self.tuner == "bayesian":
            sobol = qmc.Sobol(self.space.dimensionality, rng=self._draw(0, "sobol"))
            if number:
                sobol.fast_forward(number)
            if _name(values := self.space.decode(sobol.random(1)[0])) not in known:
                return values
        draw = self._draw(number, "random")
        for _ in range(_ATTEMPTS):
            values = self.space.decode(draw.random(self.space.dimensionality))
            if _name(values) not in known:
                return values
        return None

    def _observed(self) -> tuple[np.ndarray, np.ndarray]:
        """Encoded points and losses, lower better, of what has ended and, at a guess, of what has
        not.

        A failure counts as the worst loss seen. What still trains on other workers counts as the
        mean one, which keeps new points away from it.
        """
        sign = -1.0 if self.objective.direction == "max" else 1.0
        rows, losses = [], []
        for name in sorted(self.trials):
            trial = self.trials[name]
            rows.append(self.space.encode(trial.hyperparameters.values))
            if trial.status == kt.TrialStatus.COMPLETED:
                losses.append(sign * trial.score)
            else:
                losses.append(np.nan if trial.status == kt.TrialStatus.RUNNING else np.inf)
        x, y = np.array(rows), np.array(losses)
        scored = y[np.isfinite(y)]
        if not len(scored):
            return x[:0], scored
        y = np.where(np.isposinf(y), scored.max(), y)
        return x, np.where(np.isnan(y), scored.mean(), y)

    def surrogate(self) -> Surrogate | None:
        """The Gaussian process that the next trial is chosen by; None for the first ones."""
        x, y = self._observed()
        return Surrogate(x, y) if len(y) >= self.initial else None

    def _best(self, number, free, known, surrogate) -> dict[str, Any] | None:
        """The point of the largest expected improvement; None where all are known."""
        draw = self._draw(number, "candidates")

        def rank(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
            points = [p for name, p in {_name(p): p for p in points}.items() if name not in known]
            if not points:
                return []
            gains = surrogate.expected_improvement(np.array([self.space.encode(p) for p in points]))
            return [points[i] for i in np.argsort(-gains, kind="stable")]

        if free is not None:
            return rank(free)[0]
        width = self.space.dimensionality
        seen = [t.hyperparameters.values for t in self._sorted(list(self.trials.values()))[:3]]
        ranked = rank([self.space.decode(row) for row in draw.random((_CANDIDATES, width))])
        for reach in (0.2, 0.05, 0.01):
            around = np.array([self.space.shares(p) for p in [*seen, *ranked[:5]]])
            around = np.repeat(around, 20, axis=0)
            moved = around + draw.normal(0, reach, around.shape)
            # Some coordinates stay, so that a good choice is not lost with every step.
            moved = np.where(draw.random(around.shape) < 0.5, moved, around)
            near = [self.space.decode(row) for row in np.clip(moved, 0, 1)]
            ranked = rank([*ranked[:5], *near])
        return ranked[0] if ranked else None

    # --------------------------------------------------------------------------- ends of trials

    def score_trial(self, trial: kt.Trial) -> None:
        """KerasTuner's hook. A score that is no finite number makes the trial a failed one."""
        values = [
            observation.mean() for observation in trial.metrics.get_history(self.objective.name)
        ]
        trial.score = float(values[-1])
        if not math.isfinite(trial.score):
            trial.message = f"{self.objective.name} is {trial.score}."
            trial.score = math.nan  # which the base class takes for a failure

    def end_trial(self, trial: kt.Trial) -> None:
        """KerasTuner's hook: a trial has ended, well or not."""
        super().end_trial(trial)
        ours = self.trials[trial.trial_id]
        if ours.status == kt.TrialStatus.FAILED:
            ours.score = None
            self._save_trial(ours)
        self.on_end(ours)

    # ------------------------------------------------------------------------------ persistence

    def _save_trial(self, trial: kt.Trial) -> None:
        file = Path(self._get_trial_dir(trial.trial_id), "trial.json")
        write_atomic(file, json.dumps(trial.get_state(), indent=2) + "\n")

    def save(self) -> None:
        """Nothing: the trials' files hold everything, and cannot contradict one another."""

    def reload(self) -> None:
        """Takes up the trials of a search that was begun; what had not ended comes first."""
        for file in sorted(Path(self._project_dir).glob("trial_*/trial.json")):
            trial = kt.Trial.load(str(file))
            self.trials[trial.trial_id] = trial
        self.start_order = sorted(self.trials)
        open_ = [name for name, t in self.trials.items() if t.status == kt.TrialStatus.RUNNING]
        self._retry_queue = sorted(open_, reverse=True)  # the base class takes the last


def _without_epochs(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != KEY}


def _name(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
