"""Runs of BERT and GPT as Hugging Face directories: weights, names of classes, ids of texts."""

import json

import numpy as np
import pytest

from epochal.models.bert import BERT
from epochal.models.gpt import GPT
from epochal.models.huggingface import load_huggingface, read_vocabulary
from epochal.pipelines.cli import _main
from epochal.pipelines.data.tokens import TextPreprocess
from epochal.pipelines.export import export
from epochal.pipelines.recipe import Recipe
from epochal.pipelines.run import Run, RunError, write_atomic, write_json

TEXTS = ["The cat sat on the mat.", "A café, naïve!", "the mat and THE hat", "cats sit; mats lie"]
SIZES = {"width": 24, "layers": 2, "heads": 2, "context": 20, "seed": 3}


def run_of(place, ops: str, make, classes=()) -> Run:
    """A finished run whose tokenizer has learnt from TEXTS; ``make``: vocabulary size -> model."""
    data = {"source": "text:texts.tsv", "ops": ops}
    recipe = Recipe(name="x", data=data, model="bert", loss="mse", algorithm={"epochs": 1})
    preprocess = TextPreprocess("text", ops, {"task": "classification"})

    def read(count):
        return preprocess.through(lambda: TEXTS, count)

    preprocess.fit(read)
    place.mkdir()
    write_atomic(place / "recipe.json", recipe.to_json())
    about = {"preprocess": preprocess.to_dict(), "classes": list(classes)}
    write_json(place / "dataset.json", about)
    write_json(place / "metrics.json", {"stop_reason": "done"})
    make(preprocess.tokenizer.vocabulary_size).save(place / "model.keras")
    return Run(place)


def classifier(size):
    return BERT(size, head="classification", num_classes=2, dropout=0.0, **SIZES)


@pytest.fixture
def bert(tmp_path):
    ops = "strip_accents|lowercase|wordpiece(70)|max_tokens(18)|enclose"
    return run_of(tmp_path / "bert", ops, classifier, ["bad", "good"])


@pytest.fixture
def gpt(tmp_path):
    return run_of(tmp_path / "gpt", "byte_bpe(300)", lambda size: GPT(size, dropout=0.0, **SIZES))


def test_a_classifier_reads_back_with_its_classes_and_its_ids(bert, tmp_path, capsys):
    assert _main(["export", str(bert.path), "--format", "huggingface"]) == 0
    place = bert.path / "huggingface"
    assert "read back and compared" in " ".join(capsys.readouterr().out.split())
    again = load_huggingface(place)
    ids = bert.preprocess(np.array(TEXTS, object))
    np.testing.assert_array_equal(again(ids), bert.model(ids))
    config = json.loads((place / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["label2id"] == {"bad": 0, "good": 1}
    words = read_vocabulary(place)
    assert (words.special["start"], words.special["end"]) == ("[START]", "[END]")
    assert words.longest == 20
    chain = f"tokenizer_of({str(place)!r})|max_tokens(18)|enclose"
    theirs = TextPreprocess("text", chain, {"task": "classification"}).fit(lambda count: [])
    assert theirs.python(TEXTS) == bert.preprocess.python(TEXTS)
    assert not list(bert.path.glob(".building-*"))
    with pytest.raises(RunError, match="is there already"):
        export(bert, format="huggingface")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "lowered"), [("lowercase|", "café"), ("", "CAFÉ")])
def test_case_and_accents_are_those_of_the_run(tmp_path, before, lowered):
    run = run_of(tmp_path / "run", f"{before}wordpiece(70)", classifier)
    place = export(run, tmp_path / "out", format="huggingface")
    chain = f"tokenizer_of({str(place)!r})"
    theirs = TextPreprocess("text", chain, {"task": "classification"}).fit(lambda count: [])
    assert theirs.python(["CAFÉ", *TEXTS]) == run.preprocess.python([lowered, *TEXTS])


def test_a_gpt_ends_where_its_own_end_is(gpt, tmp_path):
    place = export(gpt, tmp_path / "new" / "gpt2", format="huggingface")
    again = load_huggingface(place)
    ids = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(again(ids), gpt.model(ids))
    config = json.loads((place / "config.json").read_text())
    ids = {name: config[f"{name}_token_id"] for name in ("pad", "eos", "bos")}
    assert ids == {"pad": 0, "eos": 2, "bos": 2}  # [PAD], [END]
    assert read_vocabulary(place).merges == gpt.preprocess.states[0]["merges"]


@pytest.mark.slow
def test_what_the_format_does_not_hold_is_said(tmp_path, caplog):
    letters = run_of(tmp_path / "letters", "characters", lambda size: GPT(size, **SIZES))
    with pytest.raises(RunError, match="'characters'.* has no place in .* byte_bpe"):
        export(letters, format="huggingface")
    old = run_of(tmp_path / "old", "byte_bpe(270)", lambda size: GPT(size, norm="post", **SIZES))
    with pytest.raises(RunError, match="norm='pre'"):
        export(old, format="huggingface")
    assert not [path for path in old.path.iterdir() if path.is_dir()]
    chain = "strip_accents|nfkc|lowercase|wordpiece(70)"
    other = run_of(tmp_path / "other", chain, classifier)
    export(other, format="huggingface", verify=False)
    # Their accents would go after nfkc, and take its composed letters apart.
    assert "have to go through strip_accents|nfkc first" in caplog.text
    assert "add_special_tokens=False" in caplog.text
    words = read_vocabulary(other.path / "huggingface")
    assert (words.lowercase, words.strip_accents, words.longest) == (True, False, 20)


@pytest.mark.slow
def test_transformers_gives_the_same_answers(bert, gpt, tmp_path):
    transformers, torch = map(pytest.importorskip, ("transformers", "torch"))
    place = export(bert, format="huggingface")
    words = transformers.AutoTokenizer.from_pretrained(place)
    long = words(" ".join(TEXTS * 3), truncation=True)["input_ids"]
    assert long == bert.preprocess.python([" ".join(TEXTS * 3)])[0]
    given = words(TEXTS, padding=True, return_tensors="pt")
    ids = bert.preprocess(np.array(TEXTS, object)).numpy()
    np.testing.assert_array_equal(given["input_ids"], ids)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(place).eval()
    with torch.no_grad():
        logits = theirs(**given).logits.numpy()
    np.testing.assert_allclose(logits, bert.model(ids), atol=1e-5)
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    place = export(gpt, format="huggingface")
    words = transformers.AutoTokenizer.from_pretrained(place)
    assert [words(text)["input_ids"] for text in TEXTS] == gpt.preprocess.python(TEXTS)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    ids = np.arange(12).reshape(2, 6)
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits, gpt.model(ids), atol=1e-5)
