"""Two views of each image as a stream, and the ops that SimCLR adds: grayscale, blur, jitter."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from epochal.pipelines.data import SourceError, load, ops
from epochal.pipelines.data.ops import OpsError
from epochal.pipelines.data.ops.color import color_jitter, random_grayscale
from epochal.pipelines.data.stream import Draws
from epochal.pipelines.recipe import Data

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 12, 10, 3)).astype(np.uint8)
CROP = "random_resized_crop(8, scale=(0.3, 1.0), middle=1.0)|color_jitter(0.4, 0.4)|scale"


def draws():
    index = tf.range(len(IMAGES), dtype=tf.int64)
    return Draws(0, index * 0, index)


# --- Ops ------------------------------------------------------------------------------------------


def test_gray_with_a_probability():
    out = random_grayscale(IMAGES, 0.3, rng=draws()).numpy()
    chosen = draws().uniform().numpy() < 0.3
    assert 0.1 < chosen.mean() < 0.5
    gray = np.floor((IMAGES.astype(int) @ [77, 150, 29] + 128) / 256)[..., None]
    wanted = np.where(chosen[:, None, None, None], np.repeat(gray, 3, axis=-1), IMAGES)
    np.testing.assert_array_equal(out, wanted)
    assert random_grayscale(IMAGES) is IMAGES
    one = IMAGES[..., :1]
    assert random_grayscale(one, 1.0, rng=draws()) is one


def test_jitter_with_a_probability_leaves_the_others_alone():
    always = color_jitter(IMAGES, 0.8, 0.8, 0.8, 0.2, rng=draws()).numpy()
    out = color_jitter(IMAGES, 0.8, 0.8, 0.8, 0.2, probability=0.7, rng=draws()).numpy()
    changed = (out != IMAGES).any(axis=(1, 2, 3))
    assert 0.5 < changed.mean() < 0.9
    np.testing.assert_array_equal(out, np.where(changed[:, None, None, None], always, IMAGES))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_blur_is_scipy_s(dtype):
    step, entry = ops.build("gaussian_blur(0.5, deviation=(0.5, 2.0), kernel=0.4)", "image")[0]
    source, out = draws(), entry.apply(IMAGES.astype(dtype), *step.args, **step.kwargs, rng=draws())
    assert out.dtype == dtype
    chosen = source.uniform().numpy() < 0.5
    deviations = source.uniform(0.5, 2.0).numpy()
    assert 0.3 < chosen.mean() < 0.7
    for image, blurred, yes, deviation in zip(IMAGES, out.numpy(), chosen, deviations, strict=True):
        wanted = image.astype(np.float64)
        if yes:  # int(0.4 * 12 / 2) = 2 pixels to each side
            sigmas = (deviation, deviation, 0)
            wanted = ndimage.gaussian_filter(wanted, sigmas, mode="mirror", radius=(2, 2, 0))
        tolerance = 0.51 if dtype == np.uint8 else 2e-3
        np.testing.assert_allclose(blurred, wanted, atol=tolerance)
    assert entry.apply(IMAGES, 0.5) is IMAGES


def test_blur_needs_one_size_and_positive_deviations():
    entry = ops.find("gaussian_blur", "image")
    traced = tf.function(lambda x: entry.apply(x, rng=draws()), autograph=False)
    with pytest.raises(OpsError, match="of one size"):
        traced.get_concrete_function(tf.TensorSpec((1, None, None, 3), tf.uint8))
    with pytest.raises(OpsError, match="lower limit first"):
        ops.build("gaussian_blur(deviation=(2.0, 1.0))", "image")


def test_a_small_image_can_be_evaluated_whole():
    step, entry = ops.build("random_resized_crop(12, middle=1.0)", "image")[0]
    square = tf.constant(IMAGES[:, :10])
    bound = entry.apply(square, 10, middle=1.0)
    np.testing.assert_array_equal(bound, square)
    assert step.kwargs["middle"] == 1.0
    assert (
        entry.apply(square, 10).numpy() != square.numpy()
    ).any()  # 11 pixels, then the middle 10


def test_draws_of_views_have_nothing_in_common():
    index = tf.range(2_000, dtype=tf.int64)
    one, other = (Draws(0, index * 0, index).view(v).at(3).uniform().numpy() for v in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.06
    np.testing.assert_array_equal(one, Draws(0, index * 0, index).at(3).uniform())


# --- Views ----------------------------------------------------------------------------------------


def dataset(ops=CROP, source="builtin:digits", arrays=None, **options):
    options = {"batch_size": 32, "validation_fraction": 0.2} | options
    return load(Data(source=source, ops=ops, task="representation", **options), arrays)


def first(stream, count=1):
    return list(stream.take(count).as_numpy_iterator())


def test_views_differ_and_are_functions_of_seed_epoch_and_index():
    data = dataset()
    (batch,) = first(data.train(3))
    assert batch.shape == (32, 2, 8, 8, 1)
    assert batch.dtype == np.float32
    assert (batch[:, 0] != batch[:, 1]).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(batch, first(dataset().train(3))[0])
    # not the same crop in other shades
    flat = batch.reshape(32, 2, -1)
    likeness = [np.corrcoef(one, other)[0, 1] for one, other in flat]
    assert np.median(likeness) < 0.9
    assert (batch != first(data.train(4))[0]).any()
    # the same example in another epoch looks otherwise
    n = data.sizes["train"]
    epoch_1 = first(data.train(3, start_step=n // 32 + 1))[0]
    assert (epoch_1 != batch).any()
    # the first view is what a stream with labels sees
    labelled = load(Data(source="builtin:digits", ops=CROP, batch_size=32, validation_fraction=0.2))
    np.testing.assert_array_equal(batch[:, 0], first(labelled.train(3))[0][0])


def test_a_stream_that_starts_later_is_the_same_stream():
    whole = first(dataset().train(0), 6)
    np.testing.assert_array_equal(first(dataset().train(0, start_step=4), 2), whole[4:])


def test_labels_are_in_no_stream_and_splits_are_those_of_the_labelled_set():
    data = dataset()
    labelled = load(Data(source="builtin:digits", ops=CROP, validation_fraction=0.2))
    assert (data.task, data.classes, data.num_targets) == ("representation", (), 0)
    assert data.label_names == tuple("0123456789")
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(data.rows(name), labelled.rows(name))
        np.testing.assert_array_equal(data.labels(name), labelled.targets(name))
    assert first(data.split("test"))[0].shape == (32, 8, 8, 1)
    places = np.array([5, 2, 40])
    every = np.concatenate(list(data.split("test").as_numpy_iterator()))
    np.testing.assert_array_equal(first(data.split("test", places))[0], every[places])
    np.testing.assert_array_equal(data.labels("test", places), labelled.targets("test")[places])
    assert data.describe()["label_names"] == list("0123456789")
    assert data.describe()["classes"] == []


def test_views_to_measure_with_are_in_order_and_always_the_same():
    data = dataset()
    places = np.arange(70)
    found = np.concatenate(list(data.views("test", places).as_numpy_iterator()))
    assert found.shape == (70, 2, 8, 8, 1)
    np.testing.assert_array_equal(
        found[:40], np.concatenate(list(data.views("test", places).as_numpy_iterator()))[:40]
    )
    every = np.concatenate(list(data.split("test", places).as_numpy_iterator()))
    centred = [x - x.mean(axis=(1, 2, 3), keepdims=True) for x in (found[:, 0], every)]
    likeness = np.einsum("nhwc,nhwc->n", *centred).mean()
    turned = np.einsum("nhwc,nhwc->n", centred[0], centred[1][::-1]).mean()
    assert likeness > 1.3 * abs(turned)  # view i is of image i


@pytest.mark.parametrize("equal", [True, False])
def test_files_without_labels(tmp_path, equal):
    for i in range(6):
        size = (20, 16) if equal else (20 + i, 16)
        image = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
        (tmp_path / f"{i}.png").write_bytes(tf.io.encode_png(image).numpy())
    chain = "random_resized_crop(8)|flip_lr|random_grayscale|scale"
    data = dataset(chain, f"images:{tmp_path}", batch_size=2, test_fraction=0.4)
    assert data.label_names == ()
    assert data.labels("test") is None
    (batch,) = first(data.train(0))
    assert batch.shape == (2, 2, 8, 8, 3)
    assert (batch[:, 0] != batch[:, 1]).any()
    assert first(data.split("test"))[0].shape[1:] == (8, 8, 3)


def test_arrays_with_and_without_labels():
    data = dataset("random_resized_crop(8)", "python", IMAGES, batch_size=4)
    assert data.label_names == ()
    labels = np.arange(40) % 2
    data = dataset("random_resized_crop(8)", "python", (IMAGES, labels), batch_size=4)
    assert len(data.label_names) == 2
    assert first(data.train(0))[0].shape == (4, 2, 8, 8, 3)


def test_data_that_give_no_views():
    with pytest.raises(SourceError, match="gives features"):
        dataset("standardize", "builtin:iris")
    with pytest.raises(SourceError, match="batch_size of 1"):
        dataset(batch_size=1)
    n = dataset().sizes["train"]
    assert first(dataset(batch_size=n).train(0))[0].shape[0] == n
    with pytest.raises(SourceError, match=rf"is {n + 1}, .* has {n} training images: .* itself"):
        dataset(batch_size=n + 1)
    with pytest.raises(SourceError, match=r"No op of 'scale' is random"):
        dataset("scale")
    with pytest.raises(SourceError, match="mix targets"):
        dataset(mixup=0.2)
