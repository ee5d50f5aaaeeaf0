"""Tokenizers: the graph against Python, both against the library, ids back to texts, the export."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tokenizers as library

from epochal.pipelines.data.ops import OpsError, text
from epochal.pipelines.data.tokenizers import ByteBPE, Bytes, Characters, WordPiece
from epochal.pipelines.data.tokenizers import byte_bpe as byte_bpe_module
from epochal.pipelines.data.tokenizers import wordpiece as wordpiece_module
from epochal.pipelines.export import FORBIDDEN, operations
from epochal.pipelines.verify import ask_alone

BYTE_LEVEL = ("bytes", "byte_bpe")


@pytest.fixture(scope="session")
def made(corpus) -> dict:
    return {
        "characters": Characters(Characters.learn(corpus)),
        "bytes": Bytes(),
        "wordpiece": WordPiece(WordPiece.learn(corpus, 300)),
        "byte_bpe": ByteBPE(*ByteBPE.learn(corpus, 500)),
    }


@pytest.mark.parametrize("name", ["characters", "bytes", "wordpiece", "byte_bpe"])
def test_faces_agree(name, made, strings, corpus, graph_rows):
    op = made[name]
    rows = strings + corpus[:200]
    right = op.python(rows)
    assert right[0] == []
    for row, expected, found in zip(rows, right, graph_rows(op, rows), strict=True):
        assert found == expected, f"{row!r}: {found} in the graph, {expected} in Python"
    used = {i for ids in right for i in ids}
    assert min(used) >= op.unknown_id
    assert len(used) > 0.7 * op.vocabulary_size  # pieces of all sorts were compared


def reference(model, normalizer, pre_tokenizer) -> library.Tokenizer:
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    return tokenizer


def test_wordpiece_is_the_librarys(made, strings):
    op = made["wordpiece"]
    vocabulary = {piece: i for i, piece in enumerate(op.vocabulary)}
    bert = reference(
        library.models.WordPiece(vocabulary, unk_token="[UNK]"),
        library.normalizers.BertNormalizer(lowercase=False, strip_accents=False),
        library.pre_tokenizers.BertPreTokenizer(),
    )
    assert op.python(strings) == [bert.encode(row).ids for row in strings]


def test_byte_bpe_is_the_librarys(corpus, strings):
    vocabulary, merges = ByteBPE.learn(corpus, 500)
    op = ByteBPE(vocabulary, merges)
    gpt2 = reference(
        library.models.BPE(
            {piece: i for i, piece in enumerate(vocabulary)},
            [tuple(merge.split()) for merge in merges],
        ),
        None,
        library.pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    assert op.python(strings) == [gpt2.encode(row).ids for row in strings]


def test_the_chain_of_uncased_bert(corpus, graph_rows):
    """Normalised before by our own ops, the library's uncased pieces come out."""
    rows = [*corpus[:50], "Ünïcödé ÀÉ İ ΣΑΣ", "값 각 Åbc", "naïve\u0301\u0323 \ufb01ne"]
    normal = text.strip_accents().python(rows)
    op = WordPiece(WordPiece.learn(text.lowercase().python(normal), 300))
    bert = reference(
        library.models.WordPiece(
            {piece: i for i, piece in enumerate(op.vocabulary)}, unk_token="[UNK]"
        ),
        library.normalizers.BertNormalizer(),
        library.pre_tokenizers.BertPreTokenizer(),
    )
    right = [bert.encode(row).ids for row in rows]
    assert op.python(text.lowercase().python(normal)) == right
    assert graph_rows(op, graph_rows(text.lowercase(), normal)) == right


def test_wordpiece_is_tensorflow_texts(made, corpus):
    """A third opinion, where it is installed, on plain sentences: its Unicode is another."""
    tensorflow_text = pytest.importorskip("tensorflow_text")
    op = made["wordpiece"]
    pieces = tf.lookup.StaticVocabularyTable(
        tf.lookup.KeyValueTensorInitializer(
            op.vocabulary, np.arange(op.vocabulary_size), value_dtype=tf.int64
        ),
        num_oov_buckets=1,
    )
    theirs = tensorflow_text.BertTokenizer(pieces, lower_case=False, token_out_type=tf.int64)
    rows = corpus[:300]
    assert theirs.tokenize(rows).merge_dims(1, 2).to_list() == op.python(rows)


