"""What studies of many runs share: their directory, the metric they compare, and a picture."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator

from .canvas import BLUE, GREY, STYLE, new_figure, save, wrap
from .claim import locked
from .recipe import RecipeError
from .run import RunError, plain, write_json

# the metric that a task is compared by, where nothing else is said: the first that was recorded
USUAL = (
    "accuracy", "exact_match", "bleu", "perplexity", "mlm_accuracy", "rmse", "return",
    "linear_accuracy", "good_share",
)  # fmt: skip
_SHARES = {
    "accuracy", "macro_f1", "top5_accuracy", "exact_match", "token_accuracy", "mlm_accuracy",
    "nsp_accuracy", "linear_accuracy", "knn_accuracy", "untrained_linear_accuracy",
    "untrained_knn_accuracy", "good_share", "precision", "recall",
}  # fmt: skip
_HIGHER = _SHARES | {
    "r2", "bleu", "chrf", "return", "human_score", "modes", "diversity", "class_diversity",
    "novelty",
}  # fmt: skip


class UnknownMetric(RecipeError):
    """A study is to compare by a metric that its runs do not have."""


def compared_split(metrics: dict[str, Any], metric: str | None = None) -> str:
    """The split of a run's metrics that studies compare on: test or, where there is none,
    validation. Raises RunError where there is neither, UnknownMetric for a metric it lacks."""
    split = "test" if "test" in metrics else "validation"
    if split not in metrics:
        raise RunError("The data have neither a test nor a validation split to compare on.")
    if metric is not None and metric not in metrics[split]:
        known = ", ".join(metrics[split])
        raise UnknownMetric(f"There is no metric {metric!r}; the runs have {known}.")
    return split


def usual(metrics: dict[str, Any], otherwise: str | None = None) -> str:
    """The metric that these are compared by; ``otherwise``, if it is one, where none is usual."""
    other = otherwise if otherwise in metrics else next(iter(metrics))
    return next((name for name in USUAL if name in metrics), other)


def own_metrics(dataset) -> list[str] | None:
    """What runs on data for generation or representation can be compared by, the usual first, if
    there is one: their losses say nothing. None for other tasks."""
    if dataset.task == "representation":
        probes = ["linear_accuracy", "knn_accuracy"] if dataset.label_names else []
        return [*probes, "alignment", "uniformity"]
    if dataset.task == "generation":
        return ["good_share", "modes"] if "centres" in dataset.about else []
    return None


def no_usual(recipe: str, metrics: list[str], option: str) -> str:
    """Why no metric of a recipe's runs is the usual one, and what to do, in words.

    Args:
        recipe: its name.
        metrics: what :func:`own_metrics` gives, as ``option`` takes it.
        option: of the command line, that names a metric.
    """
    if not metrics:
        return (
            f"Nothing that a run of {recipe} measures says how good its images are: compare runs "
            "by `epochal evaluate RUN --features CLASSIFIER-RUN`."
        )
    return (
        f"The data of {recipe} have no labels to probe with: say by {option} what runs are "
        f"compared by, {' or '.join(metrics)}."
    )


def heading(result: dict[str, Any]) -> str:
    """What the sentences of an ablation are about."""
    what, seeds = f"{result['metric']} on the {result['split']} split", result["seeds"]
    if seeds == 1:
        return f"{what}, one seed, differences from the first"
    return f"{what}, {seeds} seeds, differences from the first with 95% intervals"


def higher_is_better(metric: str) -> bool:
    """Whether more of it is better."""
    return metric in _HIGHER


def unit_of(metric: str) -> tuple[str, float]:
    """The unit that a difference is written in, and the factor to it: shares in points (0.01)."""
    return ("points", 100.0) if metric in _SHARES else ("", 1.0)


def file_name(text: str) -> str:
    """A directory's name for a variant: letters, digits and a few signs."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "-", text).strip("-.") or "variant"


def directory_of(
    verb: str, name: str, directory: str | os.PathLike | None, plan: dict[str, Any]
) -> Path:
    """Where a study goes: ``directory``, or runs/VERB-NAME-K: an unfinished one of the same plan,
    else a new K."""
    if directory is not None:
        return Path(directory)
    numbers = [
        int(found[1])
        for path in Path("runs").glob(f"{verb}-{name}-*")
        if (found := re.fullmatch(rf"{re.escape(f'{verb}-{name}')}-(\d+)", path.name))
    ]
    last = max(numbers, default=0)
    if last and _plan(Path("runs") / f"{verb}-{name}-{last}") == plain(plan):
        return Path("runs") / f"{verb}-{name}-{last}"
    return Path("runs") / f"{verb}-{name}-{last + 1}"


@contextlib.contextmanager
def held(directory: Path, plan: dict[str, Any]) -> Iterator[None]:
    """The directory of a study, locked, with its plan in plan.json.

    Raises RunError where it holds another study, or other files.
    """
    old = _plan(directory)
    if (
        old is None
        and directory.is_dir()
        and any(not p.name.startswith(".") for p in directory.iterdir())
    ):
        raise RunError(
            f"{directory} holds other files and no study. Give an empty or a new directory."
        )
    if old is not None:
        require_plan(directory, plan)
    try:
        with locked(directory):
            write_json(directory / "plan.json", plan)
            yield
    except OSError as error:
        raise RunError(f"Cannot write to {directory}: {error.strerror or error}.") from None


