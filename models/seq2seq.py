"""Sequence to sequence with recurrent networks: one fixed vector, or attention to the source.

- Sutskever, Vinyals, Le: Sequence to sequence learning with neural networks (2014). What was new:
  one network reads a sentence into a vector, another writes its translation from that vector. No
  alignment, no phrases: sequences of any length to sequences of any length.
- Bahdanau, Cho, Bengio: Neural machine translation by jointly learning to align and translate
  (2014). What was new: attention. The decoder looks back at all encoder states before each word,
  weighted by how well they fit its own state (``v tanh(W s + U h)``, additive).
- Luong, Pham, Manning: Effective approaches to attention-based neural machine translation (2015).
  The weights as products (``s W h``, multiplicative, "general"), after the decoder's step, so that
  all steps of a training target are computed at once.

| name | layers | units | embedding | vocabularies | trainable weights |
|---|---|---|---|---|---|
| seq2seq | 4 | 1,000 | 1,000 | 160,000 to 80,000 | 384,112,000 |
| seq2seq-bahdanau | 1 | 1,000 | 620 | 30,000 both | 86,304,000 |
| seq2seq-luong | 4 | 1,000 | 1,000 | 50,000 both | 217,082,000 |

64,032,000 of the first are recurrent.

Deviations from the papers:

1. All units are LSTMs, without peepholes and with the forget gate's bias at 1. Bahdanau et al. use
   gated units with one state (GRU): here the three differ in attention alone. Their decoder starts
   from tanh(W h); here, as in the others, layer i starts in the state in which the encoder's
   layer i ended, which for a bidirectional encoder is the one that ends at the first word.
2. Weights start as in Glorot, Bengio (2010), recurrent ones orthogonal, embeddings uniform in
   ±0.05; Sutskever et al. and Luong et al. draw all uniformly in ±0.08 and ±0.1.
3. Bahdanau et al., appendix A.2.2: the maxout layer before the output reads the decoder's new
   state, as their eq. 4 says; the appendix' formula has the one before it.
4. Luong et al., section 3.3, feed the attentional vector into the next step: `input_feeding`, off
   by default, because steps then have to wait for each other in training.
5. Beams: a complete sentence makes room for another prefix in the search (Sutskever et al. let the
   beam shrink).
6. `scheduled_sampling` (Bengio et al. 2015) takes the likeliest token of the model's own, and its
   share rises linearly. Off by default.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import tensorflow as tf

from . import beam_search
from .attention import GlobalAttention
from .layers import seeded, seeds
from .recurrent import LSTM

ATTENTION = (None, "additive", "multiplicative")


def count(
    vocabulary_size: int,
    target_vocabulary_size: int | None = None,
    layers: int = 4,
    units: int = 1000,
    embedding: int = 1000,
    attention: str | None = None,
    bidirectional: bool = False,
    input_feeding: bool = False,
) -> int:
    """Trainable weights of a :class:`Seq2Seq` with these options, without building it."""
    words = target_vocabulary_size or vocabulary_size
    memory = units * (2 if bidirectional else 1)

    def stack(first, others):
        inputs = [first] + [others] * (layers - 1)
        return sum(4 * units * (width + units + 1) for width in inputs)

    encoder = stack(embedding, memory) * (2 if bidirectional else 1)
    fed, scores, readout, last = 0, 0, 0, units
    if attention == "additive":
        fed, last = memory, units // 2
        scores = units * units + memory * units + units
        readout = (units + memory + embedding) * 2 * last + 2 * last
    elif attention == "multiplicative":
        fed = units if input_feeding else 0
        scores = memory * units
        readout = (memory + units) * units
    decoder = stack(embedding + fed, units)
    head = last * words + words
    return (vocabulary_size + words) * embedding + encoder + decoder + scores + readout + head


@keras.saving.register_keras_serializable("epochal")
class Seq2Seq(keras.Model):
    """Source and target ids to logits; ``translate`` decodes, ``attend`` shows the attention.

    Inputs {"source": [n, s], "target": [n, t]}, int32 ids padded with 0 on the right; the target
    begins with ``start_id`` and is what the decoder has seen before each answer. Outputs are
    float32 logits [n, t, words] of the tokens that come next: of the target without its start, with
    ``end_id`` at its end. They carry the target's mask, with which Keras takes losses and metrics
    over real tokens.

    Args:
        vocabulary_size: ids of the source.
        target_vocabulary_size: ids of the target; None: as many.
        layers: LSTM layers of the encoder, and of the decoder.
        units: of each layer (and each direction).
        embedding: width of the vectors that ids become.
        attention: None, "additive" (Bahdanau) or "multiplicative" (Luong).
        bidirectional: the encoder reads both ways.
        reverse_source: the encoder reads from the last word to the first (Sutskever, section 3.3).
        input_feeding: see deviation 4.
        dropout: share of what enters each layer, and the last linear one, set to zero in training.
        scheduled_sampling: share of the target's tokens that are replaced by the model's own answer
            in training, in the end.
        scheduled_sampling_batches: training batches over which the share rises from 0.
        start_id: begins each target.
        end_id: ends each target.
        seed: of weights, dropout and sampling; None draws from ``keras.utils.set_random_seed``.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        vocabulary_size: int,
        target_vocabulary_size: int | None = None,
        layers: int = 4,
        units: int = 1000,
        embedding: int = 1000,
        attention: str | None = None,
        bidirectional: bool = False,
        reverse_source: bool = True,
        input_feeding: bool = False,
        dropout: float = 0.0,
        scheduled_sampling: float = 0.0,
        scheduled_sampling_batches: int = 10_000,
        start_id: int = 1,
        end_id: int = 2,
        seed: int | None = None,
        name: str = "seq2seq",
        dtype: Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        words = target_vocabulary_size or vocabulary_size
        if min(layers, units, embedding) < 1 or words <= max(start_id, end_id):
            raise ValueError(
                "layers, units and embedding must be at least 1, and the target's vocabulary above "
                f"start_id and end_id; got {layers!r}, {units!r}, {embedding!r}, {words!r}, "
                f"{start_id!r}, {end_id!r}."
            )
        if attention not in ATTENTION or (input_feeding and attention != "multiplicative"):
            raise ValueError(
                'attention must be None, "additive" or "multiplicative", and input_feeding is an '
                f"option of the last; got {attention!r}, input_feeding={input_feeding!r}."
            )
        if not (0.0 <= dropout < 1.0 and 0.0 <= scheduled_sampling <= 1.0):
            raise ValueError(
                "dropout is a share in [0, 1) and scheduled_sampling one in [0, 1]; "
                f"got {dropout!r} and {scheduled_sampling!r}."
            )
        self._options = {
            "vocabulary_size": vocabulary_size,
            "target_vocabulary_size": words,
            "layers": layers,
            "units": units,
            "embedding": embedding,
            "attention": attention,
            "bidirectional": bidirectional,
            "reverse_source": reverse_source,
            "input_feeding": input_feeding,
            "dropout": dropout,
            "scheduled_sampling": scheduled_sampling,
            "scheduled_sampling_batches": scheduled_sampling_batches,
            "start_id": start_id,
            "end_id": end_id,
            "seed": seed,
        }
        draw, policy = seeds(seed), self.dtype_policy

        def embed(size, name):
            initializer = seeded("uniform", draw())
            return keras.layers.Embedding(size, embedding, initializer, dtype=policy, name=name)

        def recurrent(name, both_ways=False):
            layer = LSTM(
                units,
                return_sequences=True,
                return_state=True,
                kernel_initializer=seeded("glorot_uniform", draw()),
                recurrent_initializer=seeded("orthogonal", draw()),
                dtype=policy,
                name=name,
            )
            return (
                keras.layers.Bidirectional(layer, dtype=policy, name=name) if both_ways else layer
            )

        def dense(width, name, **options):
            initializer = seeded("glorot_uniform", draw())
            return keras.layers.Dense(
                width, kernel_initializer=initializer, dtype=policy, name=name, **options
            )

        self.source_embedding = embed(vocabulary_size, "source_embedding")
        self.target_embedding = embed(words, "target_embedding")
        self.encoder = [recurrent(f"encoder_{i + 1}", bidirectional) for i in range(layers)]
        self.decoder = [recurrent(f"decoder_{i + 1}") for i in range(layers)]
        self.attention = self.readout = None
        if attention is not None:
            self.attention = GlobalAttention(
                attention, units, draw(), dtype=policy, name="attention"
            )
            self.readout = (
                dense(units // 2 * 2, "readout")
                if attention == "additive"
                else dense(units, "readout", activation="tanh", use_bias=False)
            )
        self.head = dense(words, "head")
        self.drop = keras.layers.Dropout(dropout, seed=draw(), dtype=policy, name="dropout")
        self.coins = keras.random.SeedGenerator(draw()) if scheduled_sampling else None
        self.batches = None
        if scheduled_sampling:
            self.batches = self.add_weight(
                shape=(), initializer="zeros", dtype="int32", trainable=False, name="batches"
            )
        self._translators: dict = {}
        self.build()

    def build(self, input_shape=None):
        """Makes all weights: a layer may first be met inside a loop, where none can be made."""
        units, embedding = self._options["units"], self._options["embedding"]
        memory = units * (2 if self._options["bidirectional"] else 1)
        additive = self._options["attention"] == "additive"
        fed = memory if additive else units if self._options["input_feeding"] else 0
        self.source_embedding.build()
        self.target_embedding.build()
        for i, (reads, writes) in enumerate(zip(self.encoder, self.decoder, strict=True)):
            reads.build((None, None, memory if i else embedding))
            writes.build((None, None, units if i else embedding + fed))
        if self.attention is not None:
            self.attention.build((None, None, units), (None, None, memory))
            self.readout.build((None, memory + units + (embedding if additive else 0)))
        self.head.build((None, units // 2 if additive else units))

    def call(self, inputs, training=None):
        memory, mask, states = self.encode(inputs["source"], training)
        logits, _ = self.decode(inputs["target"], memory, mask, states, training)
        return logits

    def compute_mask(self, inputs, previous_mask=None):
        return keras.ops.not_equal(inputs["target"], 0)

    def get_config(self):
        dtype = keras.dtype_policies.serialize(self.dtype_policy)
        return {**self._options, "name": self.name, "dtype": dtype}

    def encode(self, source, training=None):
        """Ids [n, s] -> memory [n, s, m], its mask [n, s], and the last (h, c) of each layer."""
        mask = real = source != 0
        if self._options["reverse_source"]:
            source, mask = tf.reverse(source, [1]), tf.reverse(mask, [1])
        x, states = self.source_embedding(source), []
        for layer in self.encoder:
            x, *state = layer(self.drop(x, training=training), mask=mask, training=training)
            states.append(state[-2:])  # of a bidirectional layer: where reading backwards ends
        return tf.reverse(x, [1]) if self._options["reverse_source"] else x, real, states

    def decode(self, target, memory, mask, states, training=None):
        """Ids [n, t] -> logits [n, t, words] and attention weights [n, t, s] (None without)."""
        sampled = bool(training) and self.coins is not None
        if self._options["attention"] == "additive" or self._options["input_feeding"] or sampled:
            x, weights = self._step_by_step(target, memory, mask, states, sampled, training)
            return self._logits(x, training), weights
        x, weights = self.target_embedding(target), None
        for layer, state in zip(self.decoder, states, strict=True):
            x, *_ = layer(self.drop(x, training=training), initial_state=state)
        if self.attention is not None:
            context, weights = self.attention(x, memory, key_mask=mask)
            x = self.readout(tf.concat([context, x], axis=-1))
        return self._logits(x, training), weights

    def step(self, tokens, state, memory, keys, mask, training=None):
        """One token [n] a row -> what logits are made of [n, r], the new state, weights [n, 1, s].

        ``state`` is {"layers": [[h, c], ...]}, with "fed" [n, units] in input feeding; ``keys`` are
        what :meth:`GlobalAttention.keys` says of the memory.
        """
        embedded, weights = self.target_embedding(tokens), None
        x, additive = embedded, self._options["attention"] == "additive"
        if additive:
            query = state["layers"][-1][0][:, None]
            context, weights = self.attention(query, memory, keys, mask)
            x = tf.concat([x, context[:, 0]], axis=-1)
        elif self._options["input_feeding"]:
            x = tf.concat([x, state["fed"]], axis=-1)
        after = {"layers": []}
        for layer, before in zip(self.decoder, state["layers"], strict=True):
            x, new = layer.cell(self.drop(x, training=training), before)
            after["layers"].append(new)
        if additive:
            x = self.readout(tf.concat([context[:, 0], x, embedded], axis=-1))
            x = tf.reduce_max(tf.reshape(x, [-1, x.shape[-1] // 2, 2]), axis=-1)  # maxout
        elif self.attention is not None:
            context, weights = self.attention(x[:, None], memory, keys, mask)
            x = self.readout(tf.concat([context[:, 0], x], axis=-1))
            if self._options["input_feeding"]:
                after["fed"] = x
        return x, after, weights

    def _step_by_step(self, target, memory, mask, states, sampled, training):
        """The decoder as a loop: what logits are made of, [n, t, r], and weights [n, t, s]."""
        told, (rows, steps) = tf.transpose(target), tf.unstack(tf.shape(target))
        keys = None if self.attention is None else self.attention.keys(memory)
        if sampled:
            self.batches.assign_add(1)
            risen = tf.cast(self.batches, tf.float32) / self._options["scheduled_sampling_batches"]
            share = self._options["scheduled_sampling"] * tf.minimum(risen, 1.0)
            replaced = keras.random.uniform((steps, rows), seed=self.coins) < share

        def body(i, said, state, arrays):
            # The first token is the start: there is nothing that the model could have said.
            tokens = tf.where(replaced[i] & (i > 0), said, told[i]) if sampled else told[i]
            x, state, weights = self.step(tokens, state, memory, keys, mask, training)
            if sampled:
                said = 1 + tf.argmax(self._logits(x)[:, 1:], axis=-1, output_type=tf.int32)
            values = [x] if weights is None else [x, weights[:, 0]]
            written = [a.write(i, v) for a, v in zip(arrays, values, strict=True)]
            return i + 1, said, state, written

        dtypes = [self.compute_dtype] if self.attention is None else [self.compute_dtype, "float32"]
        *_, arrays = tf.while_loop(
            lambda i, *_: i < steps,
            body,
            (
                tf.constant(0),
                told[0],
                self._first_state(states),
                [tf.TensorArray(dtype, steps) for dtype in dtypes],
            ),
            maximum_iterations=steps,
        )
        x, *weights = (tf.transpose(array.stack(), [1, 0, 2]) for array in arrays)
        return x, weights[0] if weights else None

    def _first_state(self, states):
        state = {"layers": [list(pair) for pair in states]}
        if self._options["input_feeding"]:
            state["fed"] = tf.zeros_like(states[-1][0])
        return state

    def _logits(self, x, training=None):
        return tf.cast(self.head(self.drop(x, training=training)), tf.float32)

    def attend(self, source, target) -> tf.Tensor:
        """How much each target token [n, t] (as in training) looks at each source token [n, s].

        Returns [n, t, s] float32, each row of it summing to 1; needs a model with attention.
        """
        if self.attention is None:
            raise ValueError(
                'This model has no attention to show: build it with attention="additive" or '
                '"multiplicative".'
            )
        memory, mask, states = self.encode(tf.cast(source, tf.int32))
        return self.decode(tf.cast(target, tf.int32), memory, mask, states)[1]

    def translator(
        self, beam: int = 4, alpha: float = 0.6, length: int = 128
    ) -> tf.types.experimental.GenericFunction:
        """A graph function from source ids [n, s] to :func:`.beam_search.translate`'s answers.

        Args:
            beam: prefixes in the search; 1 takes the likeliest token each time.
            alpha: of the length penalty, see :func:`.beam_search.length_penalty`; 0, as Sutskever
                et al., for plain probabilities.
            length: tokens of the answers, which fixes their shape.
        """
        options = {"beam": beam, "alpha": alpha, "length": length}
        options |= {name: self._options[name] for name in ("start_id", "end_id")}

        def translate(source):
            memory, mask, states = self.encode(source)
            keys = memory if self.attention is None else self.attention.keys(memory)
            memory, mask, keys = (tf.repeat(part, beam, axis=0) for part in (memory, mask, keys))

            def step(tokens, position, state):
                x, state, _ = self.step(tokens, state, memory, keys, mask)
                return self._logits(x), state

            return beam_search.translate(step, self._first_state(states), source, **options)

        return tf.function(translate, input_signature=[tf.TensorSpec([None, None], tf.int32)])

    def translate(self, source, beam: int = 4, alpha: float = 0.6, length: int = 128) -> dict:
        """Translations of source ids [n, s]; arguments and result of :meth:`translator`."""
        key = (beam, alpha, length)
        if key not in self._translators:
            self._translators[key] = self.translator(*key)
        return self._translators[key](tf.cast(source, tf.int32))


seq2seq = Seq2Seq
seq2seq_bahdanau = partial(
    Seq2Seq,
    layers=1,
    embedding=620,
    attention="additive",
    bidirectional=True,
    reverse_source=False,
    name="seq2seq_bahdanau",
)
seq2seq_luong = partial(Seq2Seq, attention="multiplicative", dropout=0.2, name="seq2seq_luong")
