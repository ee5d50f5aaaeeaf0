"""load(): sizes, streams that resume anywhere, evaluation form, targets, errors."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from epochal.pipelines.data import OpsError, SourceError, load
from epochal.pipelines.data.preprocess import restore
from epochal.pipelines.data.source import Rows, fingerprint
from epochal.pipelines.recipe import Data


def numbered(n, classes=2):
    """Images whose every pixel is the example's number; labels alternate."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 6, 6, 1))
    return images.copy(), np.arange(n) % classes


def stream(dataset, seed, start, steps):
    return [(x.numpy(), y.numpy()) for x, y in dataset.train(seed, start).take(steps)]


def test_digits():
    data = load(Data(source="builtin:digits", ops="standardize", batch_size=100))
    assert data.sizes == {"train": 1294, "validation": 144, "test": 359}
    assert data.input_shape == (8, 8, 1)
    assert (data.kind, data.task, data.num_targets) == ("image", "classification", 10)
    assert data.classes == tuple("0123456789")
    assert data.steps_per_epoch == 13
    assert data.target_scale == (0.0, 1.0)
    x, y = next(iter(data.train(0)))
    assert (x.dtype, x.shape, y.dtype, y.shape) == (tf.float32, (100, 8, 8, 1), tf.int64, (100,))
    blocks = list(data.split("test"))
    assert [len(y) for _, y in blocks] == [100, 100, 100, 59]
    assert np.array_equal(np.concatenate([y for _, y in blocks]), data.targets("test"))
    raw = data.raw("train", range(1294))["image"]
    assert raw.dtype == np.uint8
    assert set(np.unique(raw)) == set(np.rint(np.arange(17) * 255 / 16).astype(int))
    # statistics of the training split alone
    assert data.preprocess.states[0]["mean"][0] == pytest.approx(raw.mean(), abs=1e-9)
    for name in data.sizes:  # stratified: 10% of each class within one example
        share = np.bincount(data.targets(name)) / data.sizes[name]
        assert np.abs(share - 0.1).max() < 0.012


