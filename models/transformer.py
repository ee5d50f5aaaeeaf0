"""The Transformer: sequence to sequence by attention alone.

Vaswani et al.: Attention is all you need (2017). What was new: no recurrence. Each layer lets every
position look at every other one, so that a training step computes all positions at once, and any
two words are one step apart however far they stand from each other.

The encoder reads the source with blocks of self-attention and two dense layers; the decoder's
blocks see their own past only, and attend to the encoder's output in between.

| name | layers | width | hidden | heads | dropout | trainable weights, V = 37,000 |
|---|---|---|---|---|---|---|
| transformer-small | 2 + 2 | 128 | 512 | 4 | 0.1 | 5,658,624 |
| transformer-base | 6 + 6 | 512 | 2,048 | 8 | 0.1 | 63,045,632 |
| transformer-big | 6 + 6 | 1,024 | 4,096 | 16 | 0.3 | 214,171,648 |

``transformer-small`` is ours, for two CPU cores. With biases in attention (``attention_bias``) base
and big have 63,082,496 and 214,245,376. The paper's table 3 says 65 and 213 million: no vocabulary
of about 37,000 gives both.

Trained with Adam (beta2 0.98, epsilon 1e-9), the schedule ``inverse-sqrt(d_model=512)`` and
``CrossEntropy(label_smoothing=0.1)``. Padding is no target: the outputs carry a mask, with which
Keras takes the mean over real tokens.

Deviations from the paper:

1. Section 3.4 does not say how weights start: here the kernels as in Glorot, Bengio (2010),
   uniform, and the embeddings normal of variance 1 / width, as in the authors' code.
2. Section 3.2.2: whether projections have biases is not said; here not, unless `attention_bias`.
3. Section 5.4: dropout after each sub-layer and on the sums of embeddings and positions, as the
   text says. The authors' code also drops attention weights and hidden units.
4. Layer normalisation's epsilon is 1e-6 (not in the paper; as in the authors' code).
5. `norm="pre"` normalises before each sub-layer and once at the end, as later models do.
6. Section 6.1: beam search (4 beams, alpha 0.6, at most 50 tokens more than the source) takes one
   set of weights; the paper averages the last 5 or 20 checkpoints.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import tensorflow as tf

from . import beam_search
from .blocks import TransformerBlock
from .embeddings import SinusoidalPositions, TokenEmbedding
from .layers import Dropout, LayerNormalization, seeds


def count(
    vocabulary_size: int,
    width: int = 512,
    layers: int = 6,
    hidden: int = 2048,
    norm: str = "post",
    attention_bias: bool = False,
) -> int:
    """Trainable weights of a :class:`Transformer` with these options, without building it."""
    attention = 4 * width**2 + (4 * width if attention_bias else 0)
    dense = 2 * width * hidden + hidden + width
    normalise = 2 * width
    encoder = attention + dense + 2 * normalise
    decoder = 2 * attention + dense + 3 * normalise
    last = 2 * normalise if norm == "pre" else 0
    return vocabulary_size * width + layers * (encoder + decoder) + last


@keras.saving.register_keras_serializable("epochal")
class Transformer(keras.Model):
    """Source and target ids to logits; ``translate`` decodes.

    Inputs {"source": [n, s], "target": [n, t]}, int32 ids padded with 0 on the right; the target
    begins with ``start_id`` and is what the decoder has seen before each answer. Outputs are
    float32 logits [n, t, vocabulary_size] of the tokens that come next: of the target without its
    start, with ``end_id`` at its end.

    Args:
        vocabulary_size: ids of both languages, with one matrix for source, target and logits.
        width: of all vectors ("d_model").
        layers: blocks of the encoder, and of the decoder.
        heads: of each attention; a divisor of ``width``.
        hidden: between the two dense layers of a block ("d_ff").
        dropout: see deviation 3.
        norm: "post" or "pre".
        activation: "relu", "gelu" or "gelu_tanh".
        attention_bias: whether attention's projections have biases.
        length: tokens of every source and target, for fixed shapes; None takes any.
        start_id: begins each target.
        end_id: ends each target.
        seed: of weights and dropout; None draws them from ``keras.utils.set_random_seed``.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int = 512,
        layers: int = 6,
        heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.1,
        norm: str = "post",
        activation: str = "relu",
        attention_bias: bool = False,
        length: int | None = None,
        start_id: int = 1,
        end_id: int = 2,
        seed: int | None = None,
        name: str = "transformer",
        dtype: Any = None,
    ):
        if min(width, layers, heads, hidden) < 1 or vocabulary_size <= max(start_id, end_id):
            raise ValueError(
                "width, layers, heads and hidden must be at least 1, and vocabulary_size above "
                f"start_id and end_id; got {width!r}, {layers!r}, {heads!r}, {hidden!r}, "
                f"{vocabulary_size!r}, {start_id!r}, {end_id!r}."
            )
        dtype = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        draw = seeds(seed)

        def block(name, **options):
            return TransformerBlock(
                heads,
                hidden,
                norm=norm,
                activation=activation,
                attention_bias=attention_bias,
                dropout=dropout,
                seed=draw(),
                dtype=dtype,
                name=name,
                **options,
            )

        def last_norm(name):
            kind = LayerNormalization if norm == "pre" else keras.layers.Identity
            options = {"epsilon": 1e-6} if norm == "pre" else {}
            return kind(**options, dtype=dtype, name=name)

        parts = {
            "embedding": TokenEmbedding(
                vocabulary_size,
                width,
                scale=width**0.5,
                initializer=keras.initializers.RandomNormal(0.0, width**-0.5, seed=draw()),
                dtype=dtype,
                name="embedding",
            ),
            "positions": SinusoidalPositions(dtype=dtype, name="positions"),
            "source_dropout": Dropout(dropout, seed=draw(), dtype=dtype, name="source_dropout"),
            "target_dropout": Dropout(dropout, seed=draw(), dtype=dtype, name="target_dropout"),
            "encoder": [block(f"encoder_{i + 1}") for i in range(layers)],
            "encoder_norm": last_norm("encoder_norm"),
            "decoder": [block(f"decoder_{i + 1}", causal=True, cross=True) for i in range(layers)],
            "decoder_norm": last_norm("decoder_norm"),
        }
        source = keras.Input((length,), dtype="int32", name="source")
        target = keras.Input((length,), dtype="int32", name="target")
        logits = _decode(parts, target, memory=_encode(parts, source))
        super().__init__({"source": source, "target": target}, logits, name=name)
        self.parts = parts
        self._translators: dict = {}
        self._options = {
            "vocabulary_size": vocabulary_size,
            "width": width,
            "layers": layers,
            "heads": heads,
            "hidden": hidden,
            "dropout": dropout,
            "norm": norm,
            "activation": activation,
            "attention_bias": attention_bias,
            "length": length,
            "start_id": start_id,
            "end_id": end_id,
            "seed": seed,
            "name": name,
            "dtype": keras.dtype_policies.serialize(dtype),
        }

    def get_config(self):
        return dict(self._options)

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def translator(
        self, beam: int = 4, alpha: float = 0.6, length: int = 128, cache: bool = True
    ) -> tf.types.experimental.GenericFunction:
        """A graph function from source ids [n, s] to :func:`.beam_search.translate`'s answers.

        Args:
            beam: prefixes in the search; 1 takes the likeliest token each time.
            alpha: of the length penalty, see :func:`.beam_search.length_penalty`.
            length: tokens of the answers, which fixes their shape.
            cache: keep keys and values of earlier tokens; False computes them again for every
                token, to the same effect (for comparison).
        """
        parts = self.parts
        options = {"beam": beam, "alpha": alpha, "length": length}
        options |= {name: self._options[name] for name in ("start_id", "end_id")}

        def translate(source):
            memory, mask = _encode(parts, source), source != 0
            step, state = (_cached if cache else _uncached)(parts, memory, mask, beam)
            return beam_search.translate(step, state, source, **options)

        return tf.function(translate, input_signature=[tf.TensorSpec([None, None], tf.int32)])

    def translate(self, source, beam: int = 4, alpha: float = 0.6, length: int = 128) -> dict:
        """Translations of source ids [n, s]; arguments and result of :meth:`translator`."""
        key = (beam, alpha, length)
        if key not in self._translators:
            self._translators[key] = self.translator(*key)
        return self._translators[key](tf.cast(source, tf.int32))