def test_words_of_gpt2s_pattern(strings):
    """Where words begin, against the library's regular expression with its lookahead."""
    splitter = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    begin = tf.function(
        lambda rows: byte_bpe_module._word_starts(byte_bpe_module.codepoints.decode(rows)),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    right = []
    for row in strings:
        starts = np.zeros(len(row), bool)
        starts[[start for _, (start, _) in splitter.pre_tokenize_str(row)]] = True
        right.append(starts)
    found = begin(tf.constant(strings)).numpy()
    for row, expected, starts in zip(
        strings, right, np.split(found, np.cumsum([len(row) for row in strings])[:-1]), strict=True
    ):
        assert starts.tolist() == expected.tolist(), ascii(row)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("it's", ["it", "'s"]),
        ("'s's", ["'s", "'s"]),
        ("they'll've", ["they", "'ll", "'ve"]),
        ("I'mx", ["I", "'m", "x"]),
        ("a ' s", ["a", " '", " s"]),
        ("a 's", ["a", " '", "s"]),  # the blank takes the apostrophe
        ("''s", ["''", "s"]),
        ("3're\t't", ["3", "'re", "\t", "'t"]),
        ("'S 'r", ["'", "S", " '", "r"]),
        ("a  b", ["a", " ", " b"]),
        ("a \n", ["a", " \n"]),
        ("a\n\nb", ["a", "\n", "\n", "b"]),
        ("a \tb ", ["a", " ", "\t", "b", " "]),
        ("x1½,", ["x", "1½", ","]),
    ],
)
def test_gpt2_words_by_hand(row, words):
    starts = byte_bpe_module._word_starts(tf.ragged.constant([[ord(c) for c in row]], tf.int32))
    places = np.flatnonzero(starts.numpy())
    assert [row[a:b] for a, b in zip(places, [*places[1:], None], strict=True)] == words


def test_code_points_of_berts_splitting():
    """The library's roles: of all characters those whose role in BERT is known by hand."""
    roles = wordpiece_module._roles()(
        tf.constant([ord(c) for c in "a\0\t\x0b\u200d\u3000.$^漢가ß"])
    )
    part, removed, space, alone = range(4)
    assert roles.numpy().tolist() == [
        part, removed, space, removed, removed, space, alone, alone, alone, alone, part, part
    ]  # fmt: skip


def test_wordpiece_by_hand(graph_rows):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "##a", "a", ",",
                  "漢", "##ab", "[", "]", "PAD"]  # fmt: skip
    op = WordPiece(vocabulary, start="[CLS]", end="[SEP]")
    assert (op.pad_id, op.unknown_id, op.start_id, op.end_id) == (0, 1, 2, 3)
    rows = ["unaffable", "unaffabl", "a,a漢a", " a\x00a\u200da ", "[PAD]", "a" * 100, "a" * 101, ""]
    right = [
        [4, 5, 6],
        [1],  # "un ##aff ##ab" leaves an l
        [8, 9, 8, 10, 8],
        [8, 7, 7],
        [12, 14, 13],  # the name of a special piece is text
        [8] + [7] * 99,
        [1],
        [],
    ]
    assert op.python(rows) == right
    assert graph_rows(op, rows) == right
    assert op.decode_python([[2, 4, 5, 6, 9, 1, 3, 8]]) == ["unaffable , [UNK]"]


def test_byte_bpe_merges_the_leftmost_of_the_best_first(graph_rows):
    """ "aaa" merges as aa a; a merge of low rank that an earlier one makes possible goes first."""
    plain = Bytes().vocabulary
    vocabulary = [*plain, "aa", "bc", "abc", "abca"]
    # (abc, a) ranks before (a, bc), which makes abc: in "abcabc" the second abc loses its a.
    op = ByteBPE(vocabulary, ["a a", "b c", "abc a", "a bc"])
    rows = ["aaa", "aaaa", "abcabc", "abcabcabc"]
    pieces = [[vocabulary[i] for i in ids] for ids in graph_rows(op, rows)]
    assert pieces == [["aa", "a"], ["aa", "aa"], ["abca", "bc"], ["abca", "bc", "abc"]]
    assert graph_rows(op, rows) == op.python(rows)


