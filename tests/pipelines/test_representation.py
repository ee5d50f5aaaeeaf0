"""SimCLR end to end on digits: training, resuming, probes, export, a start with few labels."""

import importlib
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from epochal.models import create_model
from epochal.pipelines import checkpoint, cli, few_labels, results, studies, tune
from epochal.pipelines.ablate import ablate
from epochal.pipelines.data import load, ops
from epochal.pipelines.evaluate import evaluate
from epochal.pipelines.export import export
from epochal.pipelines.intervals import intervals
from epochal.pipelines.predict import predict
from epochal.pipelines.recipe import Algorithm, Choice, Data, Recipe, RecipeError, override
from epochal.pipelines.recipes import get_recipe
from epochal.pipelines.representation import geometry, spread, untrained
from epochal.pipelines.run import Run, RunError
from epochal.pipelines.seen import count_seen
from epochal.pipelines.space import Space
from epochal.pipelines.train import Diverged, train
from epochal.pipelines.verify import ask_alone

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


class Start(keras.callbacks.Callback):
    """Keeps the weights that training starts from."""

    def on_train_begin(self, logs=None):
        self.weights = {v.path: np.array(v) for v in self.model.weights}


@pytest.fixture(scope="module")
def start():
    return Start()


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, start):
    return train(recipe(), tmp_path_factory.mktemp("views") / "run", callbacks=[start])


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Runs of seeds 1 and 2 of one recipe, with the weights that they would start from."""
    made = override(recipe(), {"model.encoder_options": {"width": 4}, "algorithm.epochs": 0})
    folder = tmp_path_factory.mktemp("short")
    return [train(override(made, {"seed": seed}), folder / f"{seed}") for seed in (1, 2)]


def test_the_untrained_network_is_the_one_that_training_started_from(learnt, start):
    data = load(learnt.recipe.data)
    network, filled = untrained(learnt.model, data)
    weights = [v for v in network.weights if "moving" not in v.path]
    assert len(weights) > 60
    for variable in weights:
        np.testing.assert_array_equal(variable, start.weights[variable.path])
    # and its statistics are those of two views of every training image
    n = data.sizes["train"]
    views = np.concatenate(list(data.views("train", np.arange(n)).as_numpy_iterator()))
    norm = next(la for la in network.encoder.layers if "norm" in la.name or "bn" in la.name)
    before = keras.Model(network.encoder.input, norm.input)(views.reshape(-1, 8, 8, 1)).numpy()
    assert filled == len(views) == n
    np.testing.assert_allclose(norm.moving_mean, before.mean(axis=(0, 1, 2)), atol=1e-4)
    wanted = before.var(axis=(0, 1, 2))  # less that of the batches' means, which is small
    np.testing.assert_allclose(norm.moving_variance, wanted, rtol=0.03)
    again, _ = untrained(learnt.model, data)
    for one, other in zip(network.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    said = f"its batch statistics those of {n:,} training images"
    assert said in learnt.metrics["untrained"]
    assert said in (learnt.path / "README.md").read_text()


def test_an_untrained_network_without_batch_normalisation_has_nothing_to_fill():
    options = {"encoder": "mlp", "encoder_options": {"hidden": [4]}, "head": "none"}
    model = create_model("simclr", input_shape=(8, 8, 1), **options)
    network, filled = untrained(model, load(recipe().data))
    assert filled == 0
    for one, other in zip(network.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


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


few = importlib.import_module("epochal.pipelines.few_labels")  # the function has its name


def test_the_chain_of_the_follow_up_is_that_of_the_run_without_its_colours(learnt):
    chain = few.chain_of(learnt)
    assert [step.name for step in ops.parse(chain)] == ["random_resized_crop", "standardize"]
    raw = load(learnt.recipe.data).raw("test", np.arange(3))["image"]
    known = load(few._data(learnt, "builtin:digits", train_examples=10))
    np.testing.assert_array_equal(
        known.preprocess(tf.constant(raw)), learnt.preprocess(tf.constant(raw))
    )
    assert known.sizes == {"train": 10, "test": load(learnt.recipe.data).sizes["test"]}


def test_few_labels_compare_pairs(learnt, monkeypatch):
    seen = []

    def train_(recipe, folder, callbacks, data):
        seen.append((recipe, folder))
        labels = load(recipe.data).rows("train")
        tuned = "weights" in recipe.model.options
        return 0.5 + 0.1 * tuned + 0.01 * recipe.seed + 0.001 * len(labels)

    monkeypatch.setattr(few, "_train", train_)
    found = few_labels(learnt, None, (0.01, 0.05), 2, changes={"algorithm.steps": "40"})
    assert json.loads((learnt.path / "few-labels.json").read_text())["seeds"] == [1, 2]
    counts = [row["examples"] for row in found["fractions"]]
    assert counts == [round(f * 1438) for f in (0.01, 0.05)]
    for row, count in zip(found["fractions"], counts, strict=True):
        assert row["scores"]["from_scratch"] == pytest.approx([0.51 + count / 1000,
                                                               0.52 + count / 1000])  # fmt: skip
        assert [row["difference"], row["low"], row["high"]] == pytest.approx([0.1] * 3)
        assert row["verdict"].endswith("+10 points [+10, +10], better")
    small, large = (row["scores"] for row in found["fractions"])
    assert 0.3 < np.mean(small["linear"]) < np.mean(large["linear"])
    assert 0.3 < np.mean(small["knn"]) < np.mean(large["knn"])
    pairs = [recipe for recipe, _ in seen]
    assert len({folder for _, folder in seen}) == len(seen) == 8
    for tuned, scratch in zip(pairs[::2], pairs[1::2], strict=True):
        assert tuned.data == scratch.data
        assert tuned.algorithm.steps == scratch.algorithm.steps == 40
        assert tuned.model.options == {"width": 8, "weights": str(learnt.path)}
        assert scratch.model.options == {"width": 8}
    chosen = [set(load(recipe.data).rows("train").tolist()) for recipe in pairs[:4:2]]
    assert chosen[0] != chosen[1]  # other labels with another seed, all of training images
    tested = set(load(pairs[0].data).rows("test").tolist())
    assert tested == set(load(learnt.recipe.data).rows("test").tolist())


def test_runs_of_two_seeds_make_two_pairs(short, monkeypatch, capsys):
    """What each is worth differs with its seed, and so there is an interval, around their mean."""
    worth = {1: 0.12, 2: 0.10}
    seen = []

    def train_(recipe, folder, callbacks, data):
        seen.append((recipe, folder))
        return 0.6 + worth[recipe.seed] * ("weights" in recipe.model.options)

    monkeypatch.setattr(few, "_train", train_)
    paths = [str(run.path) for run in short]
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", paths[0], "--fraction", "0.01", "--also", paths[1]])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    reach = 12.7062 * 0.01  # Student's t of one degree, times the standard error
    verdict = f"+11 points [{100 * (0.11 - reach):+.3g}, {100 * (0.11 + reach):+.3g}]"
    assert f"scratch with 14 labels: {verdict}, no difference shown with 2 seeds" in shown
    assert "0 of the 359 test images were among the unlabelled ones" in shown
    found = json.loads((short[0].path / "few-labels.json").read_text())
    assert (found["runs"], found["seeds"]) == (paths, [1, 2])
    assert (found["test_seen"], found["test_examples"]) == (0, 359)
    assert len(found["fractions"][0]["scores"]["linear"]) == 2
    # each pair starts from its own run, on labels of its own
    tuned = [recipe for recipe, _ in seen if "weights" in recipe.model.options]
    assert [recipe.model.options["weights"] for recipe in tuned] == paths
    assert [str(folder.parent.parent) for _, folder in seen[::2]] == paths
    kept = [set(load(recipe.data).rows("train").tolist()) for recipe in tuned]
    assert kept[0] != kept[1]


def test_runs_that_make_no_pairs_are_refused(short, learnt, tmp_path):
    with pytest.raises(RunError, match=r"have the seeds 1, 1: a seed that comes twice"):
        few_labels([short[0], short[0].path])
    with pytest.raises(RunError, match=r"another recipe .*: model\.encoder_options\.width: 4 -> 8"):
        few_labels([short[0], learnt])
    other = override(short[1].recipe, {"name": "another"})  # only what it is called
    copy = tmp_path / "copy"
    shutil.copytree(short[1].path, copy)
    (copy / "recipe.json").write_text(other.to_json())
    few._check_pairs([short[0], Run(copy)])
    big = Run(copy)
    big.model.options["input_shape"] = (9, 9, 1)
    with pytest.raises(RunError, match=rf"encoder of {copy} takes 9x9x1"):
        few_labels([short[0], big])


def test_what_a_run_started_from_and_froze_is_left_out(learnt):
    recipes = few._recipes(learnt, 1, "builtin:digits", 50, False, {})
    options = learnt.model.options["encoder_options"]
    options |= {"weights": "gone.safetensors", "new_head": True, "freeze": "stage2"}
    try:
        again = few._recipes(learnt, 1, "builtin:digits", 50, False, {})
    finally:
        for key in ("weights", "new_head", "freeze"):
            del options[key]
    assert again == recipes
    assert [recipe.model.options.get("weights") for recipe in again] == [str(learnt.path), None]


def test_labels_that_cannot_be_followed_up(learnt, tmp_path):
    for arguments, error, message in (
        ({"fractions": [0.001]}, RecipeError, r"leaves some of the 10 classes empty. Take 0\.007"),
        ({"fractions": [0.0]}, RecipeError, "above 0 and at most 1"),
        ({"seeds": 0}, RecipeError, "at least one seed"),
        ({"labels": "builtin:ring", "fractions": [0.1]}, ops.OpsError, "acts on image"),
        ({"changes": {"algorithm.stepps": 3}}, RecipeError, "stepps"),
    ):
        with pytest.raises(error, match=message):
            few_labels(learnt, **arguments)
    (tmp_path / "recipe.json").write_text(get_recipe("mlp-digits").to_json())
    with pytest.raises(RunError, match="has learnt no representation"):
        few_labels(tmp_path)
    for arguments, message in (
        (["--also", "x"], "goes with --labels"),
        (["--splitt", "test"], "did you mean --split"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["evaluate", str(learnt.path), *arguments])
        assert end.value.code == 2, message


def labelled(folder, side, channels):
    """Six dark and six bright images, a folder each."""
    for i in range(12):
        image = np.full((side, side, channels), 40 + 120 * (i % 2) + i, np.uint8)
        path = folder / ("dark", "bright")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(image).numpy())
    return f"folder:{folder}"


def test_labelled_images_from_elsewhere_are_brought_into_the_form_of_the_run(
    learnt, tmp_path, monkeypatch
):
    monkeypatch.setattr(few, "_train", lambda *_: 0.5)
    colour = labelled(tmp_path / "colour", 12, 3)  # the crop makes them 8x8, and the run's are gray
    found = few_labels(learnt, colour, (0.5,), 1, changes={"algorithm.steps": 4})
    assert found["fractions"][0]["scores"]["knn"] == [1.0]
    assert found["test_seen"] == 0
    chain = ops.parse(few._data(learnt, colour).ops)
    assert [step.name for step in chain] == ["grayscale", "random_resized_crop", "standardize"]
    assert "grayscale" not in few._data(learnt, "builtin:digits").ops
    monkeypatch.setattr(few, "_chain", lambda *_: "grayscale")  # as of a run without crops
    with pytest.raises(RunError, match=r"images of 12x12x1 .* takes 8x8x1\. Resize"):
        few_labels(learnt, colour)


def files(folder, count):
    """Images of noise, dark and bright by turns, a folder each."""
    draw = np.random.default_rng(0)
    for i in range(count):
        kind = ("dark", "bright")[i % 2]
        image = draw.integers(0, 128, (8, 8, 3)) + 127 * (i % 2)
        path = folder / kind / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(image.astype(np.uint8)).numpy())


def test_tested_images_that_were_learnt_from_are_counted(tmp_path):
    files(tmp_path / "images", 40)
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    views = {"task": "representation", "ops": "random_resized_crop(8)", "batch_size": 4}
    learnt = load(Data(source=f"images:{tmp_path / 'images'}", **views))
    tested = load(Data(source=f"folder:{tmp_path / 'copy'}"))

    def names(data, split):
        return [path.rsplit("/", 1)[-1] for path in data.raw(split, np.arange(data.sizes[split]))[
            "path"]]  # fmt: skip

    known = set(names(learnt, "train"))
    wanted = sum(name in known for name in names(tested, "test"))
    assert 0 < wanted < tested.sizes["test"]
    assert count_seen(tested, learnt) == wanted
    # arrays have no files: then pixels are compared, of gray images too
    everything = learnt.raw("train", np.arange(learnt.sizes["train"]))["image"]
    arrays = load(Data(source="python", test_fraction=0.0, **views), np.stack(everything))
    assert count_seen(tested, arrays) == wanted
    gray = np.repeat(np.arange(6, dtype=np.uint8), 16).reshape(6, 4, 4, 1)
    views |= {"ops": "random_resized_crop(4)", "test_fraction": 0.0, "validation_fraction": 0.0}
    one = load(Data(source="python", **views), gray)
    pair = (np.repeat(gray, 3, axis=-1), np.array([0, 1] * 3))
    other = load(Data(source="python"), {"train": pair, "test": pair})
    assert count_seen(other, one) == 6


def test_unlabelled_images_that_are_gone_are_not_counted(short, tmp_path):
    shutil.copytree(short[0].path, tmp_path / "run")
    changes = {"data.source": f"images:{tmp_path / 'gone'}"}
    (tmp_path / "run" / "recipe.json").write_text(override(short[0].recipe, changes).to_json())
    whole = load(Data(source="builtin:digits"))
    assert few._seen(whole, Run(tmp_path / "run"), None) is None
    files(tmp_path / "gone", 160)  # others are there now
    assert few._seen(whole, Run(tmp_path / "run"), None) is None
    result = {"fractions": [{"examples": 9, "scores": {"linear": [0.5]}}], "test_seen": None,
              "test_examples": 1234}  # fmt: skip
    console = Console(width=120)
    with console.capture() as shown:
        console.print(results.few_labels_table(result))
    assert "it is not known how many of the 1,234 test images" in shown.get()


@pytest.mark.slow
def test_a_run_on_images_is_followed_up_by_a_folder_with_labels(tmp_path):
    folder = tmp_path / "images"
    files(folder, 60)
    made = override(
        recipe(epochs=1, steps_per_epoch=4),
        {"data.source": f"images:{folder}", "data.batch_size": 16},
    )
    run = train(made, tmp_path / "run")
    assert "linear_accuracy" not in run.metrics["test"]
    with pytest.raises(RunError, match="needs classes"):
        few_labels(run)
    changes = {"algorithm.steps": 30, "algorithm.steps_per_epoch": 15}
    found = few_labels(run, f"folder:{folder}", (0.5,), 1, changes=changes)
    row = found["fractions"][0]
    assert row["examples"] == 24
    assert 0 < found["test_seen"] < found["test_examples"] == 12
    assert min(row["scores"]["linear"] + row["scores"]["fine_tuned"]) > 0.9
    assert "no interval, no claim" in row["verdict"]
    trained = sorted(path.name[:-9] for path in (run.path / "few-labels").iterdir())
    assert trained == ["fine-tuned-seed-1", "from-scratch-seed-1"]
    again = few_labels(run, f"folder:{folder}", (0.5,), 1, changes=changes)
    assert again["fractions"] == found["fractions"]


@pytest.mark.slow
def test_an_ablation_compares_heads_by_the_linear_probe(tmp_path):
    made = override(
        recipe(epochs=1, steps_per_epoch=2), {"model.encoder": "mlp", "model.encoder_options": {}}
    )
    found = ablate(made, ["model.head=nonlinear,none"], 1, directory=tmp_path / "study")
    assert found["metric"] == "linear_accuracy"
    heads = [row["parameters"] for row in found["variants"]]
    assert heads[0] > heads[1]
    assert all("error" not in row for row in found["variants"])
    searched = tune(made, 1, space=["algorithm.optimizer.learning_rate=log(1e-3,1e-2)"],
                         tuner="random", directory=tmp_path / "search")  # fmt: skip
    assert searched["objective"] == "val_linear_accuracy"
    assert all(row["error"] is None for row in searched["trials"])
    assert searched["best"]["score"] == max(row["score"] for row in searched["trials"])


def test_studies_compare_representations_by_their_probe(learnt):
    test = learnt.metrics["test"]
    assert studies.usual(test) == "linear_accuracy"
    assert studies.higher_is_better("knn_accuracy")
    assert not studies.higher_is_better("uniformity")
    assert studies.unit_of("linear_accuracy") == ("points", 100.0)
    tune_ = importlib.import_module("epochal.pipelines.tune")
    space = Space.parse(["model.projection=int(8,32)"])
    objective = tune_._objective(recipe(), None, space, None)
    assert (objective.name, objective.direction) == ("val_linear_accuracy", "max")
    assert (
        tune_.objective_of(learnt, "val_linear_accuracy")
        == (learnt.metrics["validation"]["linear_accuracy"]["value"])
    )
    with pytest.raises(RecipeError, match="says how good its images are"):
        tune_._objective(get_recipe("gan-digits"), None, space, None)
    ring = override(get_recipe("gan-ring"), {"data.validation_fraction": 0.1})
    assert tune_._objective(ring, None, space, None).name == "val_good_share"


def test_an_ablation_without_a_usual_metric_is_refused_before_training(tmp_path, monkeypatch):
    """Image GANs were compared by what D says, and a collapsed encoder has the best alignment."""
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(12):
        image = draw.integers(0, 256, (8, 8, 1)).astype(np.uint8)
        (tmp_path / "images" / f"{i}.png").write_bytes(tf.io.encode_png(image).numpy())
    views = override(
        recipe(), {"data.source": f"images:{tmp_path / 'images'}", "data.batch_size": 4}
    )
    trained = []
    module = importlib.import_module("epochal.pipelines.ablate")

    def refuse(recipe, *arguments):
        trained.append(recipe.name)
        raise ValueError("no training here")

    monkeypatch.setattr(module, "_one", refuse)
    vary = ["algorithm.optimizer.learning_rate=0.01,0.001"]
    for made, words, metric in (
        (get_recipe("gan-digits"), "says how good its images are.*--features", "d_real"),
        (views, "no labels to probe with: say by --metric .* alignment or uniformity", "alignment"),
    ):
        with pytest.raises(RecipeError, match=words):
            ablate(made, vary, 1, directory=tmp_path / made.name)
        assert not trained
        assert not (tmp_path / made.name).exists()
        with pytest.raises(RunError, match="no training here"):  # one that is named is taken
            ablate(made, vary, 1, directory=tmp_path / made.name, metric=metric)
        trained.clear()
    for made in (recipe(), get_recipe("gan-ring")):
        with pytest.raises(RunError, match="no training here"):
            ablate(made, vary, 1, directory=tmp_path / made.name / "usual")
    space = Space.parse(["model.projection=int(8,32)"])
    tune_ = importlib.import_module("epochal.pipelines.tune")
    with pytest.raises(RecipeError, match="say by --objective .* val_alignment or val_uniformity"):
        tune_._objective(views, None, space, None)


def test_values_are_chosen_by_the_metric_of_the_report_where_none_is_usual():
    assert studies.usual({"d_real": 1, "diversity": 1}, "diversity") == "diversity"
    assert studies.usual({"d_real": 1, "good_share": 1}, "d_real") == "good_share"
    assert studies.usual({"d_real": 1, "diversity": 1}, "novelty") == "d_real"


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
