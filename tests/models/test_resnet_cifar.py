"""Residual and plain nets for small images."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import create_model, resnet, resnet_cifar
from epochal.models.layers import DropPath, FusedBatchNormalization


def trainable(model) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


@pytest.mark.parametrize(
    ("depth", "count"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_exact_counts(depth, count):
    residual, plain = create_model(f"resnet{depth}"), create_model(f"plain{depth}")
    assert trainable(residual) == trainable(plain) == count
    convolutions = [la for la in residual.layers if isinstance(la, keras.layers.Conv2D)]
    assert len(convolutions) + 1 == depth  # and the linear layer
    assert not any(la.use_bias for la in convolutions)
    norms = [la for la in residual.layers if isinstance(la, FusedBatchNormalization)]
    assert len(norms) == len(convolutions)
    assert {(la.momentum, la.epsilon) for la in norms} == {(0.9, 1e-5)}


def test_option_b_adds_two_projections():
    b = create_model("resnet20", shortcut="B")
    assert trainable(b) == 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)


def test_width_scales_every_stage():
    model = create_model("resnet20", width=4, num_classes=3)
    channels = [la.filters for la in model.layers if isinstance(la, keras.layers.Conv2D)]
    assert channels == [4] * 7 + [8] * 6 + [16] * 6


def test_the_parameter_free_shortcut_picks_and_pads():
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype("float32")
    y = resnet.ParameterFreeShortcut(filters=5, strides=2)(x).numpy()
    assert y.shape == (2, 3, 3, 5)
    for i in range(3):
        for j in range(3):
            np.testing.assert_array_equal(y[:, i, j, :3], x[:, 2 * i, 2 * j])
    assert not y[..., 3:].any()


def test_with_silent_branches_the_net_is_the_shortcut():
    """Each block adds to its input: with gamma 0 in every block only the shortcuts are left."""
    model = create_model("resnet20", input_shape=(8, 8, 1), num_classes=3, width=2)
    for layer in model.layers:
        if layer.name.endswith("norm2"):
            layer.gamma.assign(np.zeros(layer.gamma.shape))
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    stem = keras.Model(model.input, model.get_layer("stem_relu").output)(x).numpy()
    pooled = np.zeros((2, 8), "float32")
    pooled[:, :2] = stem[:, ::4, ::4].mean(axis=(1, 2))
    head = model.get_layer("outputs")
    expected = pooled @ head.kernel.numpy() + head.bias.numpy()
    np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)

    plain = create_model("plain20", input_shape=(8, 8, 1), num_classes=3, width=2)
    for layer in plain.layers:
        if layer.name.endswith("norm2"):
            layer.gamma.assign(np.zeros(layer.gamma.shape))
    np.testing.assert_array_equal(plain(x), np.zeros((2, 3)))


def test_strided_windows_are_centred_on_the_pixels_of_the_shortcut():
    image = keras.Input((8, 8, 1))
    model = keras.Model(image, resnet.conv(image, 1, 3, 2, None, "c"))
    kernel = np.zeros((3, 3, 1, 1))
    kernel[1, 1] = 1.0
    model.get_layer("c").kernel.assign(kernel)
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype("float32")
    np.testing.assert_array_equal(model(x), x[:, ::2, ::2])


def test_initial_weights_are_he_normal_by_fan_in():
    model = create_model("resnet20", seed=0)
    kernel = model.get_layer("stage3_3_conv2").kernel.numpy()
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    # Untruncated: some of 36,864 draws lie beyond 3 standard deviations, about 0.27%.
    assert 0.001 < np.mean(np.abs(kernel) > 3 * kernel.std()) < 0.005
    entry = model.get_layer("stage2_1_conv1").kernel.numpy()
    np.testing.assert_allclose(entry.std(), np.sqrt(2 / (9 * 16)), rtol=0.03)
    twin, other = create_model("resnet20", seed=0), create_model("resnet20", seed=1)
    np.testing.assert_array_equal(kernel, twin.get_layer("stage3_3_conv2").kernel)
    assert not np.array_equal(kernel, other.get_layer("stage3_3_conv2").kernel)
    assert not np.array_equal(
        model.get_layer("stage3_2_conv2").kernel, model.get_layer("stage3_3_conv2").kernel
    )


@pytest.mark.parametrize("options", [{"seed": 5}, {}])
def test_drop_path_leaves_the_initial_weights_alone(options):
    """A comparison with and without starts from the same net."""
    weights = []
    for drop_path in (0.0, 0.5):
        keras.utils.set_random_seed(3)
        model = resnet_cifar.cifar_resnet(8, width=4, drop_path=drop_path, **options)
        weights.append({w.path: w.numpy() for w in model.weights})
    for path, weight in weights[0].items():
        np.testing.assert_array_equal(weight, weights[1].pop(path))
    assert not weights[1]
    assert [la.rate for la in model.layers if isinstance(la, DropPath)] == [0.5 / 3, 1 / 3, 0.5]


def test_zero_init_starts_with_the_shortcuts_alone():
    model = resnet_cifar.cifar_resnet(8, width=4, zero_init_residual=True)
    ends = {la.name: la.gamma.numpy().any() for la in model.layers if "norm" in la.name}
    assert {name for name, some in ends.items() if not some} == {
        f"stage{stage}_1_norm2" for stage in (1, 2, 3)
    }


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (7, 9, 2)])
@pytest.mark.parametrize("name", ["resnet20", "plain20"])
def test_input_shapes(name, shape):
    model = create_model(name, input_shape=shape, num_classes=4, width=2)
    x = np.random.default_rng(0).normal(size=(2, *shape))
    outputs = model(x).numpy()
    assert outputs.shape == (2, 4)
    assert np.isfinite(outputs).all()
    assert not np.allclose(outputs[0], outputs[1])


@pytest.mark.parametrize("options", [{"name": "resnet20"}, {"name": "plain20"}])
def test_gradient_reaches_every_weight(options):
    model = create_model(**options, input_shape=(8, 8, 1), num_classes=3, width=4, seed=0)
    x = tf.constant(np.random.default_rng(0).normal(size=(8, 8, 8, 1)), tf.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(
                np.arange(8) % 3, model(x, training=True)
            )
        )
    grads = tape.gradient(loss, [w.value for w in model.trainable_weights])
    for grad, weight in zip(grads, model.trainable_weights, strict=True):
        assert grad is not None, f"no gradient for {weight.path}"
        assert np.abs(grad).max() > 0, f"no gradient for {weight.path}"
        assert np.isfinite(grad).all()


def test_a_step_in_mixed_bfloat16():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = create_model("resnet20", input_shape=(8, 8, 1), num_classes=3, width=4, seed=0)
    finally:
        keras.config.set_dtype_policy("float32")
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32")
    before = [w.numpy() for w in model.weights]
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, np.arange(16) % 3, batch_size=16, verbose=0)
    assert model.get_layer("stage1_1_conv1").compute_dtype == "bfloat16"
    assert model(x).dtype == tf.float32
    for old, weight in zip(before, model.weights, strict=True):
        assert weight.dtype == "float32"
        assert np.isfinite(weight.numpy()).all()
        assert not np.array_equal(old, weight.numpy()), f"{weight.path} did not move"


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_saved_and_loaded_it_answers_the_same(tmp_path, shortcut):
    model = create_model("resnet20", input_shape=(8, 8, 1), width=2, shortcut=shortcut)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    model(x, training=True)  # moves the statistics
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model(x), loaded(x))
    assert type(loaded.get_layer("stem_norm")) is FusedBatchNormalization


def test_a_small_one_learns_digits():
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")
    model = create_model("resnet20", input_shape=(8, 8, 1), width=8)
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    model.fit(images[:1000], labels[:1000], batch_size=50, epochs=3, verbose=0)
    answers = model.predict(images[1000:], batch_size=200, verbose=0).argmax(1)
    assert np.mean(answers == labels[1000:]) > 0.85


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortcut": "C"}, '"A" or "B"'),
        ({"input_shape": (32, 32)}, "height, width, channels"),
        ({"input_shape": (2, 32, 3)}, "at least 4x4"),
        ({"width": 0}, "at least 1"),
        ({"drop_path": -0.1}, "probability"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("resnet20", **options)


def test_depths_are_6n_plus_2():
    with pytest.raises(ValueError, match="6n"):
        resnet_cifar.cifar_resnet(21)
