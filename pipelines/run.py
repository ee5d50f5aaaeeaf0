"""The run directory: one folder holds all that a training run leaves behind.

    recipe.json  environment.json  dataset.json  history.csv  metrics.json  README.md  model.keras
    checkpoints/{latest,best}.npz  tensorboard/  plots/*.png  export/<version>/

A file appears whole or not at all. ``checkpoints/latest.npz`` is the one file a resume reads: it
holds every variable of model, optimizer and metrics, the callbacks' states and the history.
``metrics.json`` is written last: a directory that has it holds a finished run.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from .recipe import Recipe, RecipeError


class RunError(RuntimeError):
    """A run directory that cannot be used as asked. The message says what to do."""


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a file so that, whatever happens, the old or the new content is there, whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    blob = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, content: Any) -> None:
    """JSON with what JSON lacks (NaN, infinities) as null, so that any reader takes it."""
    write_atomic(path, json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


class Run:
    """A run directory, opened for reading. Parts load on first use.

    Args:
        path: a directory that ``train`` has written.

    Raises:
        RunError: there is no such directory, or it holds no run.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not (self.path / "recipe.json").is_file():
            what = "holds no run" if self.path.is_dir() else "does not exist"
            raise RunError(
                f"{self.path} {what} (no recipe.json). Give the directory that `epochal train` "
                "printed, or train one first."
            )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            raise RunError(
                f"{self.path} has no {name}: the run has not got that far. "
                f"`epochal train {self.recipe.name} --run-dir {self.path}` resumes it."
            ) from None
        except ValueError as error:
            raise RunError(f"{self.path / name} is damaged ({error}).") from None

    @cached_property
    def recipe(self) -> Recipe:
        return Recipe.from_json((self.path / "recipe.json").read_text())

    @property
    def finished(self) -> bool:
        return (self.path / "metrics.json").is_file()

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
        """The trained Keras model (the best epoch's weights)."""
        import keras

        from ..models import registry

        registry.get("models", self.recipe.model.name)  # imports the classes in model.keras
        file = self.path / "model.keras"
        if not file.is_file():
            raise RunError(
                f"{self.path} has no model.keras: training has not finished. "
                f"`epochal train {self.recipe.name} --run-dir {self.path}` resumes it."
            )
        return keras.models.load_model(file, compile=False)

    @cached_property
    def preprocess(self):
        """Raw inputs -> model inputs, with the statistics of the training split."""
        from .data.preprocess import Preprocess

        return Preprocess.from_dict(self.dataset["preprocess"])


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


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the directory for this process. A dead process's lock is no lock (flock)."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunError(
            f"Another process is training in {directory}. Wait for it, stop it, or give another "
            "--run-dir."
        ) from None
    try:
        for leftover in [*directory.rglob(".*.tmp"), *directory.glob(".model.*.keras")]:
            leftover.unlink()  # what a killed process was writing
        yield
    finally:
        lock.release()


# Checkpoints: arrays by position, since variable paths carry automatic numbers.


def state_variables(model) -> list:
    """Every variable that decides how training goes on: weights, seeds, optimizer, metrics."""
    return [*model.variables, *model.optimizer.variables, *model.metrics_variables]


def save_checkpoint(path: Path, arrays: list[np.ndarray], about: dict[str, Any]) -> None:
    """Writes arrays (by position) and a JSON-able ``about`` as one atomic .npz file."""
    blob = io.BytesIO()
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(blob, about=text, **{f"v{i}": array for i, array in enumerate(arrays)})
    write_atomic(path, blob.getbuffer())


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


# Environment: what bit-equality depends on.


def effective_threads() -> dict[str, int]:
    """TensorFlow's thread counts as they will act: set in code, by environment, or all cores."""
    import tensorflow as tf

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        kind: getattr(tf.config.threading, f"get_{kind}_op_parallelism_threads")()
        or int(os.environ.get(f"TF_NUM_{kind.upper()}OP_THREADS", 0))
        or cores
        for kind in ("intra", "inter")
    }


def describe_environment() -> dict[str, Any]:
    """Versions, threads and hardware: what stands in environment.json."""
    import tensorflow as tf

    packages = ("epochal", "tensorflow", "keras", "numpy", "tensorflow-datasets")
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "threads": effective_threads(),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1") != "0",
        "machine": platform.machine(),
        "processor": _processor(),
        "accelerators": [device.name for device in tf.config.list_physical_devices("GPU")],
    }


def restore_environment(recorded: dict[str, Any], *, strict: bool = True) -> None:
    """Sets the recorded thread counts and checks the rest.

    Raises RunError, naming every difference, where the resumed run could not be bit-equal.
    """
    import tensorflow as tf

    for kind, count in recorded["threads"].items():
        if effective_threads()[kind] != count:
            with contextlib.suppress(RuntimeError):  # TensorFlow is already running
                getattr(tf.config.threading, f"set_{kind}_op_parallelism_threads")(count)
    now = describe_environment()
    differences = [
        f"{label} was {then!r}, is {present!r}"
        for label, then, present in (
            ("TensorFlow", recorded["packages"]["tensorflow"], now["packages"]["tensorflow"]),
            ("Keras", recorded["packages"]["keras"], now["packages"]["keras"]),
            ("the number of threads", recorded["threads"], now["threads"]),
            ("oneDNN", recorded["onednn"], now["onednn"]),
            ("the accelerators", recorded["accelerators"], now["accelerators"]),
        )
        if then != present
    ]
    if differences and strict:
        raise RunError(
            "This run cannot go on bit-equal here: " + "; ".join(differences) + ". Restore that, "
            "start a new run directory, or accept other bits with --allow-differences."
        )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """Lines `key: old -> new` for every value in which two recipes differ."""

    def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
        found = {}
        for key, value in tree.items():
            if isinstance(value, dict):
                found |= flat(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = value
        return found

    a, b = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in {**a, **b} if a.get(k) != b.get(k)]


def check_same_recipe(path: Path, recipe: Recipe) -> None:
    """Raises RunError, showing the difference, where ``path`` holds a run of another recipe."""
    try:
        old = Run(path).recipe
    except RecipeError as error:
        raise RunError(f"{path}/recipe.json cannot be read: {error}") from None
    if differences := recipe_differences(old, recipe):
        raise RunError(
            f"{path} holds a run of another recipe. It differs in "
            + "; ".join(differences)
            + ". Give another --run-dir, or repeat the recipe that stands there."
        )


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
