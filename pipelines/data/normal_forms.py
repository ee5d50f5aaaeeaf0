"""Unicode's normal forms NFC, NFD, NFKC and NFKD in core TensorFlow operations.

Follows Unicode Standard Annex 15 and, for its terms, chapter 3.11 of the standard: decompose by
table (Hangul too), put combining marks in canonical order, compose. The tables are those of
Python's ``unicodedata``, hence the results are those of ``unicodedata.normalize``.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import tensorflow as tf

from . import codepoints
from .codepoints import LIMIT, SURROGATES

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# Hangul syllables are numbered by initial consonant, vowel and final consonant (or none).
_SYLLABLE, _INITIAL, _VOWEL, _FINAL = 0xAC00, 0x1100, 0x1161, 0x11A7
_VOWELS, _FINALS, _SYLLABLES = 21, 28, 11172


@functools.cache
def normal_form(form: str):
    """The function code points [n, None] -> code points [n, None] of a form in FORMS."""
    decompose = codepoints.Replacement(_decompositions("NFD" if form in ("NFC", "NFD") else "NFKD"))
    classes = _combining_classes()
    composes = form in ("NFC", "NFKC")
    compose = _Composition() if composes else None

    def apply(codes: tf.RaggedTensor) -> tf.RaggedTensor:
        codes = _reorder(decompose(codes), classes)
        return compose(codes, classes) if composes else codes

    return apply


@functools.cache
def _decompositions(form: str) -> dict[int, tuple[int, ...]]:
    changes = {}
    for code in range(LIMIT):
        if code not in SURROGATES and not unicodedata.is_normalized(form, chr(code)):
            changes[code] = tuple(map(ord, unicodedata.normalize(form, chr(code))))
    return changes


@functools.cache
def _combining_classes() -> codepoints.Table:
    return codepoints.Table(np.array([unicodedata.combining(chr(c)) for c in range(LIMIT)]))


def _reorder(codes: tf.RaggedTensor, classes: codepoints.Table) -> tf.RaggedTensor:
    """The canonical ordering: each run of marks sorted by combining class, stably."""
    order = classes(codes.values)
    first = codepoints.neighbours(codes, -1, -1) < 0
    run = tf.cumsum(tf.cast(first | (order == 0), tf.int64))
    key = run * 256 + tf.cast(order, tf.int64)
    return codes.with_values(tf.gather(codes.values, tf.argsort(key, stable=True)))


@functools.cache
def _compositions() -> dict[tuple[int, int], int]:
    """(first, second) -> primary composite."""
    pairs = {}
    for code in _decompositions("NFD"):
        if _SYLLABLE <= code < _SYLLABLE + _SYLLABLES:
            vowel, final = divmod(code - _SYLLABLE, _FINALS)
            if final:
                pairs[code - final, _FINAL + final] = code
            else:
                initial, vowel = divmod(vowel, _VOWELS)
                pairs[_INITIAL + initial, _VOWEL + vowel] = code
        elif unicodedata.is_normalized("NFC", chr(code)):  # not excluded from composition
            first, second = unicodedata.decomposition(chr(code)).split()
            pairs[int(first, 16), int(second, 16)] = code
    return pairs


class _Composition:
    """Canonical composition, the algorithm of definition D117, in all places at once.

    A text falls apart into units that begin with a character that no other can absorb. In each
    unit one character after the other is tried; nearly all units are a single character and need
    no try, a Hangul syllable needs two.
    """

    def __init__(self):
        pairs = _compositions()
        keys = np.array([first * LIMIT + second for first, second in pairs], np.int64)
        order = np.argsort(keys)
        self._keys = keys[order]
        self._composites = np.array(list(pairs.values()), np.int32)[order]
        absorbed = np.zeros(LIMIT, np.int32)
        absorbed[[second for _, second in pairs]] = 1
        self._absorbed = codepoints.Table(absorbed)

    def _pair(self, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        """Composites of pairs, -1 where there is none."""
        key = tf.cast(first, tf.int64) * LIMIT + tf.cast(second, tf.int64)
        place = tf.minimum(tf.searchsorted(self._keys, key), len(self._keys) - 1)
        found = tf.gather(self._keys, place) == key
        return tf.where(found, tf.gather(self._composites, place), -1)

    def __call__(self, codes: tf.RaggedTensor, classes: codepoints.Table) -> tf.RaggedTensor:
        flat = codes.values
        begins = (classes(flat) == 0) & (self._absorbed(flat) == 0)
        begins |= codepoints.neighbours(codes, -1, -1) < 0
        start = tf.cast(tf.where(begins)[:, 0], tf.int32)
        end = tf.concat([start[1:], [tf.size(flat)]], axis=0)[: tf.size(start)]

        def going(start, end, *_):
            return tf.size(start) > 0

        def step(place, end, starter, above, flat):
            """Tries the character at ``place`` of each unit.

            ``starter`` is the place of the last starter, -1 if none; ``above`` the combining class
            of the last mark that stayed after it, -1 if none.
            """
            code = tf.gather(flat, place)
            order = classes(code)
            composite = self._pair(tf.gather(flat, tf.maximum(starter, 0)), code)
            composed = (starter >= 0) & (above < order) & (composite >= 0)
            # Sentinel -1 takes the absorbed character's place.
            flat = _put(flat, starter[composed], composite[composed])
            flat = _put(flat, place[composed], tf.fill([tf.size(place[composed])], -1))
            begins = ~composed & (order == 0)
            starter = tf.where(begins, place, starter)
            above = tf.where(begins, -1, tf.where(composed, above, order))
            going = place + 1 < end
            place, end, starter, above = (x[going] for x in (place + 1, end, starter, above))
            return place, end, starter, above, flat

        several = end - start > 1
        start, end = start[several], end[several]
        starter = tf.where(classes(tf.gather(flat, start)) == 0, start, -1)
        above = tf.where(starter < 0, classes(tf.gather(flat, start)), -1)
        some, fixed = tf.TensorShape([None]), flat.shape
        *_, flat = tf.while_loop(
            going, step, (start + 1, end, starter, above, flat), (some, some, some, some, fixed)
        )
        return codepoints.mask(codes.with_values(flat), flat >= 0)


def _put(values: tf.Tensor, places: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
    return tf.tensor_scatter_nd_update(values, places[:, None], new)
