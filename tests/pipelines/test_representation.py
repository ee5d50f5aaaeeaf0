"""SimCLR end to end on digits: training, resuming, probes, export, a start with few labels."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import create_model
from epochal.pipelines import checkpoint
from epochal.pipelines.data import load
from epochal.pipelines.evaluate import evaluate, intervals
from epochal.pipelines.export import ask_alone, export
from epochal.pipelines.predict import predict
from epochal.pipelines.recipe import Algorithm, Choice, Data, Recipe, RecipeError, override
from epochal.pipelines.recipes import get_recipe
from epochal.pipelines.representation import geometry, spread
from epochal.pipelines.train import Diverged, train

OPS = (
    "random_resized_crop(8, scale=(0.4, 1.0), middle=1.0)"
    "|color_jitter(0.4, 0.4, probability=0.8)|standardize"
)


def recipe(**algorithm) -> Recipe:
    return Recipe(
        name="views",
        data=Data(source="builtin:digits", ops=OPS, task="representation", batch_size=128),
        model=Choice(name="simclr", encoder="resnet20", encoder_options={"width": 8},
                     projection=32),
        loss=Choice(name="nt-xent", temperature=0.5),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.005),
            schedule=Choice(name="cosine"),
            **({"epochs": 8, "steps_per_epoch": 10} | algorithm),
        ),
        seed=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    return train(recipe(), tmp_path_factory.mktemp("views") / "run")


def test_probes_find_the_learnt_encoder_better_than_the_one_before(learnt):
    found = learnt.metrics["test"]
    assert found["knn_accuracy"]["value"] > found["untrained_knn_accuracy"]["value"] + 0.03
    assert found["linear_accuracy"]["value"] > found["untrained_linear_accuracy"]["value"]
    assert found["knn_accuracy"]["low"] < found["knn_accuracy"]["value"] <= 1
    assert found["uniformity"]["value"] < found["untrained_uniformity"]["value"]
    assert learnt.history[-1]["loss"] < learnt.history[0]["loss"] - 0.5
    assert {"contrast_accuracy", "contrast_entropy", "spread"} <= set(learnt.history[0])
    assert learnt.metrics["best_epoch"] == 8  # the last one: nothing is validated
    assert (learnt.path / "plots" / "embeddings.png").is_file()


def test_evaluation_again_gives_the_same_numbers(learnt):
    for name, found in evaluate(learnt)["metrics"].items():
        assert found == pytest.approx(learnt.metrics["test"][name], abs=1e-5)


def test_the_export_answers_embeddings_with_tensorflow_alone(learnt):
    directory = export(learnt)
    about = json.loads((directory / "signature.json").read_text())
    assert about["labels"] == []
    outputs = about["signatures"]["serving_default"]["outputs"]
    assert outputs["embedding"]["shape"] == [None, 32]
    images = load(learnt.recipe.data).raw("test", np.arange(3))["image"]
    answer = ask_alone([directory], [{"tensor/x": learnt.preprocess(tf.constant(images)).numpy()}])[
        0
    ]
    found = predict(learnt, images)
    wanted = learnt.model(learnt.preprocess(tf.constant(images))).numpy()
    np.testing.assert_allclose(answer["tensor/embedding"], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([one["embedding"] for one in found], wanted, rtol=1e-4, atol=1e-5)


def test_a_supervised_run_starts_from_the_encoder(learnt, tmp_path):
    few = Recipe(
        name="few",
        data=Data(source="builtin:digits", ops="standardize", batch_size=16, train_examples=64),
        model=Choice(name="resnet20", width=8, weights=str(learnt.path)),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(epochs=0),
    )
    run = train(few, tmp_path / "few")
    encoder = {layer.name: layer for layer in learnt.model.encoder.layers}
    for layer in run.model.layers[:-1]:
        for one, other in zip(layer.get_weights(), encoder[layer.name].get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    raw = load(learnt.recipe.data).raw("test", np.arange(4))["image"]
    images = learnt.preprocess(tf.constant(raw))
    pooled = keras.Model(run.model.input, run.model.layers[-1].input)(images)
    np.testing.assert_allclose(pooled, learnt.model(images), rtol=1e-5, atol=1e-6)
    for options, message in (
        ({"width": 4}, r"does not fit.*Use the same network"),
        ({"depth": 32}, "has no layer"),
    ):
        name = f"resnet{options.pop('depth', 20)}"
        with pytest.raises(ValueError, match=message):
            create_model(name, input_shape=(8, 8, 1), weights=str(learnt.path / "model.keras"),
                         **{"width": 8} | options)  # fmt: skip
    with pytest.raises(ValueError, match="not a SimCLR"):
        create_model("resnet20", input_shape=(8, 8, 1), weights=str(run.path))


class Stop(keras.callbacks.Callback):
    """Breaks training off in the middle of the second epoch, as Ctrl-C does."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 2):
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_that_was_broken_off_ends_as_one_that_was_not(tmp_path):
    made = override(
        recipe(epochs=2, steps_per_epoch=4), {"model.encoder": "mlp", "model.encoder_options": {}}
    )
    whole = train(made, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(made, tmp_path / "broken", callbacks=[Stop()])
    again = train(made, tmp_path / "broken")
    assert again.history == whole.history
    for name in ("whole", "broken"):
        assert (tmp_path / name / "checkpoints" / "latest.npz").is_file()
    states = [
        checkpoint.load_checkpoint(run.path / "checkpoints" / "latest.npz")[0]
        for run in (whole, again)
    ]
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_collapse_stops_training(tmp_path, monkeypatch):
    monkeypatch.setattr("epochal.models.simclr.COLLAPSED", 1.1)  # whatever the spread, it is one
    made = override(
        recipe(epochs=3, steps_per_epoch=2), {"model.encoder": "mlp", "model.encoder_options": {}}
    )
    with pytest.raises(Diverged, match="the projections collapsed.* in epoch 1"):
        train(made, tmp_path / "run")


def test_geometry_is_that_of_wang_and_isola():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(3, 12, 4))
    images, first, second = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    found = intervals(geometry(images, first, second), 12)
    pairs = [np.exp(-2 * np.sum((images[i] - images[j]) ** 2))
             for i in range(12) for j in range(i)]  # fmt: skip
    assert found["uniformity"]["value"] == pytest.approx(np.log(np.mean(pairs)))
    gaps = [np.sum((a - b) ** 2) for a, b in zip(first, second, strict=True)]
    assert found["alignment"]["value"] == pytest.approx(np.mean(gaps))
    twice = geometry(images, first, second)(np.array([[0, 0, 1, 1]]))["uniformity"]
    assert twice[0] == pytest.approx(-2 * np.sum((images[0] - images[1]) ** 2))
    assert spread(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert spread(9, 3).tolist() == [0, 4, 8]


def test_slots_that_do_not_go_together(tmp_path):
    for changes, message in (
        ({"model": "resnet20"}, "do not go together"),
        ({"loss": "cross-entropy"}, "for classification, the data.*for representation"),
        ({"data.task": None}, "for representation, the data.*for classification"),
        ({"algorithm.early_stopping": {"monitor": "val_loss"}}, "records loss, contrast_accuracy"),
    ):
        with pytest.raises(RecipeError, match=message):
            train(override(recipe(), changes), tmp_path / "run")


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "cifar10"])
def test_recipes_name_one_task(name):
    found = get_recipe(f"simclr-{name}")
    assert found.data.task == "representation"
    assert (found.model.name, found.loss.name) == ("simclr", "nt-xent")