def require_plan(directory: Path, plan: dict[str, Any]) -> None:
    """Raises RunError where the directory does not hold a study of this plan."""
    old = _plan(directory)
    if old is None:
        raise RunError(f"{directory} holds no study. Give the --run-dir where it was begun.")
    if old != plain(plan):
        changed = [key for key in {**old, **plan} if old.get(key) != plain(plan).get(key)]
        raise RunError(
            f"{directory} holds another study: it differs in {', '.join(changed)}. Give another "
            "--run-dir, or repeat the command that began it."
        )


def _plan(directory: Path) -> dict[str, Any] | None:
    file = directory / "plan.json"
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{file} is damaged ({error}).") from None


def draw_differences(result: dict[str, Any], labels: dict[str, str], path: Path) -> None:
    """Each variant's scores, seed by seed, and the mean difference from the base with its interval.

    Args:
        result: as :func:`.ablate.ablate` returns it.
        labels: what each variant, by its name, is called here.
        path: the PNG to write.
    """
    rows = [row for row in result["variants"] if "scores" in row]
    unit, scale = unit_of(result["metric"])
    name = result["metric"].replace("_", " ")
    called = [wrap(labels[row["name"]], 40) for row in rows]
    lines = max(text.count("\n") + 1 for text in called)
    figure = new_figure(9.2, 1.65 + max(0.42, 0.1 + 0.18 * lines) * len(rows))
    with mpl.rc_context(STYLE):
        left, right = figure.subplots(1, 2, sharey=True)
        for place, row in enumerate(rows):
            scores = scale * np.asarray(row["scores"])
            left.plot(scores, np.full(len(scores), place), "o", color=GREY, markersize=4)
            left.plot(scores.mean(), place, "|", color=BLUE, markersize=16, markeredgewidth=2)
            if "difference" in row:
                mean = scale * row["difference"]
                low, high = (
                    mean if row[key] is None or not np.isfinite(row[key]) else scale * row[key]
                    for key in ("low", "high")
                )
                right.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o",
                               color=BLUE, capsize=3)  # fmt: skip
        right.axvline(0, color=GREY, linewidth=1)
        left.set_yticks(range(len(rows)), called)
        left.set_ylim(len(rows) - 0.5, -0.5)
        percent = " in percent" if unit == "points" else ""
        left.set(xlabel=f"{name}{percent},\neach seed and the mean")
        right.set(xlabel=f"difference from the first{f', {unit}' if unit else ''},\n95% interval")
        save(figure, path)


def draw_curves(
    histories: dict[str, list[list[dict[str, float]]]], metric: str, path: Path
) -> None:
    """How training went: a line for each variant's mean over seeds, and a band from its worst seed
    to its best.

    Args:
        histories: what each variant is called -> the history of each seed, one dict an epoch.
        metric: shown as validation recorded it; where that did not, as training did, or the loss.
        path: the PNG to write. Without any epoch nothing is written.
    """
    rows = [row for seeds in histories.values() for history in seeds for row in history]
    known = dict.fromkeys(key for row in rows for key in row)
    key = next((k for k in (f"val_{metric}", metric, "val_loss", "loss") if k in known), None)
    if key is None:
        return
    figure = new_figure(7.2, 4.2)
    with mpl.rc_context(STYLE):
        axes = figure.add_subplot()
        for place, (name, seeds) in enumerate(histories.items()):
            epochs, lowest, mean, highest = over_seeds(seeds, key)
            colour = mpl.colormaps["tab10"](place % 10)
            axes.fill_between(epochs, lowest, highest, color=colour, alpha=0.18, linewidth=0)
            axes.plot(epochs, mean, color=colour, label=wrap(name, 40))
        count = max(len(seeds) for seeds in histories.values())
        what = "validation" if key.startswith("val_") else "training"
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", ylabel=f"{key.removeprefix('val_').replace('_', ' ')}, {what}")
        axes.set_title("one seed" if count == 1 else f"mean of {count} seeds, worst to best")
        axes.legend()
        save(figure, path)


def over_seeds(seeds: list[list[dict[str, float]]], key: str) -> tuple[np.ndarray, ...]:
    """Epochs [e] (from 1) and the lowest, mean and highest value [e] of those seeds that have one;
    NaN where none has."""
    longest = max(map(len, seeds), default=0)
    values = np.full((max(len(seeds), 1), longest), np.nan)
    for seed, history in enumerate(seeds):
        for epoch, row in enumerate(history):
            value = row.get(key)
            values[seed, epoch] = np.nan if value is None else value
    known = np.isfinite(values)
    count = known.sum(axis=0)
    gaps = np.where(count, 0.0, np.nan)
    mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1)
    lowest = np.where(known, values, np.inf).min(axis=0)
    highest = np.where(known, values, -np.inf).max(axis=0)
    there = (np.where(count, each, np.nan) for each in (lowest, mean + gaps, highest))
    return (np.arange(1, longest + 1), *there)
