"""NT-Xent: the loss of learning by comparison, over the batches of all replicas together.

Chen, Kornblith, Norouzi, Hinton: A simple framework for contrastive learning of visual
representations (2020), equation 1 and algorithm 1. An image is shown twice, as two random views.
Among the 2N - 1 other views of a batch of N images, each view has to find its partner: softmax
cross-entropy over cosine similarities, divided by a temperature. The 2N - 2 views that are not the
partner are the negatives, those of its own kind (first views for a first view) included.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from .loss_base import TaskLoss, Tensor, check_number

_NEVER = 1e9  # taken from the logit of a view with itself
_ALONE = (
    "A contrastive loss tells an image from the others of its batch, and a batch of 1 has no "
    "others. Set data.batch_size to 2 or more; hundreds are usual."
)


@keras.saving.register_keras_serializable("epochal")
class NTXent(TaskLoss):
    """Normalised, temperature-scaled cross-entropy of two views, as the authors' code has it.

    With z normalised to length 1 and s(i, k) = z_i . z_k / temperature, view i with partner j has
    l(i, j) = -log exp s(i, j) / sum over k != i of exp s(i, k). An image's loss is l of its first
    view plus l of its second: the mean over images is then a sum of two means, as in the code. The
    paper's algorithm 1 divides by 2N instead and so gives half of it. Of views that are all alike
    it is 2 log(2N - 1).

    Inside a ``tf.distribute`` strategy of several replicas the views of all are compared, and
    gradients flow to all: N replicas compute what one would with the whole batch. (Where their
    batches are of unequal sizes, a mean over images is the mean of the replicas' means, as with
    every Keras loss; each image's loss is the same still.)

    Args:
        temperature: the paper has 0.5 on CIFAR-10 and 0.1 on ImageNet (its tables 5 and B.7).
    """

    task = "representation"
    default_name = "nt_xent"
    _options = ("temperature",)

    def __init__(self, temperature: float = 0.5, reduction="sum_over_batch_size", name=None,
                 dtype=None):  # fmt: skip
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.temperature = check_number(self, "temperature", temperature, 0.0)

    def num_outputs(self, num_targets: int = 0) -> int:
        """0: how wide projections are is the model's choice."""
        return 0

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Projections of first and of second views, both [n, d] -> losses of the images [n].

        Raises ValueError for shapes that differ, or a single image, which has no negatives;
        InvalidArgumentError for a single image where only the step itself knows how many there are
        (not in what XLA compiles, which drops such checks).
        """
        logits, partners = self.scores(y_true, y_pred)
        chosen = ops.take_along_axis(logits, ops.expand_dims(partners, -1), axis=1)[:, 0]
        losses = ops.logsumexp(logits, axis=1) - chosen
        return ops.sum(ops.reshape(losses, (2, -1)), axis=0)

    def scores(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of this replica's views against those of all, and where the partners are.

        Args:
            first, second: projections [n, d] of the two views of n images.

        Returns:
            logits: [2n, 2N], rows for first views, then for second; in a row come the N views of
                the other kind, then the N of its own, itself at about -1e9 / temperature.
            partners: int32 [2n], the column of each row's partner.
        """
        if len(first.shape) != 2 or tuple(first.shape) != tuple(second.shape):
            raise ValueError(
                f"NTXent compares projections [n, d] of first views with those of second ones; got "
                f"{tuple(first.shape)} and {tuple(second.shape)}."
            )
        first, second = unit(self._floats(first)), unit(self._floats(second))
        (all_first, all_second), start = _of_all_replicas(first, second)
        if all_first.shape[0] == 1:
            raise ValueError(_ALONE)
        if all_first.shape[0] is None:
            tf.debugging.assert_greater(tf.shape(all_first)[0], 1, _ALONE)
        own = start + ops.arange(ops.shape(first)[0], dtype="int32")
        itself = _NEVER * ops.one_hot(own, ops.shape(all_first)[0], dtype=self.dtype)
        rows = [
            ops.concatenate([z @ ops.transpose(other), z @ ops.transpose(same) - itself], axis=1)
            for z, other, same in ((first, all_second, all_first), (second, all_first, all_second))
        ]
        return ops.concatenate(rows) / self.temperature, ops.concatenate([own, own])

    def predict(self, outputs: Tensor) -> dict[str, Tensor]:
        """{"embedding": the outputs as they are, [n, d]}."""
        return {"embedding": self._floats(outputs)}


def unit(z: Tensor) -> Tensor:
    """Vectors [n, d] divided by their lengths; zero stays zero."""
    return z * ops.rsqrt(ops.maximum(ops.sum(ops.square(z), axis=-1, keepdims=True), 1e-12))


def _of_all_replicas(first: Tensor, second: Tensor) -> tuple[tuple[Any, Any], Any]:
    """The projections of all replicas, in their order, and the row at which ours begin.

    The gradient of ``all_gather`` sums what every replica's loss says about a row.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return (first, second), 0
    sizes = context.all_gather(tf.shape(first)[:1], axis=0)  # the last batch may not divide evenly
    start = tf.cumsum(sizes, exclusive=True)[context.replica_id_in_sync_group]
    return (context.all_gather(first, axis=0), context.all_gather(second, axis=0)), start
