"""Colour jitter, PCA noise and random erasing against NumPy; single images against batches."""

import colorsys
import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from epochal.pipelines.data import ops
from epochal.pipelines.data.ops import OpsError
from epochal.pipelines.data.preprocess import Preprocess
from epochal.pipelines.data.readers import make_reader
from epochal.pipelines.data.source import Rows
from epochal.pipelines.data.stream import Draws
from epochal.pipelines.recipe import Data

RNG = np.random.default_rng(0)


def smooth(n=24, height=20, width=16, channels=3):
    """Images with areas of every brightness and colour."""
    coarse = RNG.integers(0, 256, (n, 4, 3, channels)).astype(np.float32)
    fine = tf.image.resize(coarse, (height, width), method="bicubic").numpy()
    return np.clip(fine + RNG.normal(size=fine.shape) * 4, 0, 255).astype(np.uint8)


IMAGES = smooth()


def augmented(op, images, epoch=0):
    """One op's random form in tf.data, float64; example i has the index i."""
    (step, entry), index = ops.build(op, "image")[0], np.arange(len(images))
    extra = {} if entry.fit is None else {"state": entry.fit([images], *step.args, **step.kwargs)}
    epochs = np.full(len(images), epoch)

    def apply(images, index, epochs):
        draws = Draws(0, epochs, index)
        return entry.apply(images, *step.args, **step.kwargs, **extra, rng=draws)

    batches = tf.data.Dataset.from_tensors((images, index, epochs)).map(apply)
    found = next(batches.as_numpy_iterator())
    assert found.dtype == images.dtype
    assert found.shape == images.shape
    return found.astype(np.float64)


def draws(n):
    index = tf.range(n, dtype=tf.int64)
    return Draws(0, index * 0, index)


# --- color_jitter --------------------------------------------------------------------------------


def gray(x):
    return (x @ [77.0, 150.0, 29.0])[..., None] / 256


def turned(x, share):
    flat = [colorsys.rgb_to_hsv(*pixel) for pixel in x.reshape(-1, 3)]
    flat = [colorsys.hsv_to_rgb((h + share) % 1, s, v) for h, s, v in flat]
    return np.array(flat).reshape(x.shape)


