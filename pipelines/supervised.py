"""Answers that are classes or numbers: predictions of a split, their metrics and pictures.

========================== =====================================================================
classification
``accuracy``               share of right answers
``macro_f1``               mean of the classes' F1 (classes that occur, as scikit-learn has it)
``log_loss``               -log of the probability given to the truth, in nats; not for KNN's votes
``calibration_error``      expected calibration error: |confidence - accuracy| over 15 equal bins
``top5_accuracy``          truth among the five most probable; with more than 10 classes
regression                 in the target's own units
``mae``, ``rmse``          mean absolute error; root of the mean squared error
``r2``                     1 - squared error / squared deviation from the mean
``mare``                   mean of |error| / max(|target|, 1e-3)
``nll``                    -log density of the truth, in nats; for likelihood losses
``coverage_90``            share of truths inside the central 90% interval; should be 0.9
========================== =====================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..models import losses
from . import forecasts, gallery, pictures, plots
from .intervals import Statistic, intervals

BINS = 15
MARE_FLOOR = 1e-3


def measure(
    model: keras.Model, loss, dataset, split: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """:func:`.evaluate.measure` of classes or numbers; without labels no metrics."""
    predictions = predict_split(model, loss, dataset, split)
    target = dataset.targets(split)
    metrics = {} if target is None else measure_predictions(loss, target, predictions)
    n = len(next(iter(predictions.values())))
    return {"split": split, "examples": n, "metrics": metrics}, predictions


def measure_predictions(
    loss, target: np.ndarray, predictions: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Metrics with intervals of predictions for known targets [n].

    Args:
        loss: that the model was trained with.
        target: class ids, or numbers in their own units.
        predictions: as :func:`predict_split` gives them.
    """
    return intervals(statistic_of(loss, target, predictions), len(target))


def statistic_of(loss, target: np.ndarray, predictions: dict[str, np.ndarray]) -> Statistic:
    """The metrics of :func:`measure_predictions` as a function of resampled positions."""
    if "probabilities" in predictions:
        probabilistic = not isinstance(loss, losses.ZeroOne)
        return classification(target, predictions["probabilities"], probabilistic)
    return regression(target, predictions)


def predict_split(model: keras.Model, loss, dataset, split: str) -> dict[str, np.ndarray]:
    """The model's answers for a split, in order, in the target's own units.

    Returns:
        classification: ``probabilities`` [n,c]; regression: ``prediction`` [n] and, where the loss
        has them, ``stddev`` [n], ``quantiles`` [n,q], ``nll`` [n] (nats) and the bounds
        ``low_90`` and ``high_90`` [n] of the 90% interval; forecasting: the same of each step and
        target, see :func:`.forecasts.in_own_units`.
    """
    batches = dataset.split(split)
    numbers = dataset.task in ("regression", "forecasting")
    likelihood, bounded = _offers(loss) if numbers else (False, False)

    specs = tf.nest.map_structure(
        lambda spec: tf.TensorSpec([None, *spec.shape[1:]], spec.dtype), batches.element_spec
    )
    labelled = isinstance(specs, tuple)
    preprocess = dataset.preprocess

    @tf.function(input_signature=specs if labelled else (specs,), autograph=False)
    def answer(x, y=None):
        outputs = model(x, training=False)
        answers = with_mirror(loss.predict(outputs), model, loss, x, preprocess)
        if bounded:
            answers["low_90"], answers["high_90"] = loss.interval(outputs, 0.9)
        if likelihood:  # one loss an example, before any reduction
            answers["nll"] = loss.call(y, outputs)
        return answers

    # Asked for outright: called, TensorFlow would take the functions of a study's runs for one
    # that is traced again and again, and warn.
    answer = answer.get_concrete_function()
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for name, value in answer(*(batch if labelled else (batch,))).items():
            parts.setdefault(name, []).append(value.numpy())
    found = {name: np.concatenate(values) for name, values in parts.items()}
    if dataset.task == "forecasting":
        return forecasts.in_own_units(found, dataset.target_scale)
    mean, deviation = dataset.target_scale
    for name in ("prediction", "quantiles", "low_90", "high_90"):
        if name in found:
            found[name] = found[name] * np.float32(deviation) + np.float32(mean)
    if "stddev" in found:
        found["stddev"] = found["stddev"] * np.float32(deviation)
    if "nll" in found:  # the density of y is that of the standardised target, over the deviation
        found["nll"] = found["nll"] + np.float32(np.log(deviation))
    return found


def with_mirror(answers: dict[str, Any], model, loss, x, preprocess) -> dict[str, Any]:
    """Answers for images x [n,h,w,c]; where ``preprocess`` says so (``flip_lr(average=True)``) the
    mean of their ``probabilities`` [n,c] and those of the mirror images."""
    if not getattr(preprocess, "mirrored", False):
        return dict(answers)
    there = loss.predict(model(tf.reverse(x, [2]), training=False))
    return {"probabilities": (answers["probabilities"] + there["probabilities"]) / 2}


def _offers(loss) -> tuple[bool, bool]:
    """Whether a regression loss is a likelihood, and whether it gives the 90% interval."""
    outputs = np.zeros((1, loss.num_outputs(1)), np.float32)
    try:
        bounded = hasattr(loss, "interval") and loss.interval(outputs, 0.9) is not None
    except ValueError:  # quantiles other than 5% and 95%
        bounded = False
    return "stddev" in loss.predict(outputs), bounded


