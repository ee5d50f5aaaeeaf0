"""BERT: a Transformer's encoder that learns language by filling gaps, and then any task on text.

Devlin, Chang, Lee, Toutanova: BERT: Pre-training of deep bidirectional Transformers for language
understanding (2018). What was new: by predicting words that are hidden, every layer may look to
both sides, which a model that predicts the next word cannot; and one pre-trained network serves
every task with a single layer on top.

| name | layers | width | heads | encoder and pooler | with MLM and NSP heads |
|---|---|---|---|---|---|
| bert-tiny | 2 | 128 | 2 | 4,385,920 | 4,433,468 |
| bert-mini | 4 | 256 | 4 | 11,170,560 | 11,267,900 |
| bert-small | 4 | 512 | 8 | 28,763,648 | 29,058,876 |
| bert-medium | 8 | 512 | 8 | 41,373,184 | 41,668,412 |
| bert-base | 12 | 768 | 12 | 109,482,240 | 110,106,428 |
| bert-large | 24 | 1,024 | 16 | 335,141,888 | 336,226,108 |

with the 30,522 pieces of the uncased vocabulary. Base and large are the paper's, the others those
of Turc et al.: Well-read students learn better (2019).

| head | answers, float32 | with |
|---|---|---|
| "encoder" | {"hidden": [n, t, width], "pooled": [n, width]} | pooler |
| "mlm" | logits of the hidden words [n, t, vocabulary_size] | the embedding's matrix again |
| "pretraining" | {"mlm": as above, "nsp": [n, 2]}, nsp 0: the second follows | both |
| "classification" | logits [n, num_classes] | pooler, dropout |
| "tokens" | logits of every token [n, t, num_classes] | dropout |
| "embedding" | [n, width], of length 1: texts as points | the mean over real tokens |

The pooler is tanh(dense(first token)), which belongs to the paper's code alone.

Deviations from the paper:

1. Section 3.1 predicts the 15% of hidden words; here every position is answered, unless ``inputs``
   has "positions": the loss is to be of the hidden ones.
2. Its code starts weights truncated normal of deviation 0.02, and so does this; biases at 0.
3. "embedding" is not the paper's: Reimers, Gurevych: Sentence-BERT (2019), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import keras

from . import finetune
from .blocks import ACTIVATIONS, TransformerBlock
from .embeddings import LearnedPositions, SegmentEmbedding, TokenEmbedding
from .layers import Dropout, LayerNormalization, seeds
from .pooling import AtPositions, MeanPooling, Pooler

HEADS = ("encoder", "mlm", "pretraining", "classification", "tokens", "embedding")
CLASSIFIERS = ("classification", "tokens")
INPUTS = ("ids", "segments", "positions")
_POOLED = ("encoder", "pretraining", "classification")


def count(
    vocabulary_size: int,
    width: int = 768,
    layers: int = 12,
    hidden: int | None = None,
    context: int = 512,
    segments: int = 2,
    head: str = "encoder",
    num_classes: int = 0,
) -> int:
    """Trainable weights of a :class:`BERT` with these options, without building it."""
    hidden = hidden or 4 * width
    square, norm = width**2 + width, 2 * width
    block = 4 * square + 2 * width * hidden + hidden + width + 2 * norm
    total = (vocabulary_size + context + segments) * width + norm + layers * block
    total += square if head in _POOLED else 0
    total += square + norm + vocabulary_size if head in ("mlm", "pretraining") else 0
    outputs = {"pretraining": 2, "classification": num_classes, "tokens": num_classes}
    return total + (width + 1) * outputs.get(head, 0)


@keras.saving.register_keras_serializable("epochal")
class BERT(keras.Model):
    """Ids [n, t] int32, padded on the right, to what the head answers; see the module.

    Args:
        vocabulary_size: ids.
        width: of all vectors.
        layers: blocks.
        heads: of each attention; a divisor of ``width``.
        hidden: between the two dense layers of a block; None: 4 times the width.
        context: the most tokens of a text.
        segments: kinds of segments: the two sentences of a pair.
        head: one of the table's; None: "classification" where ``num_classes`` is given, else
            "encoder".
        num_classes: of "classification" and "tokens".
        inputs: what goes in. ("ids",) is a plain array, and all of it segment 0; otherwise a dict,
            with "segments" int32 [n, t], and for the heads "mlm" and "pretraining" "positions"
            int32 [n, m]: where words are hidden, filled up with 0. Logits are then [n, m,
            vocabulary_size], and the others, which cost more than a small encoder, are left out.
        dropout: share of the embeddings, of each sub-layer's outputs, and of what goes into a
            classifier, set to zero in training.
        attention_dropout: the same of the attention weights; None: as ``dropout``.
        activation: "gelu", "gelu_tanh" or "relu".
        epsilon: of the layer normalisation.
        pad_id: the id that is padding: seen by no token, and masked out of losses.
        length: tokens of every example, for fixed shapes; None takes any up to ``context``.
        weights: what to start from, see :mod:`.language_weights`.
        freeze: don't train the layers up to and with this one, e.g. "block_2", or, of the
            embeddings with their normalisation alone, "embedding_norm".
        seed: of weights and dropout; None draws them from ``keras.utils.set_random_seed``.

    Raises:
        ValueError: an option out of range, one that its head does not have, or weights that do not
            fit.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int | None = None,
        context: int = 512,
        segments: int = 2,
        head: str | None = None,
        num_classes: int | None = None,
        inputs: Sequence[str] = ("ids",),
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        activation: str = "gelu",
        epsilon: float = 1e-12,
        pad_id: int = 0,
        length: int | None = None,
        weights: str | None = None,
        freeze: str | None = None,
        seed: int | None = None,
        name: str = "bert",
        dtype: Any = None,
    ):
        hidden = hidden or 4 * width
        head = head or ("encoder" if num_classes is None else "classification")
        sizes = (vocabulary_size, width, layers, heads, hidden, context, segments)
        _check(sizes, head, num_classes, inputs, pad_id)
        dtype = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        draw = seeds(seed)
        parts = _Parts(width, dropout, activation, epsilon, dtype, draw)
        x = {
            name: keras.Input((None if name == "positions" else length,), dtype="int32", name=name)
            for name in inputs
        }
        embedding = TokenEmbedding(
            vocabulary_size,
            width,
            initializer=parts.initializer(),
            pad_id=pad_id,
            use_bias=head in ("mlm", "pretraining"),
            dtype=dtype,
            name="embedding",
        )
        y = SegmentEmbedding(segments, parts.initializer(), dtype=dtype, name="segment_embedding")(
            embedding(x["ids"]), x.get("segments")
        )
        y = LearnedPositions(context, parts.initializer(), dtype=dtype, name="position_embedding")(
            y
        )
        y = parts.drop("embedding_dropout")(parts.norm("embedding_norm")(y))
        for i in range(layers):
            y = TransformerBlock(
                heads,
                hidden,
                activation=activation,
                attention_bias=True,
                dropout=dropout,
                attention_dropout=dropout if attention_dropout is None else attention_dropout,
                epsilon=epsilon,
                initializer=parts.initializer(),
                seed=draw(),
                dtype=dtype,
                name=f"block_{i + 1}",
            )(y)
        outputs = parts.answer(head, num_classes, embedding, y, x.get("positions"))
        super().__init__(x["ids"] if list(x) == ["ids"] else x, outputs, name=name)
        self._options = {
            "vocabulary_size": vocabulary_size,
            "width": width,
            "layers": layers,
            "heads": heads,
            "hidden": hidden,
            "context": context,
            "segments": segments,
            "head": head,
            "num_classes": num_classes if head in CLASSIFIERS else None,
            "inputs": list(inputs),
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "activation": activation,
            "epsilon": epsilon,
            "pad_id": pad_id,
            "length": length,
            "freeze": freeze,
            "seed": seed,
            "name": name,
            "dtype": keras.dtype_policies.serialize(dtype),
        }
        if weights is not None:  # not among the options: a saved model has its own
            from .language_weights import take_encoder

            take_encoder(self, weights)
        if freeze is not None:
            finetune.freeze(self, freeze)

    def get_config(self):
        return dict(self._options)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class _Parts:
    """Makes the layers of one network, each with a seed of its own."""

    def __init__(self, width, dropout, activation, epsilon, dtype, draw):
        self.width, self.dropout, self.activation = width, dropout, activation
        self.epsilon, self.dtype, self.draw = epsilon, dtype, draw

    def initializer(self):
        return keras.initializers.TruncatedNormal(0.0, 0.02, seed=self.draw())

    def norm(self, name):
        return LayerNormalization(epsilon=self.epsilon, dtype=self.dtype, name=name)

    def drop(self, name):
        return Dropout(self.dropout, seed=self.draw(), dtype=self.dtype, name=name)

    def dense(self, units, name, activation=None, dtype="float32"):
        return keras.layers.Dense(
            units, activation, kernel_initializer=self.initializer(), dtype=dtype, name=name
        )

    def answer(self, head, num_classes, embedding, x, positions):
        """The outputs of a head for the encoder's x."""
        if head == "embedding":
            return MeanPooling(dtype=self.dtype, name="outputs")(x)
        if head == "tokens":
            return self.dense(num_classes, "outputs")(self.drop("outputs_dropout")(x))
        if head == "mlm":
            return self.words(embedding, x, positions)
        pooled = Pooler(self.initializer(), dtype=self.dtype, name="pooler")(x)
        if head == "classification":
            return self.dense(num_classes, "outputs")(self.drop("outputs_dropout")(pooled))
        if head == "pretraining":
            nsp = self.dense(2, "nsp")(pooled)
            return {"mlm": self.words(embedding, x, positions), "nsp": nsp}
        return {name: _as_float32(y, name) for name, y in (("hidden", x), ("pooled", pooled))}

    def words(self, embedding, x, positions):
        """Logits of words: a dense layer, normalised, then the embedding's matrix and biases."""
        if positions is not None:
            x = AtPositions(dtype=self.dtype, name="at_positions")((x, positions))
        activation = ACTIVATIONS[self.activation]
        x = self.dense(self.width, "mlm_dense", activation, self.dtype)(x)
        return embedding(self.norm("mlm_norm")(x), reverse=True)


