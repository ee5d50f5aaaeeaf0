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

import csv
import gc
import io
import itertools
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from . import paired, studies
from .choices import check_recipe
from .recipe import Recipe, RecipeError, override
from .recipe_base import literal, split_values
from .run import RunError, write_atomic, write_json
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
        metric: of the report; by default the task's usual one (:data:`studies.USUAL`).
        grid: with several ``vary``, all combinations; otherwise one change at a time.
        tune_each: "KEY=a,b,c": for every variant the value that is best on the *validation* split
            of the first seed, e.g. "algorithm.optimizer.learning_rate=0.1,0.01,0.001".
        callbacks: further Keras callbacks, given to every run.
        data: arrays, for recipes whose source is ``python``.

    Returns:
        {"recipe", "metric", "split", "seeds", "variants": [{"name", "changes", "scores" [seeds],
        "mean", "difference", "low", "high", "time_ratio", "parameters", "verdict", "error"}]}; also
        written as ablation.json, ablation.csv, ablation.png, curves.png and README.md.

    Raises:
        RecipeError: a key or value that the recipe does not have, fewer than two variants.
        RunError: the directory holds another study.
    """
    from .recipes import get_recipe

    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if seeds < 1:
        raise RecipeError(f"An ablation needs at least one seed; got {seeds}.")
    found = variants(recipe, vary, grid, tune_each)
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
            rows.append(_train_variant(variant, folder, seeds, tune_each, callbacks, data))
        return _report(place, recipe, rows, labels(found), seeds, metric)


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
    return key.strip(), values


def _label(recipe: Recipe, key: str, value: str, tuned: str) -> str:
    """What a variant is called; an optimizer always with its rate, so that a report names it,
    but where the rate is still to be chosen."""
    key = key.replace("-", "_")
    short = key.rsplit(".", 1)[-1].replace("_", " ")
    if key in ("algorithm.optimizer", "algorithm.optimizer.name"):
        from ..models import optimizers

        name, options = recipe.algorithm.optimizer.name, recipe.algorithm.optimizer.options
        if tuned == "algorithm.optimizer.learning_rate":
            return name
        rate = options.get("learning_rate", optimizers.default_learning_rate(name))
        return f"{name}(learning_rate={rate:g})"
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


def _train_variant(variant, folder: Path, seeds: int, tune_each, callbacks, data) -> dict[str, Any]:
    """A row of the report without the comparison: runs of all seeds, or why there are none."""
    row: dict[str, Any] = {"name": variant.name, "changes": variant.changes}
    row |= {"runs": [], "histories": []}
    recipe = variant.recipe
    try:
        if tune_each is not None:
            row["tuned"] = _tune(recipe, folder, tune_each, callbacks, data)
            recipe = override(recipe, row["tuned"])
        for number in range(seeds):
            seeded = override(recipe, {"seed": recipe.seed + number})
            log.info("%s, seed %d", variant.name, seeded.seed)
            run = _one(seeded, folder / f"seed-{seeded.seed}", callbacks, data)
            row["runs"].append(run.metrics)
            row["histories"].append(run.history)
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


def _tune(recipe: Recipe, folder: Path, tune_each: str, callbacks, data) -> dict[str, Any]:
    """The value of a key that is best on the validation split, by the first seed alone."""
    key, values = _axis(tune_each)
    scores = {}
    for value in values:
        changed = override(recipe, {key: literal(value)})
        place = folder / studies.file_name(f"{key}={value}")
        metrics = _one(changed, place, callbacks, data).metrics
        if "validation" not in metrics:
            raise RunError("--tune-each chooses on a validation split, and the data have none.")
        name = studies.usual(metrics["validation"])
        sign = 1 if studies.higher_is_better(name) else -1
        scores[value] = sign * metrics["validation"][name]["value"]
    return {key: max(scores, key=scores.get)}


def _report(
    place: Path, recipe: Recipe, rows: list[dict], labels: dict[str, str], seeds: int, metric
) -> dict[str, Any]:
    done = [row for row in rows if "error" not in row]
    if not done:
        raise RunError(
            f"Every variant of the study failed; the first one: {rows[0]['error']} The runs are in "
            f"{place}."
        )
    split = "test" if "test" in done[0]["runs"][0] else "validation"
    if split not in done[0]["runs"][0]:
        raise RunError("The data have neither a test nor a validation split to compare on.")
    name = metric or studies.usual(done[0]["runs"][0][split])
    known = done[0]["runs"][0][split]
    if name not in known:
        raise RecipeError(f"There is no metric {name!r}; the runs have {', '.join(known)}.")
    better = studies.higher_is_better(name)
    unit, scale = studies.unit_of(name)
    base = rows[0] if "error" not in rows[0] else None
    histories = {row["name"]: row.pop("histories") for row in rows}
    for row in rows:
        runs = row.pop("runs")
        if "error" in row:
            row["verdict"] = f"{row['name']}: failed: {row['error']}"
            continue
        row["scores"] = [run[split][name]["value"] for run in runs]
        row["mean"] = float(np.mean(row["scores"]))
        row["parameters"] = runs[0]["parameters"]
        row["seconds"] = float(np.median([run["wall_seconds"] for run in runs]))
        row["rate"] = float(np.median([run["examples_per_second"] for run in runs]))
        if base is None:
            row["verdict"] = f"{row['name']}: {name} {row['mean']:.4g}; the base failed"
        elif row is base:
            row["verdict"] = f"{row['name']}: the base, {name} {row['mean']:.4g}"
        else:
            found = paired.difference(row["scores"], base["scores"])
            row |= {"difference": found.mean, "low": found.low, "high": found.high}
            row["time_ratio"] = base["rate"] / row["rate"] if row["rate"] else float("nan")
            row["verdict"] = (
                paired.verdict(row["name"], found, unit, better, scale)
                + f"; {_pace(row['time_ratio'])}"
            )
        if "tuned" in row:
            chosen = ", ".join(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in row["tuned"].items())
            row["verdict"] += f" (chosen on validation: {chosen})"
    result = {
        "recipe": recipe.name,
        "metric": name,
        "split": split,
        "seeds": seeds,
        "variants": rows,
        "directory": str(place),
    }
    write_json(place / "ablation.json", result)
    write_atomic(place / "ablation.csv", _csv(rows))
    write_atomic(place / "README.md", _card(result))
    studies.draw_differences(result, labels, place / "ablation.png")
    curves = {labels[row["name"]]: histories[row["name"]] for row in rows if "scores" in row}
    studies.draw_curves(curves, name, place / "curves.png")
    return result


def _pace(ratio: float) -> str:
    """How much longer a step takes; within 5% nothing is claimed."""
    if not np.isfinite(ratio) or abs(ratio - 1) < 0.05:
        return "as fast"
    return f"{abs(ratio - 1):.0%} {'slower' if ratio > 1 else 'faster'}"


def _csv(rows: list[dict[str, Any]]) -> str:
    columns = ("name", "mean", "difference", "low", "high", "time_ratio", "parameters", "error")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "scores"])
    for row in rows:
        scores = " ".join(f"{score:.6g}" for score in row.get("scores", ()))
        writer.writerow([*(row.get(column, "") for column in columns), scores])
    return text.getvalue()


def _card(result: dict[str, Any]) -> str:
    lines = [
        f"# What changes in {result['recipe']}",
        "",
        f"{result['metric']} on the {result['split']} split, {result['seeds']} seeds, differences "
        "seed by seed from the first variant with 95% intervals.",
        "",
        *(f"- {row['verdict']}" for row in result["variants"]),
        "",
        "![differences](ablation.png)",
        "![training](curves.png)",
        "",
    ]
    return "\n".join(lines)
