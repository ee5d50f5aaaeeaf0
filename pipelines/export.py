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
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import check_export, forecasts, masked_texts, served_samples, served_text
from .run import Run, RunError, sync, write_json
from .served import Served, action_values, examples, respond
from .signature import describe
from .supervised import with_mirror

FORMATS = ("saved-model", "huggingface")
# How far an answer may lie from the Keras model's. With 8 or 11 bits of precision a graph whose
# operations are fused rounds elsewhere than single calls do.
TOLERANCE = {"float32": 1e-5, "mixed_float16": 4e-3, "mixed_bfloat16": 3e-2}
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
        verify: ask the result in a process with TensorFlow alone, see :func:`verify`; read the
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
            _compare(directory, run, served, rows, x)

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


def verify(directory: Path | str, run: Run | str, data: Any = None) -> None:
    """Asks an export in a process that has TensorFlow alone and compares with the Keras model.

    Rows of the validation split go in raw (``serving_default``: images as PNG files) and
    preprocessed by the evaluation pipeline (``tensor``), all together and each by itself.

    Args:
        directory: what :func:`export` has written, with the version.
        run: the run that it was made from.
        data: its arrays, where it was trained on such.

    Raises:
        RunError: an answer that differs by more than :data:`TOLERANCE`, relative to the largest
            value (at least 1), naming the output and the difference; or the process failed.
    """
    run = run if isinstance(run, Run) else Run(run)
    _compare(Path(directory), run, Served.of(run), *examples(run, data))


def _compare(directory: Path, run: Run, served: Served, rows: dict, x: Any) -> None:
    with tf.device("/CPU:0"):  # where the other process computes too
        if x is None:
            own = {own: tf.constant(rows[key]) for own, key in served.names.items()}
            x = tf.nest.map_structure(lambda tensor: tensor.numpy(), run.preprocess.serve(own))
        expected = _keras_answers(run, x)
    request = {f"serving_default/{name}": value for name, value in rows.items()}
    request |= {f"tensor/{k}": v for k, v in (x if isinstance(x, dict) else {"x": x}).items()}
    require_answers(directory, request, expected, run.recipe.algorithm.precision)


def require_answers(
    directory: Path,
    request: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    precision: str = "float32",
) -> float:
    """Asks every signature of a request alone (:func:`ask_alone`) and compares all its outputs.

    Returns by how much a number among them differs at most.

    Raises RunError for an answer other than ``expected`` {output: [n, ...]}, which all signatures
    of the request should give. Below float32 rounding may tip a label or a word over, and only
    the numbers are compared.
    """
    tolerance = TOLERANCE[precision]
    answer = ask_alone([directory], [request])[0]
    gaps = [0.0]
    for signature in dict.fromkeys(key.partition("/")[0] for key in request):
        for name, right in expected.items():
            if right.dtype.kind != "f" and precision != "float32":
                continue
            for suffix in ("", "#alone"):
                gap = _require_equal(
                    answer[f"{signature}/{name}{suffix}"],
                    right,
                    f"output {name!r} of signature {signature!r}"
                    + (", asked row by row," if suffix else ""),
                    directory,
                    tolerance,
                )
                gaps.append(gap)
    return max(gaps)


def _keras_answers(run: Run, x: Any) -> dict[str, np.ndarray]:
    if run.dataset["task"] in served_text.TASKS:
        return served_text.expected(run.model, run.preprocess, x)
    if run.dataset["task"] == "control":
        return {name: value.numpy() for name, value in action_values(run.model, x).items()}
    if run.dataset["task"] == "generation":
        return served_samples.expected(run.model, x)
    if run.dataset["task"] == masked_texts.TASK:
        return {name: v.numpy() for name, v in masked_texts.embedder(run.model)(x).items()}
    outputs, more = respond(run.model, x)
    outputs = with_mirror(run.loss.predict(outputs), run.model, run.loss, x, run.preprocess)
    outputs = {k: keras.ops.convert_to_numpy(v) for k, v in outputs.items()}
    about = run.dataset
    if about["task"] == "classification":
        chosen = outputs["probabilities"].argmax(axis=-1)
        labels = np.array([about["classes"][i].encode() for i in chosen], object)
        answers = {"probabilities": outputs["probabilities"], "class_id": chosen, "label": labels}
    elif about["task"] == "forecasting":
        answers = forecasts.answers(outputs, about["target_scale"])
    else:
        mean, deviation = about["target_scale"]
        shift = {"stddev": 0.0}
        answers = {k: v * deviation + shift.get(k, mean) for k, v in outputs.items()}
    if more:  # of neighbours at the same distance either may come first
        answers["distances"] = more["distances"].numpy()
    return answers


def _require_equal(
    given: np.ndarray, right: np.ndarray, what: str, directory: Path, tolerance: float
) -> float:
    """The largest difference of two numbers. Raises RunError where it is too large."""
    if given.shape != right.shape:
        difference = f"has shape {given.shape}, the model's {right.shape}"
    elif right.dtype == np.uint8:  # pixels: a last bit may tip a value over to the next
        gap = int(np.max(np.abs(given.astype(int) - right), initial=0))
        if gap <= 1:
            return float(gap)
        difference = f"differs from the model's by up to {gap}"
    elif right.dtype.kind != "f":
        wrong = np.flatnonzero(given != right)
        if not len(wrong):
            return 0.0
        difference = f"is {given[wrong[0]]!r} in row {wrong[0]}, the model's {right[wrong[0]]!r}"
    else:
        finite = np.isfinite(right)
        gap = float(np.max(np.abs(given[finite].astype(float) - right[finite]), initial=0.0))
        most = float(np.max(np.abs(right[finite]), initial=1.0))
        same = np.array_equal(given[~finite], right[~finite], equal_nan=True)
        if same and gap <= tolerance * most:
            return gap
        difference = f"differs from the model's by up to {gap:.3g}"
    raise RunError(
        f"The export does not answer as the model does: {what} {difference}. "
        f"Do not serve {directory}; please report this with the recipe."
    )


def ask_alone(
    directories: Sequence[Path | str], requests: Sequence[dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Sends requests to SavedModels in one process with TensorFlow alone.

    Args:
        directories: SavedModels.
        requests: one for each: ``SIGNATURE/INPUT`` -> [n, ...].

    Returns:
        For each ``SIGNATURE/OUTPUT`` -> [n, ...] and, from single rows, ``SIGNATURE/OUTPUT#alone``.

    Raises:
        RunError: the process failed; the message has its last lines.
    """
    with tempfile.TemporaryDirectory() as place:
        arguments, answers = [], []
        for number, (directory, request) in enumerate(zip(directories, requests, strict=True)):
            asked, answered = (f"{place}/{kind}{number}.npz" for kind in ("request", "answer"))
            np.savez(asked, **check_export.pack(request))
            # Absolute, since the process stands in another directory.
            arguments += [str(Path(directory).resolve()), asked, answered]
            answers.append(answered)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            [sys.executable, "-I", check_export.__file__, *arguments],
            env=environment,
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = " ".join(done.stderr.strip().splitlines()[-3:])
            raise RunError(
                "The export does not work in a process with TensorFlow alone (exit code "
                f"{done.returncode}): {last}"
            )
        found = []
        for path in answers:
            with np.load(path, allow_pickle=False) as file:
                found.append(check_export.unpack(file))
        return found
