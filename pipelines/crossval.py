"""K-fold cross-validation: every example is predicted by a model that has not seen it.

The examples of the source's training split are dealt into k folds (by class, by group, or in
time). Each fold is the test split of a run of its own, whose training, normalisation, tokenizers
and early stopping know nothing of it; a test split that the source defines is never read. With
repeats the examples are dealt anew.

Fold scores are not independent, since their training sets overlap, and no unbiased estimate of
their variance exists (Bengio and Grandvalet 2004). Two intervals are given and named for what they
are: ``mean_of_folds`` is Student's over the folds' scores; ``out_of_fold`` is the bootstrap over
all examples' predictions.
"""

from __future__ import annotations

import csv
import gc
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import matplotlib as mpl
import numpy as np

from . import paired, studies
from .canvas import BLUE, GREY, STYLE, new_figure, save
from .data import load
from .evaluate import measure_predictions, predict_split
from .recipe import Recipe, RecipeError, override
from .run import Run, appearing, write_atomic, write_json
from .train import train

log = logging.getLogger(__name__)


def crossval(
    recipe: Recipe | str,
    folds: int = 5,
    repeats: int = 1,
    *,
    directory: str | os.PathLike | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    data: Any = None,
) -> dict[str, Any]:
    """Trains a recipe once for each fold and puts the predictions for all examples together.

    Args:
        recipe: a recipe or its name, for classes or numbers.
        folds: 2 or more.
        repeats: how often the examples are dealt anew (split_seed, split_seed + 1, …).
        directory: where the study goes; by default runs/crossval-NAME-K. Each fold is a run
            directory in it, ``repeat-R/fold-F``; an interrupted study goes on.
        callbacks: further Keras callbacks, given to every run.
        data: arrays, for recipes whose source is ``python``.

    Returns:
        {"recipe", "folds", "repeats", "scores": {metric: [repeats x folds]}, "mean_of_folds":
        {metric: {"value", "low", "high"}}, "out_of_fold": the same}; also written as
        crossval.json, crossval.csv, crossval.png, and out_of_fold.npz: for each repeat R ``rowR``,
        ``foldR``, ``targetR`` and the predictions, in the order of the rows.

    Raises:
        RecipeError: a task without predictions of single examples, too few folds.
        SourceError: fewer examples of a class than folds.
        RunError: the directory holds another study.
    """
    from .recipes import get_recipe

    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if folds < 2 or repeats < 1:
        raise RecipeError(
            f"Cross-validation takes 2 folds or more, repeated once or more; got {folds} and "
            f"{repeats}."
        )
    # Before anything is trained for it.
    if (task := load(recipe.data, data).task) not in ("classification", "regression"):
        raise RecipeError(
            f"Cross-validation pools predictions of single examples; {recipe.name} is for {task}."
        )
    plan = {"recipe": recipe.model_dump(mode="json"), "folds": folds, "repeats": repeats}
    place = studies.directory_of("crossval", recipe.name, directory, plan)
    with studies.held(place, plan):
        rows, pooled = [], []
        for repeat in range(repeats):
            parts = []
            for fold in range(folds):
                changes = {
                    "data.folds": folds,
                    "data.fold": fold,
                    "data.split_seed": recipe.data.split_seed + repeat,
                }
                log.info("repeat %d, fold %d of %d", repeat + 1, fold + 1, folds)
                folder = place / f"repeat-{repeat + 1}" / f"fold-{fold + 1}"
                run = train(override(recipe, changes), folder, data, callbacks=callbacks)
                parts.append(_predictions(run, data))
                values = {name: m["value"] for name, m in run.metrics["test"].items()}
                rows.append({"repeat": repeat + 1, "fold": fold + 1, **values})
            pooled.append(_pool(parts))
        return _report(place, recipe, folds, repeats, rows, pooled)


def _predictions(run: Run, data: Any) -> dict[str, np.ndarray]:
    """A fold's predictions, from its file or computed now; with row, fold and target."""
    file = run.path / "predictions.npz"
    if not file.is_file():
        dataset = load(run.recipe.data, data)
        found = predict_split(run.model, run.loss, dataset, "test")
        found |= {"row": dataset.rows("test"), "target": dataset.targets("test")}
        with appearing(file) as temporary:
            np.savez(temporary, **found)
    with np.load(file, allow_pickle=False) as saved:
        found = dict(saved)
    found["fold"] = np.full(len(found["row"]), run.recipe.data.fold)
    run.__dict__.pop("model", None)  # memory stays that of one run
    keras.backend.clear_session()
    gc.collect()
    return found


def _pool(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The predictions of all folds in the order of the rows."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["row"], kind="stable")
    return {name: values[order] for name, values in joined.items()}


def _report(place, recipe, folds, repeats, rows, pooled) -> dict[str, Any]:
    metrics = [name for name in rows[0] if name not in ("repeat", "fold")]
    scores = {name: [row[name] for row in rows] for name in metrics}
    mean = {}
    for name, values in scores.items():
        found = paired.mean_interval(np.array(values, float))
        mean[name] = {"value": found.mean, "low": found.low, "high": found.high}
    from .choices import build_loss

    loss = build_loss(recipe.loss)
    # A row that was predicted in every repeat is one example all the same: the repeats' values
    # and bounds are averaged, not their examples added up.
    each = [measure_predictions(loss, part["target"], part) for part in pooled]
    out_of_fold = {
        name: {key: float(np.mean([found[name][key] for found in each])) for key in each[0][name]}
        for name in each[0]
    }
    result = {
        "recipe": recipe.name,
        "folds": folds,
        "repeats": repeats,
        "examples": len(pooled[0]["row"]),
        "scores": scores,
        "mean_of_folds": mean,
        "out_of_fold": out_of_fold,
        "directory": str(place),
    }
    write_json(place / "crossval.json", result)
    write_atomic(place / "crossval.csv", _csv(rows))
    with appearing(place / "out_of_fold.npz") as temporary:
        np.savez(
            temporary, **{f"{k}{i + 1}": v for i, p in enumerate(pooled) for k, v in p.items()}
        )
    name = studies.usual(scores)
    _draw(np.array(scores[name]).reshape(repeats, folds), name, mean[name], place / "crossval.png")
    return result


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _draw(scores: np.ndarray, name: str, mean: dict[str, float], path: Path) -> None:
    """Each fold's score [repeats, folds], and their mean with its interval."""
    unit, scale = studies.unit_of(name)
    figure = new_figure(5.6, 3.2)
    with mpl.rc_context(STYLE):
        axes = figure.add_subplot()
        places = np.broadcast_to(np.arange(1, scores.shape[1] + 1), scores.shape)
        axes.plot(places.ravel(), scale * scores.ravel(), "o", color=BLUE, markersize=5)
        axes.axhline(scale * mean["value"], color=BLUE, linewidth=1.2)
        if np.isfinite(mean["low"]):
            axes.axhspan(scale * mean["low"], scale * mean["high"], color=GREY, alpha=0.2)
        axes.set_xticks(range(1, scores.shape[1] + 1))
        percent = " in percent" if unit == "points" else ""
        axes.set(xlabel="fold", ylabel=name.replace("_", " ") + percent)
        save(figure, path)
