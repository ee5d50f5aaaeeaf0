"""Whether a SavedModel answers as the Keras model does, in a process with TensorFlow alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import check_export, forecasts, masked_texts, served_samples, served_text
from .run import Run, RunError
from .served import Served, action_values, examples, respond
from .supervised import with_mirror

# How far an answer may lie from the Keras model's. With 8 or 11 bits of precision a graph whose
# operations are fused rounds elsewhere than single calls do.
TOLERANCE = {"float32": 1e-5, "mixed_float16": 4e-3, "mixed_bfloat16": 3e-2}


def verify(directory: Path | str, run: Run | str, data: Any = None) -> None:
    """Asks an export in a process that has TensorFlow alone and compares with the Keras model.

    Rows of the validation split go in raw (``serving_default``: images as PNG files) and
    preprocessed by the evaluation pipeline (``tensor``), all together and each by itself.

    Args:
        directory: what :func:`.export.export` has written, with the version.
        run: the run that it was made from.
        data: its arrays, where it was trained on such.

    Raises:
        RunError: an answer that differs by more than :data:`TOLERANCE`, relative to the largest
            value (at least 1), naming the output and the difference; or the process failed.
    """
    run = run if isinstance(run, Run) else Run(run)
    compare(Path(directory), run, Served.of(run), *examples(run, data))


def compare(directory: Path, run: Run, served: Served, rows: dict, x: Any) -> None:
    """:func:`verify` for what is open already: ``served`` of the run, and its ``examples``."""
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
