"""Image ops, eagerly and inside tf.data, against NumPy; random ones against what they may do."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from epochal.pipelines.data import ops
from epochal.pipelines.data.decode import decode_rgb
from epochal.pipelines.data.ops import OpsError
from epochal.pipelines.data.ops.image import _boxes
from epochal.pipelines.data.preprocess import Preprocess, restore
from epochal.pipelines.data.readers import ArrayReader
from epochal.pipelines.data.source import Rows, SourceError
from epochal.pipelines.data.stream import Draws, permute

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 9, 7, 3)).astype(np.uint8)


def prepare(chain, images=IMAGES):
    _, height, width, channels = images.shape
    inputs = {"height": height, "width": width, "channels": channels, "dtype": str(images.dtype)}
    preprocess = Preprocess("image", chain, inputs)
    reader = ArrayReader(Rows({"image": images}), preprocess)
    rows = np.arange(len(images))
    preprocess.fit(lambda count: reader.split(rows, 5, count).as_numpy_iterator())
    return preprocess, reader


def in_tf_data(chain, images=IMAGES):
    _, reader = prepare(chain, images)
    return np.concatenate(list(reader.split(np.arange(len(images)), 10).as_numpy_iterator()))


def bilinear_2x(images):
    """Halving with antialiasing: weights 1/8 3/8 3/8 1/8 inside, 3/7 3/7 1/7 at the border."""
    weights = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    return np.einsum("ih,jw,nhwc->nijc", weights, weights, images.astype(np.float64))


def pillow(images, height, width):
    """Resized by Pillow, which also filters before it takes samples."""
    return np.array(
        [
            Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
            for image in np.asarray(images, np.uint8)
        ]
    )


EVALUATION = {
    "": lambda x: x,
    "scale": lambda x: x / 255.0,
    "scale(-1, 1)": lambda x: x / 127.5 - 1,
    "standardize": lambda x: (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)),
    "standardize(mean=[1, 2, 3], std=[4, 5, 6])": lambda x: (x - [1, 2, 3]) / [4, 5, 6],
    "scale|standardize": lambda x: (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)),
    "flatten": lambda x: x.reshape(len(x), -1),
    "central_crop(5, 3)": lambda x: x[:, 2:7, 2:5],
    "pad(2)": lambda x: np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)]),
    "pad(1, value=9)": lambda x: np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=9),
    "random_crop(5, padding=3)": lambda x: x[:, 2:7, 1:6],
    "random_crop(7)": lambda x: x[:, 1:8],
    "flip_lr": lambda x: x,
    "translate(3)": lambda x: x,
    "cutout(4)": lambda x: x,
    "resize_shorter(7)": lambda x: x,
    "random_resized_crop(7)": lambda x: pillow(x, 10, 8)[:, 1:8, 0:7],  # 7 * 256/224 = 8
    "color_jitter(0.4, 0.4, 0.4, 0.1)": lambda x: x,
    "pca_noise": lambda x: x,
    "rand_augment": lambda x: x,
    "random_erasing": lambda x: x,
    "grayscale": lambda x: np.floor((x @ [77.0, 150.0, 29.0])[..., None] / 256 + 0.5),
    "scale|grayscale": lambda x: (x @ [77.0, 150.0, 29.0])[..., None] / 65280,
    "grayscale|rgb": lambda x: np.repeat(
        np.floor((x @ [77.0, 150.0, 29.0])[..., None] / 256 + 0.5), 3, -1
    ),
}


@pytest.mark.parametrize("chain", EVALUATION)
def test_evaluation_form_equals_numpy_eagerly_and_in_tf_data(chain):
    wanted = EVALUATION[chain](IMAGES.astype(np.float64))
    preprocess, _ = prepare(chain)
    eager = preprocess(tf.constant(IMAGES))
    assert eager.dtype == tf.float32
    level = 1 if "resized" in chain else 2e-6  # Pillow's weights have fewer digits
    np.testing.assert_allclose(eager, wanted, rtol=2e-6, atol=level)
    assert np.array_equal(eager, in_tf_data(chain))
    assert preprocess.tensor_spec().shape.as_list() == [None, *wanted.shape[1:]]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_is_antialiased_and_keeps_the_dtype(dtype):
    images = IMAGES[:, :4, :4].astype(dtype)
    step, entry = ops.build("resize(2)", "image")[0]
    small = entry.apply(tf.constant(images), *step.args, **step.kwargs)
    assert small.dtype == dtype
    np.testing.assert_allclose(small, bilinear_2x(images), atol=0.51 if dtype == np.uint8 else 1e-3)
    np.testing.assert_array_equal(small, in_tf_data("resize(2)", images))


def test_moments_are_exact_for_large_values_that_vary_little():
    images = (1e4 + np.random.default_rng(1).normal(size=(40, 4, 4, 1))).astype(np.float32)
    preprocess, _ = prepare("standardize", images)
    mean, std = preprocess.states[0]["mean"][0], preprocess.states[0]["std"][0]
    assert mean == pytest.approx(images.astype(np.float64).mean(), abs=1e-9)
    assert std == pytest.approx(images.astype(np.float64).std(), rel=1e-9)


def test_a_constant_channel_is_not_divided_by_zero():
    images = np.full((6, 4, 4, 1), 7, np.uint8)
    assert not in_tf_data("standardize", images).any()


# --- random ops ------------------------------------------------------------------------------


def augmented(chain, images, seed=0, epoch=0, indices=None):
    preprocess, _ = prepare(chain, images)
    indices = np.arange(len(images)) if indices is None else indices
    epochs = tf.fill([len(indices)], tf.constant(epoch, tf.int64))

    def apply(i):
        return preprocess(tf.gather(tf.constant(images), i), Draws(seed, epochs, i))

    eager = apply(tf.constant(indices, tf.int64)).numpy()
    inside = tf.data.Dataset.from_tensors(tf.constant(indices, tf.int64)).map(apply)
    assert np.array_equal(eager, next(iter(inside)))
    return eager


MANY = np.random.default_rng(2).integers(1, 256, (3000, 6, 6, 1)).astype(np.uint8)


def test_random_crop_takes_every_window_equally_often():
    # one bright pixel in the middle of zeros tells where the window was
    images = np.zeros((3000, 6, 6, 1), np.uint8)
    images[:, 2, 3] = 1
    crops = augmented("random_crop(6, padding=2)", images)[..., 0]
    rows, columns = (4 - np.argwhere(crops)[:, 1]), (5 - np.argwhere(crops)[:, 2])
    assert len(rows) == 3000  # the pixel never leaves: the border is 2, it lies 2 inside
    counts = np.zeros((5, 5))
    np.add.at(counts, (rows, columns), 1)
    chi2 = ((counts - 120) ** 2 / 120).sum()
    assert chi2 < 52  # 24 degrees of freedom, p = .001


def boxes(height, width, n=4000, **options):
    """random_resized_crop's rectangles for n images: top, left, height, width."""
    index = tf.range(n, dtype=tf.int64)
    options = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)} | options
    return np.array(_boxes(height, width, rng=Draws(0, index * 0, index), **options))


