"""Exact search for the nearest rows of a memory, at the speed of matrix products.

1. Distances come from one matrix product, ``|q - m|^2 = |q|^2 - 2 (q.m - |m|^2 / 2)``; offsets are
   further columns of it. The memory is read in chunks, so that the products stay small for any
   number of rows. Within a chunk, the best of every 32 products is taken first; the k' best
   products lie within the k' best such blocks, and only those are searched.
2. k' > k candidates are then ranked by their distances from differences in float64, free of the
   cancellation in the formula above; among equals, the row stored first comes first.
3. Every product has a proven limit to its rounding error, below. A query whose k-th neighbour is
   not nearer, by more than that, than every row left out is searched again in the next finer
   precision: bfloat16 (where the processor multiplies it, at twice the speed), float32, float64.
   Many exact ties, or features with a large common offset (years, say), take this slower way.

Rounding errors: a float32 product of length d is off by at most about d 2^-24 of the norms (Higham:
Accuracy and Stability of Numerical Algorithms, section 3.1). In bfloat16 the inputs are rounded
too, each value by at most 2^-9 of itself: ``q.m - q'.m' = q.(m - m') + (q - q').m'`` is at most
2^-8 |q| |m| (Cauchy-Schwarz); sums are kept in float32, and the result is rounded to 2^-9 of
itself. So that these limits are small, q and m count from the centre of the memory, and |q|^2 and
|m|^2 go into the product: its result is half the squared distance, smallest where it matters. A
row that is nearer than the k-th neighbour, at distance D, has |m| <= |q| + D: no other row needs
a limit.
"""

import functools
from pathlib import Path

import tensorflow as tf

METRICS = ("euclidean", "manhattan", "cosine")
_BLOCK = 32  # products of which the best is taken first
_ROWS = 8192  # most memory rows, and
_QUERIES = 2048  # most queries, in one product
_ELEMENTS = 2**23  # most values of a temporary
_MANY = 256  # queries from which on copying the memory, for more columns or fewer bits, pays
_EMPTY = -3.0e38  # score of a memory row without content
_PARTS = 3  # bfloat16 numbers that hold a float32
_FAST_FORMATS = {"avx512_bf16", "amx_bf16"}  # as Linux names them


