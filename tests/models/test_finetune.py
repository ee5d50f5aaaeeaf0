"""Inner features, frozen layers and new heads."""

import keras
import numpy as np
import pytest

from epochal.models import create_model
from epochal.models.finetune import features, freeze, new_head, unfreeze

SMALL = {"input_shape": (32, 32, 3), "width": 4, "seed": 0}


def images(n=4):
    return np.random.default_rng(0).normal(1.0, 2.0, (n, 32, 32, 3)).astype("float32")


def trained(model):
    return {layer.name.split("_")[0] for layer in model.layers if layer.trainable_weights}


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "plain20"])
def test_a_group_is_its_last_layer(name):
    model = create_model(name, **SMALL)
    ends = {"resnet18": "stage2_2_relu2", "resnet20": "stage2_3_relu2", "plain20": "stage2_3_relu2"}
    x = images()
    group, layer, pooled = features(model, ["stage2", ends[name], "pool"])(x)
    np.testing.assert_array_equal(group, layer)
    head = model.get_layer("outputs")
    np.testing.assert_allclose(pooled @ head.kernel + head.bias, model(x), rtol=1e-5, atol=1e-5)
    single = features(model, "stage2")(x)
    np.testing.assert_array_equal(single, group)


def test_unknown_names_get_the_nearest():
    model = create_model("resnet20", **SMALL)
    with pytest.raises(
        ValueError, match="Did you mean 'stage3'.*stem, stage1, stage2, stage3, pool"
    ):
        features(model, "stage4")
    with pytest.raises(ValueError, match="no layer or group 'stag2'"):
        freeze(model, "stag2")
    with pytest.raises(ValueError, match="nothing to train"):
        freeze(model, "outputs")


def test_frozen_layers_keep_weights_and_statistics_and_use_them():
    model = create_model("resnet18", **SMALL, num_classes=3, freeze="stage2")
    assert trained(model) == {"stage3", "stage4", "outputs"}
    random = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 2.0, w.shape) for w in layer.weights])
    x = images()
    stage = features(model, "stage2")
    np.testing.assert_array_equal(stage(x, training=True), stage(x, training=False))
    before = {w.path: w.numpy() for w in model.weights}
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, np.array([0, 1, 2, 0]), epochs=1, verbose=0)
    for weight in model.weights:
        same = np.array_equal(before[weight.path], weight.numpy())
        frozen = weight.path.split("/")[-2].split("_")[0] in ("stem", "stage1", "stage2")
        assert same == frozen, weight.path


def test_unfreezing_goes_from_the_head_down(tmp_path):
    model = create_model("resnet18", **SMALL, freeze="stage4")
    assert trained(model) == {"outputs"}
    unfreeze(model, "stage4")
    assert trained(model) == {"stage4", "outputs"}
    model.save(tmp_path / "m.keras")
    assert trained(keras.saving.load_model(tmp_path / "m.keras")) == {"stage4", "outputs"}
    unfreeze(model, "stage2_2_norm1")
    assert len(model.get_layer("stage2_2_conv2").trainable_weights) == 1
    assert not model.get_layer("stage2_2_conv1").trainable_weights
    unfreeze(model)
    assert trained(model) == {"stem", "stage1", "stage2", "stage3", "stage4", "outputs"}


def test_a_new_head_shares_the_body():
    model = create_model("resnet18", **SMALL, num_classes=5)
    old = model.get_layer("outputs").kernel.numpy()
    mine = new_head(model, 3, seed=1)
    assert mine.output_shape == (None, 3)
    assert mine.get_layer("stem_conv") is model.get_layer("stem_conv")
    head = mine.get_layer("outputs")
    assert head.compute_dtype == "float32"
    np.testing.assert_allclose(head.kernel.numpy().std(), np.sqrt(2 / 32), rtol=0.25)
    np.testing.assert_array_equal(
        head.kernel, new_head(model, 3, seed=1).get_layer("outputs").kernel
    )
    np.testing.assert_array_equal(model.get_layer("outputs").kernel, old)
    x = images()
    np.testing.assert_array_equal(features(model, "pool")(x), features(mine, "pool")(x))
