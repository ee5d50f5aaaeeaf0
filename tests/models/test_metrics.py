"""Metrics against NumPy and scikit-learn over all examples at once, fed in unequal batches."""

import math

import keras
import numpy as np
import pytest
from sklearn import metrics as reference

from epochal.models import likelihoods, losses, metrics

RNG = np.random.default_rng(11)
N = 37
BATCHES = [slice(0, 20), slice(20, 36), slice(36, 37)]
IDS = RNG.integers(0, 4, N)
LOGITS = RNG.normal(size=(N, 4)).astype("float32")
TARGETS = RNG.normal(size=N).astype("float32")
OUTPUTS = (TARGETS + RNG.normal(0, 0.6, N)).astype("float32")[:, None]
WEIGHTS = RNG.uniform(0, 3, N).astype("float32")


def in_batches(metric, targets, outputs, weights=None):
    for part in BATCHES:
        weight = None if weights is None else weights[part]
        metric.update_state(targets[part], outputs[part], sample_weight=weight)
    return float(metric.result())


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    "targets", [IDS, IDS[:, None], np.eye(4)[IDS]], ids=["ids", "column", "one-hot"]
)
def test_accuracy_over_unequal_batches(targets, weights):
    expected = reference.accuracy_score(IDS, LOGITS.argmax(1), sample_weight=weights)
    assert in_batches(metrics.Accuracy(), targets, LOGITS, weights) == pytest.approx(expected)
    # the mean of the batches' means is another number
    means = [np.mean(LOGITS[p].argmax(1) == IDS[p]) for p in BATCHES]
    assert weights is not None or abs(np.mean(means) - expected) > 0.01


def test_accuracy_of_one_column():
    outputs = np.array([[-1.0], [0.3], [0.7], [0.2]])
    targets = np.array([0, 1, 1, 0])
    for shaped in (targets, targets[:, None]):
        assert in_one(metrics.Accuracy(), shaped, outputs) == 0.75  # 0.2 is above 0
        assert in_one(metrics.Accuracy(from_logits=False), shaped, outputs) == 0.75  # 0.3 below .5
    assert in_one(metrics.Accuracy(from_logits=False), [1], [[0.3]]) == 0.0
    assert in_one(metrics.Accuracy(from_logits=True), [1], [[0.3]]) == 1.0
    # soft labels of two classes: the larger share is the label, of equal ones class 0
    shares = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])
    assert in_one(metrics.Accuracy(), shares, outputs) == 0.5
    assert in_one(metrics.Accuracy(), shares[3:], [[-1.0]]) == 1.0


def test_of_soft_labels_the_largest_share_is_the_right_class():
    shares = np.array([[0.4, 0.35, 0.25], [0.1, 0.45, 0.45], [0.3, 0.1, 0.6]])
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 2.0, 1.0]])
    assert in_one(metrics.Accuracy(), shares, logits) == pytest.approx(1 / 3)
    assert in_one(metrics.TopKAccuracy(2), shares, logits) == 1.0


def in_one(metric, targets, outputs, weights=None):
    metric.update_state(np.asarray(targets), np.asarray(outputs), sample_weight=weights)
    return float(metric.result())


def test_nan_is_never_right_and_ties_go_to_the_lowest_id():
    rows = np.array([[math.nan, math.nan], [1.0, math.nan], [0.5, 0.5], [0.5, 0.5]])
    assert in_one(metrics.Accuracy(), [0, 0, 0, 1], rows) == 0.25
    assert in_one(metrics.TopKAccuracy(1), [0, 0, 0, 1], rows) == 0.25
    assert in_one(metrics.Accuracy(), [0, 1], [[math.nan], [math.nan]]) == 0.0


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_accuracy(k, weights):
    expected = reference.top_k_accuracy_score(IDS, LOGITS, k=k, sample_weight=weights)
    got = in_batches(metrics.TopKAccuracy(k), IDS, LOGITS, weights)
    assert got == pytest.approx(expected)
    soft = in_batches(metrics.TopKAccuracy(k), np.eye(4)[IDS], LOGITS, weights)
    assert soft == pytest.approx(expected)


