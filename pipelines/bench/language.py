"""BERT and GPT: ours, keras-hub's, and Hugging Face's on PyTorch, with random weights.

Training is a step by Adam on full rows (nothing is padded, masks are given all the same), dropout
0.1, as each library's users write it: ``compile`` and ``fit``, or a loop over batches. Decoding is
greedy, with cached keys and values; the time of the prompt is a part of it.

=============  ===========================================================================
precision      what it means
=============  ===========================================================================
f32            all in float32
bf16 training  weights float32, products bfloat16: Keras's mixed_bfloat16, PyTorch's autocast
bf16 decoding  the weights themselves bfloat16
=============  ===========================================================================
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from typing import Any

import numpy as np

from .nets import need, steps_per_second

TRAINED = {"batch": 16, "length": 128, "vocabulary": 30_522}
BERT = {"layers": 4, "width": 256, "heads": 4, "hidden": 1024, "context": 128, "dropout": 0.1}
GPT = {"layers": 6, "width": 384, "heads": 6, "hidden": 1536, "context": 128, "dropout": 0.1}
GPT2_SMALL = {
    "layers": 12, "width": 768, "heads": 12, "hidden": 3072, "context": 1024, "dropout": 0.1,
}  # fmt: skip
HIDDEN_WORDS = 20  # of 128: 15%
PROMPT, NEW = 16, 64  # tokens of a row
_TINY = {"layers": 1, "width": 8, "heads": 2, "hidden": 16, "context": 128}  # for tests


def _policy(precision: str, threads: int | None) -> None:
    """Keras's policy, and the threads of TensorFlow."""
    import keras
    import tensorflow as tf

    keras.config.set_dtype_policy(precision)
    if threads is not None:
        with contextlib.suppress(RuntimeError):  # TensorFlow is already running: in tests
            tf.config.threading.set_intra_op_parallelism_threads(threads)


def _hugging_face(threads: int | None):
    torch, transformers = need("torch"), need("transformers")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    return torch, transformers