def test_random_resized_crop_draws_area_ratio_and_place():
    top, left, down, across = boxes(1000, 1000, scale=(0.1, 0.5))  # nearly all of them fit
    area, logarithm = down * across / 1e6, np.log(across / down)
    for values, low, high in ((area, 0.1, 0.5), (logarithm, np.log(3 / 4), np.log(4 / 3))):
        share = (np.sort(values) - low) / (high - low)
        assert np.abs(share - np.linspace(0, 1, 4000)).max() < 1.63 / np.sqrt(4000)  # KS, p = .01
    for start, side in ((top, down), (left, across)):
        assert start.min() >= 0
        assert (start + side).max() <= 1000
        place = start / (1000 - side)
        assert np.abs(np.sort(place) - np.linspace(0, 1, 4000)).max() < 1.63 / np.sqrt(4000)
    assert len(np.unique(boxes(375, 500), axis=1).T) > 3900


def test_random_resized_crop_falls_back_to_the_middle():
    # nothing of 90% of a 10x200 image has a ratio of 4/3 at most; 10 x 13 is the largest that has
    assert (boxes(10, 200, 50, scale=(0.9, 1.0)).T == [0, 93, 10, 13]).all()
    assert (boxes(200, 10, 50, scale=(0.9, 1.0)).T == [93, 0, 13, 10]).all()
    assert (boxes(10, 10, 50, scale=(1.0, 1.0), ratio=(1.0, 1.0)).T == [0, 0, 10, 10]).all()
    assert boxes(1, 1, 50).T.tolist() == [[0, 0, 1, 1]] * 50
    assert set(boxes(3, 2, 500)[2]) == {1, 2, 3}


