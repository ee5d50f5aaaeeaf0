"""Forecasts: metrics against figures by hand, training, pictures, exports and answers."""

import csv
import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import losses
from epochal.pipelines import conformal, export, forecasts, predict, train
from epochal.pipelines.data import SourceError, load
from epochal.pipelines.evaluate import evaluate
from epochal.pipelines.recipe import Recipe, RecipeError, override
from epochal.pipelines.served import examples
from epochal.pipelines.supervised import predict_split
from epochal.pipelines.verify import ask_alone

HOURS = np.datetime64("2020-06-01T00") + np.arange(1_000)
HISTORY, HORIZON = 24, 12


@pytest.fixture(scope="session")
def waves(tmp_path_factory):
    """Two noisy sines of hourly steps; the height of a day's wave is announced in advance."""
    draw = np.random.default_rng(0)
    hour, day = np.arange(1_000) % 24, np.arange(1_000) // 24
    height = draw.uniform(1, 3, 42)[day].round(2)
    load = 20 + height * np.sin(2 * np.pi * hour / 24) + 0.1 * draw.normal(size=1_000)
    price = 300 - 10 * load + draw.normal(size=1_000)
    path = tmp_path_factory.mktemp("series") / "waves.csv"
    with open(path, "w", newline="") as out:
        csv.writer(out).writerows(
            [
                ("time", "height", "load", "price"),
                *zip(HOURS, height, load.round(3), price.round(2), strict=True),
            ]
        )
    return path


def waves_recipe(path, **changes):
    settings = {
        "source": f"series:{path}",
        "ops": f"calendar('hour')|known('height')|standardize|window({HISTORY}, {HORIZON})",
        "target": "load",
    }
    return Recipe(
        name="waves",
        data=settings | changes.pop("data", {}),
        model="lstm(hidden=[16])",
        loss=changes.pop("loss", "quantile"),
        algorithm={"optimizer": "adam(learning_rate=0.02)", "clip_norm": 1.0}
        | changes.pop("algorithm", {"steps": 120, "steps_per_epoch": 40}),
    )


@pytest.fixture(scope="session")
def run(waves, tmp_path_factory):
    return train(waves_recipe(waves), tmp_path_factory.mktemp("runs") / "waves")


@pytest.fixture(scope="session")
def both(waves, tmp_path_factory):
    """Two targets, a likelihood, and nothing known of the future; hardly trained."""
    recipe = waves_recipe(
        waves,
        data={"target": "load, price", "ops": f"standardize|window({HISTORY}, {HORIZON})"},
        loss="gaussian",
        algorithm={"steps": 4},
    )
    return train(recipe, tmp_path_factory.mktemp("runs") / "both")


def test_it_learns_what_repeating_yesterday_cannot_know(run):
    test = run.metrics["test"]
    value = {name: metric["value"] for name, metric in test.items()}
    assert value["rmse"] < 0.6 * value["rmse_yesterday"]
    assert value["skill"] == pytest.approx(
        1 - value["rmse"] / min(value["rmse_yesterday"], value["rmse_last_week"])
    )
    assert 0.4 < test["skill"]["low"] < value["skill"] < test["skill"]["high"] < 1
    assert value["coverage_90"] > 0.6
    # What was recorded in training is in the target's own unit too.
    assert run.history[-1]["val_rmse"] == pytest.approx(
        run.metrics["validation"]["rmse"]["value"], rel=0.3
    )
    drawn = {path.name for path in (run.path / "plots").iterdir()}
    assert drawn == {"learning_curves.png", "forecasts.png", "error_by_horizon.png"}
    assert "skill" in (run.path / "README.md").read_text()


