"""Byte-level byte-pair encoding as GPT-2 has it (Radford et al. 2019, section 2.2).

Learnt by the library ``tokenizers``, which also runs it in training; :meth:`ByteBPE.graph` says
the same in core TensorFlow operations.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from .. import codepoints
from ..codepoints import LIMIT
from ..ops import OpsError
from .base import SPECIAL, Tokenizer, hash_table, library
from .simple import printable_bytes

_OUTSIDE, _SPACE, _LETTER, _NUMBER, _OTHER = range(-1, 4)  # kinds of code points
_BLANK, _APOSTROPHE = ord(" "), ord("'")
_NO_RANK = 1 << 30  # of a pair that no merge knows


class ByteBPE(Tokenizer):
    """Merges of bytes; nothing is unknown and every text comes back from its ids as it was.

    Args:
        vocabulary: pieces in printable form, all 256 single bytes among them, such as the keys of
            GPT-2's ``encoder.json``. It has one special piece for everything:
            ``ByteBPE(keys, lines, pad=None, start=None, end="<|endoftext|>", unknown=None)``.
        merges: "left right", the first to merge first, such as the lines of GPT-2's ``vocab.bpe``
            (after the first line, which names the version).

    Raises:
        OpsError: as Tokenizer; a byte that the vocabulary lacks; a merge of or into a piece that is
            not in it.
    """

    def __init__(self, vocabulary: Sequence[str], merges: Sequence[str], **special):
        super().__init__(vocabulary, **special)
        characters = printable_bytes()
        absent = [byte for byte in range(256) if self._id_of(characters[byte]) is None]
        if absent:
            raise OpsError(
                f"The vocabulary of a byte-level tokenizer lacks {len(absent)} of the 256 bytes, "
                f"the first {absent[0]:#04x} ({characters[absent[0]]!r} in printable form)."
            )
        pairs = [tuple(merge.split(" ")) for merge in merges]
        for pair in pairs:
            if len(pair) != 2 or None in map(self._id_of, (*pair, "".join(pair))):
                raise OpsError(
                    f"The merge {' '.join(pair)!r} is not two pieces of the vocabulary that "
                    "together are a third."
                )
        library_ = library()
        pieces = {piece: number for number, piece in enumerate(vocabulary)}
        self._library = library_.Tokenizer(library_.models.BPE(vocab=pieces, merges=pairs))
        self._library.pre_tokenizer = _splitter()

        self._byte_ids = np.array([self._id_of(character) for character in characters], np.int32)
        self._merged = np.array([self._id_of(left + right) for left, right in pairs], np.int32)
        ranks = {-1: _NO_RANK}  # of no pair, but a table must not be empty
        for rank, (left, right) in enumerate(pairs):
            ranks[self._id_of(left) * self.vocabulary_size + self._id_of(right)] = rank
        self._ranks = hash_table(ranks, _NO_RANK)

    @staticmethod
    def learn(rows: Iterable[str], size: int) -> tuple[list[str], list[str]]:
        """Vocabulary, of at most ``size`` pieces, and merges of a corpus. Deterministic.

        ``rows`` are gone through twice.

        Raises:
            OpsError: a corpus without text, or no room for the special pieces and 256 bytes.
        """
        least = len(SPECIAL) + 256
        if size < least:
            raise OpsError(
                f"byte_bpe({size}): the special pieces and the 256 bytes alone need {least} pieces."
            )
        if not any(rows):
            raise OpsError("byte_bpe: there is no text in the training split.")
        library_ = library()
        trained = library_.Tokenizer(library_.models.BPE())
        trained.pre_tokenizer = _splitter()
        trainer = library_.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIAL),
            initial_alphabet=printable_bytes(),
            show_progress=False,
        )
        trained.train_from_iterator(rows, trainer)
        model = json.loads(trained.to_str())["model"]
        vocabulary = sorted(model["vocab"], key=model["vocab"].get)
        return vocabulary, [" ".join(pair) for pair in model["merges"]]

    def _write(self, piece: str) -> bytes:
        bytes_ = _bytes_of()
        if all(character in bytes_ for character in piece):
            return bytes(bytes_[character] for character in piece)
        return piece.encode()

    def python(self, rows: list[str]) -> list[list[int]]:
        return [row.ids for row in self._library.encode_batch(rows, add_special_tokens=False)]

    def graph(self, rows: tf.Tensor) -> tf.RaggedTensor:
        rows = codepoints.valid(rows)
        codes = codepoints.decode(rows)
        number = tf.cumsum(tf.cast(_word_starts(codes), tf.int32))
        width = sum(tf.cast(codes.values >= least, tf.int32) for least in (0, 0x80, 0x800, 0x10000))
        word = tf.repeat(number, width)  # of each byte
        symbols = codepoints.to_bytes(rows)
        merged = self._merge(tf.gather(self._byte_ids, symbols.values), word)
        return codepoints.mask(symbols.with_values(merged), merged >= 0)

    def _merge(self, symbols: tf.Tensor, word: tf.Tensor) -> tf.Tensor:
        """Merges within words, in each the best-ranked and leftmost pair first, one a step.

        Args:
            symbols: int32 [m], the ids of single bytes.
            word: int32 [m], non-decreasing.

        Returns:
            [m], merged symbols where they begin, -1 elsewhere.
        """
        words = tf.reduce_max(word) + 1

        def merging(place, word, symbols):
            return tf.size(place) > 1

        def step(place, word, symbols):
            """``place`` and ``word`` are of the symbols left in words that may merge further."""
            ids = tf.cast(tf.gather(symbols, place), tf.int64)
            rank = self._ranks.lookup(ids[:-1] * self.vocabulary_size + ids[1:])
            possible = (word[:-1] == word[1:]) & (rank < _NO_RANK)
            rank, left = rank[possible], tf.where(possible)[:, 0]
            # The rank decides, then the place; every key is another.
            key = rank * tf.size(place, tf.int64) + left
            best = tf.math.unsorted_segment_min(key, tf.gather(word, left), words)
            chosen = key == tf.gather(best, tf.gather(word, left))
            rank, left = rank[chosen], left[chosen]

            symbols = tf.tensor_scatter_nd_update(
                symbols, tf.gather(place, left)[:, None], tf.gather(self._merged, rank)
            )
            absorbed = tf.gather(place, left + 1)[:, None]
            symbols = tf.tensor_scatter_nd_update(symbols, absorbed, tf.fill([tf.size(left)], -1))
            kept = tf.gather(symbols, place) >= 0
            kept &= tf.gather(best, word) < best.dtype.max  # a word without a merge is done
            return place[kept], word[kept], symbols

        some = tf.TensorShape([None])
        start = (tf.range(tf.size(symbols)), word, symbols)
        return tf.while_loop(merging, step, start, (some, some, symbols.shape))[2]


def _word_starts(codes: tf.RaggedTensor) -> tf.Tensor:
    r"""Where GPT-2's pattern begins a word, bool [m]; core operations.

    The pattern is ``'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+``,
    tried at the end of the word before. RE2 has no lookahead, and no need is there: whether a word
    begins depends on a few characters around. Runs of letters, numbers and others are words, with
    the blank before. A run of white space is one word, but before something visible its last
    character is left apart: a blank belongs to what follows, all else is a word of its own.
    A contraction is one if its apostrophe begins a word, and a word begins after it.
    """
    values = codes.values
    kind = _kinds()(values)
    kinds = codes.with_values(kind)
    before = codepoints.neighbours(kinds, -1, _OUTSIDE)
    after = codepoints.neighbours(kinds, 1, _OUTSIDE)
    glued = codepoints.neighbours(codes, -1, 0) == _BLANK
    starts = tf.where(
        kind == _SPACE,
        (before != _SPACE) | ((after != _SPACE) & (after != _OUTSIDE)),
        (before != kind) & ~glued,
    )
    apostrophe = starts & (values == _APOSTROPHE)
    one, two = (codepoints.neighbours(codes, offset, 0) for offset in (1, 2))

    def follows(letters: str) -> tf.Tensor:
        hit = one == ord(letters[0])
        return hit & (two == ord(letters[1])) if len(letters) == 2 else hit

    short = apostrophe & functools.reduce(tf.logical_or, map(follows, "stmd"))
    long = apostrophe & functools.reduce(tf.logical_or, map(follows, ("re", "ve", "ll")))

    def moved(places: tf.Tensor, offset: int) -> tf.Tensor:
        return codepoints.neighbours(codes.with_values(places), -offset, False)

    return (starts & ~moved(short | long, 1)) | moved(short, 2) | moved(long, 3)


def _splitter():
    return library().pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


@functools.cache
def _bytes_of() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(printable_bytes())}


@functools.cache
def _kinds() -> codepoints.Table:
    """White space, letter, number or other, asked of the library's own regular expressions."""
    library_ = library()
    kinds = np.full(LIMIT, _OTHER, np.int32)
    for kind, pattern in ((_SPACE, r"\s+"), (_LETTER, r"\p{L}+"), (_NUMBER, r"\p{N}+")):
        without = library_.pre_tokenizers.Split(library_.Regex(pattern), "removed")
        for characters in codepoints.blocks():
            codes = np.array([ord(character) for character in characters])
            matches = np.ones(len(codes), bool)
            for _, (begin, end) in without.pre_tokenize_str(characters):
                matches[begin:end] = False
            kinds[codes[matches]] = kind
    return codepoints.Table(kinds)