def test_random_resized_crop_is_the_window_resized():
    smooth = np.asarray(
        tf.image.resize(tf.constant(IMAGES), (40, 30), method="bicubic", antialias=True)
    )
    images = np.clip(smooth, 0, 255).astype(np.uint8)
    out = augmented("random_resized_crop(12, scale=(0.3, 0.9))", images)
    places = boxes(40, 30, len(images), scale=(0.3, 0.9)).T
    for image, (top, left, down, across), got in zip(images, places, out, strict=True):
        window = image[top : top + down, left : left + across]
        assert np.abs(got - pillow(window[None], 12, 12)[0]).max() <= 1


def test_resize_shorter_keeps_the_proportions():
    step, entry = ops.build("resize_shorter(12)", "image")[0]
    anywhere = tf.function(
        lambda images: entry.apply(images, *step.args),
        input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8)],
    )
    for shape, wanted in (((40, 30), (16, 12)), ((30, 40), (12, 16)), ((7, 31), (12, 53))):
        images = tf.zeros((1, *shape, 3), tf.uint8)
        assert entry.apply(images, *step.args).shape[1:3] == wanted
        assert anywhere(images).shape[1:3] == wanted


def test_flip_lr_mirrors_half_of_the_images_and_nothing_else():
    out = augmented("flip_lr", MANY)
    flipped = (out == MANY[:, :, ::-1]).all((1, 2, 3))
    assert ((out == MANY).all((1, 2, 3)) | flipped).all()
    assert 0.46 < flipped.mean() < 0.54
    quarter = augmented("flip_lr(probability=0.25)", MANY)
    assert 0.22 < (quarter != MANY).any((1, 2, 3)).mean() < 0.28


def test_translate_moves_by_whole_pixels_and_fills_with_zeros():
    out = augmented("translate(1)", MANY[:400])
    padded = np.pad(MANY[:400], [(0, 0), (1, 1), (1, 1), (0, 0)])
    seen = set()
    for image, big in zip(out, padded, strict=True):
        moves = [
            (i, j)
            for i in range(3)
            for j in range(3)
            if np.array_equal(image, big[i : i + 6, j : j + 6])
        ]
        assert len(moves) == 1
        seen |= set(moves)
    assert len(seen) == 9


def test_cutout_blanks_one_square_cut_off_at_the_border():
    out = augmented("cutout(3, value=0)", MANY)
    assert np.array_equal(out[out > 0], MANY.astype(np.float32)[out > 0])
    areas, centres = [], np.zeros((6, 6))
    for hole in out[..., 0] == 0:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns)
        assert len(rows) == rows[-1] - rows[0] + 1
        areas.append(hole.sum())
        if hole.sum() == 9:
            centres[rows[1], columns[1]] += 1
    assert set(areas) == {4, 6, 9}
    # 16 of 36 centres are 3x3, so all sides are cut with the border's share
    assert 0.40 < np.mean(np.array(areas) == 9) < 0.49
    assert (centres[1:5, 1:5] > 40).all()


