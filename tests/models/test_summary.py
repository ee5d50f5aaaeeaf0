"""The table for running a model in one's head, against hand arithmetic."""

import keras
import numpy as np
import pytest
from keras import layers

from epochal.models import create_model
from epochal.models.summary import table


def rows(model):
    return {row.name: row for row in table(model).rows}


def test_resnet20_by_hand():
    summary = table(create_model("resnet20"))
    by_hand = 32 * 32 * 9 * 3 * 16  # stem
    by_hand += 6 * (32 * 32 * 9 * 16 * 16)
    by_hand += 16 * 16 * 9 * 16 * 32 + 5 * (16 * 16 * 9 * 32 * 32)
    by_hand += 8 * 8 * 9 * 32 * 64 + 5 * (8 * 8 * 9 * 64 * 64)
    by_hand += 64 * 10
    assert summary.multiply_adds == by_hand == 40_551_040
    assert summary.trainable == 269_722
    assert summary.parameters == 269_722 + 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert summary.complete
    found = {row.name: row for row in summary.rows}
    # 13 convolutions of step 1 or 2: 1 + 2 + 6 x 2, then + 2 + 5 x 4, then + 4 + 5 x 8
    assert found["stage1_3_relu2"].receptive_field == (15, 15)
    assert found["stage2_3_relu2"].receptive_field == (37, 37)
    assert found["stage3_3_relu2"].receptive_field == (81, 81)
    assert found["stage2_1_shortcut"].receptive_field == (15, 15)
    assert found["pool"].receptive_field is None
    assert found["stage2_1_conv1"].activation_bytes == 16 * 16 * 32 * 4
    assert found["stage2_1_conv1"].multiply_adds == 16 * 16 * 9 * 16 * 32


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_stacked_3x3_convolutions_see_2d_plus_1(depth):
    x = image = keras.Input((32, 32, 1))
    for _ in range(depth):
        x = layers.Conv2D(2, 3)(x)
    assert table(keras.Model(image, x)).rows[-1].receptive_field == (2 * depth + 1,) * 2


def test_strides_dilation_pooling_and_oblong_kernels():
    model = keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            layers.Conv2D(8, 11, strides=4, name="a"),  # 11, step 4
            layers.MaxPooling2D(3, 2, name="b"),  # 11 + 2 * 4 = 19, step 8
            layers.Conv2D(8, (5, 1), padding="same", name="c"),  # 19 + 4 * 8 = 51 high
            layers.Conv2D(8, 3, padding="same", dilation_rate=2, name="d"),  # + 4 * 8
            layers.Dense(4, name="e"),  # on every position
            layers.Flatten(name="f"),
            layers.Dense(2, name="g"),
        ]
    )
    found = rows(model)
    assert [found[n].receptive_field for n in "abcdefg"] == [
        (11, 11),
        (19, 19),
        (51, 19),
        (83, 51),
        (83, 51),
        None,
        None,
    ]
    assert found["a"].multiply_adds == 14 * 14 * 121 * 3 * 8
    assert found["b"].multiply_adds == 0
    assert found["e"].multiply_adds == 6 * 6 * 8 * 4
    assert found["g"].multiply_adds == 6 * 6 * 4 * 2


def test_the_widest_branch_counts_at_merges():
    image = keras.Input((9, 9, 2))
    wide = layers.Conv2D(2, 7, padding="same")(image)
    narrow = layers.Conv2D(2, 3, padding="same")(image)
    for merged in ([narrow, wide], [wide, narrow], [image, wide]):
        model = keras.Model(image, layers.Add()(merged))
        assert table(model).rows[-1].receptive_field == (7, 7)


