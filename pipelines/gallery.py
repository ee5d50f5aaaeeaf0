"""The pictures of what a run's model sees: which examples are shown, and what of them is drawn."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from . import pictures, vision

log = logging.getLogger(__name__)

STAGES = 5  # whose feature maps are shown, at most
COLUMNS = 6  # right examples, and as many wrong ones, at most
_PIXELS = 2**16  # in one pass of Grad-CAM, which keeps the activations of every layer


def draw(
    model: keras.Model,
    loss,
    dataset,
    split: str,
    target: np.ndarray,
    predictions: dict[str, np.ndarray],
    directory: Path | str,
) -> None:
    """Draws filters.png, feature_maps.png and grad_cam.png, each where there is something to show.

    A picture that does not apply is removed if an earlier one is there. One that fails is reported
    in the log and passed over: it is no reason to lose a training.

    Args:
        model: with the outputs that ``loss.predict`` reads.
        loss: a loss of :mod:`epochal.models.losses`.
        dataset: as :func:`epochal.pipelines.data.load` gives it, of classes or numbers.
        split: the one whose examples are shown.
        target: of that split, class ids or numbers [n].
        predictions: of that split, as :func:`.supervised.predict_split` gives them.
        directory: where the pictures go.
    """
    drawn: set[str] = set()
    if dataset.kind == "image":
        with _spared("What the model sees"):
            view = _View(model, loss, dataset, split, target, predictions)
            for name, draw_one in _PICTURES.items():
                with _spared(name):
                    if draw_one(view, Path(directory) / name):
                        drawn.add(name)
                    else:
                        log.debug("%s: there is nothing in %s to show", name, model.name)
    for name in _PICTURES.keys() - drawn:
        (Path(directory) / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _spared(what: str) -> Iterator[None]:
    """Reports an error in the log in place of raising it."""
    try:
        yield
    except Exception as error:
        log.warning("%s could not be drawn (%s: %s)", what, type(error).__name__, error)
        log.debug("where it failed:", exc_info=True)


class _View:
    """A model and the examples that are shown.

    Of classes: the first right one of several classes, then the surest mistakes. Of numbers:
    examples from the lowest to the highest prediction.
    """

    def __init__(self, model, loss, dataset, split, target, predictions):
        self.model, self.loss, self.classes = model, loss, dataset.classes
        if dataset.task == "classification":
            probabilities = predictions["probabilities"]
            chosen, names = probabilities.argmax(axis=1), self.classes
            right = np.flatnonzero(chosen == target)
            _, first = np.unique(target[right], return_index=True)
            wrong = surest_mistakes(target, probabilities)[:COLUMNS]
            places = np.concatenate([_spread(right[first], COLUMNS), wrong])
            self.chosen = chosen[places]
            captions = [
                (names[t], names[c], float(probabilities[i, c]), bool(t == c))
                for i, t, c in zip(places, target[places], self.chosen, strict=True)
            ]
        else:
            values = predictions["prediction"].reshape(-1)
            places = _spread(np.argsort(values, kind="stable"), COLUMNS)
            self.chosen = None
            captions = [(f"{target[i]:.4g}", f"{values[i]:.4g}") for i in places]
        images, self.x = _prepare(dataset.preprocess, dataset.raw(split, places)["image"])
        self.image_shape = images[0].shape
        self.examples = [
            pictures.Example(image, *caption)
            for image, caption in zip(images, captions, strict=True)
        ]


def surest_mistakes(target: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Positions of the examples that are taken for another class, the surest first."""
    chosen = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(chosen != target)
    return wrong[np.argsort(-probabilities[wrong, chosen[wrong]], kind="stable")]


def _spread(values, most: int) -> np.ndarray:
    """At most so many of the values, at equal distances, both ends among them."""
    values = np.asarray(values)
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).round().astype(int)]


def _prepare(preprocess, raw) -> tuple[list[np.ndarray], np.ndarray]:
    """Raw images -> images to look at, cut and sized as the model sees them, and its inputs."""
    seen, inputs = [], []
    for image in raw:
        shown = data = tf.convert_to_tensor(image)[None]
        for place in range(len(preprocess.steps)):
            data = preprocess.run(data, start=place, stop=place + 1)
            # In the original's values as long as these are of its size: then they look natural.
            if data.shape.rank == 4 and (data.dtype == tf.uint8 or data.shape != shown.shape):
                shown = data
        seen.append(shown[0].numpy())
        inputs.append(preprocess.finish(data).numpy())
    return seen, np.concatenate(inputs)


def _draw_filters(view: _View, path: Path) -> bool:
    weights = vision.first_weights(view.model, view.image_shape)
    if weights is None:
        return False
    names = view.classes if weights.dense and len(weights.kernels) == len(view.classes) else ()
    pictures.filters(weights.kernels, path, layer=weights.layer, names=names)
    return True


def _draw_maps(view: _View, path: Path) -> bool:
    some = sorted({0, sum(example.right is not False for example in view.examples) // 2})
    maps = vision.feature_maps(view.model, view.x[some])
    maps = {name: maps[name] for name in _spread(list(maps), STAGES)}
    if not maps:
        return False
    pictures.feature_maps([view.examples[i] for i in some], maps, path)
    return True


def _draw_cam(view: _View, path: Path) -> bool:
    deepest = vision.deepest(view.model)
    if deepest is None:
        return False
    together = max(1, _PIXELS // math.prod(view.x.shape[1:3]))
    heats = []
    for start in range(0, len(view.x), together):
        part = slice(start, start + together)
        chosen = None if view.chosen is None else view.chosen[part]
        score = functools.partial(_score, view.loss, chosen)
        heats.append(vision.grad_cam(view.model, view.x[part], score))
    pictures.grad_cam(view.examples, np.concatenate(heats), path, layer=deepest[0])
    return True


def _score(loss, chosen: np.ndarray | None, outputs: tf.Tensor) -> tf.Tensor:
    """What speaks for each row's answer: the logit of the class chosen, or the number itself."""
    if chosen is None:
        return loss.predict(outputs)["prediction"]
    if outputs.shape[-1] == 1:  # the one logit of two classes speaks for class 1, against class 0
        return tf.where(chosen == 1, outputs[:, 0], -outputs[:, 0])
    return tf.gather(outputs, chosen, axis=1, batch_dims=1)


_PICTURES = {
    "filters.png": _draw_filters,
    "feature_maps.png": _draw_maps,
    "grad_cam.png": _draw_cam,
}
