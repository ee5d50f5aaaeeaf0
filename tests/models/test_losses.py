"""Losses against float64 transcriptions of their formulas, closed forms, and Keras's machinery."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from epochal.models import losses, registry

ALL = {
    "mse": losses.MeanSquaredError(),
    "mae": losses.MeanAbsoluteError(),
    "mare": losses.MeanAbsoluteRelativeError(floor=0.5),
    "huber": losses.Huber(delta=1.5),
    "log-cosh": losses.LogCosh(),
    "quantile": losses.Quantile([0.1, 0.5, 0.8]),
    "cross-entropy": losses.CrossEntropy(label_smoothing=0.1),
    "binary-cross-entropy": losses.BinaryCrossEntropy(label_smoothing=0.2),
    "focal": losses.Focal(gamma=1.5, alpha=[0.2, 0.3, 0.5]),
    "zero-one": losses.ZeroOne(),
    "gaussian": losses.GaussianNLL(min_stddev=0.02),
    "laplace": losses.LaplaceNLL(min_scale=0.02),
    "poisson": losses.PoissonNLL(),
    "categorical": losses.CategoricalNLL(),
    "gaussian-mixture": losses.GaussianMixtureNLL(components=2, min_stddev=0.02),
}


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def log_softmax(z):
    top = max(z)
    total = math.log(sum(math.exp(v - top) for v in z))
    return [v - top - total for v in z]


def scale(raw, floor):
    return floor + softplus(raw + math.log(math.e - 1))


def log_cosh(e):
    return math.log1p(2 * math.sinh(e / 2) ** 2) if abs(e) < 100 else abs(e) - math.log(2)


def pinball(y, f, tau):
    return tau * (y - f) if y >= f else (1 - tau) * (f - y)


def smooth_ce(y, z, s):
    targets = [(1 - s) * (k == y) + s / len(z) for k in range(len(z))]
    return -sum(t * lp for t, lp in zip(targets, log_softmax(z), strict=True))


def binary_ce(y, z, s):
    t = (1 - s) * y + s / 2
    return t * softplus(-z) + (1 - t) * softplus(z)


def focal(y, z, gamma, alpha):
    # 1 - p as the sum over the other classes, exact also where p rounds to 1
    others = sum(math.exp(lp) for k, lp in enumerate(log_softmax(z)) if k != y)
    log_p = log_softmax(z)[y] if others > 0.5 else math.log1p(-others)
    return -alpha[y] * others**gamma * log_p


def mixture(y, o, floor):
    k = len(o) // 3
    parts = [
        lw + stats.norm.logpdf(y, m, scale(r, floor))
        for lw, m, r in zip(log_softmax(o[:k]), o[k : 2 * k], o[2 * k :], strict=True)
    ]
    return -max(parts) - math.log(sum(math.exp(p - max(parts)) for p in parts))


REFERENCE = {
    "mse": lambda y, o: (o[0] - y) ** 2,
    "mae": lambda y, o: abs(o[0] - y),
    "mare": lambda y, o: abs(o[0] - y) / max(abs(y), 0.5),
    "huber": lambda y, o: (
        0.5 * (o[0] - y) ** 2 if abs(o[0] - y) <= 1.5 else 1.5 * (abs(o[0] - y) - 0.75)
    ),
    "log-cosh": lambda y, o: log_cosh(o[0] - y),
    "quantile": lambda y, o: (
        sum(pinball(y, f, t) for f, t in zip(o, (0.1, 0.5, 0.8), strict=True)) / 3
    ),
    "cross-entropy": lambda y, o: smooth_ce(y, o, 0.1),
    "binary-cross-entropy": lambda y, o: binary_ce(y, o[0], 0.2),
    "focal": lambda y, o: focal(y, o, 1.5, [0.2, 0.3, 0.5]),
    "zero-one": lambda y, o: float(list(o).index(max(o)) != y),
    "gaussian": lambda y, o: -stats.norm.logpdf(y, o[0], scale(o[1], 0.02)),
    "laplace": lambda y, o: abs(y - o[0]) / scale(o[1], 0.02) + math.log(2 * scale(o[1], 0.02)),
    "poisson": lambda y, o: -stats.poisson.logpmf(y, math.exp(o[0])),
    "categorical": lambda y, o: -log_softmax(o)[y],
    "gaussian-mixture": lambda y, o: mixture(y, o, 0.02),
}


def grid(name):
    """(targets [n], outputs [n, k]) over ordinary and extreme values, exact in float32."""
    loss = ALL[name]
    rng = np.random.default_rng(7)
    if loss.task == "classification":
        classes = 2 if name == "binary-cross-entropy" else 3
        width = loss.num_outputs(classes)
        extreme = [[100, -100, 0], [-100, 100, 100], [50, 50, 50], [0, 0, 0], [-100, -100, -100]]
        extreme += [[8, -8, 1], [30, 0, -30], [0.7, 0.69, -100]]
        rows = [row[:width] for row in extreme] + list(rng.normal(0, 3, (12, width)))
        pairs = [(y, row) for y in range(classes) for row in rows]
    elif name == "poisson":
        counts = [0, 1, 2, 7, 30, 1000, 1_000_000]
        pairs = [(y, [h]) for y in counts for h in (-100, -3, -0.1, 0, 1, 3.4, 6.9, 13.8, 20)]
    else:
        width = loss.num_outputs(1)
        rows = [
            *rng.normal(0, 2, (12, width)),
            [1e-4] * width,
            [0] * width,
            [-100] * width,
            [100] * width,
            [1e4] * width,
            ([3, -100, 5] * 2)[:width],
            ([-7, 100, 0.1] * 2)[:width],
        ]
        pairs = [(y, row) for y in (0, 1e-5, -0.3, 0.5, 1, -2.5, 100, -1e6) for row in rows]
    targets = np.array([y for y, _ in pairs], "float32")
    return targets, np.array([list(row) for _, row in pairs], "float32")


def reference(name, targets, outputs):
    ids = ALL[name].task == "classification" or name == "poisson"
    values = [
        REFERENCE[name](int(y) if ids else float(y), [float(v) for v in row])
        for y, row in zip(targets, outputs, strict=True)
    ]
    return np.array(values, "float64")


@pytest.mark.parametrize("name", ALL)
def test_equals_the_formula_in_float32_and_float64(name):
    targets, outputs = grid(name)
    expected = reference(name, targets, outputs)
    assert np.isfinite(expected).all()
    got = ALL[name].call(targets, outputs)
    assert got.dtype == "float32"
    # Sums of terms of either sign (log s + e²/2s², ...) are exact to the rounding of their terms.
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    exact = type(ALL[name]).from_config({**ALL[name].get_config(), "dtype": "float64"})
    np.testing.assert_allclose(
        exact.call(targets, outputs.astype("float64")), expected, rtol=1e-9, atol=1e-13
    )


@pytest.mark.parametrize("name", ["mse", "mare", "huber", "log-cosh", "binary-cross-entropy"])
def test_small_values_keep_their_relative_precision(name):
    """Where no terms cancel, a loss of 1e-9 is as exact as one of 1."""
    targets, outputs = grid(name)
    np.testing.assert_allclose(
        ALL[name].call(targets, outputs), reference(name, targets, outputs), rtol=1e-6, atol=1e-40
    )


def test_focal_of_a_sure_right_answer_is_tiny_and_not_zero():
    loss = losses.Focal(gamma=2.0)
    got = float(loss.call([0], [[20.0, 0.0]])[0])
    assert got == pytest.approx(math.exp(-20) ** 3, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradient_is_finite_where_p_rounds_to_one(gamma):
    logits = tf.constant([[60.0, -60.0, 0.0], [-100.0, 100.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = losses.Focal(gamma=gamma)([0, 0], logits)
    gradient = tape.gradient(value, logits).numpy()
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[1], [-0.5, 0.5, 0.0], atol=1e-6)  # wrong and sure: as CE


def test_closed_forms():
    assert float(losses.CrossEntropy()([3], np.zeros((1, 10)))) == pytest.approx(math.log(10))
    assert float(losses.BinaryCrossEntropy()([1], [[0.0]])) == pytest.approx(math.log(2))
    assert float(losses.Focal(gamma=2)([1], [[0.0, 0.0]])) == pytest.approx(math.log(2) / 4)
    assert float(losses.LogCosh()([0.0], [[1000.0]])) == pytest.approx(1000 - math.log(2))
    assert float(losses.Huber(2.0)([0.0], [[10.0]])) == pytest.approx(2 * (10 - 1))
    # 3 above a 90% quantile costs 0.9 * 3; 3 below it 0.1 * 3
    np.testing.assert_allclose(
        losses.Quantile(0.9).call([3.0, -3.0], np.zeros((2, 1))), [2.7, 0.3], rtol=1e-6
    )
    # raw scale 0 means a scale of 1 + floor
    expected = math.log(1.001) + 0.5 * math.log(2 * math.pi)
    assert float(losses.GaussianNLL()([0.5], [[0.5, 0.0]])) == pytest.approx(expected, rel=1e-6)


def test_mare_at_zero_is_measured_in_floors():
    loss = losses.MeanAbsoluteRelativeError(floor=0.25)
    got = loss.call([0.0, 0.1, -0.25, 4.0], [[0.5], [0.6], [0.25], [3.0]])
    np.testing.assert_allclose(got, [2.0, 2.0, 2.0, 0.25], rtol=1e-6)


# -------------------------------------------------- the answer to "MLE: ?"


def test_mse_is_a_gaussian_of_fixed_variance():
    y, f, s = np.array([1.0, -2.0, 0.3]), np.array([[0.5], [1.0], [0.2]]), 0.7
    nll = losses.GaussianNLL(stddev=s).call(y, f)
    mse = losses.MeanSquaredError().call(y, f)
    constant = math.log(s) + 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(nll, np.asarray(mse) / (2 * s**2) + constant, rtol=1e-6)


def test_mae_is_a_laplace_of_fixed_scale():
    y, f, b = np.array([1.0, -2.0, 0.3]), np.array([[0.5], [1.0], [0.2]]), 0.7
    nll = losses.LaplaceNLL(scale=b).call(y, f)
    mae = losses.MeanAbsoluteError().call(y, f)
    np.testing.assert_allclose(nll, np.asarray(mae) / b + math.log(2 * b), rtol=1e-6)


def test_cross_entropy_is_a_categorical_likelihood():
    ids, logits = [2, 0], np.array([[1.0, 2.0, 3.0], [0.5, 0.5, -4.0]])
    nll = losses.CategoricalNLL().call(ids, logits)
    np.testing.assert_allclose(nll, losses.CrossEntropy().call(ids, logits))
    p = losses.CategoricalNLL().predict(logits)["probabilities"].numpy()
    np.testing.assert_allclose(nll, [-np.log(p[0, 2]), -np.log(p[1, 0])], rtol=1e-6)


def test_a_learnt_scale_finds_the_errors_own_scale():
    """The likelihood is largest where s is the root mean square, and b the mean, of the errors."""
    errors = np.array([0.1, -0.4, 2.0, 1.3, -0.7])
    candidates = np.linspace(0.3, 2.5, 221)
    for loss, best in (
        (lambda v: losses.GaussianNLL(stddev=v), np.sqrt(np.mean(errors**2))),
        (lambda v: losses.LaplaceNLL(scale=v), np.mean(np.abs(errors))),
    ):
        values = [float(loss(v)(errors, np.zeros((5, 1)))) for v in candidates]
        assert candidates[int(np.argmin(values))] == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize("name", ["gaussian", "laplace", "gaussian-mixture"])
def test_densities_integrate_to_one(name):
    """Only with all constants in place."""
    y = np.linspace(-60, 60, 60_001)
    row = [0.3, -1.0, 1.0, -2.0, 0.5, 0.8][: ALL[name].num_outputs(1)]
    nll = np.asarray(ALL[name].call(y, np.tile(row, (len(y), 1))), "float64")
    assert np.trapezoid(np.exp(-nll), y) == pytest.approx(1.0, abs=1e-4)


def test_poisson_probabilities_sum_to_one():
    nll = np.asarray(losses.PoissonNLL().call(np.arange(80.0), np.full((80, 1), 2.5)), "float64")
    assert np.exp(-nll).sum() == pytest.approx(1.0, abs=1e-6)


def test_poisson_refuses_negative_counts_with_nan():
    got = losses.PoissonNLL().call([-1.0, 2.0], [[0.3], [0.3]])
    assert np.isnan(got[0])
    assert np.isfinite(got[1])


def test_ids_that_no_class_has_never_cost_a_plain_number():
    assert np.isnan(losses.Focal().call([2, -1], np.zeros((2, 2)))).all()
    assert np.isnan(losses.BinaryCrossEntropy().call([2, -1], np.zeros((2, 1)))).all()
    with pytest.raises(tf.errors.InvalidArgumentError, match="outside the valid range"):
        losses.CrossEntropy().call([2], np.zeros((1, 2)))
    assert np.isnan(losses.CrossEntropy(0.1).call([2, -1], np.zeros((2, 2)))).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_many_classes_cost_what_the_formula_says(smoothing):
    """From 1,000 classes on the loss is computed another way: as of a vocabulary."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(0, 9, (2, 3, 1_000)), rng.integers(0, 1_000, (2, 3))
    z[0, 0, 5] = 300.0  # all others' shares are 0
    weights = rng.uniform(0.5, 2, (2, 3)).astype("float32")
    logits = tf.constant(z, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        got = losses.CrossEntropy(smoothing, reduction="none")(y, logits)
        total = tf.reduce_sum(weights * got)
    logs = (
        z
        - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - z.max(-1, keepdims=True)
    )
    shares = (1 - smoothing) * np.eye(1_000)[y] + smoothing / 1_000
    np.testing.assert_allclose(got, -(shares * logs).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(
        tape.gradient(total, logits), weights[..., None] * (np.exp(logs) - shares), atol=1e-6
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="1000"):
        losses.CrossEntropy(smoothing)([1_000], np.zeros((1, 1_000)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="-1"):
        losses.CrossEntropy(smoothing)([-1], np.zeros((1, 1_000)))


# -------------------------------------------------- gradients


@pytest.mark.parametrize("name", [n for n in ALL if n != "zero-one"])
def test_gradients_equal_finite_differences(name):
    exact = type(ALL[name]).from_config(
        {**ALL[name].get_config(), "dtype": "float64", "reduction": "sum"}
    )
    rng = np.random.default_rng(3)
    outputs = rng.normal(size=(4, exact.num_outputs(2 if name.startswith("binary") else 3)))
    if exact.task == "regression":
        outputs = rng.normal(size=(4, exact.num_outputs(1)))
    targets = np.array([0.0, 1.0, 1.0, 0.0])
    tensor = tf.constant(outputs)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        value = exact(targets, tensor)
    gradient = tape.gradient(value, tensor).numpy()
    step = 1e-6
    for index in np.ndindex(outputs.shape):
        shift = np.zeros_like(outputs)
        shift[index] = step
        slope = (exact(targets, outputs + shift) - exact(targets, outputs - shift)) / (2 * step)
        assert gradient[index] == pytest.approx(float(slope), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", ["huber", "log-cosh"])
def test_gradients_at_huge_and_zero_errors(name):
    outputs = tf.constant([[0.0], [1e30], [-1e30]])
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        value = tf.reduce_sum(ALL[name].call([0.0, 0.0, 0.0], outputs))
    limit = 1.5 if name == "huber" else 1.0
    np.testing.assert_allclose(tape.gradient(value, outputs)[:, 0], [0.0, limit, -limit])


# -------------------------------------------------- shapes


@pytest.mark.parametrize("name", ALL)
def test_a_column_of_targets_does_not_broadcast(name):
    targets, outputs = (part[:5] for part in grid(name))
    flat = np.asarray(ALL[name].call(targets, outputs))
    assert flat.shape == (5,)
    np.testing.assert_array_equal(ALL[name].call(targets[:, None], outputs), flat)


@pytest.mark.parametrize("name", [n for n in ALL if ALL[n].task == "regression"])
def test_two_targets_are_two_losses_averaged(name):
    targets, outputs = (part[2:6] for part in grid(name))
    pair = ALL[name].call(
        np.stack([targets, targets[::-1]], 1), np.hstack([outputs, outputs[::-1]])
    )
    alone = np.asarray(ALL[name].call(targets, outputs))
    np.testing.assert_allclose(pair, (alone + alone[::-1]) / 2, rtol=1e-6)


def test_shapes_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\).*\(4, 1\)"):
        losses.MeanSquaredError()(np.zeros(3), np.zeros((4, 1)))
    with pytest.raises(ValueError, match=r"do not pair up"):
        losses.MeanAbsoluteError()(np.zeros((4, 2)), np.zeros((4, 1)))
    with pytest.raises(ValueError, match=r"reads 2 outputs .*\(4, 1\)"):
        losses.GaussianNLL()(np.zeros(4), np.zeros((4, 1)))
    with pytest.raises(ValueError, match=r"binary-cross-entropy"):
        losses.CrossEntropy()(np.zeros(4), np.zeros((4, 1)))
    with pytest.raises(ValueError, match=r"got targets of shape \(4, 2\)"):
        losses.CrossEntropy()(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"one logit"):
        losses.BinaryCrossEntropy()(np.zeros(4), np.zeros((4, 2)))


@pytest.mark.parametrize("name", ["cross-entropy", "focal", "categorical", "zero-one"])
def test_one_hot_labels_equal_ids(name):
    ids, outputs = grid(name)
    one_hot = np.eye(3)[ids.astype(int)]
    np.testing.assert_allclose(
        ALL[name].call(one_hot, outputs), ALL[name].call(ids, outputs), rtol=1e-6, atol=1e-7
    )


def test_label_smoothing_of_soft_labels_smooths_the_labels():
    shares, logits = np.array([[0.7, 0.3, 0.0], [0.2, 0.2, 0.6]]), [[1.0, -2.0, 0.5], [0.0, 3.0, 1]]
    got = losses.CrossEntropy(label_smoothing=0.3).call(shares, np.array(logits))
    for row, share, own in zip(got, shares, logits, strict=True):
        smoothed = 0.7 * share + 0.3 / 3
        assert float(row) == pytest.approx(-smoothed @ np.array(log_softmax(own)), rel=1e-6)
    # two classes and one logit, as shares of both or of class 1 alone
    two, one = np.array([[0.7, 0.3], [0.0, 1.0]]), np.array([[0.4], [-2.0]])
    binary = losses.BinaryCrossEntropy(label_smoothing=0.3)
    same = losses.CrossEntropy(label_smoothing=0.3)
    np.testing.assert_allclose(binary.call(two, one), binary.call(two[:, 1:], one), rtol=1e-6)
    logits_of_both = np.concatenate([np.zeros_like(one), one], axis=1)
    np.testing.assert_allclose(binary.call(two, one), same.call(two, logits_of_both), rtol=1e-6)


def test_which_losses_take_mixed_targets():
    refuse = {name for name in registry.LOSSES if not registry.get("losses", name).takes_mixtures}
    games = {name for name, row in registry.LOSSES.items() if row[0] == "gan_losses"}
    assert refuse == {"zero-one", "poisson"} | games


def test_soft_labels_weigh_the_classes():
    logits = np.array([[1.0, -2.0, 0.5]])
    log_p = np.array(log_softmax([1.0, -2.0, 0.5]))
    mixed = losses.CrossEntropy().call([[0.7, 0.3, 0.0]], logits)
    assert float(mixed[0]) == pytest.approx(-(0.7 * log_p[0] + 0.3 * log_p[1]), rel=1e-6)
    binary = losses.BinaryCrossEntropy().call([0.3], [[2.0]])
    assert float(binary[0]) == pytest.approx(0.3 * softplus(-2) + 0.7 * softplus(2), rel=1e-6)


def test_cross_entropy_keeps_time_steps():
    ids, logits = np.array([[0, 2], [1, 1]]), np.arange(12.0).reshape(2, 2, 3)
    got = np.asarray(losses.CrossEntropy().call(ids, logits))
    expected = [[-log_softmax(logits[i, t])[ids[i, t]] for t in (0, 1)] for i in (0, 1)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    smooth = np.asarray(losses.CrossEntropy(0.2).call(ids, logits))
    expected = [[smooth_ce(ids[i, t], logits[i, t], 0.2) for t in (0, 1)] for i in (0, 1)]
    np.testing.assert_allclose(smooth, expected, rtol=1e-6)


def test_masked_tokens_cost_nothing_and_are_not_counted():
    rng = np.random.default_rng(0)
    ids, logits = rng.integers(0, 4, size=(3, 5)), rng.normal(size=(3, 5, 4)).astype("float32")
    real = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    outputs = keras.layers.Masking(mask_value=9.0)(np.where(real[..., None], logits, 9.0))
    each = np.array(
        [
            [smooth_ce(y, z, 0.1) for y, z in zip(*row, strict=True)]
            for row in zip(ids, logits, strict=True)
        ]
    )
    loss = losses.CrossEntropy(0.1)
    assert float(loss(ids, outputs)) == pytest.approx(each[real].mean(), rel=1e-5)
    weighted = losses.CrossEntropy(0.1, reduction="mean_with_sample_weight")
    assert float(weighted(ids, logits, real)) == pytest.approx(each[real].mean(), rel=1e-5)


def test_sample_weights_and_reductions_as_in_keras():
    y, f, w = np.array([0.0, 0.0, 0.0]), np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 0.0, 2.0])
    assert float(losses.MeanSquaredError()(y, f, w)) == pytest.approx((1 + 18) / 3)
    weighted = losses.MeanSquaredError(reduction="mean_with_sample_weight")
    assert float(weighted(y, f, w)) == pytest.approx(19 / 3)
    assert float(losses.MeanSquaredError(reduction="sum")(y, f, w)) == 19
    assert losses.MeanSquaredError(reduction="none")(y, f, w).numpy().tolist() == [1, 0, 18]


# -------------------------------------------------- predict, num_outputs, interval


def test_num_outputs():
    widths = {name: loss.num_outputs(1) for name, loss in ALL.items() if loss.task == "regression"}
    assert widths == {
        "mse": 1, "mae": 1, "mare": 1, "huber": 1, "log-cosh": 1, "quantile": 3,
        "gaussian": 2, "laplace": 2, "poisson": 1, "gaussian-mixture": 6,
    }  # fmt: skip
    assert losses.GaussianNLL(stddev=1.0).num_outputs(1) == 1
    assert losses.GaussianNLL().num_outputs(3) == 6
    assert losses.CrossEntropy().num_outputs(7) == 7
    assert losses.BinaryCrossEntropy().num_outputs(2) == 1
    with pytest.raises(ValueError, match="two classes; got num_targets=3"):
        losses.BinaryCrossEntropy().num_outputs(3)


def test_predict_of_classification():
    p = losses.CrossEntropy().predict([[0.0, math.log(3)]])["probabilities"]
    np.testing.assert_allclose(p, [[0.25, 0.75]], rtol=1e-6)
    p = losses.BinaryCrossEntropy().predict([[math.log(3)], [-100.0]])["probabilities"]
    np.testing.assert_allclose(p[0], [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(p[1], [1.0, math.exp(-100)], atol=1e-40)
    shares = losses.ZeroOne().predict([[0.2, 0.8]])["probabilities"]
    np.testing.assert_allclose(shares, [[0.2, 0.8]])


def test_predict_of_regression():
    mse = losses.MeanSquaredError().predict([[1.5], [2.5]])
    assert list(mse) == ["prediction"]
    assert mse["prediction"].numpy().tolist() == [1.5, 2.5]
    assert losses.MeanSquaredError().predict([[1.0, 2.0]])["prediction"].shape == (1, 2)
    gaussian = losses.GaussianNLL(min_stddev=0.5).predict([[3.0, 0.0]])
    assert gaussian["prediction"].numpy() == [3.0]
    np.testing.assert_allclose(gaussian["stddev"], [1.5], rtol=1e-6)
    laplace = losses.LaplaceNLL(scale=2.0).predict([[3.0]])
    np.testing.assert_allclose(laplace["stddev"], [math.sqrt(8)], rtol=1e-6)
    poisson = losses.PoissonNLL().predict([[math.log(9)]])
    np.testing.assert_allclose([poisson["prediction"], poisson["stddev"]], [[9], [3]], rtol=1e-6)


def test_predict_of_a_mixture_has_the_mixtures_moments():
    # weights 1/4 and 3/4, means -2 and 2, both scales 1.5
    outputs = [[0.0, math.log(3), -2.0, 2.0, 0.0, 0.0]]
    got = losses.GaussianMixtureNLL(components=2, min_stddev=0.5).predict(outputs)
    np.testing.assert_allclose(got["prediction"], [1.0], rtol=1e-6)
    np.testing.assert_allclose(got["stddev"], [math.sqrt(1.5**2 + 3.0)], rtol=1e-6)


def test_quantiles_come_out_sorted():
    got = losses.Quantile([0.1, 0.5, 0.9]).predict([[2.0, 3.0, 1.0]])
    assert got["quantiles"].numpy().tolist() == [[1.0, 2.0, 3.0]]
    assert got["prediction"].numpy().tolist() == [2.0]
    between = losses.Quantile([0.1, 0.4, 0.8]).predict([[0.0, 4.0, 8.0]])
    np.testing.assert_allclose(between["prediction"], [5.0], rtol=1e-6)  # 0.5: a quarter of the way
    assert losses.Quantile([0.1, 0.3]).predict([[0.0, 4.0]])["prediction"].numpy() == [4.0]


def test_intervals():
    low, high = losses.GaussianNLL(min_stddev=1.0).interval([[10.0, 0.0]], 0.9)
    np.testing.assert_allclose([low, high], [[10 - 2 * 1.6448536], [10 + 2 * 1.6448536]], rtol=1e-6)
    low, high = losses.LaplaceNLL(scale=2.0).interval([[10.0]], 0.9)
    expected = [[stats.laplace(10, 2).ppf(0.05)], [stats.laplace(10, 2).ppf(0.95)]]
    np.testing.assert_allclose([low, high], expected, rtol=1e-6)
    low, high = losses.Quantile([0.05, 0.5, 0.95]).interval([[3.0, 2.0, 1.0]], 0.9)
    assert [float(low[0]), float(high[0])] == [1.0, 3.0]
    with pytest.raises(ValueError, match=r"quantiles 0\.1 and 0\.9"):
        losses.Quantile([0.05, 0.5, 0.95]).interval([[3.0, 2.0, 1.0]], 0.8)
    with pytest.raises(ValueError, match=r"`level`.*between 0 and 1.*got 90"):
        losses.GaussianNLL().interval([[0.0, 0.0]], 90)


def test_mixture_interval_has_its_probability_in_each_tail():
    outputs = np.array([[0.0, math.log(3), -5.0, 2.0, -1.0, 0.5], [3.0, 0.0, 1.0, 1.0, 0.0, -50.0]])
    loss = losses.GaussianMixtureNLL(components=2)
    low, high = loss.interval(outputs.astype("float32"), 0.8)
    for row, a, b in zip(outputs, low, high, strict=True):
        weights = np.exp(log_softmax(list(row[:2])))
        parts = [stats.norm(m, scale(r, 1e-3)) for m, r in zip(row[2:4], row[4:], strict=True)]
        for edge, p in ((float(a), 0.1), (float(b), 0.9)):
            cdf = sum(w * part.cdf(edge) for w, part in zip(weights, parts, strict=True))
            assert cdf == pytest.approx(p, abs=1e-5)


# -------------------------------------------------- constructor arguments and configuration


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: losses.Huber(0.0), r"Huber: `delta` must be .* above 0; got 0\.0"),
        (lambda: losses.Huber("big"), r"got 'big'"),
        (lambda: losses.MeanAbsoluteRelativeError(-1), r"`floor`.*above 0; got -1"),
        (lambda: losses.Quantile([0.5, 0.1]), r"increasing order.*\[0\.5, 0\.1\]"),
        (lambda: losses.Quantile([]), r"one or more"),
        (lambda: losses.Quantile(1.0), r"between 0 and 1 .*got 1\.0"),
        (lambda: losses.CrossEntropy(1.0), r"`label_smoothing`.*got 1\.0"),
        (lambda: losses.Focal(gamma=-1), r"`gamma`.*got -1"),
        (lambda: losses.Focal(alpha=2.0), r"`alpha`.*between 0 and 1.*got 2\.0"),
        (lambda: losses.Focal(alpha=[1.0])([0], [[1.0, 2.0]]), r"each of 2 classes; got \[1\.0\]"),
        (lambda: losses.GaussianNLL(stddev=math.nan), r"`stddev`.*got nan"),
        (lambda: losses.GaussianNLL(min_stddev=0), r"`min_stddev`.*got 0"),
        (lambda: losses.LaplaceNLL(scale=math.inf), r"`scale`.*finite.*got inf"),
        (lambda: losses.GaussianMixtureNLL(components=0), r"`components`.*got 0"),
        (lambda: losses.MeanSquaredError(dtype="bfloat16"), r"float32 or float64.*'bfloat16'"),
        (lambda: losses.MeanSquaredError(reduction="median"), r"reduction=median"),
    ],
)
def test_bad_arguments_say_what_came_and_what_is_expected(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_focal_with_one_alpha_is_the_papers_binary_form():
    got = losses.Focal(gamma=2.0, alpha=0.25).call([1, 0], [[0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(got, np.array([0.25, 0.75]) * 0.25 * math.log(2), rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_config_round_trip(name):
    loss = type(ALL[name])(
        **{k: v for k, v in ALL[name].get_config().items() if k not in ("reduction", "dtype")},
        reduction="sum",
        dtype="float64",
    )
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    assert (again.reduction, again.dtype) == ("sum", "float64")


# -------------------------------------------------- inside Keras


def training_setup(name):
    """A model with one dense layer, and data that suit the loss."""
    loss = ALL[name]
    targets, _ = (part[:8] for part in grid(name))
    targets = np.clip(targets, 0, 2)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    classes = 2 if name.startswith("binary") else 3
    width = loss.num_outputs(classes if loss.task == "classification" else 1)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(width, kernel_initializer="ones")]
    )
    return model, x, targets


@pytest.mark.parametrize("name", ALL)
def test_survives_a_keras_file(name, tmp_path):
    model, x, targets = training_setup(name)
    model.compile(optimizer="sgd", loss=ALL[name])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.loss) is type(ALL[name])
    assert loaded.loss.get_config() == ALL[name].get_config()
    assert loaded.evaluate(x, targets, verbose=0) == model.evaluate(x, targets, verbose=0)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("name", ALL)
def test_one_step_equals_the_formula(name, jit):
    model, x, targets = training_setup(name)
    expected = reference(name, targets, np.asarray(model(x))).mean()
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss=ALL[name], jit_compile=jit)
    before = model.get_weights()[0]
    if name == "zero-one":  # no gradient
        got = model.test_on_batch(x, targets)
    else:
        got = model.train_on_batch(x, targets)
        moved = np.abs(model.get_weights()[0] - before).max()
        assert 0 < moved < np.inf
    np.testing.assert_allclose(float(np.ravel(got)[0]), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_mixed_bfloat16_outputs_are_computed_in_float32(name):
    _, x, targets = training_setup(name)
    width = training_setup(name)[0].output_shape[-1]
    policy = keras.DTypePolicy("mixed_bfloat16")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(width, dtype=policy)])
    outputs = model(x)
    assert outputs.dtype == "bfloat16"
    expected = reference(name, targets, np.asarray(keras.ops.cast(outputs, "float32"))).mean()
    value = ALL[name](targets, outputs)
    assert value.dtype == "float32"
    # bfloat16 arithmetic would be off by 1e-2
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)
    predicted = ALL[name].predict(outputs)
    assert {v.dtype for v in predicted.values()} == {tf.float32}
    if name != "zero-one":
        model.compile(optimizer=keras.optimizers.SGD(0.01), loss=ALL[name])
        before = model.get_weights()[0]
        assert np.isfinite(model.train_on_batch(x, targets))
        assert np.abs(model.get_weights()[0] - before).max() > 0


