"""What ops on text have in common, and what tokenizers have in common."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from .. import codepoints
from ..ops import OpsError

PAD, START, END, UNKNOWN = "[PAD]", "[START]", "[END]", "[UNK]"
MASK = "[MASK]"  # what stands for a hidden piece; only where a vocabulary has it
SPECIAL = (PAD, START, END, UNKNOWN)  # ids 0 to 3 of what we train ourselves


class TextOp(tf.Module):
    """One op on text, with two faces that agree exactly: Python for training, a graph for serving.

    Rows are strings before the tokenizer of a chain and ids from it on.
    """

    def python(self, rows: list) -> list:
        """list of str -> list of str or of list of int (ids); list of ids -> list of ids."""
        raise NotImplementedError

    def graph(self, rows):
        """The same in core TensorFlow operations; to be traced in a tf.function.

        Strings are tf.string [n], ids tf.RaggedTensor int32 [n, None]. Bytes that are not UTF-8
        count as U+FFFD. A row's result does not depend on the other rows.
        """
        raise NotImplementedError


class Tokenizer(TextOp):
    """From strings to ids and back.

    Args:
        vocabulary: the pieces, in the order of their ids.
        pad, start, end, unknown: the special ones among them; two may be the same, and None is for
            one that a vocabulary lacks.
        size: ids of the model, where these are more than the pieces: the last ones have none, are
            never given, and add nothing to a text.

    Attributes:
        vocabulary: pieces; bytes in printable form, see :func:`.simple.printable_bytes`.
        vocabulary_size: number of ids.
        pad_id, start_id, end_id, unknown_id: ids, -1 for None; 0 to 3 for what we train ourselves.
        mask_id: of "[MASK]", -1 where the vocabulary has none.
        fill_id: what rows of unequal length are filled up with: the padding, and where a vocabulary
            has none, as GPT-2's, the end of text, behind which nothing counts.

    Raises:
        OpsError: a piece that is twice in the vocabulary, or a special one that is not there.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        pad: str | None = PAD,
        start: str | None = START,
        end: str | None = END,
        unknown: str | None = UNKNOWN,
        size: int | None = None,
    ):
        super().__init__()
        self.vocabulary = list(vocabulary)
        self.vocabulary_size = max(len(self.vocabulary), size or 0)
        ids = {piece: number for number, piece in enumerate(vocabulary)}
        if len(ids) < len(self.vocabulary):
            twice = Counter(vocabulary).most_common(1)[0][0]
            raise OpsError(f"The vocabulary holds {twice!r} more than once; ids must be unique.")
        # A method is out of reach of tf.Module, which would wrap the dict and make it slow.
        self._id_of = ids.get
        self.pad_id = self._special_id("pad", pad)
        self.start_id = self._special_id("start", start)
        self.end_id = self._special_id("end", end)
        self.unknown_id = self._special_id("unknown", unknown)
        self.mask_id = self._id_of(MASK, -1)
        self.fill_id = max(self.pad_id if self.pad_id >= 0 else self.end_id, 0)
        nothing = [b""] * (self.vocabulary_size - len(self.vocabulary))
        self._written = np.array([*map(self._write, vocabulary), *nothing], object)
        if unknown is not None:
            self._written[self.unknown_id] = self._write_unknown(unknown)

    def _special_id(self, name: str, piece: str | None) -> int:
        number = self._id_of(piece, -1)
        if piece is not None and number < 0:
            raise OpsError(
                f"The vocabulary has no {piece!r}. Give the name of the piece that it has for this "
                f"use, {name}=..., or {name}=None."
            )
        return number

    def _write(self, piece: str) -> bytes:
        """What a piece adds to a decoded text."""
        return piece.encode()

    def _write_unknown(self, piece: str) -> bytes:
        return "\ufffd".encode()

    @property
    def pieces(self) -> np.ndarray:
        """bytes [vocabulary_size]: what each id adds to a text; pads, starts and ends nothing."""
        found = self._written.copy()
        for number in (self.pad_id, self.start_id, self.end_id):
            if number >= 0:
                found[number] = b""
        return found

    def finish(self, texts: tf.Tensor) -> tf.Tensor:
        """Texts [n] of ids from their joined pieces; core operations only."""
        return codepoints.valid(texts)

    def decode_python(self, ids: list[list[int]]) -> list[str]:
        """:meth:`decode` for lists of ids of any lengths, padded or not."""
        texts = []
        for row in ids:
            if self.end_id in row:
                row = row[: row.index(self.end_id)]
            kept = [self._written[i] for i in row if i not in (self.pad_id, self.start_id)]
            texts.append(b"".join(kept).decode("utf-8", "replace"))
        return texts

    def decode(self, ids: tf.Tensor) -> tf.Tensor:
        """Ids int32 [n, t] -> strings [n]; core operations only.

        What follows the first end is dropped, pads and starts are skipped. The unknown piece
        becomes U+FFFD, in WordPiece its name, "[UNK]". Bytes that are not UTF-8 become U+FFFD.
        """
        ids = tf.convert_to_tensor(ids)
        kept = tf.cumsum(tf.cast(ids == self.end_id, tf.int32), axis=1) == 0
        kept &= (ids != self.pad_id) & (ids != self.start_id)
        pieces = tf.gather(tf.constant(self._written), ids)
        return self.finish(tf.strings.reduce_join(tf.where(kept, pieces, ""), axis=1))


def library():
    """The package ``tokenizers``. OpsError where it is not installed."""
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise OpsError(
            f"WordPiece and byte-level BPE need the package tokenizers ({error}): "
            "pip install 'epochal[text]'"
        ) from None


def hash_table(values: dict[int, int], default: int) -> tf.lookup.StaticHashTable:
    """A table int64 -> int64, to be an attribute of the module that is exported. Not empty."""
    keys = np.array(list(values), np.int64)
    initializer = tf.lookup.KeyValueTensorInitializer(
        keys, np.array(list(values.values()), np.int64)
    )
    return tf.lookup.StaticHashTable(initializer, default_value=default)
