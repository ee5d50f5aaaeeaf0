"""How good a model is on a split: metrics with confidence intervals, and the pictures for them.

Every metric comes with a 95% interval: the percentile bootstrap over the split's examples (Efron
1979), 1,000 seeded resamples that all metrics share. It says how far the value would move with
another draw of test examples; it does not contain the randomness of training. Resampling adds noise
to every bin of the calibration error and so raises it on average: its resamples are moved down by
that average before the percentiles are taken, and cut off at 0.

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
forecasting                see :mod:`.forecasts`
========================== =====================================================================

Those of language models and translations stand in :mod:`.texts`, those of models that fill gaps in
texts in :mod:`.masked_texts`, those of environments in
:mod:`.control`, those of generators in :mod:`.generated_samples`, those of representations in
:mod:`.representation`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.stats import DegenerateDataWarning, bootstrap

from ..models import losses
from . import (
    control,
    forecast_plots,
    forecasts,
    gallery,
    generated_samples,
    masked_texts,
    pictures,
    plots,
    representation,
    texts,
)
from .against import compare
from .data import load
from .run import Run, RunError, check_same_data, write_json

log = logging.getLogger(__name__)

LEVEL = 0.95
RESAMPLES = 1_000
BINS = 15
MARE_FLOOR = 1e-3
_RAISED = ("calibration_error",)  # by resampling, on average; never below 0
_CELLS = 2**21  # resampled indices held at a time: 16 MiB, and a few times that in metrics


def evaluate(
    run: Run | str | os.PathLike,
    split: str = "test",
    data: Any = None,
    video: bool = False,
    features: str | os.PathLike | None = None,
    against: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Measures a finished run on a split; writes evaluation-<split>.json and pictures.

    The pictures of the test split go into ``plots/``, those of another into ``plots/<split>/``:
    confusion_matrix.png and calibration.png of classes, residuals.png of numbers, forecasts.png and
    error_by_horizon.png of forecasts; of images also worst_mistakes.png and, as far as the model
    has such, filters.png, feature_maps.png and grad_cam.png. :data:`PICTURES` says what each shows.

    Args:
        run: a run, or its directory.
        split: "test", "validation" or "train".
        data: for runs trained on arrays from Python: the same arrays.
        video: for environments: also write plots/episode.gif, an episode as the model plays it.
        features: for generators of images: the run of a classifier of the same images, by whose
            last layer samples are compared with the split; or a file of Inception's weights.
        against: another run on the same examples, or "tf-idf" or "tf-idf-characters"; see
            :mod:`.against`.

    Returns:
        ``{"split": ..., "examples": n, "metrics": {name: {"value", "low", "high"}}}``; units are
        the target's own. With ``against`` also "against": what :func:`.against.compare` gives.

    Raises:
        RunError: the run is not finished; the data are not those that it was trained on, or have
            no such split.
        SourceError: the data cannot be opened.
    """
    run = run if isinstance(run, Run) else Run(run)
    model = run.model  # before any data are read: an unfinished run has none
    if run.recipe.data.source == "python" and data is None:
        raise RunError(
            f"{run.path} was trained on arrays from Python. Give the same ones: "
            f"evaluate({str(run.path)!r}, {split!r}, data=(x, y))."
        )
    dataset = load(run.recipe.data, data)
    check_same_data(run, dataset)
    if split not in dataset.sizes:
        raise RunError(
            f"The data of {run.path} have no split {split!r}; there are "
            f"{', '.join(dataset.sizes)}. Choose one of these."
            if dataset.sizes
            else f"The data of {run.path}, {run.recipe.data.source}, have no examples to measure."
        )
    if video and dataset.task != "control":
        raise RunError(f"A video is of an episode; {run.recipe.data.source} is not played.")
    if features is not None and dataset.task != "generation":
        raise RunError(f"Features are for generators; {run.path} is a run for {dataset.task}.")
    result, predictions = measure(model, run.loss, dataset, split, features)
    if against is not None:
        result["against"] = compare(run, predictions, dataset, split, against)
    write_json(run.path / f"evaluation-{split}.json", result)
    # The trainer's plots in plots/ are those of the test split.
    plots_of = run.path / "plots" if split == "test" else run.path / "plots" / split
    report(model, run.loss, dataset, result, predictions, plots_of)
    if video:
        control.video(model, dataset, plots_of / "episode.gif")
    return result


def measure(
    model: keras.Model, loss, dataset, split: str, features: str | os.PathLike | None = None
) -> tuple[dict[str, Any], dict]:
    """Predicts a split and computes its metrics with intervals.

    Args:
        model: with the outputs that ``loss.predict`` reads.
        loss: a loss of :mod:`epochal.models.losses`.
        dataset: as :func:`epochal.pipelines.data.load` gives it.
        split: one of ``dataset.sizes``.
        features: as in :func:`evaluate`.

    Returns:
        (result as in :func:`evaluate`, of forecasts with what :func:`.forecasts.measure` adds;
        predictions as in :func:`predict_split`).
    """
    if dataset.task in texts.TASKS:
        return texts.measure(model, dataset, split)
    if dataset.task == masked_texts.TASK:
        return masked_texts.measure(model, dataset, split)
    if dataset.task == "control":
        return control.measure(model, dataset, split)
    if dataset.task == "generation":
        return generated_samples.measure(model, loss, dataset, split, features)
    if dataset.task == "representation":
        return representation.measure(model, dataset, split)
    predictions = predict_split(model, loss, dataset, split)
    if dataset.task == "forecasting":
        return forecasts.measure(dataset, split, predictions), predictions
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

    @tf.function(input_signature=specs if labelled else (specs,), autograph=False)
    def answer(x, y=None):
        outputs = model(x, training=False)
        answers = dict(loss.predict(outputs))
        if bounded:
            answers["low_90"], answers["high_90"] = loss.interval(outputs, 0.9)
        if likelihood:  # one loss an example, before any reduction
            answers["nll"] = loss.call(y, outputs)
        return answers

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


