"""Series: what a file must be, windows that leak nothing, splits by time, streams that resume."""

import csv
import gzip
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from epochal.pipelines import forecasts
from epochal.pipelines.data import OpsError, SourceError, load
from epochal.pipelines.data.preprocess import restore
from epochal.pipelines.data.series import Step
from epochal.pipelines.recipe import Data

HALF_HOURS = np.datetime64("2014-01-01T00:00") + 30 * np.arange(2_000).astype("timedelta64[m]")


def write(path, times, **columns):
    """A series as CSV; gzipped where the name says so."""
    rows = zip(times, *columns.values(), strict=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([["time", *columns], *rows])
    return path


@pytest.fixture
def ramp(tmp_path):
    """200 rows: the target is the row's number, the helper the same and a half."""
    n = np.arange(200)
    return write(tmp_path / "ramp.csv", HALF_HOURS[:200], helper=n + 0.5, target=n)


def rows_of(dataset, split):
    """Of each window the rows seen, the rows known of the future, and the rows to forecast."""
    for x, y in dataset.split(split):
        yield from zip(*(a.numpy() for a in (x["history"], x["future"], y)), strict=True)


def test_no_window_sees_its_horizon_and_no_horizon_lies_in_two_splits(ramp):
    data = load(Data(source=f"series:{ramp}", ops="known('helper')|window(7, 4)", batch_size=16))
    assert data.sizes == {"train": 144 - 7 - 3, "validation": 16 - 3, "test": 40 - 3}
    assert (data.kind, data.task, data.num_targets) == ("series", "forecasting", 1)
    assert (data.input_shape, data.future_shape) == ((7, 2), (4, 1))
    edges = {"train": (0, 144), "validation": (144, 160), "test": (160, 200)}
    seen = {}
    for split, (begin, end) in edges.items():
        seen[split] = set()
        for history, future, ahead in rows_of(data, split):
            first = int(ahead[0, 0])  # a row's target is its number
            assert ahead[:, 0].tolist() == [*range(first, first + 4)]
            assert history[:, 1].tolist() == [*range(first - 7, first)]
            assert future[:, 0].tolist() == [row + 0.5 for row in range(first, first + 4)]
            seen[split] |= set(ahead[:, 0].astype(int).tolist())
        assert min(seen[split]) == max(begin, 7)
        assert max(seen[split]) == end - 1
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    # Histories of the test may reach back into validation: that is known by then.
    history, _, ahead = next(rows_of(data, "test"))
    assert (history[0, 1], ahead[0, 0]) == (153, 160)


def test_training_windows_keep_their_stride_and_the_latest(ramp):
    settings = {"source": f"series:{ramp}", "shuffle": False}
    data = load(Data(**settings, ops="window(7, 4, stride=5)"))
    assert data.origins("train").tolist() == [*range(10, 141, 5)]
    assert data.sizes["test"] == 37  # every step is measured
    data = load(Data(**settings, ops="window(7, 4)", train_examples=3))
    assert data.origins("train").tolist() == [138, 139, 140]


def test_statistics_are_of_the_training_rows_and_targets_come_back(ramp):
    data = load(Data(source=f"series:{ramp}", ops="standardize|window(7, 4)"))
    training = np.arange(144.0)
    assert data.target_scale[0] == pytest.approx([training.mean()])
    assert data.target_scale[1] == pytest.approx([training.std()])
    state = data.preprocess.states[0]
    assert state["mean"]["helper"] == pytest.approx(training.mean() + 0.5)
    x, y = next(iter(data.split("test")))
    np.testing.assert_allclose(
        y.numpy() * training.std() + training.mean(), data.targets("test")[: len(y)], rtol=1e-5
    )
    np.testing.assert_allclose(x[0, :, 1], (np.arange(153, 160) - 71.5) / training.std(), rtol=1e-5)
    # With fewer windows, of their rows alone.
    data = load(Data(source=f"series:{ramp}", ops="standardize|window(7, 4)", train_examples=2))
    assert data.target_scale[0] == pytest.approx([np.arange(132.0, 144).mean()])


def test_the_calendar_is_known_in_advance(tmp_path):
    path = write(tmp_path / "s.csv.gz", HALF_HOURS[:700], y=np.arange(700) % 5)
    data = load(Data(source=f"series:{path}", ops="calendar('hour', 'weekday')|window(48, 4)"))
    names = data.preprocess.inputs
    assert names["columns"] == ["y", "hour_sin", "hour_cos", "weekday_sin", "weekday_cos"]
    assert names["known"] == names["columns"][1:]
    raw = data.raw("train", [0])
    # The first origin is row 48: Thursday the 2nd of January 2014, 0:00; Monday is 0.
    angle = 2 * np.pi * 3 / 7
    expected = [0, 1, np.sin(angle), np.cos(angle)]
    np.testing.assert_allclose(raw["future"][0, 0], expected, atol=1e-6)
    quarter = raw["history"][0, 12]  # 6:00 the day before
    np.testing.assert_allclose(quarter[1:3], [1, 0], atol=1e-6)
    np.testing.assert_array_equal(raw["history"][0, :, 0], np.arange(48) % 5)


def test_serving_equals_the_split_bit_for_bit(tmp_path):
    noise = np.random.default_rng(0).normal(size=(2, 400)).round(3)
    path = write(tmp_path / "s.csv", HALF_HOURS[:400], a=noise[0], b=5 + 3 * noise[1])
    ops = "calendar('hour', 'yearday')|standardize|window(20, 6)"
    data = load(Data(source=f"series:{path}", ops=ops, target="a, b"))
    assert data.target_names == ("a", "b")
    saved = json.loads(json.dumps(data.describe()))
    preprocess = restore(saved["preprocess"])
    serve = tf.function(preprocess.serve, input_signature=[preprocess.raw_signature()])
    served = serve({k: tf.constant(v) for k, v in data.raw("test", np.arange(9)).items()})
    x, y = next(iter(data.split("test")))
    for name in ("history", "future"):
        assert np.array_equal(served[name], x[name][:9])
    mean, deviation = data.target_scale
    np.testing.assert_allclose(y * deviation + mean, data.targets("test")[: len(y)], atol=1e-5)


def test_a_stream_from_any_step_is_the_stream_from_the_beginning(ramp):
    settings = Data(
        source=f"series:{ramp}", ops="known('helper')|standardize|window(7, 4)", batch_size=50
    )

    def batches(start, steps):
        return [
            (x["history"].numpy(), y.numpy()) for x, y in load(settings).train(3, start).take(steps)
        ]

    whole = batches(0, 8)  # nearly three epochs of 134
    for start in (1, 3, 5):
        for (x, y), (wanted_x, wanted_y) in zip(batches(start, 2), whole[start:], strict=False):
            assert np.array_equal(x, wanted_x)
            assert np.array_equal(y, wanted_y)
    first = np.concatenate([y for _, y in whole])[:134, 0, 0]
    assert len(np.unique(first)) == 134
    assert not (np.diff(first) > 0).all()


BAD = {
    "gap": (np.delete(HALF_HOURS[:41], 7), {}, r"step .* is 30 minutes.*row 8;.*2014-01-01T04:00"),
    "double": (HALF_HOURS[:40][[*range(5), 4, *range(5, 39)]], {}, r"row 6;.*comes the same time"),
    "unsorted": (HALF_HOURS[:40][::-1], {}, "comes an earlier time.*Sort the rows"),
    "stamp": (
        [*map(str, HALF_HOURS[:39]), "2014-02-30T00:00"], {}, r"1 of 40 rows \(row 40;.*2014-02-30"
    ),
    "missing": (HALF_HOURS[:40], {"y": [1, 2, ""] + [3] * 37}, "'y' has no value in 1 of 40 rows"),
    "text": (HALF_HOURS[:40], {"y": ["a"] * 40}, "no column of numbers beside"),
    "clock": ([*range(40)], {}, "no column of time stamps"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_series(tmp_path, name):
    times, columns, message = BAD[name]
    path = write(tmp_path / "bad.csv", times, **({"y": np.arange(40)} | columns))
    with pytest.raises(SourceError, match=message):
        load(Data(source=f"series:{path}", ops="window(4, 2)"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ops": "window(150, 60)"}, SourceError, "200 rows.*needs 210"),
        ({"ops": "window(7, 17)"}, SourceError, "validation split .* 16 rows.* needs 17 there"),
        ({"ops": "standardize"}, OpsError, "end with window"),
        ({"ops": "window(3, 2)|standardize"}, OpsError, "end with window"),
        ({"ops": "known('target')|window(3, 2)"}, OpsError, "'target' is what is to be forecast"),
        ({"ops": "known('helpers')|window(3, 2)"}, OpsError, "Did you mean 'helper'"),
        ({"ops": "known()|window(3, 2)"}, OpsError, "must name a column"),
        ({"ops": "window(3, 2)|window(3, 2)"}, OpsError, "'window' stands more than once"),
        ({"ops": "calendar('hours')|window(3, 2)"}, OpsError, "Did you mean 'hour'"),
        ({"ops": "impute|window(3, 2)"}, OpsError, "source gives series"),
        ({"ops": "window(0, 2)"}, OpsError, "history=0.*greater than or equal to 1"),
        ({"target": "targets"}, SourceError, "Did you mean 'target'"),
        ({"split": "random"}, SourceError, "neighbours of training rows"),
        ({"standardize_target": True}, SourceError, "the op standardize scales"),
        ({"train_examples": 500}, SourceError, "only 134 windows"),
        ({"source": "series:@nsmc"}, SourceError, "holds text.*@electricity-demand"),
    ],
)
def test_settings_that_cannot_work(ramp, settings, error, message):
    with pytest.raises(error, match=message):
        load(Data(**{"source": f"series:{ramp}", "ops": "window(7, 4)"} | settings))


def test_a_target_that_never_changes_is_refused(tmp_path):
    path = write(tmp_path / "flat.csv", HALF_HOURS[:60], y=[4] * 60)
    with pytest.raises(SourceError, match="'y' is 4 in every training row"):
        load(Data(source=f"series:{path}", ops="standardize|window(3, 2)"))


@pytest.mark.parametrize(
    ("times", "step", "naive"),
    [
        (HALF_HOURS[:60], "30 minutes", {"yesterday": 48, "last_week": 336}),
        (np.arange("2014-01-01", "2014-03-02", dtype="datetime64[D]"), "1 day", {"last_week": 7}),
        (
            np.arange("2014-01", "2019-01", dtype="datetime64[M]").astype("datetime64[D]"),
            "1 month",
            {"last_year": 12},
        ),
        (
            np.arange("1900", "1960", dtype="datetime64[Y]").astype("datetime64[D]"),
            "12 months",
            {"last_value": 1},
        ),
    ],
)
def test_steps_and_the_seasons_that_they_suggest(tmp_path, times, step, naive):
    path = write(tmp_path / "s.csv", times, y=np.arange(len(times)))
    data = load(Data(source=f"series:{path}", ops="window(6, 2)"))
    found = Step(**data.about["time"]["step"])
    assert str(found) == step
    assert forecasts.seasons(found) == naive
    assert forecasts.seasons(found, 5) == {"last_season": 5}
    # What follows a time stamp is what follows it in the file.
    np.testing.assert_array_equal(found.after(times[9], 3), times[10:13].astype("datetime64[s]"))


@pytest.mark.skipif("EPOCHAL_DATA_DIR" not in os.environ, reason="EPOCHAL_DATA_DIR is not set")
def test_naive_forecasts_of_electricity_have_their_known_errors():
    ops = "calendar('hour', 'weekday')|known('workday')|standardize|window(336, 48)"
    data = load(Data(source="series:@electricity-demand", ops=ops))
    assert data.target_names == ("demand_gw",)
    assert data.sizes["test"] == 3_504 - 47
    naive = forecasts.naive(data, "test")
    known = {"yesterday": (48, 0.4726), "last_week": (336, 0.4340)}
    assert set(naive) == set(known)
    demand = data._readers["train"].truth[:, 0]
    for name, (season, right) in known.items():
        # Over the rows of the test, and over its windows, where the rows at its ends count less.
        error = (demand[season:] - demand[:-season])[-3_504:]
        assert np.sqrt(np.square(error).mean()) == pytest.approx(right, abs=5e-5)
        error = naive[name] - data.targets("test")
        assert np.sqrt(np.square(error).mean()) == pytest.approx(right, abs=0.01)
