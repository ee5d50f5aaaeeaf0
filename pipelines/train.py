"""The one trainer: a recipe in, a run directory out.

Every model trains by Keras's own ``fit`` on a tf.data stream. Around it stand callbacks that stop,
record and save, such that a run killed at any moment and started again ends with the very bits of
a run that was never killed.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..models import callbacks as model_callbacks
from ..models import optimizers
from . import choices, run
from .data import load
from .recipe import Recipe, RecipeError

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
    with _claimed(recipe, run_dir) as directory:
        if (directory / "metrics.json").is_file():
            log.info("%s holds this run, finished", directory)
            return run.Run(directory)
        environment = directory / "environment.json"
        if environment.is_file():
            recorded = run.Run(directory).environment
            run.restore_environment(recorded, strict=not allow_differences)
        else:
            run.write_json(environment, run.describe_environment())
        with _precision(recipe.algorithm.precision):
            return _train(recipe, directory, data, callbacks)


def _train(recipe: Recipe, directory: Path, data: Any, extra: Sequence) -> run.Run:
    dataset = load(recipe.data, data)
    if (directory / "dataset.json").is_file():
        run.check_same_data(run.Run(directory), dataset)
    keras.utils.set_random_seed(recipe.seed)
    loss = choices.build_loss(recipe.loss)
    if loss.task != dataset.task:
        raise RecipeError(
            f"The loss {recipe.loss.name!r} is for {loss.task}, the data of "
            f"{recipe.data.source} for {dataset.task}. Choose another loss (`epochal list "
            "losses`), or set data.task."
        )
    plan = Plan(recipe, dataset.steps_per_epoch)
    model = choices.build_model(recipe, dataset, loss)
    model.compile(
        optimizer=_build_optimizer(recipe, plan.steps),
        loss=loss,
        metrics=choices.build_metrics(dataset, loss),
        jit_compile=recipe.algorithm.jit,
        steps_per_execution=recipe.algorithm.steps_per_execution,
    )
    _make_variables(model, dataset, recipe.seed)

    early = _early_stopping(recipe, plan, dataset, loss)
    divergence = model_callbacks.StopOnDivergence()
    stateful = [early, divergence, *_schedule_callbacks(recipe)]
    stateful = [callback for callback in stateful if callback is not None]
    recorder = Recorder(directory, stateful, early)
    start_epoch = recorder.restore(model)
    if start_epoch == 0:
        run.write_json(directory / "dataset.json", dataset.describe())
    last = [plan.last_step_callback()] if plan.partial else []
    swap = [model_callbacks.SwapEMA()] if recipe.algorithm.ema else []
    validation = dataset.split("validation") if "validation" in dataset.sizes else None

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
    from .evaluate import measure, report

    rows = recorder.rows
    best = early.best_epoch if early is not None and early.best_epoch is not None else None
    best_row = rows[best] if best is not None else (rows[-1] if rows else {})
    summary: dict[str, Any] = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "stop_reason": _stop_reason(early, divergence, plan, len(rows)),
        "epochs": len(rows),
        "best_epoch": best_row.get("epoch"),
        "parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
        "wall_seconds": round(recorder.wall_seconds, 3),
        "examples_per_second": round(recorder.examples_per_second(recipe.data.batch_size), 1),
        "train": {
            k: v
            for k, v in best_row.items()
            if not k.startswith("val_") and k not in ("epoch", "step", "learning_rate")
        },
    }
    if divergence.reason:
        run.write_json(directory / "metrics.json", summary)
        raise Diverged(
            f"{recipe.name}: {divergence.reason}. Lower algorithm.optimizer.learning_rate, set "
            f"algorithm.clip_norm, or check the data. History: {directory / 'history.csv'}."
        )
    _save_model(model, directory / "model.keras")
    plots.learning_curves(rows, directory / "plots" / "learning_curves.png")
    for split in ("validation", "test"):
        if split in dataset.sizes:
            result, predictions = measure(model, loss, dataset, split)
            summary[split] = result["metrics"]
    if "test" in dataset.sizes:
        report(result, predictions, dataset, directory / "plots")
    run.write_atomic(directory / "README.md", _card(recipe, dataset, summary))
    run.write_json(directory / "metrics.json", summary)
    return run.Run(directory)


class Plan:
    """How many steps, in epochs of which length.

    ``algorithm.steps`` that is no multiple of the epoch's length makes the last epoch shorter.
    """

    def __init__(self, recipe: Recipe, steps_in_a_pass: int):
        algorithm = recipe.algorithm
        group = algorithm.steps_per_execution
        if algorithm.steps_per_epoch:
            self.steps_per_epoch = algorithm.steps_per_epoch
        else:  # rounded up, so that an epoch is whole calls into TensorFlow
            self.steps_per_epoch = -(-steps_in_a_pass // group) * group
        self.steps = algorithm.steps or algorithm.epochs * self.steps_per_epoch
        self.steps_per_epoch = min(self.steps_per_epoch, self.steps)
        self.epochs = -(-self.steps // self.steps_per_epoch)
        self.partial = self.steps % self.steps_per_epoch != 0
        for name, value in (("steps_per_epoch", self.steps_per_epoch), ("steps", self.steps)):
            if value % group:
                raise RecipeError(
                    f"algorithm.{name} ({value}) must be a multiple of "
                    f"algorithm.steps_per_execution ({group})."
                )

    def last_step_callback(self) -> keras.callbacks.Callback:
        """Ends the last, shorter epoch at the last step."""
        plan = self

        class LastStep(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.remaining = plan.steps - epoch * plan.steps_per_epoch

            def on_train_batch_end(self, batch, logs=None):
                if batch + 1 >= self.remaining:
                    self.model.stop_training = True

        return LastStep()


class Recorder(keras.callbacks.Callback):
    """Keeps the history and writes a complete checkpoint after each epoch; restores from it.

    It must stand last among the callbacks: it saves the state that the others have at the end of
    an epoch, and gives it back to them at the beginning of training.
    """

    def __init__(self, directory: Path, stateful: list, early):
        super().__init__()
        self.directory, self.stateful, self.early = directory, stateful, early
        self.rows: list[dict[str, float]] = []
        self.wall_seconds = 0.0
        self.stopped = False
        self._train_seconds: list[tuple[int, float]] = []  # steps and seconds of each epoch
        self._callback_states: list[dict] = []

    @property
    def _latest(self) -> Path:
        return self.directory / "checkpoints" / "latest.npz"

    def _best(self, epoch: int) -> Path:
        return self.directory / "checkpoints" / f"best-{epoch + 1:05d}.npz"

    def restore(self, model) -> int:
        """Restores from the latest checkpoint, if there is one. Returns the epochs done."""
        loaded = run.load_checkpoint(self._latest)
        if loaded is None:
            return 0
        arrays, about = loaded
        run.assign(run.state_variables(model), arrays, self._latest)
        self.rows = about["history"]
        self.wall_seconds = about["wall_seconds"]
        self.stopped = about["stopped"]
        self._train_seconds = [tuple(pair) for pair in about["train_seconds"]]
        self._callback_states = about["callbacks"]
        if self.early is not None:
            epoch = about["callbacks"][self.stateful.index(self.early)]["best_epoch"]
            best = run.load_checkpoint(self._best(epoch)) if epoch is not None else None
            self._best_weights = best[0] if best else None
        return len(self.rows)

    def on_train_begin(self, logs=None):
        for callback, state in zip(self.stateful, self._callback_states, strict=False):
            callback.set_state(state)
        if self._callback_states and self.early is not None:
            self.early.best_weights = self._best_weights
        self._began = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        self._steps = 0
        self._epoch_began = time.perf_counter()
        self._epoch_ended = None

    def on_train_batch_end(self, batch, logs=None):
        self._steps = batch + 1

    def on_test_begin(self, logs=None):
        self._epoch_ended = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        now = time.perf_counter()
        self._train_seconds.append((self._steps, (self._epoch_ended or now) - self._epoch_began))
        self.wall_seconds += now - self._began
        self._began = now
        optimizer = self.model.optimizer
        self.rows.append(
            {
                "epoch": epoch + 1,
                "step": int(optimizer.iterations),
                "learning_rate": float(optimizer.learning_rate),
                **{name: float(value) for name, value in (logs or {}).items()},
            }
        )
        try:
            self._save(epoch)
        except OSError as error:
            raise run.RunError(
                f"The checkpoint of epoch {epoch + 1} could not be written to {self.directory} "
                f"({error.strerror or error}). The one before it is whole: make room, or make the "
                "directory writable, and start the same command again to go on from there."
            ) from None

    def _save(self, epoch: int) -> None:
        checkpoints = self._latest.parent
        best = self.early.best_epoch if self.early is not None else None
        if best == epoch:
            run.save_checkpoint(self._best(epoch), self.early.best_weights, {"epoch": epoch})
        about = {
            "history": self.rows,
            "wall_seconds": self.wall_seconds,
            "stopped": bool(self.model.stop_training),
            "train_seconds": self._train_seconds,
            "callbacks": [callback.get_state() for callback in self.stateful],
        }
        arrays = [keras.ops.convert_to_numpy(v) for v in run.state_variables(self.model)]
        run.save_checkpoint(self._latest, arrays, about)
        run.write_history(self.directory / "history.csv", self.rows)
        if best is not None:  # older best weights go only once the checkpoint names the new ones
            for old in checkpoints.glob("best-*.npz"):
                if old != self._best(best):
                    old.unlink()

    def examples_per_second(self, batch_size: int) -> float:
        """Training throughput without validation; the first epoch only where there is no other."""
        epochs = self._train_seconds[1:] or self._train_seconds
        seconds = sum(s for _, s in epochs)
        return batch_size * sum(n for n, _ in epochs) / seconds if seconds else 0.0


class TensorBoard(keras.callbacks.Callback):
    """Writes each epoch's row as scalars, by optimizer step."""

    def __init__(self, directory: Path):
        super().__init__()
        self.directory = directory / "tensorboard"
        self._writers: dict[str, Any] = {}

    def on_epoch_end(self, epoch, logs=None):
        step = int(self.model.optimizer.iterations)
        for name, value in (logs or {}).items():
            folder = "validation" if name.startswith("val_") else "train"
            if folder not in self._writers:
                path = str(self.directory / folder)
                self._writers[folder] = tf.summary.create_file_writer(path)
            with self._writers[folder].as_default(step=step):
                tf.summary.scalar(name.removeprefix("val_"), float(value))
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs=None):
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