def _ids(*shape: int, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(0).integers(4, vocabulary, shape).astype("int32")


# --- Training -----------------------------------------------------------------------------------


def bert(
    side: str,
    *,
    quick: bool,
    task: str = "classification",
    precision: str = "float32",
    jit: bool = False,
    threads: int | None = None,
    tiny: bool = False,
) -> dict[str, Any]:
    """Training tokens a second of BERT 4x256, two classes or 20 hidden words a row.

    Of the hidden words, Hugging Face's model computes the logits of every position: it has no other
    way. The loss is over the same ones.
    """
    sizes, rows = BERT | (_TINY if tiny else {}), _rows(tiny)
    n, t, vocabulary = rows["batch"], rows["length"], rows["vocabulary"]
    ids, rng = _ids(n, t, vocabulary=vocabulary), np.random.default_rng(1)
    places = np.sort(rng.permuted(np.tile(np.arange(t), (n, 1)), axis=1)[:, :HIDDEN_WORDS]).astype(
        "int32"
    )
    classes = rng.integers(0, 2, n)
    words = np.take_along_axis(ids, places, axis=1)
    steps, epochs = (2, 2) if quick else (6, 4)
    if side == "Hugging Face":
        torch, transformers = _hugging_face(threads)
        config = transformers.BertConfig(
            vocab_size=vocabulary,
            hidden_size=sizes["width"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            intermediate_size=sizes["hidden"],
            max_position_embeddings=sizes["context"],
            num_labels=2,
        )
        kind = "SequenceClassification" if task == "classification" else "MaskedLM"
        model = getattr(transformers, f"BertFor{kind}")(config)
        flat = torch.from_numpy((np.arange(n)[:, None] * t + places).ravel()).long()

        def answers(given):
            logits = model(**given).logits
            return logits if task == "classification" else logits.flatten(0, 1)[flat]

        asked = classes if task == "classification" else words
        rate = _torch_rate(torch, model, answers, ids, asked, precision, steps, epochs)
        return {"rate": rate * ids.size, "unit": "tokens/s"}
    from ...models.losses import CrossEntropy

    _policy(precision, threads)
    build, loss = (_our_bert, CrossEntropy()) if side == "ours" else (_keras_hub_bert, None)
    model, x = build(task, sizes, vocabulary, ids, places)
    y = classes if task == "classification" else words
    rate = _fit(model, x, y, jit, steps, epochs, loss)
    return {"rate": rate * ids.size, "unit": "tokens/s"}


def _our_bert(task, sizes, vocabulary, ids, places):
    from ...models import create_model

    if task == "classification":
        return create_model("bert-tiny", vocabulary_size=vocabulary, num_classes=2, **sizes), ids
    model = create_model(
        "bert-tiny", vocabulary_size=vocabulary, head="mlm", inputs=("ids", "positions"), **sizes
    )
    return model, {"ids": ids, "positions": places}


def _keras_hub_bert(task, sizes, vocabulary, ids, places):
    models = need("keras_hub").models
    backbone = models.BertBackbone(
        vocabulary_size=vocabulary,
        num_layers=sizes["layers"],
        num_heads=sizes["heads"],
        hidden_dim=sizes["width"],
        intermediate_dim=sizes["hidden"],
        dropout=sizes["dropout"],
        max_sequence_length=sizes["context"],
    )
    x = {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": np.ones_like(ids)}
    if task == "classification":
        return models.BertTextClassifier(backbone, num_classes=2, preprocessor=None), x
    return models.BertMaskedLM(backbone, preprocessor=None), x | {"mask_positions": places}


def gpt(
    side: str,
    *,
    quick: bool,
    precision: str = "float32",
    jit: bool = False,
    threads: int | None = None,
    tiny: bool = False,
) -> dict[str, Any]:
    """Training tokens a second of a GPT-2 of 6 layers and width 384, the next token everywhere."""
    sizes, rows = GPT | (_TINY if tiny else {}), _rows(tiny)
    both = _ids(rows["batch"], rows["length"] + 1, vocabulary=rows["vocabulary"])
    ids, following = both[:, :-1].copy(), both[:, 1:].copy()
    steps, epochs = (1, 2) if quick else (3, 4)
    if side == "Hugging Face":
        torch, transformers = _hugging_face(threads)
        model = transformers.GPT2LMHeadModel(_gpt2_config(transformers, sizes, rows["vocabulary"]))

        def answers(given):
            return model(**given, use_cache=False).logits.flatten(0, 1)

        rate = _torch_rate(torch, model, answers, ids, following, precision, steps, epochs)
        return {"rate": rate * ids.size, "unit": "tokens/s"}
    from ...models.losses import CrossEntropy

    _policy(precision, threads)
    if side == "ours":
        model, x, loss = _our_gpt(sizes, rows["vocabulary"]), ids, CrossEntropy()
    else:
        model, loss = _keras_hub_gpt(sizes, rows["vocabulary"]), None
        x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    rate = _fit(model, x, following, jit, steps, epochs, loss)
    return {"rate": rate * ids.size, "unit": "tokens/s"}


def _rows(tiny: bool) -> dict[str, int]:
    return TRAINED | ({"batch": 2, "length": 24, "vocabulary": 50} if tiny else {})


def _our_gpt(sizes, vocabulary):
    from ...models import create_model

    return create_model("gpt", vocabulary_size=vocabulary, **sizes)


def _keras_hub_gpt(sizes, vocabulary):
    models = need("keras_hub").models
    backbone = models.GPT2Backbone(
        vocabulary_size=vocabulary,
        num_layers=sizes["layers"],
        num_heads=sizes["heads"],
        hidden_dim=sizes["width"],
        intermediate_dim=sizes["hidden"],
        dropout=sizes["dropout"],
        max_sequence_length=sizes["context"],
    )
    return models.GPT2CausalLM(backbone, preprocessor=None)


def _gpt2_config(transformers, sizes, vocabulary):
    return transformers.GPT2Config(
        vocab_size=vocabulary,
        n_layer=sizes["layers"],
        n_embd=sizes["width"],
        n_head=sizes["heads"],
        n_inner=sizes["hidden"],
        n_positions=sizes["context"],
        bos_token_id=0,
        eos_token_id=0,
    )


def _fit(model, x, y, jit: bool, steps: int, epochs: int, loss=None) -> float:
    """Steps a second of ``fit`` by Adam, without metrics; None: Keras's own loss."""
    import keras
    import tensorflow as tf

    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        optimizer=keras.optimizers.Adam(), loss=loss, weighted_metrics=[], jit_compile=jit
    )
    data = tf.data.Dataset.from_tensors(tf.nest.map_structure(tf.constant, (x, y)))
    return steps_per_second(model, data.repeat().prefetch(2), steps=steps, epochs=epochs)


def _torch_rate(torch, model, answers, ids, asked, precision: str, steps: int, epochs: int):
    """Steps a second by PyTorch's fused Adam: the median over epochs, the first one left out."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    ids = torch.from_numpy(ids).long()
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    asked = torch.from_numpy(np.asarray(asked)).long().flatten()
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32")
    model.train()
    seconds = []
    for _ in range(epochs):
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with half:
                logits = answers(given)
            loss = torch.nn.functional.cross_entropy(logits.float(), asked)
            loss.backward()
            optimizer.step()
        float(loss.detach())
        seconds.append(time.perf_counter() - began)
    return steps / statistics.median(seconds[1:])


# --- Decoding -----------------------------------------------------------------------------------


def generate(
    side: str,
    *,
    quick: bool,
    batch: int = 1,
    precision: str = "float32",
    jit: bool = False,
    threads: int | None = None,
    tiny: bool = False,
) -> dict[str, Any]:
    """New tokens a second of GPT-2 small: greedy, 64 after prompts of 16.

    The side "reading the weights" is a limit: how many tokens the memory allows, if every step does
    nothing but read each weight once, as fast as a large product of a matrix and a vector reads it.
    The ratio to it is the share of that limit.
    """
    sizes, vocabulary = GPT2_SMALL | (_TINY if tiny else {}), 50 if tiny else 50_257
    new = 4 if tiny else 16 if quick else NEW
    if side == "reading the weights":
        from ...models.gpt import count

        options = {k: sizes[k] for k in ("width", "layers", "hidden", "context")}
        # Of the positions a step reads a row.
        weights = count(vocabulary, **options) - sizes["context"] * sizes["width"]
        size = 4 if precision == "float32" else 2
        rate = batch * _bytes_per_second(0.01 if tiny else 1.0) / (weights * size)
        return {"rate": rate, "unit": "tokens/s"}
    prompt = _ids(batch, PROMPT, vocabulary=vocabulary)
    run = {"ours": _our_decoder, "keras-hub": _keras_hub_decoder, "Hugging Face": _torch_decoder}[
        side
    ](sizes, vocabulary, prompt, new, precision, jit, threads)
    run()
    seconds = []
    for _ in range(1 if quick else 3):
        began = time.perf_counter()
        tokens = run()
        seconds.append(time.perf_counter() - began)
        if tokens != batch * new:
            raise RuntimeError(f"{side} made {tokens} tokens, not {batch * new}")
    return {"rate": batch * new / statistics.median(seconds), "unit": "tokens/s"}


def _our_decoder(sizes, vocabulary, prompt, new, precision, jit, threads):
    import tensorflow as tf

    _policy(precision, threads)
    model = _our_gpt(sizes, vocabulary)
    given = tf.constant(prompt)

    def run() -> int:
        found = model.generate(given, new, temperature=0.0)["ids"].numpy()
        return int((found != 0).sum())  # 0 is padding, and never chosen

    return run


def _keras_hub_decoder(sizes, vocabulary, prompt, new, precision, jit, threads):
    _policy(precision, threads)
    model = _keras_hub_gpt(sizes, vocabulary)
    model.compile(sampler="greedy", jit_compile=jit)
    ids = np.pad(prompt, ((0, 0), (0, new)))
    mask = np.pad(np.ones_like(prompt), ((0, 0), (0, new)))

    def run() -> int:
        given = {"token_ids": ids, "padding_mask": mask}
        found = model.generate(given, stop_token_ids=None)
        return int(np.prod(found["token_ids"].shape)) - prompt.size

    return run


def _torch_decoder(sizes, vocabulary, prompt, new, precision, jit, threads):
    torch, transformers = _hugging_face(threads)
    model = transformers.GPT2LMHeadModel(_gpt2_config(transformers, sizes, vocabulary))
    model = model.to(getattr(torch, precision)).eval()
    given = torch.from_numpy(prompt).long()

    def run() -> int:
        with torch.inference_mode():
            found = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=False,
                min_new_tokens=new,
                max_new_tokens=new,
                pad_token_id=0,
            )
        return int(found.numel()) - prompt.size

    return run


def _bytes_per_second(gigabytes: float) -> float:
    """The best of several readings of a matrix, one part of it a core."""
    import tensorflow as tf

    width, parts = 4_096, os.cpu_count() or 1
    rows = int(gigabytes * 1e9 / 4 / width / parts)
    matrices, vector = [tf.ones([rows, width]) for _ in range(parts)], tf.ones([width, 1])

    @tf.function
    def read(*matrices):
        return sum(tf.reduce_sum(matrix @ vector) for matrix in matrices)

    read(*matrices).numpy()
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        read(*matrices).numpy()
        seconds.append(time.perf_counter() - began)
    return parts * rows * width * 4 / min(seconds)