CHANGES = {
    "brightness": lambda x, f: x * f,
    "contrast": lambda x, f: gray(x).mean() * (1 - f) + x * f,
    "saturation": lambda x, f: gray(x) * (1 - f) + x * f,
    "hue": turned,
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_of_jitter(change):
    strength = 0.4
    out = augmented(f"color_jitter({change}={strength})", IMAGES)
    low, high = (-0.4, 0.4) if change == "hue" else (0.6, 1.4)
    factors = draws(len(IMAGES)).uniform(low, high).numpy()
    assert factors.max() - factors.min() > 0.6
    for image, factor, got in zip(IMAGES, factors, out, strict=True):
        wanted = np.clip(CHANGES[change](image.astype(np.float64), float(factor)), 0, 255)
        np.testing.assert_allclose(got, wanted, atol=0.51)


def test_jitter_takes_every_order():
    images = np.concatenate([IMAGES] * 4)
    source = draws(len(images))
    factors = [
        source.uniform(low, high).numpy()
        for low, high in ((0, 2.5), (0, 2.5), (0, 2.5), (-0.5, 0.5))
    ]
    out = augmented("color_jitter(1.5, 1.5, 1.5, 0.5)", images)
    orders = list(itertools.permutations(range(4)))
    counts = np.zeros(len(orders))
    for number in range(0, len(images), 4):
        errors = []
        for order in orders:
            x = images[number].astype(np.float64)
            for place in order:
                change = list(CHANGES.values())[place]
                x = np.clip(change(x, float(factors[place][number])), 0, 255)
            errors.append(np.abs(out[number] - x).max())
        assert min(errors) < 1.0
        counts[[error < 1.0 for error in errors]] += 1
    assert (counts > 0).mean() > 0.4  # 24 images, 24 orders
    firsts = [sum(counts[i] for i, order in enumerate(orders) if order[0] == p) for p in range(4)]
    assert min(firsts) > 0


def test_jitter_of_gray_images_has_no_colour():
    images = smooth(8, channels=1)
    out = augmented("color_jitter(0.5, 0, 0.9, 0.5)", images)
    factors = draws(8).uniform(0.5, 1.5).numpy()[:, None, None, None]
    np.testing.assert_allclose(out, np.clip(images * factors, 0, 255), atol=0.51)
    assert np.array_equal(augmented("color_jitter(saturation=1)", images), images)
    assert np.array_equal(augmented("color_jitter", IMAGES), IMAGES)


# --- pca_noise -----------------------------------------------------------------------------------


def test_pca_noise_has_the_covariance_of_the_pixels():
    mixing = np.array([[40.0, 35.0, 30.0], [12.0, -2.0, -12.0], [3.0, -7.0, 4.0]])
    images = (120 + RNG.normal(size=(4000, 3, 3, 3)) @ mixing).astype(np.float32)
    noise = augmented("pca_noise(0.1)", images) - images
    assert np.abs(noise - noise[:, :1, :1]).max() < 1e-4  # one colour an image
    shifts = noise[:, 0, 0]
    own = np.cov(images.reshape(-1, 3).astype(np.float64).T)
    # sum of a s p with a ~ N(0, 0.1) has 0.01 times the covariance of the pixels
    np.testing.assert_allclose(np.cov(shifts.T) / 0.01, own, atol=0.06 * np.trace(own))
    assert np.abs(shifts.mean(0)).max() < 4 * np.sqrt(0.01 * own.max() / 4000)
    other = augmented("pca_noise(0.1)", images, epoch=1) - images
    assert np.abs(np.corrcoef(shifts[:, 0], other[:, 0, 0, 0])[0, 1]) < 0.07


def test_pca_noise_learns_directions_of_length_one_or_is_given_them():
    entry = ops.find("pca_noise", "image")
    axes = np.zeros((100, 1, 1, 3))
    axes[:50, ..., 1], axes[50:, ..., 2] = 8.0, 2.0
    state = entry.fit(iter([axes[:30], axes[30:]]), 0.1)
    covariance = np.cov(axes.reshape(-1, 3).T, bias=True)
    directions, deviations = np.array(state["directions"]), np.array(state["deviations"])
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(directions.T * deviations**2 @ directions, covariance, atol=1e-9)
    assert deviations[0] > deviations[1] >= deviations[2] >= 0
    assert (directions[np.arange(3), np.abs(directions).argmax(1)] > 0).all()
    given = "pca_noise(0.5, deviations=(9, 0, 0), directions=((0, 1, 0), (1, 0, 0), (0, 0, 1)))"
    noise = augmented(given, np.full((500, 2, 2, 3), 100, np.uint8)) - 100
    assert not noise[..., [0, 2]].any()
    assert 0.9 < noise[:, 0, 0, 1].std() / 4.5 < 1.1
    grays = augmented("pca_noise", smooth(6, channels=1))  # one channel has one direction
    assert grays.shape[-1] == 1
    with pytest.raises(OpsError, match="3 directions, but the images have 1 channels. Put rgb"):
        entry.apply(tf.constant(smooth(6, channels=1)), state=state)


# --- random_erasing ------------------------------------------------------------------------------


def test_random_erasing_fills_one_rectangle_with_noise():
    n, height, width = 1500, 32, 24
    images = np.full((n, height, width, 3), 77, np.uint8)
    out = augmented("random_erasing(0.7, area=(0.05, 0.3), ratio=(0.5, 2))", images)
    changed = (out != 77).any(-1)
    touched = changed.any((1, 2))
    assert 0.66 < touched.mean() < 0.74
    rows, columns = changed[touched].any(2), changed[touched].any(1)
    down, across = rows.sum(1), columns.sum(1)
    filled = changed[touched].sum((1, 2))
    assert (filled > 0.97 * down * across - 2).all()  # noise is 77 thrice almost never
    share = down * across / (height * width)
    assert 0.04 < share.min() < 0.06
    assert 0.22 < share.max() < 0.33
    ratio = down / across
    assert 0.4 < ratio.min() < 0.6
    assert 1.6 < ratio.max() < 2.4
    for side in (rows, columns):  # without a gap, anywhere
        first, last = side.argmax(1), side.shape[1] - 1 - side[:, ::-1].argmax(1)
        assert (last - first + 1 == side.sum(1)).all()
        assert first.min() == 0
        assert last.max() == side.shape[1] - 1
    noise = out[changed]
    counts = np.bincount(noise.astype(int).ravel(), minlength=256)
    assert counts[counts > 0].min() > 0.8 * counts.mean()
    assert (counts > 0).all()
    values = out[touched][changed[touched]]
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.02


def test_random_erasing_by_a_value_and_never():
    out = augmented("random_erasing(1, value=5)", IMAGES)
    erased = (out == 5).all(-1)
    assert erased.any((1, 2)).all()
    assert np.array_equal(out[~erased], IMAGES[~erased])
    assert np.array_equal(augmented("random_erasing(0)", IMAGES), IMAGES)


# --- all together --------------------------------------------------------------------------------

CROP = "random_resized_crop(16)|flip_lr"
ALL = f"{CROP}|color_jitter(0.4, 0.4, 0.4, 0.1)|rand_augment(2, 9)|random_erasing|pca_noise"


def stream(rows, kind, size, chain, start=0, channels=3):
    inputs = {"height": size[0], "width": size[1], "channels": channels, "dtype": "uint8"}
    preprocess = Preprocess("image", chain, inputs)
    reader = make_reader(Rows({kind: rows}), preprocess, Data(source="python"))
    index = np.arange(len(rows))
    preprocess.fit(lambda count: reader.split(index, 9, count).as_numpy_iterator())
    batches = reader.train(index, 7, 3, start, True, None)
    return np.stack(list(batches.take(3 - start).as_numpy_iterator()))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """JPEG files of one size, their colours stored at half the resolution."""
    place = tmp_path_factory.mktemp("files")
    for number, image in enumerate(smooth(12, 45, 37)):
        Image.fromarray(image).save(place / f"{number:02d}.jpg", quality=90, subsampling=2)
    return sorted(str(path) for path in place.iterdir())


@pytest.mark.parametrize(
    ("channels", "size", "chain"), [(3, (None, None), ALL), (1, (45, 37), CROP)]
)
def test_files_one_by_one_equal_arrays_in_batches(files, channels, size, chain):
    """Windows that alone are decoded, and images in memory that are cut: the same pixels."""
    images = np.stack([np.asarray(Image.open(path)) for path in files])
    if channels == 1:
        images = np.asarray(ops.find("grayscale", "image").apply(tf.constant(images)))
    paths = np.array(files, object)
    by_file = stream(paths, "path", size, chain, channels=channels)
    assert by_file.shape == (3, 7, 16, 16, channels)
    assert np.array_equal(by_file, stream(images, "image", (45, 37), chain, channels=channels))
    assert len({image.tobytes() for image in by_file.reshape(-1, 256 * channels)}) == 21
    if channels == 1:
        assert np.array_equal(stream(paths, "path", size, chain, 2, 1), by_file[2:])
