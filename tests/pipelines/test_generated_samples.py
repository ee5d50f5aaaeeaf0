"""GANs from the recipe to the SavedModel: learning, resuming, samples, distances, bad input."""

import hashlib
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
from PIL import Image

from epochal.models import create_model
from epochal.pipelines import checkpoint, cli, generated_samples, override, sample_baseline
from epochal.pipelines import sample_distances as distances
from epochal.pipelines.data import load
from epochal.pipelines.data.source import SourceError
from epochal.pipelines.evaluate import evaluate
from epochal.pipelines.export import export
from epochal.pipelines.generated_samples import collapse, on_centres
from epochal.pipelines.predict import predict
from epochal.pipelines.recipe import Algorithm, Choice, Data, Recipe, RecipeError
from epochal.pipelines.recipes import get_recipe, list_recipes
from epochal.pipelines.run import Run, RunError
from epochal.pipelines.sample_features import of_images, other_images
from epochal.pipelines.sample_pictures import EpochSamples
from epochal.pipelines.train import train
from epochal.pipelines.verify import ask_alone


def digits(**changes) -> Recipe:
    recipe = Recipe(
        name="small-gan",
        data=Data(source="builtin:digits", task="generation", batch_size=16, train_examples=64),
        model=Choice(name="dcgan", filters=4, discriminator_filters=4, noise_size=8, average=0.9),
        loss=Choice(name="non-saturating"),
        algorithm=Algorithm(optimizer=Choice(name="adam", beta_1=0.5), steps=6, steps_per_epoch=2),
    )
    return override(recipe, changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of a conditional DCGAN on digits, with its folder."""
    recipe = digits(**{"model.conditional": True})
    return train(recipe, tmp_path_factory.mktemp("gan") / "run")


def weights(run):
    model = run.model
    return [w.numpy() for player in (model.generator, model.mean_generator, model.discriminator)
            for w in player.variables]  # fmt: skip


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "loss": "wasserstein-gp",
            "model.critic_steps": 2,
            "model.normalization": "layer",
            "algorithm.precision": "mixed_float16",
        },
    ],
)
def test_a_killed_run_goes_on_bit_equal(changes, tmp_path, monkeypatch):
    recipe = digits(**changes)
    whole = train(recipe, tmp_path / "whole")
    save = checkpoint.Recorder._save

    def save_once(self, epoch):
        save(self, epoch)
        raise Killed

    monkeypatch.setattr(checkpoint.Recorder, "_save", save_once)
    with pytest.raises(Killed):
        train(recipe, tmp_path / "killed")
    monkeypatch.setattr(checkpoint.Recorder, "_save", save)
    resumed = train(recipe, tmp_path / "killed")
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert whole.history == resumed.history


def test_what_a_run_leaves(run):
    test = run.metrics["test"]
    assert {"d_real", "d_fake", "diversity", "novelty"} <= set(test)
    assert test["d_real"]["low"] <= test["d_real"]["value"] <= test["d_real"]["high"]
    assert "val_loss" not in run.history[0]
    plots = {str(path.relative_to(run.path / "plots")) for path in run.path.rglob("plots/**/*.png")}
    assert plots == {
        "learning_curves.png", "samples.png", "interpolation.png", "neighbours.png",
        "epochs/epoch-0001.png", "epochs/epoch-0002.png", "epochs/epoch-0003.png",
    }  # fmt: skip


def test_folders_are_not_seen_class_by_class(tmp_path):
    """Their files lie sorted by class; the distances look at the first ones, or at blocks."""
    for i in range(60):
        path = tmp_path / "abc"[i // 20] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tf.io.encode_png(np.full((8, 8, 1), i, np.uint8)).numpy())
    data = load(Data(source=f"folder:{tmp_path}", task="generation", test_fraction=0.0))
    images, labels = generated_samples.examples(data, "train", 30)
    assert len(images) == 30
    np.testing.assert_array_equal(labels, images[:, 0, 0, 0] // 20)
    assert np.bincount(labels).min() > 5  # the first 30 have none of the last class
    assert set(labels[:10]) == {0, 1, 2}


def test_the_discriminator_is_asked_by_whole_batches_of_one_kind():
    model = create_model(
        "dcgan", input_shape=(16, 16, 1), num_classes=3, conditional=True, filters=4,
        discriminator_filters=4, seed=0,
    )  # fmt: skip
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (40, 16, 16, 1)).astype(np.uint8)  # two batches of 16, and 8 more
    y = draw.integers(0, 3, 40)
    said = generated_samples._logits(model, x, y, 16)
    whole = [model.logits(x[rows], y[rows]).numpy()[:, 0]
             for rows in (slice(16), slice(16, 32), slice(24, 40))]  # fmt: skip
    np.testing.assert_allclose(said, np.concatenate([*whole[:2], whole[2][8:]]), atol=1e-6)
    assert np.abs(model.logits(x[32:], y[32:])[:, 0] - said[32:]).max() > 1e-3  # of 8 alone
    assert len(generated_samples._logits(model, x[:5], y[:5], 16)) == 5


def test_the_export_is_a_function_of_seed_and_class(run):
    directory = export(run)  # compared with the Keras model in a process with TensorFlow alone
    seeds, ids = np.array([7, 7, -3, 7]), np.array([1, 2, 1, 1])
    request = {"serving_default/seed": seeds, "serving_default/class_id": ids}
    answer = ask_alone([directory], [request])[0]
    image = answer["serving_default/image"]
    assert image.dtype == np.uint8
    assert image.shape == (4, 8, 8, 1)
    np.testing.assert_array_equal(image[0], image[3])
    assert np.abs(image[0].astype(int) - image[1]).max() > 1
    assert np.abs(image[0].astype(int) - image[2]).max() > 1
    files = answer["serving_default/image_bytes"]
    np.testing.assert_array_equal(tf.io.decode_png(files[1]).numpy(), image[1])
    described = json.loads((directory / "signature.json").read_text())
    assert set(described["signatures"]["serving_default"]["inputs"]) == {"seed", "class_id"}
    assert described["labels"] == [str(i) for i in range(10)]
    with pytest.raises(RunError, match="class_id must be 0 to 9"):
        ask_alone([directory], [request | {"serving_default/class_id": ids + 9}])


def test_predict_writes_pngs_and_names_them(run):
    found = predict(run, ["0:3", "5:7"])
    assert [one["input"] for one in found] == ["0:3", "5:7"]
    images = [tf.io.decode_png(Path(one["file"]).read_bytes()) for one in found]
    assert images[0].shape == (8, 8, 1)
    again = predict(run, "5:7")[0]["file"]
    assert again == found[1]["file"]
    for bad, words in (("x", "no seed"), ("1", "names no class"), ("1:11", "names no class")):
        with pytest.raises(SourceError, match=words):
            predict(run, [bad])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return train(
        Recipe(
            name="classifier",
            data=Data(source="builtin:digits", ops="scale"),
            model=Choice(name="mlp", hidden=[16]),
            loss=Choice(name="cross-entropy"),
            algorithm=Algorithm(optimizer=Choice(name="adam", learning_rate=0.01), epochs=3),
        ),
        tmp_path_factory.mktemp("features") / "classifier",
    )


def test_distances_say_by_whose_features_they_are(run, classifier, tmp_path, caplog, capsys):
    found = evaluate(run, "test", features=classifier.path)["features"]
    digest = hashlib.sha256((classifier.path / "model.keras").read_bytes()).hexdigest()
    whose = {"path": str(classifier.path), "sha256": digest, "source": "builtin:digits"}
    assert found == whose
    assert json.loads((run.path / "evaluation-test.json").read_text())["features"] == whose
    assert "classifier of" not in caplog.text
    other = shutil.copytree(classifier.path, tmp_path / "other")
    recipe = override(classifier.recipe, {"data.source": "folder:letters"})
    (other / "recipe.json").write_text(recipe.to_json())
    evaluate(run, "test", features=other)
    assert "the features are those of a classifier of folder:letters" in caplog.text
    assert cli._main(["evaluate", str(run.path), "--features", str(other)]) == 0
    said = "".join(capsys.readouterr())
    assert f"features: {other}, a classifier of folder:letters, SHA-256 {digest[:12]}" in said
    assert other_images({"source": "folder:a"}, "images:a") is None  # the same, without labels
    assert other_images({"source": None}, "images:a") is None


def test_features_of_a_classifier_give_distances(run, classifier):
    metrics = evaluate(run, "test", features=classifier.path)["metrics"]
    assert metrics["frechet"]["value"] > 1
    assert metrics["kernel"]["value"] > 0.01
    # three steps make no digits; two Gaussians on 64 examples make something like them
    assert metrics["baseline_frechet"]["value"] < 0.5 * metrics["frechet"]["value"]
    assert metrics["baseline_kernel"]["value"] < 0.5 * metrics["kernel"]["value"]
    assert metrics["precision"]["value"] < 0.5 < metrics["baseline_precision"]["value"]
    assert metrics["recall"]["low"] <= metrics["recall"]["value"] <= metrics["recall"]["high"]
    assert (run.path / "plots" / "baseline.png").is_file()
    evaluate(run, "test")
    assert not (run.path / "plots" / "baseline.png").is_file()
    with pytest.raises(RunError, match="cannot tell how good images"):
        evaluate(run, "test", features=run.path)
    with pytest.raises(RunError, match="Features are for generators"):
        evaluate(classifier, "test", features=classifier.path)
    with pytest.raises(RunError, match="no weights of keras.applications"):
        evaluate(run, "test", features=run.path / "model.keras")


@pytest.mark.slow
def test_features_of_inception(tmp_path):
    keras.utils.set_random_seed(0)
    network = keras.applications.InceptionV3(
        include_top=False, weights=None, input_shape=(299, 299, 3), pooling="avg"
    )
    network.save_weights(tmp_path / "inception.weights.h5")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    large = tf.image.resize(np.repeat(images, 3, axis=3).astype(np.float32), [299, 299])
    wanted = network(keras.applications.inception_v3.preprocess_input(large.numpy()))
    found = of_images(tmp_path / "inception.weights.h5", images)
    assert found.shape == (3, 2048)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_frechet_equals_the_root_of_matrices():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(60, 5)) @ draw.normal(size=(5, 5)), draw.normal(1, 2, size=(50, 5))
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(one @ two).real
    right = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root)
    assert distances.frechet(x, y) == pytest.approx(right, rel=1e-6)
    assert distances.frechet(x, x) == pytest.approx(0, abs=1e-6)
    shifted = distances.frechet(x, x + np.array([3.0, 0, 0, 0, 0]))
    assert shifted == pytest.approx(9, rel=1e-6)


def test_the_kernel_distance_equals_its_double_loop():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(7, 3)), draw.normal(1, 1, size=(7, 3))

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    total = 0.0
    for i in range(7):
        for j in range(7):
            if i != j:
                total += (k(x[i], x[j]) + k(y[i], y[j])) / (7 * 6)
            total -= 2 * k(x[i], y[j]) / 49
    assert distances.kernel_distance(x, y) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("cells", [2**23, 40])  # at once, and a few rows at a time
def test_precision_and_recall_equal_their_loops(cells, monkeypatch):
    monkeypatch.setattr(distances, "_CELLS", cells)
    draw = np.random.default_rng(0)
    real = 100 + draw.normal(size=(30, 2))  # far from 0: float32 squares would lose digits
    made = 100 + 0.4 * draw.normal(size=(20, 2)) + [0.5, 0]

    def inside(queries, centres):
        found = []
        for query in queries:
            hit = False
            for centre in centres:
                others = sorted(np.linalg.norm(other - centre) for other in centres)
                hit |= np.linalg.norm(query - centre) <= others[3]  # others[0] is itself
            found.append(hit)
        return found

    precision, recall = distances.precision_recall(real, made)
    assert precision.tolist() == inside(made, real)
    assert recall.tolist() == inside(real, made)
    assert recall.mean() < 0.7 < precision.mean()  # narrow: good samples that leave much out
    with pytest.raises(ValueError, match="more than 3 examples"):
        distances.precision_recall(real, made[:3])


def test_copies_are_not_novel():
    draw = np.random.default_rng(0)
    train, held_out, new = (draw.integers(0, 256, (n, 4, 4, 1), np.uint8) for n in (200, 50, 50))
    assert distances.novelty(train[:50], held_out, train) == 0
    assert distances.novelty(new, held_out, train) == pytest.approx(1, abs=0.1)
    assert np.isnan(distances.novelty(new, train[:50], train))  # nothing to compare with
    places, far = distances.nearest_rows(new, train, 2)
    gaps = np.linalg.norm(new.reshape(50, 1, -1) - train.reshape(200, -1).astype(float), axis=2)
    np.testing.assert_array_equal(places, np.argsort(gaps, axis=1)[:, :2])
    np.testing.assert_allclose(far, np.sort(gaps, axis=1)[:, :2])


def test_the_baseline_is_drawn_from_the_training_images():
    draw = np.random.default_rng(0)
    kinds = draw.integers(0, 2, 400)  # dark and bright images of one number each
    train = np.rint(np.where(kinds, 200, 50) + 5 * draw.normal(size=400))
    train = np.broadcast_to(train[:, None, None, None], (400, 4, 4, 1)).astype(np.uint8)
    made = sample_baseline.images(train, 300)
    assert made.shape == (300, 4, 4, 1)
    assert made.dtype == np.uint8
    middle = made.mean(axis=(1, 2, 3))
    assert np.abs(made - middle[:, None, None, None]).max() < 3  # one principal component
    bright = middle > 125
    assert bright.mean() == pytest.approx(kinds.mean(), abs=0.1)
    assert middle[bright].mean() == pytest.approx(200, abs=2)
    assert middle[bright].std() == pytest.approx(5, abs=1)
    np.testing.assert_array_equal(made, sample_baseline.images(train, 300))


def test_diversity_and_collapse():
    real = np.random.default_rng(0).normal(size=(100, 4))
    assert distances.diversity(real, 0.5 * real) == pytest.approx(0.5)
    assert "has collapsed" in collapse(distances.diversity(real, np.ones((50, 4))), 1.3)
    assert "knows every sample and has won" in collapse(0.9, 0.001)
    assert collapse(0.9, 1.386) is None
    assert collapse(0.9, None) is None
    same = np.repeat(real[:1], 100, axis=0)
    assert distances.diversity(real, same) == 0
    assert np.isnan(distances.diversity(same, real))
    assert collapse(np.nan, 1.3) is None


def test_a_class_that_has_but_one_sample_is_a_collapse():
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 3
    real = draw.normal(size=(60, 4)) + 5 * labels[:, None]
    one = 5.0 * np.repeat(labels[:, None], 4, axis=1)  # the noise is ignored
    assert distances.diversity(real, one) > 0.5
    assert distances.class_diversity(real, labels, one, labels) == 0
    assert distances.class_diversity(real, labels, real, labels) == 1
    half = np.where((labels == 1)[:, None], 5 + 0.5 * (real - 5), real)  # of one class alone
    assert distances.class_diversity(real, labels, half, labels) == pytest.approx(0.5)
    assert "samples of one class lie 0 times" in collapse(0.9, 1.3, within=0.0)
    assert np.isnan(distances.class_diversity(real[:9], labels[:9], real, labels))  # 3 of each
    assert collapse(0.9, 1.3, within=np.nan) is None


def test_a_conditional_generator_that_ignores_its_noise_is_told(run, tmp_path, caplog):
    model = Run(run.path).model  # of its own: it is changed
    kernel = model.mean_generator.get_layer("project").kernel
    size = model.options["noise_size"]
    deaf = kernel.numpy()
    deaf[:size], deaf[size:] = 0, 50 * deaf[size:]  # to the noise; and the classes lie far apart
    kernel.assign(deaf)
    dataset = load(run.recipe.data)
    result, _ = generated_samples.measure(model, run.loss, dataset, "test")
    assert result["metrics"]["diversity"]["value"] > 0.1
    assert result["metrics"]["class_diversity"]["value"] == 0
    assert "samples of one class" in result["collapse"]
    assert run.metrics["test"]["class_diversity"]["value"] > 0
    caplog.clear()
    watch = EpochSamples(tmp_path, *generated_samples.examples(dataset, "train", 2_000))
    watch.set_model(model)
    watch.on_train_begin()
    watch.on_epoch_end(0)
    assert "epoch 1: the generator has collapsed: its samples of one class" in caplog.text


def test_modes_are_counted_by_good_samples():
    ring = load(Data(source="builtin:ring", task="generation"))
    centres, deviation = np.array(ring.about["centres"]), ring.about["deviation"]
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 2)
    points = np.concatenate([np.repeat(centres[:6], 100, axis=0), np.repeat(centres[6:7], 5, 0)])
    points = np.concatenate([points, np.zeros((195, 2))])  # near none
    points[:100, 0] += 2.9 * deviation
    points[100:200, 0] += 3.1 * deviation  # no longer good
    found = on_centres(points, centres, deviation)
    assert found["modes"]["value"] == 5
    assert found["good_share"]["value"] == pytest.approx(505 / 800)
    real = next(iter(ring.split("train").unbatch().batch(8_000)))[0].numpy()
    true = on_centres(real, centres, deviation)
    assert true["modes"]["value"] == 8
    assert true["good_share"]["value"] == pytest.approx(1 - np.exp(-4.5), abs=0.005)


def test_the_ring_is_learnt_and_points_are_answered(tmp_path):
    recipe = override(
        get_recipe("gan-ring"),
        {"algorithm.steps": 3_000, "algorithm.steps_per_epoch": 1_500, "data.batch_size": 128},
    )
    run = train(recipe, tmp_path / "run")
    test = run.metrics["test"]
    assert test["modes"]["value"] >= 6
    assert "collapse" not in run.metrics
    found = predict(run, [0, 1, 2])
    assert np.linalg.norm(found[0]["features"]) == pytest.approx(2, abs=0.5)
    directory = export(run)
    answer = ask_alone([directory], [{"serving_default/seed": np.array([0, 1])}])[0]
    points = answer["serving_default/features"]
    np.testing.assert_allclose(points, [one["features"] for one in found[:2]], atol=1e-5)


def test_images_without_labels_and_labels_that_are_ignored(tmp_path):
    draw = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(24):
        image = draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        (folder / f"{i}.png").write_bytes(tf.io.encode_png(image).numpy())
    recipe = digits(**{"data.source": f"images:{folder}", "data.train_examples": None})
    run = train(override(recipe, {"data.batch_size": 4, "algorithm.steps": 2}), tmp_path / "run")
    assert run.model.options["input_shape"] == (8, 8, 3)
    assert len(predict(run, ["1"])) == 1


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data.task": None}, RecipeError, "set data.task"),
        ({"data.ops": "scale"}, SourceError, "leave out scale"),
        ({"data.source": "builtin:ring"}, RecipeError, "use gan, not dcgan"),
        ({"data.source": "builtin:dates"}, SourceError, "images and points"),
        ({"data.ops": "resize(7)"}, RecipeError, "cannot make 7x7"),
        ({"loss": "mse"}, RecipeError, "is for regression"),
        ({"model": "mlp"}, RecipeError, "for no other model"),
        ({"algorithm.ema": 0.9}, RecipeError, "Set model.average"),
        ({"loss": "wasserstein-gp"}, RecipeError, "batch normalisation mixes"),
        ({"algorithm.early_stopping": {"monitor": "val_loss"}}, RecipeError, "is not recorded"),
    ],
)
def test_bad_input_is_named(changes, error, words, tmp_path):
    with pytest.raises(error, match=words):
        train(digits(**changes), tmp_path / "run")


def test_the_epochs_move(run):
    with Image.open(run.path / "plots" / "epochs" / "epochs.gif") as moving:
        assert moving.n_frames == 3


@pytest.mark.parametrize("name", list_recipes("*gan-*"))
def test_recipes_are_whole(name):
    assert get_recipe(name).data.task == "generation"
