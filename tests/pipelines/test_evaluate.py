"""Metrics against scikit-learn and SciPy; intervals; what evaluate writes and refuses."""

import json
import shutil

import keras
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from epochal.models import losses
from epochal.pipelines import evaluate as verb
from epochal.pipelines.data import load
from epochal.pipelines.evaluate import PICTURES, measure
from epochal.pipelines.intervals import intervals
from epochal.pipelines.run import Run, RunError
from epochal.pipelines.supervised import classification, predict_split, regression


def _softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def twelve():
    draw = np.random.default_rng(3)
    target = draw.integers(0, 12, 200)
    target[target == 11] = 0  # class 11 is only ever predicted
    logits = draw.normal(size=(200, 12)) + 1.5 * np.eye(12)[target]
    return target, _softmax(logits).astype(np.float32)


def _values(statistic, n):
    return {k: float(v[0]) for k, v in statistic(np.arange(n)[None]).items()}


def test_classification_metrics_equal_scikit_learn(twelve):
    target, p = twelve
    chosen = p.argmax(1)
    found = _values(classification(target, p), 200)
    assert found["accuracy"] == reference.accuracy_score(target, chosen)
    f1 = reference.f1_score(target, chosen, average="macro")
    assert found["macro_f1"] == pytest.approx(f1, abs=1e-12)
    exact = p.astype(float) / p.astype(float).sum(axis=1, keepdims=True)
    surprise = reference.log_loss(target, exact, labels=np.arange(12))
    assert found["log_loss"] == pytest.approx(surprise, rel=1e-5)
    top5 = reference.top_k_accuracy_score(target, p, k=5, labels=np.arange(12))
    assert found["top5_accuracy"] == pytest.approx(top5, abs=1e-12)
    gaps = 0.0  # expected calibration error as a loop
    confidence, right = p.max(1), chosen == target
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            gaps += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert found["calibration_error"] == pytest.approx(gaps, abs=1e-6)


def test_a_resample_is_measured_as_if_it_were_the_split(twelve):
    target, p = twelve
    index = np.random.default_rng(0).integers(0, 200, (2, 60))
    found = classification(target, p)(index)
    for row in (0, 1):
        t, q = target[index[row]], p[index[row]]
        f1 = reference.f1_score(t, q.argmax(1), average="macro")
        assert found["macro_f1"][row] == pytest.approx(f1, abs=1e-12)
        again = _values(classification(t, q), 60)
        assert found["calibration_error"][row] == pytest.approx(again["calibration_error"])


def test_votes_have_no_log_loss_and_ten_classes_no_top5():
    votes = np.array([[1.0, 0.0], [0.4, 0.6]], np.float32)
    found = _values(classification(np.array([1, 1]), votes, probabilistic=False), 2)
    right = {"accuracy": 0.5, "macro_f1": 1 / 3, "calibration_error": 0.7}
    assert found == pytest.approx(right, abs=1e-7)


def test_a_zero_probability_is_a_finite_loss():
    p = np.array([[1.0, 0.0]], np.float32)
    found = _values(classification(np.array([1]), p), 1)
    assert found["log_loss"] == pytest.approx(-np.log(np.finfo(np.float32).eps))


def test_regression_metrics_equal_scikit_learn():
    draw = np.random.default_rng(0)
    target = 1e4 + draw.normal(size=50)  # R2 cancels in a careless formula
    predictions = {"prediction": target + draw.normal(size=50) / 2}
    found = _values(regression(target, predictions), 50)
    guess = predictions["prediction"]
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(target, guess))
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(target, guess))
    assert found["r2"] == pytest.approx(reference.r2_score(target, guess), abs=1e-9)
    mare = reference.mean_absolute_percentage_error(target, guess)
    assert found["mare"] == pytest.approx(mare)


def test_relative_error_at_zero_and_r2_of_a_constant():
    found = _values(regression(np.zeros(2), {"prediction": np.array([0.002, 0.0])}), 2)
    assert found["mare"] == pytest.approx(1.0)  # (0.002 / 0.001 + 0) / 2
    assert np.isnan(found["r2"])


def test_intervals_cover_the_truth_and_are_seeded():
    draw = np.random.default_rng(0)
    hits = 0
    for trial in range(60):
        right = draw.random(150) < 0.8
        p = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
        found = intervals(classification(np.zeros(150, int), p), 150, seed=trial)["accuracy"]
        assert found["low"] <= found["value"] <= found["high"]
        hits += found["low"] <= 0.8 <= found["high"]
    assert 52 <= hits <= 60  # 95% of 60 is 57
    width = found["high"] - found["low"]
    assert width == pytest.approx(2 * 1.96 * np.sqrt(0.16 / 150), rel=0.25)
    once, again = (intervals(classification(np.zeros(150, int), p), 150) for _ in range(2))
    assert once == again


def test_the_calibration_error_lies_within_its_interval():
    """Resampling raises it: the plain percentiles of a calibrated model lie above its value."""
    draw = np.random.default_rng(0)
    p = draw.uniform(0.5, 1.0, 600)
    target = (draw.random(600) > p).astype(int)
    statistic = classification(target, np.stack([p, 1 - p], axis=1))
    found = intervals(statistic, 600)["calibration_error"]
    resamples = statistic(draw.integers(0, 600, (1_000, 600)))["calibration_error"]
    assert resamples.mean() > found["value"] + 0.005
    assert 0 <= found["low"] < found["value"] < found["high"]
    width = np.subtract(*np.percentile(resamples, [97.5, 2.5]))
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.2)


