"""BERT and GPT of three libraries in the same sizes, with random weights, and their trainings."""

from __future__ import annotations

import contextlib
import statistics
import time

import numpy as np

from .nets import compile_by_adam, need, steps_per_second

TINY = {"layers": 1, "width": 8, "heads": 2, "hidden": 16, "context": 128}  # for tests


def policy(precision: str, threads: int | None) -> None:
    """Keras's policy, and the threads of TensorFlow."""
    import keras
    import tensorflow as tf

    keras.config.set_dtype_policy(precision)
    if threads is not None:
        with contextlib.suppress(RuntimeError):  # TensorFlow is already running: in tests
            tf.config.threading.set_intra_op_parallelism_threads(threads)


def hugging_face(threads: int | None):
    """PyTorch and transformers, with so many threads."""
    torch, transformers = need("torch"), need("transformers")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    return torch, transformers


def random_ids(*shape: int, vocabulary: int) -> np.ndarray:
    """Ids of pieces, the first four left out, which are special."""
    return np.random.default_rng(0).integers(4, vocabulary, shape).astype("int32")


def our_bert(task: str, sizes, vocabulary: int, ids, places):
    """A model, and its inputs: of two classes, or of the words hidden at these places."""
    from ...models import create_model

    if task == "classification":
        return create_model("bert-tiny", vocabulary_size=vocabulary, num_classes=2, **sizes), ids
    model = create_model(
        "bert-tiny", vocabulary_size=vocabulary, head="mlm", inputs=("ids", "positions"), **sizes
    )
    return model, {"ids": ids, "positions": places}


def keras_hub_bert(task: str, sizes, vocabulary: int, ids, places):
    """As :func:`our_bert`."""
    models = need("keras_hub").models
    backbone = models.BertBackbone(**_keras_hub_sizes(sizes, vocabulary))
    x = {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": np.ones_like(ids)}
    if task == "classification":
        return models.BertTextClassifier(backbone, num_classes=2, preprocessor=None), x
    return models.BertMaskedLM(backbone, preprocessor=None), x | {"mask_positions": places}


def hugging_face_bert(transformers, task: str, sizes, vocabulary: int):
    """The model alone; see :func:`our_bert`."""
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
    return getattr(transformers, f"BertFor{kind}")(config)


def our_gpt(sizes, vocabulary: int):
    from ...models import create_model

    return create_model("gpt", vocabulary_size=vocabulary, **sizes)


def keras_hub_gpt(sizes, vocabulary: int):
    models = need("keras_hub").models
    backbone = models.GPT2Backbone(**_keras_hub_sizes(sizes, vocabulary))
    return models.GPT2CausalLM(backbone, preprocessor=None)


def hugging_face_gpt(transformers, sizes, vocabulary: int):
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_layer=sizes["layers"],
        n_embd=sizes["width"],
        n_head=sizes["heads"],
        n_inner=sizes["hidden"],
        n_positions=sizes["context"],
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def _keras_hub_sizes(sizes, vocabulary: int) -> dict[str, float]:
    return {
        "vocabulary_size": vocabulary,
        "num_layers": sizes["layers"],
        "num_heads": sizes["heads"],
        "hidden_dim": sizes["width"],
        "intermediate_dim": sizes["hidden"],
        "dropout": sizes["dropout"],
        "max_sequence_length": sizes["context"],
    }


def fit_rate(model, x, y, ours: bool, jit: bool, steps: int, epochs: int) -> float:
    """Steps a second of ``fit`` by Adam, without metrics."""
    import tensorflow as tf

    compile_by_adam(model, ours, weighted_metrics=[], jit_compile=jit)
    data = tf.data.Dataset.from_tensors(tf.nest.map_structure(tf.constant, (x, y)))
    return steps_per_second(model, data.repeat().prefetch(2), steps=steps, epochs=epochs)


def torch_rate(torch, model, answers, ids, asked, precision: str, steps: int, epochs: int) -> float:
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
