"""What a search leaves behind: tables, pictures, and the best recipe."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from keras_tuner.engine import trial as kt

from . import tune_plots
from .oracle import Oracle
from .recipe import Recipe, override
from .run import RunError, plain, write_atomic, write_json

_TREES = 200


def folder(place: Path, trial_id: str) -> Path:
    """The run directory of a trial, or with folds that of its runs."""
    return place / f"trial-{int(trial_id) + 1:03d}"


def line(oracle: Oracle, trial: kt.Trial, place: Path) -> str:
    """One trial as a line of progress."""
    row = _row(trial, place)
    settings = ", ".join(f"{key.rsplit('.', 1)[-1]} {v}" for key, v in row["values"].items())
    if row["error"]:
        return f"trial {row['trial']} failed: {row['error']} ({settings})"
    best = _best([_row(one, place) for one in oracle.trials.values()], oracle)
    name = oracle.objective.name
    known = f"; best {best['score']:.4g} (trial {best['trial']})"
    return f"trial {row['trial']}: {name} {row['score']:.4g} ({settings}){known}"


def report(oracle: Oracle, recipe: Recipe, place: Path) -> dict[str, Any]:
    """Writes all files of a search and returns what :func:`.tune.tune` does."""
    ended = [t for _, t in sorted(oracle.trials.items()) if t.status != kt.TrialStatus.RUNNING]
    rows = [_row(trial, place) for trial in ended]
    best = _best(rows, oracle)
    if best is None:
        cause = f" The first one: {rows[0]['error']}" if rows else ""
        raise RunError(f"No trial has succeeded: {oracle.stopped}.{cause} They are in {place}.")
    best_recipe = override(recipe, best["values"])
    write_atomic(place / "best.json", best_recipe.to_json())
    result = {
        "recipe": recipe.name,
        "tuner": oracle.tuner,
        "objective": oracle.objective.name,
        "stopped": oracle.stopped,
        "trials": rows,
        "best": best,
        "start": next((row for row in rows if row["values"] == oracle.start), None),
        "importance": importance(oracle, rows),
        "best_recipe": str(place / "best.json"),
        "directory": str(place),
    }
    write_json(place / "tune.json", result)
    write_atomic(place / "tune.csv", _csv(rows, result["objective"]))
    plots, name = place / "plots", result["objective"]
    upwards = oracle.objective.direction == "max"
    tune_plots.progress(rows, name, upwards, plots / "progress.png")
    tune_plots.parallel(rows, oracle.space, name, upwards, plots / "parallel.png")
    tune_plots.importance(result["importance"], plots / "importance.png")
    write_atomic(place / "README.md", _card(result, best_recipe))
    return plain(result)


def importance(oracle: Oracle, rows: list[dict[str, Any]]) -> dict[str, float]:
    """How much each key matters: the share of the variance that a random forest explains by it.

    A key's columns are shuffled together, on the trials themselves; the rise of the squared error,
    over the variance of the scores, is its importance. Of few trials it says little. Empty for
    fewer than four successful ones, and for Hyperband's, whose lengths differ.
    """
    from sklearn.ensemble import RandomForestRegressor

    done = [row for row in rows if row["error"] is None]
    scores = np.array([row["score"] for row in done])
    if len(done) < 4 or np.ptp(scores) == 0 or oracle.rungs:
        return {}
    x = np.array([oracle.space.encode(row["values"]) for row in done])
    forest = RandomForestRegressor(_TREES, random_state=oracle.seed).fit(x, scores)
    wrong = np.mean((forest.predict(x) - scores) ** 2)
    draw = np.random.default_rng(oracle.seed)
    columns: dict[str, list[int]] = {}
    place = 0
    for dimension in oracle.space.dimensions:
        columns.setdefault(dimension.key, []).extend(range(place, place + dimension.width))
        place += dimension.width
    found = {}
    for key, own in columns.items():
        rises = []
        for _ in range(20):
            mixed = x.copy()
            mixed[:, own] = x[draw.permutation(len(x))][:, own]
            rises.append(np.mean((forest.predict(mixed) - scores) ** 2) - wrong)
        found[key] = float(max(np.mean(rises), 0.0) / scores.var())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _row(trial: kt.Trial, place: Path) -> dict[str, Any]:
    """A trial as a row of the tables; its time from the files of its runs."""
    home = folder(place, trial.trial_id)
    failed = trial.status == kt.TrialStatus.FAILED
    seconds = [json.loads(f.read_text())["wall_seconds"] for f in home.rglob("metrics.json")]
    return {
        "trial": int(trial.trial_id) + 1,
        "values": dict(trial.hyperparameters.values),
        "score": None if trial.score is None or failed else float(trial.score),
        "error": _cause(home, trial) if failed else None,
        "seconds": round(sum(seconds), 3),
        "directory": str(home),
    }


def _cause(home: Path, trial: kt.Trial) -> str:
    """Why a trial failed. A worker's message stands in its directory: KerasTuner sends none."""
    file = home / "error.txt"
    return file.read_text() if file.is_file() else (trial.message or "unknown")


def _best(rows: list[dict[str, Any]], oracle: Oracle) -> dict[str, Any] | None:
    sign = -1 if oracle.objective.direction == "max" else 1
    done = [row for row in rows if row["score"] is not None]
    return min(done, key=lambda row: (sign * row["score"], row["trial"]), default=None)


def _csv(rows: list[dict[str, Any]], name: str) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row["values"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", name, "seconds", *keys, "error"])
    for row in rows:
        values = (row["values"].get(key, "") for key in keys)
        score = "" if row["score"] is None else row["score"]
        writer.writerow([row["trial"], score, row["seconds"], *values, row["error"] or ""])
    return text.getvalue()


def _card(result: dict[str, Any], best: Recipe) -> str:
    name, found, start = result["objective"], result["best"], result["start"]
    rows = result["trials"]
    failed = [row for row in rows if row["error"]]
    lines = [
        f"# Search for better settings of {result['recipe']}",
        "",
        f"{len(rows)} trials ({result['tuner']}); the search ended: {result['stopped']}. The score "
        f"is {name} in the epoch whose weights a run keeps. A score that was chosen as the best of "
        "many is too good for new data; the test split was not read.",
        "",
        f"- best: {name} {found['score']:.4g}, trial {found['trial']}",
        *(f"  - `{key}`: {value}" for key, value in found["values"].items()),
    ]
    if start and start["score"] is not None:
        lines.append(f"- the recipe as it stands: {name} {start['score']:.4g}")
    lines += [f"- trial {row['trial']} failed: {row['error']}" for row in failed]
    lines += [
        "",
        f"    epochal train {result['best_recipe']}",
        "",
        *(f"![{plot}](plots/{plot}.png)" for plot in ("progress", "parallel")),
        *["![importance](plots/importance.png)"] * bool(result["importance"]),
        "",
    ]
    return "\n".join(lines)