@pytest.mark.parametrize(("n", "batch"), [(50, 7), (5, 8), (1, 3), (16, 16)])
def test_each_epoch_has_every_example_once_in_an_order_of_its_own(n, batch):
    x, y = numbered(n, classes=1)
    data = load(
        Data(source="python", batch_size=batch, validation_fraction=0, test_fraction=0), (x, y)
    )
    order = np.concatenate([b[:, 0, 0, 0] for b, _ in stream(data, 3, 0, 4 * n // batch + 2)])
    epochs = order[: len(order) // n * n].reshape(-1, n)
    assert len(epochs) >= 4
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    if n == 50:
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
        other = np.concatenate([b[:, 0, 0, 0] for b, _ in stream(data, 4, 0, 8)])[:50]
        assert tuple(other) != tuple(epochs[0])
    plain = load(
        Data(
            source="python", batch_size=batch, shuffle=False, validation_fraction=0, test_fraction=0
        ),
        (x, y),
    )
    order = np.concatenate([b[:, 0, 0, 0] for b, _ in stream(plain, 3, 0, 2 * n // batch + 2)])
    assert np.array_equal(order, np.arange(len(order)) % n)


def test_a_stream_from_any_step_is_the_stream_from_the_beginning():
    ops = "random_crop(8, padding=2)|flip_lr|translate(1)|cutout(3)|standardize"
    settings = Data(source="builtin:digits", ops=ops, batch_size=97, train_examples=300)
    whole = stream(load(settings), 5, 0, 12)  # nearly four epochs of 300, batches straddle them
    fresh = load(settings)
    for start in (1, 3, 4, 10):
        for (x, y), (wanted_x, wanted_y) in zip(
            stream(fresh, 5, start, 2), whole[start:], strict=False
        ):
            assert np.array_equal(x, wanted_x)
            assert np.array_equal(y, wanted_y)
    # the same example is augmented differently in different epochs
    total = np.concatenate([x for x, _ in whole])
    assert len(np.unique(total.round(4), axis=0)) > 1100


def test_an_iterator_is_deleted_at_once():
    """With tf.data's autotuning, half a second after each second that it has lived."""
    dataset = load(Data(source="builtin:digits"))
    for batches in (dataset.train(0), dataset.split("test")):
        assert batches.options().autotune.enabled is False


def test_serving_equals_the_test_split_bit_for_bit():
    data = load(Data(source="builtin:digits", ops="random_crop(8, padding=1)|flip_lr|standardize"))
    rows = np.concatenate([x for x, _ in data.split("test").take(2)])
    encoded = [tf.io.encode_png(i).numpy() for i in data.raw("test", range(len(rows)))["image"]]
    saved = json.loads(json.dumps(data.describe()))
    preprocess = restore(saved["preprocess"])
    serve = tf.function(preprocess.serve, input_signature=[preprocess.raw_signature()])
    assert np.array_equal(serve({"image_bytes": tf.constant(encoded)}), rows)
    assert np.array_equal(serve({"image_bytes": tf.constant(encoded[3:4])}), rows[3:4])


def test_standardised_targets_come_from_training_and_go_back():
    data = load(
        Data(source="builtin:diabetes", standardize_target=True, batch_size=64, ops="standardize")
    )
    mean, deviation = data.target_scale
    own = data.targets("train").astype(np.float64)
    assert (mean, deviation) == pytest.approx((own.mean(), own.std()), rel=1e-6)
    assert 25 <= own.min() < own.max() <= 346  # the target's own units
    for name in data.sizes:
        y = np.concatenate([y for _, y in data.split(name)])
        assert y.dtype == np.float32
        np.testing.assert_allclose(y * deviation + mean, data.targets(name), rtol=1e-5)
    x = np.concatenate([x for x, _ in data.split("train")])
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-5)
    x = np.concatenate([x for x, _ in data.split("test")])
    assert np.abs(x.mean(0)).max() > 1e-3  # scaled by the training split, not by itself


def test_features_serve_in_their_own_units():
    data = load(Data(source="builtin:wine", ops="standardize"))
    raw = data.raw("test", [0, 2])
    served = tf.function(data.preprocess.serve)({"features": tf.constant(raw["features"])})
    first = next(iter(data.split("test")))[0].numpy()
    assert np.array_equal(served, first[[0, 2]])
    assert raw["features"][:, -1].min() > 200  # proline, mg/l


def test_memory_and_graphs_do_not_hold_the_array_again():
    x = np.random.default_rng(0).integers(0, 255, (20_000, 32, 32, 3)).astype(np.uint8)  # 61 MB
    data = load(Data(source="python", batch_size=8), (x, np.arange(len(x)) % 3))
    dataset = data.train(0)
    before = _megabytes()
    iterator = iter(dataset)
    for _ in range(3):
        next(iterator)
    next(iter(data.split("test")))
    assert _megabytes() - before < 40
    reader = data._readers["train"]
    assert np.shares_memory(reader.rows.columns["image"], memoryview(reader.columns["image"]))


def _megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def test_unlabelled_arrays_are_datasets_of_x_only():
    x, _ = numbered(40)
    data = load(Data(source="python", batch_size=8, ops="scale"), x)
    assert (data.task, data.num_targets, data.classes) == ("unlabelled", 0, ())
    batch = next(iter(data.train(0)))
    assert batch.shape == (8, 6, 6, 1)
    assert next(iter(data.split("test"))).shape == (8, 6, 6, 1)
    assert data.targets("test") is None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"source": "builtin:digit"}, SourceError, "Did you mean 'digits'"),
        ({"source": "buildin:digits"}, SourceError, "Did you mean 'builtin'.*folder"),
        ({"source": "builtin:"}, SourceError, "names no data: after `builtin:` comes digits"),
        ({"source": "python"}, SourceError, r"train\(recipe, data=\(x, y\)\)"),
        ({"source": "builtin:digits", "ops": "flip_rl"}, OpsError, "'flip_lr'"),
        ({"source": "folder:/nowhere", "ops": "impute"}, OpsError, "source gives image"),
        (
            {"source": "builtin:digits", "standardize_target": True},
            SourceError,
            "is for regression",
        ),
        ({"source": "builtin:iris", "train_examples": 5000}, SourceError, "has only 108 examples"),
        ({"source": "builtin:digits", "ops": "random_crop(9)"}, OpsError, "9x9 does not fit"),
    ],
)
def test_settings_that_cannot_work(settings, error, message):
    with pytest.raises(error, match=message):
        load(Data(**settings))


def test_split_names():
    data = load(Data(source="builtin:iris", validation_fraction=0))
    assert data.sizes == {"train": 120, "test": 30}
    with pytest.raises(SourceError, match="no split 'validation'.*validation_fraction"):
        data.split("validation")


def test_fingerprints_tell_values_shapes_and_types_apart():
    base = np.arange(6, dtype=np.float32)
    prints = {
        fingerprint({"x": array})
        for array in (
            base,
            base.reshape(2, 3),
            base.astype(np.int32),
            base[::-1],
            np.array(["a", "bc"], object),
            np.array(["ab", "c"], object),
        )
    }
    assert len(prints) == 6
    assert fingerprint({"x": base}) == fingerprint({"x": base.copy()})
    assert Rows({"a": base}).take(np.array([5, 0])).columns["a"].tolist() == [5, 0]


def test_listing_ops_and_sources_loads_no_tensorflow():
    code = (
        "import sys; from epochal.pipelines.data import ops, source;"
        "ops.parse('flip_lr|standardize'); assert len(ops.TABLE) > 15;"
        "assert not {'tensorflow', 'keras', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_mixes_a_batch_does_not_repeat_the_draws_of_an_op():
    import tensorflow as tf

    from epochal.pipelines.data.stream import MIXING, Draws

    rows = tf.range(2000, dtype=tf.int64)
    draws = Draws(0, tf.zeros_like(rows), rows)
    mixing = draws.at(MIXING).uniform().numpy()
    for place in range(4):
        for view in (0, 1):
            other = draws.view(view).at(place).uniform().numpy()
            assert abs(np.corrcoef(mixing, other)[0, 1]) < 0.1


def test_every_bit_of_a_key_counts():
    """The cipher itself reads the low bits of each part alone, 8 of them at this size."""
    import tensorflow as tf

    from epochal.pipelines.data.stream import _hashed, _word, permute

    assert int(_hashed(_word(0))) == 0xE220A8397B1DCDAF  # SplitMix64's first number for seed 0
    keys = [
        (seed, epoch, salt)
        for seed in (0, 2**8, 2**20, 2**40, 2**70 + 1)
        for epoch in (0, 2**8, 2**20)
        for salt in (0, 2**8, 2**30)
    ]
    orders = [
        tuple(permute(tf.range(50), 50, seed, tf.constant(epoch), salt).numpy())
        for seed, epoch, salt in keys
    ]
    assert len(set(orders)) == len(keys)
    assert all(sorted(order) == list(range(50)) for order in orders)
