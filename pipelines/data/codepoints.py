"""Text as code points in core TensorFlow operations.

Texts are ``tf.RaggedTensor`` int32 [n, None] of code points (:func:`decode`). What differs from
one code point to another stands in tables over all of Unicode, made by Python: TensorFlow's own
functions and RE2 know another version of Unicode than Python and than the library ``tokenizers``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

LIMIT = sys.maxunicode + 1
SURROGATES = range(0xD800, 0xE000)  # no characters: no valid text holds them
_PAGE = 256


def blocks() -> Iterator[str]:
    """All characters of Unicode, assigned or not, in texts of up to 4,096.

    For asking the library ``tokenizers``, which takes more time a character for longer texts.
    """
    for start in range(0, LIMIT, 4096):
        codes = range(start, start + 4096)
        yield "".join(chr(code) for code in codes if code not in SURROGATES)


def decode(rows: tf.Tensor) -> tf.RaggedTensor:
    """UTF-8 strings [n] -> code points [n, None]; invalid bytes become U+FFFD."""
    return tf.strings.unicode_decode(rows, "UTF-8", errors="replace")


def encode(codes: tf.RaggedTensor) -> tf.Tensor:
    """Code points [n, None] -> UTF-8 strings [n]."""
    return tf.strings.unicode_encode(codes, "UTF-8")


def valid(rows: tf.Tensor) -> tf.Tensor:
    """Strings [n] with U+FFFD in place of what is not UTF-8."""
    return tf.strings.unicode_transcode(rows, "UTF-8", "UTF-8", errors="replace")


class Table:
    """A whole number for every code point.

    Args:
        values: [0x110000]. Most pages of 256 are alike, and each is kept once: tens of kilobytes
            in a graph instead of megabytes.
    """

    def __init__(self, values: np.ndarray):
        pages, page = np.unique(
            np.asarray(values, np.int32).reshape(-1, _PAGE), axis=0, return_inverse=True
        )
        self._values, self._page = pages.reshape(-1), page.reshape(-1).astype(np.int32)

    def __call__(self, codes: tf.Tensor) -> tf.Tensor:
        """int32 [...] -> int32 [...]."""
        page = tf.gather(self._page, codes // _PAGE)
        return tf.gather(self._values, page * _PAGE + codes % _PAGE)


class Replacement:
    """Puts sequences of code points in the place of single ones.

    Args:
        changes: code point -> sequence, which may be empty. All others stay.
    """

    def __init__(self, changes: dict[int, tuple[int, ...]]):
        which = np.zeros(LIMIT, np.int32)
        which[list(changes)] = 1 + np.arange(len(changes))
        self._which = Table(which)
        # Sequence 0, of one place, is for the code points that stay.
        sequences = [(0,), *changes.values()]
        self._splits = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
        self._values = np.array([code for sequence in sequences for code in sequence], np.int32)

    def __call__(self, codes: tf.RaggedTensor) -> tf.RaggedTensor:
        """Code points [n, None] -> code points [n, None]."""
        which = self._which(codes.values)
        sequences = tf.RaggedTensor.from_row_splits(self._values, self._splits, validate=False)
        new = tf.gather(sequences, which)
        origin = new.value_rowids()
        stays = tf.gather(which, origin) == 0
        values = tf.where(stays, tf.gather(codes.values, origin), new.values)
        splits = tf.gather(new.row_splits, codes.row_splits)
        return tf.RaggedTensor.from_row_splits(values, splits, validate=False)


def neighbours(rows: tf.RaggedTensor, offset: int, outside: int | bool) -> tf.Tensor:
    """For every value the one ``offset`` places on in its row; ``outside`` beyond the row's ends.

    Args:
        rows: [n, None] with m values.

    Returns:
        [m], in the order of ``rows.values``.
    """
    values, row = rows.values, rows.value_rowids()
    place = tf.range(tf.size(row)) + offset
    place_inside = tf.clip_by_value(place, 0, tf.maximum(tf.size(row) - 1, 0))
    same_row = (place == place_inside) & (tf.gather(row, place_inside) == row)
    outside = tf.constant(outside, values.dtype)
    return tf.where(same_row, tf.gather(values, place_inside), outside)


def mask(rows: tf.RaggedTensor, kept: tf.Tensor) -> tf.RaggedTensor:
    """The values of [n, None] where ``kept``, bool [m], holds; as many rows as before."""
    return tf.ragged.boolean_mask(rows, rows.with_values(kept))


def to_bytes(rows: tf.Tensor) -> tf.RaggedTensor:
    """Strings [n] -> their bytes, int32 [n, None]."""
    single = tf.strings.bytes_split(rows)
    values = tf.reshape(tf.io.decode_raw(single.values, tf.uint8), [-1])
    return single.with_values(tf.cast(values, tf.int32))
