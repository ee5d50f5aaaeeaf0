"""Exact nearest neighbours against scikit-learn and against a stable sort in float64."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from epochal.models import create_model, knn, neighbors
from epochal.models.losses import ZeroOne


def remember(x, y, batch_size=32, capacity=None, **options):
    """A fitted model; regression where y is not whole."""
    regression = y.dtype.kind == "f"
    model = create_model(
        "knn",
        input_shape=x.shape[1:],
        num_classes=1 if regression else int(y.max()) + 1,
        capacity=capacity or len(x),
        task="regression" if regression else "classification",
        **options,
    )
    model.compile(loss="mse" if regression else ZeroOne())
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
    return model


def distances(queries, x, metric):
    """All distances in float64 from differences; euclidean ones squared."""
    q, m = queries.astype("float64")[:, None], x.astype("float64")[None]
    if metric == "euclidean":
        return ((q - m) ** 2).sum(-1)
    if metric == "manhattan":
        return np.abs(q - m).sum(-1)
    norms = np.linalg.norm(q, axis=-1) * np.linalg.norm(m, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norms > 0, 1 - (q * m).sum(-1) / norms, 1.0)


def nearest(queries, x, k, metric="euclidean"):
    """ids by a stable sort: among equals the lower id first."""
    return np.argsort(distances(queries, x, metric), axis=1, kind="stable")[:, :k]


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def small_chunks(monkeypatch, request):
    """Many chunks of everything, at sizes that a test can afford; with and without products in
    bfloat16 first, whatever the processor."""
    monkeypatch.setattr(neighbors, "has_fast_bfloat16", lambda: request.param)
    monkeypatch.setattr(neighbors, "_ROWS", 64)
    monkeypatch.setattr(neighbors, "_QUERIES", 16)
    monkeypatch.setattr(neighbors, "_MANY", 8)


@pytest.mark.parametrize("metric", knn.METRICS)
@pytest.mark.parametrize("weights", knn.WEIGHTS)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_it_answers_as_scikit_learn(metric, weights, task, small_chunks):
    random = np.random.default_rng(0)
    x = random.normal(size=(203, 7)).astype("float32")
    y = random.integers(0, 3, 203) if task == "classification" else random.normal(size=203)
    # Ten queries are stored rows: distance 0, where the weights by distance have a rule.
    queries = np.concatenate([x[:10], random.normal(size=(31, 7)).astype("float32")])
    model = remember(x, y, k=4, metric=metric, weights=weights)
    peer = {"classification": KNeighborsClassifier, "regression": KNeighborsRegressor}[task]
    peer = peer(4, metric=metric, weights=weights, algorithm="brute").fit(x.astype("float64"), y)
    near, ids = peer.kneighbors(queries.astype("float64"))
    ours = model.neighbors(queries)
    np.testing.assert_array_equal(ours[0], ids)
    np.testing.assert_allclose(ours[1], near, rtol=1e-5, atol=1e-6)
    assert (ours[0].dtype, ours[1].dtype) == (tf.int64, tf.float32)
    answers = model.predict(queries, batch_size=41, verbose=0)
    if task == "classification":
        np.testing.assert_allclose(answers, peer.predict_proba(queries), atol=1e-6)
        np.testing.assert_array_equal(answers.argmax(1), peer.predict(queries))
    else:
        np.testing.assert_allclose(answers, peer.predict(queries)[:, None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
@pytest.mark.parametrize("memory", knn.MEMORIES)
def test_among_equals_the_row_stored_first_comes_first(metric, memory, small_chunks):
    random = np.random.default_rng(1)
    x = random.integers(0, 3, (300, 3)).astype("float32")  # 27 points: every distance is tied
    queries = random.integers(0, 3, (40, 3)).astype("float32")
    model = remember(x, np.zeros(300, int), k=6, metric=metric, memory=memory)
    assert model.memory.dtype == memory
    np.testing.assert_array_equal(model.neighbors(queries)[0], nearest(queries, x, 6, metric))


def test_equal_rows_more_than_candidates(small_chunks):
    x = np.zeros((200, 2), "float32")
    x[5] = 1.0
    model = remember(x, np.zeros(200, int), k=3)
    ids, near = model.neighbors(np.array([[0.0, 0.0], [1.0, 1.0]], "float32"))
    np.testing.assert_array_equal(ids, [[0, 1, 2], [5, 0, 1]])
    np.testing.assert_allclose(near, [[0, 0, 0], [0, np.sqrt(2), np.sqrt(2)]], rtol=1e-6)


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_a_common_offset_does_not_blur_the_distances(offset, small_chunks):
    """float32 squares of 1e5 are exact to 500 or so; the neighbours lie closer than that."""
    random = np.random.default_rng(2)
    x = (offset + random.normal(size=(400, 5))).astype("float32")
    queries = (offset + random.normal(size=(30, 5))).astype("float32")
    model = remember(x, np.zeros(400, int), k=5)
    ids, near = model.neighbors(queries)
    np.testing.assert_array_equal(ids, nearest(queries, x, 5))
    expected = np.sqrt(np.sort(distances(queries, x, "euclidean"), 1)[:, :5])
    np.testing.assert_allclose(near, expected, rtol=1e-6)


@pytest.mark.parametrize("spread", [1.0, 2.0**-9, 2.0**-16])
def test_rows_that_bfloat16_cannot_tell_apart_are_found(spread, small_chunks):
    """Around 3 its numbers are 2^-7 apart: at the smaller spreads it sees hundreds of equals."""
    random = np.random.default_rng(4)
    corners = random.choice([-3.0, 3.0], size=(8, 12))
    x = (corners[random.integers(0, 8, 600)] + spread * random.normal(size=(600, 12))).astype("f4")
    queries = (corners.repeat(4, 0) + spread * random.normal(size=(32, 12))).astype("f4")
    model = remember(x, np.zeros(600, int), k=7)
    ids, near = model.neighbors(queries)
    np.testing.assert_array_equal(ids, nearest(queries, x, 7))
    expected = np.sqrt(np.sort(distances(queries, x, "euclidean"), 1)[:, :7])
    np.testing.assert_allclose(near, expected, rtol=1e-6)


def test_bfloat16_products_settle_most_queries(monkeypatch):
    """Else they would only cost time. Clusters, as in real data; the limit is neither loose nor
    violated: what is settled is right."""
    random = np.random.default_rng(5)
    centres = random.normal(size=(40, 64)) * 3
    x = (centres[random.integers(0, 40, 4000)] + random.normal(size=(4000, 64))).astype("f4")
    queries = (centres[random.integers(0, 40, 300)] + random.normal(size=(300, 64))).astype("f4")
    monkeypatch.setattr(neighbors, "has_fast_bfloat16", lambda: True)
    model = remember(x + 5, np.zeros(4000, int), batch_size=500, k=5)
    searched = {}
    original = model._search._search

    def spy(queries, precisions):
        searched[precisions[0].name] = len(queries)
        return original(queries, precisions)

    monkeypatch.setattr(model._search, "_search", spy)
    ids, _ = model.neighbors(queries + 5)
    np.testing.assert_array_equal(ids, nearest(queries + 5, x + 5, 5))
    assert searched["bfloat16"] == 300
    assert 0 < searched.get("float32", 1) < 60
    assert "float64" not in searched


def test_doubtful_queries_only_are_searched_again(monkeypatch):
    random = np.random.default_rng(3)
    x = random.normal(size=(500, 20)).astype("float32")
    x[100:200] = 10.0  # a hundred equal rows, far from the others
    model = remember(x, np.zeros(500, int), k=5)
    again = []
    original = model._search._search

    def spy(queries, precisions):
        if precisions[0] == tf.float64:
            again.append(len(queries))
        return original(queries, precisions)

    monkeypatch.setattr(model._search, "_search", spy)
    queries = np.concatenate([x[150:151], random.normal(size=(50, 20)).astype("float32")])
    ids, _ = model.neighbors(queries)
    assert again == [1]
    np.testing.assert_array_equal(ids, nearest(queries, x, 5))
    assert ids[0].numpy().tolist() == [100, 101, 102, 103, 104]


def test_block_selection_finds_the_best_wherever_they_are():
    random = np.random.default_rng(4)
    scores = random.normal(size=(6, 160)).astype("float32")
    scores[0, 64:96] += 100.0  # all in one block
    scores[1, ::32] += 100.0  # one in each
    values, columns = neighbors._best_by_blocks(tf.constant(scores), 9)
    expected = np.argsort(-scores, 1)[:, :9]
    np.testing.assert_array_equal(np.sort(columns, 1), np.sort(expected, 1))
    np.testing.assert_array_equal(values, np.take_along_axis(scores, columns.numpy(), 1))
    assert neighbors._best_by_blocks(tf.constant(scores[:, :32]), 50)[0].shape == (6, 32)


def test_a_zero_vector_is_at_cosine_distance_one_from_all():
    x = np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0], [-1.0, 0.0]], "float32")
    model = remember(x, np.zeros(4, int), k=4, metric="cosine")
    ids, near = model.neighbors(np.array([[3.0, 0.0], [0.0, 0.0]], "float32"))
    np.testing.assert_array_equal(ids, [[0, 2, 1, 3], [0, 1, 2, 3]])
    np.testing.assert_allclose(near, [[0, 0, 1, 2], [1, 1, 1, 1]], atol=1e-7)


def test_rows_past_the_capacity_are_left_out():
    x = np.arange(10, dtype="float32")[:, None]
    y = np.arange(10) % 2
    stream = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(4)
    model = create_model("knn", input_shape=(1,), num_classes=2, capacity=10, k=1)
    model.compile(loss=ZeroOne())
    history = model.fit(stream, steps_per_epoch=3, verbose=0)  # 12 rows: two come again
    assert history.history["stored_rows"] == [10]
    np.testing.assert_array_equal(model.memory.numpy()[:10], x)
    np.testing.assert_array_equal(model.neighbors(x)[0][:, 0], np.arange(10))
    assert model.evaluate(x, y, verbose=0) == 0.0
    model.reset()
    model.fit(x[::-1], y[::-1], shuffle=False, verbose=0)
    np.testing.assert_array_equal(model.neighbors(x)[0][:, 0], np.arange(10)[::-1])


def test_fewer_rows_than_k_and_none_at_all():
    model = create_model("knn", input_shape=(2,), num_classes=3, capacity=50, k=4)
    query = np.zeros((2, 2), "float32")
    np.testing.assert_array_equal(model(query), np.zeros((2, 3)))
    model.compile()
    model.fit(np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([2, 1]), shuffle=False, verbose=0)
    ids, near = model.neighbors(query)
    np.testing.assert_array_equal(ids, [[1, 0, -1, -1]] * 2)
    np.testing.assert_array_equal(near, [[1, 5, np.inf, np.inf]] * 2)
    np.testing.assert_array_equal(model(query), [[0, 0.5, 0.5]] * 2)
    assert model.neighbors(np.zeros((0, 2)))[0].shape == (0, 4)


def test_keras_fits_evaluates_and_predicts():
    random = np.random.default_rng(5)
    centres = random.normal(size=(3, 4, 4, 1)) * 3
    y = np.arange(120) % 3
    x = (centres[y] + random.normal(size=(120, 4, 4, 1))).astype("float32")
    model = create_model("knn", input_shape=(4, 4, 1), num_classes=3, capacity=90)
    model.compile("adam", ZeroOne(), metrics=["sparse_categorical_accuracy"])
    data = tf.data.Dataset.from_tensor_slices((x[:90], y[:90])).batch(25)
    history = model.fit(data, validation_data=(x[90:], y[90:]), verbose=0).history
    assert history["val_sparse_categorical_accuracy"][0] > 0.9
    loss, accuracy = model.evaluate(x[90:], y[90:], verbose=0)
    answers = model.predict(x[90:], verbose=0)
    np.testing.assert_allclose(accuracy, np.mean(answers.argmax(1) == y[90:]), rtol=1e-6)
    np.testing.assert_allclose(loss, 1 - accuracy, atol=1e-6)
    np.testing.assert_allclose(answers.sum(1), 1.0, rtol=1e-6)
    assert model.trainable_weights == []


def test_a_mixed_policy_does_not_round_the_memory():
    x = np.array([[1.0], [1.001], [1.002]], "float32")  # equal in bfloat16
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = remember(x, np.arange(3), k=1)
        np.testing.assert_array_equal(model.neighbors(x)[0][:, 0], [0, 1, 2])
        np.testing.assert_array_equal(model.predict(x, verbose=0), np.eye(3))
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_byte_memory_refuses_other_numbers():
    x = np.random.default_rng(6).integers(0, 256, (40, 9)).astype("uint8")
    y = np.arange(40) % 2
    small, large = remember(x, y, memory="uint8"), remember(x, y, memory="float32")
    for a, b in zip(small.neighbors(x[:7]), large.neighbors(x[:7]), strict=True):
        np.testing.assert_array_equal(a, b)
    for bad in (x / np.float32(255), x.astype("float32") + 300):
        with pytest.raises(tf.errors.InvalidArgumentError, match="whole numbers from 0 to 255"):
            remember(bad, y, memory="uint8")


@pytest.mark.parametrize("memory", knn.MEMORIES)
def test_saved_and_loaded_it_remembers(tmp_path, memory):
    random = np.random.default_rng(7)
    x, y = random.integers(0, 9, (50, 3)).astype("float32"), random.integers(0, 3, 50)
    model = remember(x, y, k=3, weights="distance", metric="manhattan", memory=memory, capacity=60)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    queries = random.normal(size=(8, 3)).astype("float32") + 4
    np.testing.assert_array_equal(model(queries), loaded(queries))
    for a, b in zip(model.neighbors(queries), loaded.neighbors(queries), strict=True):
        np.testing.assert_array_equal(a, b)
    model.save_weights(tmp_path / "m.weights.h5")
    fresh = create_model(
        "knn",
        input_shape=(3,),
        num_classes=3,
        capacity=60,
        k=3,
        weights="distance",
        metric="manhattan",
        memory=memory,
    )
    fresh.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(model(queries), fresh(queries))


def test_a_saved_model_keeps_the_memory_in_variables(tmp_path):
    random = np.random.default_rng(8)
    x, y = random.normal(size=(10_000, 30)).astype("float32"), random.integers(0, 3, 10_000)
    model = remember(x, y, batch_size=1000)
    module = tf.Module()
    module.model = model
    module.search = tf.function(
        model.neighbors, input_signature=[tf.TensorSpec([None, 30], tf.float32)]
    )
    tf.saved_model.save(module, tmp_path)
    assert (tmp_path / "saved_model.pb").stat().st_size < x.nbytes / 2
    queries = random.normal(size=(300, 30)).astype("float32")
    loaded = tf.saved_model.load(tmp_path)
    ids, near = loaded.search(queries)
    np.testing.assert_array_equal(ids, nearest(queries, x, 5))
    # A row's answer does not depend on its batch, small or large.
    alone = loaded.search(queries[7:8])
    np.testing.assert_array_equal(alone[0][0], ids[7])
    np.testing.assert_array_equal(alone[1][0], near[7])


def test_it_stays_one_graph_for_any_batch_size():
    model = remember(np.eye(6, dtype="float32"), np.arange(6), k=2)
    search = tf.function(model.neighbors, input_signature=[tf.TensorSpec([None, 6])])
    for n in (1, 5, 300):
        ids, near = search(np.tile(np.eye(6, dtype="float32"), (n, 1))[:n])
        np.testing.assert_array_equal(ids[:, 0], np.arange(n) % 6)
        np.testing.assert_allclose(near[:, 1], np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "l3"}, "euclidean, manhattan, cosine"),
        ({"weights": "softmax"}, "uniform, distance"),
        ({"memory": "int8"}, "float32, uint8"),
        ({"k": 11}, "between 1 and capacity = 10"),
        ({"task": "regression"}, "num_classes=1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("knn", **{"input_shape": (2,), "num_classes": 3, "capacity": 10, **options})


def test_soft_or_missing_targets_are_refused():
    model = create_model("knn", input_shape=(2,), num_classes=3, capacity=10)
    model.compile()
    with pytest.raises(ValueError, match="class id or number a row"):
        model.fit(np.zeros((4, 2)), np.eye(4)[:, :3], verbose=0)
    with pytest.raises(ValueError, match="got none"):
        model.fit(np.zeros((4, 2)), verbose=0)


@pytest.mark.slow
def test_a_million_rows_take_bounded_memory():
    code = """
import resource, numpy as np, tensorflow as tf
from epochal.models import create_model
x = np.random.default_rng(0).normal(size=(1_000_000, 16)).astype("float32")
model = create_model("knn", input_shape=(16,), num_classes=2, capacity=len(x))
model.compile()
model.fit(tf.data.Dataset.from_tensor_slices(x).batch(10_000).map(
    lambda r: (r, tf.zeros([tf.shape(r)[0]], tf.int64))), verbose=0)
search = tf.function(model.neighbors, input_signature=[tf.TensorSpec([None, 16])])
search(x[:1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids = search(x[:4096])[0].numpy()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((ids[:, 0] == np.arange(4096)).all(), after - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    right, grown = done.stdout.split()
    assert right == "True"
    assert int(grown) < 600 * 1024  # KiB; all products at once would be 16 GiB
