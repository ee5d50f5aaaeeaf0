"""Residual nets for ImageNet: counts, shapes and cost of the paper, versions, options."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import create_model, resnet
from epochal.models.finetune import features
from epochal.models.layers import DropPath, FusedBatchNormalization
from epochal.models.summary import table

SMALL = {"input_shape": (32, 32, 3), "num_classes": 3, "width": 4}


def images(n=2, side=32, channels=3):
    return np.random.default_rng(0).normal(size=(n, side, side, channels)).astype("float32")


def by_hand(blocks, bottleneck, version="v1", shortcut="B"):
    """(trainable, moving statistics, multiply-adds) by the paper's table 1, for 224x224x3, 1000."""
    weights, channels, cost = 0, 0, 0

    def conv(kernel, inputs, outputs, side, norm=True):
        nonlocal weights, channels, cost
        weights += kernel**2 * inputs * outputs + 2 * outputs * norm
        channels += outputs * norm
        cost += kernel**2 * inputs * outputs * side**2

    def norm(size):
        nonlocal weights, channels
        weights, channels = weights + 2 * size, channels + size

    conv(7, 3, 64, 112)
    inputs, v2 = 64, version == "v2"
    for stage, count in enumerate(blocks):
        filters, side = 64 * 2**stage, 56 // 2**stage
        outputs = 4 * filters if bottleneck else filters
        for block in range(count):
            shrinks = stage > 0 and block == 0
            before = 2 * side if shrinks else side
            if v2 and (stage or block):
                norm(inputs)
            if bottleneck:
                conv(1, inputs, filters, side if version == "v1" else before)
                conv(3, filters, filters, side)
                conv(1, filters, outputs, side, norm=not v2)
            else:
                conv(3, inputs, filters, side)
                conv(3, filters, filters, side, norm=not v2)
            if shortcut == "B" and (shrinks or inputs != outputs):
                conv(1, inputs, outputs, side, norm=not v2)
            inputs = outputs
    if v2:
        norm(inputs)
    return weights + inputs * 1000 + 1000, 2 * channels, cost + inputs * 1000


COUNTS = {
    "resnet18": (11_689_512, 11_699_112, 1_814_073_344),
    "resnet34": (21_797_672, 21_814_696, 3_663_761_408),
    "resnet50": (25_557_032, 25_610_152, 3_857_973_248),
    "resnet101": (44_549_160, 44_654_504, 7_570_194_432),
    "resnet152": (60_192_808, 60_344_232, 11_282_415_616),
    "plain18": (11_515_688, 11_523_496, 1_794_805_760),
    "plain34": (21_623_848, 21_639_080, 3_644_493_824),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_by_hand_and_in_the_paper(name):
    trainable, everything, cost = COUNTS[name]
    depth = int(re.sub(r"\D", "", name))
    shortcut = None if name.startswith("plain") else "B"
    hand = by_hand(resnet.BLOCKS[depth], depth >= 50, shortcut=shortcut)
    assert hand == (trainable, everything - trainable, cost)
    paper = {18: 1.8, 34: 3.6, 50: 3.8, 101: 7.6, 152: 11.3}[depth]
    assert abs(cost / 1e9 - paper) < 0.07


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet34",
        "plain34",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet101", "resnet152")),
    ],
)
def test_counts_and_cost_of_the_models(name):
    summary = table(create_model(name))
    assert (summary.trainable, summary.parameters, summary.multiply_adds) == COUNTS[name]
    assert summary.complete
    weighted = [row for row in summary.rows if row.kind in ("Conv2D", "Dense")]
    assert sum("shortcut" not in row.name for row in weighted) == int(re.sub(r"\D", "", name))


@pytest.mark.parametrize("version", ["v1", "v1.5", "v2"])
def test_resnet50_in_each_version(version):
    """Counts, cost, the maps of table 1, and where they are halved."""
    model = create_model("resnet50", version=version)
    summary = table(model)
    weights, moving, cost = by_hand((3, 4, 6, 3), True, version)
    assert (summary.trainable, summary.parameters) == (weights, weights + moving)
    assert summary.multiply_adds == cost
    assert cost == (3_857_973_248 if version == "v1" else 4_089_184_256)

    rows = {row.name: row for row in summary.rows}
    assert rows["stem_conv"].output_shape == (112, 112, 64)
    assert rows["stem_pool"].output_shape == (56, 56, 64)
    assert rows["stem_pool"].receptive_field == (11, 11)  # 7, then 2 more steps of 2
    ends = ["stage1_3_add", "stage2_4_add", "stage3_6_add", "stage4_3_add"]
    assert [rows[name].output_shape for name in ends] == [
        (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048),
    ]  # fmt: skip
    assert rows["pool"].output_shape == (2048,)

    halving = {la.name for la in model.layers if getattr(la, "strides", None) == (2, 2)}
    # The pixels that 1x1 convolutions of stride 2 see are picked before: in v1 once for both.
    parts = ["pick"] if version == "v1" else ["shortcut_pick", "conv2"]
    blocks = {f"stage{s}_1_{part}" for s in (2, 3, 4) for part in parts}
    assert halving == {"stem_conv", "stem_pool"} | blocks


def relu(x):
    return np.maximum(x, 0)


def normalise(layer, x):
    scale = layer.gamma.numpy() / np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
    return (x - layer.moving_mean.numpy()) * scale + layer.beta.numpy()


