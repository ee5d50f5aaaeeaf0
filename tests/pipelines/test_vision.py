"""What a model sees: Grad-CAM against NumPy and a closed form; which maps and weights are found."""

import keras
import numpy as np
import pytest
from keras import layers

from epochal.models import resnet_cifar
from epochal.pipelines import vision


def _images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _pooled(channels=1):
    """One convolution, global average pooling, one linear layer."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6, 5, channels)),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, dtype="float32"),
        ]
    )


def _convolve(x, kernel, bias):
    """'same' convolution [n,h,w,c] with [3,3,c,k], as loops."""
    n, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((n, height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            out[:, i, j] = np.tensordot(padded[:, i : i + 3, j : j + 3], kernel, 3) + bias
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_grad_cam_of_averaged_maps_is_zhous_class_activation_map(channels):
    model, x = _pooled(channels), _images(5, 6, 5, channels)
    kernel, bias, weights, _ = (np.asarray(w, np.float64) for w in model.get_weights())
    maps = np.maximum(_convolve(x, kernel, bias), 0)
    for c in range(3):
        found = vision.grad_cam(model, x, lambda outputs, c=c: outputs[:, c])
        cam = np.maximum(maps @ weights[:, c], 0)  # Zhou et al. 2016, eq. 2
        np.testing.assert_allclose(found, cam / (6 * 5), atol=1e-6)
        assert found.max() > 1e-3


def test_grad_cam_equals_a_transcription_with_pooling_and_a_hidden_layer():
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((6, 8, 2)),
            layers.Conv2D(3, 3, padding="same", activation="softplus"),  # no two values equal
            layers.MaxPooling2D(2),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(5, activation="tanh"),
            layers.Dense(4),
        ]
    )
    x = _images(2, 6, 8, 2)
    kernel, bias, w1, b1, w2, _ = (np.asarray(w, np.float64) for w in model.get_weights())
    maps = np.log1p(np.exp(_convolve(x, kernel, bias)))
    chosen = [3, 1]
    for row, c in enumerate(chosen):
        blocks = maps[row].reshape(3, 2, 4, 2, 3)
        pooled = blocks.max(axis=(1, 3))
        hidden = np.tanh(pooled.ravel() @ w1 + b1)
        slope = (w1 @ (w2[:, c] * (1 - hidden**2))).reshape(pooled.shape)
        at_maximum = blocks == pooled[:, None, :, None]
        slopes = (at_maximum * slope[:, None, :, None]).reshape(maps[row].shape)
        alpha = slopes.mean(axis=(0, 1))
        right = np.maximum((alpha * maps[row]).sum(axis=-1), 0)
        found = vision.grad_cam(model, x[row : row + 1], lambda outputs, c=c: outputs[:, c])[0]
        np.testing.assert_allclose(found, right, atol=1e-6)
    # each row has a score of its own, and no other row's
    import tensorflow as tf

    both = vision.grad_cam(model, x, lambda y: tf.gather(y, chosen, axis=1, batch_dims=1))
    np.testing.assert_allclose(both[1], found, atol=1e-6)


def test_grad_cam_in_mixed_precision_is_near_that_in_float32():
    plain = resnet_cifar.cifar_resnet(8, (16, 16, 3), 4, width=8, seed=0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = resnet_cifar.cifar_resnet(8, (16, 16, 3), 4, width=8, seed=1)
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(plain.get_weights())
    x = _images(3, 16, 16, 3)
    right, found = (vision.grad_cam(m, x, lambda y: y[:, 2]) for m in (plain, mixed))
    assert found.dtype == np.float32
    assert right.shape == (3, 4, 4)
    np.testing.assert_allclose(found, right, atol=0.05 * right.max())


@pytest.mark.parametrize("build", [resnet_cifar.cifar_resnet, resnet_cifar.cifar_plain])
def test_stages_are_the_stem_and_the_end_of_each_size(build):
    model = build(14, (16, 12, 3), 5, width=4)
    found = {name: maps.shape[1:] for name, maps in vision.stages(model).items()}
    assert list(found.items()) == [
        ("stem_relu", (16, 12, 4)),
        ("stage1_2_relu2", (16, 12, 4)),
        ("stage2_2_relu2", (8, 6, 8)),
        ("stage3_2_relu2", (4, 3, 16)),
    ]
    # 4 x 3 positions hardly say where: the last maps of at least 4 x 4 do
    assert vision.deepest(model)[0] == "stage2_2_relu2"


def test_maps_come_before_pooling_and_without_single_positions():
    """As in AlexNet, and with a squeeze-and-excite branch whose maps are 1 x 1."""
    inputs = keras.Input((20, 20, 3))
    x = layers.Conv2D(4, 5, name="conv1")(inputs)
    x = layers.BatchNormalization(name="norm1")(x)
    x = layers.ReLU(name="relu1")(x)
    x = layers.MaxPooling2D(name="pool1")(x)
    x = layers.ZeroPadding2D(name="pad")(x)
    x = layers.Conv2D(6, 3, activation="relu", name="conv2")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(6, 1, activation="sigmoid", name="gate")(gate)
    x = layers.Multiply(name="gated")([x, gate])
    x = layers.MaxPooling2D(name="pool2")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    assert list(vision.stages(model)) == ["relu1", "gated"]


def test_a_backbone_inside_a_model_gives_its_maps_and_filters():
    backbone = resnet_cifar.cifar_resnet(8, (16, 16, 3), 4, width=4)
    body = keras.Model(backbone.input, backbone.get_layer("stage3_1_relu2").output, name="body")
    model = keras.Sequential(
        [keras.Input((16, 16, 3)), body, layers.GlobalAveragePooling2D(), layers.Dense(2)]
    )
    assert list(vision.stages(model)) == ["body"]
    assert vision.first_weights(model, (16, 16, 3)).layer == "stem_conv"
    x = _images(2, 16, 16, 3)
    maps = vision.feature_maps(model, x)["body"]
    np.testing.assert_allclose(maps, body(x).numpy(), atol=1e-6)
    cam = np.maximum(maps @ np.asarray(model.get_weights()[-2])[:, 1], 0) / 16
    np.testing.assert_allclose(vision.grad_cam(model, x, lambda y: y[:, 1]), cam, atol=1e-6)


def test_frozen_layers_have_a_grad_cam_too():
    model, x = _pooled(), _images(2, 6, 5, 1)
    before = vision.grad_cam(model, x, lambda y: y[:, 0])
    model.trainable = False
    np.testing.assert_array_equal(vision.grad_cam(model, x, lambda y: y[:, 0]), before)


def test_feature_maps_are_those_of_evaluation():
    model, x = _pooled(3), _images(2, 6, 5, 3)
    kernel, bias, *_ = (np.asarray(w, np.float64) for w in model.get_weights())
    (name, maps), *others = vision.feature_maps(model, x).items()
    assert (name, others) == ("conv", [])
    np.testing.assert_allclose(maps, np.maximum(_convolve(x, kernel, bias), 0), atol=1e-6)


def test_first_weights_are_kernels_or_templates():
    model = _pooled(3)
    found = vision.first_weights(model, (6, 5, 3))
    assert (found.layer, found.kernels.shape, found.dense) == ("conv", (4, 3, 3, 3), False)
    np.testing.assert_array_equal(found.kernels[2, 0, 1], model.get_weights()[0][0, 1, :, 2])

    inputs = keras.Input((4, 3, 1))
    linear = keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(inputs)))
    found = vision.first_weights(linear, (4, 3, 1))
    assert (found.layer, found.dense) == ("out", True)
    x = _images(1, 4, 3, 1)
    scores = [(x[0] * template).sum() for template in found.kernels]
    np.testing.assert_allclose(scores, linear(x)[0], atol=1e-6)


def test_models_without_maps_have_none():
    dense = keras.Sequential([keras.Input((9,)), layers.Dense(4), layers.Dense(2)])
    x = _images(2, 9)
    assert vision.stages(dense) == {}
    assert vision.feature_maps(dense, x) == {}
    assert vision.grad_cam(dense, x, lambda y: y[:, 0]) is None
    assert vision.first_weights(dense, (3, 4, 1)) is None
    assert vision.first_weights(dense, (3, 3, 1)).kernels.shape == (4, 3, 3, 1)

    single = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(8, 1), layers.Conv2D(4, 3)])
    assert vision.first_weights(single, (6, 6, 3)) is None  # pixels mixed, nothing to look at

    class Own(keras.Model):  # no graph to follow
        def __init__(self):
            super().__init__()
            self.first = layers.Conv2D(2, 3)

        def call(self, x):
            return self.first(x)

    own = Own()
    own(np.zeros((1, 5, 5, 1), np.float32))
    assert vision.stages(own) == {}
    assert vision.first_weights(own, (5, 5, 1)).kernels.shape == (2, 3, 3, 1)