def _encode(parts, source):
    """Ids [n, s] -> memory [n, s, width], which carries the mask of the ids."""
    x = parts["source_dropout"](parts["positions"](parts["embedding"](source)))
    for block in parts["encoder"]:
        x = block(x)
    return parts["encoder_norm"](x)


def _decode(parts, target, memory, memory_mask=None, caches=None, position=0):
    """Ids [n, t] -> logits [n, t, v].

    With ``caches``, one a block, the ids are those from ``position`` on, ``memory`` is a list of
    keys and values, and the result (logits, caches).
    """
    y = parts["target_dropout"](parts["positions"](parts["embedding"](target), position=position))
    if caches is None:
        for block in parts["decoder"]:
            y = block(y, memory=memory, memory_mask=memory_mask)
        return parts["embedding"](parts["decoder_norm"](y), reverse=True)
    new = []
    for block, pair, cache in zip(parts["decoder"], memory, caches, strict=True):
        y, cache = block(y, memory=pair, memory_mask=memory_mask, cache=cache)
        new.append(cache)
    return parts["embedding"](parts["decoder_norm"](y), reverse=True), new


def _cached(parts, memory, mask, beam):
    """Step function and first state that keep keys and values."""
    pairs = [block.cross.keys_values(memory) for block in parts["decoder"]]
    empty = pairs[0][0][:, :, :0]
    pairs, mask = tf.nest.map_structure(lambda m: tf.repeat(m, beam, axis=0), (pairs, mask))

    def step(tokens, position, caches):
        logits, caches = _decode(parts, tokens[:, None], pairs, mask, caches, position)
        return logits[:, 0], caches

    return step, [(empty, empty) for _ in pairs]


def _uncached(parts, memory, mask, beam):
    """Step function and first state that keep the tokens alone."""
    nothing = tf.zeros([tf.shape(memory)[0], 0, 1], tf.int32)  # grows along its second axis
    memory, mask = (tf.repeat(m, beam, axis=0) for m in (memory, mask))

    def step(new, position, tokens):
        tokens = tf.concat([tokens, new[:, None, None]], axis=1)
        logits = _decode(parts, tokens[..., 0], memory, mask)
        return logits[:, -1], tokens

    return step, nothing


transformer_small = partial(Transformer, width=128, layers=2, heads=4, hidden=512)
transformer_base = partial(Transformer, width=512, layers=6, heads=8, hidden=2048)
transformer_big = partial(Transformer, width=1024, layers=6, heads=16, hidden=4096, dropout=0.3)