def test_costs_of_other_layers():
    image = keras.Input((8, 8, 4))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(image)
    x = layers.SeparableConv2D(6, 3, padding="same", name="separable")(x)
    x = layers.Conv2D(6, 3, groups=3, padding="same", name="grouped")(x)
    x = layers.Conv2DTranspose(5, 4, strides=2, padding="same", name="transposed")(x)
    found = rows(keras.Model(image, x))
    assert found["depthwise"].multiply_adds == 64 * 9 * 4 * 2
    assert found["separable"].multiply_adds == 64 * (9 * 8 + 8 * 6)
    assert found["grouped"].multiply_adds == 64 * 9 * 2 * 6
    assert found["transposed"].multiply_adds == 64 * 16 * 6 * 5  # at input positions
    assert found["transposed"].receptive_field is None


def test_sequences():
    words = keras.Input((12,), dtype="int32")
    x = layers.Embedding(100, 8, name="embedding")(words)
    x = layers.Conv1D(16, 5, name="conv")(x)
    x = layers.LSTM(7, name="lstm")(x)
    found = rows(keras.Model(words, x))
    assert found["embedding"].multiply_adds == 0
    assert found["embedding"].parameters == 800
    assert found["conv"].multiply_adds == 8 * 5 * 8 * 16
    assert found["conv"].receptive_field == (5,)
    assert found["lstm"].multiply_adds == 8 * 4 * 7 * (16 + 7)


def test_unknown_cost_is_marked_and_bounds_the_total():
    image = keras.Input((6, 8))
    x = layers.Dense(8)(image)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    summary = table(keras.Model(image, x))
    assert not summary.complete
    assert summary.rows[-1].multiply_adds is None
    assert summary.multiply_adds == 6 * 8 * 8
    assert ">= 384" in summary.to_text()
    varying = keras.Input((None, 8))
    dense = table(keras.Model(varying, layers.Dense(3)(varying))).rows[-1]
    assert (dense.multiply_adds, dense.activation_bytes) == (None, None)


def test_shared_layers_and_nested_models():
    image = keras.Input((5,))
    shared = layers.Dense(5, name="shared")
    model = keras.Model(image, shared(shared(image)))
    summary = table(model)
    assert [row.parameters for row in summary.rows] == [0, 30, 0]
    assert summary.multiply_adds == 2 * 25  # used twice, held once
    outer = keras.Sequential([keras.Input((5,)), model, layers.Dense(2)])
    summary = table(outer)
    assert summary.parameters == 30 + 12 == outer.count_params()
    assert summary.multiply_adds == 2 * 25 + 10


def test_knn_holds_what_it_remembers():
    model = create_model("knn", input_shape=(4,), num_classes=3, capacity=100)
    summary = table(model)
    assert summary.multiply_adds == 100 * 4
    assert summary.trainable == 0
    assert summary.parameters == sum(int(np.prod(w.shape)) for w in model.weights)
    assert summary.rows[-1].output_shape == (3,)


@pytest.mark.parametrize("name", ["dqn-mlp", "gan"])
def test_models_with_weights_of_their_own_and_networks_inside(name):
    options = {"input_shape": (4,)} | ({"num_classes": 2} if name == "dqn-mlp" else {})
    model = create_model(name, **options)
    summary = table(model)
    assert summary.parameters == sum(int(np.prod(w.shape)) for w in model.weights)
    assert not summary.complete


def test_text_has_a_line_a_layer_and_totals():
    model = create_model("mlp", input_shape=(28, 28, 1), num_classes=10)
    text = table(model).to_text()
    lines = text.splitlines()
    assert lines[0] == "mlp"
    assert len(lines) == 1 + 1 + 1 + 7 + 1 + 1 + 1
    assert next(line for line in lines if line.startswith("hidden_1")).split() == [
        "hidden_1",
        "Dense",
        "256",
        "200,960",
        "200,704",
        "1,024",
    ]
    assert lines[-2].split() == ["total", "235,146", "234,752", "9,384"]
    assert lines[-1] == "235,146 trainable parameters, 0 others"


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match="not built"):
        table(keras.Sequential([layers.Dense(2)]))