def test_top_k_of_constant_outputs_is_chance():
    assert in_one(metrics.TopKAccuracy(2), [0, 1, 2, 3], np.ones((4, 4))) == 0.5


def test_top_k_name_and_limits():
    assert metrics.TopKAccuracy(3).name == "top_3_accuracy"
    with pytest.raises(ValueError, match="k=5 of 4 classes"):
        metrics.TopKAccuracy(5).update_state(IDS, LOGITS)
    with pytest.raises(ValueError, match="got 0"):
        metrics.TopKAccuracy(0)


def test_time_steps_count_one_by_one():
    ids, outputs = np.array([[0, 1], [1, 1]]), np.eye(2)[[[0, 1], [0, 0]]]
    assert in_one(metrics.Accuracy(), ids, outputs) == 0.5
    assert in_one(metrics.Accuracy(), ids, outputs, [3.0, 1.0]) == 0.75
    each = [[1.0, 1.0], [0.0, 1.0]]
    assert in_one(metrics.Accuracy(), ids, outputs, each) == pytest.approx(2 / 3)


def test_padding_of_sequences_is_left_out():
    """Id 0 is padding. Words say class 1 from id 3 on: two of the three words are right."""
    x, y = np.array([[5, 2, 0], [3, 0, 0]]), np.array([[1, 1, 0], [1, 0, 0]])
    model = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(6, 2, mask_zero=True)])
    model.set_weights([np.array([[9.0, 0.0]] * 3 + [[0.0, 9.0]] * 3)])
    model.compile(
        loss=losses.CrossEntropy(),
        metrics=[metrics.Accuracy(), metrics.TopKAccuracy(1)],
        weighted_metrics=[metrics.Accuracy(name="weighted")],
    )
    weights = np.array([[1.0, 3.0, 9.0], [2.0, 9.0, 9.0]])
    got = model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    assert got["accuracy"] == got["top_1_accuracy"] == pytest.approx(2 / 3)
    assert got["weighted"] == pytest.approx(3 / 6)


def relative(y, f, weights):
    return np.average(np.abs(f - y) / np.maximum(np.abs(y), 0.5), weights=weights)


REGRESSION = {
    "mae": (
        lambda **o: metrics.MeanAbsoluteError(**o),
        lambda y, f, w: reference.mean_absolute_error(y, f, sample_weight=w),
    ),
    "rmse": (
        lambda **o: metrics.RootMeanSquaredError(**o),
        lambda y, f, w: reference.root_mean_squared_error(y, f, sample_weight=w),
    ),
    "r2": (
        lambda **o: metrics.R2(**o),
        lambda y, f, w: reference.r2_score(y, f, sample_weight=w),
    ),
    "mare": (lambda **o: metrics.MeanAbsoluteRelativeError(floor=0.5, **o), relative),
}