def test_byte_bpe_with_the_pieces_of_gpt2(graph_rows):
    """Its only special piece is the end, and every byte's id is its own."""
    vocabulary = [*Bytes().vocabulary[4:], "Ġt", "he", "<|endoftext|>"]
    op = ByteBPE(vocabulary, ["Ġ t", "h e"], pad=None, start=None, end="<|endoftext|>",
                 unknown=None)  # fmt: skip
    assert (op.pad_id, op.start_id, op.end_id, op.unknown_id) == (-1, -1, 258, -1)
    ids = graph_rows(op, [" the!"])[0]
    assert [vocabulary[i] for i in ids] == ["Ġt", "he", "!"]
    assert op.decode(tf.constant([[*ids, 258, 0]])).numpy().tolist() == [b" the!"]


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_every_text_comes_back_from_its_bytes(name, made, strings):
    op = made[name]
    ids = op.python(strings)
    assert op.decode_python(ids) == strings
    dense = tf.ragged.constant(ids[:2_000], tf.int32).to_tensor()
    texts = [text.decode() for text in op.decode(dense).numpy().tolist()]
    assert texts == strings[:2_000]


def test_decode_wordpiece_and_characters(made):
    row = "the dog runs, 나는 학교에"
    op = made["wordpiece"]
    ids = op.python([row])
    assert op.decode_python(ids) == ["the dog runs , 나는 학교에"]
    assert op.decode_python([[op.start_id, op.unknown_id, op.end_id, 9]]) == ["[UNK]"]
    op = made["characters"]
    assert op.decode_python(op.python([row + "Q"])) == [row + "\ufffd"]


@pytest.mark.parametrize("name", ["characters", "bytes", "wordpiece", "byte_bpe"])
def test_decode_agrees_on_any_ids(name, made):
    """Halves of characters, specials in all places; what follows the first end is dropped."""
    op = made[name]
    draw = np.random.default_rng(0)
    ids = draw.integers(0, op.vocabulary_size, (500, 12))
    ids[::2] = np.where(draw.random((250, 12)) < 0.3, draw.integers(0, 4, (250, 12)), ids[::2])
    found = [text.decode() for text in op.decode(tf.constant(ids, tf.int32)).numpy().tolist()]
    assert found == op.decode_python(ids.tolist())
    short = np.where(np.cumsum(ids == 2, axis=1) > 0, 0, ids)
    assert op.decode_python(short.tolist()) == found


def test_vocabulary_sizes(made, corpus):
    assert made["bytes"].vocabulary_size == 260
    assert made["byte_bpe"].vocabulary_size == 500
    assert made["wordpiece"].vocabulary_size == 300
    for op in made.values():
        assert op.vocabulary[:4] == ["[PAD]", "[START]", "[END]", "[UNK]"]
        assert (op.pad_id, op.start_id, op.end_id, op.unknown_id) == (0, 1, 2, 3)
        assert len(set(op.vocabulary)) == op.vocabulary_size == len(op.vocabulary)
    everything = WordPiece.learn(corpus, 5_000)  # as many as the corpus has
    assert 300 < len(everything) < 1_000
    assert {"playing", "happiness", "##iness"} & set(everything) == {"happiness"}
    assert Characters.learn(["abab b"], 6) == ["[PAD]", "[START]", "[END]", "[UNK]", "b", "a"]


def test_learning_is_deterministic(corpus, tmp_path):
    """Also from process to process, whose hash tables have other orders."""
    (tmp_path / "corpus.txt").write_text("\n".join(corpus), encoding="utf-8")
    code = (
        "import sys, json\n"
        "from epochal.pipelines.data.ops import text\n"
        f"rows = open({str(tmp_path / 'corpus.txt')!r}, encoding='utf-8').read().split('\\n')\n"
        "print(json.dumps([text._fit_wordpiece(rows, 250), text._fit_byte_bpe(rows, 400),\n"
        "                  text._fit_characters(rows)]))\n"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [
        text._fit_wordpiece(corpus, 250),
        text._fit_byte_bpe(corpus, 400),
        text._fit_characters(corpus),
    ]
    assert json.loads(other.stdout) == here
    assert text._fit_wordpiece(corpus, 250) == here[0]


def test_wordpiece_learns_what_the_librarys_own_trainer_does(corpus):
    """Up to the order of the alphabet and ties: nearly all pieces are the same."""
    theirs = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    theirs.normalizer, theirs.pre_tokenizer = wordpiece_module._splitting()
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[START]", "[END]", "[UNK]"], show_progress=False
    )
    theirs.train_from_iterator(corpus, trainer)
    ours = WordPiece.learn(corpus, 300)
    assert len(set(ours) & set(theirs.get_vocab())) > 290


