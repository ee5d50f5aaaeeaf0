"""Ops on text: ``"nfkc|lowercase|wordpiece(8000)|max_tokens(64)"``.

Each makes a :class:`TextOp`, whose two faces agree exactly. Before the tokenizer come ops from
strings to strings, after it ops on ids. What a tokenizer learns, it learns from the training
split. Exported, all of it is core TensorFlow.

For uncased BERT: ``strip_accents|lowercase|wordpiece(30000)``. That leaves Korean in its letters,
not its syllables; with ``nfc`` after it (or in place of ``strip_accents``) it is whole again. To
fine-tune weights, ``tokenizer_of("runs/bert")|max_tokens(62)|enclose``: the text has to become the
ids that they have been trained on.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import tensorflow as tf
from pydantic import Field

from ....models.vocabularies import read_vocabulary
from ....models.weight_files import WeightsError, locate, read_json
from .. import codepoints
from ..normal_forms import normal_form
from ..tokenizers import ByteBPE, Bytes, Characters, TextOp, Tokenizer, WordPiece
from . import OpsError, build, op

__all__ = ["TextOp", "Tokenizer"]  # from here for those who run chains; ops are found by name
Size = Annotated[int, Field(ge=5)]  # four special pieces and one more


class NormalForm(TextOp):
    """One of Unicode's normal forms."""

    def __init__(self, form: str):
        super().__init__()
        self.form = form

    def python(self, rows: list[str]) -> list[str]:
        return [unicodedata.normalize(self.form, row) for row in rows]

    def graph(self, rows: tf.Tensor) -> tf.Tensor:
        return codepoints.encode(normal_form(self.form)(codepoints.decode(rows)))


class Replaced(TextOp):
    """Single characters replaced.

    Args:
        changes: code point -> what takes its place.
        form: the normal form that comes first, if any.
    """

    def __init__(self, changes: dict[int, str], form: str | None = None):
        super().__init__()
        self.first = form and NormalForm(form)
        # A function's attribute stays what it is; tf.Module would wrap the dict.
        self._translated = lambda row: row.translate(changes)
        self._replace = codepoints.Replacement(
            {code: tuple(map(ord, new)) for code, new in changes.items()}
        )

    def python(self, rows: list[str]) -> list[str]:
        return [self._translated(row) for row in (self.first.python(rows) if self.first else rows)]

    def graph(self, rows: tf.Tensor) -> tf.Tensor:
        rows = self.first.graph(rows) if self.first else rows
        return codepoints.encode(self._replace(codepoints.decode(rows)))


class CollapsedSpaces(TextOp):
    """See :func:`collapse_spaces`."""

    def python(self, rows: list[str]) -> list[str]:
        controls = dict.fromkeys(map(ord, _blanks()), " ")
        return [" ".join(row.translate(controls).split()) for row in rows]

    def graph(self, rows: tf.Tensor) -> tf.Tensor:
        listed = "".join(rf"\x{{{ord(character):x}}}" for character in _blanks())
        rows = tf.strings.regex_replace(codepoints.valid(rows), f"[{listed}]+", " ")
        return tf.strings.regex_replace(rows, "^ | $", "")


class MaxTokens(TextOp):
    """See :func:`max_tokens`.

    Attributes:
        truncated: how many rows the python face has cut so far.
    """

    def __init__(self, n: int, overflow: str):
        super().__init__()
        self.n, self.overflow = n, overflow
        self.truncated = 0

    def python(self, rows: list[list[int]]) -> list[list[int]]:
        long = [place for place, row in enumerate(rows) if len(row) > self.n]
        if long and self.overflow == "refuse":
            raise OpsError(
                f"max_tokens({self.n}): row {long[0]} has {len(rows[long[0]])} ids, and "
                f"{len(long)} of {len(rows)} rows have too many. Take a larger number, or "
                f'overflow="truncate" to cut them.'
            )
        self.truncated += len(long)
        return [row[: self.n] for row in rows]

    def graph(self, rows: tf.RaggedTensor) -> tf.RaggedTensor:
        return rows[:, : self.n]


class Enclosed(TextOp):
    """See :func:`enclose`."""

    def follow(self, tokenizer: Tokenizer) -> None:
        """Takes the start and the end from the tokenizer of its chain. OpsError without."""
        if min(tokenizer.start_id, tokenizer.end_id) < 0:
            raise OpsError("enclose: the vocabulary has no start or no end. Leave enclose out.")
        self.start, self.end = tokenizer.start_id, tokenizer.end_id

    def python(self, rows: list[list[int]]) -> list[list[int]]:
        return [[self.start, *row, self.end] for row in rows]

    def graph(self, rows: tf.RaggedTensor) -> tf.RaggedTensor:
        edge = tf.ones([rows.nrows(), 1], rows.dtype)
        return tf.concat([edge * self.start, rows, edge * self.end], axis=1)


