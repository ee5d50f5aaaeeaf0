"""Gaps in texts, and which text follows which: what BERT is pre-trained on.

Devlin et al.: BERT (2018), section 3.1 and appendix A.1, A.2. Documents (see :mod:`.text`) are cut
into pieces that fit ``data.context``; an example is

    [CLS] piece [SEP]                   without data.masking.next_sentence
    [CLS] first [SEP] second [SEP]      with it: half of the seconds follow, the others come from
                                        another document

What is hidden is drawn anew for every example in every epoch; in evaluation it is always the same.
The model gets, with m the most tokens that an example can have hidden:

==================  ============================================================================
x["ids"]            int32 [n, t], with [MASK] in 80% of the hidden places, any other piece in 10%
x["segments"]       0 up to the first [SEP], then 1; only with next_sentence
x["positions"]      int32 [n, m]: where something is hidden, filled up with 0
y["mlm"]            the ids that stood there [n, m]; without next_sentence all of y
y["nsp"]            0: the second follows the first; 1: it does not [n]
==================  ============================================================================

Deviations from the paper: its code draws what is hidden ten times for each text, before training,
and repeats these; here every epoch draws anew. It trains nine tenths of its steps on 128 tokens and
the last tenth on 512, and makes a tenth of its examples shorter on purpose; here ``data.context``
holds for all, and what is short is what the documents leave.

Texts are held in memory twice, as strings and as ids of 4 bytes: about 10 bytes a token of English.
Plain texts of more than ``data.cache_mib`` lie in files, and their examples too (:mod:`.stored`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from ..recipe import Data, Masking
from .dataset import Dataset
from .ids import key_of
from .ops import OpsError
from .source import Rows, Source, SourceError
from .stored import BLOCK, Arrays, arrays, directory, tensor
from .stream import Draws, deterministic, parallel
from .tokenizers import WordPiece
from .tokens import PAD_TO, TextPreprocess, TextReader

TASK = "masked-language-model"
_ENDS = (".", "!", "?", "。", "…", "！", "？")  # pieces that end a sentence
_OVER = 8  # tokens by which whole words may go beyond the share


class MaskedDataset(Dataset):
    """A :class:`.dataset.Dataset` of texts for ``data.task="masked-language-model"``.

    Splits are those of the same source with its labels, so that what a fine-tuned model is tested
    on has not been pre-trained on either. Sizes count examples, not documents.

    Raises:
        SourceError: no texts, no data.context, or too little text.
        OpsError: a tokenizer that has no words or no [MASK].
    """

    def __init__(self, data: Data, source: Source):
        if source.kind != "text":
            raise SourceError(
                f"data.task={TASK} fills gaps in text, and {data.source} gives {source.kind}. "
                "Choose text:PATH, a tfds: set of texts or builtin:docstrings."
            )
        super().__init__(data, source)
        masking = data.masking or Masking()
        self.task, self.classes, self.target_name = TASK, (), ""
        self.num_targets = self.vocabulary_size
        self.preprocess.inputs |= {"task": TASK, "context": data.context}
        self.next_sentence = masking.next_sentence
        names = ("ids", "segments", "positions") if masking.next_sentence else ("ids", "positions")
        self.model_options = {
            "head": "pretraining" if masking.next_sentence else "mlm",
            "inputs": names,
        }


@dataclass(frozen=True)
class Pieces:
    """Examples as ranges of all ids of a source: int64 [n] each."""

    begins: tf.Tensor
    lengths: tf.Tensor
    first: tf.Tensor
    """Number of the first piece of the same document."""
    same: tf.Tensor
    """Pieces of that document."""

    def __len__(self) -> int:
        return int(self.begins.shape[0])


class MaskedReader(TextReader):
    """Examples of the documents of one split of a source; see the module.

    Args:
        rows: with the column ``text``, a document a row.
        preprocess: strings -> ids; may learn its states after this.
        data: the recipe's.
    """

    def __init__(self, rows: Rows, preprocess: TextPreprocess, data: Data):
        super().__init__(rows, preprocess, data.bucket_batches)
        if data.context is None:
            raise SourceError(
                f"data.task={TASK} needs data.context: the tokens of an example, [CLS] and [SEP] "
                "included, e.g. --data.context 64."
            )
        self.masking = data.masking or Masking()
        self.room = data.context - (3 if self.masking.next_sentence else 2)
        if self.room < 4:
            raise SourceError(f"data.context {data.context} is too short: take 16 or more.")
        self.context = data.context
        self.hidden = max(1, round(self.masking.share * self.room))
        self.places = self.hidden + (_OVER if self.masking.whole_words else 0)
        self._pieces: dict[str, Pieces] = {}

    def pieces(self, indices) -> Pieces:
        """The examples of these documents. SourceError where there are none."""
        key = key_of(indices)
        if key not in self._pieces:
            self._pieces[key] = self._found(np.asarray(indices, np.int64), key)
        return self._pieces[key]

    def _found(self, indices: np.ndarray, key: str) -> Pieces:
        tokenizer = self.preprocess.tokenizer
        if not isinstance(tokenizer, WordPiece) or tokenizer.mask_id < 0:
            raise OpsError(
                f"data.task={TASK} needs a vocabulary of pieces of words with [MASK] in it: write "
                "wordpiece(8000, mask=True), or tokenizer_of(...) of weights that have it."
            )
        place, two = self.ids["text"].place, self.masking.next_sentence
        if place is not None:
            place = directory("pieces", [place.name, key, self.room, two])
        found = arrays(place, lambda: self._cut(indices))
        documents = np.count_nonzero(np.diff(found["first"], prepend=-1))
        if not documents or (two and documents < 2):
            raise SourceError(
                f"A split has {documents} documents with enough words in them: too few to learn "
                "from. Give more text"
                + (", or set data.masking.next_sentence to false." if documents else ".")
            )
        return Pieces(**{name: tensor(values) for name, values in found.items()})

    def _cut(self, indices: np.ndarray) -> Iterator[Arrays]:
        """The fields of :class:`Pieces`, for so many documents at a time as make about a block."""
        ids, total = self.ids["text"], 0
        held = np.cumsum(ids.lengths[indices]) // BLOCK
        for own in np.split(indices, np.flatnonzero(np.diff(held)) + 1):
            block = self._pieces_of(own)
            block["first"] += total
            total += len(block["first"])
            yield block

    def _pieces_of(self, indices: np.ndarray) -> Arrays:
        """The same for these documents, whose pieces are counted from 0."""
        ids = self.ids["text"]
        lengths, begins = ids.lengths[indices], ids.starts[indices]
        values = [ids.array[a : a + n] for a, n in zip(begins, lengths, strict=True)]
        # Equal parts rather than full ones and a rest, which may be a single token.
        parts = -(-lengths // self.room)
        number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        own, length, start = (
            np.repeat(of_document, parts)
            for of_document in (np.arange(len(indices)), lengths, np.cumsum(lengths) - lengths)
        )
        # A part begins with a word: with the last one that begins before it is due.
        begins_word = self.preprocess.tokenizer.begins_word[np.concatenate(values)]
        word = np.where(begins_word, np.arange(len(begins_word)), 0)
        word = np.append(np.maximum.accumulate(word), len(word))
        edges = []
        for i in (0, 1):
            due = (number + i) * length // np.repeat(parts, parts)
            inner = np.maximum(word[start + due] - start, 0)
            edges.append(np.where(due < length, inner, length))
        edges[1] = np.minimum(edges[1], edges[0] + self.room)
        kept = edges[1] - edges[0] >= 1 + self.masking.next_sentence
        own = own[kept]
        first = np.searchsorted(own, own)
        return {
            "begins": begins[own] + edges[0][kept],
            "lengths": (edges[1] - edges[0])[kept],
            "first": first,
            "same": np.searchsorted(own, own, side="right") - first,
        }

    def count(self, indices) -> int:
        """Examples that these documents make."""
        return len(self.pieces(indices))

    def targets(self, indices) -> None:
        """None: the targets are the texts themselves."""

    def train(self, indices, batch_size, seed, start_step, shuffle, window) -> tf.data.Dataset:
        """The unbounded training stream; see :mod:`.stream`, and ``data.bucket_batches``."""
        pieces = self.pieces(indices)
        rows = self._order(pieces.lengths, batch_size, seed, start_step, shuffle)
        make = self._maker(pieces, PAD_TO)
        return parallel(rows, lambda epoch, number: make(number, Draws(seed, epoch, number)))

    def split(self, indices, batch_size, count: int | None = None) -> tf.data.Dataset:
        """The examples in order, last batch smaller, with gaps that are always the same."""
        pieces = self.pieces(indices)
        make, n = self._maker(pieces, 1), len(pieces)

        def batch(step):
            number = tf.range(step * batch_size, tf.minimum((step + 1) * batch_size, n))
            return make(number, Draws(0, tf.zeros_like(number), number))

        return deterministic(parallel(tf.data.Dataset.range(math.ceil(n / batch_size)), batch))

    def _maker(self, pieces: Pieces, pad_to: int):
        """Numbers of pieces [b] and their draws -> x, y."""
        tokenizer, all_ids = self.preprocess.tokenizer, self.ids["text"]
        begins_word = tf.constant(tokenizer.begins_word)
        ends = np.isin(np.array(tokenizer.vocabulary, object), np.array(_ENDS, object))
        ends_sentence = tf.constant(ends)
        special = {tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.unknown_id,
                   tokenizer.mask_id}  # fmt: skip
        ordinary = [i for i in range(len(tokenizer.vocabulary)) if i not in special]
        ordinary = tf.constant(ordinary, tf.int32)
        columns = tf.range(self.room, dtype=tf.int64)

        def read(number):
            """Ids [b, room], and which of them are of the piece."""
            inside = columns < tf.gather(pieces.lengths, number)[:, None]
            place = tf.gather(pieces.begins, number)[:, None] + columns
            return all_ids.at(tf.where(inside, place, 0)), inside

        def cut(ids, inside, noise):
            """Where the second part begins: at a sentence, if there is none at a word; [b]."""
            word = tf.gather(begins_word, ids)
            sentence = word & tf.roll(tf.gather(ends_sentence, ids), 1, axis=1)
            score = tf.cast(word, tf.float32) + tf.cast(sentence, tf.float32) + noise
            score = tf.where(inside & (columns > 0), score, -1.0)
            return tf.argmax(score, axis=1)

        def part(ids, begin, end):
            """Columns begin to end of each row, ragged."""
            chosen = (columns >= begin[:, None]) & (columns < end[:, None])
            return tf.ragged.boolean_mask(ids, chosen)

        def texts(number, draws):
            """Parts of the example, ragged [b, None] each, and whether the second is another's."""
            ids, inside = read(number)
            length = tf.gather(pieces.lengths, number)
            if not self.masking.next_sentence:
                return [part(ids, 0 * length, length)], None
            middle = cut(ids, inside, draws.uniform(count=self.room))
            another = draws.uniform() < 0.5
            other = tf.cast(draws.integers(len(pieces) - tf.gather(pieces.same, number)), tf.int64)
            first = tf.gather(pieces.first, number)
            other = tf.where(other < first, other, other + tf.gather(pieces.same, number))
            theirs, within = read(other)
            begin = cut(theirs, within, draws.uniform(count=self.room))
            end = tf.minimum(tf.gather(pieces.lengths, other), begin + self.room - middle)
            second = part(
                tf.where(another[:, None], theirs, ids),
                tf.where(another, begin, middle),
                tf.where(another, end, length),
            )
            return [part(ids, 0 * length, middle), second], tf.cast(another, tf.int32)

        def make(number, draws):
            parts, another = texts(number, draws)
            edge = tf.ones([tf.shape(number)[0], 1], tf.int32)
            rows, blank = [edge * tokenizer.start_id], [0 * edge]
            segments = [0 * edge]
            for i, one in enumerate(parts):
                rows += [one, edge * tokenizer.end_id]
                blank += [tf.ones_like(one), 0 * edge]
                segments += [i * tf.ones_like(one), i * edge]
            longest = tf.reduce_max(tf.add_n([one.row_lengths() for one in parts])) + len(parts) + 1
            width = (longest + pad_to - 1) // pad_to * pad_to

            def whole(row, fill=0):
                return tf.concat(row, axis=1).to_tensor(fill, shape=tf.stack([-1, width]))

            ids = whole(rows, tokenizer.fill_id)
            visible = whole(blank) > 0
            positions = self._choose(ids, visible, begins_word, draws)
            hidden = tf.gather(ids, positions, batch_dims=1)
            luck = draws.uniform(count=self.places)
            wrong = tf.gather(ordinary, draws.integers(len(ordinary), count=self.places))
            shown = tf.where(luck < 0.8, tokenizer.mask_id, tf.where(luck < 0.9, wrong, hidden))
            shown = tf.where(positions > 0, shown, tokenizer.start_id)
            at = tf.stack([tf.where(positions >= 0)[:, 0], tf.reshape(tf.cast(positions, tf.int64),
                                                                      [-1])], axis=1)  # fmt: skip
            ids = tf.tensor_scatter_nd_update(ids, at, tf.reshape(shown, [-1]))
            x: dict[str, Any] = {"ids": ids, "positions": positions}
            if another is None:
                return x, hidden
            return x | {"segments": whole(segments)}, {"mlm": hidden, "nsp": another}

        return make

    def _choose(self, ids, visible, begins_word, draws) -> tf.Tensor:
        """Which columns of ids [b, t] are hidden: int32 [b, places], filled up with 0.

        Words in random order (each token is one without whole_words), until the share of the
        visible tokens is reached; the word that reaches it is hidden as a whole.
        """
        width = tf.shape(ids)[1]
        column = tf.broadcast_to(tf.range(width), tf.shape(ids))
        noise = draws.uniform(count=self.context)[:, :width]
        noise = tf.pad(noise, [[0, 0], [0, width - tf.shape(noise)[1]]])  # to a multiple of PAD_TO
        before = tf.pad(visible[:, :-1], [[0, 0], [1, 0]])
        begins = ~visible | ~before
        if self.masking.whole_words:
            begins |= tf.gather(begins_word, ids)
        else:
            begins = tf.ones_like(visible)
        starts = tf.sort(tf.where(begins, column, width), axis=1)
        word = tf.cumsum(tf.cast(begins, tf.int32), axis=1) - 1
        start = tf.gather(starts, word, batch_dims=1)
        ends = tf.pad(starts[:, 1:], [[0, 0], [0, 1]], constant_values=2**30)
        length = tf.minimum(tf.gather(ends, word, batch_dims=1), width) - start
        score = tf.where(visible, tf.gather(noise, start, batch_dims=1), 2.0)
        order = tf.argsort(score, axis=1, stable=True)
        order = tf.pad(order, [[0, 0], [0, tf.maximum(self.places - width, 0)]])[:, : self.places]
        take = lambda values: tf.gather(values, order, batch_dims=1)  # noqa: E731
        count = tf.reduce_sum(tf.cast(visible, tf.int32), axis=1, keepdims=True)
        wanted = tf.round(self.masking.share * tf.cast(count, tf.float32))
        wanted = tf.maximum(tf.cast(wanted, tf.int32), 1)
        first = tf.range(self.places) - (order - take(start))  # place in the order of the word
        chosen = take(visible) & (first < wanted) & (first + take(length) <= self.places)
        return tf.where(chosen, order, 0)