@pytest.mark.parametrize("name", ALL)
def test_predict_and_interval_in_a_graph_of_unknown_batch(name):
    loss = ALL[name]
    _, outputs = (part[:5] for part in grid(name))

    @tf.function(input_signature=[tf.TensorSpec((None, outputs.shape[1]), tf.float32)])
    def answer(values):
        answers = dict(loss.predict(values))
        if name in ("gaussian", "laplace", "gaussian-mixture"):
            answers["low"], answers["high"] = loss.interval(values, 0.5)
        return answers

    eager = loss.predict(outputs)
    graph = answer(outputs)
    for key, value in eager.items():
        assert value.shape[0] == 5
        np.testing.assert_allclose(graph[key], value, rtol=1e-6)
    if "low" in graph:
        assert np.all(graph["low"] < graph["high"])


def test_class_weights_multiply_the_losses_of_their_class():
    logits = np.random.default_rng(3).normal(size=(6, 3)).astype("float32")
    labels = np.array([0, 1, 2, 2, 1, 0])
    weights = np.array([0.5, 2.0, 1.5])
    own = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    loss = losses.CrossEntropy(class_weights=weights.tolist())
    expected = weights[labels] * own[np.arange(6), labels]
    np.testing.assert_allclose(loss.call(labels, logits), expected, rtol=1e-5)
    assert float(loss(labels, logits)) == pytest.approx(expected.mean(), rel=1e-5)
    shares = np.eye(3)[labels] * 0.7 + 0.1
    soft = (shares * weights).sum(1) * (shares * own).sum(1)
    np.testing.assert_allclose(loss.call(shares.astype("float32"), logits), soft, rtol=1e-5)
    again = losses.CrossEntropy.from_config(loss.get_config())
    np.testing.assert_allclose(again.call(labels, logits), expected, rtol=1e-5)


def test_balanced_class_weights_are_the_inverse_shares():
    loss = losses.CrossEntropy(class_weights="balanced")
    with pytest.raises(ValueError, match="balance"):
        loss.call(np.array([0]), np.zeros((1, 2), "float32"))
    labels = np.array([0, 0, 0, 1])
    loss.balance(labels)
    assert loss.class_weights == pytest.approx([4 / 6, 4 / 2])
    assert np.mean(np.array(loss.class_weights)[labels]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="2 numbers, and there are 3 classes"):
        loss.num_outputs(3)
    for bad in ("even", 3.0, [1.0, -1.0]):
        with pytest.raises(ValueError, match="class_weights"):
            losses.CrossEntropy(class_weights=bad)