def test_an_image_s_augmentation_depends_on_seed_epoch_and_index_alone():
    chain = "random_crop(5, padding=2)|flip_lr|translate(2)"
    whole = augmented(chain, MANY[:200])
    part = augmented(chain, MANY[:200], indices=np.array([150, 3, 77]))
    assert np.array_equal(part, whole[[150, 3, 77]])
    for other in (augmented(chain, MANY[:200], seed=1), augmented(chain, MANY[:200], epoch=1)):
        assert (other != whole).any((1, 2, 3)).mean() > 0.9


def test_draws_are_uniform_and_independent():
    n = 20_000
    index = tf.range(n, dtype=tf.int64)
    draws = Draws(7, tf.zeros_like(index), index)
    columns = [draws.uniform().numpy(), draws.uniform().numpy(), draws.at(1).uniform().numpy()]
    columns += [
        Draws(s, tf.zeros_like(index) + e, index).uniform().numpy() for s, e in ((8, 0), (7, 1))
    ]
    columns += [*draws.uniform(count=3).numpy().T, *draws.uniform(count=2).numpy().T]
    for values in columns:
        assert values.min() >= 0
        assert values.max() < 1
        assert abs(values.mean() - 0.5) < 4 / np.sqrt(12 * n)
        for lag in (1, 2, 3, 64):
            assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 4 / np.sqrt(n)
    assert np.abs(np.corrcoef(columns) - np.eye(len(columns))).max() < 4.5 / np.sqrt(n)
    whole = draws.integers(6).numpy()
    assert np.bincount(whole).min() > n / 6 * 0.94
    assert whole.max() == 5
    normal = draws.normal(count=2).numpy()
    within = [np.mean(np.abs(normal) < z) for z in (0.5, 1, 2, 3)]
    np.testing.assert_allclose(within, [0.3829, 0.6827, 0.9545, 0.9973], atol=0.01)
    assert abs(normal.mean()) < 4 / np.sqrt(2 * n)
    assert abs(np.corrcoef(normal.T)[0, 1]) < 4 / np.sqrt(n)
    assert len(np.unique(draws.keys(), axis=0)) == n


def test_the_order_is_a_permutation_without_trace_of_the_neighbours():
    for n in (1, 2, 3, 7, 150):
        order = permute(tf.range(n), n, 3, tf.constant(5), 0).numpy()
        assert sorted(order) == list(range(n))
    n = 60_000
    first, second = (permute(tf.range(n), n, 3, tf.constant(e), 0).numpy() for e in (0, 1))
    for order in (first, second):
        for lag in (1, 2):  # four cipher rounds give 0.3 at lag 2
            assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(n)


# --- serving -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chain",
    [
        "standardize",
        "scale(0.1, 0.93)|standardize",  # the graph optimiser would merge the constants
        "scale|scale(0.1, 3)|pad(1)|standardize",
        "random_crop(7, padding=2)|scale|resize(5, 4)|grayscale|standardize|flatten",
    ],
)
def test_serving_equals_evaluation_bit_for_bit_in_any_batch(chain):
    preprocess, _ = prepare(chain)
    encoded = [tf.io.encode_png(image).numpy() for image in IMAGES]
    serve = tf.function(preprocess.serve, input_signature=[preprocess.raw_signature()])
    rows = serve({"image_bytes": tf.constant(encoded)}).numpy()
    assert np.array_equal(rows, in_tf_data(chain))
    assert np.array_equal(serve({"image_bytes": tf.constant(encoded[4:5])}).numpy(), rows[4:5])
    assert serve({"image_bytes": tf.zeros([0], tf.string)}).shape == (0, *rows.shape[1:])
    again = restore(json.loads(json.dumps(preprocess.to_dict())))
    assert np.array_equal(again.serve({"image_bytes": tf.constant(encoded)}), rows)


