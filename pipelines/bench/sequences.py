"""Training steps of sequence models, and decoding: ours, of stock Keras layers, and PyTorch's."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from .nets import compile_by_adam, need, steps_per_second

LSTM = {"batch": 32, "length": 100, "units": 256, "layers": 2, "vocabulary": 1000}
TRANSFORMER = {
    "batch": 32, "length": 32, "width": 256, "layers": 3, "heads": 4, "hidden": 1024,
    "vocabulary": 8000, "dropout": 0.1,
}  # fmt: skip
DECODED = 128  # tokens


def _ids(*shape: int, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(0).integers(4, vocabulary, shape).astype("int32")


def _repeat(x, y):
    import tensorflow as tf

    tensors = tf.nest.map_structure(tf.constant, (x, y))
    return tf.data.Dataset.from_tensors(tensors).repeat().prefetch(2)


def lstm(side: str, *, quick: bool, jit: bool | str = False) -> dict[str, Any]:
    """Training tokens a second of a language model of two LSTM layers, by Adam, in float32.

    Keras's layer as it comes asks for cuDNN where there is one, and so keeps XLA away on every
    device; "stock Keras layers" may choose XLA.
    """
    s = LSTM
    x = _ids(s["batch"], s["length"], vocabulary=s["vocabulary"])
    steps, epochs = (2, 2) if quick else (10, 4)
    tokens = x.size
    if side == "PyTorch":
        torch = need("torch")

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = torch.nn.Embedding(s["vocabulary"], s["units"])
                self.lstm = torch.nn.LSTM(s["units"], s["units"], s["layers"], batch_first=True)
                self.head = torch.nn.Linear(s["units"], s["vocabulary"])

            def forward(self, ids):
                return self.head(self.lstm(self.embed(ids))[0])

        rate = _torch_rate(torch, Net(), (x,), x, steps, epochs)
        return {"rate": rate * tokens, "unit": "tokens/s"}
    import keras

    from ...models import create_model

    if side == "ours":
        model = create_model(
            "lstm", task="language-model", vocabulary_size=s["vocabulary"],
            hidden=(s["units"],) * s["layers"], embedding=s["units"],
        )  # fmt: skip
    else:
        inputs = keras.Input((None,), dtype="int32")
        h = keras.layers.Embedding(s["vocabulary"], s["units"], mask_zero=True)(inputs)
        cudnn = "auto" if side == "stock Keras as it comes" else False
        for _ in range(s["layers"]):
            h = keras.layers.LSTM(s["units"], return_sequences=True, use_cudnn=cudnn)(h)
        model = keras.Model(inputs, keras.layers.Dense(s["vocabulary"])(h))
    compile_by_adam(model, side == "ours", jit_compile=jit)
    rate = steps_per_second(model, _repeat(x, x), steps=steps, epochs=epochs)
    return {"rate": rate * tokens, "unit": "tokens/s"}


def transformer(side: str, *, quick: bool, jit: bool = False) -> dict[str, Any]:
    """Training tokens a second (of source and target) of a small Transformer, by Adam, float32."""
    s = TRANSFORMER
    source, target = (_ids(s["batch"], s["length"], vocabulary=s["vocabulary"]) for _ in range(2))
    steps, epochs = (2, 2) if quick else (8, 4)
    tokens = source.size + target.size
    if side == "PyTorch":
        torch = need("torch")
        rate = _torch_rate(
            torch, _torch_transformer(torch), (source, target), target, steps, epochs
        )  # fmt: skip
        return {"rate": rate * tokens, "unit": "tokens/s"}
    from ...models import create_model

    if side == "ours":
        model = create_model("transformer-base", **_sizes(), length=s["length"])
    else:
        model = _stock_transformer()
    compile_by_adam(model, side == "ours", jit_compile=jit)
    data = _repeat({"source": source, "target": target}, target)
    rate = steps_per_second(model, data, steps=steps, epochs=epochs)
    return {"rate": rate * tokens, "unit": "tokens/s"}


def _sizes() -> dict[str, Any]:
    names = {"vocabulary": "vocabulary_size"}
    return {names.get(k, k): v for k, v in TRANSFORMER.items() if k not in ("batch", "length")}


def _stock_transformer():
    """The same net as a Keras user writes it: MultiHeadAttention, LayerNormalization, Dense.

    Without a mask of padding, of which there is none here: ours takes and heeds one.
    """
    import keras
    from keras import layers

    s, width = TRANSFORMER, TRANSFORMER["width"]
    places = np.arange(s["length"])[:, None] / 10_000 ** (2 * np.arange(width // 2) / width)
    positions = np.stack([np.sin(places), np.cos(places)], -1).reshape(1, -1, width)
    positions = positions.astype("float32")

    def residual(x, y):
        return layers.LayerNormalization()(x + layers.Dropout(s["dropout"])(y))

    def attend(x, memory, **options):
        attention = layers.MultiHeadAttention(s["heads"], width // s["heads"], use_bias=False)
        return residual(x, attention(x, memory, **options))

    def dense(x):
        return residual(x, layers.Dense(width)(layers.Dense(s["hidden"], "relu")(x)))

    embed = layers.ReversibleEmbedding(s["vocabulary"], width)

    def embedded(ids):
        x = embed(ids) * width**0.5 + positions
        return layers.Dropout(s["dropout"])(x)

    source, target = (keras.Input((s["length"],), dtype="int32", name=name)
                      for name in ("source", "target"))  # fmt: skip
    x, y = embedded(source), embedded(target)
    for _ in range(s["layers"]):
        x = dense(attend(x, x))
    for _ in range(s["layers"]):
        y = dense(attend(attend(y, y, use_causal_mask=True), x))
    return keras.Model({"source": source, "target": target}, embed(y, reverse=True))


def _torch_transformer(torch):
    s = TRANSFORMER

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(s["vocabulary"], s["width"])
            places = torch.arange(s["length"])[:, None]
            angles = places / 10_000 ** (torch.arange(0, s["width"], 2) / s["width"])
            both = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
            self.register_buffer("positions", both)
            self.drop = torch.nn.Dropout(s["dropout"])
            self.body = torch.nn.Transformer(
                s["width"], s["heads"], s["layers"], s["layers"], s["hidden"], s["dropout"],
                batch_first=True, bias=True,
            )  # fmt: skip
            # Where the others have none: on attention weights, and between the dense layers.
            for layer in (*self.body.encoder.layers, *self.body.decoder.layers):
                layer.dropout.p = layer.self_attn.dropout = 0.0
            for layer in self.body.decoder.layers:
                layer.multihead_attn.dropout = 0.0
            mask = torch.nn.Transformer.generate_square_subsequent_mask(s["length"])
            self.register_buffer("mask", mask)

        def embedded(self, ids):
            return self.drop(self.embed(ids) * s["width"] ** 0.5 + self.positions)

        def forward(self, source, target):
            y = self.body(
                self.embedded(source), self.embedded(target), tgt_mask=self.mask, tgt_is_causal=True
            )
            return y @ self.embed.weight.T

    return Net()


def _torch_rate(torch, net, inputs, target, steps: int, epochs: int) -> float:
    """Steps a second by PyTorch's fused Adam: the median over epochs, the first one left out."""
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    inputs = [torch.from_numpy(ids).long() for ids in inputs]
    target = torch.from_numpy(target).long().flatten()
    seconds = []
    for _ in range(epochs):
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            logits = net(*inputs).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, target)
            loss.backward()
            optimizer.step()
        float(loss.detach())
        seconds.append(time.perf_counter() - began)
    return steps / statistics.median(seconds[1:])


def decode(side: str, *, quick: bool) -> dict[str, Any]:
    """Tokens a second of greedy decoding, 8 sources at a time, 128 tokens each, untrained."""
    import tensorflow as tf

    from ...models import create_model

    # The same weights on both sides, whose answers are therefore of the same length.
    model = create_model("transformer-base", **_sizes(), seed=0)
    length = 16 if quick else DECODED
    source = tf.constant(_ids(8, DECODED, vocabulary=TRANSFORMER["vocabulary"]))
    run = model.translator(beam=1, length=length, cache=side == "ours")
    run(source)
    seconds, tokens = [], 0
    for _ in range(1 if quick else 3):
        began = time.perf_counter()
        tokens = int(tf.math.count_nonzero(run(source)["ids"]))
        seconds.append(time.perf_counter() - began)
    return {"rate": tokens / statistics.median(seconds), "unit": "tokens/s"}
