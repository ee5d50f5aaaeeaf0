"""The block that Transformers are made of: encoder or decoder, cached or not.

One block serves the Transformer of 2017 and its descendants; ``norm``, ``activation``, ``causal``,
``cross`` and ``attention_bias`` are where they differ:

| | norm | activation | causal | cross | attention_bias |
|---|---|---|---|---|---|
| Transformer, encoder | post | relu | no | no | no |
| Transformer, decoder | post | relu | yes | yes | no |
| BERT | post | gelu | no | no | yes |
| GPT-1 | post | gelu_tanh | yes | no | yes |
| GPT-2, GPT-3 | pre | gelu_tanh | yes | no | yes |

Padding travels with the activations as a Keras mask: a :class:`.embeddings.TokenEmbedding` starts
it (id 0), blocks take it and hand it on.
"""

from __future__ import annotations

import keras
from keras import layers

from .activations import gelu, gelu_tanh, relu
from .attention import MultiHeadAttention
from .layers import Dropout, LayerNormalization, seeded, seeds

ACTIVATIONS = {"relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh}
NORMS = ("post", "pre")


@keras.saving.register_keras_serializable("epochal")
class TransformerBlock(layers.Layer):
    """Attention, [attention to a memory,] and two dense layers, each added to its input.

    With ``norm="post"``, as in 2017, ``x = norm(x + dropout(f(x)))``; with "pre"
    ``x = x + dropout(f(norm(x)))``, and the stack needs one more normalisation at its end. The
    latter needs no warm-up (Xiong et al. 2020).

    Args:
        heads: of each attention.
        hidden: width between the two dense layers.
        norm: "post" or "pre".
        activation: between the dense layers: "relu", "gelu" (with erf) or "gelu_tanh".
        causal: whether positions see no later ones. Padding stands on the right, where no real
            token looks: such a block hands the mask on, and has no use for it itself.
        window: of a causal block: positions that each one sees at most; None: all before it.
        cross: whether the block attends to a memory too.
        attention_bias: whether the projections of attention have biases; dense layers always do.
        dropout: share of each sub-layer's outputs set to zero in training.
        attention_dropout: the same of the attention weights.
        epsilon: of the layer normalisation.
        initializer: of all kernels.
        residual_initializer: of the kernels whose outputs are added to x; None: as the others.
        seed: of weights and dropout; None draws them from ``keras.utils.set_random_seed``.
    """

    def __init__(
        self,
        heads: int,
        hidden: int,
        norm: str = "post",
        activation: str = "relu",
        causal: bool = False,
        window: int | None = None,
        cross: bool = False,
        attention_bias: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        epsilon: float = 1e-6,
        initializer="glorot_uniform",
        residual_initializer=None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if norm not in NORMS or activation not in ACTIVATIONS:
            raise ValueError(
                f"norm must be one of {', '.join(NORMS)} and activation one of "
                f"{', '.join(ACTIVATIONS)}; got {norm!r} and {activation!r}."
            )
        self.supports_masking = True
        residual_initializer = residual_initializer or initializer
        self._options = {
            "heads": heads,
            "hidden": hidden,
            "norm": norm,
            "activation": activation,
            "causal": causal,
            "window": window,
            "cross": cross,
            "attention_bias": attention_bias,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "epsilon": epsilon,
            "initializer": keras.initializers.serialize(keras.initializers.get(initializer)),
            "residual_initializer": keras.initializers.serialize(
                keras.initializers.get(residual_initializer)
            ),
            "seed": seed,
        }
        self.hidden, self.norm, self.activation = hidden, norm, activation
        self.causal = causal
        draw, dtype = seeds(seed), self.dtype_policy

        def attention(name, **options):
            return MultiHeadAttention(
                heads,
                use_bias=attention_bias,
                dropout=attention_dropout,
                initializer=initializer,
                output_initializer=residual_initializer,
                seed=draw(),
                dtype=dtype,
                name=name,
                **options,
            )

        def normalise(name):
            return LayerNormalization(epsilon=epsilon, dtype=dtype, name=name)

        self.attention = attention("attention", causal=causal, window=window)
        self.attention_norm = normalise("attention_norm")
        self.cross = attention("cross") if cross else None
        self.cross_norm = normalise("cross_norm") if cross else None
        self.expand = layers.Dense(
            hidden, kernel_initializer=seeded(initializer, draw()), dtype=dtype, name="expand"
        )
        self.contract_kernel = seeded(residual_initializer, draw())
        self.dense_norm = normalise("dense_norm")
        self.drop = Dropout(dropout, seed=draw(), dtype=dtype) if dropout else None

    def build(self, input_shape):
        width = input_shape[-1]
        shape = (None, None, width)
        self.contract = layers.Dense(
            width,
            kernel_initializer=self.contract_kernel,
            dtype=self.dtype_policy,
            name="contract",
        )
        self.contract.build((None, None, self.hidden))
        for layer in (
            self.attention,
            self.attention_norm,
            self.cross,
            self.cross_norm,
            self.expand,
            self.dense_norm,
        ):
            if layer is not None:
                layer.build(shape)

    def call(
        self,
        x,
        memory=None,
        mask=None,
        memory_mask=None,
        cache=None,
        training=None,
    ):
        """x [n, t, d] -> [n, t, d]; arguments and the cache as in :class:`MultiHeadAttention`.

        ``mask`` [n, t] says which of x's own tokens are real. With ``cache`` the result is
        (x, cache).
        """

        def before(norm):
            return norm(x) if self.norm == "pre" else x

        def after(y, norm):
            if self.drop is not None:
                y = self.drop(y, training=training)
            return x + y if self.norm == "pre" else norm(x + y)

        y = self.attention(
            before(self.attention_norm),
            key_mask=None if self.causal else mask,
            cache=cache,
            training=training,
        )
        if cache is not None:
            y, cache = y
        x = after(y, self.attention_norm)
        if self.cross is not None:
            y = self.cross(
                before(self.cross_norm), memory=memory, key_mask=memory_mask, training=training
            )
            x = after(y, self.cross_norm)
        y = ACTIVATIONS[self.activation](self.expand(before(self.dense_norm)), training)
        x = after(self.contract(y), self.dense_norm)
        return x if cache is None else (x, cache)

    def compute_output_shape(self, input_shape):
        return input_shape

    def multiply_adds(self, input_shapes, output_shape) -> int | None:
        """Of projections, dense layers, and scores and sums over t (and s) positions."""
        t, width = output_shape[1:]
        lengths = [t, input_shapes[-1][1]] if self.cross is not None else [t]
        if None in lengths:
            return None
        attention = sum(2 * (t + s) * width**2 + 2 * t * s * width for s in lengths)
        return attention + 2 * t * width * self.hidden

    def get_config(self):
        return {**super().get_config(), **self._options}