class ExactSearch:
    """Finds the k nearest rows of a memory; works in a ``tf.function``, in core TensorFlow ops.

    Args:
        memory: variable [rows, features], float32 or uint8; rows are a multiple of 32.
        squares: variable float64 [rows], the squared norms of the rows.
        total: variable float64 [features], the sum of the rows.
        count: variable int64 [], how many rows are in use.
        k: neighbours to find.
        metric: "euclidean", "manhattan" or "cosine".
    """

    def __init__(self, memory, squares, total, count, k: int, metric: str):
        self._memory, self._squares, self._total = memory, squares, total
        self._count, self._k, self._metric = count, k, metric
        self._padded, self._features = memory.shape
        self._kept = 2 * k + 6  # candidates

    def __call__(self, queries: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The k nearest rows of each query, nearest first.

        Args:
            queries: float32 [n, features].

        Returns:
            ids: int64 [n, k], -1 where fewer than k rows are stored.
            measures: float64 [n, k], distances (euclidean: their squares), infinite there.
        """
        size = max(1, min(_QUERIES, _ELEMENTS // self._features))
        return _by_chunks(self._start, queries, size, (tf.int64, tf.float64), self._k)

    def _start(self, queries):
        fine = [tf.float32, tf.float64]
        if self._metric != "euclidean" or not has_fast_bfloat16():
            return self._search(queries, fine)
        return tf.cond(
            tf.shape(queries)[0] < _MANY,
            lambda: self._search(queries, fine),
            lambda: self._search(queries, [tf.bfloat16, *fine]),
        )

    def _search(self, queries, precisions):
        """ids [n, k] and measures [n, k] of some queries, in the first precision that is sure."""
        precision, *finer = precisions
        find = self._coarse_products if precision == tf.bfloat16 else self._products
        scores, candidates = find(queries, precision)
        ids, measures = self._rank(queries, candidates)
        if not finer:
            return ids, measures
        sure = self._sure(queries, scores[:, -1], measures[:, -1], precision)

        def again():
            doubtful = tf.where(~sure)
            better = self._search(tf.gather(queries, doubtful[:, 0]), finer)
            return tuple(
                tf.tensor_scatter_nd_update(old, doubtful, new)
                for old, new in zip((ids, measures), better, strict=True)
            )

        return tf.cond(tf.reduce_all(sure), lambda: (ids, measures), again)

    def _sure(self, queries, worst, reach, precision):
        """Whether no row outside the candidates can be as near as the k-th neighbour, bool [n].

        ``worst`` is the score of the last candidate, ``reach`` the k-th neighbour's measure.
        """
        all_in = worst <= _EMPTY / 2  # fewer rows than candidates: there is none outside
        worst = tf.cast(worst, tf.float64)
        queries = tf.cast(queries, tf.float64)
        rounding = (self._features + 32) * 2.0**-24 * 1.01
        gpu = tf.config.list_physical_devices("GPU")
        if gpu and tf.config.experimental.tensor_float_32_execution_enabled():
            rounding += 2.0**-9  # inputs of a product are cut to 10 bits there
        if self._metric == "manhattan":
            return all_in | (reach < -worst * (1.0 - rounding))
        if self._metric == "cosine":
            return all_in | (reach < 1.0 - worst - rounding)
        if precision == tf.bfloat16:
            queries -= tf.cast(self._centre(), tf.float64)
        squares = tf.reduce_sum(tf.square(queries), 1)
        size = tf.sqrt(squares)
        norm = size + tf.sqrt(reach)  # of a row as near as that, at most
        error = rounding * tf.square(size + norm)
        if precision == tf.bfloat16:
            error += 2.0**-8 * 1.01 * size * norm
            return all_in | ((0.5 * reach + error) * (1.0 + 2.0**-9 * 1.01) < -worst)
        return all_in | (0.5 * (squares - reach) - error > worst)

    def _centre(self):
        """The mean of the rows, float32 [features]."""
        count = tf.maximum(tf.cast(self._count, tf.float64), 1.0)
        return tf.cast(tf.convert_to_tensor(self._total) / count, tf.float32)

    def _products(self, queries, dtype):
        """Scores (higher is nearer) in ``dtype`` and ids [n, k'] of the best rows."""
        squares = tf.convert_to_tensor(self._squares)
        euclidean = self._metric == "euclidean"
        offsets = self._without_empty(-0.5 * squares if euclidean else tf.zeros_like(squares))
        limit = _ELEMENTS // 8 if self._metric == "manhattan" else _ELEMENTS
        queries = tf.cast(queries, dtype)
        if self._metric == "cosine":
            queries *= _inverse_norm(tf.reduce_sum(tf.square(queries), 1, keepdims=True))

        def best_of(start, rows):
            rows = tf.cast(rows, dtype)
            width = tf.shape(rows)[0]
            if self._metric == "cosine":
                norms = _inverse_norm(tf.slice(squares, [start], [width]))
                rows *= tf.cast(norms, dtype)[:, None]
            offset = tf.cast(tf.slice(offsets, [start], [width]), dtype)
            products = self._multiply(queries, rows, offset)
            best = _best_by_blocks if dtype == tf.float32 else _best
            return best(products, self._kept)

        return self._best_of_all(best_of, tf.shape(queries)[0], dtype, _ROWS, limit)

    def _without_empty(self, offsets):
        """Offsets [rows] that keep rows without content out."""
        used = tf.range(self._padded) < tf.cast(self._count, tf.int32)
        return tf.maximum(tf.where(used, offsets, _EMPTY), _EMPTY)

    def _best_of_all(self, best_of, n, dtype, most, limit):
        """Joins the answers (scores, ids) of ``best_of(start, rows)`` on chunks of the memory.

        A chunk has at most ``most`` rows and ``limit`` values.
        """
        memory, count = tf.convert_to_tensor(self._memory), tf.cast(self._count, tf.int32)
        kept = self._kept
        chunk = max(_BLOCK, min(most, limit // self._features) // _BLOCK * _BLOCK)

        def body(start, scores, ids):
            width = tf.minimum(chunk, self._padded - start)
            rows = tf.slice(memory, [start, 0], [width, self._features])
            new_scores, new_ids = best_of(start, rows)
            scores = tf.concat([scores, new_scores], 1)
            ids = tf.concat([ids, new_ids + start], 1)
            # Earlier rows stand first, and so stay first among equals.
            scores, places = tf.math.top_k(scores, kept)
            return start + chunk, scores, tf.gather(ids, places, batch_dims=1)

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

    def _multiply(self, queries, rows, offset):
        """Scores [n, m]: the larger, the nearer; ``offset`` [m] is added."""
        if self._metric == "manhattan":
            sums = tf.map_fn(lambda q: tf.reduce_sum(tf.abs(rows - q), 1), queries)
            return offset - sums

        def few():
            return tf.matmul(queries, rows, transpose_b=True) + offset

        def many():
            left = tf.concat([queries, tf.ones_like(queries[:, :1])], 1)
            right = tf.concat([rows, offset[:, None]], 1)
            return tf.matmul(left, right, transpose_b=True)

        return tf.cond(tf.shape(queries)[0] < _MANY, few, many)

    def _coarse_products(self, queries, dtype):
        """As :meth:`_products`, for euclidean distances in bfloat16: scores are float32 [n, k'],
        minus half the squared distance."""
        centre = self._centre()
        empty = self._without_empty(tf.zeros([self._padded]))
        queries = queries - centre
        ones = tf.ones([1, _PARTS], dtype)
        norms = -0.5 * tf.reduce_sum(tf.square(queries), 1, keepdims=True)
        left = [tf.cast(queries, dtype), _parts(norms), tf.repeat(ones, tf.shape(queries)[0], 0)]
        left = tf.concat(left, 1)

        def best_of(start, rows):
            rows = tf.cast(rows, tf.float32) - centre
            width = tf.shape(rows)[0]
            norms = -0.5 * tf.reduce_sum(tf.square(rows), 1, keepdims=True)
            norms += tf.slice(empty, [start], [width])[:, None]
            right = tf.concat([tf.cast(rows, dtype), tf.repeat(ones, width, 0), _parts(norms)], 1)
            products = tf.matmul(left, right, transpose_b=True)
            return _best_by_blocks(tf.cast(products, tf.float32), self._kept)

        # Half the bytes, so twice the rows: then the selection is done half as often.
        return self._best_of_all(
            best_of, tf.shape(queries)[0], tf.float32, 2 * _ROWS, 2 * _ELEMENTS
        )

    def _rank(self, queries, candidates):
        """The k nearest of the candidates [n, k'] by float64 differences; then by id."""
        memory, count = tf.convert_to_tensor(self._memory), tf.cast(self._count, tf.int32)
        candidates = tf.sort(candidates, axis=1)

        def some(queries, ids):
            rows = tf.cast(tf.gather(memory, tf.maximum(ids, 0)), tf.float64)
            queries = tf.cast(queries, tf.float64)[:, None, :]
            if self._metric == "manhattan":
                measures = tf.reduce_sum(tf.abs(rows - queries), 2)
            elif self._metric == "euclidean":
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
            negative, places = tf.math.top_k(-measures, self._k)
            ids = tf.where(missing, -1, ids)
            return tf.cast(tf.gather(ids, places, batch_dims=1), tf.int64), -negative

        size = max(1, _ELEMENTS // 2 // (self._kept * self._features))
        return _by_chunks(some, (queries, candidates), size, (tf.int64, tf.float64), self._k)


@functools.cache
def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (told on Linux alone)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return bool(_FAST_FORMATS & set(flags.split()))


def _parts(values):
    """float32 [n, 1] as bfloat16 [n, 3] whose sums they are: 3 times 8 bits."""
    parts = []
    for _ in range(_PARTS):
        parts.append(tf.cast(values, tf.bfloat16))
        values = values - tf.cast(parts[-1], tf.float32)
    return tf.concat(parts, 1)


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