def shake(model):
    """Uneven normalisation, so that no layer is the identity."""
    random = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, FusedBatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.weights])


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_pre_activation_blocks_are_those_of_the_2016_paper(shortcut):
    """Sums of the unit's formula, and what the first and the last unit have of their own."""
    options = {**SMALL, "version": "v2", "shortcut": shortcut, "stem": "small"}
    model = create_model("resnet18", **options)
    shake(model)
    layer = model.get_layer
    names = {la.name for la in model.layers}
    assert "stage1_1_norm1" not in names  # the stem has activated
    assert not any("shortcut_norm" in name for name in names)

    inner = [
        "stem_relu", "stage1_1_add", "stage1_2_add", "stage2_1_add", "stage4_2_add", "stage4_relu",
    ]  # fmt: skip
    stem, first, second, third, last, out = (
        np.asarray(a) for a in features(model, inner)(images())
    )

    def branch(name, x, activate):
        y = relu(normalise(layer(f"{name}_norm1"), x)) if activate else x
        shared = y
        y = layer(f"{name}_conv1")(
            layer(f"{name}_conv1_pad")(y) if f"{name}_conv1_pad" in names else y
        )
        y = relu(normalise(layer(f"{name}_norm2"), y.numpy()))
        return layer(f"{name}_conv2")(y).numpy(), shared

    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(first, stem + branch("stage1_1", stem, False)[0], **close)
    np.testing.assert_allclose(second, first + branch("stage1_2", first, True)[0], **close)
    y, shared = branch("stage2_1", second, True)
    carried = layer("stage2_1_shortcut")(second if shortcut == "A" else shared[:, ::2, ::2])
    np.testing.assert_allclose(third, carried + y, **close)
    np.testing.assert_allclose(out, relu(normalise(layer("stage4_norm"), last)), **close)


def test_the_small_stem_keeps_small_images_large():
    model = create_model("resnet18", **SMALL, stem="small")
    assert features(model, "stem").output_shape == (None, 32, 32, 4)
    assert features(model, "stage4").output_shape == (None, 4, 4, 32)
    assert features(create_model("resnet18", **SMALL), "stage4").output_shape == (None, 1, 1, 32)


def test_zero_init_starts_with_the_shortcuts_alone():
    model = create_model("resnet50", **SMALL, zero_init_residual=True, seed=0)
    ends = [la for la in model.layers if la.name.endswith("norm3")]
    assert len(ends) == 16
    assert not any(la.gamma.numpy().any() for la in ends)
    assert model.get_layer("stage1_1_norm2").gamma.numpy().all()
    stage = features(model, ["stage1_1_shortcut_norm", "stage1_1_add"])(images())
    np.testing.assert_array_equal(*stage)


def test_drop_path_grows_linearly():
    model = create_model("resnet18", **SMALL, drop_path=0.4)
    drops = [la for la in model.layers if isinstance(la, DropPath)]
    np.testing.assert_allclose([la.rate for la in drops], 0.4 * np.arange(1, 9) / 8)
    assert len({la.seed for la in drops}) == 8
    x = images()
    np.testing.assert_array_equal(model(x), model(x))
    assert not np.array_equal(model(x, training=True), model(x, training=True))


def test_without_top_it_gives_the_last_maps():
    whole = create_model("resnet50", **SMALL, seed=0)
    maps = create_model("resnet50", **SMALL, seed=0, include_top=False)
    assert maps.output_shape == (None, 1, 1, 128)
    x = images()
    np.testing.assert_array_equal(maps(x), features(whole, "stage4")(x))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"shortcut": "A", "drop_path": 0.2}),
        ("resnet50", {"version": "v1.5"}),
        ("resnet18", {"version": "v2"}),
        ("plain18", {}),
    ],
)
def test_gradients_a_bfloat16_step_and_saving(name, options, tmp_path):
    """Images of 64, so that the last normalisation sees more than one pixel an image."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = create_model(name, **SMALL | {"input_shape": (64, 64, 3)}, **options, seed=0)
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = images(8, 64), np.arange(8) % 3
    with tf.GradientTape() as tape:
        logits = model(x, training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
    assert logits.dtype == tf.float32
    grads = tape.gradient(losses, [w.value for w in model.trainable_weights])
    for grad, weight in zip(grads, model.trainable_weights, strict=True):
        assert grad is not None, f"no gradient for {weight.path}"
        assert np.isfinite(grad).all()
        assert np.abs(grad).max() > 0, f"no gradient for {weight.path}"
    before = [w.numpy() for w in model.trainable_weights]
    keras.optimizers.SGD(0.1).apply(grads, model.trainable_weights)
    for old, weight in zip(before, model.trainable_weights, strict=True):
        assert weight.dtype == "float32"
        assert np.abs(weight.numpy() - old).max() > 0, f"{weight.path} did not move"
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model(x), loaded(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "v3"}, "v1, v1.5, v2"),
        ({"shortcut": "C"}, '"A" or "B"'),
        ({"stem": "tiny"}, '"imagenet" or "small"'),
        ({"input_shape": (31, 224, 3)}, "at least 32x32"),
        ({"stem": "small", "input_shape": (7, 8, 3)}, "at least 8x8"),
        ({"drop_path": 1.0}, "probability"),
        ({"version": "v2", "zero_init_residual": True}, "ends with a convolution"),
        ({"new_head": True}, "give `weights`"),
        ({"freeze": "stage5"}, "stem, stage1, stage2, stage3, stage4, pool, outputs"),
        ({"num_classes": 0}, "at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("resnet18", **options)


def test_only_the_depths_of_the_paper():
    with pytest.raises(ValueError, match="18, 34, 50, 101, 152"):
        resnet.resnet(20)
