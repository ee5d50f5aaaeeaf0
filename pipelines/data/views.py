"""Images to learn a representation from: in training two random views of each, and no labels.

The views are what the recipe's chain of ops makes of an image with two sets of draws; as all
augmentation they are functions of (seed, epoch, index), and of the number of the view.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from ..recipe import Data
from .dataset import Dataset
from .source import Source, SourceError
from .stream import deterministic, parallel

VIEWS = 2


class ViewsDataset(Dataset):
    """A :class:`.dataset.Dataset` of images for ``data.task="representation"``.

    Splits are those of the same source with its labels, so that what a supervised run tests on has
    not been trained on here either. Labels are kept apart: no stream has them.

    Attributes:
        label_names: classes of the labels that the source has; () without.

    Raises:
        SourceError: no images, a batch of 1 or of more images than there are to train on, mixing,
            or no random op, so that views are the same.
    """

    def __init__(self, data: Data, source: Source):
        if source.kind != "image" or not source.splits:
            raise SourceError(
                f"data.task=representation learns from two random views of an image, and "
                f"{data.source} gives {source.kind}{'' if source.splits else ' without examples'}. "
                "Choose a source of images, or another task."
            )
        if data.batch_size == 1:
            raise SourceError(
                "A representation is learnt by telling an image from the others of its batch, and "
                "a data.batch_size of 1 leaves none. Take hundreds, if memory allows."
            )
        if data.mixup is not None or data.cutmix is not None:
            raise SourceError(
                "data.mixup and data.cutmix mix targets too, and a representation is learnt "
                "without. Leave them out."
            )
        super().__init__(data, source)
        if self.sizes["train"] < data.batch_size:
            raise SourceError(
                f"data.batch_size is {data.batch_size}, and {data.source} has {self.sizes['train']}"
                " training images: a batch would have an image several times, which would have to "
                "be told from itself. Set data.batch_size to so many or less, or give more images."
            )
        if not any(entry.random for _, entry in self.preprocess.steps):
            raise SourceError(
                f"No op of {data.ops!r} is random: both views of an image would be the same, and "
                "there would be nothing to learn. Add e.g. random_resized_crop(28)."
            )
        self.label_names = self.classes
        self.task, self.classes, self.target_name, self.num_targets = "representation", (), "", 0
        for reader in self._readers.values():
            reader.views = VIEWS

    def train(self, seed: int, start_step: int = 0) -> tf.data.Dataset:
        """The unbounded stream of full batches of views, float32 [n, 2, h, w, c]."""
        return _images(super().train(seed, start_step))

    def split(self, name: str, positions: np.ndarray | None = None) -> tf.data.Dataset:
        """Examples of a split in evaluation form [n, h, w, c]: all, or those at these positions."""
        reader, rows = self._find(name)
        rows = rows if positions is None else rows[positions]
        return _images(reader.split(rows, self._data.batch_size))

    def labels(self, name: str, positions: np.ndarray | None = None) -> np.ndarray | None:
        """Class ids of what :meth:`split` gives, int64 [n]; None where there are none."""
        if not self.label_names:
            return None
        reader, rows = self._find(name)
        return reader.targets(rows if positions is None else rows[positions])

    def describe(self) -> dict[str, Any]:
        """As the base class has it, and the classes of the labels that are kept apart."""
        return super().describe() | {"label_names": list(self.label_names)}

    def views(self, name: str, positions: np.ndarray) -> tf.data.Dataset:
        """Two random views of the examples at these positions, in order, [n, 2, h, w, c]."""
        reader, rows = self._find(name)
        data, rows = self._data, rows[positions]
        size = min(data.batch_size, len(rows))
        # always the same: epoch 0 of a seed of its own
        stream = reader.train(rows, size, data.split_seed, 0, False, data.shuffle_window)
        batches = _images(stream.take(math.ceil(len(rows) / size)))
        return batches.unbatch().take(len(rows)).batch(size)


def _images(batches: tf.data.Dataset) -> tf.data.Dataset:
    return deterministic(parallel(batches, lambda x, y=None: x))
