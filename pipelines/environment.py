"""What bit-equality depends on: versions, threads, hardware. It stands in environment.json."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tensorflow as tf

from ..models.weight_files import WeightsError, locate
from .recipe import Recipe
from .run import RunError


def effective_threads() -> dict[str, int]:
    """TensorFlow's thread counts as they will act: set in code, by environment, or all cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        kind: getattr(tf.config.threading, f"get_{kind}_op_parallelism_threads")()
        or int(os.environ.get(f"TF_NUM_{kind.upper()}OP_THREADS", 0))
        or cores
        for kind in ("intra", "inter")
    }


def describe() -> dict[str, Any]:
    """Versions, threads and hardware: what stands in environment.json."""
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


def starting_weights(recipe: Recipe) -> dict[str, str] | None:
    """The file that the model or its encoder starts from (``model.weights``, or that of
    ``model.encoder_options``) and its SHA-256; None without one, or where several files hold the
    weights."""
    options = recipe.model.options
    given = options.get("weights") or (options.get("encoder_options") or {}).get("weights")
    if not isinstance(given, str):
        return None
    try:
        place = locate(given)
    except WeightsError:  # the model will say so
        return None
    files = [place, place / "model.keras", place / "model.safetensors"]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return None
    with open(path, "rb") as file:
        return {"file": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def restore(recorded: dict[str, Any], *, strict: bool = True) -> None:
    """Sets the recorded thread counts and checks the rest.

    Raises RunError, naming every difference, where the resumed run could not be bit-equal.
    """
    for kind, count in recorded["threads"].items():
        if effective_threads()[kind] != count:
            with contextlib.suppress(RuntimeError):  # TensorFlow is already running
                getattr(tf.config.threading, f"set_{kind}_op_parallelism_threads")(count)
    now = describe()
    differences = [
        f"{label} was {then!r}, is {present!r}"
        for label, then, present in (
            ("Python", recorded["python"], now["python"]),
            *((n, v, now["packages"].get(n)) for n, v in recorded["packages"].items()),
            ("the processor", recorded["processor"], now["processor"]),
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