@pytest.mark.parametrize(
    ("learn", "message"),
    [
        (lambda: WordPiece.learn(["abc"], 8), r"need 9 pieces"),  # 4, a, b, c, ##b, ##c
        (lambda: WordPiece.learn([" ", "\x00"], 99), "not a single word"),
        (lambda: ByteBPE.learn(["abc"], 259), "need 260 pieces"),
        (lambda: ByteBPE.learn(["", ""], 300), "no text"),
        (lambda: Characters.learn([""]), "not a single character"),
        (lambda: Characters(["a", "b"]), r"no '\[PAD\]'.* pad=None"),
        (lambda: Characters([*Bytes().vocabulary[:4], "a", "a"]), "'a' more than once"),
        (lambda: ByteBPE(Bytes().vocabulary[:-1], []), "lacks 1 of the 256 bytes, the first 0xff"),
        (lambda: ByteBPE(Bytes().vocabulary, ["a b"]), "merge 'a b' is not two pieces"),
    ],
)
def test_what_cannot_be_learnt_or_made_is_refused(learn, message):
    with pytest.raises(OpsError, match=message):
        learn()


def test_smallest_sizes():
    assert WordPiece.learn(["abc"], 9)[4:] == ["a", "b", "c", "##b", "##c"]
    vocabulary, merges = ByteBPE.learn(["abab"], 260)
    assert len(vocabulary) == 260
    assert merges == []
    assert ByteBPE(vocabulary, merges).graph(tf.constant(["ab", ""])).to_list()[1] == []


def test_a_missing_library_says_what_to_install(monkeypatch, corpus):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for learn in (lambda: WordPiece.learn(corpus, 300), lambda: ByteBPE.learn(corpus, 300)):
        with pytest.raises(OpsError, match=r"pip install 'epochal\[text\]'"):
            learn()
    assert Bytes().python(["a"]) == [[101]]  # needs none


class Served(tf.Module):
    """A chain of text ops, its tokenizer the last but one, to ids of fixed length and back."""

    def __init__(self, *ops):
        super().__init__()
        self.ops = [*ops, text.max_tokens(40)]

    def python(self, rows):
        for op in self.ops:
            rows = op.python(rows)
        return rows

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")], autograph=False)
    def answer(self, text):
        for op in self.ops:
            text = op.graph(text)
        ids = text.to_tensor(shape=[None, 40])
        return {"ids": ids, "text": self.ops[-2].decode(ids)}


def test_exported_chains_answer_with_tensorflow_alone(made, strings, tmp_path):
    folders = [tmp_path / name for name in made]
    normal = [text.strip_accents(), text.nfkc(), text.lowercase(), text.collapse_spaces()]
    before = {"characters": normal}
    chains = [Served(*before.get(name, ()), tokenizer) for name, tokenizer in made.items()]
    for chain, folder in zip(chains, folders, strict=True):
        tf.saved_model.save(chain, str(folder), signatures={"serving_default": chain.answer})
        assert not operations(folder) & FORBIDDEN
    rows = strings[:30]
    request = {"serving_default/text": np.array(rows, object)}
    answers = ask_alone(folders, [request] * len(folders))
    for name, chain, answer in zip(made, chains, answers, strict=True):
        ids = chain.python(rows)
        padded = [row + [0] * (40 - len(row)) for row in ids]
        texts = [row.encode() for row in made[name].decode_python(ids)]
        for suffix in ("", "#alone"):
            assert answer[f"serving_default/ids{suffix}"].tolist() == padded, name
            assert answer[f"serving_default/text{suffix}"].tolist() == texts, name


@pytest.mark.parametrize("name", ["wordpiece", "byte_bpe"])
def test_the_graph_is_fast_enough_to_serve(name, made, corpus):
    """20,000 words a second on batches of 64 sentences, in processor time, the best of five."""
    op = made[name]
    rows = tf.constant(corpus[:64])
    words = sum(len(row.split()) for row in corpus[:64])
    traced = tf.function(op.graph, input_signature=[tf.TensorSpec([None], tf.string)])
    traced(rows)

    def seconds() -> float:
        before = time.process_time()
        traced(rows)
        return time.process_time() - before

    assert words / min(seconds() for _ in range(5)) > 20_000
