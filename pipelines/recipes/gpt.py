"""GPT: Shakespeare's letters, and the prose of documentation."""

from __future__ import annotations

from ..recipe import Algorithm, Choice, Data, Recipe
from . import recipe


@recipe
def gpt_shakespeare_cpu() -> Recipe:
    """Shakespeare's letters by nanoGPT's smallest setting: 4 layers, 128 wide, 64 letters at once.

    2 CPU cores: not measured. To compare with: nanoGPT's validation loss of 1.88 after the same
    2,000 steps of 12 x 64 letters. Needs tiny_shakespeare in TFDS_DATA_DIR.

        epochal train gpt-shakespeare-cpu
    """
    return Recipe(
        name="gpt-shakespeare-cpu",
        data=Data(source="tfds:tiny_shakespeare", ops="characters", context=64, batch_size=12),
        model=Choice(name="gpt", width=128, layers=4, heads=4, context=64, dropout=0.0),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adamw", learning_rate=1e-3, beta_2=0.99),
            schedule=Choice(name="cosine", warmup_steps=100, final_fraction=0.1),
            steps=2_000,
            steps_per_epoch=500,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
    )


@recipe
def gpt_shakespeare() -> Recipe:
    """Shakespeare's letters by nanoGPT's setting for a GPU: 6 layers, 384 wide, 256 letters.

    Not measured: about 12 hours on 2 CPU cores. To compare with: nanoGPT's validation loss of 1.47
    after the same 5,000 steps. Needs tiny_shakespeare in TFDS_DATA_DIR.

        epochal train gpt-shakespeare
    """
    return Recipe(
        name="gpt-shakespeare",
        data=Data(source="tfds:tiny_shakespeare", ops="characters", context=256, batch_size=64),
        model=Choice(name="gpt", dropout=0.2),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adamw", learning_rate=1e-3, beta_2=0.99),
            schedule=Choice(name="cosine", warmup_steps=100, final_fraction=0.1),
            steps=5_000,
            steps_per_epoch=250,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
    )


@recipe
def gpt_docstrings() -> Recipe:
    """The prose of the installed libraries' documentation, in pieces of words.

    2 CPU cores: not measured. No download.

        epochal train gpt-docstrings
    """
    return Recipe(
        name="gpt-docstrings",
        data=Data(
            source="builtin:docstrings",
            task="language-model",
            ops="byte_bpe(4000)",
            context=64,
            batch_size=16,
            validation_fraction=0.05,
            test_fraction=0.05,
        ),
        model=Choice(name="gpt", width=128, layers=4, heads=4, context=64, dropout=0.1),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adamw", learning_rate=1e-3, beta_2=0.99),
            schedule=Choice(name="cosine", warmup_steps=100, final_fraction=0.1),
            steps=4_000,
            steps_per_epoch=500,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
    )
