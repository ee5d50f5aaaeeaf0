"""K-fold cross-validation: every example is predicted by a model that has not seen it.

The examples of the source's training split are dealt into k folds (by class, by group, or in
time). Each fold is the test split of a run of its own, whose training, normalisation, tokenizers
and early stopping know nothing of it; a test split that the source defines is never read. With
repeats the examples are dealt anew.

Fold scores are not independent, since their training sets overlap, and no unbiased estimate of
their variance exists (Bengio and Grandvalet 2004). Two intervals are given and named for what they
are: ``mean_of_folds`` is Student's over the folds' scores; ``out_of_fold`` is the bootstrap over
all examples' predictions.

How good the estimate is can be seen: ``random_splits`` trains the recipe on so many random splits
into training and test too, and puts their mean test score beside the out-of-fold one.
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
from scipy import stats

from . import paired, studies
from .canvas import BLUE, GREY, STYLE, new_figure, save
from .data import load
from .recipe import Recipe, RecipeError, override
from .run import Run, appearing, write_atomic, write_json
from .supervised import measure_predictions, predict_split
from .train import train

log = logging.getLogger(__name__)
MEMORY = "resident_mib"  # a column beside the metrics


def crossval(
    recipe: Recipe | str,
    folds: int = 5,
    repeats: int = 1,
    *,
    random_splits: int = 0,
    directory: str | os.PathLike | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    data: Any = None,
) -> dict[str, Any]:
    """Trains a recipe once for each fold and puts the predictions for all examples together.

    Args:
        recipe: a recipe or its name, for classes or numbers.
        folds: 2 or more.
        repeats: how often the examples are dealt anew (split_seed, split_seed + 1, …).
        random_splits: random splits to compare with, of the recipe's own shares; 0 for none. Their
            split seeds follow those of the repeats. They do not go with a split by time, or with a
            test split that the source defines.
        directory: where the study goes; by default runs/crossval-NAME-K. Each fold is a run
            directory in it, ``repeat-R/fold-F``; an interrupted study goes on.
        callbacks: further Keras callbacks, given to every run.
        data: arrays, for recipes whose source is ``python``.

    Returns:
        {"recipe", "folds", "repeats", "examples", "scores": {metric: [repeats x folds]},
        "mean_of_folds": {metric: {"value", "low", "high"}}, "out_of_fold": the same,
        "resident_mib": [repeats x folds], memory of this process after each fold, "random_splits":
        None or {"scores": {metric: [random_splits]}, "compared": {metric: {"value",
        "standard_error", "distance"}}}: their mean, its standard error, and by how many of these
        the out-of-fold score lies above it, "directory"}; also written as crossval.json,
        crossval.csv, README.md, crossval.png, and out_of_fold.npz: for each repeat R ``rowR``,
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
    dataset = load(recipe.data, data)
    if (task := dataset.task) not in ("classification", "regression"):
        raise RecipeError(
            f"Cross-validation pools predictions of single examples; {recipe.name} is for {task}."
        )
    if random_splits:
        _check_random(recipe, random_splits, dataset, load(_random(recipe, 1).data, data))
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
                _forget(run)
                row = {"repeat": repeat + 1, "fold": fold + 1, **_test_scores(run)}
                rows.append(row | {MEMORY: round(resident_mib(), 1)})
            pooled.append(_pool(parts))
        others = []
        for number in range(random_splits):
            log.info("random split %d of %d", number + 1, random_splits)
            folder = place / f"random-{number + 1}"
            run = train(_random(recipe, repeats + number), folder, data, callbacks=callbacks)
            others.append(_test_scores(run))
            _forget(run)
        return _report(place, recipe, folds, repeats, rows, pooled, others)


def _random(recipe: Recipe, number: int) -> Recipe:
    return override(recipe, {"data.split_seed": recipe.data.split_seed + number})


