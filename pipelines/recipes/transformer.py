"""The Transformer: dates, and English to French and Korean."""

from __future__ import annotations

from ..recipe import Algorithm, Choice, Data, Recipe
from . import recipe

_ADAM = {"beta_2": 0.98, "epsilon": 1e-9}  # Vaswani et al. 2017, section 5.3


@recipe
def transformer_dates() -> Recipe:
    """Human-readable dates to ISO, letter by letter.

    2 CPU cores, 3 minutes on one of them. Exact on 1,000 unseen dates, one seed: 99.5%.

        epochal train transformer-dates
    """
    return Recipe(
        name="transformer-dates",
        data=Data(
            source="builtin:dates",
            ops="characters",
            batch_size=64,
            validation_fraction=0.05,
            test_fraction=0.05,
            bucket_batches=20,
        ),
        model=Choice(name="transformer-small", width=64, hidden=256),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.002, **_ADAM),
            schedule=Choice(name="one-cycle"),
            epochs=8,
        ),
    )


@recipe
def transformer_en_fr() -> Recipe:
    """English to French paragraphs of LibreOffice's help; 1,003 pairs test.

    2 CPU cores, 40 minutes on a busy machine (66 minutes of processor time). Test, one seed: BLEU
    44.8 [43.1, 46.6], chrF 67.6, perplexity 3.9. The translation of the most similar training
    source has BLEU 29.3 [26.8, 31.7], chrF 47.1. Needs EPOCHAL_DATA_DIR.

        epochal train transformer-en-fr
    """
    return _help("transformer-en-fr", "pairs:@help-en-fr", test_fraction=0.038, epochs=15)


@recipe
def transformer_en_ko() -> Recipe:
    """English to Korean paragraphs of LibreOffice's help: half as many as of French.

    2 CPU cores: not measured; projected: 22 minutes on a quiet machine (25 epochs of 201 steps of
    0.23 s, and 3 minutes to translate validation and test). BLEU counts words between blanks, of
    which Korean has few that recur: chrF says more. The most similar training source's translation
    has BLEU 22.8, chrF 34.6. Needs EPOCHAL_DATA_DIR.

        epochal train transformer-en-ko
    """
    return _help("transformer-en-ko", "pairs:@help-en-ko", test_fraction=0.071, epochs=25)


def _help(name: str, source: str, test_fraction: float, epochs: int) -> Recipe:
    """The paper's loss and optimizer on 2 cores' worth of layers.

    For so few pairs a small vocabulary and more dropout than the paper's 0.1 are better (Sennrich,
    Zhang 2019: Revisiting low-resource neural machine translation).
    """
    return Recipe(
        name=name,
        data=Data(
            source=source,
            ops="nfkc|byte_bpe(4000)|max_tokens(96)",
            batch_size=64,
            validation_fraction=0.02,
            test_fraction=test_fraction,
            bucket_batches=50,
        ),
        model=Choice(
            name="transformer-small",
            width=256,
            layers=3,
            heads=4,
            hidden=1024,
            dropout=0.2,
            norm="pre",
        ),
        loss=Choice(name="cross-entropy", label_smoothing=0.1),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.001, **_ADAM),
            schedule=Choice(name="one-cycle"),
            epochs=epochs,
            clip_norm=1.0,
            precision="mixed_bfloat16",
        ),
    )
