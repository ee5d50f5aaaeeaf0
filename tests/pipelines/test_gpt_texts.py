"""GPT-2's vocabulary, whose id 0 is a word: from a directory to training, scores and export."""

import json

import numpy as np
import pytest

from epochal.models import gpt
from epochal.models.huggingface import Vocabulary, save_huggingface
from epochal.pipelines import prompting
from epochal.pipelines.data.source import SourceError
from epochal.pipelines.data.tokenizers.simple import printable_bytes
from epochal.pipelines.evaluate import evaluate
from epochal.pipelines.export import export
from epochal.pipelines.generation import USUAL, Generation, functions
from epochal.pipelines.predict import predict, scores
from epochal.pipelines.recipe import RecipeError, override
from epochal.pipelines.recipes import get_recipe
from epochal.pipelines.train import train
from epochal.pipelines.verify import ask_alone

END = "<|endoftext|>"
PIECES = [*sorted(printable_bytes()), "Ġt", "he", "Ġthe", END]
MERGES = ["Ġ t", "h e", "Ġt he"]
SIZES = {"width": 24, "layers": 2, "heads": 2, "context": 24}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small GPT-2 as a Hugging Face directory, and a text."""
    place = tmp_path_factory.mktemp("gpt2")
    special = {"pad": None, "start": None, "end": END, "unknown": None}
    model = gpt.GPT(len(PIECES), **SIZES, pad_id=len(PIECES) - 1, seed=0)
    save_huggingface(model, place / "gpt2", Vocabulary("byte-bpe", PIECES, MERGES, special))
    (place / "shouts.txt").write_text("\n\n".join(["hey! the cat! the mat!!"] * 60))
    return place


def recipe(place, **changes):
    directory = str(place / "gpt2")
    sizes = "width=24, layers=2, heads=2, context=24, dropout=0.0"
    return override(
        get_recipe("gpt2-finetune"),
        {
            "data.source": f"text:{place / 'shouts.txt'}",
            "data.ops": f"tokenizer_of({directory!r})",
            "data.context": 16,
            "data.batch_size": 8,
            "model": f"gpt(weights={directory!r}, {sizes})",
            "algorithm.optimizer": "adam(learning_rate=0.01)",
            "algorithm.steps": 40,
            "algorithm.steps_per_epoch": 20,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def run(place):
    return train(recipe(place), place / "run")


def test_the_end_of_text_takes_the_place_of_padding(run):
    model, preprocess = run.model, run.preprocess
    assert PIECES[0] == "!"
    assert model.get_config()["pad_id"] == preprocess.tokenizer.fill_id == len(PIECES) - 1
    ids = preprocess(["!!", "hey! the", ""]).numpy()
    assert ids[0].tolist()[:3] == [0, 0, len(PIECES) - 1]
    assert preprocess.tokenizer.decode(ids).numpy().tolist() == [b"!!", b"hey! the", b""]


def test_every_token_counts_in_the_perplexity(run):
    """Exclamation marks have id 0, and ends of texts fill rows up: both are real here."""
    result = evaluate(run, "test")
    from epochal.pipelines.data import load

    batches = list(load(run.recipe.data).split("test"))
    total = tokens = 0.0
    for x, y in batches:
        z = run.model(x).numpy().astype("float64")
        logp = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
        logp -= z.max(-1, keepdims=True)
        total += np.take_along_axis(logp, y.numpy()[..., None], -1).sum()
        tokens += y.numpy().size
    found = result["metrics"]["perplexity"]["value"]
    assert found == pytest.approx(np.exp(-total / tokens), rel=1e-4)
    assert found < 3.0


@pytest.mark.slow
def test_predict_takes_settings_and_the_export_gives_the_same(run):
    prompts = ["hey! the", "the cat! the m", "h"]
    settings = Generation(max_new_tokens=9, temperature=0.0)
    whole = [answer["text"] for answer in predict(run, prompts, settings)]
    alone = [predict(run, [prompt], settings)[0]["text"] for prompt in prompts]
    assert whole == alone
    assert whole[0].startswith((" cat!", " mat!"))  # what follows "the" in the text
    stopped = [
        answer["text"]
        for answer in predict(
            run, prompts, Generation(max_new_tokens=9, temperature=0.0, stop=["!"])
        )
    ]
    assert stopped == [text.split("!")[0] for text in whole]
    n = len(prompts)
    request = {
        "generate_full/prompt": np.array([p.encode() for p in prompts], object),
        "generate_full/max_new_tokens": np.full(n, 9, np.int32),
        "generate_full/temperature": np.zeros(n, np.float32),
        "generate_full/top_k": np.zeros(n, np.int32),
        "generate_full/seed": np.zeros(n, np.int64),
        "generate_full/top_p": np.ones(n, np.float32),
        "generate_full/repetition_penalty": np.ones(n, np.float32),
        "generate_full/stop": np.array([[b"!"], [b"!"], [b""]], object),
    }
    directory = export(run)
    given = ask_alone([directory], [request])[0]["generate_full/text"]
    assert [text.decode() for text in given] == [*stopped[:2], whole[2]]
    described = json.loads((directory / "signature.json").read_text())["signatures"]
    assert set(described["generate"]["inputs"]) == {
        "prompt", "max_new_tokens", "temperature", "top_k", "seed",
    }  # fmt: skip
    assert described["generate_full"]["inputs"]["stop"]["dtype"] == "string"


def test_an_answer_is_as_long_as_the_context_allows(run):
    model = gpt.GPT(len(PIECES), **SIZES | {"context": 300}, pad_id=len(PIECES) - 1, seed=0)
    words, norm = model.parts["embedding"].embeddings, model.parts["norm"]
    rows = words.numpy()
    rows[PIECES.index("x")] *= 10
    words.assign(rows)
    norm.gamma.assign(norm.gamma * 0)
    norm.beta.assign(rows[PIECES.index("x")])  # whatever came before, x follows
    _, signatures = functions(model, run.preprocess)
    for asked, given in ((280, 280), (None, USUAL), (900, 299)):
        settings = Generation(max_new_tokens=asked, temperature=0.0)
        text = signatures["generate_full"](settings.inputs([b"h"]))["text"].numpy()[0]
        assert text == b"x" * given


def test_settings_and_prompts_out_of_range_are_refused(run):
    for settings in (
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"max_new_tokens": 0},
        {"stop": [""]},
    ):
        with pytest.raises(SourceError, match=next(iter(settings))):
            Generation(**settings)
    with pytest.raises(SourceError, match=r"30 tokens.*24: there is no room"):
        predict(run, ["!" * 30], Generation(max_new_tokens=1))
    with pytest.raises(SourceError, match=r"room for 4 more, not 5"):
        predict(run, ["!" * 20], Generation(max_new_tokens=5))
    with pytest.raises(SourceError, match="room for .* more, not 3000"):
        predict(run, ["!"], Generation(max_new_tokens=3_000))


def test_texts_are_scored(run):
    texts = ["hey! the cat!", "tac eht !yeh", "the mat!! hey! the cat! the mat!! hey! the cat! the"]
    found = list(scores(run, texts))
    assert [one["input"] for one in found] == texts
    ids = run.preprocess.python(texts)
    for row, one in zip(ids[:2], found, strict=False):
        direct = run.model.score(np.array([row]))
        assert one["log_likelihood"] == pytest.approx(float(direct["score"][0]), abs=1e-3)
        assert one["tokens"] == len(row) - 1
        assert one["perplexity"] == pytest.approx(np.exp(-one["log_likelihood"] / (len(row) - 1)))
    assert found[0]["perplexity"] < found[1]["perplexity"]
    # Longer than the context of 24: windows of 24 and the token after them, each 12 further on.
    row, total, start, begin = ids[2], 0.0, 0, 1
    while begin < len(row):
        window = row[start : start + 25]
        known = window[: begin - start]
        total += float(run.model.score(np.array([window]))["score"][0])
        total -= float(run.model.score(np.array([known]))["score"][0]) if start else 0.0
        start, begin = start + 12, start + len(window)
    assert len(row) > SIZES["context"] + 1
    assert found[2]["tokens"] == len(row) - 1
    assert found[2]["log_likelihood"] == pytest.approx(total, abs=1e-3)
    with pytest.raises(SourceError, match="1 tokens"):
        prompting.likelihood(run, ["!"])


@pytest.mark.parametrize(("length", "begin"), [(5, 1), (9, 1), (10, 1), (31, 4), (40, 12)])
def test_windows_count_every_token_once(length, begin):
    row = list(range(length))
    counted = []
    for piece, place in prompting._windows(row, begin, context=8):
        assert len(piece) <= 9
        counted += piece[max(place, 0) :]
    assert counted == row[begin:]


def test_examples_become_a_prompt_and_the_likelier_answer_is_chosen(run):
    prompt = prompting.few_shot([("a", "x"), ("{answer}", "y")], "c", "Do:")
    assert prompt == "Do:\n\na\n=> x\n\n{answer}\n=> y\n\nc\n=>"
    with pytest.raises(ValueError, match="end with"):
        prompting.few_shot([], "a", form="{answer} {text}")
    found = prompting.choose(run, ["hey! the", "hey! the cat! the"], [" cat!", " zzz"])
    assert [one["answer"] for one in found] == [" cat!", " cat!"]
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1.0)
    both = prompting.likelihood(run, ["hey! the cat!", "hey! the"])
    gain = both[0]["log_likelihood"] - both[1]["log_likelihood"]
    assert found[0]["log_likelihoods"][" cat!"] == pytest.approx(gain, abs=1e-3)
    with pytest.raises(SourceError, match="nothing to choose"):
        prompting.choose(run, ["a"], ["b"])
    with pytest.raises(SourceError, match="no token of its own"):
        prompting.choose(run, [""], ["a", "b"])


def test_answers_are_compared_from_the_same_token_on(run):
    """The blank after " t" is a token of its own, but " the" is one with it."""
    (found,) = prompting.choose(run, ["hey! t"], ["he cat!", "o"])
    whole = prompting.likelihood(run, ["hey! the cat!", "hey! to", "hey!"])
    begin = whole.pop()["log_likelihood"]
    for answer, one in zip(["he cat!", "o"], whole, strict=True):
        wanted = one["log_likelihood"] - begin
        assert found["log_likelihoods"][answer] == pytest.approx(wanted, abs=1e-3)


def test_a_stop_string_alone_is_no_list_of_letters():
    with pytest.raises(SourceError, match="sequence of strings"):
        Generation(stop="The end")


def test_a_language_model_gives_no_labels(place, tmp_path):
    (tmp_path / "labelled.tsv").write_text("text\tlabel\n" + "hey!\tyes\nthe mat\tno\n" * 20)
    changes = {"data.source": f"text:{tmp_path / 'labelled.tsv'}", "data.context": "none",
               "data.task": "classification", "loss": "cross-entropy"}  # fmt: skip
    with pytest.raises(RecipeError, match="is not for classification of texts"):
        train(recipe(place, **changes), place / "labels")


def test_examples_longer_than_the_models_context_are_refused(place):
    with pytest.raises(RecipeError, match=r"data.context is 25, .* sees 24 tokens at most"):
        train(recipe(place, **{"data.context": 25}), place / "long")


def test_weights_and_models_that_do_not_fit_are_refused(place):
    directory = str(place / "gpt2")
    with pytest.raises(RecipeError, match=r"layers 2, not 3.*model.width.*model.name"):
        train(recipe(place, **{"model.layers": 3}), place / "other")
    with pytest.raises(RecipeError, match="nowhere does not exist. Weights of a GPT"):
        train(recipe(place, **{"model.weights": "nowhere"}), place / "other")
    with pytest.raises(RecipeError, match=f"padding.*id {len(PIECES) - 1}"):
        train(recipe(place, model="lstm(hidden=[8])"), place / "other")
    changes = {"data.ops": f"byte_bpe({len(PIECES)})", "model.weights": directory}
    with pytest.raises(RecipeError, match="another vocabulary"):
        train(recipe(place, **changes), place / "other")
