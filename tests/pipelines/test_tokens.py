"""Streams of ids: what a model gets of text, of pairs, of a long text; order, buckets, resume."""

import itertools

import numpy as np
import pytest

from epochal.pipelines.data import OpsError, SourceError, load
from epochal.pipelines.data.preprocess import restore
from epochal.pipelines.recipe import Data, Recipe

WORDS = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.tsv"
    rows = (f"{w}{v}\t{v}{w}{w}\n" for w, v in itertools.product(WORDS, "uvwxyz"))
    path.write_text("left\tright\n" + "".join(rows))
    return path


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("\n\n".join(f"{chr(97 + i % 26)}{i}!" for i in range(200)))
    return path


def taken(stream, count):
    return [
        tuple(np.concatenate([v.numpy().ravel() for v in __import__("tensorflow").nest.flatten(b)]))
        for b in stream.take(count)
    ]


def test_pairs_get_start_and_end(pairs):
    dataset = load(Data(source=f"pairs:{pairs}", ops="characters", batch_size=4))
    tokenizer = dataset.preprocess.tokenizer
    x, y = next(iter(dataset.split("test")))
    raw = dataset.raw("test", [0])
    source, target = x["source"][0].numpy(), x["target"][0].numpy()
    assert tokenizer.decode_python([source.tolist()]) == [raw["source"][0]]
    assert target[0] == tokenizer.start_id
    asked = y[0].numpy()
    length = len(raw["target"][0])
    assert asked[length] == tokenizer.end_id
    assert not asked[length + 1 :].any()
    assert (target[1 : length + 1] == asked[:length]).all()
    longest = max(len(t) for t in dataset.raw("train", np.arange(dataset.sizes["train"]))["target"])
    assert dataset.preprocess.inputs["longest"] == longest + 1
    assert (dataset.task, dataset.num_targets) == ("translation", tokenizer.vocabulary_size)


def test_the_vocabulary_is_that_of_the_training_split(tmp_path):
    path = tmp_path / "texts.tsv"
    letters = "abcdefghijklmnopqrst"
    path.write_text("label\ttext\n" + "".join(f"{i % 2}\tx{c}\n" for i, c in enumerate(letters)))
    dataset = load(Data(source=f"text:{path}", ops="characters", test_fraction=0.3))
    seen = set("".join(dataset.raw("train", np.arange(dataset.sizes["train"]))["text"]))
    assert set(dataset.preprocess.tokenizer.vocabulary[4:]) == seen
    assert seen < set("x" + letters)
    x, y = next(iter(dataset.split("test")))
    assert x.dtype == "int32"
    assert x.shape[1] == 2
    assert y.shape == (x.shape[0],)
    assert (x.numpy() == dataset.preprocess.tokenizer.unknown_id).any()


