"""What BERT is pre-trained on: gaps, pairs of texts, their statistics, order and resume."""

import numpy as np
import pytest
import tensorflow as tf

from epochal.pipelines.data import OpsError, SourceError, load
from epochal.pipelines.recipe import Data, Masking, RecipeError

OPS = "lowercase|wordpiece(80, mask=True)"


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """80 documents of 2 to 9 sentences; every word of document i is made of its own syllable."""
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("documents") / "documents.txt"
    texts = []
    for i in range(80):
        own = chr(97 + i % 20) + chr(97 + i // 20)
        sentences = [
            " ".join([own * int(draw.integers(1, 4)) for _ in range(draw.integers(2, 7))]) + "."
            for _ in range(draw.integers(2, 9))
        ]
        texts.append(" ".join(sentences))
    path.write_text("\n\n".join(texts))
    return path


def opened(path, **settings):
    fractions = {"validation_fraction": 0.2, "test_fraction": 0.2}
    data = {"task": "masked-language-model", "ops": OPS, "context": 40, "batch_size": 16}
    return load(Data(source=f"text:{path}", **{**data, **fractions, **settings}))


@pytest.fixture(scope="module")
def dataset(documents):
    return opened(documents)


def taken(stream, count):
    return [[v.numpy() for v in tf.nest.flatten(batch)] for batch in stream.take(count)]


def epochs(dataset, count, seed=0):
    return list(dataset.train(seed).take(count))


def test_shares_of_what_is_hidden_and_how(dataset):
    tokenizer = dataset.preprocess.tokenizer
    hidden = masked = kept = other = visible = 0
    for x, y in epochs(dataset, 90):
        ids, positions = x["ids"].numpy(), x["positions"].numpy()
        edges = (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id)
        whole = ids.copy()
        at = np.nonzero(positions)
        rows = at[0], positions[at]
        shown, right = ids[rows], y["mlm"].numpy()[at]
        whole[rows] = right
        assert not np.isin(right, edges).any()
        assert not np.isin(shown, edges).any()
        count = (~np.isin(whole, edges)).sum(axis=1)
        wanted = np.maximum(1, np.round(0.15 * count))
        assert ((positions > 0).sum(axis=1) == wanted).all()
        for row in positions:
            assert len(set(row[row > 0])) == (row > 0).sum()
        visible += count.sum()
        hidden += len(shown)
        masked += (shown == tokenizer.mask_id).sum()
        kept += (shown == right).sum()
        other += ((shown != right) & (shown != tokenizer.mask_id)).sum()
    assert hidden / visible == pytest.approx(0.15, abs=0.01)
    deviation = 4 * np.sqrt(0.8 * 0.2 / hidden)
    assert masked / hidden == pytest.approx(0.8, abs=deviation)
    # One in a few of the random pieces is the right one by chance.
    assert kept / hidden == pytest.approx(0.1, abs=deviation)
    assert other / hidden == pytest.approx(0.1, abs=deviation)


def test_half_of_the_seconds_follow_and_the_others_are_of_another_document(dataset):
    tokenizer = dataset.preprocess.tokenizer
    words = {piece: i for i, piece in enumerate(tokenizer.vocabulary)}
    told = []
    for x, y in epochs(dataset, 20):
        for i, ids in enumerate(x["ids"].numpy()):
            whole = ids.copy()
            positions = x["positions"].numpy()[i]
            whole[positions[positions > 0]] = y["mlm"].numpy()[i][positions > 0]
            segments = x["segments"].numpy()[i]
            ends = np.flatnonzero(whole == tokenizer.end_id)
            assert len(ends) == 2
            assert whole[0] == tokenizer.start_id
            assert not whole[ends[1] + 1 :].any()
            assert segments.tolist() == [int(ends[0] < t <= ends[1]) for t in range(len(ids))]
            first, second = whole[1 : ends[0]], whole[ends[0] + 1 : ends[1]]
            assert len(first)
            assert len(second)
            # A document's words are all of one syllable, so they tell whether it is the same.
            texts = tokenizer.decode_python([first.tolist(), second.tolist()])
            syllables = [{w[:2] for w in t.replace(".", " ").split()} for t in texts]
            another = not (syllables[0] & syllables[1])
            if all(syllables):
                assert another == bool(y["nsp"].numpy()[i])
            told.append(y["nsp"].numpy()[i])
            if not another and first[-1] != words["."]:  # cut at a word: no sentence ends inside
                assert words["."] not in first
                assert words["."] not in second[:-1]
    assert np.mean(told) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(told)))


