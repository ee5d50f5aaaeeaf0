"""The one trainer: a recipe in, a run directory out.

Every model trains by Keras's own ``fit`` on a tf.data stream. Around it stand callbacks that stop,
record and save, such that a run killed at any moment and started again ends with the very bits of
a run that was never killed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..models import callbacks as model_callbacks
from ..models.layers import global_policy
from . import choices, conformal, environment, run
from .checkpoint import Recorder, TensorBoard
from .claim import begun, claimed
from .data import load
from .plan import (
    UNVALIDATED,
    Plan,
    build_optimizer,
    early_stopping,
    schedule_callbacks,
    stop_reason,
)
from .recipe import Recipe, RecipeError
from .run_card import run_card

log = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """Training left the finite numbers. The message names the quantity, the step and the epoch."""


def train(
    recipe: Recipe | str,
    run_dir: str | os.PathLike | None = None,
    data: Any = None,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    allow_differences: bool = False,
) -> run.Run:
    """Trains a recipe, or resumes it, and returns the finished run.

    Args:
        recipe: a recipe, the name of one, or the path of a recipe's JSON file.
        run_dir: where the results go. An unfinished run of the same recipe there is resumed; a
            finished one is returned as it is. By default ``runs/NAME-K`` (an unfinished run of
            the same recipe, else a new K).
        data: arrays or datasets, for recipes whose source is ``python``: ``(x, y)``, or a
            dictionary of them by split.
        callbacks: further Keras callbacks. State of their own is not resumed.
        allow_differences: resume even where other versions or thread counts give other bits.

    Raises:
        RecipeError, data.SourceError, data.OpsError: the recipe does not work; before any training.
        RunError: the directory belongs to another recipe, another process, or other data.
        Diverged: the loss was no longer a number.

    ``keras.utils.set_random_seed(recipe.seed)`` is called: it seeds Python's and NumPy's global
    generators too.
    """
    from .recipes import get_recipe

    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    choices.check_recipe(recipe)
    with claimed(recipe, run_dir) as directory:
        if (directory / "metrics.json").is_file():
            finished = run.Run(directory)
            if (reason := finished.metrics["stop_reason"]).startswith("diverged"):
                raise Diverged(f"{directory} holds this run, which {reason}. Change the recipe.")
            log.info("%s holds this run, finished", directory)
            return finished
        if begun(directory):
            recorded = run.Run(directory).environment
            environment.restore(recorded, strict=not allow_differences)
        else:
            about = environment.describe()
            if weights := environment.starting_weights(recipe):
                about["weights"] = weights
            run.write_json(directory / "environment.json", about)
        with global_policy(recipe.algorithm.precision):
            return _train(recipe, directory, data, callbacks)


def _train(recipe: Recipe, directory: Path, data: Any, extra: Sequence) -> run.Run:
    dataset = load(recipe.data, data)
    if begun(directory):
        run.check_same_data(run.Run(directory), dataset)
    keras.utils.set_random_seed(recipe.seed)
    loss = choices.build_loss(recipe.loss)
    if loss.task != choices.LOSS_TASKS.get(dataset.task, dataset.task):
        raise RecipeError(
            f"The loss {recipe.loss.name!r} is for {loss.task}, the data of "
            f"{recipe.data.source} are for {dataset.task}. Choose another loss (`epochal list "
            "losses`), or set data.task."
        )
    if dataset.mixes and not loss.takes_mixtures:
        raise RecipeError(
            "data.mixup and data.cutmix train on mixtures of two targets, but the loss "
            f"{recipe.loss.name!r} needs whole ones, classes or counts. Leave them out, or choose "
            "another loss."
        )
    if dataset.mixes and recipe.model.name == "knn":
        raise RecipeError(
            "data.mixup and data.cutmix train on mixtures of two examples, and knn looks examples "
            "up as they are. Leave them out."
        )
    conformal.check(recipe, dataset, loss)
    if "train" not in dataset.sizes and recipe.algorithm.epochs != 0:
        raise RecipeError(
            f"{recipe.data.source} has names of classes and no examples to train on. With "
            "--algorithm.epochs 0 the weights are taken as they are."
        )
    plan = Plan(recipe, dataset.steps_per_epoch)
    choices.fit_loss(loss, dataset)
    model = choices.build_model(recipe, dataset, loss)
    # An element of an environment's data can be several optimizer steps. Without any, the schedule
    # is not asked for a rate, and its length is one that every warm-up fits into.
    steps = plan.steps * getattr(dataset, "updates", 1) or 2**31
    optimizer = build_optimizer(recipe, steps, model)
    try:
        model.compile(
            optimizer=optimizer,
            loss=choices.losses(dataset, loss),
            metrics=choices.build_metrics(dataset, loss),
            jit_compile=recipe.algorithm.jit,
            steps_per_execution=recipe.algorithm.steps_per_execution,
        )
    except ValueError as error:
        raise RecipeError(f"`model` {recipe.model} with `loss` {recipe.loss}: {error}") from None
    if plan.steps:
        _make_variables(model, dataset, recipe.seed)

    early = early_stopping(recipe, plan, dataset, loss)
    divergence = model_callbacks.StopOnDivergence()
    stateful = [early, divergence, *schedule_callbacks(recipe, dataset, loss)]
    if dataset.task == "control":
        stateful.append(dataset.attach(model, directory, plan.steps_per_epoch, plan.epochs))
    stateful = [callback for callback in stateful if callback is not None]
    recorder = Recorder(directory, stateful, early)
    start_epoch = recorder.restore(model)
    if start_epoch == 0:
        run.write_json(directory / "dataset.json", dataset.describe())
    if plan.steps == 0:
        return _finish(recipe, directory, dataset, model, loss, plan, early, divergence, recorder)
    last = [plan.last_step_callback()] if plan.partial else []
    swap = [model_callbacks.SwapEMA()] if recipe.algorithm.ema else []
    validated = "validation" in dataset.sizes and dataset.task not in UNVALIDATED
    validation = dataset.split("validation") if validated else None
    if dataset.task == "generation":
        from . import generated_samples, sample_pictures

        real = generated_samples.examples(dataset, "train", 2_000)
        extra = [sample_pictures.EpochSamples(directory / "plots" / "epochs", *real), *extra]

    if not recorder.stopped and start_epoch < plan.epochs:
        log.info("training %s in %s from epoch %d", recipe.name, directory, start_epoch + 1)
    model.fit(
        dataset.train(recipe.seed, start_step=start_epoch * plan.steps_per_epoch),
        initial_epoch=start_epoch,
        # A run that had stopped before it was killed only needs its end, not another epoch.
        epochs=start_epoch if recorder.stopped else plan.epochs,
        steps_per_epoch=plan.steps_per_epoch,
        validation_data=validation,
        # The recorder comes after the callbacks whose state it restores and saves.
        callbacks=[*swap, *last, *stateful, TensorBoard(directory), *extra, recorder],
        shuffle=False,
        verbose=0,
    )
    return _finish(recipe, directory, dataset, model, loss, plan, early, divergence, recorder)


def _finish(recipe, directory, dataset, model, loss, plan, early, divergence, recorder) -> run.Run:
    """Best weights are in the model: save it, measure it on validation and, once, on test."""
    from . import plots
    from .evaluate import PICTURES, measure, report

    rows = recorder.rows
    # Again: a kill may have fallen between the last checkpoint and its history.csv.
    run.write_history(directory / "history.csv", rows)
    best = early.best_epoch if early is not None and early.best_epoch is not None else None
    # Of an environment the examples are its steps.
    examples = dataset.replay.train_freq if dataset.task == "control" else recipe.data.batch_size
    best_row = rows[best] if best is not None else (rows[-1] if rows else {})
    summary: dict[str, Any] = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "stop_reason": stop_reason(early, divergence, plan, len(rows)),
        "epochs": len(rows),
        "best_epoch": best_row.get("epoch"),
        "parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
        "wall_seconds": round(recorder.wall_seconds, 3),
        "examples_per_second": round(recorder.examples_per_second(examples), 1),
        "train": {
            k: v
            for k, v in best_row.items()
            if not k.startswith("val_") and k not in ("epoch", "step", "learning_rate")
        },
    }
    if weights := run.Run(directory).environment.get("weights"):
        summary["weights"] = weights
    if divergence.reason:
        run.write_json(directory / "metrics.json", summary)
        raise Diverged(
            f"{recipe.name}: {divergence.reason}. Lower algorithm.optimizer.learning_rate, set "
            f"algorithm.clip_norm, or check the data. History: {directory / 'history.csv'}."
        )
    if recipe.algorithm.conformal:
        model, summary["conformal"] = conformal.widen(model, loss, dataset)
    with run.appearing(directory / "model.keras") as temporary:
        model.save(temporary)
    plots.learning_curves(rows, directory / "plots" / "learning_curves.png")
    samples: list[dict[str, str]] = []
    for split in ("validation", "test"):
        if split in dataset.sizes:
            result, predictions = measure(model, loss, dataset, split)
            summary[split] = result["metrics"]
            summary |= {key: result[key] for key in ("collapse", "untrained") if key in result}
            if samples := result.get("samples", []):  # those of the last split, the test
                summary["samples"] = samples
    if "test" in dataset.sizes:
        report(model, loss, dataset, result, predictions, directory / "plots")
    drawn = {n: what for n, what in PICTURES.items() if (directory / "plots" / n).is_file()}
    card = run_card(recipe, dataset, summary, drawn, samples)
    run.write_atomic(directory / "README.md", card)
    run.write_json(directory / "metrics.json", summary)
    return run.Run(directory)


def _make_variables(model, dataset, seed: int) -> None:
    """Makes the variables that Keras would make late, so that a checkpoint finds them all."""
    if dataset.task == "generation":  # compiling has made them
        return
    model.optimizer.build(model.trainable_variables)
    if dataset.task in ("control", "representation"):  # the metrics are the model's own
        return
    batch = next(iter(dataset.train(seed).take(1)))
    x, y = batch if isinstance(batch, tuple) else (batch, None)
    outputs = model(x, training=False)
    if y is not None:  # the losses of several outputs are metrics too
        model.compute_loss(x, y, outputs, training=False)
    model.compute_metrics(x, y, outputs, None)
    model.reset_metrics()
