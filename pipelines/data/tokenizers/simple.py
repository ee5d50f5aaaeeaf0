"""Tokenizers that need no training: one id a character, or one a byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from .. import codepoints
from ..ops import OpsError
from .base import SPECIAL, UNKNOWN, Tokenizer


def printable_bytes() -> list[str]:
    """A visible character for each byte: itself where Latin-1 shows one, else from U+0100 on.

    GPT-2's ``bytes_to_unicode``, in which its vocabulary files are written: a blank is "Ġ".
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    characters = {byte: chr(byte) for byte in shown}
    characters |= {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return [characters[byte] for byte in range(256)]


class Characters(Tokenizer):
    """One id for each code point of the vocabulary; all others are unknown.

    Args:
        vocabulary: special pieces (longer than a character) and characters.
    """

    def __init__(self, vocabulary: Sequence[str], *, unknown: str = UNKNOWN, **special):
        super().__init__(vocabulary, unknown=unknown, **special)
        ids = np.full(codepoints.LIMIT, self.unknown_id, np.int32)
        for number, piece in enumerate(vocabulary):
            if len(piece) == 1:
                ids[ord(piece)] = number
        self._table = codepoints.Table(ids)

    @staticmethod
    def learn(rows: Iterable[str], size: int | None = None) -> list[str]:
        """The vocabulary of a corpus: its ``size - 4`` commonest characters, the commonest first.

        Equally common ones stand in Unicode's order. Raises OpsError for a corpus without any.
        """
        counts = Counter()
        for row in rows:
            counts.update(row)
        if not counts:
            raise OpsError("characters: there is not a single character in the training split.")
        characters = sorted(counts, key=lambda character: (-counts[character], character))
        return [*SPECIAL, *characters][:size]

    def python(self, rows: list[str]) -> list[list[int]]:
        find, unknown = self._id_of, self.unknown_id
        return [[find(character, unknown) for character in row] for row in rows]

    def graph(self, rows: tf.Tensor) -> tf.RaggedTensor:
        codes = codepoints.decode(rows)
        return codes.with_values(self._table(codes.values))


class Bytes(Tokenizer):
    """The bytes of UTF-8; the id of a byte is its value + 4. Nothing is unknown."""

    def __init__(self):
        super().__init__([*SPECIAL, *printable_bytes()])

    def _write(self, piece: str) -> bytes:
        place = self._id_of(piece) - len(SPECIAL)
        return bytes([place]) if place >= 0 else b""

    def python(self, rows: list[str]) -> list[list[int]]:
        return [[byte + len(SPECIAL) for byte in row.encode()] for row in rows]

    def graph(self, rows: tf.Tensor) -> tf.RaggedTensor:
        values = codepoints.to_bytes(codepoints.valid(rows))
        return values.with_values(values.values + len(SPECIAL))
