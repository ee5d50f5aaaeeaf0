"""Published weights as runs: taken as they are, and fine-tuned."""

import hashlib
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_image

from epochal.models import create_model
from epochal.pipelines import evaluate, export, predict
from epochal.pipelines import recipe as r
from epochal.pipelines.cli import _main
from epochal.pipelines.data import SourceError, load
from epochal.pipelines.environment import starting_weights
from epochal.pipelines.recipe import Data, RecipeError, override
from epochal.pipelines.recipes import get_recipe
from epochal.pipelines.run import Run, RunError
from epochal.pipelines.train import train

CLASSES = 30


def said(capsys) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "classes.txt"
    names = [f"thing {i}" for i in range(CLASSES)]
    names[4] = names[21] = "crane"
    path.write_text("\n".join(names) + "\n")
    return path


def test_the_top_5_of_keras_applications_for_a_photo(labels, tmp_path, capsys):
    """From random weights of theirs to `epochal predict`, and their own preprocessing beside it."""
    theirs = keras.applications.ResNet50(
        weights=None, classes=CLASSES, input_shape=(224, 224, 3), classifier_activation=None
    )
    random = np.random.default_rng(2)
    for weight in theirs.weights:
        name, shape = weight.path.split("/")[-1], weight.shape
        if name in ("beta", "bias", "moving_mean"):
            weight.assign(random.uniform(-0.3, 0.3, shape))
        elif name in ("gamma", "moving_variance"):
            weight.assign(random.uniform(0.5, 1.2, shape))
    theirs.save(tmp_path / "published.h5")
    photo = load_sample_image("china.jpg")  # 427 x 640
    Image.fromarray(photo).save(tmp_path / "china.png")

    run = tmp_path / "run"
    arguments = ["--data.source", f"labels:{labels}", "--model.weights"]
    arguments += [str(tmp_path / "published.h5"), "--run-dir", str(run)]
    # The photo's own pixels: no resizing, in which two libraries would differ.
    ops = get_recipe("resnet50-pretrained-keras").data.ops.replace("resize_shorter(256)|", "")
    assert _main(["train", "resnet50-pretrained-keras", *arguments, "--data.ops", ops]) == 0
    text = said(capsys)
    assert "no training asked for" in text
    assert "ResNet-50, v1 layout, 30 classes" in text

    middle = photo[101:325, 208:432].astype("float32")[None]
    expected = theirs(keras.applications.resnet.preprocess_input(middle.copy())).numpy()[0]
    probabilities = np.exp(expected - expected.max()) / np.exp(expected - expected.max()).sum()
    best = np.argsort(-probabilities)[:5]

    assert _main(["predict", str(run), str(tmp_path / "china.png"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [one["class_id"] for one in answer["top5"]] == best.tolist()
    found = [one["probability"] for one in answer["top5"]]
    assert found == pytest.approx(probabilities[best].tolist(), abs=1e-4)
    assert answer["probability"] == found[0]
    assert len(answer["probabilities"]) == CLASSES  # two cranes, told apart
    assert _main(["predict", str(run), str(tmp_path / "china.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[2] == f"  {found[1]:.4f}  {answer['top5'][1]['label']}"


@pytest.fixture(scope="module")
def small(labels, tmp_path_factory):
    """A recipe on a tiny net of 30 classes, its weights in torchvision's names, and the net."""
    model = create_model("resnet18", input_shape=(32, 32, 3), num_classes=CLASSES, width=4, seed=1)
    state = {}
    for layer in model.layers:
        module = {"stem_conv": "conv1", "stem_norm": "bn1", "outputs": "fc"}.get(layer.name)
        if match := re.fullmatch(
            r"stage(\d)_(\d)_(conv|norm|shortcut_norm|shortcut)(\d?)", layer.name
        ):
            stage, block, part, number = match.groups()
            part = {"norm": "bn", "shortcut": "downsample.0", "shortcut_norm": "downsample.1"}.get(
                part, part
            )
            module = f"layer{stage}.{int(block) - 1}.{part}{number}"
        for variable in layer.weights:
            part = {
                "kernel": "weight", "gamma": "weight", "beta": "bias",
                "moving_mean": "running_mean", "moving_variance": "running_var",
            }.get(variable.name, variable.name)  # fmt: skip
            values = variable.numpy()
            order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(values.ndim, (0,))
            state[f"{module}.{part}"] = np.ascontiguousarray(values.transpose(order))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(state, path)
    return override(
        get_recipe("resnet50-pretrained"),
        {
            "name": "small",
            "data.source": f"labels:{labels}",
            "data.ops": "rgb|resize(32, 32)|standardize(mean=(120.0,), std=(60.0,))",
            "model": {"name": "resnet18", "width": 4, "weights": str(path)},
        },
    ), model


def test_a_run_without_training_predicts_exports_and_says_what_it_lacks(small, tmp_path):
    recipe, model = small
    run = train(recipe, tmp_path / "run")
    assert run.metrics["epochs"] == 0
    assert run.metrics["best_epoch"] is None
    assert "test" not in run.metrics
    assert run.history == []
    assert "crane (4)" in run.dataset["classes"]
    assert train(recipe, tmp_path / "run").path == run.path  # finished: returned as it is
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype("uint8")
    logits = model((image[None] - np.float32(120)) / np.float32(60)).numpy()[0]
    answer = predict(run, image)[0]
    assert [one["class_id"] for one in answer["top5"]] == np.argsort(-logits)[:5].tolist()
    assert export(run).is_dir()  # checked in a process with TensorFlow alone
    with pytest.raises(RunError, match="labels:.*have no examples to measure"):
        evaluate(run)
    card = (run.path / "README.md").read_text()
    assert "(no examples)" in card
    path = recipe.model.options["weights"]
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert run.metrics["weights"] == {"file": path, "sha256": digest}
    assert run.environment["weights"]["sha256"] == digest
    assert digest in card
    assert "test split" not in card
    assert "| metric |" not in card


def test_where_an_encoder_starts_from_is_recorded_too(small):
    path = small[0].model.options["weights"]
    recipe = override(get_recipe("simclr-digits"), {"model.encoder_options": {"weights": path}})
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert starting_weights(recipe) == {"file": path, "sha256": digest}
    assert starting_weights(get_recipe("simclr-digits")) is None


def test_zero_epochs_on_labelled_images_measure_the_weights(small, tmp_path):
    """Nothing is trained, and the test split is measured."""
    images = np.random.default_rng(0).integers(0, 256, (90, 32, 32, 3)).astype("uint8")
    recipe, model = small
    recipe = override(recipe, {"data.source": "python"})
    run = train(recipe, tmp_path / "run", data=(images, np.arange(90) % CLASSES))
    for ours, theirs in zip(run.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert 0 <= run.metrics["test"]["top5_accuracy"]["value"] <= 1
    assert run.metrics["stop_reason"].startswith("no training asked for")


def test_fine_tuning_keeps_the_frozen_stages_and_starts_a_head(small, tmp_path):
    recipe, model = small
    finetune = get_recipe("resnet50-finetune")
    options = {**finetune.model.options, **recipe.model.options}
    options.pop("version")
    images = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3)).astype("uint8")
    for where, folder in ((images[:40], "dark"), (images[40:], "light")):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for i, image in enumerate(where // 2 if folder == "dark" else where // 2 + 128):
            Image.fromarray(image).save(tmp_path / "photos" / folder / f"{i}.png")
    changed = override(
        finetune,
        {
            "data.source": f"folder:{tmp_path / 'photos'}",
            "data.ops": recipe.data.ops,
            "data.batch_size": 8,
            "model": {"name": "resnet18", **options},
            "algorithm.epochs": 2,
            "algorithm.precision": "float32",
        },
    )
    run = train(changed, tmp_path / "run")
    trained = run.model
    assert trained.output_shape == (None, 2)
    for name in ("stem_conv", "stem_norm", "stage2_2_conv2", "stage2_2_norm2"):
        for old, new in zip(
            model.get_layer(name).weights, trained.get_layer(name).weights, strict=True
        ):
            np.testing.assert_array_equal(old, new)
        assert not trained.get_layer(name).trainable
    assert np.any(
        model.get_layer("stage3_1_conv1").kernel != trained.get_layer("stage3_1_conv1").kernel
    )
    assert run.metrics["test"]["accuracy"]["value"] >= 0.75  # dark and light are far apart


def test_the_recipes_say_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _main(["train", "resnet50-finetune"]) == 1
    assert "photos does not exist" in said(capsys)
    assert _main(["train", "resnet50-pretrained", "--data.source", "labels:1000"]) == 1
    assert "resnet50.safetensors does not exist" in said(capsys)
    (tmp_path / "w.pth").write_bytes(b"")
    assert _main(["show", "w.pth"]) == 1
    assert "weights_only=True" in said(capsys)


def test_show_says_what_a_file_looks_like(small, capsys):
    path = small[0].model.options["weights"]
    assert _main(["show", path]) == 0
    assert "ResNet-18 of width 4, 30 classes (PyTorch's names)" in said(capsys)
    assert _main(["show", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == CLASSES


def test_names_of_classes_alone(tmp_path):
    chain = "resize(8, 8)|scale"
    dataset = load(Data(source="labels:12", ops=chain))
    assert dataset.classes == tuple(map(str, range(12)))
    assert dataset.sizes == {}
    assert dataset.input_shape == (8, 8, 3)
    with pytest.raises(SourceError, match="no split 'train'"):
        dataset.train(0)
    path = tmp_path / "c.txt"
    path.write_text("crane\nmaillot\ncrane\n")
    classes = load(Data(source=f"labels:{path}", ops=chain)).classes
    assert classes == ("crane (0)", "maillot", "crane (2)")
    for content, words in ((b"a\n\nb", "Line 2"), (b"\xff\xfe", "UTF-8"), (b"a", "1 classes")):
        path.write_bytes(content)
        with pytest.raises(SourceError, match=words):
            load(Data(source=f"labels:{path}", ops=chain))
    with pytest.raises(SourceError, match="Did you mean 'c.txt'"):
        load(Data(source=f"labels:{tmp_path / 'd.txt'}", ops=chain))
    with pytest.raises(SourceError, match="learns from the training examples"):
        load(Data(source="labels:12", ops="resize(8, 8)|standardize"))


def test_training_needs_examples(tmp_path):
    recipe = r.Recipe(
        name="t",
        data={"source": "labels:12", "ops": "resize(8, 8)|scale|flatten"},
        model="linear",
        loss="cross-entropy",
        algorithm={"epochs": 1},
    )
    with pytest.raises(RecipeError, match=r"no examples to train on.*--algorithm.epochs 0"):
        train(recipe, tmp_path / "run")
    assert Run(tmp_path / "run").state.startswith("training has not finished")