class Borrowed(TextOp):
    """See :func:`tokenizer_of`: ops up to the tokenizer, as one.

    Args:
        ops: a chain that ends in a tokenizer.
        states: what each of its ops has learnt.
    """

    def __init__(self, ops: str, states: list[dict[str, Any] | None]):
        super().__init__()
        self.ops = [
            entry.apply(*step.args, **step.kwargs, **({} if entry.fit is None else {"state": s}))
            for (step, entry), s in zip(build(ops, "text"), states, strict=True)
        ]
        self.tokenizer: Tokenizer = getattr(self.ops[-1], "tokenizer", self.ops[-1])

    def python(self, rows: list[str]) -> list[list[int]]:
        for each in self.ops:
            rows = each.python(rows)
        return rows

    def graph(self, rows: tf.Tensor) -> tf.RaggedTensor:
        for each in self.ops:
            rows = each.graph(rows)
        return rows


@op("text", makes=True)
def nfc() -> TextOp:
    """Unicode's composed form: é is one character.

    A Hangul syllable is one character too. Standard Annex 15; Python's version of Unicode.
    """
    return NormalForm("NFC")


@op("text", makes=True)
def nfd() -> TextOp:
    """Unicode's decomposed form: é is e and an accent.

    Standard Annex 15; Python's version of Unicode.
    """
    return NormalForm("NFD")


@op("text", makes=True)
def nfkc() -> TextOp:
    """nfc, with ligatures, full-width letters and the like as plain ones.

    Standard Annex 15; Python's version of Unicode.
    """
    return NormalForm("NFKC")


@op("text", makes=True)
def nfkd() -> TextOp:
    """nfd, with ligatures, full-width letters and the like as plain ones.

    Standard Annex 15; Python's version of Unicode.
    """
    return NormalForm("NFKD")


@op("text", makes=True)
def strip_accents() -> TextOp:
    """nfd without non-spacing marks, as uncased BERT has it.

    The marks are those of category Mn. Many scripts, Devanagari and Thai among them, write vowels
    with such marks and lose them. Hangul stays decomposed; ``nfc`` puts it together again.
    """
    return Replaced(_marks(), "NFD")


@op("text", makes=True)
def lowercase() -> TextOp:
    """Each character in lower case.

    Python's ``str.lower`` of single characters: Σ is σ at the end of a word too, and İ is i with a
    dot above.
    """
    return Replaced(_lower())


@op("text", makes=True)
def collapse_spaces() -> TextOp:
    """Each run of white space and control characters as one blank.

    None at the ends. White space is what ``str.isspace`` says, control characters are category Cc;
    the joiners within emoji and words (category Cf) stay.
    """
    return CollapsedSpaces()


def _fit_characters(rows: Iterable[str], size: int | None = None) -> dict[str, Any]:
    return {"vocabulary": Characters.learn(rows, size)}


@op("text", makes=True, gives="ids", fit=_fit_characters)
def characters(size: Size | None = None, *, state: dict[str, Any]) -> TextOp:
    """Characters to ids, by the characters of the training data.

    All code points of the training split, or with ``size`` the commonest: ``size`` counts the four
    special pieces too. Others are unknown.
    """
    return Characters(*_learnt("characters", state, "vocabulary"))


@op("text", makes=True, gives="ids", name="bytes")
def utf8_bytes() -> TextOp:
    """The bytes of UTF-8 to ids; nothing is learnt or unknown.

    A byte's id is its value + 4.
    """
    return Bytes()


def _fit_wordpiece(rows: Iterable[str], size: int = 8000, mask: bool = False) -> dict[str, Any]:
    return {"vocabulary": WordPiece.learn(rows, size, mask)}


@op("text", makes=True, gives="ids", fit=_fit_wordpiece)
def wordpiece(size: Size = 8000, mask: bool = False, *, state: dict[str, Any]) -> TextOp:
    """Pieces of words to ids, longest first, as BERT has it.

    The vocabulary has ``size`` pieces, fewer if the training split yields no more. Cased: put
    ``lowercase`` before it for an uncased one. With ``mask`` it has "[MASK]", for hidden pieces,
    which data.task masked-language-model needs. See :class:`WordPiece`; needs ``epochal[text]``.
    """
    special = state.get("special", {}) if isinstance(state, dict) else {}
    return WordPiece(*_learnt("wordpiece", state, "vocabulary"), **special)


def _fit_byte_bpe(rows: Iterable[str], size: int = 8000) -> dict[str, Any]:
    vocabulary, merges = ByteBPE.learn(rows, size)
    return {"vocabulary": vocabulary, "merges": merges}


