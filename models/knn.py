"""K nearest neighbours, exactly, as a Keras model: learning is remembering.

Cover, Hart: Nearest neighbor pattern classification (1967). ``fit`` takes one epoch, whose training
step writes rows into a memory of known size; a prediction is the vote of the k stored rows nearest
to the query. There is no weight to train and no gradient.

How the search is both fast and exact:

1. Distances come from one matrix product, ``|q - m|^2 = |q|^2 - 2 (q.m - |m|^2 / 2)``; the offset
   is one more column of it. The memory is read in chunks, so that the products stay small for any
   number of rows. Within a chunk, the best of every 32 products is taken first; the k' best
   products lie within the k' best such blocks, and only those are searched.
2. k' > k candidates are then ranked by their distances from differences in float64, free of the
   cancellation in the formula above; among equals, the row stored first comes first.
3. The rounding error of a float32 product of length d is at most about d 2^-24 of the norms
   (Higham: Accuracy and Stability of Numerical Algorithms, section 3.1). A query whose k-th
   neighbour is not nearer, by more than that, than every row left out is searched again in float64.
   Many exact ties, or features with a large common offset (years, say), take this slower way.
"""

from collections.abc import Sequence
from math import prod

import keras
import tensorflow as tf

METRICS = ("euclidean", "manhattan", "cosine")
WEIGHTS = ("uniform", "distance")
MEMORIES = ("float32", "uint8")
_BLOCK = 32  # products of which the best is taken first
_ROWS = 8192  # most memory rows, and
_QUERIES = 2048  # most queries, in one product
_ELEMENTS = 2**23  # most values of a temporary
_MANY = 256  # queries from which on copying the memory for one more column pays
_EMPTY = -3.0e38  # score of a memory row without content


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
        self._candidates_kept = 2 * k + 6
        self._padded = -(-capacity // _BLOCK) * _BLOCK

        def variable(name, shape, dtype):
            return self.add_weight(
                shape=shape,
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
                name=name,
            )

        self.memory = variable("memory", (self._padded, self.features), memory)
        self.squares = variable("squares", (self._padded,), "float64")  # |m|^2
        label_dtype = "int32" if task == "classification" else "float32"
        self.labels = variable("labels", (self._padded,), label_dtype)
        self.count = variable("count", (), "int64")
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
        size = max(1, min(_QUERIES, _ELEMENTS // self.features))
        ids, distances = _by_chunks(self._search, queries, size, (tf.int64, tf.float64), self.k)
        if self.metric == "euclidean":
            distances = tf.sqrt(distances)
        return ids, tf.cast(distances, tf.float32)

    def _search(self, queries):
        """ids [n, k] and measures (euclidean: squared) float64 [n, k] of some queries."""
        scores, candidates = self._candidates(queries, tf.float32)
        ids, measures = self._rank(queries, candidates)
        worst = scores[:, -1]
        sure = (measures[:, -1] < self._beyond(queries, worst)) | (worst <= _EMPTY / 2)

        def again():
            doubtful = tf.where(~sure)
            some = tf.gather(queries, doubtful[:, 0])
            better = self._rank(some, self._candidates(some, tf.float64)[1])
            return tuple(
                tf.tensor_scatter_nd_update(old, doubtful, new)
                for old, new in zip((ids, measures), better, strict=True)
            )

        return tf.cond(tf.reduce_all(sure), lambda: (ids, measures), again)

    def _candidates(self, queries, dtype):
        """Scores (higher is nearer) and ids [n, k'] of the best rows, computed in ``dtype``."""
        kept = self._candidates_kept
        memory, squares = tf.convert_to_tensor(self.memory), tf.convert_to_tensor(self.squares)
        count = tf.cast(self.count, tf.int32)
        queries = tf.cast(queries, dtype)
        offsets = -0.5 * squares if self.metric == "euclidean" else tf.zeros_like(squares)
        offsets = tf.where(tf.range(self._padded) < count, offsets, _EMPTY)
        offsets = tf.maximum(offsets, _EMPTY)
        limit = _ELEMENTS // 8 if self.metric == "manhattan" else _ELEMENTS
        chunk = max(_BLOCK, min(_ROWS, limit // self.features) // _BLOCK * _BLOCK)
        if self.metric == "cosine":
            queries *= _inverse_norm(tf.reduce_sum(tf.square(queries), 1, keepdims=True))

        def body(start, scores, ids):
            width = tf.minimum(chunk, self._padded - start)
            rows = tf.cast(tf.slice(memory, [start, 0], [width, self.features]), dtype)
            if self.metric == "cosine":
                norms = _inverse_norm(tf.slice(squares, [start], [width]))
                rows *= tf.cast(norms, dtype)[:, None]
            offset = tf.cast(tf.slice(offsets, [start], [width]), dtype)
            products = self._products(queries, rows, offset)
            best = _best_by_blocks if dtype == tf.float32 else _best
            new_scores, new_ids = best(products, kept)
            scores = tf.concat([scores, new_scores], 1)
            ids = tf.concat([ids, new_ids + start], 1)
            # Earlier rows stand first, and so stay first among equals.
            scores, places = tf.math.top_k(scores, kept)
            return start + chunk, scores, tf.gather(ids, places, batch_dims=1)

        n = tf.shape(queries)[0]
        _, scores, ids = tf.while_loop(
            lambda start, *_: start < count,
            body,
            (0, tf.fill([n, kept], tf.cast(_EMPTY, dtype)), tf.fill([n, kept], -1)),
            shape_invariants=(
                tf.TensorShape([]),
                tf.TensorShape([None, kept]),
                tf.TensorShape([None, kept]),
            ),
            parallel_iterations=1,
        )
        return scores, ids

    def _products(self, queries, rows, offset):
        """Scores [n, m]: the larger, the nearer; ``offset`` [m] is added."""
        if self.metric == "manhattan":
            sums = tf.map_fn(lambda q: tf.reduce_sum(tf.abs(rows - q), 1), queries)
            return offset - sums

        def few():
            return tf.matmul(queries, rows, transpose_b=True) + offset

        def many():
            left = tf.concat([queries, tf.ones_like(queries[:, :1])], 1)
            right = tf.concat([rows, offset[:, None]], 1)
            return tf.matmul(left, right, transpose_b=True)

        return tf.cond(tf.shape(queries)[0] < _MANY, few, many)

    def _beyond(self, queries, worst):
        """No row outside the candidates is nearer than this; ``worst`` is the last one's score."""
        worst = tf.cast(worst, tf.float64)
        rounding = (self.features + 8) * 2.0**-24 * 1.01
        gpu = tf.config.list_physical_devices("GPU")
        if gpu and tf.config.experimental.tensor_float_32_execution_enabled():
            rounding += 2.0**-9  # inputs of a product are cut to 10 bits there
        if self.metric == "manhattan":
            return -worst * (1.0 - rounding)
        if self.metric == "cosine":
            return 1.0 - worst - rounding
        squares = tf.reduce_sum(tf.square(tf.cast(queries, tf.float64)), 1)
        largest = tf.reduce_max(tf.convert_to_tensor(self.squares))
        return squares - 2.0 * (worst + rounding * (tf.sqrt(squares * largest) + largest))

    def _rank(self, queries, candidates):
        """The k nearest of the candidates [n, k'] by float64 differences; then by id."""
        memory, count = tf.convert_to_tensor(self.memory), tf.cast(self.count, tf.int32)
        candidates = tf.sort(candidates, axis=1)

        def some(queries, ids):
            rows = tf.cast(tf.gather(memory, tf.maximum(ids, 0)), tf.float64)
            queries = tf.cast(queries, tf.float64)[:, None, :]
            if self.metric == "manhattan":
                measures = tf.reduce_sum(tf.abs(rows - queries), 2)
            elif self.metric == "euclidean":
                measures = tf.reduce_sum(tf.math.squared_difference(rows, queries), 2)
            else:
                scales = [
                    _inverse_norm(tf.reduce_sum(tf.square(side), 2, keepdims=True))
                    for side in (rows, queries)
                ]
                # 1 - cos, written so that it is 0 for equal directions
                halves = 0.5 * tf.math.squared_difference(rows * scales[0], queries * scales[1])
                zero = (scales[0] * scales[1])[..., 0] == 0.0
                measures = tf.reduce_sum(halves, 2)
                measures = tf.where(zero, tf.ones_like(measures), measures)
            missing = (ids < 0) | (ids >= count)
            measures = tf.where(missing, tf.cast(float("inf"), tf.float64), measures)
            negative, places = tf.math.top_k(-measures, self.k)
            ids = tf.where(missing, -1, ids)
            return tf.cast(tf.gather(ids, places, batch_dims=1), tf.int64), -negative

        size = max(1, _ELEMENTS // 2 // (self._candidates_kept * self.features))
        return _by_chunks(some, (queries, candidates), size, (tf.int64, tf.float64), self.k)

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


def _best(scores, kept: int):
    """The ``kept`` largest of each row (all, if fewer) and their columns; first among equals."""
    return tf.math.top_k(scores, tf.minimum(kept, tf.shape(scores)[1]))


def _best_by_blocks(scores, kept: int):
    """As ``_best`` for any order among equals, a row's length being a multiple of the block."""
    n, blocks = tf.shape(scores)[0], tf.shape(scores)[1] // _BLOCK
    scores = tf.reshape(scores, [n, blocks, _BLOCK])
    _, chosen = tf.math.top_k(tf.reduce_max(scores, axis=2), tf.minimum(kept, blocks), sorted=False)
    inside = tf.reshape(tf.gather(scores, chosen, batch_dims=1), [n, -1])
    values, places = _best(inside, kept)
    columns = tf.gather(chosen, places // _BLOCK, batch_dims=1) * _BLOCK + places % _BLOCK
    return values, columns


def _inverse_norm(squares):
    """1 / sqrt, and 0 for 0."""
    return tf.math.divide_no_nan(tf.ones_like(squares), tf.sqrt(squares))


def _by_chunks(function, inputs, size: int, dtypes, width: int):
    """function(chunk of at most ``size`` rows) -> one [rows, width] a dtype, for all rows."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    n = tf.shape(inputs[0])[0]
    chunks = tf.maximum(1, -(-n // size))  # one for no rows at all: it gives the empty answer

    def body(i, *arrays):
        parts = function(*(t[i * size : (i + 1) * size] for t in inputs))
        return (i + 1, *(a.write(i, p) for a, p in zip(arrays, parts, strict=True)))

    arrays = [
        tf.TensorArray(dtype, chunks, infer_shape=False, element_shape=[None, width])
        for dtype in dtypes
    ]
    _, *arrays = tf.while_loop(lambda i, *_: i < chunks, body, (0, *arrays), parallel_iterations=1)
    return tuple(tf.reshape(array.concat(), [n, width]) for array in arrays)
