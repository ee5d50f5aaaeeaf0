"""Pictures of what a generator makes: grids of samples, paths between them, nearest real ones."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import keras
import matplotlib as mpl
import numpy as np
import tensorflow as tf
from PIL import Image

from .canvas import BLUE, ORANGE, STYLE, new_figure, save
from .run import write_atomic
from .sample_distances import class_diversity, collapse, diversity, nearest_rows
from .served_samples import Sampler, answers, noise_of

log = logging.getLogger(__name__)

_SIDE = 8  # samples of a grid, across and down
_CLASSES = 10  # across, at most, of a conditional model
_STEPS = 10  # images of a path
_NEAREST = 3
_PIXELS = 48  # of one image in a grid, at least, where it is smaller
_MOVING = 24  # the same of the grids of the epochs, of which there are many
_POINTS = 2_000
_FRAME = 250  # milliseconds of an epoch in epochs.gif


def fixed(
    sampler: Sampler, path: Path, smallest: int = _PIXELS
) -> tuple[np.ndarray, np.ndarray | None]:
    """Writes a grid of the samples of the first seeds, a row after the other; of a conditional
    model a class a column, the first ten classes at most.

    Returns:
        The samples, uint8 [n, h, w, c], and their class ids [n], or None.
    """
    across, ids = _SIDE, None
    if sampler.conditional:
        across = min(sampler.model.options["num_classes"], _CLASSES)
        ids = np.arange(_SIDE * across) % across
    seeds = np.arange(_SIDE * across) // (across if sampler.conditional else 1)
    made = sampler(seeds, ids)
    grid(made, path, across, smallest)
    return made, ids


def grid(images: np.ndarray, path: Path, across: int = _SIDE, smallest: int = _PIXELS) -> None:
    """Writes images uint8 [n, h, w, c] row by row into one PNG, pixels enlarged whole."""
    count, height, width, channels = images.shape
    scale = max(1, -(-smallest // max(height, width)))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    gap, down = 2, -(-count // across)
    high, wide = height * scale + gap, width * scale + gap
    sheet = np.full((down * high + gap, across * wide + gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // across * high + gap, i % across * wide + gap
        sheet[top : top + high - gap, left : left + wide - gap] = image
    blob = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet[..., :3]).save(blob, format="PNG")
    write_atomic(path, blob.getvalue())


def interpolation(model, path: Path, rows: int = 6) -> None:
    """Ways from one noise to another on the sphere (White 2016), ten steps each; a row is a way."""
    size = model.options["noise_size"]
    ends = noise_of(np.arange(2 * rows), size).numpy().reshape(rows, 2, size)
    share = np.linspace(0, 1, _STEPS)[None, :, None]
    start, end = ends[:, :1], ends[:, 1:]
    norms = [np.linalg.norm(z, axis=2, keepdims=True) for z in (start, end)]
    cosine = (start * end).sum(axis=2, keepdims=True) / (norms[0] * norms[1])
    angle = np.arccos(np.clip(cosine, -1 + 1e-6, 1 - 1e-6))
    way = np.sin((1 - share) * angle) * start + np.sin(share * angle) * end
    way = (way / np.sin(angle)).reshape(-1, size).astype(np.float32)
    x: object = tf.constant(way)
    if model.options["conditional"]:
        ids = np.arange(rows).repeat(_STEPS) % model.options["num_classes"]
        x = {"noise": x, "class_id": tf.constant(ids)}
    grid(answers(model)(x)["image"].numpy(), path, across=_STEPS)


def neighbours(images: np.ndarray, train: np.ndarray, path: Path) -> None:
    """Samples in the first row; below each the nearest training images, by pixels."""
    chosen, _ = nearest_rows(images, train, min(_NEAREST, len(train)))
    grid(np.concatenate([images, *(train[column] for column in chosen.T)]), path, len(images))


def scatter(real: np.ndarray, made: np.ndarray, path: Path) -> None:
    """The first two coordinates of real and generated points."""
    figure = new_figure(4.6, 4.6)
    with mpl.rc_context(STYLE):
        axes = figure.add_subplot()
        for points, colour, label in ((real, ORANGE, "real"), (made, BLUE, "generated")):
            shown = points[:_POINTS]
            other = shown[:, 1] if shown.shape[1] > 1 else np.zeros(len(shown))
            axes.scatter(shown[:, 0], other, s=4, color=colour, alpha=0.4, lw=0, label=label)
        low, high = real.min(axis=0)[:2], real.max(axis=0)[:2]
        room = 0.25 * (high - low)
        axes.set(xlim=(low[0] - room[0], high[0] + room[0]))
        if len(low) > 1:
            axes.set(ylim=(low[1] - room[1], high[1] + room[1]), aspect="equal")
        axes.legend(loc="upper right", markerscale=3)
        save(figure, path)


class EpochSamples(keras.callbacks.Callback):
    """After each epoch the samples of the same seeds: ``epoch-0001.png``, ... in a directory, and
    in the end all of them as a picture that moves, ``epochs.gif``. Samples that are all alike, or
    those of a class, are warned of.

    Args:
        directory: where the pictures go.
        real: examples [n, ...] in random order.
        labels: their classes [n]; None without.
    """

    def __init__(self, directory: Path, real: np.ndarray, labels: np.ndarray | None = None):
        super().__init__()
        self.directory, self.real, self.labels = directory, real, labels

    def on_train_begin(self, logs=None):
        self._sampler = Sampler(self.model)

    def on_epoch_end(self, epoch, logs=None):
        path = self.directory / f"epoch-{epoch + 1:04d}.png"
        if self.real.ndim == 4:
            made, ids = fixed(self._sampler, path, _MOVING)
        else:
            seeds = np.arange(1_000)
            ids = seeds % max(self.model.options["num_classes"], 1)
            made = self._sampler(seeds, ids)
            scatter(self.real, made, path)
        within = np.nan
        if self._sampler.conditional:
            within = class_diversity(self.real, self.labels, made, ids)
        if reason := collapse(diversity(self.real, made), None, within):
            log.warning("epoch %d: %s", epoch + 1, reason)

    def on_train_end(self, logs=None):
        files = sorted(self.directory.glob("epoch-*.png"))
        if len(files) < 2:
            return
        frames = [Image.open(path).convert("RGB") for path in files]
        blob = io.BytesIO()
        frames[0].save(
            blob,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=_FRAME,
            loop=0,
        )
        write_atomic(self.directory / "epochs.gif", blob.getvalue())