def test_conformal_intervals_hold_their_share_of_validation(run):
    dataset = load(run.recipe.data)
    wider, found = conformal.widen(run.model, run.loss, dataset)
    n = dataset.sizes["validation"]
    assert found["windows"] == n
    before, after = (
        forecasts.measure(
            dataset, "validation", predict_split(model, run.loss, dataset, "validation")
        )
        for model in (run.model, wider)
    )
    # The ceil(0.9 (n + 1))-th of n distances is the bound: at each step so many lie within, or one
    # less, since float32 may round the bound to the wrong side of it.
    share = math.ceil(0.9 * (n + 1)) / n
    np.testing.assert_allclose(after["by_horizon"]["coverage_90"], share, atol=1.01 / n)
    assert np.abs(before["by_horizon"]["coverage_90"] - share).max() > 1.5 / n
    assert after["metrics"]["rmse"] == before["metrics"]["rmse"]

    x, _ = next(iter(dataset.split("test")))
    moved = np.asarray(wider(x)) - np.sort(run.model(x), axis=-1)
    moved *= dataset.target_scale[1][0]
    np.testing.assert_allclose(moved[..., 1], 0, atol=1e-4)
    np.testing.assert_allclose(moved[..., 0], -moved[..., 2], atol=1e-4)
    np.testing.assert_allclose(moved[3], moved[0], atol=1e-4)  # the same of every window
    assert moved[0, :, 2].mean() == pytest.approx(found["widening"]["load"]["90"], abs=1e-4)


def test_conformal_intervals_are_stored_with_the_run_and_exported(waves, tmp_path):
    recipe = waves_recipe(waves, algorithm={"steps": 4, "conformal": True})
    run = train(recipe, tmp_path / "run")
    dataset = load(recipe.data)
    shift = run.model.get_layer("conformal").shift.numpy()
    assert shift.shape == (HORIZON, 3)
    widening = run.metrics["conformal"]["widening"]["load"]["90"]
    assert shift[:, 2].mean() * dataset.target_scale[1][0] == pytest.approx(widening, rel=1e-5)
    rows, x = examples(run)
    request = {f"serving_default/{name}": values for name, values in rows.items()}
    answer = ask_alone([export(run)], [request])[0]["serving_default/quantiles"]
    (mean,), (deviation,) = dataset.target_scale
    right = np.asarray(run.model(x)) * deviation + mean
    np.testing.assert_allclose(answer[:, :, 0], right, atol=1e-3)  # of the only target


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "gaussian"}, "has none. Choose quantile"),
        ({"data.validation_fraction": 0.02}, "needs 9 windows or more"),
    ],
)
def test_conformal_intervals_need_quantiles_and_windows(waves, tmp_path, changes, words):
    recipe = override(waves_recipe(waves), {"algorithm.conformal": True, **changes})
    with pytest.raises(RecipeError, match=words):
        train(recipe, tmp_path / "run")


def test_an_interrupted_run_ends_with_the_same_bits(run, waves, tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == 60:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run.recipe, tmp_path / "again", callbacks=[Kill()])
    again = train(run.recipe, tmp_path / "again")
    assert again.history == run.history
    for weights, right in zip(again.model.weights, run.model.weights, strict=True):
        np.testing.assert_array_equal(weights, right)


