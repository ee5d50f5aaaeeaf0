"""AlexNet and its two layers, against the paper's tables and NumPy transcriptions of its text."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import create_model
from epochal.models.layers import GroupedConv2D, LocalResponseNormalization
from epochal.models.summary import table

TINY = {"input_shape": (15, 15, 1), "num_classes": 3, "width": 6}
FORMS = [
    {"name": "alexnet", **TINY},
    {"name": "alexnet-ungrouped", **TINY},
    {"name": "alexnet", **TINY, "input_shape": (67, 70, 2)},
    {"name": "alexnet", **TINY, "activation": "tanh", "response_norm": False, "pool_size": 2},
    {"name": "alexnet-2014", **TINY, "input_shape": (63, 66, 2)},
]


@pytest.fixture(scope="module")
def full():
    return create_model("alexnet", seed=0)


def draw(*shape, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(size=shape, scale=scale).astype("float32")


def parameters(model):
    return {row.name: row.trainable for row in table(model).rows if row.trainable}


def maps(model):
    return [
        row.output_shape[:2]
        for row in table(model).rows
        if row.name.startswith(("conv", "pool", "average"))
    ]


# --- Counts and sizes ---------------------------------------------------------------------------


def test_every_layer_of_2012_has_the_papers_weights_and_maps(full):
    assert parameters(full) == {
        "conv1": 34_944,
        "conv2": 307_456,
        "conv3": 885_120,
        "conv4": 663_936,
        "conv5": 442_624,
        "fc6": 37_752_832,
        "fc7": 16_781_312,
        "outputs": 4_097_000,
    }
    assert maps(full) == [(s, s) for s in (55, 27, 27, 13, 13, 13, 13, 6)]
    found = {row.name: row for row in table(full).rows}
    assert found["conv1"].output_shape == found["norm1"].output_shape == (55, 55, 96)
    assert found["pool5"].output_shape == (6, 6, 256)
    assert found["pool5"].receptive_field == (195, 195)
    by_hand = 55 * 55 * 363 * 96 + 27 * 27 * 1200 * 256
    by_hand += 13 * 13 * (2304 * 384 + 1728 * 384 + 1728 * 256)
    by_hand += 9216 * 4096 + 4096 * 4096 + 4096 * 1000
    assert table(full).multiply_adds == by_hand == 724_406_816
    assert table(full).complete


def test_initial_weights_and_biases_of_the_paper(full):
    for layer in full.layers:
        if layer.weights:
            kernel = layer.kernel.numpy().ravel()[:2_000_000]
            assert kernel.std() == pytest.approx(0.01, rel=0.02), layer.name
            assert abs(kernel.mean()) < 2e-4
            # Untruncated: 0.27% of the draws lie beyond 3 deviations.
            assert 0.002 < np.mean(np.abs(kernel) > 0.03) < 0.0035
            ones = layer.name in ("conv2", "conv4", "conv5", "fc6", "fc7")
            np.testing.assert_array_equal(layer.bias, np.full(layer.bias.shape, float(ones)))
    assert full.get_layer("dropout6").rate == full.get_layer("dropout7").rate == 0.5


def test_224_pixels_are_those_of_227_within_a_border_of_zeros():
    options = {"width": 6, "num_classes": 5, "seed": 0}
    small = create_model("alexnet", input_shape=(224, 224, 3), **options)
    large = create_model("alexnet", input_shape=(227, 227, 3), **options)
    assert maps(small) == maps(large)
    images = draw(1, 224, 224, 3, scale=60)
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2), (0, 0)))
    np.testing.assert_allclose(small(images), large(padded), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "width", "sizes"),
    [
        ("alexnet", (28, 28, 1), 6, (28, 13, 13, 6, 6, 6, 6, 2)),
        ("alexnet", (66, 66, 3), 6, (66, 32, 32, 15, 15, 15, 15, 7)),
        ("alexnet", (67, 67, 3), 6, (15, 7, 7, 3, 3, 3, 3, 1)),
        ("alexnet-ungrouped", (28, 28, 1), 3, (28, 13, 13, 6, 6, 6, 6, 2)),
        ("alexnet-2014", (224, 224, 3), 2, (55, 27, 27, 13, 13, 13, 13, 6, 6)),
        ("alexnet-2014", (300, 300, 3), 2, (74, 36, 36, 17, 17, 17, 17, 8, 6)),
    ],
)
def test_sizes_of_maps(name, shape, width, sizes):
    model = create_model(name, input_shape=shape, width=width)
    assert maps(model) == [(size, size) for size in sizes]
    assert table(model).complete
    if sizes[0] == 15:  # of odd maps, windows that do not overlap make as many
        apart = create_model(name, input_shape=shape, width=width, pool_size=2)
        assert maps(apart) == maps(model)


def test_layers_of_the_small_form():
    model = create_model("alexnet", input_shape=(28, 28, 1), num_classes=10, width=30)
    assert parameters(model) == {
        "conv1": 25 * 30 + 30,
        "conv2": 25 * 15 * 80 + 80,
        "conv3": 9 * 80 * 120 + 120,
        "conv4": 9 * 60 * 120 + 120,
        "conv5": 9 * 60 * 80 + 80,
        "fc6": 4 * 80 * 1280 + 1280,
        "fc7": 1280 * 1280 + 1280,
        "outputs": 1280 * 10 + 10,
    }
    assert table(model).multiply_adds == 14_717_200


@pytest.mark.parametrize(
    ("name", "shape"),
    [("alexnet", (28, 28, 1)), ("alexnet-ungrouped", (28, 28, 1)), ("alexnet-2014", (63, 63, 3))],
)
def test_narrow_layers_start_with_outputs_of_the_full_size(name, shape):
    """0.01 times the root of the full fan-in over the own one."""
    groups = 2 if name == "alexnet" else 1
    first, last = ((3, 8), (2, 8))[name == "alexnet-2014"]
    model = create_model(name, input_shape=shape, width=first * 8, seed=0)
    full_fan_in = {
        "conv1": 11 * 11 * 3,
        "conv2": 5 * 5 * first * 32 // groups,
        "conv5": 3 * 3 * model.get_layer("conv4").filters * 4 // groups,
        "fc6": 6 * 6 * last * 32,
        "fc7": 4096,
        "outputs": 4096,
    }
    for layer, full in full_fan_in.items():
        kernel = model.get_layer(layer).kernel.numpy()
        fan_in = np.prod(kernel.shape[:-1])
        assert kernel.std() * np.sqrt(fan_in / full) == pytest.approx(0.01, rel=0.06), layer


def test_seeds():
    a, b, c = (create_model("alexnet", **TINY, seed=seed) for seed in (0, 0, 1))
    for x, y, z in zip(
        *((w for w in m.weights if w.name == "kernel") for m in (a, b, c)), strict=True
    ):
        np.testing.assert_array_equal(x, y)
        assert not np.array_equal(x, z)
    images = draw(4, 15, 15, 1, scale=70)
    np.testing.assert_array_equal(a(images, training=True), b(images, training=True))
    assert not np.array_equal(a(images, training=True), a(images))


# --- Towers -------------------------------------------------------------------------------------


def between(model, first: str, last: str):
    return keras.Model(model.get_layer(first).output, model.get_layer(last).output)


@pytest.mark.parametrize(("first", "last"), [("conv1", "conv2"), ("conv3", "conv5")])
def test_towers_do_not_see_each_other(first, last):
    model = create_model("alexnet", **{**TINY, "width": 12}, seed=0)
    part = between(model, first, last)
    x = np.abs(draw(2, *part.input_shape[1:], scale=100))
    half = part.output_shape[-1] // 2
    before = part(x).numpy()
    for tower in (0, 1):
        changed = x.copy()
        channels = np.array_split(np.arange(x.shape[-1]), 2)[tower]
        changed[..., channels] += np.abs(draw(*x[..., channels].shape, scale=100, seed=1))
        after = part(changed).numpy()
        own, other = (slice(half), slice(half, None))[:: 1 - 2 * tower]
        np.testing.assert_array_equal(before[..., other], after[..., other])
        # A ReLU may be shut at all places of a map, but not in most of the maps.
        assert np.any(before[..., own] != after[..., own], axis=(0, 1, 2)).mean() > 0.5


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("alexnet", "conv2", "conv3"), ("alexnet-ungrouped", "conv1", "conv2")],
)
def test_elsewhere_every_filter_sees_every_channel(name, first, last):
    part = between(create_model(name, **TINY, seed=0), first, last)
    x = np.abs(draw(2, *part.input_shape[1:], scale=100))
    changed = x.copy()
    changed[..., 0] += 100.0
    differ = part(x).numpy() != part(changed).numpy()
    assert np.any(differ, axis=(0, 1, 2)).mean() > 0.5


def test_grouped_convolutions_equal_keras():
    x = tf.constant(draw(2, 7, 6, 6))
    ours = GroupedConv2D(9, (3, 2), 2, "same", groups=3, activation="relu")
    theirs = keras.layers.Conv2D.from_config(ours.get_config())
    for layer in (ours, theirs):
        layer.build(x.shape)
        layer.set_weights([draw(3, 2, 2, 9, seed=1), draw(9, seed=2)])
    results = []
    for layer in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y**2)
        results.append([y, *tape.gradient(loss, [x, layer.kernel.value, layer.bias.value])])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# --- Local response normalisation ---------------------------------------------------------------


def by_the_paper(a, k=2.0, n=5, alpha=1e-4, beta=0.75):
    """Section 3.3, with its own names."""
    a = np.asarray(a, np.float64)
    b = np.zeros_like(a)
    maps = a.shape[-1]
    for i in range(maps):
        total = np.zeros(a.shape[:-1])
        for j in range(max(0, i - n // 2), min(maps - 1, i + n // 2) + 1):
            total += a[..., j] ** 2
        b[..., i] = a[..., i] / (k + alpha * total) ** beta
    return b


@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize(
    "options", [{}, {"k": 1.0, "n": 3, "alpha": 0.2, "beta": 0.5}, {"n": 1}, {"n": 99}]
)
def test_normalisation_by_the_paper(channels, options):
    a = draw(2, 3, 4, channels, scale=80)
    found = LocalResponseNormalization(**options)(a).numpy()
    np.testing.assert_allclose(found, by_the_paper(a, **options), rtol=2e-6)


def test_normalisation_in_closed_form():
    # Five equal neighbours of 100: 100 / (2 + 1e-4 * 5 * 10^4)^.75; at the edge three of them.
    b = LocalResponseNormalization()(np.full((1, 1, 1, 7), 100.0, "float32")).numpy().ravel()
    edge, middle = 100 / (2 + 3) ** 0.75, 100 / (2 + 5) ** 0.75
    next_to_edge = 100 / (2 + 4) ** 0.75
    expected = [edge, next_to_edge, middle, middle, middle, next_to_edge, edge]
    np.testing.assert_allclose(b, expected, rtol=1e-6)


def test_normalisation_and_its_gradient_equal_tensorflow():
    a = tf.constant(draw(2, 3, 4, 12, scale=80))
    weights = draw(2, 3, 4, 12, seed=1)
    results = []
    for function in (
        LocalResponseNormalization(),
        lambda x: tf.nn.lrn(x, depth_radius=2, bias=2.0, alpha=1e-4, beta=0.75),
    ):
        with tf.GradientTape() as tape:
            tape.watch(a)
            b = function(a)
            loss = tf.reduce_sum(b * weights)
        results.append((b, tape.gradient(loss, a)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_groups_normalise_among_themselves():
    a = draw(2, 3, 4, 12, scale=80)
    found = LocalResponseNormalization(groups=2)(a).numpy()
    expected = np.concatenate([by_the_paper(a[..., :6]), by_the_paper(a[..., 6:])], -1)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert not np.allclose(found, by_the_paper(a), rtol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_round_the_result_alone(dtype):
    a = tf.cast(draw(2, 3, 4, 12, scale=80), dtype)
    found = LocalResponseNormalization(dtype=f"mixed_{dtype}")(a)
    assert found.dtype == dtype
    expected = tf.cast(by_the_paper(tf.cast(a, "float64")), dtype)
    step = {"bfloat16": 2**-7, "float16": 2**-10}[dtype]
    np.testing.assert_allclose(tf.cast(found, "float64"), tf.cast(expected, "float64"), rtol=step)
    assert np.mean(found == expected) > 0.99
    # In float16 the squares of large activations would be infinite.
    large = LocalResponseNormalization(dtype=f"mixed_{dtype}")(
        tf.fill([1, 1, 1, 5], tf.cast(1000, dtype))
    )
    np.testing.assert_allclose(tf.cast(large[..., 2], "float32"), 1000 / 502**0.75, rtol=2 * step)


def test_normalisation_compiles_with_xla_and_takes_unknown_sizes():
    layer = LocalResponseNormalization(groups=3)
    image = keras.Input((None, None, 12))
    model = keras.Model(image, layer(image))
    assert model.output_shape == (None, None, None, 12)
    a = draw(2, 3, 4, 12, scale=80)
    compiled = tf.function(model, jit_compile=True)
    np.testing.assert_allclose(compiled(a), model(a), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0.0}, "k must be above 0"),
        ({"alpha": -1.0}, "alpha"),
        ({"n": 4}, "odd; got 4"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"groups": 5}, "5 groups of equal size"),
    ],
)
def test_bad_normalisations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LocalResponseNormalization(**options)(np.ones((1, 2, 2, 12), "float32"))


# --- Every form trains, saves and loads ---------------------------------------------------------


@pytest.mark.parametrize("options", FORMS)
def test_gradient_reaches_every_weight(options):
    model = create_model(**options, dropout=0.0, seed=0)
    x = draw(8, *options["input_shape"], scale=70)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(
                np.arange(8) % 3, model(x, training=True)
            )
        )
    gradients = tape.gradient(loss, [w.value for w in model.trainable_weights])
    for gradient, weight in zip(gradients, model.trainable_weights, strict=True):
        assert gradient is not None, f"no gradient for {weight.path}"
        assert np.abs(gradient).max() > 0, f"no gradient for {weight.path}"
        assert np.isfinite(gradient).all()


def test_a_step_in_mixed_bfloat16():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = create_model("alexnet", **TINY, seed=0)
    finally:
        keras.config.set_dtype_policy("float32")
    x = draw(16, 15, 15, 1, scale=70)
    before = [w.numpy() for w in model.trainable_weights]
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, np.arange(16) % 3, batch_size=16, verbose=0)
    assert model.get_layer("norm1").compute_dtype == "bfloat16"
    assert model(x).dtype == tf.float32
    for old, weight in zip(before, model.trainable_weights, strict=True):
        assert weight.dtype == "float32"
        assert np.isfinite(weight.numpy()).all()
        assert not np.array_equal(old, weight.numpy()), f"{weight.path} did not move"


@pytest.mark.parametrize("options", FORMS)
def test_saved_and_loaded_it_answers_the_same(tmp_path, options):
    model = create_model(**options, seed=0)
    x = draw(3, *options["input_shape"], scale=70)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model(x), loaded(x))
    assert type(loaded.get_layer("conv2")) is GroupedConv2D
    if options["name"] == "alexnet" and options.get("response_norm", True):
        assert loaded.get_layer("norm1").get_config() == model.get_layer("norm1").get_config()


def test_options_leave_parts_out():
    names = {layer.name for layer in create_model(**FORMS[3], dropout=0.0).layers}
    assert not names & {"norm1", "norm2", "dropout6", "dropout7"}
    tanh = create_model(**FORMS[3])
    assert not any(np.any(la.bias.numpy()) for la in tanh.layers if la.weights)
    assert np.abs(between(tanh, "inputs", "conv1")(draw(2, 15, 15, 1, scale=1e6))).max() == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": (28, 28)}, "height, width, channels"),
        ({"input_shape": (14, 28, 1)}, "at least 15x15"),
        ({"width": 9}, "multiple of 6"),
        ({"name": "alexnet-ungrouped", "width": 8}, "multiple of 3"),
        ({"name": "alexnet-2014", "input_shape": (32, 32, 3)}, "at least 63x63.*resize"),
        ({"activation": "sigmoid"}, "relu, tanh"),
        ({"pool_size": 4}, "3 or 2"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"num_classes": 0}, "at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model(**{"name": "alexnet", **options})


def test_the_small_recipe_learns(tmp_path):
    from epochal.pipelines import train
    from epochal.pipelines.recipe import override
    from epochal.pipelines.recipes import get_recipe

    recipe = override(get_recipe("alexnet-digits"), {"algorithm.epochs": 8})
    run = train(recipe, tmp_path / "run")
    assert run.metrics["validation"]["accuracy"]["value"] > 0.85