def test_serving_takes_any_size_and_format():
    preprocess, _ = prepare("scale", IMAGES[..., :1])  # a gray 9x7 set
    big = np.zeros((18, 14, 3), np.uint8)
    big[...] = (200, 100, 50)
    gray = (77 * 200 + 150 * 100 + 29 * 50 + 128) // 256
    encoded = [
        tf.io.encode_png(big).numpy(),
        bitmap(big),
        tf.io.encode_jpeg(big, quality=100).numpy(),
    ]
    out = preprocess.serve({"image_bytes": tf.constant(encoded)}).numpy()
    assert out.shape == (3, 9, 7, 1)
    np.testing.assert_allclose(out[:2], np.float32(gray / 255), atol=1e-6)
    np.testing.assert_allclose(out[2], gray / 255, atol=0.01)


def test_decoding_keeps_gray_and_drops_transparency():
    level = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    gray = decode_rgb(tf.io.encode_png(level))
    _step, entry = ops.build("grayscale", "image")[0]
    assert np.array_equal(entry.apply(gray[None])[0], level)
    see_through = np.concatenate([np.repeat(level, 3, -1), 255 - level], -1)
    assert np.array_equal(decode_rgb(tf.io.encode_png(see_through)), np.repeat(level, 3, -1))


def bitmap(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "BMP")
    return out.getvalue()


# --- chains --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chain", "kind", "message"),
    [
        ("flip_rl", "image", "Did you mean 'flip_lr'"),
        ("flatten", "columns", "'flatten' acts on image, but the source gives columns"),
        (
            "random_crop(8, paddings=1)",
            "image",
            "Did you mean 'padding'.*random_crop.size, padding=0",
        ),
        ("random_crop", "image", "missing a required argument: 'size'"),
        ("random_crop('a')", "image", "size='a'.*integer"),
        ("flip_lr(2)", "image", "probability=2.*less than or equal to 1"),
        ("pad(-1)", "image", "pixels=-1"),
        ("pad(x)", "image", "Cannot read the op"),
        ("standardize(mean=[1.0], std=[0])", "image", "greater than 0"),
        ("random_resized_crop(8, scale=(0.5, 0.1))", "image", "the lower limit first"),
        ("random_resized_crop(8, scale=(0, 1))", "image", "greater than 0"),
        ("color_jitter(hue=0.6)", "image", "less than or equal to 0.5"),
        ("rand_augment(0)", "image", "num_ops=0.*greater than or equal to 1"),
    ],
)
def test_a_chain_that_makes_no_sense_is_refused(chain, kind, message):
    with pytest.raises(OpsError, match=message):
        ops.build(chain, kind)


def test_windows_and_channels_that_do_not_fit():
    with pytest.raises(OpsError, match=r"'random_crop': a window of 8x8 does not fit.*9x7"):
        prepare("random_crop(8)")[0](tf.constant(IMAGES))
    with pytest.raises(OpsError, match="2 means and 2 deviations.*3 channels"):
        prepare("standardize(mean=[1, 2], std=[1, 2])")[0](tf.constant(IMAGES))
    with pytest.raises(OpsError, match="both mean and std"):
        prepare("standardize(mean=[1])")
    with pytest.raises(OpsError, match="both deviations and directions"):
        prepare("pca_noise(deviations=[1, 2, 3])")
    for chain in ("rand_augment", "color_jitter(0.1)", "random_erasing"):
        with pytest.raises(OpsError, match="works on uint8 images, but float32.*before scale"):
            prepare(f"scale|{chain}")[0](tf.constant(IMAGES))
    assert prepare("scale|random_erasing(value=0)")[0](tf.constant(IMAGES)).shape == IMAGES.shape
    unequal = {"height": None, "width": None, "channels": 3, "dtype": "uint8"}
    with pytest.raises(SourceError, match=r"unequal sizes.*resize\(224, 224\)"):
        Preprocess("image", "scale|pad(2)", unequal)


def test_the_table_is_what_is_registered():
    for kind in ("image", "features", "columns", "series"):
        listed = {name for name, (kinds, _) in ops.TABLE.items() if kind in kinds}
        ops.find(sorted(listed)[0], kind)
        assert listed == {name for k, name in ops._REGISTRY if k == kind}
    for (kind, name), entry in ops._REGISTRY.items():
        assert entry.apply.__doc__, (kind, name)