@op("text", makes=True, gives="ids", fit=_fit_byte_bpe)
def byte_bpe(size: Size = 8000, *, state: dict[str, Any]) -> TextOp:
    """Merged bytes to ids, as GPT-2 has it.

    The vocabulary has ``size`` pieces, fewer if the training split yields no more. Nothing is
    unknown. See :class:`ByteBPE`; needs ``epochal[text]``.
    """
    special = state.get("special", {}) if isinstance(state, dict) else {}
    return ByteBPE(*_learnt("byte_bpe", state, "vocabulary", "merges"), **special)


def _fit_tokenizer_of(rows: Iterable[str], path: str) -> dict[str, Any]:
    """Its chain and states, so that the place it comes from is not needed any more."""
    try:
        place = locate(path)
        if (place / "dataset.json").is_file():
            return _of_run(place)
        words = read_vocabulary(place)
    except WeightsError as error:
        raise OpsError(f"tokenizer_of({path!r}): {error}") from None
    options = {"size": words.size} if words.size is not None else {}
    options |= {} if words.ideographs else {"ideographs": False}
    learnt = {"vocabulary": words.pieces, "special": words.special | options}
    if words.kind == "byte-bpe":
        return {"ops": "byte_bpe", "states": [learnt | {"merges": words.merges}]}
    bare = words.lowercase if words.strip_accents is None else words.strip_accents
    before = ["strip_accents"] * bare + ["lowercase"] * words.lowercase
    return {"ops": "|".join([*before, "wordpiece"]), "states": [*(None for _ in before), learnt]}


def _of_run(place: Path) -> dict[str, Any]:
    saved = read_json(place, "dataset.json")["preprocess"]
    if saved["kind"] not in ("text", "pairs"):
        raise OpsError(f"tokenizer_of: {place} is a run on {saved['kind']}, not on text.")
    chain = build(saved["ops"], "text")
    last = next(place for place, (_, entry) in enumerate(chain) if entry.takes != entry.gives)
    names = saved["ops"].split("|")  # quotes hold paths alone, which have no |
    return {"ops": "|".join(names[: last + 1]), "states": saved["states"][: last + 1]}


def vocabulary_of(path: str) -> list[str] | None:
    """The pieces that weights are for, in the order of their ids; None where none are with them.

    ``path`` as :func:`tokenizer_of` has it, or a run's ``model.keras``.
    """
    try:
        found = _fit_tokenizer_of([], path.removesuffix("model.keras") or ".")
    except OpsError:
        return None  # what is wrong with the weights is said where they are read
    return Borrowed(found["ops"], found["states"]).tokenizer.vocabulary


@op("text", makes=True, gives="ids", fit=_fit_tokenizer_of)
def tokenizer_of(path: str, *, state: dict[str, Any]) -> TextOp:
    """Text to ids as a run, or published weights, have it.

    ``path`` is a run directory of text, a Hugging Face directory, or ``package:NAME``, an installed
    package that carries such a directory. Of a run all ops up to the tokenizer are taken, of
    uncased BERT lower case and the missing accents too. What it needs is kept in the run.
    """
    return Borrowed(*_learnt("tokenizer_of", state, "ops", "states"))


@op("text", makes=True, takes="ids", gives="ids")
def max_tokens(
    n: Annotated[int, Field(ge=1)], overflow: Literal["truncate", "refuse"] = "truncate"
) -> TextOp:
    """At most so many ids a row.

    Longer rows are cut at the end. With ``overflow="refuse"`` one in the data is an OpsError; a
    served model cuts it all the same, as it must answer the other rows of the batch.
    """
    return MaxTokens(n, overflow)


@op("text", makes=True, takes="ids", gives="ids")
def enclose() -> TextOp:
    """A start before the ids of a row, an end behind them: [CLS] and [SEP].

    BERT answers for a text at its first id. Both count for the model's context: cut before.
    """
    return Enclosed()


def _learnt(name: str, state: Any, *keys: str) -> list[Any]:
    absent = [key for key in keys if not isinstance(state, dict) or key not in state]
    if absent:
        raise OpsError(
            f"{name} has learnt no {' and no '.join(absent)}: its state must hold "
            f"{' and '.join(keys)}. Let it learn from the training split first."
        )
    return [state[key] for key in keys]


def _category(code: int) -> str:
    return unicodedata.category(chr(code))


@functools.cache
def _marks() -> dict[int, str]:
    return {code: "" for code in range(codepoints.LIMIT) if _category(code) == "Mn"}


@functools.cache
def _lower() -> dict[int, str]:
    changed = (code for code in range(codepoints.LIMIT) if chr(code).lower() != chr(code))
    return {code: chr(code).lower() for code in changed}


@functools.cache
def _blanks() -> str:
    """All white space and control characters."""
    every = map(chr, range(codepoints.LIMIT))
    return "".join(c for c in every if c.isspace() or unicodedata.category(c) == "Cc")
