"""K nearest neighbours, exactly, as a Keras model: learning is remembering.

Cover, Hart: Nearest neighbor pattern classification (1967). ``fit`` takes one epoch, whose training
step writes rows into a memory of known size; a prediction is the vote of the k stored rows nearest
to the query. There is no weight to train and no gradient.

How the search is both fast and exact stands in :mod:`.neighbors`.
"""

from collections.abc import Sequence
from math import prod

import keras
import tensorflow as tf

from .neighbors import METRICS, ExactSearch

WEIGHTS = ("uniform", "distance")
MEMORIES = ("float32", "uint8")
_MULTIPLE = 32  # of rows, as the search wants them


@keras.saving.register_keras_serializable("epochal")
class KNearestNeighbors(keras.Model):
    """See :func:`knn`, which builds one."""

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        capacity: int,
        k: int = 5,
        metric: str = "euclidean",
        weights: str = "uniform",
        task: str = "classification",
        memory: str = "float32",
        name: str = "knn",
        **kwargs,
    ):
        kwargs["dtype"] = "float32"  # under a mixed policy too: rounding would change neighbours
        super().__init__(name=name, **kwargs)
        self.supports_jit = False  # the search's sizes depend on how many rows are stored
        for option, value, known in (
            ("metric", metric, METRICS),
            ("weights", weights, WEIGHTS),
            ("memory", memory, MEMORIES),
            ("task", task, ("classification", "regression")),
        ):
            if value not in known:
                raise ValueError(f"{option} must be one of {', '.join(known)}; got {value!r}.")
        if not 1 <= k <= capacity:
            raise ValueError(f"k must lie between 1 and capacity = {capacity!r}; got {k!r}.")
        if task == "regression" and num_classes != 1:
            raise ValueError(f"Regression predicts one number: num_classes=1; got {num_classes!r}.")
        self.example_shape = tuple(input_shape)
        self.num_classes, self.capacity, self.k = num_classes, capacity, k
        self.metric, self.vote_weights, self.task = metric, weights, task
        self.memory_dtype = memory
        self.features = prod(self.example_shape)
        rows = -(-capacity // _MULTIPLE) * _MULTIPLE

        def variable(name, shape, dtype):
            return self.add_weight(
                shape=shape,
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
                name=name,
            )

        self.memory = variable("memory", (rows, self.features), memory)
        self.squares = variable("squares", (rows,), "float64")  # |m|^2
        self.total = variable("total", (self.features,), "float64")  # the sum of the rows
        label_dtype = "int32" if task == "classification" else "float32"
        self.labels = variable("labels", (rows,), label_dtype)
        self.count = variable("count", (), "int64")
        self._search = ExactSearch(self.memory, self.squares, self.total, self.count, k, metric)
        self.built = True

    # --- Learning -----------------------------------------------------------------------------

    def train_step(self, data) -> dict[str, tf.Tensor]:
        """Stores a batch: x [n, *input_shape], y [n] or [n, 1]. Rows past the capacity are left."""
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        if y is None or (y.shape.rank == 2 and y.shape[-1] != 1) or y.shape.rank not in (1, 2):
            got = "none" if y is None else f"targets of shape {y.shape}"
            raise ValueError(f"KNN stores one class id or number a row, y of shape [n]; got {got}.")
        count = tf.convert_to_tensor(self.count)
        rows = tf.reshape(tf.cast(x, tf.float32), [-1, self.features])
        taken = tf.minimum(tf.shape(rows, tf.int64)[0], self.capacity - count)
        rows = rows[:taken]
        ids = tf.range(count, count + taken)
        stored = tf.cast(rows, self.memory_dtype)
        checks = []
        if self.memory_dtype == "uint8":
            checks = [
                tf.debugging.assert_equal(
                    tf.cast(stored, tf.float32),
                    rows,
                    "A KNN memory of uint8 holds whole numbers from 0 to 255. Leave out the "
                    "scaling of the images, or use memory='float32'.",
                )
            ]
        with tf.control_dependencies(checks):
            squares = tf.reduce_sum(tf.square(tf.cast(rows, tf.float64)), 1)
            labels = tf.cast(tf.reshape(y, [-1])[:taken], self.labels.dtype)
        for variable, values in (
            (self.memory, stored),
            (self.squares, squares),
            (self.labels, labels),
        ):
            variable.value.scatter_update(tf.IndexedSlices(values, ids))
            # A scattered-to variable is copied whole at every later read, unless told otherwise.
            tf.raw_ops.DisableCopyOnRead(resource=variable.value.handle)
        self.total.assign_add(tf.reduce_sum(tf.cast(rows, tf.float64), 0))
        self.count.assign(count + taken)
        return {"stored_rows": tf.convert_to_tensor(self.count)}

    def get_metrics_result(self) -> dict:
        """Loss and metrics of the answers so far; nothing before the first answer."""
        try:
            return super().get_metrics_result()
        except ValueError:  # `fit` asks after storing; the first answer is what builds metrics
            return {}

    def reset(self) -> None:
        """Forgets all rows."""
        self.count.assign(0)
        self.total.assign(tf.zeros([self.features], tf.float64))

    # --- Predicting ---------------------------------------------------------------------------

    def call(self, inputs):
        """[n, *input_shape] -> vote shares [n, num_classes], or the mean target [n, 1]."""
        return self.vote(*self.neighbors(inputs))

    def vote(self, ids: tf.Tensor, distances: tf.Tensor) -> tf.Tensor:
        """What the neighbours found by :meth:`neighbors` say: float32 [n, num_classes].

        With ``weights="distance"`` votes count 1 / distance; where some distance is 0, only those
        neighbours vote. Without any stored row the answer is 0.
        """
        weights = tf.cast(ids >= 0, tf.float32)
        if self.vote_weights == "distance":
            same = tf.cast(distances == 0.0, tf.float32)
            any_same = tf.reduce_any(distances == 0.0, axis=1, keepdims=True)
            weights *= tf.where(any_same, same, tf.math.reciprocal_no_nan(distances))
        weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, 1, keepdims=True))
        labels = tf.gather(tf.convert_to_tensor(self.labels), tf.maximum(ids, 0))
        if self.task == "classification":
            votes = tf.one_hot(labels, self.num_classes) * weights[..., None]
            return tf.reduce_sum(votes, axis=1)
        return tf.reduce_sum(labels * weights, axis=1, keepdims=True)

    def neighbors(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The k nearest stored rows of each query, nearest first. Works in a ``tf.function``.

        Args:
            inputs: [n, *input_shape], numbers of any type.

        Returns:
            ids: int64 [n, k], positions in the order of storing; -1 where fewer than k are stored.
            distances: float32 [n, k], in the metric; infinite there.
        """
        queries = tf.reshape(tf.cast(inputs, tf.float32), [-1, self.features])
        ids, distances = self._search(queries)
        if self.metric == "euclidean":
            distances = tf.sqrt(distances)
        return ids, tf.cast(distances, tf.float32)

    # --- Keras --------------------------------------------------------------------------------

    @property
    def output_shape(self) -> tuple[None, int]:
        """Shape of the answer to a batch."""
        return (None, self.num_classes)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_classes)

    def compute_output_spec(self, inputs, *args, **kwargs):
        return keras.KerasTensor((inputs.shape[0], self.num_classes), "float32")

    def multiply_adds(self, input_shapes, output_shape) -> int:
        """For one query: its product with every row there is room for."""
        return self.capacity * self.features

    def build(self, input_shape=None):
        self.built = True

    def get_config(self):
        return {
            "input_shape": self.example_shape,
            "num_classes": self.num_classes,
            "capacity": self.capacity,
            "k": self.k,
            "metric": self.metric,
            "weights": self.vote_weights,
            "task": self.task,
            "memory": self.memory_dtype,
            "name": self.name,
        }


def knn(
    input_shape: Sequence[int],
    num_classes: int,
    capacity: int,
    k: int = 5,
    metric: str = "euclidean",
    weights: str = "uniform",
    task: str = "classification",
    memory: str = "float32",
) -> KNearestNeighbors:
    """Exact k nearest neighbours. Train it by ``fit`` for one epoch; the optimizer does nothing.

    Args:
        input_shape: shape of one example, of any rank; it is flattened.
        num_classes: number of classes; 1 for regression.
        capacity: rows to make room for, the size of the training set. Rows that come later, as in
            a last batch filled up from the start, are left out.
        k: neighbours that vote, at most ``capacity``.
        metric: "euclidean", "manhattan" or "cosine" (1 - cosine; 1 for a zero vector).
        weights: "uniform" votes, or by "distance": 1 / distance, exact matches alone where any.
        task: "classification" or "regression".
        memory: "float32", or "uint8" in a quarter of the room for whole numbers from 0 to 255.

    Returns:
        Model from [n, *input_shape] to vote shares float32 [n, num_classes], or predictions [n, 1].
        Its method ``neighbors`` gives ids and distances.

    Raises:
        ValueError: an option out of range.
    """
    return KNearestNeighbors(input_shape, num_classes, capacity, k, metric, weights, task, memory)