def test_metrics_against_the_predictions_themselves(run):
    result = evaluate(run)
    dataset = load(run.recipe.data)
    truth = dataset.targets("test").astype(float)
    batches = dataset.split("test")
    outputs = np.concatenate([run.model.predict_on_batch(x) for x, _ in batches])
    (mean,), (deviation,) = dataset.target_scale
    quantiles = np.sort(outputs, axis=-1) * deviation + mean
    error = quantiles[:, :, 1] - truth[:, :, 0]
    lines = Path(_source_file(run)).read_text().splitlines()
    rows = [float(line.split(",")[2]) for line in lines[1:]]
    training = np.array(rows[:720])  # 1,000 rows: 200 test, 80 of the others validate
    right = {
        "rmse": math.sqrt(np.square(error).mean()),
        "mae": np.abs(error).mean(),
        "mase": np.abs(error).mean() / np.abs(training[24:] - training[:-24]).mean(),
    }
    inside = (quantiles[:, :, 0] <= truth[:, :, 0]) & (truth[:, :, 0] <= quantiles[:, :, 2])
    right["coverage_90"] = inside.mean()
    pinball = [
        np.maximum(tau * gap, (tau - 1) * gap).mean()
        for tau, gap in (
            (0.05, truth[:, :, 0] - quantiles[:, :, 0]),
            (0.95, truth[:, :, 0] - quantiles[:, :, 2]),
        )
    ]
    right["pinball"] = np.mean(pinball)
    starts = 800 + np.arange(200 - HORIZON + 1)
    assert result["examples"] == len(starts)
    for name, season in (("yesterday", 24), ("last_week", 168)):
        repeated = np.array([rows[s - season : s - season + HORIZON] for s in starts])
        right[f"rmse_{name}"] = math.sqrt(np.square(repeated - truth[:, :, 0]).mean())
    for name, value in right.items():
        assert result["metrics"][name]["value"] == pytest.approx(value, rel=1e-4), name
    by_horizon = result["by_horizon"]
    np.testing.assert_allclose(
        by_horizon["rmse"], np.sqrt(np.square(error).mean(axis=0)), rtol=1e-4
    )
    assert len(by_horizon["rmse_last_week"]) == HORIZON
    assert json.loads((run.path / "evaluation-test.json").read_text())["block"] == 2 * HORIZON


def _source_file(run):
    return run.recipe.data.source.removeprefix("series:")


def test_seasonal_forecasts_beyond_a_season_repeat_the_last_one_seen(waves):
    recipe = waves_recipe(waves, data={"season": 5})
    dataset = load(recipe.data)
    origin = dataset.origins("validation")[0]
    truth = dataset._readers["train"].truth[:, 0]
    repeated = forecasts.naive(dataset, "validation")["last_season"][0, :, 0]
    seen = truth[origin - 5 : origin]
    np.testing.assert_array_equal(repeated, np.tile(seen, 3)[:HORIZON])
    assert dataset.seasonal("train", HISTORY + 1) is None  # the first window has no such past


def test_blocks_say_how_little_overlapping_windows_know():
    # A walk of 40 independent values, each held for 50 windows.
    held = np.repeat(np.random.default_rng(0).normal(size=40), 50)
    wide = forecasts.intervals({"a": held}, dict, block=50)["a"]
    narrow = forecasts.intervals({"a": held}, dict, block=1)["a"]
    assert wide["value"] == pytest.approx(held.mean())
    width = 2 * 1.96 * held.std() / math.sqrt(40)
    assert wide["high"] - wide["low"] == pytest.approx(width, rel=0.25)
    assert narrow["high"] - narrow["low"] == pytest.approx(width / math.sqrt(50), rel=0.25)
    short = forecasts.intervals({"a": held[:99]}, dict, block=50)["a"]
    assert math.isnan(short["low"]) and math.isnan(short["high"])  # noqa: PT018


@pytest.mark.parametrize(
    ("loss", "width", "keys"),
    [
        (losses.MeanSquaredError(), 1, {"prediction": 3}),
        (losses.Huber(), 1, {"prediction": 3}),
        (losses.Quantile([0.05, 0.5, 0.95]), 3, {"prediction": 3, "quantiles": 4}),
        (losses.GaussianNLL(), 2, {"prediction": 3, "stddev": 3}),
        (losses.LaplaceNLL(), 2, {"prediction": 3, "stddev": 3}),
    ],
)
@pytest.mark.parametrize("targets", [1, 2])
def test_regression_losses_read_forecasts_step_by_step(loss, width, keys, targets):
    draw = np.random.default_rng(0)
    assert loss.num_outputs(targets) == targets * width
    y = draw.normal(size=(4, 5, targets)).astype(np.float32)
    outputs = draw.normal(size=(4, 5, targets * width)).astype(np.float32)
    # Of every step what the loss says of it as an example of its own.
    each = loss.call(y.reshape(20, targets), outputs.reshape(20, -1))
    np.testing.assert_allclose(np.ravel(loss.call(y, outputs)), np.ravel(each), rtol=1e-6)
    scale = ([10.0, 20.0][:targets], [2.0, 3.0][:targets])
    found = forecasts.in_own_units(loss.predict(outputs), scale)
    assert {name: value.ndim for name, value in found.items()} == keys
    plain = loss.predict(outputs[:, 2])
    for name, value in found.items():
        of_step = np.reshape(plain[name], value[:, 2].shape)
        for place in range(targets):
            shift = 0 if name == "stddev" else scale[0][place]
            np.testing.assert_allclose(
                value[:, 2, place], of_step[:, place] * scale[1][place] + shift, rtol=1e-5
            )


