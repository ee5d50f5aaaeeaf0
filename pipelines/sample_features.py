"""Features of images that generators are measured by: what a classifier's last layer sees.

Of a classifier trained by us on the same images, which is what our numbers are made with; or of
Inception v3, where the user has its weights: a file of keras.applications, such as
inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5. Published distances come from another copy
of that network (of 2015, with another way of resizing) and from 50,000 samples: close to these, but
not to be mixed with them.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .run import Run, RunError

_BATCH = 256
_INCEPTION = 299  # pixels of a side


def of_images(source: Run | str | os.PathLike, images: np.ndarray) -> np.ndarray:
    """Features float32 [n, d] of images uint8 [n, h, w, c].

    Args:
        source: a finished run of a classifier of such images, or a file of Inception's weights.
        images: c is 1 or 3.

    Raises:
        RunError: a run of another kind or of images of other sizes, a file without such weights.
    """
    if not isinstance(source, Run) and Path(source).is_file():
        return _of_inception(Path(source), images)
    return _of_classifier(source if isinstance(source, Run) else Run(source), images)


def whose(source: Run | str | os.PathLike) -> dict[str, Any]:
    """Which network features come from, as it stands beside the distances.

    Args:
        source: as for :func:`of_images`.

    Returns:
        {"path", "sha256" of the file of its weights, "source" of the data that it was trained on,
        None of Inception}.
    """
    learnt: str | None = None
    if not isinstance(source, Run) and Path(source).is_file():
        place = file = Path(source)
    else:
        run = source if isinstance(source, Run) else Run(source)
        place, file, learnt = run.path, run.path / run.file, run.recipe.data.source
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"path": str(place), "sha256": digest, "source": learnt}


def other_images(whose: dict[str, Any], source: str) -> str | None:
    """What is wrong with features for images of a source, in a sentence, or None: that they were
    learnt from others. ``whose`` as :func:`whose` gives it."""
    learnt = whose["source"]
    if learnt is None or _images_of(learnt) == _images_of(source):
        return None
    return (
        f"the features are those of a classifier of {learnt}, and the images are like those of "
        f"{source}: what it doesn't look at counts for nothing. Give a classifier of these images, "
        "or compare such distances only with each other."
    )


def _images_of(source: str) -> str:
    """Where images lie, with labels or without."""
    scheme, _, place = source.partition(":")
    return place if scheme in ("folder", "images") else source


def _of_classifier(run: Run, images: np.ndarray) -> np.ndarray:
    about, inputs = run.dataset, run.preprocess.inputs
    wanted = [inputs.get(name) for name in ("height", "width", "channels")]
    fits = all(a in (None, b) for a, b in zip(wanted, images.shape[1:], strict=True))
    if about["kind"] != "image" or about["task"] != "classification" or not fits:
        raise RunError(
            f"{run.path} cannot tell how good images {list(images.shape[1:])} are: it is trained "
            f"on {about['kind']} data {wanted} for {about['task']}. Give a classifier of images "
            "of this size."
        )
    model = run.model
    try:
        network = keras.Model(model.inputs, model.layers[-1].input)
    except (AttributeError, ValueError) as error:
        raise RunError(f"The model of {run.path} has no last layer to look into: {error}") from None
    return _look(lambda batch: network(run.preprocess(batch), training=False), images, _BATCH)


def _of_inception(file: Path, images: np.ndarray) -> np.ndarray:
    network = keras.applications.InceptionV3(
        include_top=False, weights=None, input_shape=(_INCEPTION, _INCEPTION, 3), pooling="avg"
    )
    try:
        if file.suffix != ".h5":
            raise ValueError("its name does not end in .h5")
        network.load_weights(file)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{file} holds no weights of keras.applications' InceptionV3 without its top: {error}. "
            "Give such a file, or the directory of a classifier's run."
        ) from None

    def see(batch):
        batch = tf.image.resize(tf.cast(batch, tf.float32), [_INCEPTION, _INCEPTION])
        batch = tf.image.grayscale_to_rgb(batch) if batch.shape[-1] == 1 else batch
        return network(batch / 127.5 - 1.0, training=False)

    return _look(see, images, 32)


def _look(see, images: np.ndarray, size: int) -> np.ndarray:
    ask = tf.function(see, autograph=False, reduce_retracing=True)
    parts = [ask(tf.constant(images[i : i + size])).numpy() for i in range(0, len(images), size)]
    return np.concatenate(parts).reshape(len(images), -1).astype(np.float32)