def test_a_batch_of_similar_lengths_and_every_row_once_an_epoch(pairs):
    base = Data(source=f"pairs:{pairs}", ops="characters", batch_size=4, test_fraction=0.1)
    widths = {}
    for bucket in (1, 6):
        dataset = load(base.model_copy(update={"bucket_batches": bucket}))
        n = dataset.sizes["train"]
        steps = n // 4
        seen, padding = [], 0
        for x, y in dataset.train(0).take(6 * (steps // 6) if bucket > 1 else steps):
            seen += [tuple(row[row > 0]) for row in np.concatenate([x["source"], y], axis=1)]
            lengths = (y.numpy() > 0).sum(axis=1)
            padding += lengths.max() - lengths.min()
        widths[bucket] = padding
        assert len(set(seen)) == len(seen)  # within an epoch none comes twice
    assert widths[6] < 0.6 * widths[1]


def test_targets_are_padded_as_little_as_can_be(tmp_path):
    """Sources say nothing of the lengths of targets here, and differ in width themselves."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 40, [96, 2])
    lines = (f"{i:02d}{'s' * a}\t{'t' * b}\n" for i, (a, b) in enumerate(sizes))
    path = tmp_path / "pairs.tsv"
    path.write_text("left\tright\n" + "".join(lines))
    dataset = load(
        Data(source=f"pairs:{path}", ops="characters", batch_size=8, bucket_batches=10,
             validation_fraction=0.0, test_fraction=0.1)
    )  # fmt: skip
    batches = list(dataset.train(0).take(10))  # one window, of 80 of 86 pairs
    sizes = np.array(
        [[((ids.numpy() > 0).sum(axis=1)) for ids in (x["source"], y)] for x, y in batches]
    )  # [batch, source and target, row]
    source, target = sizes.transpose(1, 0, 2).reshape(2, -1)
    least = -(-np.sort(target).reshape(10, 8).max(axis=1) // 8) * 8
    assert sorted(y.shape[1] for _, y in batches) == least.tolist()
    # Among targets of one width the sources decide.
    order = np.lexsort([source, -(-target // 8)])
    spread = np.ptp(source[order].reshape(10, 8), axis=1)
    assert sorted(np.ptp(sizes[:, 0], axis=1)) == sorted(spread)


@pytest.mark.parametrize("bucket", [1, 3])
def test_a_stream_from_a_step_is_the_stream_at_that_step(pairs, bucket):
    dataset = load(
        Data(source=f"pairs:{pairs}", ops="characters", batch_size=4, bucket_batches=bucket)
    )
    whole = taken(dataset.train(7), 20)
    assert taken(dataset.train(7, start_step=8), 12) == whole[8:]
    assert taken(dataset.train(8), 20) != whole


def test_a_language_model_reads_every_token_of_an_epoch_once(story):
    data = Data(source=f"text:{story}", ops="characters", context=16, batch_size=2)
    dataset = load(data)
    tokenizer = dataset.preprocess.tokenizer
    count = dataset.sizes["train"]
    packed = dataset._readers["train"].tokens(dataset._indices["train"][1])
    tokens = packed.at(np.arange(len(packed))).numpy()
    assert count == (len(tokens) - 1) // 16
    x, y = next(iter(dataset.split("train")))
    assert x.shape == (2, 16)
    assert (x[:, 1:].numpy() == y[:, :-1].numpy()).all()
    assert tokenizer.decode_python([x[0].numpy().tolist()])[0].startswith("a0!")
    assert (tokens == tokenizer.end_id).sum() == len(dataset._indices["train"][1])
    begins = {0: [], 1: []}
    steps = count // 2
    for step, (x, _) in enumerate(dataset.train(0).take(2 * steps)):
        for row in x.numpy():
            found = [p for p in range(len(tokens) - 16) if (tokens[p : p + 16] == row).all()]
            begins[step // steps].append(found[0])
    for epoch, places in begins.items():
        gaps = np.diff(sorted(places))
        assert len(set(places)) == len(places), epoch
        assert np.median(gaps) == 16
    assert begins[0] != begins[1]
    assert begins[0][2] % 16 != begins[1][2] % 16


def test_what_a_text_needs_is_said(story, pairs):
    with pytest.raises(SourceError, match=r"data\.context"):
        load(Data(source=f"text:{story}", ops="characters"))
    with pytest.raises(SourceError, match="too few for one example"):
        load(Data(source=f"text:{story}", ops="characters", context=4000))
    with pytest.raises(OpsError, match="no tokenizer"):
        load(Data(source=f"pairs:{pairs}", ops="lowercase"))
    with pytest.raises(OpsError, match="Put it before the tokenizer"):
        load(Data(source=f"pairs:{pairs}", ops="characters|bytes"))
    with pytest.raises(OpsError, match="Ops for text"):
        load(Data(source=f"pairs:{pairs}", ops="standardize"))


def test_preprocessing_comes_back_from_json(pairs):
    import json

    dataset = load(Data(source=f"pairs:{pairs}", ops="lowercase|characters"))
    saved = json.loads(json.dumps(dataset.preprocess.to_dict()))
    again = restore(saved)
    texts = np.array(["BB u", "ccc?", ""], object)
    one, two = (p.serve({"text": texts}).numpy() for p in (dataset.preprocess, again))
    assert (one == two).all()
    assert one.shape == (3, 4)
    assert again.python(texts) == [row[row > 0].tolist() for row in one]


def test_recipe_keys():
    with pytest.raises(ValueError, match="context"):
        Recipe(name="x", data=Data(source="text:a", context=0), model="lstm",
               loss="cross-entropy", algorithm={"epochs": 1})  # fmt: skip
