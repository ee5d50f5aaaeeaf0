"""The case of the benchmark ``input``: from a folder of JPEGs to augmented batches."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

_SIZE, _BATCH = 224, 32


def input_images(side: str, *, quick: bool) -> dict[str, Any]:
    """Images a second that come out of a pipeline, nothing else running: decode, a crop of
    224 x 224, mirroring, RandAugment(2, 9); float32 batches of 32."""
    with tempfile.TemporaryDirectory() as directory:
        photos(Path(directory), 64 if quick else 384)
        batches = iter(_ours(directory) if side == "ours" else _keras(directory))
        for _ in range(1 if quick else 4):  # tf.data finds its number of threads
            assert next(batches)[0].shape == (_BATCH, _SIZE, _SIZE, 3)
        count, began = 0, time.perf_counter()
        while not count or time.perf_counter() - began < (0 if quick else 20):
            next(batches)
            count += 1
        seconds = time.perf_counter() - began
        del batches
    return {"rate": count * _BATCH / seconds, "unit": "images/s"}


def photos(place: Path, count: int) -> None:
    """JPEG files of 500 x 375, cut from scikit-learn's two photographs, in two class folders."""
    from PIL import Image, ImageOps
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for number in range(count):
        photo = photos[number % 2]
        scale = rng.uniform(0.9, 1.6)  # parts of different sharpness, so files of different sizes
        width, height = round(500 / scale), round(375 / scale)
        left = rng.integers(photo.width - width + 1)
        top = rng.integers(photo.height - height + 1)
        part = photo.resize((500, 375), box=(left, top, left + width, top + height))
        part = ImageOps.mirror(part) if rng.integers(2) else part
        folder = place / str(number % 2)
        folder.mkdir(exist_ok=True)
        part.save(folder / f"{number:04d}.jpg", quality=90)


def _ours(directory: str):
    from ..data import load
    from ..recipe import Data

    data = Data(
        source=f"folder:{directory}",
        ops=f"random_resized_crop({_SIZE})|flip_lr|rand_augment(2, 9)",
        batch_size=_BATCH,
        validation_fraction=0.0,
        test_fraction=0.0,
    )
    return load(data).train(0)


def _keras(directory: str):
    """As Keras's guides write it; it has no layer that crops and resizes at random."""
    import keras
    import tensorflow as tf
    from keras import layers

    augment = [
        layers.RandomCrop(_SIZE, _SIZE),
        layers.RandomFlip("horizontal"),
        layers.RandAugment(value_range=(0, 255), num_ops=2, factor=0.9),
    ]
    batches = keras.utils.image_dataset_from_directory(
        directory, image_size=(256, 256), batch_size=_BATCH, seed=0, verbose=False
    )
    for layer in augment:
        batches = batches.map(
            lambda x, y, layer=layer: (layer(x), y), num_parallel_calls=tf.data.AUTOTUNE
        )
    return batches.repeat().prefetch(tf.data.AUTOTUNE)