def classification(
    target: np.ndarray, probabilities: np.ndarray, probabilistic: bool = True
) -> Statistic:
    """Metrics of class probabilities (or shares of votes).

    Args:
        target: int [n], class ids.
        probabilities: [n, c].
        probabilistic: whether they are meant as probabilities: without it no log loss.
    """
    target = np.asarray(target, np.int64).reshape(len(probabilities))
    classes = probabilities.shape[1]
    rows = np.arange(len(target))
    chosen = probabilities.argmax(axis=1)
    right = (chosen == target).astype(np.float64)
    truth = probabilities[rows, target].astype(np.float64)
    confidence = probabilities[rows, chosen].astype(np.float64)
    # float32 rounds a probability below 1e-45 to 0, and the truth's of 1 - 1e-8 to 1.
    surprise = -np.log(np.clip(truth, np.finfo(np.float32).eps, 1.0))
    bins = plots.bin_of(confidence, BINS)
    # Ranks count ties against the model, so that equal probabilities for all are no success.
    above = (probabilities >= truth[:, None].astype(probabilities.dtype)).sum(axis=1)
    top5 = (above <= 5).astype(np.float64)

    def statistic(index: np.ndarray) -> dict[str, np.ndarray]:
        found = {"accuracy": right[index].mean(axis=-1)}
        hits = _counts(target, index, classes, right)
        both = _counts(target, index, classes) + _counts(chosen, index, classes)
        f1 = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
        found["macro_f1"] = f1.sum(axis=-1) / (both > 0).sum(axis=-1)
        if probabilistic:
            found["log_loss"] = surprise[index].mean(axis=-1)
        gaps = _counts(bins, index, BINS, confidence - right)
        found["calibration_error"] = np.abs(gaps).sum(axis=-1) / index.shape[-1]
        if classes > 10:
            found["top5_accuracy"] = top5[index].mean(axis=-1)
        return found

    return statistic


def _counts(
    labels: np.ndarray, index: np.ndarray, size: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """For each resample (row of ``index``) every label's number, or summed weight: [b, size]."""
    place = np.arange(len(index))[:, None] * size + labels[index]
    heavy = None if weights is None else weights[index].ravel()
    return np.bincount(place.ravel(), heavy, len(index) * size).reshape(-1, size).astype(float)


def regression(target: np.ndarray, predictions: dict[str, np.ndarray]) -> Statistic:
    """Metrics of predictions in the target's units.

    Args:
        target: [n].
        predictions: ``prediction`` [n]; optional ``nll`` [n], ``low_90`` and ``high_90`` [n].
    """
    target = np.asarray(target, np.float64).reshape(-1)
    error = predictions["prediction"].reshape(-1).astype(np.float64) - target
    size, square = np.abs(error), np.square(error)
    relative = size / np.maximum(np.abs(target), MARE_FLOOR)
    # Deviations from the full split's mean: sums of squares of large targets would cancel.
    centred = target - target.mean()
    inside = None
    if "low_90" in predictions:
        inside = (predictions["low_90"] <= target) & (target <= predictions["high_90"])

    def statistic(index: np.ndarray) -> dict[str, np.ndarray]:
        mean_square = square[index].mean(axis=-1)
        deviations = centred[index]
        variance = deviations.var(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):  # equal targets have no R2
            r2 = np.where(variance > 0, 1 - mean_square / variance, np.nan)
        found = {
            "mae": size[index].mean(axis=-1),
            "rmse": np.sqrt(mean_square),
            "r2": r2,
            "mare": relative[index].mean(axis=-1),
        }
        if "nll" in predictions:
            found["nll"] = predictions["nll"].astype(np.float64)[index].mean(axis=-1)
        if inside is not None:
            found["coverage_90"] = inside[index].mean(axis=-1)
        return found

    return statistic


def report(
    model: keras.Model,
    loss,
    dataset,
    split: str,
    predictions: dict[str, np.ndarray],
    directory: Path,
) -> None:
    """:func:`.evaluate.report` of classes or numbers."""
    target = dataset.targets(split).reshape(-1)
    if dataset.task == "classification":
        target = target.astype(np.int64)
        _report_classes(dataset, split, target, predictions["probabilities"], directory)
    else:
        plots.residuals(
            target,
            predictions["prediction"].reshape(-1),
            directory / "residuals.png",
            name=dataset.target_name,
            stddev=predictions.get("stddev"),
        )
    gallery.draw(model, loss, dataset, split, target, predictions, directory)


def _report_classes(
    dataset, split: str, target: np.ndarray, probabilities: np.ndarray, directory: Path
) -> None:
    classes, chosen = dataset.classes, probabilities.argmax(axis=1)
    confidence = probabilities[np.arange(len(target)), chosen]
    counts = np.zeros([len(classes)] * 2, np.int64)
    np.add.at(counts, (target, chosen), 1)
    plots.confusion_matrix(counts, classes, directory / "confusion_matrix.png")
    plots.calibration_curve(confidence, chosen == target, directory / "calibration.png", bins=BINS)
    worst = gallery.surest_mistakes(target, probabilities)[:24]
    mistakes = directory / "worst_mistakes.png"
    if dataset.kind == "image" and len(worst):
        captions = [(classes[chosen[i]], confidence[i], classes[target[i]]) for i in worst]
        pictures.worst_mistakes(dataset.raw(split, worst)["image"], captions, mistakes)
    else:
        mistakes.unlink(missing_ok=True)  # from an earlier model that made mistakes