def _offers(loss) -> tuple[bool, bool]:
    """Whether a regression loss is a likelihood, and whether it gives the 90% interval."""
    outputs = np.zeros((1, loss.num_outputs(1)), np.float32)
    try:
        bounded = hasattr(loss, "interval") and loss.interval(outputs, 0.9) is not None
    except ValueError:  # quantiles other than 5% and 95%
        bounded = False
    return "stddev" in loss.predict(outputs), bounded


# Statistics: functions from resampled positions [b, n] to {metric: [b]}, so that one bootstrap
# serves all metrics of a split.

Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]


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


def intervals(statistic: Statistic, n: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Values of all metrics on n examples with their 95% percentile bootstrap intervals.

    Args:
        statistic: resampled positions int [b, n] -> {metric: [b]}.
        n: examples. A single example has no interval: its bounds are NaN.
        seed: of the resamples.

    Returns:
        {metric: {"value", "low", "high"}}.
    """
    everything = np.arange(n)
    values = {name: float(v[0]) for name, v in statistic(everything[None]).items()}
    if n < 2:
        return {k: {"value": v, "low": np.nan, "high": np.nan} for k, v in values.items()}

    def stacked(index: np.ndarray, axis: int) -> np.ndarray:
        found = statistic(np.atleast_2d(index))
        table = np.stack([found[name] for name in values])
        return table if index.ndim > 1 else table[:, 0]

    with warnings.catch_warnings():
        # R2 of a resample of equal targets is NaN, and so are then its bounds: SciPy need not say.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (everything,),
            stacked,
            n_resamples=RESAMPLES,
            batch=max(1, min(RESAMPLES, _CELLS // n)),
            confidence_level=LEVEL,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(seed),
        )
    interval, averages = found.confidence_interval, found.bootstrap_distribution.mean(axis=-1)
    result = {}
    for name, low, high, average in zip(values, *interval, averages, strict=True):
        if name in _RAISED:
            low, high = (max(0.0, bound - average + values[name]) for bound in (low, high))
        result[name] = {"value": values[name], "low": float(low), "high": float(high)}
    return result


PICTURES = {
    "learning_curves.png": "what was recorded, epoch by epoch",
    "confusion_matrix.png": "which class is taken for which",
    "calibration.png": "whether answers are right as often as they claim to be",
    "worst_mistakes.png": "the images that the model is most sure of and wrong",
    "filters.png": "the first layer's weights, as images",
    "feature_maps.png": "what each stage of the network makes of two images",
    "grad_cam.png": "where in the image the answer comes from",
    "accuracy_by_length.png": "how many answers are exact, by the length of the source",
    "attention.png": "what is looked at while a translation is written",
    "returns.png": "how well episodes go, one by one",
    "episode.gif": "an episode, played by the model",
    "samples.png": "what is made of the first seeds, or made and real points",
    "interpolation.png": "ways from one sample to another",
    "neighbours.png": "samples, and below each the nearest training images",
    "baseline.png": "what a Gaussian mixture on principal components makes instead",
    "embeddings.png": "which images the representation puts beside each other",
    "residuals.png": "predicted and true values, and their differences",
    "forecasts.png": "a good, a middling and a bad forecast, and what happened",
    "error_by_horizon.png": "how the error grows with the distance, beside naive forecasts",
}
"""What ``plots/`` can hold; the first is drawn by the trainer, the others by :func:`report`."""


def report(
    model: keras.Model,
    loss,
    dataset,
    result: dict[str, Any],
    predictions: dict[str, np.ndarray],
    directory: Path | str,
) -> None:
    """Draws what the numbers do not show, of :data:`PICTURES` what fits the task and the model.

    Args:
        model, loss, dataset: what was measured.
        result: as :func:`measure` gives it.
        predictions: as :func:`measure` gives them.
        directory: where the pictures go. Those of an earlier report are replaced or removed.
    """
    directory, split = Path(directory), result["split"]
    if dataset.task in texts.TASKS:
        texts.report(model, dataset, predictions, directory)
    if dataset.task == "forecasting":
        forecast_plots.draw(dataset, result, predictions, directory)
    if dataset.task == "control":
        control.report(predictions, directory)
    if dataset.task == "generation":
        generated_samples.report(model, predictions, directory)
    if dataset.task == "representation":
        representation.report(dataset, split, predictions, directory)
    if dataset.task not in ("classification", "regression"):
        return
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