@pytest.mark.parametrize("scale_offset", [(1.0, 0.0), (250.0, -1000.0)], ids=["1", "original"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", REGRESSION)
def test_regression_metrics_in_original_units(name, weights, scale_offset):
    build, expected = REGRESSION[name]
    scale, offset = scale_offset
    y, f = (values.astype("float64") * scale + offset for values in (TARGETS, OUTPUTS[:, 0]))
    for targets, outputs in ((TARGETS, OUTPUTS), (TARGETS[:, None], OUTPUTS[:, 0])):
        metric = build(scale=scale, offset=offset)
        assert metric.name == name
        got = in_batches(metric, targets, outputs, weights)
        assert got == pytest.approx(expected(y, f, weights), rel=1e-6)
    metric.reset_state()
    assert in_one(metric, TARGETS[:9], OUTPUTS[:9]) == pytest.approx(
        expected(y[:9], f[:9], None), rel=1e-6
    )


def test_mare_of_a_zero_target():
    got = in_one(metrics.MeanAbsoluteRelativeError(floor=0.5), [0.0, 4.0], [[1.0], [3.0]])
    assert got == pytest.approx((2.0 + 0.25) / 2)


def test_predictions_are_read_through_the_loss():
    raw = np.concatenate([OUTPUTS, RNG.normal(size=(N, 1)).astype("float32")], axis=1)
    metric = metrics.MeanAbsoluteError(loss=losses.GaussianNLL(), scale=2.0)
    expected = 2 * np.abs(OUTPUTS[:, 0] - TARGETS).mean()
    assert in_batches(metric, TARGETS, raw) == pytest.approx(expected, rel=1e-6)
    rate = metrics.RootMeanSquaredError(loss=losses.PoissonNLL())
    assert in_one(rate, [1.0], [[math.log(3)]]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="do not pair up"):
        metrics.MeanAbsoluteError().update_state(TARGETS, raw)


def test_r2_of_constant_targets():
    assert in_one(metrics.R2(), [0.1, 0.1, 0.1], [[0.1], [0.1], [0.1]]) == 1.0
    assert in_one(metrics.R2(), [0.1, 0.1, 0.1], [[0.1], [0.1], [0.2]]) == 0.0


def test_r2_far_from_zero():
    """Sums of squares in float32 would leave nothing of a variance of 1 around 10,000."""
    got = in_batches(metrics.R2(), TARGETS + np.float32(1e4), OUTPUTS + np.float32(1e4))
    y, f = (TARGETS + np.float32(1e4)).astype("float64"), (OUTPUTS[:, 0] + np.float32(1e4))
    assert got == pytest.approx(reference.r2_score(y, f.astype("float64")), rel=1e-6)


def test_counts_beyond_float32():
    metric = metrics.Accuracy()
    weight = np.full(4, 2.0**24)
    metric.update_state(np.zeros(4), np.eye(4), sample_weight=weight)
    for _ in range(5):  # in float32, 2^26 + 1 = 2^26
        metric.update_state(np.array([1]), np.eye(4)[:1])
    assert float(metric._weight) == 2.0**26 + 5


@pytest.mark.parametrize(
    "loss", [losses.GaussianNLL(), losses.LaplaceNLL(), losses.GaussianMixtureNLL(components=1)]
)
def test_coverage_of_the_own_distribution_is_the_level(loss):
    n = 20_000
    rng = np.random.default_rng(0)
    centre = rng.normal(size=n)
    noise = rng.laplace(size=n) if isinstance(loss, losses.LaplaceNLL) else rng.normal(size=n)
    columns = [centre, np.zeros(n)]  # raw scale 0 = scale 1 (+ 0.001)
    outputs = np.stack(columns if loss.outputs_per_target == 2 else [np.zeros(n), *columns], 1)
    got = in_one(metrics.Coverage(loss, level=0.9), centre + noise, outputs.astype("float32"))
    assert got == pytest.approx(0.9, abs=0.007)  # three standard errors


def test_coverage_of_quantiles_with_weights():
    outputs = np.tile([[-1.0, 0.0, 1.0]], (4, 1))
    metric = metrics.Coverage(losses.Quantile([0.05, 0.5, 0.95]))
    metric.update_state(np.array([0.0, 2.0, -1.0, -3.0]), outputs, sample_weight=[1, 2, 3, 4])
    assert float(metric.result()) == pytest.approx(0.4)


def test_bfloat16_outputs_are_compared_in_full_precision():
    outputs = keras.ops.cast(np.array([[1.0], [2.0]]), "bfloat16")
    got = in_one_tensor(metrics.MeanAbsoluteError(), np.array([1.001, 2.001]), outputs)
    assert got == pytest.approx(0.001, rel=1e-4)


def in_one_tensor(metric, targets, outputs):
    metric.update_state(targets, outputs)
    return float(metric.result())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: metrics.MeanAbsoluteError(loss="mae"), r"`predict`; got 'mae'"),
        (lambda: metrics.MeanAbsoluteError(scale=0), r"`scale`.*above 0; got 0"),
        (lambda: metrics.R2(offset=math.nan), r"`offset`.*got nan"),
        (lambda: metrics.MeanAbsoluteRelativeError(floor=0), r"`floor`.*got 0"),
        (lambda: metrics.Coverage(losses.MeanSquaredError()), r"`interval`"),
        (lambda: metrics.Coverage(losses.GaussianNLL(), level=90), r"`level`.*got 90"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_classification_in_compile_and_fit(jit, tmp_path):
    """Plain Keras: compile, fit over batches of 16, 16 and 5, save, load, evaluate."""
    x = RNG.normal(size=(N, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    model.compile(
        optimizer="sgd",
        loss=losses.CrossEntropy(),
        metrics=[metrics.Accuracy(), metrics.TopKAccuracy(2)],
        jit_compile=jit,
    )
    history = model.fit(x, IDS, batch_size=16, epochs=1, verbose=0).history
    assert set(history) == {"loss", "accuracy", "top_2_accuracy"}
    logits = model.predict(x, verbose=0)
    got = model.evaluate(x, IDS, batch_size=16, verbose=0, return_dict=True)
    assert got["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == IDS))
    assert got["top_2_accuracy"] == pytest.approx(reference.top_k_accuracy_score(IDS, logits, k=2))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(x, IDS, batch_size=16, verbose=0, return_dict=True) == got


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_regression_in_compile_and_fit(jit, tmp_path):
    x = RNG.normal(size=(N, 3)).astype("float32")
    loss = losses.GaussianNLL(min_stddev=0.01)
    units = {"loss": loss, "scale": 30.0, "offset": 100.0}
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(
        optimizer="sgd",
        loss=loss,
        metrics=[
            metrics.MeanAbsoluteError(**units),
            metrics.RootMeanSquaredError(**units),
            metrics.R2(**units),
            metrics.MeanAbsoluteRelativeError(floor=2.0, **units),
            metrics.Coverage(level=0.8, **units),
        ],
        jit_compile=jit,
    )
    model.fit(x, TARGETS, batch_size=16, verbose=0)
    got = model.evaluate(x, TARGETS, batch_size=16, verbose=0, return_dict=True)
    answer = loss.predict(model.predict(x, verbose=0))
    y, f = TARGETS * 30.0 + 100.0, np.asarray(answer["prediction"]) * 30.0 + 100.0
    assert got["mae"] == pytest.approx(np.abs(y - f).mean(), rel=1e-5)
    assert got["rmse"] == pytest.approx(np.sqrt(np.mean((y - f) ** 2)), rel=1e-5)
    assert got["r2"] == pytest.approx(reference.r2_score(y, f), rel=1e-5)
    assert got["mare"] == pytest.approx(np.mean(np.abs(y - f) / np.maximum(abs(y), 2)), rel=1e-5)
    half = 1.2815516 * np.asarray(answer["stddev"]) * 30.0
    assert got["coverage"] == pytest.approx(np.mean(np.abs(y - f) <= half))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(x, TARGETS, batch_size=16, verbose=0, return_dict=True) == got


@pytest.mark.parametrize(
    "metric",
    [
        metrics.Accuracy(from_logits=False, name="a"),
        metrics.TopKAccuracy(2),
        metrics.MeanAbsoluteError(losses.Quantile([0.2, 0.4]), 3.0, -1.0),
        metrics.MeanAbsoluteRelativeError(floor=7.0),
        metrics.Coverage(losses.GaussianMixtureNLL(components=2), level=0.5, scale=2.0),
    ],
    ids=lambda m: type(m).__name__,
)
def test_config_round_trip(metric):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert type(again) is type(metric)
    assert again.get_config() == metric.get_config()
    if getattr(metric, "loss", None) is not None:
        assert type(again.loss) is type(metric.loss)
        assert again.loss.get_config() == metric.loss.get_config()


def test_metrics_and_losses_of_one_name_are_told_apart():
    """Both modules have a MeanAbsoluteError; Keras knows classes by their registered name."""
    registered = {
        value: name
        for name, value in keras.saving.get_custom_objects().items()
        if name.startswith("epochal")
    }
    for module in (likelihoods, losses, metrics):
        for name, value in vars(module).items():
            public = isinstance(value, type) and value.__module__ == module.__name__
            if public and not name.startswith("_"):
                assert value in registered, f"{module.__name__}.{name} is not registered"
