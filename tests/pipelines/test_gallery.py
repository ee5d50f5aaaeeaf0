"""Which examples a run's pictures show, in what form, for whose answer; and when there are none."""

import keras
import numpy as np
import pytest
from keras import layers

from epochal.models.knn import knn
from epochal.pipelines import gallery, pictures, vision
from epochal.pipelines.choices import build_loss
from epochal.pipelines.data import load
from epochal.pipelines.data.preprocess import Preprocess
from epochal.pipelines.evaluate import report
from epochal.pipelines.recipe import Choice, Data
from epochal.pipelines.supervised import predict_split

NAMES = {"filters.png", "feature_maps.png", "grad_cam.png"}


@pytest.fixture
def shown(monkeypatch):
    """What the plotting functions are given, by name."""
    given = {}
    for name in ("filters", "feature_maps", "grad_cam"):

        def keep(*arguments, name=name, **options):
            given[name] = (arguments, options)

        monkeypatch.setattr(pictures, name, keep)
    return given


def _small(dataset, outputs):
    """An untrained net of one convolution for a data set."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(dataset.input_shape),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(outputs),
        ]
    )


def _two_classes(loss):
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    y = np.array(["night", "day"])[x.mean(axis=(1, 2, 3)).argsort().argsort() % 2]
    dataset = load(Data(source="python", ops="scale"), (x, y))
    return dataset, build_loss(Choice(name=loss))


def test_right_examples_of_several_classes_come_before_the_surest_mistakes(digits, shown, tmp_path):
    dataset, run = digits.dataset, digits.run
    predictions = predict_split(run.model, run.loss, dataset, "test")
    target = dataset.targets("test")
    gallery.draw(run.model, run.loss, dataset, "test", target, predictions, tmp_path)
    (examples, heats, path), options = shown["grad_cam"]
    assert path.name == "grad_cam.png"
    assert options["layer"].startswith("grouped_conv2d")  # Keras numbers a process's layers
    right = [example for example in examples if example.right]
    wrong = [example for example in examples if not example.right]
    assert examples == right + wrong
    assert len(right) == len(wrong) == 6
    truths = [example.truth for example in right]
    assert truths == sorted(set(truths))
    assert (truths[0], truths[-1]) == ("0", "9")
    assert all(example.answer == example.truth for example in right)
    assert not any(example.answer == example.truth for example in wrong)
    sure = predictions["probabilities"].max(axis=1)
    mistaken = predictions["probabilities"].argmax(axis=1) != target
    assert wrong[0].probability == sure[mistaken].max()
    first = int(np.flatnonzero(~mistaken & (target == 0))[0])
    image = dataset.raw("test", [first])["image"][0]
    np.testing.assert_array_equal(right[0].image, image)
    # the heat is that of the predicted class, on what the model sees
    x = dataset.preprocess(image[None])
    heat = vision.grad_cam(run.model, x, lambda outputs: outputs[:, 0])
    np.testing.assert_allclose(heats[0], heat[0], rtol=1e-4, atol=1e-6)


def test_one_logit_speaks_for_one_class_and_against_the_other(shown, tmp_path):
    dataset, loss = _two_classes("binary-cross-entropy")
    assert dataset.classes == ("day", "night")
    model = _small(dataset, 1)
    for name, sign in (("day", -1), ("night", 1)):
        model.layers[-1].bias.assign([sign * 100.0])  # all examples are taken for it
        predictions = predict_split(model, loss, dataset, "train")
        target = dataset.targets("train")
        gallery.draw(model, loss, dataset, "train", target, predictions, tmp_path)
        (examples, heats, _), _ = shown["grad_cam"]
        assert {(example.answer, example.probability) for example in examples} == {(name, 1.0)}
        x = dataset.preprocess(examples[0].image[None])
        right = vision.grad_cam(model, x, lambda outputs, sign=sign: sign * outputs[:, 0])
        assert right.max() > 0
        np.testing.assert_allclose(heats[0], right[0], rtol=1e-4, atol=1e-7)


def test_numbers_are_shown_from_the_lowest_to_the_highest(shown, tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(30, 6, 6, 3)).astype(np.float32)
    y = 50 + 10 * x[:, 2, 2, 0]
    dataset = load(Data(source="python", standardize_target=True), (x, y))
    model, loss = _small(dataset, 2), build_loss(Choice(name="gaussian"))
    predictions = predict_split(model, loss, dataset, "test")
    report(model, loss, dataset, {"split": "test"}, predictions, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"residuals.png"}
    (examples, heats, _), _ = shown["grad_cam"]
    answers = [float(example.answer) for example in examples]
    assert answers == sorted(answers)
    assert answers[0] == pytest.approx(predictions["prediction"].min(), rel=1e-3)
    assert answers[-1] == pytest.approx(predictions["prediction"].max(), rel=1e-3)
    assert {example.right for example in examples} == {None}
    right = vision.grad_cam(model, examples[2].image[None], lambda outputs: outputs[:, 0])
    np.testing.assert_allclose(heats[2], right[0], rtol=1e-4, atol=1e-7)
    assert shown["filters"][0][0].shape == (4, 3, 3, 3)


def test_many_pixels_are_passed_in_parts(shown, tmp_path, monkeypatch):
    dataset, loss = _two_classes("cross-entropy")
    model = _small(dataset, 2)
    predictions = predict_split(model, loss, dataset, "train")
    given = (model, loss, dataset, "train", dataset.targets("train"), predictions, tmp_path)
    gallery.draw(*given)
    together = shown["grad_cam"][0][1]
    monkeypatch.setattr(gallery, "_PIXELS", 3 * 8 * 8)
    gallery.draw(*given)
    assert len(together) > 3
    np.testing.assert_allclose(shown["grad_cam"][0][1], together, atol=1e-6)


def test_images_are_cut_as_the_model_sees_them_in_their_own_colours():
    raw = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3)).astype(np.uint8)
    inputs = {"height": 9, "width": 7, "channels": 3, "dtype": "uint8"}
    state = {"mean": [10.0, 20.0, 30.0], "std": [1.0, 2.0, 4.0]}
    pre = Preprocess("image", "central_crop(4)|standardize|flip_lr", inputs, [None, state, None])
    seen, x = gallery._prepare(pre, raw)
    np.testing.assert_array_equal(seen, raw[:, 2:6, 1:5])
    np.testing.assert_allclose(x, (raw[:, 2:6, 1:5] - state["mean"]) / state["std"], rtol=1e-6)
    # once values have been changed and then the size, the model's own values are what is left
    seen, x = gallery._prepare(Preprocess("image", "scale|central_crop(4)", inputs), raw)
    np.testing.assert_array_equal(seen, x)
    # a row of numbers is still shown as its image
    seen, x = gallery._prepare(Preprocess("image", "scale|flatten", inputs), raw)
    np.testing.assert_array_equal(seen, raw)
    assert x.shape == (2, 9 * 7 * 3)


def test_templates_of_a_linear_classifier_carry_the_names_of_the_classes(shown, tmp_path):
    dataset, loss = _two_classes("cross-entropy")
    inputs = keras.Input(dataset.input_shape)
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(inputs)))
    predictions = predict_split(model, loss, dataset, "train")
    gallery.draw(model, loss, dataset, "train", dataset.targets("train"), predictions, tmp_path)
    assert set(shown) == {"filters"}
    (kernels, _), options = shown["filters"]
    assert kernels.shape == (2, 8, 8, 1)
    assert options == {"layer": "out", "names": ("day", "night")}


def test_what_does_not_apply_is_removed_and_a_failure_is_no_end(tmp_path, monkeypatch, caplog):
    dataset, loss = _two_classes("cross-entropy")
    target = dataset.targets("train")
    model = _small(dataset, 2)
    predictions = predict_split(model, loss, dataset, "train")
    gallery.draw(model, loss, dataset, "train", target, predictions, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == NAMES

    def broken(*_, **__):
        raise RuntimeError("no paper")

    with monkeypatch.context() as patch, caplog.at_level("WARNING", "epochal"):
        patch.setattr(vision, "feature_maps", broken)
        gallery.draw(model, loss, dataset, "train", target, predictions, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"filters.png", "grad_cam.png"}
    assert "feature_maps.png could not be drawn (RuntimeError: no paper)" in caplog.text

    neighbors = knn(dataset.input_shape, 2, capacity=dataset.sizes["train"], k=1)
    gallery.draw(neighbors, loss, dataset, "train", target, predictions, tmp_path)
    assert list(tmp_path.iterdir()) == []