def _check_random(recipe: Recipe, count: int, dataset, other) -> None:
    """Raises RecipeError where the recipe has no random splits, two or more, to compare with."""
    if count < 2:
        raise RecipeError(f"A comparison needs two random splits or more; got {count}.")
    if "test" not in dataset.sizes or np.array_equal(dataset.rows("test"), other.rows("test")):
        raise RecipeError(
            f"{recipe.name} has no random test splits to compare with: "
            + (
                "its test split is the same for every data.split_seed."
                if "test" in dataset.sizes
                else "it has no test split."
            )
            + " Leave --random-splits out."
        )


def _test_scores(run: Run) -> dict[str, float]:
    return {name: metric["value"] for name, metric in run.metrics["test"].items()}


def _forget(run: Run) -> None:
    """Memory stays that of one run."""
    run.__dict__.pop("model", None)
    keras.backend.clear_session()
    gc.collect()


def resident_mib() -> float:
    """Memory that this process occupies now, in MiB; NaN where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


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
    return found


def _pool(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The predictions of all folds in the order of the rows."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["row"], kind="stable")
    return {name: values[order] for name, values in joined.items()}


def _report(place, recipe, folds, repeats, rows, pooled, others) -> dict[str, Any]:
    metrics = [name for name in rows[0] if name not in ("repeat", "fold", MEMORY)]
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
        MEMORY: [row[MEMORY] for row in rows],
        "random_splits": _compare(out_of_fold, others) if others else None,
        "directory": str(place),
    }
    name = studies.usual(scores)
    write_json(place / "crossval.json", result)
    write_atomic(place / "crossval.csv", _csv(rows))
    write_atomic(place / "README.md", _card(result, rows, name))
    with appearing(place / "out_of_fold.npz") as temporary:
        np.savez(
            temporary, **{f"{k}{i + 1}": v for i, p in enumerate(pooled) for k, v in p.items()}
        )
    _draw(np.array(scores[name]).reshape(repeats, folds), name, mean[name], place / "crossval.png")
    return result


def _compare(out_of_fold: dict[str, Any], others: list[dict[str, float]]) -> dict[str, Any]:
    """Out-of-fold scores beside the mean of those of random splits, in its standard errors."""
    scores = {name: [one[name] for one in others] for name in others[0]}
    compared = {}
    for name, values in scores.items():
        mean, error = float(np.mean(values)), float(stats.sem(values))
        gap = out_of_fold[name]["value"] - mean
        distance = gap / error if error else (0.0 if not gap else float("nan"))
        compared[name] = {"value": mean, "standard_error": error, "distance": distance}
    return {"scores": scores, "compared": compared}


def sentence(result: dict[str, Any], name: str) -> str:
    """The comparison with random splits in words, for one metric."""
    one = result["random_splits"]["compared"][name]
    count = len(result["random_splits"]["scores"][name])
    return (
        f"{name} out of fold {result['out_of_fold'][name]['value']:.4f}, on {count} random splits "
        f"{one['value']:.4f} ± {one['standard_error']:.4f} (standard error): "
        f"{one['distance']:+.2f} standard errors apart"
    )


def _card(result: dict[str, Any], rows: list[dict[str, Any]], name: str) -> str:
    """The study as a page: both estimates, the comparison, and a line a fold."""
    lines = [
        f"# {result['recipe']}, {result['folds']} folds",
        "",
        "| metric | mean of folds (95% interval of Student's t) | out of fold (95%, bootstrap) |",
        "|---|---|---|",
    ]
    for metric, mean in result["mean_of_folds"].items():
        pooled = result["out_of_fold"].get(metric)
        cells = [
            f"{m['value']:.4g} [{m['low']:.4g}, {m['high']:.4g}]" if m else ""
            for m in (mean, pooled)
        ]
        lines.append(f"| {metric} | {cells[0]} | {cells[1]} |")
    if result["random_splits"]:
        lines += ["", sentence(result, name) + "."]
    columns = list(rows[0])
    lines += ["", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(f'{row[column]:.4g}' for column in columns)} |" for row in rows]
    return "\n".join([*lines, "", "![folds](crossval.png)", ""])


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
