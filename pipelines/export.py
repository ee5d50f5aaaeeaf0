"""A run as a SavedModel that takes raw inputs: image files, the columns of a table, numbers.

``export`` writes ``export/<version>/`` with two signatures: ``serving_default`` (raw) and
``tensor`` (preprocessed), the labels as an asset and ``signature.json``, which describes inputs and
outputs and holds a request that works. It then asks the result in a process with TensorFlow alone
and holds the answers against the Keras model's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from .run import Run, RunError, sync, write_json
from .served import Served, examples
from .signature import describe
from .verify import compare

FORMATS = ("saved-model", "huggingface")
# Not core operations, or not able to leave the process that made them.
FORBIDDEN = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc", "XlaCallModule",
                       "XlaLaunch", "XlaLaunchV2", "_XlaRun", "_XlaCompile", "_XlaMerge",
                       "_XlaMustCompile", "CustomCall", "TRTEngineOp"})  # fmt: skip


def export(
    run: Run | str | os.PathLike,
    to: str | os.PathLike | None = None,
    format: str = "saved-model",
    verify: bool = True,
    data: Any = None,
) -> Path:
    """Writes a run as a SavedModel, or of a BERT or GPT as a Hugging Face directory.

    The directory appears whole or not at all.

    Args:
        run: a finished run, or its directory.
        to: the directory that gets ``<version>/``; by default ``export`` in the run directory. The
            version is the next whole number there. Of a Hugging Face directory: the directory
            itself, which must be new; by default ``huggingface`` in the run directory.
        format: "saved-model" or "huggingface".
        verify: ask the result in a process with TensorFlow alone, see :mod:`.verify`; read the
            Hugging Face directory back.
        data: for runs trained on arrays from Python: the same arrays, so that the example request
            and the verification use real rows. Without them rows are made up.

    Returns:
        The directory with the version.

    Raises:
        ValueError: an unknown format.
        RunError: the run is not finished, the model needs operations beyond core TensorFlow or has
            no place in Hugging Face's format, or the export answers otherwise than the model.
    """
    if format not in FORMATS:
        raise ValueError(f"There is no export format {format!r}. Available: {', '.join(FORMATS)}.")
    run = run if isinstance(run, Run) else Run(run)
    if format == "huggingface":
        from .export_huggingface import export_huggingface

        return export_huggingface(run, to, verify)
    served = Served.of(run)
    rows, x = examples(run, data)

    def check(directory):
        if verify:
            compare(directory, run, served, rows, x)

    return publish(served, run, rows, Path(to) if to is not None else run.path / "export", check)


def publish(
    served: tf.Module,
    run: Run,
    rows: dict[str, np.ndarray],
    base: Path,
    check: Callable[[Path], None],
) -> Path:
    """Writes functions as the next version under ``base``, whole or not at all, and returns it.

    Args:
        served: with ``signatures``, ``raw`` and ``names``, as :class:`.served.Served` has them.
        run: a run on the same data: what the inputs and labels mean.
        rows: raw inputs by the signature's names, for the example request.
        base: the directory that gets ``<version>/``.
        check: called with the directory before it is published; raises where it is wrong.

    Raises:
        RunError: it cannot be written, or needs operations beyond core TensorFlow.
    """
    try:
        base.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=base, prefix=".building-"))
    except OSError as error:
        raise RunError(f"Cannot write the export to {base}: {error.strerror}.") from None
    try:
        os.chmod(building, 0o755)
        _write(served, building, run, rows)
        if found := sorted(operations(building) & FORBIDDEN):
            raise RunError(
                f"The model of {run.path} cannot be exported: it uses {', '.join(found)}, which "
                "TensorFlow alone cannot run elsewhere. Build it from keras.ops and core "
                "TensorFlow operations."
            )
        check(building)
        return _next_version(building, base)
    except OSError as error:
        raise RunError(f"The export to {base} failed: {error}.") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write(served: tf.Module, directory: Path, run: Run, rows: dict[str, np.ndarray]) -> None:
    about = run.dataset
    with tempfile.TemporaryDirectory() as place:
        if about["classes"]:
            labels = Path(place) / "labels.txt"
            lines = (" ".join(name.split()) + "\n" for name in about["classes"])
            labels.write_text("".join(lines), encoding="utf-8")
            served.labels = tf.saved_model.Asset(str(labels))
        with _quiet():
            tf.saved_model.save(
                served,
                str(directory),
                signatures=served.signatures,
                # Answers need no gradients, and the functions of custom ones would be saved too.
                options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
            )
    write_json(directory / "signature.json", describe(served, run, rows))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TensorFlow announces every asset and every input whose name is no Python name."""
    loggers = [tf.get_logger(), logging.getLogger("absl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _next_version(building: Path, base: Path) -> Path:
    sync(building)
    while True:
        taken = [int(entry.name) for entry in base.iterdir() if entry.name.isdigit()]
        directory = base / str(max(taken, default=0) + 1)
        try:
            os.rename(building, directory)
        except OSError:
            if directory.exists():  # another export took the number in between
                continue
            raise
        return directory


def operations(directory: Path | str) -> set[str]:
    """The types of all operations in a SavedModel, its function library included.

    A function that XLA alone may run (``jit_compile=True``) has no operation of its own for that,
    but the attribute ``_XlaMustCompile``, which is named with them.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((Path(directory) / "saved_model.pb").read_bytes())
    found: set[str] = set()
    for graph in saved.meta_graphs:
        found |= {node.op for node in graph.graph_def.node}
        for function in graph.graph_def.library.function:
            found |= {node.op for node in function.node_def}
            if function.attr["_XlaMustCompile"].b:
                found.add("_XlaMustCompile")
    return found
