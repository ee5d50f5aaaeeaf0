"""The run directory: one folder holds all that a training run leaves behind.

    recipe.json  environment.json  dataset.json  history.csv  metrics.json  README.md  model.keras
    checkpoints/{latest,best-<epoch>}.npz  tensorboard/  plots/*.png  export/<version>/

A file appears whole or not at all. A resume reads ``checkpoints/latest.npz`` (every variable of
model, optimizer and metrics, the callbacks' states, the history) and the best epoch's weights that
it names. ``metrics.json`` is written last: a directory that has it holds a finished run.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..models.hints import did_you_mean
from .recipe import Recipe

MODEL = "model.keras"


class RunError(RuntimeError):
    """A run directory that cannot be used as asked. The message says what to do."""


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to; at the end it is synced and takes the name.

    Whatever happens, the old or the new content is there, whole. The suffix stays the same.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}.tmp.", suffix=path.suffix
    )
    os.close(handle)
    try:
        yield Path(name)
        _sync(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _sync(path.parent)


def _sync(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync(directory: str | Path) -> None:
    """Syncs all that lies in a directory, and itself: renamed after that, it is there whole."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in [*names, "."]:
            _sync(os.path.join(folder, name))


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a file so that, whatever happens, the old or the new content is there, whole."""
    with appearing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """JSON with what JSON lacks (NaN, infinities) as null, so that any reader takes it."""
    write_atomic(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """A value as JSON can hold it: NumPy's as Python's, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


class Run:
    """A run directory, opened for reading. Parts load on first use.

    Args:
        path: a directory that ``train`` has written.
        file: of the model in it; by default that with the weights of the best epoch.

    Raises:
        RunError: there is no such directory, or it holds no run.
    """

    def __init__(self, path: str | os.PathLike, file: str = MODEL):
        self.path, self.file = Path(path), file
        if not _holds(self.path):
            raise RunError(
                f"{self.path} {_no_run(self.path)} Give the directory that `epochal train` "
                "printed, or train one first."
            )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            raise self._lacks(name) from None
        except ValueError as error:
            raise RunError(f"{self.path / name} is damaged ({error}).") from None

    def _lacks(self, name: str) -> RunError:
        if not self.finished:
            return RunError(f"{self.path} has no {name} yet: {self.state}")
        if (reason := self.metrics["stop_reason"]).startswith("diverged"):
            return RunError(f"{self.path} has no {name}: it {reason}. Change the recipe.")
        return RunError(
            f"{self.path} has lost its {name}. Copy the whole directory again from where it "
            "comes, or train another run."
        )

    @cached_property
    def recipe(self) -> Recipe:
        file = self.path / "recipe.json"
        try:
            return Recipe.from_json(file.read_text())
        except (OSError, ValueError) as error:  # also a RecipeError, or bytes that are no text
            raise RunError(f"{file} cannot be read: {error}") from None

    @property
    def finished(self) -> bool:
        return (self.path / "metrics.json").is_file()

    @property
    def state(self) -> str:
        """Where the run stands, and what to do, as half a sentence."""
        if self.finished:
            return f"it has ended: {self.metrics['stop_reason']}."
        again = f"epochal train {self.path / 'recipe.json'} --run-dir {self.path}"
        return f"training has not finished. `{again}` goes on."

    @property
    def metrics(self) -> dict[str, Any]:
        """Final metrics of the best epoch, why training stopped, size and speed."""
        return self._json("metrics.json")

    @property
    def environment(self) -> dict[str, Any]:
        return self._json("environment.json")

    @property
    def dataset(self) -> dict[str, Any]:
        """What the run was trained on: classes, sizes, columns, fitted preprocessing."""
        return self._json("dataset.json")

    @property
    def history(self) -> list[dict[str, float]]:
        """One row an epoch, as recorded."""
        return read_history(self.path / "history.csv")

    @cached_property
    def loss(self):
        """The loss object, which also turns network outputs into predictions."""
        from .choices import build_loss

        return build_loss(self.recipe.loss)

    @cached_property
    def model(self):
        """The trained Keras model, as a rule with the best epoch's weights."""
        import keras

        from ..models import registry

        # These import the classes in model.keras.
        registry.get("models", self.recipe.model.name)
        if self.recipe.algorithm.conformal:
            from ..models import conformal  # noqa: F401
        file = self.path / self.file
        if not file.is_file():
            raise self._lacks(self.file)
        if not zipfile.is_zipfile(file):
            raise RunError(f"{file} is damaged: it is no Keras file. Train the run again.")
        return keras.models.load_model(file, compile=False)

    @cached_property
    def preprocess(self):
        """Raw inputs -> model inputs, with the statistics of the training split."""
        from .data.preprocess import restore

        return restore(self.dataset["preprocess"])


def _no_run(path: Path) -> str:
    """Why there is no run at a path, as a sentence that begins with it."""
    if path.is_dir():
        return "holds no run: it has no recipe.json."
    if path.exists():
        return (
            f"is a file, not the directory of a run{'; its folder is one' * _holds(path.parent)}."
        )
    runs = [str(p) for p in path.parent.glob("*") if _holds(p)]
    return "does not exist." + did_you_mean(str(path), runs, 0.5)


def _holds(path: Path) -> bool:
    return (path / "recipe.json").is_file()


def read_history(path: Path) -> list[dict[str, float]]:
    """Reads history.csv: a list of rows, numbers as floats (epoch and step as ints)."""
    if not Path(path).is_file():
        return []
    with open(path, newline="") as file:
        return [
            {k: int(v) if k in ("epoch", "step") else float(v) for k, v in row.items() if v != ""}
            for row in csv.DictReader(file)
        ]


def write_history(path: Path, rows: list[dict[str, float]]) -> None:
    """Writes rows to history.csv; floats in full precision."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def check_same_data(run: Run, dataset) -> None:
    """Raises RunError where ``dataset`` is not what the run was trained, or begun, on."""
    then, now = run.dataset, dataset.describe()
    old, new = (str(d["about"].get("fingerprint"))[:12] for d in (then, now))
    if old != new:
        raise RunError(
            f"The data at {run.recipe.data.source} are not those of {run.path} (fingerprint "
            f"{old}… then, {new}… now). Restore the data, or train a new run on them."
        )
    if then["sizes"] != now["sizes"]:
        raise RunError(
            f"{run.recipe.data.source} splits into {now['sizes']} now, and into {then['sizes']} "
            f"when {run.path} was begun. Restore the data, or train a new run on them."
        )
