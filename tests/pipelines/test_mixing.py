"""MixUp and CutMix: what is mixed with what, by how much, and the same at every restart."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from epochal.pipelines import recipe as r
from epochal.pipelines.data import SourceError, load, mixing
from epochal.pipelines.data.stream import Draws
from epochal.pipelines.train import train

N, SIDE = 48, 8


def numbered():
    """Every pixel of an image is its number, and each image a class of its own."""
    x = np.broadcast_to(np.arange(N, dtype=np.float32)[:, None, None, None], (N, SIDE, SIDE, 1))
    return x.copy(), np.arange(N)


def data(arrays=None, **settings):
    settings = {"source": "python", "batch_size": 16, "validation_fraction": 0} | settings
    arrays = numbered() if arrays is None else arrays
    return load(r.Data(test_fraction=0, **settings), arrays)


def stream(dataset, start=0, steps=6, seed=0):
    return [(x.numpy(), y.numpy()) for x, y in dataset.train(seed, start).take(steps)]


@pytest.mark.parametrize("per", ["batch", "example"])
def test_mixup_averages_inputs_and_labels_by_the_same_share(per):
    lambdas = []
    for (_, ids), (x, y) in zip(stream(data()), stream(data(mixup=0.7, mix_per=per)), strict=True):
        assert (y.dtype, y.shape) == (np.float32, (16, N))
        np.testing.assert_allclose(y.sum(1), 1, atol=1e-6)
        assert set(y.nonzero()[1]) == set(ids)  # partners come from the batch
        assert (np.count_nonzero(y, axis=1) <= 2).all()
        average = (y @ np.arange(N))[:, None, None, None]
        np.testing.assert_allclose(x, np.broadcast_to(average, x.shape), rtol=1e-5, atol=1e-4)
        own = y[np.arange(16), ids]
        others = y.copy()
        others[np.arange(16), ids] = 0
        mixed = others.max(1) > 0
        assert mixed.sum() >= 12  # a permutation leaves one in its place on average
        assert len(set(others[mixed].argmax(1))) == mixed.sum()
        lambdas.append(own[mixed])
        assert (np.ptp(own[mixed]) < 1e-6) == (per == "batch")
    assert len({round(float(values[0]), 5) for values in lambdas}) == 6


@pytest.mark.parametrize("per", ["batch", "example"])
def test_cutmix_s_labels_are_the_shares_of_the_pixels(per):
    clipped = 0
    for (_, ids), (x, y) in zip(
        stream(data(), steps=12), stream(data(cutmix=1.0, mix_per=per), steps=12), strict=True
    ):
        for image, number, shares in zip(x[..., 0], ids, y, strict=True):
            counts = np.bincount(image.astype(int).ravel(), minlength=N)
            np.testing.assert_allclose(shares, counts / SIDE**2, atol=1e-6)
            assert set(counts.nonzero()[0]) <= set(ids)
            pasted = image != number
            rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
            assert pasted.sum() == len(rows) * len(columns)  # one rectangle
            assert (np.diff(rows) == 1).all()
            assert (np.diff(columns) == 1).all()
            clipped += len(rows) != len(columns)  # of a square image: cut at the border
    assert clipped > 10


def test_cutmix_s_rectangle_has_its_middle_anywhere():
    rows = tf.range(6001, dtype=tf.int64)
    x = tf.concat([tf.zeros([6000, 40, 60, 1]), tf.ones([1, 40, 60, 1])], 0)
    partner, share = tf.fill([6001], 6000), tf.fill([6001], 0.91)  # sides of 12 and 18
    out, _ = mixing.cutmix(x, tf.zeros([6001]), partner, share, Draws(3, rows * 0, rows))
    pasted = out.numpy()[:6000, ..., 0] == 1
    for axis, length, side in ((2, 40, 12), (1, 60, 18)):
        along = pasted.any(axis)
        assert along.sum(1).max() == side
        first, last = along.argmax(1), length - along[:, ::-1].argmax(1)
        middle = np.where(first > 0, first + side // 2, last - side // 2)
        counts = np.bincount(middle, minlength=length)
        expected = 6000 / length
        assert ((counts - expected) ** 2 / expected).sum() < length + 4.5 * np.sqrt(2 * length)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 8.0])
def test_lambda_follows_the_beta_distribution(alpha):
    rows = tf.range(20_000, dtype=tf.int64)
    drawn = mixing.beta(alpha, Draws(1, rows * 0, rows)).numpy()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    wanted = stats.beta(alpha, alpha)
    for point in (0.01, 0.1, 0.3, 0.5, 0.8, 0.99):
        assert abs((drawn <= point).mean() - wanted.cdf(point)) < 4 * 0.5 / np.sqrt(20_000)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    # from step to step, one a batch
    one = tf.function(lambda step: mixing.beta(alpha, Draws(1, step[None], rows[:1]))[0])
    steps = np.array([one(tf.constant(step, tf.int64)) for step in range(300)])
    for point in (0.1, 0.5):
        assert abs((steps <= point).mean() - wanted.cdf(point)) < 4 * 0.5 / np.sqrt(300)


@pytest.mark.parametrize("per", ["batch", "example"])
def test_with_both_each_batch_draws_one_and_any_start_is_the_same(per):
    both = {"mixup": 1.0, "cutmix": 1.0, "mix_per": per}
    whole, plain = stream(data(**both), steps=30), stream(data(), steps=30)
    pasted = [np.isin(x, own).all() for (x, _), (own, _) in zip(whole, plain, strict=True)]
    assert 7 < sum(pasted) < 23
    for (x, y), (a, b) in zip(stream(data(**both), 17, 3), whole[17:], strict=False):
        assert np.array_equal(x, a)
        assert np.array_equal(y, b)
    # eagerly, only one of the two is ever traced
    mix = mixing.mixer(r.Data(source="python", **both), N, 0)
    for step in range(8):
        x, y = mix(tf.constant(step, tf.int64), tuple(map(tf.constant, plain[step])))
        assert np.array_equal(x, whole[step][0])
        assert np.array_equal(y, whole[step][1])
    other, _ = mixing.mixer(r.Data(source="python", **both), N, 1)(
        tf.constant(0, tf.int64), tuple(map(tf.constant, plain[0]))
    )
    assert not np.array_equal(other, whole[0][0])


def test_numbers_and_tables_are_averaged():
    x = np.arange(96, dtype=np.float32).reshape(48, 2)
    dataset = data((x, 10 * x[:, 0]), mixup=1.0, mix_per="example", ops="standardize")
    mean, deviation = x.astype(np.float64).mean(0), x.astype(np.float64).std(0)
    for features, y in stream(dataset):
        assert y.shape == (16,)
        # y is linear in x: any average of two rows keeps to it
        own = features * deviation + mean
        np.testing.assert_allclose(y, 10 * own[:, 0], rtol=1e-4)
        assert (np.abs(own % 1) > 1e-3).any()


def test_validation_and_training_measured_later_keep_their_labels():
    dataset = data({"train": numbered(), "validation": numbered()}, mixup=1.0)
    for split in ("train", "validation"):
        x, y = next(iter(dataset.split(split)))
        assert y.dtype == tf.int64
        assert np.array_equal(x[:, 0, 0, 0], y)


def test_what_cannot_be_mixed_is_said():
    with pytest.raises(SourceError, match="mix targets too, but python has no labels"):
        data(numbered()[0], mixup=1.0)
    with pytest.raises(SourceError, match=r"cutmix.*input is \[64\].*take flatten out"):
        data(cutmix=1.0, ops="flatten")
    with pytest.raises(SourceError, match=r"cutmix.*input is \[2\].*Use data.mixup\."):
        data((np.zeros((48, 2)), np.arange(48) % 2), cutmix=1.0)
    for wrong in ({"mixup": 0}, {"cutmix": -1.0}, {"mix_per": "pixel"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            r.Data(source="python", **wrong)
    with pytest.raises(ValueError, match="batch_size of 1"):
        r.Data(source="python", mixup=1.0, batch_size=1)


def recipe(model="mlp(hidden=[16])", loss="cross-entropy", **settings):
    settings = {"source": "python", "batch_size": 16, "mixup": 0.4, **settings}
    algorithm = {"optimizer": "adam(learning_rate=0.02)", "epochs": 4}
    return r.Recipe(name="t", data=settings, model=model, loss=loss, algorithm=algorithm)


def blobs(classes=2, n=240):
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, n)
    return rng.normal(size=(n, 4)).astype("float32") + 3 * np.eye(4, dtype="float32")[y], y


def test_two_classes_are_learnt_from_shares(tmp_path):
    run = train(recipe(loss="binary-cross-entropy"), tmp_path / "run", data=blobs())
    assert run.metrics["validation"]["accuracy"]["value"] > 0.9
    assert 0.6 < run.history[-1]["accuracy"] <= 1
    assert ", mixup 0.4 a batch" in (run.path / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "knn(k=3)", "loss": "zero-one"}, "'zero-one' needs whole ones"),
        ({"loss": "poisson", "task": "regression"}, "'poisson' needs whole ones"),
        ({"loss": "mse", "task": "regression", "cutmix": 1.0}, r"input is \[4\]"),
    ],
)
def test_losses_of_whole_targets_refuse_mixtures(settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        train(recipe(**settings), tmp_path / "run", data=blobs())
    assert not (tmp_path / "run" / "history.csv").exists()
