"""Checkpoints and the callbacks that write them, such that a killed run goes on bit-equal.

Arrays are stored by position, since the paths of variables carry automatic numbers.
``checkpoints/latest.npz`` holds every variable of model, optimizer and metrics, the callbacks'
states and the history; ``best-<epoch>.npz`` the weights of the best epoch that it names.
"""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .run import RunError, appearing, write_history


def state_variables(model) -> list:
    """Every variable that decides how training goes on: weights, seeds, optimizer, metrics."""
    further = getattr(model, "further_state", ())  # of a second optimizer, for example
    return [*model.variables, *model.optimizer.variables, *model.metrics_variables, *further]


def save_checkpoint(path: Path, arrays: list[np.ndarray], about: dict[str, Any]) -> None:
    """Writes arrays (by position) and a JSON-able ``about`` as one atomic .npz file."""
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with appearing(path) as temporary:
        np.savez(temporary, about=text, **{f"v{i}": array for i, array in enumerate(arrays)})


def load_checkpoint(path: Path) -> tuple[list[np.ndarray], dict[str, Any]] | None:
    """What :func:`save_checkpoint` wrote, or None where there is no such file."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            return [file[f"v{i}"] for i in range(len(file.files) - 1)], about
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(
            f"The checkpoint {path} is damaged ({error}). Remove it to start this run afresh."
        ) from None


def assign(variables: list, arrays: list[np.ndarray], path: Path) -> None:
    """Assigns checkpoint arrays to variables, shapes checked first."""
    ours = [tuple(v.shape) for v in variables]
    theirs = [a.shape for a in arrays]
    if ours != theirs:
        raise RunError(
            f"The checkpoint {path} does not fit the model: it has {len(theirs)} variables, the "
            f"model {len(ours)}; the first that differ are "
            f"{next(((a, b) for a, b in zip(theirs, ours, strict=False) if a != b), None)}. "
            "Was it written by another version? Start a new run directory."
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


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
        loaded = load_checkpoint(self._latest)
        if loaded is None:
            return 0
        arrays, about = loaded
        assign(state_variables(model), arrays, self._latest)
        self.rows = about["history"]
        self.wall_seconds = about["wall_seconds"]
        self.stopped = about["stopped"]
        self._train_seconds = [tuple(pair) for pair in about["train_seconds"]]
        self._callback_states = about["callbacks"]
        if self.early is not None:
            epoch = about["callbacks"][self.stateful.index(self.early)]["best_epoch"]
            best = load_checkpoint(self._best(epoch)) if epoch is not None else None
            if epoch is not None and best is None:
                raise RunError(
                    f"{self._best(epoch)}, which {self._latest} names, is missing. Put it back, or "
                    "start a new run directory."
                )
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
            raise RunError(
                f"The checkpoint of epoch {epoch + 1} could not be written to {self.directory} "
                f"({error.strerror or error}). The one before it is whole: make room, or make the "
                "directory writable, and start the same command again to go on from there."
            ) from None

    def _save(self, epoch: int) -> None:
        checkpoints = self._latest.parent
        best = self.early.best_epoch if self.early is not None else None
        if best == epoch:
            save_checkpoint(self._best(epoch), self.early.best_weights, {"epoch": epoch})
        about = {
            "history": self.rows,
            "wall_seconds": self.wall_seconds,
            "stopped": bool(self.model.stop_training),
            "train_seconds": self._train_seconds,
            "callbacks": [callback.get_state() for callback in self.stateful],
        }
        arrays = [keras.ops.convert_to_numpy(v) for v in state_variables(self.model)]
        save_checkpoint(self._latest, arrays, about)
        write_history(self.directory / "history.csv", self.rows)
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
