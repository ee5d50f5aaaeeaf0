"""Images that two data sets have in common: what was learnt from should not be in the test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .data import Dataset


def count_seen(tested: Dataset, learnt: Dataset) -> int:
    """How many images of a test split are among the training images of other data.

    Image files count as equal byte for byte; where one of the two are no files, images do pixel for
    pixel, a gray one as one of three equal channels. The same photo at another size or quality is
    not found.

    Args:
        tested: with a split "test".
        learnt: with a split "train".
    """
    files = [dataset.paths(split) for dataset, split in ((tested, "test"), (learnt, "train"))]
    if any(paths is None for paths in files):
        asked, known = _of_pixels(tested, "test"), _of_pixels(learnt, "train")
    else:
        asked, known = map(_of_files, files)
    known = set(known)
    return sum(digest in known for digest in asked)


def _of_files(paths: np.ndarray) -> Iterator[bytes]:
    for path in paths:
        yield hashlib.sha256(Path(path).read_bytes()).digest()


def _of_pixels(dataset: Dataset, split: str) -> Iterator[bytes]:
    for batch in dataset.images(split).as_numpy_iterator():
        batch = np.broadcast_to(batch, (*batch.shape[:-1], max(3, batch.shape[-1])))
        for image in batch:
            digest = hashlib.sha256(f"{image.dtype}|{image.shape}|".encode())
            digest.update(np.ascontiguousarray(image).data)
            yield digest.digest()