def test_losses_and_models_for_other_tasks_are_refused(waves, tmp_path):
    with pytest.raises(RecipeError, match="'cross-entropy' is for classification.*forecasting"):
        train(waves_recipe(waves, loss="cross-entropy"), tmp_path / "r")
    mlp = override(waves_recipe(waves), {"model.name": "mlp"})
    with pytest.raises(RecipeError, match="'mlp' makes no forecasts. Choose lstm, gru or rnn"):
        train(mlp, tmp_path / "m")


def test_exports_answer_as_keras_in_a_process_with_tensorflow_alone(run, both, tmp_path):
    directories, requests, right = [], [], []
    for one in (run, both):
        rows, x = examples(one, count=3)
        directories.append(export(one, to=tmp_path / one.path.name, verify=False))
        named = x if isinstance(x, dict) else {"x": x}
        requests.append(
            {f"serving_default/{k}": v for k, v in rows.items()}
            | {f"tensor/{k}": v for k, v in named.items()}
        )
        right.append((one.model.predict_on_batch(x), load(one.recipe.data)))
    for answer, (outputs, data) in zip(ask_alone(directories, requests), right, strict=True):
        mean, deviation = np.array(data.target_scale)
        for signature in ("serving_default", "tensor"):
            forecast = answer[f"{signature}/forecast"]
            assert forecast.shape == (3, HORIZON, len(mean))
            np.testing.assert_allclose(
                answer[f"{signature}/forecast#alone"], forecast, rtol=1e-6, atol=1e-5
            )
            if len(mean) == 1:
                sorted_ = np.sort(outputs, axis=-1)[..., None, :] * deviation[0] + mean[0]
                np.testing.assert_allclose(answer[f"{signature}/quantiles"], sorted_, rtol=1e-5)
                np.testing.assert_allclose(forecast, sorted_[..., 1], rtol=1e-5)
            else:  # centre and raw scale side by side, target by target
                np.testing.assert_allclose(
                    forecast, outputs[:, :, ::2] * deviation + mean, rtol=1e-5
                )
                raw = outputs[:, :, 1::2]
                stddev = (np.log1p(np.exp(raw + np.log(np.e - 1))) + 1e-3) * deviation
                np.testing.assert_allclose(answer[f"{signature}/stddev"], stddev, rtol=1e-4)
    about = json.loads((directories[0] / "signature.json").read_text())
    inputs = about["signatures"]["serving_default"]["inputs"]
    assert inputs["history"]["shape"] == [None, HISTORY, 5]
    assert [c["name"] for c in inputs["future"]["columns"]] == ["hour_sin", "hour_cos", "height"]
    assert "sin(2 pi x), x = the time of day" in inputs["future"]["columns"][0]["meaning"]
    assert (about["targets"], about["step"]) == (["load"], "1 hour")
    assert about["quantiles"] == [0.05, 0.5, 0.95]
    loaded = tf.saved_model.load(str(directories[0]))
    row = about["example"]["request"]["instances"][0]
    found = loaded.signatures["serving_default"](
        **{name: tf.constant([value], tf.float32) for name, value in row.items()}
    )
    response = about["example"]["response"]["predictions"][0]
    np.testing.assert_allclose(found["forecast"][0], response["forecast"], rtol=1e-5)


