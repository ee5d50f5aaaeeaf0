"""GPT: Shakespeare's letters, the prose of documentation, and published weights on one's texts."""

from __future__ import annotations

from ..recipe import Algorithm, Choice, Data, Recipe
from . import recipe


@recipe
def gpt_shakespeare_cpu() -> Recipe:
    """Shakespeare's letters by nanoGPT's smallest setting: 4 layers, 128 wide, 64 letters at once.

    One of 2 CPU cores, 3 minutes: validation loss 1.738, test 1.809 (one seed). To compare with:
    nanoGPT's validation loss of 1.88 after the same 2,000 steps of 12 x 64 letters; its validation
    text is this one and the test text together. The learning rate is three times nanoGPT's, chosen
    on the validation text among 1e-3 (1.899), 2e-3 (1.801) and 3e-3. Needs tiny_shakespeare in
    TFDS_DATA_DIR.

        epochal train gpt-shakespeare-cpu
    """
    return Recipe(
        name="gpt-shakespeare-cpu",
        data=Data(source="tfds:tiny_shakespeare", ops="characters", context=64, batch_size=12),
        model=Choice(name="gpt", width=128, layers=4, heads=4, context=64, dropout=0.0),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adamw", learning_rate=3e-3, beta_2=0.99),
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

    2 CPU cores: not measured; projected: 8 minutes. No download. Other texts, of any size, are
    shards of documents with empty lines between them; more of them than `--data.cache-mib` are
    tokenized once, in files under EPOCHAL_CACHE_DIR:

        epochal train gpt-docstrings
        epochal train gpt-docstrings --data.source 'text:shards/*.txt.gz'
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


@recipe
def gpt2_finetune() -> Recipe:
    """GPT-2 small goes on learning, from its published weights, on Shakespeare or a text of yours.

    Not measured; projected: 20 minutes on 2 CPU cores, 6 GB of memory. Nothing is downloaded: the
    weights are a directory of yours, in Hugging Face's format (config.json, model.safetensors,
    vocab.json, merges.txt). Give it twice, for the weights and for the tokenizer, or put it here as
    `gpt2`:

        epochal train gpt2-finetune --model.weights DIR --data.ops "tokenizer_of('DIR')"
        epochal train gpt2-finetune --data.source text:FILE.txt        (with DIR as above)

    For GPT-2 medium add `--model.name gpt2-medium --model.weights DIR`; for other sizes
    `--model.width` and so on, as config.json says. The vocabulary has no padding: its end of text
    fills rows up. Without data.source needs tiny_shakespeare in TFDS_DATA_DIR.
    """
    return Recipe(
        name="gpt2-finetune",
        data=Data(
            source="tfds:tiny_shakespeare",
            task="language-model",
            ops="tokenizer_of('gpt2')",
            context=256,
            batch_size=4,
        ),
        model=Choice(name="gpt2-small", weights="gpt2", dropout=0.1),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adamw", learning_rate=3e-5, beta_2=0.95),
            schedule=Choice(name="cosine", warmup_steps=10, final_fraction=0.1),
            steps=150,
            steps_per_epoch=50,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
    )
