"""Long texts for a language model: all that is written, ``data.context`` tokens at a time."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from .ids import Packed, key_of
from .source import Rows, SourceError
from .stream import FOREVER, Draws, deterministic, parallel, positions
from .tokens import TextPreprocess, TextReader

_PHASE = 2**13 + 3  # as the place of an op: where an epoch's cuts begin


class PackedReader(TextReader):
    """Texts as one long row of ids, of which a language model sees ``context`` at a time.

    Each document ends with the end token. In epoch e the cuts begin at a place of its own between
    0 and context - 1, so that no token is always the first; evaluation begins at 0. What is left
    at the end, fewer than ``context`` tokens, is not used.
    """

    def __init__(self, rows: Rows, preprocess: TextPreprocess, context: int | None):
        super().__init__(rows, preprocess)
        if context is None:
            raise SourceError(
                "A language model needs data.context: how many tokens an example has, e.g. "
                "--data.context 64."
            )
        self.context = context
        self._packed: dict[str, Packed] = {}

    def tokens(self, indices) -> Packed:
        """All tokens of these documents."""
        key = key_of(indices)
        if key not in self._packed:
            end = self.preprocess.tokenizer.end_id
            self._packed[key] = Packed(self.ids["text"], np.asarray(indices, np.int64), end)
        return self._packed[key]

    def count(self, indices) -> int:
        """Whole examples of which each token has a next one."""
        found = (len(self.tokens(indices)) - 1) // self.context
        if not found:
            raise SourceError(
                f"A split has {len(self.tokens(indices))} tokens, too few for one example of "
                f"data.context {self.context} and the token after it. Give more text, or lower "
                "data.context."
            )
        return found

    def train(self, indices, batch_size, seed, start_step, shuffle, window) -> tf.data.Dataset:
        """The unbounded training stream; see :mod:`.stream`."""
        tokens, context = self.tokens(indices), self.context
        room = len(tokens) - 1 - context  # the last place at which an example can begin
        count = self.count(indices)

        def batch(step):
            epoch, place = positions(step, batch_size, count, seed, shuffle)
            phase = Draws(seed, epoch, tf.zeros_like(epoch), _PHASE).integers(context)
            begins = place * context + tf.cast(phase, tf.int64) * int(shuffle)
            # The last example begins so early that it is whole, wherever the cuts are.
            return self._pieces(tokens, tf.minimum(begins, room))

        return parallel(tf.data.Dataset.range(start_step, FOREVER), batch)

    def split(self, indices, batch_size, count: int | None = None) -> tf.data.Dataset:
        """The pieces in order, last batch smaller."""
        tokens, n = self.tokens(indices), self.count(indices)

        def batch(step):
            place = tf.range(step * batch_size, tf.minimum((step + 1) * batch_size, n))
            return self._pieces(tokens, place * self.context)

        return deterministic(parallel(tf.data.Dataset.range(math.ceil(n / batch_size)), batch))

    def _pieces(self, tokens, begins):
        places = begins[:, None] + tf.range(self.context + 1, dtype=tf.int64)
        piece = tokens.at(places)
        return piece[:, :-1], piece[:, 1:]

    def targets(self, indices) -> None:
        """None: the targets are the texts themselves."""
