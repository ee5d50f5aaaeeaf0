"""WordPiece as BERT has it (Devlin et al. 2018): the longest known piece first.

Learnt by the library ``tokenizers``, which also runs it in training; :meth:`WordPiece.graph` says
the same in core TensorFlow operations.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from .. import codepoints
from ..codepoints import LIMIT
from ..ops import OpsError
from .base import MASK, SPECIAL, UNKNOWN, Tokenizer, hash_table, library

CONTINUES = "##"  # before a piece that does not begin a word
LONGEST_WORD = 100  # characters; longer ones are unknown
# What a code point does in BERT's splitting into words.
_PART, _REMOVED, _SPACE, _ALONE = range(4)


class WordPiece(Tokenizer):
    """Words in pieces, e.g. "playing" as "play", "##ing".

    Control characters are removed; words end at white space, and punctuation and CJK ideographs
    are words of their own. From the start of a word the longest piece of the vocabulary is taken,
    then the longest that continues it, and so on; a word where that fails, or of more than 100
    characters, is one unknown piece. Letters keep their case.

    Args:
        vocabulary: such as the lines of BERT's ``vocab.txt``. Its special pieces have other names:
            ``WordPiece(lines, start="[CLS]", end="[SEP]")``.
        ideographs: whether each Chinese character is a word.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        unknown: str = UNKNOWN,
        ideographs: bool = True,
        **special,
    ):
        super().__init__(vocabulary, unknown=unknown, **special)
        library_ = library()
        pieces = {piece: number for number, piece in enumerate(vocabulary)}
        # No piece is declared special to the library: it would look for its name in the texts.
        self._library = library_.Tokenizer(
            library_.models.WordPiece(
                pieces, unk_token=unknown, max_input_chars_per_word=LONGEST_WORD
            )
        )
        self._library.normalizer, self._library.pre_tokenizer = _splitting(ideographs)
        self._ideographs = ideographs
        edges, self._piece_at = _prefix_tree(vocabulary)
        self._edges = hash_table(edges, -1)

    @staticmethod
    def learn(rows: Iterable[str], size: int, mask: bool = False) -> list[str]:
        """The vocabulary of a corpus, of at most ``size`` pieces, with "[MASK]" if ``mask``.

        Every character of the corpus is in it, as the start of a word and, where it occurs so, as
        a continuation. Deterministic.

        Raises:
            OpsError: a corpus without words, or of more characters than ``size`` has room for.
        """
        library_ = library()
        normalizer, splitter = _splitting()
        counts = Counter()
        for row in rows:
            words = splitter.pre_tokenize_str(normalizer.normalize_str(row))
            counts.update(word for word, _ in words)
        characters = sorted({c for word in counts for c in word})
        later = sorted({c for word in counts for c in word[1:]})
        # The library numbers continuing characters in the order of a hash table, other in each
        # process, and decides ties by these numbers: here they have their places before.
        special = [*SPECIAL, *([MASK] if mask else [])]
        alphabet = [*special, *characters, *(CONTINUES + character for character in later)]
        if not characters:
            raise OpsError("wordpiece: there is not a single word in the training split.")
        if size < len(alphabet):
            raise OpsError(
                f"wordpiece({size}): the characters of the training split alone need "
                f"{len(alphabet)} pieces. Take a larger size, or put nfkc or lowercase before it."
            )
        trained = library_.Tokenizer(library_.models.WordPiece(unk_token=UNKNOWN))
        trainer = library_.trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=alphabet, show_progress=False
        )
        trained.train_from_iterator(counts.elements(), trainer)
        pieces = trained.get_vocab(with_added_tokens=False)
        return sorted(pieces, key=pieces.get)

    @property
    def begins_word(self) -> np.ndarray:
        """bool [vocabulary_size]: whether a piece begins a word."""
        begins = np.ones(self.vocabulary_size, bool)
        begins[: len(self.vocabulary)] = [not p.startswith(CONTINUES) for p in self.vocabulary]
        return begins

    def _write(self, piece: str) -> bytes:
        continues = piece.startswith(CONTINUES) and piece != CONTINUES
        return (piece.removeprefix(CONTINUES) if continues else f" {piece}").encode()

    def _write_unknown(self, piece: str) -> bytes:
        return self._write(piece)

    def decode_python(self, ids: list[list[int]]) -> list[str]:
        return [text.removeprefix(" ") for text in super().decode_python(ids)]

    def finish(self, texts: tf.Tensor) -> tf.Tensor:
        return tf.strings.regex_replace(super().finish(texts), "^ ", "")

    def python(self, rows: list[str]) -> list[list[int]]:
        return [row.ids for row in self._library.encode_batch(rows, add_special_tokens=False)]

    def graph(self, rows: tf.Tensor) -> tf.RaggedTensor:
        codes = codepoints.decode(rows)
        role_of = _roles(self._ideographs)
        codes = codepoints.mask(codes, role_of(codes.values) != _REMOVED)
        roles = codes.with_values(role_of(codes.values))
        begins = (roles.values == _ALONE) | (codepoints.neighbours(roles, -1, _SPACE) != _PART)
        word = tf.cumsum(tf.cast(begins & (roles.values != _SPACE), tf.int32)) - 1
        visible = roles.values != _SPACE
        codes, word = codepoints.mask(codes, visible), word[visible]

        # Of every character: the place after its word's last, and whether it is the first.
        place = tf.range(tf.size(word))
        start = tf.math.segment_min(place, word)
        end = tf.math.segment_max(place, word) + 1
        short = end - start <= LONGEST_WORD
        first = place == tf.gather(start, word)
        limit = tf.where(tf.gather(short, word), tf.gather(end, word), 0)
        piece, length = self._longest(codes.values, first, limit)
        taken = _walk(start[short], length, limit)

        # A word is unknown if the walk through it came to where no piece fits.
        stuck = (taken & (length == 0)) | (limit == 0)
        unknown = tf.gather(tf.math.segment_max(tf.cast(stuck, tf.int32), word) > 0, word)
        ids = codes.with_values(tf.where(unknown, self.unknown_id, piece))
        return codepoints.mask(ids, tf.where(unknown, first, taken))

    def _longest(
        self, flat: tf.Tensor, first: tf.Tensor, limit: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Of every character [m] the longest piece that begins there: its id and length, 0 if none.

        All walk down the tree of prefixes at once, those without a further edge drop out.
        """
        nothing = tf.zeros_like(flat)
        place = tf.range(tf.size(flat))
        node = tf.where(first, tf.constant(0, tf.int64), 1)
        inside = place < limit

        def walking(depth, place, *_):
            return tf.size(place) > 0

        def step(depth, place, node, piece, length):
            code = tf.cast(tf.gather(flat, place + depth), tf.int64)
            node = self._edges.lookup(node * LIMIT + code)
            place, node = place[node >= 0], node[node >= 0]
            found = tf.gather(self._piece_at, node)
            ends = found >= 0
            depth += 1
            here = place[ends][:, None]
            piece = tf.tensor_scatter_nd_update(piece, here, found[ends])
            length = tf.tensor_scatter_nd_update(
                length, here, tf.fill(tf.shape(found[ends]), depth)
            )
            inside = place + depth < tf.gather(limit, place)
            return depth, place[inside], node[inside], piece, length

        some, fixed = tf.TensorShape([None]), flat.shape
        *_, piece, length = tf.while_loop(
            walking,
            step,
            (0, place[inside], node[inside], nothing, nothing),
            (tf.TensorShape([]), some, some, fixed, fixed),
        )
        return piece, length


def _walk(place: tf.Tensor, length: tf.Tensor, limit: tf.Tensor) -> tf.Tensor:
    """Which of m characters begin a piece when every word is walked through from ``place`` on.

    Args:
        place: int32 [w], the first character of every word.
        length: int32 [m], of the piece that begins there; a walk ends at 0.
        limit: int32 [m], the place after the word.
    """

    def walking(place, taken):
        return tf.size(place) > 0

    def step(place, taken):
        taken = tf.tensor_scatter_nd_update(taken, place[:, None], tf.fill(tf.shape(place), True))
        further = place + tf.gather(length, place)
        goes_on = (further > place) & (further < tf.gather(limit, place))
        return further[goes_on], taken

    taken = tf.fill(tf.shape(length), False)
    shapes = (tf.TensorShape([None]), taken.shape)
    return tf.while_loop(walking, step, (place, taken), shapes)[1]


def _prefix_tree(vocabulary: Sequence[str]) -> tuple[dict[int, int], np.ndarray]:
    """All beginnings of pieces as the nodes of two trees.

    Returns:
        ``{node * LIMIT + code point: next node}``; node 0 is the root of pieces that begin a word,
        node 1 of those that continue one.
        int32 [nodes]: the piece that ends there, or -1.
    """
    edges: dict[int, int] = {}
    pieces = [-1, -1]
    for number, piece in enumerate(vocabulary):
        node = int(piece.startswith(CONTINUES))
        for character in piece.removeprefix(CONTINUES):
            key = node * LIMIT + ord(character)
            node = edges.setdefault(key, len(pieces))
            if node == len(pieces):
                pieces.append(-1)
        pieces[node] = number
    return edges, np.array(pieces, np.int32)


def _splitting(ideographs: bool = True):
    """The library's cleaning of texts and splitting into words."""
    library_ = library()
    cleaning = library_.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=ideographs, strip_accents=False, lowercase=False
    )
    return cleaning, library_.pre_tokenizers.BertPreTokenizer()


@functools.cache
def _roles(ideographs: bool = True) -> codepoints.Table:
    """What :func:`_splitting` does with each code point, asked of the library itself.

    Its version of Unicode is neither Python's nor TensorFlow's.
    """
    normalizer, splitter = _splitting(ideographs)
    roles = np.full(LIMIT, _PART, np.int32)
    for characters in codepoints.blocks():
        characters = characters.replace("0", "")  # it stands before each of the others
        spaced = "".join(f"0{character}" for character in characters)
        cleaned = normalizer.normalize_str(spaced).split("0")[1:]
        for character, left in zip(characters, cleaned, strict=True):
            if not left:
                roles[ord(character)] = _REMOVED
            elif left == " ":
                roles[ord(character)] = _SPACE
            elif left != character:  # with blanks around it
                roles[ord(character)] = _ALONE
        for word, _ in splitter.pre_tokenize_str(spaced):
            if len(word) == 1 and word != "0" and roles[ord(word)] == _PART:
                roles[ord(word)] = _ALONE
    return codepoints.Table(roles)
