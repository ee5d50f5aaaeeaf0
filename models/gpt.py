"""GPT: a Transformer's decoder alone, which learns language by telling the next token.

GPT-1. Radford et al.: Improving language understanding by generative pre-training (2018). What was
new: one network learns from plain text first, and is then fine-tuned for each task.
GPT-2. Radford et al.: Language models are unsupervised multitask learners (2019). What was new: no
fine-tuning: a task is a prompt, and size makes the network better at it.
GPT-3. Brown et al.: Language models are few-shot learners (2020). What was new: a hundred times the
size; examples in the prompt take the place of training.

| name | layers | width | heads | context | vocabulary | trainable weights |
|---|---|---|---|---|---|---|
| gpt | 6 | 384 | 6 | 256 | 65 | 10,770,816 |
| gpt1 | 12 | 768 | 12 | 512 | 40,478 | 116,534,784 |
| gpt2-small | 12 | 768 | 12 | 1,024 | 50,257 | 124,439,808 |
| gpt2-medium | 24 | 1,024 | 16 | 1,024 | 50,257 | 354,823,168 |
| gpt2-large | 36 | 1,280 | 20 | 1,024 | 50,257 | 774,030,080 |
| gpt2-xl | 48 | 1,600 | 25 | 1,024 | 50,257 | 1,557,611,200 |
| gpt3-125m | 12 | 768 | 12 | 2,048 | 50,257 | 125,226,240 |
| gpt3-350m | 24 | 1,024 | 16 | 2,048 | 50,257 | 355,871,744 |
| gpt3-760m | 24 | 1,536 | 16 | 2,048 | 50,257 | 760,300,032 |
| gpt3-1.3b | 24 | 2,048 | 16 | 2,048 | 50,257 | 1,315,723,264 |
| gpt3-2.7b | 32 | 2,560 | 32 | 2,048 | 50,257 | 2,651,553,280 |
| gpt3-6.7b | 32 | 4,096 | 32 | 2,048 | 50,257 | 6,658,404,352 |
| gpt3-13b | 40 | 5,120 | 40 | 2,048 | 50,257 | 12,853,386,240 |
| gpt3-175b | 96 | 12,288 | 96 | 2,048 | 50,257 | 174,604,259,328 |

``gpt`` is GPT-2's network in any small size; as it stands, in those of nanoGPT for Shakespeare's
letters, whose script leaves out all biases (25,728 of the weights). The papers name GPT-2 small and
medium 117M and 345M: their authors have since corrected that.

Deviations from the papers:

1. GPT-3's table 2.1 contradicts itself twice: at 1.3B, 24 heads of 128 are not 2,048 wide (here 16
   heads), and at 13B 40 heads of 128 are not 5,140 wide (here 5,120).
2. GPT-3, section 2.1, alternates dense with locally banded sparse attention, without saying how
   wide the band is: here all is dense, unless ``sparse_window`` gives the band.
3. GPT-1's weights start normal of deviation 0.02; so do GPT-2's and GPT-3's here, but for 0.01 of
   positions, as in the authors' code. GPT-2, section 2.3: the kernels whose outputs are added to
   the residual stream start smaller, by 1 / sqrt(2 layers).
4. Dropout is 0.1 everywhere, as GPT-1's section 4.1 says; GPT-2 and GPT-3 don't say.
5. GELU is approximated with tanh in all of them, as in the authors' code.
6. Id 0 is padding and gets no loss, unless ``pad_id`` is another: the published vocabularies have
   no padding, and their end of text takes its place. It is padding on the right of a row only;
   between two texts it is a token.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import decoding, finetune
from .blocks import TransformerBlock
from .embeddings import LearnedPositions, TokenEmbedding
from .gpt_steps import Steps
from .layers import Dropout, LayerNormalization, seeds


def count(
    vocabulary_size: int,
    width: int = 768,
    layers: int = 12,
    hidden: int | None = None,
    context: int = 1024,
    norm: str = "pre",
) -> int:
    """Trainable weights of a :class:`GPT` with these options, without building it."""
    hidden = hidden or 4 * width
    attention = 4 * width**2 + 4 * width
    dense = 2 * width * hidden + hidden + width
    normalise = 2 * width
    last = normalise if norm == "pre" else 0
    block = attention + dense + 2 * normalise
    return (vocabulary_size + context) * width + layers * block + last


@keras.saving.register_keras_serializable("epochal")
class GPT(keras.Model):
    """Ids [n, t] int32 to float32 logits [n, t, vocabulary_size] of each next id.

    Padding stands on the right. The outputs carry the mask of the ids, with which Keras takes
    losses and metrics over real tokens.

    Args:
        vocabulary_size: ids, with one matrix for what goes in and for the logits.
        width: of all vectors.
        layers: blocks.
        heads: of each attention; a divisor of ``width``.
        hidden: between the two dense layers of a block; None: 4 times the width.
        context: the most tokens, prompt and answer together.
        dropout: share of the embeddings and of each sub-layer's outputs set to zero in training.
        attention_dropout: the same of the attention weights; None: as ``dropout``.
        norm: "pre" (GPT-2, GPT-3) or "post" (GPT-1).
        activation: "gelu_tanh", "gelu" or "relu".
        epsilon: of the layer normalisation.
        sparse_window: every second block's positions see so many only, the nearest; None: all.
        pad_id: the id that is padding.
        weights: what to start from, see :mod:`.language_weights`.
        freeze: don't train the layers up to and with this one, e.g. "block_2". The matrix of the
            embedding, which is that of the logits too, is among them.
        length: tokens of every example, for fixed shapes; None takes any up to ``context``.
        seed: of weights and dropout; None draws them from ``keras.utils.set_random_seed``.

    Raises:
        ValueError: an option out of range, a model that does not fit into this machine's memory,
            or weights that do not fit into the model.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int | None = None,
        context: int = 1024,
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        norm: str = "pre",
        activation: str = "gelu_tanh",
        epsilon: float = 1e-5,
        sparse_window: int | None = None,
        pad_id: int = 0,
        length: int | None = None,
        weights: str | None = None,
        freeze: str | None = None,
        seed: int | None = None,
        name: str = "gpt",
        dtype: Any = None,
    ):
        hidden = hidden or 4 * width
        if min(vocabulary_size, width, layers, heads, hidden, context) < 1:
            raise ValueError(
                "vocabulary_size, width, layers, heads, hidden and context must be at least 1; got "
                f"{vocabulary_size!r}, {width!r}, {layers!r}, {heads!r}, {hidden!r}, {context!r}."
            )
        if not 0 <= pad_id < vocabulary_size:
            raise ValueError(f"pad_id must be one of {vocabulary_size} ids; got {pad_id!r}.")
        _refuse_the_too_large(count(vocabulary_size, width, layers, hidden, context, norm))
        dtype = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        draw = seeds(seed)

        def normal(stddev):
            return keras.initializers.RandomNormal(0.0, stddev, seed=draw())

        pre = norm == "pre"
        blocks = [
            TransformerBlock(
                heads,
                hidden,
                norm=norm,
                activation=activation,
                causal=True,
                window=sparse_window if i % 2 else None,
                attention_bias=True,
                dropout=dropout,
                attention_dropout=dropout if attention_dropout is None else attention_dropout,
                epsilon=epsilon,
                initializer=normal(0.02),
                residual_initializer=normal(0.02 * (2 * layers) ** -0.5) if pre else None,
                seed=draw(),
                dtype=dtype,
                name=f"block_{i + 1}",
            )
            for i in range(layers)
        ]
        parts = {
            "embedding": TokenEmbedding(
                vocabulary_size,
                width,
                initializer=normal(0.02),
                pad_id=pad_id,
                dtype=dtype,
                name="embedding",
            ),
            "positions": LearnedPositions(
                context, normal(0.01 if pre else 0.02), dtype=dtype, name="positions"
            ),
            "dropout": Dropout(dropout, seed=draw(), dtype=dtype, name="dropout"),
            "blocks": blocks,
            "norm": (
                LayerNormalization(epsilon=epsilon, dtype=dtype, name="norm")
                if pre
                else keras.layers.Identity(dtype=dtype, name="norm")
            ),
        }
        ids = keras.Input((length,), dtype="int32", name="ids")
        super().__init__(ids, _logits(parts, _hidden(parts, ids)[0]), name=name)
        self.parts = parts
        self._functions: dict = {}
        self._options = {
            "vocabulary_size": vocabulary_size,
            "width": width,
            "layers": layers,
            "heads": heads,
            "hidden": hidden,
            "context": context,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "norm": norm,
            "activation": activation,
            "epsilon": epsilon,
            "sparse_window": sparse_window,
            "pad_id": pad_id,
            "length": length,
            "freeze": freeze,
            "seed": seed,
            "name": name,
            "dtype": keras.dtype_policies.serialize(dtype),
        }
        if weights is not None:  # not among the options: a saved model has its own
            from .language_weights import take_decoder

            take_decoder(self, weights)
        if freeze is not None:
            finetune.freeze(self, freeze)

    def get_config(self):
        return dict(self._options)

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def generator(
        self,
        length: int,
        end_id: int | None = None,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        cache: bool = True,
        pieces: np.ndarray | None = None,
    ) -> tf.types.experimental.GenericFunction:
        """A graph function that continues prompts by at most ``length`` tokens.

        A row ends where prompt and answer fill the context. Inputs and outputs are those of
        :func:`.decoding.generator`, the other arguments those of :func:`.decoding.generate`.
        With ``cache`` the keys and values of earlier tokens are kept, and what all prompts have is
        read at once; False computes all again for every token, to the same effect (for comparison).
        """
        parts, options = self.parts, self._options
        heads, size = options["heads"], options["width"] // options["heads"]

        def first_state(rows):
            if not cache:
                return tf.zeros([rows, 0, 1], tf.int32)  # the tokens; grows along its second axis
            empty = tf.zeros([rows, heads, 0, size], self.compute_dtype)
            return [(empty, empty) for _ in parts["blocks"]]

        def ready(ids, caches):
            steps = Steps(parts, options, self.compute_dtype)
            return steps, steps.begin(_hidden(parts, ids, caches)[1])

        def step_without(new, position, tokens):
            tokens = tf.concat([tokens, new[:, None, None]], axis=1)
            return _logits(parts, _hidden(parts, tokens[..., 0])[0][:, -1:])[:, 0], tokens

        return decoding.generator(
            step_without,
            first_state,
            length,
            end_id,
            ready=ready if cache else None,
            context=options["context"],
            pad_id=options["pad_id"],
            pieces=pieces,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
        )

    def generate(
        self,
        prompt,
        length: int,
        temperature: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        end_id: int | None = None,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        pieces: np.ndarray | None = None,
    ) -> dict:
        """Continues prompts [n, p] by ``length`` tokens: {"ids": [n, length], "score": [n]}.

        Prompts are padded on the right. Rows draw from streams of their own, seeded with ``seed``,
        ``seed + 1``, ... A row ends too where its text holds one of the strings ``stop``, which is
        decided on the text, not on tokens: ``pieces`` are the bytes [v] that each token adds to it,
        a tokenizer's attribute. With them comes "text" [n], without the stop string.

        Raises:
            ValueError: prompt and answer are longer than the context, ids are not of this
                vocabulary, or a setting is out of range.
        """
        options = self._options
        prompt = tf.cast(prompt, tf.int32)
        longest = int(tf.reduce_max(decoding.lengths(prompt, options["pad_id"])))
        room = options["context"] - longest
        if length < 1 or length > room:
            fewer = f", or ask for 1 to {room} tokens" if room > 0 else ""
            raise ValueError(
                f"A prompt of {longest} tokens and {length} new ones don't fit into the context of "
                f"{options['context']}. Shorten the prompt{fewer}."
            )
        if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or repetition_penalty <= 0:
            raise ValueError(
                "temperature and top_k must not be negative, top_p in (0, 1] and "
                f"repetition_penalty above 0; got {temperature!r}, {top_k!r}, {top_p!r}, "
                f"{repetition_penalty!r}."
            )
        self._check_ids(prompt)
        if isinstance(stop, str):
            raise ValueError(f"stop has to be a sequence of strings; got {stop!r} alone.")
        if pieces is None and stop:
            raise ValueError(
                "Stop strings are found in the text: give pieces, what each token adds to it, e.g. "
                "pieces=tokenizer.pieces."
            )
        settings = (length, temperature, top_k, seed)
        key = (length, end_id, top_p, repetition_penalty)
        if pieces is not None:
            settings += (top_p, repetition_penalty, stop)
            key = (length, end_id, tuple(pieces))
        if key not in self._functions:
            self._functions[key] = self.generator(
                length, end_id, top_p, repetition_penalty, pieces=pieces
            )
        return decoding.continued(self._functions[key], prompt, *settings)

    def score(self, ids) -> dict:
        """How likely texts are: {"score": [n], "tokens": [n]} of ids [n, t].

        The score is the log-probability (nats) of all tokens but the first, each given those before
        it, and tokens is their number. Padding on the right counts for nothing.

        Raises ValueError for ids that are not of this vocabulary.
        """
        ids = tf.cast(ids, tf.int32)
        self._check_ids(ids)
        if "score" not in self._functions:
            self._functions["score"] = tf.function(self._score, reduce_retracing=True)
        return self._functions["score"](ids)

    def _score(self, ids):
        following = ids[:, 1:]
        logits = _logits(self.parts, _hidden(self.parts, ids[:, :-1])[0])
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(following, logits)
        tokens = tf.maximum(decoding.lengths(ids, self._options["pad_id"]) - 1, 0)
        real = tf.sequence_mask(tokens, tf.shape(following)[1], loss.dtype)
        return {"score": -tf.reduce_sum(loss * real, axis=1), "tokens": tokens}

    def _check_ids(self, ids):
        low, high = int(tf.reduce_min(ids)), int(tf.reduce_max(ids))
        if low < 0 or high >= self._options["vocabulary_size"]:
            raise ValueError(
                f"The ids {low} to {high} are not all of this model's vocabulary, 0 to "
                f"{self._options['vocabulary_size'] - 1}: they come from another tokenizer."
            )