def test_a_difference_of_calibration_errors_may_be_negative():
    """A calibrated model against the same with all doubts taken away."""
    draw = np.random.default_rng(0)
    p = draw.uniform(0.5, 1.0, 600)
    target = (draw.random(600) > p).astype(int)
    calm, sure = (classification(target, np.stack([q, 1 - q], axis=1)) for q in (p, p**0.01))

    def gap(index):
        return {k: calm(index)[k] - sure(index)[k] for k in ("calibration_error", "accuracy")}

    found = intervals(gap, 600, differences=True)["calibration_error"]
    assert -0.3 < found["low"] < found["value"] < found["high"] < -0.15


def test_resamples_are_drawn_in_bounded_batches():
    most = 0

    def statistic(index):
        nonlocal most
        most = max(most, index.size)
        return {"mean": index.mean(axis=-1)}

    intervals(statistic, 100_000)
    assert most <= 2**21


def test_one_example_has_no_interval():
    found = intervals(classification(np.array([0]), np.array([[0.7, 0.3]])), 1)["accuracy"]
    assert found["value"] == 1
    assert np.isnan([found["low"], found["high"]]).all()


def test_likelihoods_are_measured_in_the_targets_units(housing):
    dataset, run = housing.dataset, housing.run
    result, predictions = measure(run.model, run.loss, dataset, "train")
    mean, deviation = dataset.target_scale
    x = np.concatenate([x for x, _ in dataset.split("train").as_numpy_iterator()])
    y = dataset.targets("train")
    outputs = run.model.predict(x, verbose=0)
    centre = outputs[:, 0] * deviation + mean
    stddev = (np.log1p(np.exp(outputs[:, 1] + np.log(np.e - 1))) + 1e-3) * deviation
    np.testing.assert_allclose(predictions["prediction"], centre, rtol=1e-5)
    np.testing.assert_allclose(predictions["stddev"], stddev, rtol=1e-4)
    found = {name: m["value"] for name, m in result["metrics"].items()}
    nll = -stats.norm.logpdf(y, centre, stddev).mean()
    assert found["nll"] == pytest.approx(nll, rel=1e-4)
    inside = np.abs(y - centre) <= 1.6448536 * stddev
    assert found["coverage_90"] == pytest.approx(inside.mean())
    assert result["examples"] == len(y)


def test_quantiles_cover_without_a_likelihood(diabetes):
    result, predictions = measure(diabetes.run.model, diabetes.run.loss, diabetes.dataset, "test")
    assert "nll" not in result["metrics"]
    np.testing.assert_allclose(predictions["low_90"], predictions["quantiles"][:, 0], rtol=1e-6)
    y = diabetes.dataset.targets("test")
    inside = (predictions["quantiles"][:, 0] <= y) & (y <= predictions["quantiles"][:, 2])
    assert result["metrics"]["coverage_90"]["value"] == pytest.approx(inside.mean())
    # a loss without the 5% and 95% quantiles has no coverage
    other = losses.Quantile(quantiles=[0.25, 0.5, 0.75])
    assert "low_90" not in predict_split(diabetes.run.model, other, diabetes.dataset, "test")


def test_evaluate_writes_result_and_plots(digits):
    result = verb(digits.run, "test")
    written = json.loads((digits.run.path / "evaluation-test.json").read_text())
    assert written == result
    assert set(result["metrics"]) == {"accuracy", "macro_f1", "log_loss", "calibration_error"}
    x, y = (np.concatenate(a) for a in zip(*digits.dataset.split("test").as_numpy_iterator(),
                                           strict=True))  # fmt: skip
    chosen = digits.run.model.predict(x, verbose=0).argmax(1)
    assert result["metrics"]["accuracy"]["value"] == pytest.approx((chosen == y).mean())
    names = {p.name for p in (digits.run.path / "plots").iterdir() if p.is_file()}
    assert names == {
        "confusion_matrix.png", "calibration.png", "worst_mistakes.png",
        "filters.png", "feature_maps.png", "grad_cam.png",
    }  # fmt: skip
    assert names < set(PICTURES)


def test_evaluate_keeps_the_test_plots_when_another_split_is_measured(housing):
    verb(housing.run.path, "validation")
    assert [p.name for p in (housing.run.path / "plots" / "validation").iterdir()] == [
        "residuals.png"  # and nothing for images
    ]
    assert not (housing.run.path / "plots" / "residuals.png").exists()


def test_votes_through_evaluate(neighbors):
    result, predictions = measure(
        neighbors.run.model, neighbors.run.loss, neighbors.dataset, "test"
    )
    assert "log_loss" not in result["metrics"]
    assert result["metrics"]["accuracy"]["value"] >= 0.9
    assert set(np.round(np.unique(predictions["probabilities"]) * 3)) <= {0, 1, 2, 3}


def test_other_data_and_unknown_splits_are_refused(arrays, tmp_path):
    with pytest.raises(RunError, match="no split 'tset'.*train, validation, test"):
        verb(arrays.run, "tset", data=arrays.arrays)
    with pytest.raises(RunError, match=r"arrays from Python.*evaluate\(.*, 'test', data="):
        verb(arrays.run)
    x, y = arrays.arrays
    with pytest.raises(RunError, match="are not those of .* .fingerprint"):
        verb(arrays.run, data=(x + 1, y))
    copy = tmp_path / "run"
    shutil.copytree(arrays.run.path, copy)
    about = json.loads((copy / "dataset.json").read_text())
    about["sizes"]["test"] += 1
    (copy / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match="splits into"):
        verb(Run(copy), data=arrays.arrays)


def test_dropout_and_batch_statistics_are_off(digits):
    once = predict_split(digits.run.model, digits.run.loss, digits.dataset, "validation")
    again = predict_split(digits.run.model, digits.run.loss, load(digits.run.recipe.data),
                          "validation")  # fmt: skip
    np.testing.assert_array_equal(once["probabilities"], again["probabilities"])
    assert keras.backend.backend() == "tensorflow"