def _build_optimizer(recipe: Recipe, steps: int):
    algorithm = recipe.algorithm
    try:
        return optimizers.build(
            algorithm.optimizer.name,
            algorithm.optimizer.options,
            schedule=(algorithm.schedule.name, algorithm.schedule.options),
            steps=steps,
            weight_decay=algorithm.weight_decay,
            weight_decay_exclude=algorithm.weight_decay_exclude,
            clip_norm=algorithm.clip_norm,
            ema=algorithm.ema,
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"`algorithm` with {algorithm.optimizer} and schedule {algorithm.schedule}: {error}"
        ) from None


def _schedule_callbacks(recipe: Recipe) -> list:
    schedule = recipe.algorithm.schedule
    callback = optimizers.needs_callback(schedule.name, schedule.options)
    return [] if callback is None else [callback]


def _early_stopping(recipe: Recipe, plan: Plan, dataset, loss):
    """Stops if the recipe says so; finds and keeps the best epoch in any case where one is."""
    settings = recipe.algorithm.early_stopping
    if settings is None:
        if plan.epochs == 1 or "validation" not in dataset.sizes:
            return None
        return model_callbacks.EarlyStopping("val_loss", patience=plan.epochs)
    recorded = ["loss", *(metric.name for metric in choices.build_metrics(dataset, loss))]
    if "validation" in dataset.sizes:
        recorded = [f"val_{name}" for name in recorded] + recorded
    if settings.monitor not in recorded:
        near = difflib.get_close_matches(settings.monitor, recorded, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RecipeError(
            f"`algorithm.early_stopping.monitor`: {settings.monitor!r} is not recorded.{hint} "
            f"This run records {', '.join(recorded)}."
        )
    return model_callbacks.EarlyStopping(**settings.model_dump())


def _stop_reason(early, divergence, plan: Plan, epochs: int) -> str:
    if divergence.reason:
        return f"diverged: {divergence.reason}"
    if early is not None and early.reason:
        return f"early stopping: {early.reason}"
    return f"all {plan.steps} steps done" if plan.partial else f"all {epochs} epochs done"


def _make_variables(model, dataset, seed: int) -> None:
    """Makes the variables that Keras would make late, so that a checkpoint finds them all."""
    model.optimizer.build(model.trainable_variables)
    batch = next(iter(dataset.train(seed).take(1)))
    x, y = batch if isinstance(batch, tuple) else (batch, None)
    model.compute_metrics(x, y, model(x, training=False), None)
    model.reset_metrics()


def _save_model(model, path: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".model.", suffix=".keras")
    os.close(handle)
    try:
        model.save(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _precision(policy: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _claimed(recipe: Recipe, run_dir: str | os.PathLike | None) -> Iterator[Path]:
    """The run directory, locked, holding this recipe and no other."""
    if run_dir is not None:
        directory = Path(run_dir)
        if directory.is_dir() and any(directory.iterdir()) and not _is_ours(directory):
            raise run.RunError(
                f"{directory} holds other files and no run. Give an empty or a new directory."
            )
        with _hold(directory, recipe):
            yield directory
        return
    for directory in _default_directories(recipe):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_hold(directory, recipe))
            except run.RunError:  # another process trains there: take the next number
                continue
            yield directory
            return


@contextlib.contextmanager
def _hold(directory: Path, recipe: Recipe) -> Iterator[None]:
    try:
        with run.locked(directory):
            if (directory / "recipe.json").is_file():
                run.check_same_recipe(directory, recipe)
            else:
                run.write_atomic(directory / "recipe.json", recipe.to_json())
            yield
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise run.RunError(f"Cannot write to {directory}: {error.strerror}.") from None


def _is_ours(directory: Path) -> bool:
    return (directory / "recipe.json").is_file() or {f.name for f in directory.iterdir()} <= {
        ".lock"
    }


def _default_directories(recipe: Recipe) -> Iterator[Path]:
    """runs/NAME-K: the last one if it is an unfinished run of this recipe, then new ones."""
    root = Path("runs")
    pattern = f"{recipe.name}-*"
    numbers = [int(p.name[len(recipe.name) + 1 :]) for p in root.glob(pattern)
               if p.name[len(recipe.name) + 1 :].isdigit()]  # fmt: skip
    last = max(numbers, default=0)
    if last:
        directory = root / f"{recipe.name}-{last}"
        with contextlib.suppress(run.RunError, RecipeError):
            found = run.Run(directory)
            if not found.finished and found.recipe == recipe:
                yield directory
    while True:
        last += 1
        yield root / f"{recipe.name}-{last}"


def _card(recipe: Recipe, dataset, summary: dict[str, Any]) -> str:
    """The model card: what was trained on what, how well it does, how to use it."""
    lines = [f"# {recipe.name}", ""]
    lines += [
        f"- data: `{recipe.data.source}` ("
        + ", ".join(f"{n:,} {split}" for split, n in dataset.sizes.items())
        + f"), ops `{recipe.data.ops or 'none'}`",
        f"- model: `{recipe.model}`, {summary['parameters']:,} trainable parameters",
        f"- loss: `{recipe.loss}`",
        f"- algorithm: `{recipe.algorithm.optimizer}`, schedule `{recipe.algorithm.schedule}`, "
        f"batch size {recipe.data.batch_size}",
        f"- seed: {recipe.seed}",
        f"- stopped: {summary['stop_reason']}; best epoch {summary['best_epoch']}",
        "",
        "| metric | validation | test (95% interval) |",
        "|---|---|---|",
    ]
    for name in summary.get("test", summary.get("validation", {})):
        cells = [
            "" if (m := summary.get(split, {}).get(name)) is None else _cell(m)
            for split in ("validation", "test")
        ]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    lines += [
        "",
        "The test split was used once, after training. Commands: `epochal evaluate DIR`, "
        "`epochal predict DIR INPUT...`, `epochal export DIR`.",
        "",
    ]
    return "\n".join(lines)


def _cell(metric: dict[str, float]) -> str:
    return f"{metric['value']:.4g} [{metric['low']:.4g}, {metric['high']:.4g}]"
