"""What a change contributes: variants of a recipe on the same seeds, compared pair by pair.

Every variant is trained with the same seeds: the same splits and order of the data, the same
initial weights as far as the models have the same. The difference of a metric is taken seed by
seed, and its 95% interval is that of the mean of these differences: what all variants share of a
seed's luck drops out. The metric is that of the test split, which is used for nothing but this
report; where there is none, of the validation split.

Each run is an ordinary run directory, ``VARIANT/seed-N``. A study that was interrupted goes on
where it stopped.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from . import studies
from .ablate_report import report
from .choices import check_recipe
from .data import load
from .recipe import Choice, Recipe, RecipeError, override
from .recipe_base import literal, split_values
from .run import RunError
from .train import Diverged, train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """A recipe with some keys changed: to what, and what each change is called."""

    name: str
    changes: dict[str, str]
    words: dict[str, str]
    recipe: Recipe


def ablate(
    recipe: Recipe | str,
    vary: Sequence[str],
    seeds: int = 5,
    *,
    directory: str | os.PathLike | None = None,
    metric: str | None = None,
    grid: bool = False,
    tune_each: str | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    data: Any = None,
) -> dict[str, Any]:
    """Trains variants on the same seeds and says what each changes.

    Args:
        recipe: a recipe or its name.
        vary: each "KEY=a,b,c", e.g. "algorithm.optimizer=sgd(learning_rate=0.1),adam,radam". The
            first value is the base that the others are compared with. An optimizer without
            learning_rate takes its documented default.
        seeds: runs of each variant: the recipe's seed and those that follow it.
        directory: where the study goes; by default runs/ablate-NAME-K.
        metric: of the report; by default the task's usual one (:data:`studies.USUAL`). Generators
            of images, and representations without labels, have none.
        grid: with several ``vary``, all combinations; otherwise one change at a time.
        tune_each: "KEY=a,b,c": for every variant the value that is best on the *validation* split
            of the first seed, e.g. "algorithm.optimizer.learning_rate=0.1,0.01,0.001".
        callbacks: further Keras callbacks, given to every run.
        data: arrays, for recipes whose source is ``python``.

    Returns:
        {"recipe", "metric", "split", "seeds", "variants": [{"name", "changes", "scores" [seeds],
        "mean", "difference", "low", "high", "time_ratio", "parameters", "verdict", "error"}],
        "curve"}; also written as ablation.json, ablation.csv, ablation.png, curves.png and
        README.md. Where a varied key has numbers, "curve" is what :func:`.response.curve` makes of
        it, drawn in response.png; else None.

    Raises:
        RecipeError: a key or value that the recipe does not have, fewer than two variants; no
            metric where none is usual, or one that a run does not have.
        RunError: the directory holds another study.
    """
    from .recipes import get_recipe

    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if seeds < 1:
        raise RecipeError(f"An ablation needs at least one seed; got {seeds}.")
    found = variants(recipe, vary, grid, tune_each)
    if metric is None:
        _check_usual(found[0].recipe, data)
    plan = {
        "recipe": recipe.model_dump(mode="json"),
        "vary": list(vary),
        "grid": grid,
        "tune_each": tune_each,
    }
    place = studies.directory_of("ablate", recipe.name, directory, plan)
    with studies.held(place, plan):
        rows = []
        for variant in found:
            folder = place / studies.file_name(variant.name)
            rows.append(_train_variant(variant, folder, seeds, tune_each, metric, callbacks, data))
        return report(place, recipe, rows, labels(found), seeds, metric)


def _check_usual(recipe: Recipe, data: Any) -> None:
    """Raises RecipeError where a study that names no metric would compare by one that says nothing:
    what D answers, or how close two views lie, which is closest where all are the same."""
    if recipe.data.task not in ("generation", "representation"):
        return
    own = studies.own_metrics(load(recipe.data, data))
    if own is not None and not set(own) & set(studies.USUAL):
        reason = studies.no_usual(recipe.name, own, "--metric")
        raise RecipeError(reason + ("" if own else " Or name a quantity by --metric all the same."))


def variants(
    recipe: Recipe, vary: Sequence[str], grid: bool = False, tune_each: str | None = None
) -> list[Variant]:
    """The recipes of a study, the base first; see :func:`ablate`. Raises RecipeError."""
    axes = [_axis(text) for text in vary]
    tuned = _axis(tune_each)[0].replace("-", "_") if tune_each else ""
    if tuned in {key.replace("-", "_") for key, _ in axes}:
        raise RecipeError(f"--vary and --tune-each both set {tuned}; one of them can.")
    if not axes or sum(len(values) for _, values in axes) < 2:
        raise RecipeError(
            "There is nothing to compare: give --vary KEY=a,b with two values or more."
        )
    if grid:
        chosen = list(itertools.product(*(range(len(values)) for _, values in axes)))
    else:
        base = (0,) * len(axes)
        chosen = [base]
        for place, (_, values) in enumerate(axes):
            chosen += [(*base[:place], i, *base[place + 1 :]) for i in range(1, len(values))]
    made, names = [], set()
    for places in chosen:
        changes = {key: values[i] for (key, values), i in zip(axes, places, strict=True)}
        changed = override(recipe, changes)
        check_recipe(changed)
        words = {key: _label(changed, key, value, tuned) for key, value in changes.items()}
        name = ", ".join(words.values())
        if name in names:
            raise RecipeError(f"The variant {name} occurs twice; every value is given once.")
        names.add(name)
        made.append(Variant(name, changes, words, changed))
    return made


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, rest = text.partition("=")
    values = [value.strip() for value in split_values(rest)]
    if not equals or not key.strip() or not all(values):
        raise RecipeError(f"Cannot read --vary {text!r}: write KEY=a,b,c, e.g. loss=mse,mae,huber.")
    if len({repr(literal(value)) for value in values}) < len(values):  # 0.1 is 1e-1
        raise RecipeError(f"A value occurs twice in --vary {text!r}; every value is given once.")
    return key.strip(), values


def _label(recipe: Recipe, key: str, value: str, tuned: str) -> str:
    """What a variant is called; an optimizer with its options and always with its rate, so that a
    report names it, but where the rate is still to be chosen."""
    key = key.replace("-", "_")
    short = key.rsplit(".", 1)[-1].replace("_", " ")
    if key in ("algorithm.optimizer", "algorithm.optimizer.name"):
        from ..models import optimizers

        name, options = recipe.algorithm.optimizer.name, recipe.algorithm.optimizer.options
        options = {"learning_rate": optimizers.default_learning_rate(name), **options}
        if tuned == "algorithm.optimizer.learning_rate":
            del options["learning_rate"]
        return str(Choice(name=name, **options))
    return value if re.match(r"[A-Za-z]", value) and value not in ("none", "true", "false") else (
        f"{short} {value}"
    )  # fmt: skip


def labels(found: Sequence[Variant]) -> dict[str, str]:
    """What figures call each variant, by its name: the base by all keys that vary, another one by
    what it changes of the base. Where two would be called the same, all are named as the base is.
    """
    base = found[0]
    varied = [k for k, value in base.changes.items() if any(v.changes[k] != value for v in found)]
    whole = {v.name: ", ".join(v.words[key] for key in varied) for v in found}
    short = {base.name: whole[base.name]} | {
        v.name: ", ".join(v.words[key] for key in varied if v.changes[key] != base.changes[key])
        for v in found[1:]
    }
    return short if len(set(short.values())) == len(short) else whole


def _train_variant(
    variant, folder: Path, seeds: int, tune_each, metric, callbacks, data
) -> dict[str, Any]:
    """A row of the report without the comparison: runs of all seeds, or why there are none."""
    row: dict[str, Any] = {"name": variant.name, "changes": variant.changes}
    row |= {"words": variant.words, "runs": [], "histories": []}
    recipe = variant.recipe
    try:
        if tune_each is not None:
            row["tuned"] = _tune(recipe, folder, tune_each, metric, callbacks, data)
            recipe = override(recipe, row["tuned"])
        for number in range(seeds):
            seeded = override(recipe, {"seed": recipe.seed + number})
            log.info("%s, seed %d", variant.name, seeded.seed)
            run = _one(seeded, folder / f"seed-{seeded.seed}", callbacks, data)
            studies.compared_split(run.metrics, metric)
            row["runs"].append(run.metrics)
            row["histories"].append(run.history)
    except studies.UnknownMetric:  # nothing can be compared: say so now, not after the last run
        raise
    except (ValueError, TypeError, RuntimeError, Diverged) as error:
        # One that fails is a result too; the other variants go on.
        row["error"] = str(error)
        log.warning("%s failed: %s", variant.name, error)
    return row


def _one(recipe: Recipe, folder: Path, callbacks, data):
    run = train(recipe, folder, data, callbacks=callbacks)
    keras.backend.clear_session()  # memory stays that of one run
    gc.collect()
    return run


def _tune(recipe: Recipe, folder: Path, tune_each: str, metric, callbacks, data) -> dict[str, Any]:
    """The value of a key that is best on the validation split, by the first seed alone: by the
    usual metric or, where there is none, that of the report."""
    key, values = _axis(tune_each)
    scores = {}
    for value in values:
        changed = override(recipe, {key: literal(value)})
        place = folder / studies.file_name(f"{key}={value}")
        metrics = _one(changed, place, callbacks, data).metrics
        if "validation" not in metrics:
            raise RunError("--tune-each chooses on a validation split, and the data have none.")
        name = studies.usual(metrics["validation"], metric)
        sign = 1 if studies.higher_is_better(name) else -1
        scores[value] = sign * metrics["validation"][name]["value"]
    return {key: max(scores, key=scores.get)}
