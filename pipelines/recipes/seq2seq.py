"""Sequence to sequence with LSTMs: dates, words backwards, English to French."""

from __future__ import annotations

from ..recipe import Algorithm, Choice, Data, Recipe
from . import recipe


@recipe
def seq2seq_dates() -> Recipe:
    """Human-readable dates to ISO, letter by letter, with Bahdanau's attention.

    2 CPU cores, 3.5 minutes on one of them. Exact on 1,000 unseen dates, one seed: 99.8%.

        epochal train seq2seq-dates
    """
    return Recipe(
        name="seq2seq-dates",
        data=Data(
            source="builtin:dates",
            ops="characters",
            batch_size=64,
            validation_fraction=0.05,
            test_fraction=0.05,
            bucket_batches=20,
        ),
        model=Choice(name="seq2seq-bahdanau", units=128, embedding=32),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.003),
            schedule=Choice(name="one-cycle"),
            epochs=9,
            clip_norm=1.0,
        ),
    )


@recipe
def seq2seq_reverse() -> Recipe:
    """Words of up to 40 letters backwards, with Luong's attention; compare seq2seq-reverse-fixed.

    2 CPU cores, 2.5 minutes on one of them. Exact on the test, one seed: 100% of 1,000 words of
    every length.

        epochal train seq2seq-reverse
    """
    return _reverse("seq2seq-reverse", Choice(name="seq2seq-luong", reverse_source=False))


@recipe
def seq2seq_reverse_fixed() -> Recipe:
    """The same words through one vector of fixed size, as Sutskever et al.: long ones get lost.

    2 CPU cores, 2.5 minutes on one of them. Exact on the test, one seed: 40.8% of 1,000 words.

        epochal train seq2seq-reverse-fixed
    """
    return _reverse("seq2seq-reverse-fixed", Choice(name="seq2seq", reverse_source=False))


def _reverse(name: str, model: Choice) -> Recipe:
    # The source is read forwards: read backwards, this would be the task `copy`.
    return Recipe(
        name=name,
        data=Data(
            source="builtin:reverse/40",
            ops="characters",
            batch_size=64,
            validation_fraction=0.05,
            test_fraction=0.05,
            bucket_batches=20,
        ),
        model=Choice(**{**model.model_dump(), "layers": 1, "units": 128, "embedding": 32}),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.003),
            schedule=Choice(name="one-cycle"),
            epochs=10,
            clip_norm=1.0,
        ),
    )


@recipe
def seq2seq_en_fr() -> Recipe:
    """English to French paragraphs of LibreOffice's help, by an LSTM with Luong's attention.

    The pairs of transformer-en-fr. 2 CPU cores: not measured; projected: 26 minutes on a quiet
    machine (12 epochs of 389 steps of 0.29 s, and 3 minutes to translate validation and test). To
    beat is the translation of the most similar training source: BLEU 29.3, chrF 47.1. Needs
    EPOCHAL_DATA_DIR.

        epochal train seq2seq-en-fr
    """
    return Recipe(
        name="seq2seq-en-fr",
        data=Data(
            source="pairs:@help-en-fr",
            ops="nfkc|byte_bpe(4000)|max_tokens(96)",
            batch_size=64,
            validation_fraction=0.02,
            test_fraction=0.038,
            bucket_batches=50,
        ),
        model=Choice(name="seq2seq-luong", layers=1, units=384, embedding=256, dropout=0.2),
        loss=Choice(name="cross-entropy", label_smoothing=0.1),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.002),
            schedule=Choice(name="one-cycle"),
            epochs=12,
            clip_norm=1.0,
            precision="mixed_bfloat16",
        ),
    )
