"""GPT-2 small writing: ours, keras-hub's, and Hugging Face's on PyTorch, with random weights.

Decoding is greedy, with cached keys and values; the time of the prompt is a part of it. In bf16 the
weights themselves are bfloat16.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np

from .language_nets import (
    TINY,
    hugging_face,
    hugging_face_gpt,
    keras_hub_gpt,
    our_gpt,
    policy,
    random_ids,
)

GPT2_SMALL = {
    "layers": 12, "width": 768, "heads": 12, "hidden": 3072, "context": 1024, "dropout": 0.1,
}  # fmt: skip
PROMPT, NEW = 16, 64  # tokens of a row


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
    sizes, vocabulary = GPT2_SMALL | (TINY if tiny else {}), 50 if tiny else 50_257
    new = 4 if tiny else NEW  # in trials too: a part of the time is the same for few and many
    if side == "reading the weights":
        from ...models.gpt import count

        options = {k: sizes[k] for k in ("width", "layers", "hidden", "context")}
        # Of the positions a step reads a row.
        weights = count(vocabulary, **options) - sizes["context"] * sizes["width"]
        size = 4 if precision == "float32" else 2
        rate = batch * _bytes_per_second(0.01 if tiny else 1.0) / (weights * size)
        return {"rate": rate, "unit": "tokens/s"}
    prompt = random_ids(batch, PROMPT, vocabulary=vocabulary)
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

    policy(precision, threads)
    model = our_gpt(sizes, vocabulary)
    given = tf.constant(prompt)

    def run() -> int:
        found = model.generate(given, new, temperature=0.0)["ids"].numpy()
        return int((found != 0).sum())  # 0 is padding, and never chosen

    return run


def _keras_hub_decoder(sizes, vocabulary, prompt, new, precision, jit, threads):
    policy(precision, threads)
    model = keras_hub_gpt(sizes, vocabulary)
    model.compile(sampler="greedy", jit_compile=jit)
    ids = np.pad(prompt, ((0, 0), (0, new)))
    mask = np.pad(np.ones_like(prompt), ((0, 0), (0, new)))

    def run() -> int:
        given = {"token_ids": ids, "padding_mask": mask}
        found = model.generate(given, stop_token_ids=None)
        return int(np.prod(found["token_ids"].shape)) - prompt.size

    return run


def _torch_decoder(sizes, vocabulary, prompt, new, precision, jit, threads):
    torch, transformers = hugging_face(threads)
    model = hugging_face_gpt(transformers, sizes, vocabulary)
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