def test_whole_words_are_hidden_as_a_whole(documents):
    dataset = opened(documents, masking=Masking(whole_words=True, next_sentence=False))
    begins = dataset.preprocess.tokenizer.begins_word
    share = []
    for x, y in epochs(dataset, 12):
        assert set(x) == {"ids", "positions"}
        for ids, positions, right in zip(*(v.numpy() for v in (x["ids"], x["positions"], y)),
                                         strict=True):  # fmt: skip
            whole = ids.copy()
            hidden = positions[positions > 0]
            whole[hidden] = right[positions > 0]
            for place in hidden:
                if not begins[whole[place]] and place > 1:
                    assert place - 1 in hidden
                if place + 1 < len(whole) and not begins[whole[place + 1]]:
                    assert place + 1 in hidden
            share.append(len(hidden) / (whole > 2).sum())
    assert 0.13 < np.mean(share) < 0.25  # the last word may go beyond


@pytest.mark.slow
def test_gaps_are_new_in_every_epoch_and_fixed_in_evaluation(documents):
    dataset = opened(documents, shuffle=False, batch_size=8, masking=Masking(next_sentence=False))
    n = dataset.sizes["train"] // 8 * 8
    first, *_, later = [x["positions"].numpy() for x, _ in epochs(dataset, n // 8 * 3)]
    assert not np.array_equal(first, later)
    again = [taken(dataset.split("validation"), 9) for _ in range(2)]
    for one, other in zip(*again, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bucket", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stream_from_a_step_is_the_stream_at_that_step(documents, bucket):
    dataset = opened(documents, bucket_batches=bucket)
    whole = taken(dataset.train(7), 9)
    for one, other in zip(taken(dataset.train(7, start_step=4), 5), whole[4:], strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(taken(dataset.train(8), 1)[0][0], whole[0][0])


@pytest.mark.slow
def test_padding_is_the_vocabulary_s(documents, tmp_path):
    """Wherever it stands there: id 0 may be a word."""
    pieces = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", ".", *"abcdefghijklmnopqrst"]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrst"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    dataset = opened(documents, ops=f'tokenizer_of("{tmp_path}")')
    x, _ = next(iter(dataset.train(0)))
    ids = x["ids"].numpy()
    assert (ids == 1).any()
    lengths = np.where(ids != 1, np.arange(1, ids.shape[1] + 1), 0).max(axis=1)
    for row, length in zip(ids, lengths, strict=True):
        assert row[length - 1] == 3  # all rows end with [SEP], and then with [PAD]


def test_every_token_is_in_one_piece_and_pieces_fit(documents):
    dataset = opened(documents, context=20, masking=Masking(next_sentence=False))
    tokenizer = dataset.preprocess.tokenizer
    found = []
    for x, y in dataset.split("train"):
        for ids, positions, right in zip(*(v.numpy() for v in (x["ids"], x["positions"], y)),
                                         strict=True):  # fmt: skip
            assert len(ids) <= 20
            ids[positions[positions > 0]] = right[positions > 0]
            kept = ids[~np.isin(ids, (0, tokenizer.start_id, tokenizer.end_id))]
            assert tokenizer.begins_word[kept[0]]
            found.append(kept)
    reader, rows = dataset._find("train")
    every = np.concatenate([reader.ids["text"].values.numpy()[
        reader.ids["text"].splits.numpy()[row] : reader.ids["text"].splits.numpy()[row + 1]
    ] for row in rows])  # fmt: skip
    assert len(np.concatenate(found)) >= 0.98 * len(every)
    assert sum(map(len, found)) <= len(every)


def test_splits_are_those_of_the_labelled_task(tmp_path):
    path = tmp_path / "labelled.tsv"
    rows = "".join(f"{i % 2}\tnumber {i} and {i + 1} of them\n" for i in range(60))
    path.write_text("label\ttext\n" + rows)
    gaps = opened(path, masking=Masking(next_sentence=False))
    classes = opened(path, task=None, context=None)
    for split in ("train", "validation", "test"):
        assert gaps.rows(split).tolist() == classes.rows(split).tolist()
    assert (gaps.classes, gaps.task) == ((), "masked-language-model")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"context": None}, SourceError, r"needs data\.context"),
        ({"context": 5}, SourceError, "too short"),
        ({"ops": "lowercase|wordpiece(80)"}, OpsError, r"\[MASK\]"),
        ({"ops": "characters"}, OpsError, "pieces of words"),
        ({"task": None, "masking": Masking()}, SourceError, "data.masking is for"),
        ({"mixup": 0.2}, SourceError, "mixup"),
    ],
)
def test_what_does_not_go_together_is_said(documents, settings, error, words):
    with pytest.raises(error, match=words):
        opened(documents, **settings)


def test_too_little_text_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("one.\n\ntwo.\n\nthree.")
    with pytest.raises(SourceError, match="too few to learn from"):
        opened(tmp_path / "a.txt", ops="wordpiece(40, mask=True)")
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(SourceError, match="nothing to learn"):
        opened(tmp_path / "b.txt")
    with pytest.raises(SourceError, match="fills gaps in text"):
        load(Data(source="builtin:digits", task="masked-language-model"))
    with pytest.raises((RecipeError, ValueError), match="share"):
        Data(source="text:a", masking={"share": 0.0})
