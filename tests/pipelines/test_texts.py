"""Translations and language models, from raw strings to a SavedModel that gives strings."""

import json

import numpy as np
import pytest

from epochal.pipelines import texts
from epochal.pipelines.data import SourceError
from epochal.pipelines.evaluate import evaluate
from epochal.pipelines.export import export
from epochal.pipelines.generation import Generation
from epochal.pipelines.predict import predict
from epochal.pipelines.recipe import Algorithm, Choice, Data, Recipe
from epochal.pipelines.train import train
from epochal.pipelines.verify import ask_alone


def small(name, data, model, epochs, **algorithm):
    return Recipe(
        name=name,
        data=data,
        model=model,
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.01), epochs=epochs, **algorithm
        ),
    )


@pytest.fixture(scope="module")
def copying(tmp_path_factory):
    """A small seq2seq with attention that learns to copy words of up to four letters."""
    data = Data(source="builtin:copy/4", ops="characters", batch_size=64, train_examples=6000,
                validation_fraction=0.01, test_fraction=0.01, bucket_batches=4)  # fmt: skip
    model = Choice(name="seq2seq-luong", layers=1, units=64, embedding=32, dropout=0.0)
    recipe = small("copying", data, model, 5, clip_norm=1.0)
    return train(recipe, tmp_path_factory.mktemp("copying") / "run")


@pytest.fixture(scope="module")
def writing(tmp_path_factory):
    """A character model of a text of one sentence over and over."""
    place = tmp_path_factory.mktemp("writing")
    (place / "rhyme.txt").write_text("\n\n".join(["the cat sat on the mat."] * 120))
    data = Data(source=f"text:{place / 'rhyme.txt'}", ops="characters", context=32, batch_size=8)
    model = Choice(name="lstm", hidden=[48], embedding=16)
    return train(small("writing", data, model, 6), place / "run")


def test_a_copier_learns_to_copy(copying):
    found = copying.metrics["test"]
    assert found["exact_match"]["value"] > 0.8
    assert found["exact_match"]["low"] <= found["exact_match"]["value"]
    assert found["token_accuracy"]["value"] > 0.9
    assert found["perplexity"]["value"] < 1.5
    answered = {"exact_match", "chrf"}  # single words have no BLEU
    beside = {f"{name}_retrieval" for name in answered}
    assert set(found) == {"perplexity", "token_accuracy"} | answered | beside
    # No test word is a training word: the nearest one's copy is never the answer.
    assert found["exact_match_retrieval"]["value"] == 0.0
    assert 0 < found["chrf_retrieval"]["value"] < found["chrf"]["value"]
    samples = copying.metrics["samples"]
    assert [set(sample) for sample in samples] == [
        {"source", "target", "translation", "retrieval"}
    ] * 3
    drawn = {path.name for path in (copying.path / "plots").glob("*.png")}
    assert {"attention.png", "accuracy_by_length.png", "learning_curves.png"} <= drawn
    card = (copying.path / "README.md").read_text()
    assert card.count("> translation:") == card.count("> retrieval:") == 3


def test_a_translator_answers_strings_everywhere(copying):
    asked = ["abc", "zz", "q"]
    answers = predict(copying, asked)
    assert [answer["input"] for answer in answers] == asked
    assert sum(a["translation"] == a["input"] for a in answers) >= 2
    directory = export(copying)
    signature = json.loads((directory / "signature.json").read_text())
    assert signature["signatures"]["serving_default"]["inputs"]["text"]["dtype"] == "string"
    request = {"serving_default/text": np.array([b"abc", b"zz", b"q", b""], object)}
    answer = ask_alone([directory], [request])[0]
    given = [text.decode() for text in answer["serving_default/translation"]]
    assert given[:3] == [answer["translation"] for answer in answers]
    assert np.isfinite(answer["serving_default/score"]).all()