def _as_float32(x, name):
    return keras.layers.Activation("linear", dtype="float32", name=name)(x)


def _check(sizes, head, num_classes, inputs, pad_id):
    if min(sizes) < 1 or not 0 <= pad_id < sizes[0]:
        raise ValueError(
            "vocabulary_size, width, layers, heads, hidden, context and segments must be at least "
            f"1, and pad_id one of the ids; got {', '.join(map(repr, sizes))} and {pad_id!r}."
        )
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}; got {head!r}.")
    has_classes = head in CLASSIFIERS
    if has_classes and (num_classes or 0) < 1:
        raise ValueError(f"num_classes must be at least 1 for {head}; got {num_classes!r}.")
    if not has_classes and num_classes not in (None, sizes[0]):
        raise ValueError(f"The head {head!r} has no classes; got num_classes={num_classes!r}.")
    known = INPUTS if head in ("mlm", "pretraining") else INPUTS[:2]
    if "ids" not in inputs or not set(inputs) <= set(known):
        raise ValueError(
            f"inputs must be ids and more of {', '.join(known)} for {head}; got {tuple(inputs)!r}."
        )


bert_tiny = partial(BERT, width=128, layers=2, heads=2)
bert_mini = partial(BERT, width=256, layers=4, heads=4)
bert_small = partial(BERT, width=512, layers=4, heads=8)
bert_medium = partial(BERT, width=512, layers=8, heads=8)
bert_base = partial(BERT, width=768, layers=12, heads=12)
bert_large = partial(BERT, width=1024, layers=24, heads=16)