def test_a_file_is_forecast_from_where_its_values_end(run, waves, tmp_path):
    lines = waves.read_text().splitlines()
    # History up to row 799, then the announced heights alone; a column that nobody needs.
    rows = [line.split(",") for line in lines[1 : 800 + HORIZON + 1]]
    file = tmp_path / "new.csv"
    with open(file, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["time", "height", "load", "price", "note"])
        writer.writerows([*row, "x"] for row in rows[700:800])
        writer.writerows([*row[:2], "", "", "x"] for row in rows[800:])
    answers = predict(run, str(file))
    dataset = load(run.recipe.data)
    (place,) = np.flatnonzero(dataset.origins("test") == 800)
    raw = dataset.raw("test", [place])
    right = predict(run, raw)
    assert len(answers) == len(right) == HORIZON
    for step, (answer, other) in enumerate(zip(answers, right, strict=True), 1):
        assert (answer["step"], answer["target"], answer["input"]) == (step, "load", str(file))
        assert answer["forecast"] == pytest.approx(other["forecast"], rel=1e-5)
        assert answer["quantile_0.05"] <= answer["forecast"] <= answer["quantile_0.95"]
    assert answers[0]["time"] == str(HOURS[800].astype("datetime64[s]"))
    assert "time" not in right[0]
    truth = dataset.targets("test")[place, :, 0]
    forecast = np.array([answer["forecast"] for answer in answers])
    assert np.sqrt(np.square(forecast - truth).mean()) < 1.5


def test_inputs_that_cannot_be_forecast_from(run, both, waves, tmp_path):
    lines = waves.read_text().splitlines()

    def written(chosen):
        file = tmp_path / "new.csv"
        file.write_text("\n".join([lines[0], *chosen]) + "\n")
        return str(file)

    with pytest.raises(SourceError, match=r"0 rows after .* needs 12, .*\(height\)"):
        predict(run, written(lines[1:100]))
    with pytest.raises(SourceError, match="20 rows up to the last .* looks back 24"):
        predict(run, written(lines[1:21]))
    with pytest.raises(SourceError, match="a row every 2 hours; .* every 1 hour"):
        predict(run, written(lines[1:101:2]))
    holes = [line.replace(line.split(",")[3], "") for line in lines[80:81]]
    with pytest.raises(SourceError, match="column 'price' has no value in 1 rows"):
        predict(both, written([*lines[60:80], *holes, *lines[81:90]]))
    with pytest.raises(SourceError, match=r"takes history \[None, 24, 5\], future .*; got history"):
        predict(run, np.zeros([1, HISTORY, 5], np.float32))
    with pytest.raises(SourceError, match=r"history has the shape \[1, 24, 4\]"):
        predict(both, np.zeros([1, HISTORY, 4], np.float32))
    # Without anything to know in advance the file ends where the forecast begins.
    answers = predict(both, written(lines[1:100]))
    assert [answer["target"] for answer in answers[:2]] == ["load", "price"]
    assert len(answers) == 2 * HORIZON and "stddev" in answers[0]  # noqa: PT018
    assert answers[-1]["time"] == str(HOURS[98 + HORIZON].astype("datetime64[s]"))


def test_several_targets_are_measured_each_in_its_unit(both):
    test = both.metrics["test"]
    assert {"load.rmse", "price.rmse", "load.coverage_90", "price.skill", "nll"} <= set(test)
    ratio = test["price.rmse_yesterday"]["value"] / test["load.rmse_yesterday"]["value"]
    assert ratio == pytest.approx(10, rel=0.1)  # as price and load were made
    # The density of the targets in their units: Gaussian noise of the size of the errors.
    dataset = load(both.recipe.data)
    predictions = _predictions(both, dataset)
    gap = (predictions["prediction"] - dataset.targets("test")) / predictions["stddev"]
    nll = np.log(predictions["stddev"]) + gap**2 / 2 + math.log(2 * math.pi) / 2
    assert test["nll"]["value"] == pytest.approx(nll.mean(), rel=1e-3)


def _predictions(run, dataset):
    return predict_split(run.model, run.loss, dataset, "test")
