"""How good a model is on a split: metrics with confidence intervals, and the pictures for them.

Every task is measured, and what its numbers do not show is drawn, in a module of its own; how the
intervals are made stands in :mod:`.intervals`.

===================================== ==========================================================
classification, regression            :mod:`.supervised`
forecasting                           :mod:`.forecasts`, :mod:`.forecast_plots`
language-model, translation           :mod:`.texts`
masked-language-model                 :mod:`.masked_texts`
control                               :mod:`.control`
generation                            :mod:`.generated_samples`
representation                        :mod:`.representation`
===================================== ==========================================================
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from . import (
    control,
    forecast_plots,
    forecasts,
    generated_samples,
    masked_texts,
    representation,
    sample_features,
    supervised,
    texts,
)
from .against import compare
from .data import load
from .run import Run, RunError, check_same_data, write_json

log = logging.getLogger(__name__)


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
        the target's own. With ``against`` also "against": what :func:`.against.compare` gives. With
        ``features`` also "features": what :func:`.sample_features.whose` gives; those learnt from
        other data than the run's are warned of.

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
    if features is not None:
        result["features"] = sample_features.whose(features)
        if wrong := sample_features.other_images(result["features"], run.recipe.data.source):
            log.warning("%s", wrong)
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
        predictions as in :func:`.supervised.predict_split`).
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
    if dataset.task == "forecasting":
        predictions = supervised.predict_split(model, loss, dataset, split)
        return forecasts.measure(dataset, split, predictions), predictions
    return supervised.measure(model, loss, dataset, split)


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
    if dataset.task in ("classification", "regression"):
        supervised.report(model, loss, dataset, split, predictions, directory)
