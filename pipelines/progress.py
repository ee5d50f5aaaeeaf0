"""Progress of training: a bar where there is a terminal to draw on, and a line an epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .terminal import log_to, new_console, raise_if_interrupted


class TerminalProgress(keras.callbacks.Callback):
    """Shows steps within the epoch and, after each epoch, one line with what was recorded."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console
        self._bar = None
        self._shown = 0.0

    def on_train_begin(self, logs=None):
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("loss {task.fields[loss]}"),
                console=self.console,
                transient=True,
            )
            self._bar.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()
        if self._bar:
            text = f"epoch {epoch + 1}/{self.params['epochs']}"
            self._task = self._bar.add_task(text, total=self.params["steps"], loss="")

    def on_train_batch_end(self, batch, logs=None):
        raise_if_interrupted()
        now = time.perf_counter()
        if self._bar and now - self._shown > 0.1:  # reading the loss waits for the device
            self._shown = now
            loss = f"{float(logs['loss']):.4g}" if logs and "loss" in logs else ""
            self._bar.update(self._task, completed=batch + 1, loss=loss)

    def on_epoch_end(self, epoch, logs=None):
        if self._bar:
            self._bar.remove_task(self._task)
        seconds = time.perf_counter() - self._began
        logs = logs or {}
        order = sorted(logs, key=lambda name: (name.startswith("val_"), "loss" not in name))
        values = "  ".join(f"{name} {float(logs[name]):.4g}" for name in order)
        self.console.print(
            f"epoch {epoch + 1:>3}/{self.params['epochs']}  {seconds:5.1f} s  {values}",
            highlight=False,
            soft_wrap=True,
        )

    def on_train_end(self, logs=None):
        self.close()

    def close(self):
        """Takes the bar away; needed where training ends by an error or Ctrl-C."""
        if self._bar:
            self._bar.stop()
            self._bar = None


@contextlib.contextmanager
def on_terminal(stderr: bool = False) -> Iterator[TerminalProgress]:
    """A callback that shows progress, on standard error if asked, with what the library logs."""
    console = new_console(stderr=stderr)
    with contextlib.closing(TerminalProgress(console)) as progress:
        log_to(console)
        yield progress
