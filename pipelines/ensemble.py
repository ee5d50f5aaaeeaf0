"""Several models asked together: their mean, what it gains over one, and one SavedModel of all.

Members that err in different places correct each other; what all get wrong stays wrong. Members
are trained here, of one recipe or of several for the same task, or are finished runs; all on the
same data and test split.

=============== ==================================================================================
``by``          the members of a recipe
=============== ==================================================================================
seed            its seed and those that follow it
fold            the recipe with one of so many parts of the training data, another for each, as the
                validation split: together they learn from all of it (Krogh and Vedelsby 1995)
snapshot        one training whose rate falls and jumps up again; the net at the end of each fall
                (Huang et al. 2017), without early stopping or averaged weights: at the price of one
=============== ==================================================================================

=============== ==================================================================================
``combine``     the answer
=============== ==================================================================================
probabilities   mean of the members' probabilities (numbers: of their predictions)
logits          mean of log-probabilities, normalised: a product of experts
validation      weighted mean of probabilities; the weights, not negative and of sum 1, are those
                with the smallest log loss (numbers: squared error) on the validation split
=============== ==================================================================================
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import members as making
from . import plots, studies
from .data import load
from .export import publish
from .intervals import intervals
from .recipe import Recipe, RecipeError
from .run import MODEL, Run, RunError, check_same_data, write_json
from .served import Served, examples
from .supervised import BINS, classification, predict_split, regression
from .together import Together, mean_answer, stack
from .verify import TOLERANCE, require_answers

log = logging.getLogger(__name__)

COMBINE = ("probabilities", "logits", "validation")


def ensemble(
    recipe: Recipe | str | Sequence[Recipe | str] | None = None,
    members: int = 5,
    *,
    by: str = "seed",
    runs: Sequence[str | os.PathLike] = (),
    combine: str = "probabilities",
    directory: str | os.PathLike | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    data: Any = None,
) -> dict[str, Any]:
    """Trains members, or takes finished runs, measures them together and exports them as one.

    Args:
        recipe: a recipe or its name, or several.
        members: how many of each recipe.
        by: what members of one recipe differ in; see the module's text.
        runs: instead of a recipe: finished runs on the same data and split.
        combine: see the module's text.
        directory: where it goes; by default runs/ensemble-NAME-K.
        callbacks: further Keras callbacks, given to every run.
        data: arrays, for recipes whose source is ``python``.

    Returns:
        {"members": [paths], "combine", "weights", "split", "metrics": {metric: {"value", "low",
        "high"}} of the whole on the test split, "of_members": [{metric: value}], "gain": {metric:
        {"value", "low", "high"}}: the whole minus the mean member, example by example,
        "disagreement": share of pairs of members and examples with unequal labels, "export": path,
        "export_error": how far the export's numbers lie from the mean of the members' at most};
        also written as ensemble.json with calibration.png.

    Raises:
        RecipeError: fewer than two members, an unknown way to make or combine them, a task it is
            not for.
        RunError: runs, or recipes, on other data or another test split.
    """
    from .recipes import get_recipe

    if combine not in COMBINE:
        raise RecipeError(f"There is no combine {combine!r}; choose {', '.join(COMBINE)}.")
    given = list(recipe or ()) if isinstance(recipe, list | tuple | None) else [recipe]
    if bool(given) == bool(runs):
        raise RecipeError("Give either a recipe to train or finished runs, and not both.")
    for one in given:
        if not isinstance(one, Recipe | str):
            raise RecipeError(
                "An ensemble is trained from recipes or their names; finished runs go in runs=. "
                f"Got {one!r}."
            )
    if (len(runs) or len(given) * members) < 2:
        raise RecipeError("An ensemble has two members or more.")
    if runs:
        name, plan = Run(runs[0]).recipe.name, {"runs": [str(Path(run).resolve()) for run in runs]}
    else:
        recipes = [get_recipe(one) if isinstance(one, str) else one for one in given]
        training = making.plan(recipes, members, by)
        # Before anything is trained for it; members by seed have the same data.
        distinct = {one.recipe.data.model_dump_json(): one.recipe for one in training}.values()
        datasets = [load(one.data, data) for one in distinct]
        _require_same(datasets, [one.name for one in distinct], combine)
        del datasets
        name = "-".join(one.name for one in recipes)
        plan = {"recipes": [one.model_dump(mode="json") for one in recipes], "members": members,
                "by": by}  # fmt: skip
    place = studies.directory_of("ensemble", name, directory, plan)
    with studies.held(place, plan):
        if runs:
            found = [Run(run) for run in runs]
        else:
            found = making.train_all(training, place, callbacks, data)
        return _together(place, found, combine, data)


def _require_same(datasets: list, names: Sequence[str], combine: str) -> None:
    """Raises where members cannot be asked together: another task, other data, other splits.

    The test splits have to be the same, so that no member has seen what another is asked; the
    validation splits too where weights are found on them.
    """
    first = datasets[0]
    if first.task not in ("classification", "regression"):
        raise RecipeError(f"Ensembles answer for classes and numbers, not {first.task}.")
    needed = ["test" if "test" in first.sizes else "validation"]
    if combine == "validation":
        if "validation" not in first.sizes:
            raise RunError("combine=validation weighs on a validation split; the data have none.")
        needed.append("validation")
    for name, dataset in zip(names, datasets, strict=True):
        same = dataset.about.get("fingerprint") == first.about.get("fingerprint")
        same = same and dataset.task == first.task and dataset.sizes.keys() == first.sizes.keys()
        for split in needed if same else ():
            if not np.array_equal(dataset.rows(split), first.rows(split)):
                same = False
                if split == "validation" and "test" in first.sizes:
                    raise RunError(
                        "The members were validated on different examples, as those by fold are: "
                        "there are none on which weights could be found. Choose "
                        "combine=probabilities or logits."
                    )
        if not same:
            raise RunError(
                f"{name} is trained on other data, or split otherwise, than {names[0]}: what one "
                "member has learnt may be another's test. Train them on one split."
            )


def _together(place: Path, runs: list[Run], combine: str, data: Any) -> dict[str, Any]:
    datasets = [load(run.recipe.data, data) for run in runs]
    for run, dataset in zip(runs, datasets, strict=True):
        check_same_data(run, dataset)
    _require_same(datasets, [str(run.path) for run in runs], combine)
    split = "test" if "test" in datasets[0].sizes else "validation"
    weights = np.full(len(runs), 1 / len(runs))
    if combine == "validation":
        answers = _answers(runs, datasets, "validation")
        weights = stack(answers, datasets[0].targets("validation"))
    answers = _answers(runs, datasets, split)
    target = datasets[0].targets(split)
    whole = mean_answer(answers, weights, combine)
    statistics = [_statistic(target, answer) for answer in (whole, *answers)]
    n = len(target)

    def gain(index: np.ndarray) -> dict[str, np.ndarray]:
        values = [statistic(index) for statistic in statistics]
        return {
            name: values[0][name] - np.mean([value[name] for value in values[1:]], axis=0)
            for name in values[0]
        }

    alone = np.arange(n)[None]
    result: dict[str, Any] = {
        "members": [
            str(run.path / run.file) if run.file != MODEL else str(run.path) for run in runs
        ],
        "combine": combine,
        "weights": weights,
        "split": split,
        "metrics": intervals(statistics[0], n),
        "of_members": [
            {name: float(value[0]) for name, value in statistic(alone).items()}
            for statistic in statistics[1:]
        ],
        "gain": intervals(gain, n, differences=True),
    }
    if datasets[0].task == "classification":
        labels = [answer["probabilities"].argmax(axis=1) for answer in answers]
        result["disagreement"] = float(
            np.mean([np.mean(a != b) for a, b in combinations(labels, 2)])
        )
        chosen = whole["probabilities"].argmax(axis=1)
        plots.calibration_curve(
            whole["probabilities"][np.arange(n), chosen],
            chosen == target.reshape(-1),
            place / "calibration.png",
            bins=BINS,
        )
    members = [Served.of(run) for run in runs]
    served = Together(members, datasets[0].classes, weights, combine)
    rows, _ = examples(runs[0], data)
    expected = mean_answer(
        [{k: v.numpy() for k, v in member.raw(_tensors(rows)).items()} for member in members],
        weights,
        combine,
    )
    precision = max((run.recipe.algorithm.precision for run in runs), key=TOLERANCE.get)
    request = {f"serving_default/{name}": values for name, values in rows.items()}
    errors = []
    path = publish(
        served,
        runs[0],
        rows,
        place / "export",
        lambda directory: errors.append(require_answers(directory, request, expected, precision)),
    )
    result |= {"export": str(path), "export_error": errors[0]}
    write_json(place / "ensemble.json", result)
    return result


def _answers(runs: list[Run], datasets: list, split: str) -> list[dict[str, np.ndarray]]:
    return [
        predict_split(run.model, run.loss, dataset, split)
        for run, dataset in zip(runs, datasets, strict=True)
    ]


def _statistic(target: np.ndarray, answer: dict[str, np.ndarray]):
    if "probabilities" in answer:
        return classification(target, answer["probabilities"])
    return regression(target, {"prediction": answer["prediction"]})


def _tensors(rows: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(values) for name, values in rows.items()}