def test_evaluation_again_gives_the_same_numbers(copying):
    result = evaluate(copying, "test")
    for name, metric in result["metrics"].items():
        assert metric["value"] == pytest.approx(copying.metrics["test"][name]["value"]), name


def test_a_language_model_learns_a_rhyme_and_goes_on_with_it(writing):
    found = writing.metrics["test"]
    assert set(found) == {"perplexity", "token_accuracy"}
    assert found["perplexity"]["value"] < 2.0
    assert found["token_accuracy"]["value"] > 0.8
    answer = predict(writing, ["the cat sat"])[0]["text"]
    assert " on" in answer
    with pytest.raises(SourceError, match="1,024 at most; got 5,000"):
        predict(writing, ["the cat sat"], Generation(max_new_tokens=5_000))
    directory = export(writing)
    n = 3
    request = {
        "generate/prompt": np.array([b"the cat", b"the", b"the cat"], object),
        "generate/max_new_tokens": np.array([5, 3, 5], np.int32),
        "generate/temperature": np.array([0.0, 0.0, 0.0], np.float32),
        "generate/top_k": np.zeros(n, np.int32),
        "generate/seed": np.arange(n),
    }
    answer = ask_alone([directory], [request])[0]
    given = [text.decode() for text in answer["generate/text"]]
    assert given[0] == given[2] == " sat "
    assert given[1] in (" ca", " ma")  # the cat and the mat are equally likely


def test_a_gpt_goes_on_as_far_as_its_context(tmp_path):
    """Its context is as long as its examples: samples and answers end there."""
    rhyme = " ".join(["the cat sat on the mat"] * 12)  # too long to end within the context
    (tmp_path / "rhyme.txt").write_text("\n\n".join([rhyme] * 6))
    data = Data(source=f"text:{tmp_path / 'rhyme.txt'}", ops="characters", context=32, batch_size=8)
    model = Choice(name="gpt", width=24, layers=2, heads=2, context=32, dropout=0.0)
    run = train(small("gpt", data, model, 6), tmp_path / "run")
    assert run.metrics["test"]["perplexity"]["value"] < 4.0
    prompt = "the cat sat"
    answer = predict(run, [prompt])[0]["text"]
    assert len(answer) == 32 - len(prompt)
    request = {
        "generate/prompt": np.array([b"the cat", b"the"], object),
        "generate/max_new_tokens": np.array([5, 90], np.int32),
        "generate/temperature": np.zeros(2, np.float32),
        "generate/top_k": np.zeros(2, np.int32),
        "generate/seed": np.arange(2),
    }
    given = ask_alone([export(run)], [request])[0]["generate/text"]
    assert [len(text) for text in given] == [5, 29]


def test_translation_metrics_equal_their_definitions():
    found = {
        "nll": np.array([1.0, 3.0]),
        "right": np.array([2.0, 1.0]),
        "tokens": np.array([2.0, 6.0]),
    }
    both = texts._tokens(found)(np.array([[0, 1], [0, 0]]))
    assert both["perplexity"] == pytest.approx(np.exp([4 / 8, 2 / 4]))
    assert both["token_accuracy"] == pytest.approx([3 / 8, 1.0])


def test_bleu_of_resamples_is_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu")
    answers = ["the cat sat on the mat .", "a quick brown fox", "hello there world again now"]
    targets = ["the cat sat on a mat .", "the quick brown fox jumps", "hello there world again now"]
    found = {"translation": np.array(answers, object), "target": np.array(targets, object)}
    index = np.array([[0, 1, 2], [2, 2, 0], [1, 1, 1]])
    given = texts._translations(found)(index)
    for row, value in zip(index, given["bleu"], strict=True):
        right = sacrebleu.corpus_bleu([answers[i] for i in row], [[targets[i] for i in row]])
        assert value == pytest.approx(right.score)
    assert given["exact_match"] == pytest.approx([1 / 3, 2 / 3, 0.0])