def _hidden(parts, ids, caches=None):
    """Ids [n, t] -> (vectors [n, t, width], caches), one a block where empty ones are given."""
    x = parts["dropout"](parts["positions"](parts["embedding"](ids)))
    new = []
    for i, block in enumerate(parts["blocks"]):
        if caches is None:
            x = block(x)
        else:
            x, cache = block(x, cache=caches[i])
            new.append(cache)
    return x, new


def _logits(parts, x):
    return parts["embedding"](parts["norm"](x), reverse=True)


def _refuse_the_too_large(weights: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * weights > memory:
        raise ValueError(
            f"The model has {weights:,} weights, in float32 {4 * weights / 1e9:,.0f} GB; this "
            f"machine's memory is {memory / 1e9:,.0f} GB. epochal.models.gpt.count counts without "
            "building."
        )


gpt = partial(GPT, width=384, layers=6, heads=6, context=256, dropout=0.2)
gpt1 = partial(GPT, width=768, layers=12, heads=12, context=512, norm="post")
gpt2_small = partial(GPT, width=768, layers=12, heads=12)
gpt2_medium = partial(GPT, width=1024, layers=24, heads=16)
gpt2_large = partial(GPT, width=1280, layers=36, heads=20)
gpt2_xl = partial(GPT, width=1600, layers=48, heads=25)
_gpt3 = partial(GPT, context=2048)
gpt3_125m = partial(_gpt3, width=768, layers=12, heads=12)
gpt3_350m = partial(_gpt3, width=1024, layers=24, heads=16)
gpt3_760m = partial(_gpt3, width=1536, layers=24, heads=16)
gpt3_1_3b = partial(_gpt3, width=2048, layers=24, heads=16)
gpt3_2_7b = partial(_gpt3, width=2560, layers=32, heads=32)
gpt3_6_7b = partial(_gpt3, width=4096, layers=32, heads=32)
gpt3_13b = partial(_gpt3, width=5120, layers=40, heads=40)
gpt3_175b = partial(_gpt3, width=12288, layers=96, heads=96)
