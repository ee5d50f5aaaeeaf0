"""Where Hugging Face's tensors of BERT and GPT-2 have their places in our models.

Names here are canonical: without ``bert.`` or ``transformer.`` before them, and with ``weight`` and
``bias`` of a normalisation, which files of 2018 call ``gamma`` and ``beta``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import keras
import numpy as np

from .bert import BERT
from .gpt import GPT

# Constants that PyTorch stores beside the weights: positions counted up, and causal masks.
BUFFERS = re.compile(r"embeddings\.(position_ids|token_type_ids)|h\.\d+\.attn\.(bias|masked_bias)")
# Copies of other tensors: the matrix of the logits is that of the embedding.
ALIASES = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "lm_head.weight": "wte.weight",
}
_PREFIXES = ("bert.", "transformer.")
_HEADS = ("pooler.", "cls.", "classifier.", "qa_outputs.", "score.", "multiple_choice_head.")
_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def canonical(name: str) -> str:
    """A name of a file without its prefix and its old endings."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in _ENDINGS.items():
        name = name[: -len(old)] + new if name.endswith(old) else name
    return name


def of_a_head(name: str) -> bool:
    """Whether a tensor belongs to what stands on top of the blocks, but for GPT's own logits."""
    return name.startswith(_HEADS)


@dataclass(frozen=True)
class Place:
    """One tensor of a file: our variables side by side, and transposed for a PyTorch Linear."""

    variables: tuple[keras.Variable, ...]
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        *rows, columns = self.variables[0].shape
        shape = (*rows, columns * len(self.variables))
        return shape[::-1] if self.transposed else shape

    def get(self) -> np.ndarray:
        array = np.concatenate([variable.numpy() for variable in self.variables], axis=-1)
        return np.ascontiguousarray(array.T if self.transposed else array)

    def set(self, array: np.ndarray) -> None:
        array = array.T if self.transposed else array
        parts = np.split(array, len(self.variables), axis=-1)
        for variable, part in zip(self.variables, parts, strict=True):
            variable.assign(part)


def places(model: BERT | GPT) -> dict[str, Place]:
    """Canonical name -> place, of all weights of a model."""
    return _bert(model) if isinstance(model, BERT) else _gpt2(model)


def _bert(model: BERT) -> dict[str, Place]:
    layer = {each.name: each for each in model.layers}
    found = {
        "embeddings.word_embeddings.weight": Place((layer["embedding"].embeddings,)),
        "embeddings.position_embeddings.weight": Place((layer["position_embedding"].embeddings,)),
        "embeddings.token_type_embeddings.weight": Place((layer["segment_embedding"].embeddings,)),
        **_norm("embeddings.LayerNorm", layer["embedding_norm"]),
    }
    for i in range(model.get_config()["layers"]):
        block, name = layer[f"block_{i + 1}"], f"encoder.layer.{i}"
        attention = block.attention
        for part in ("query", "key", "value"):
            found |= _linear(f"{name}.attention.self.{part}", getattr(attention, part))
        found |= _linear(f"{name}.attention.output.dense", attention.project)
        found |= _norm(f"{name}.attention.output.LayerNorm", block.attention_norm)
        found |= _linear(f"{name}.intermediate.dense", block.expand)
        found |= _linear(f"{name}.output.dense", block.contract)
        found |= _norm(f"{name}.output.LayerNorm", block.dense_norm)
    if "pooler" in layer:
        found |= _linear("pooler.dense", layer["pooler"].dense)
    if "mlm_dense" in layer:
        found |= _linear("cls.predictions.transform.dense", layer["mlm_dense"])
        found |= _norm("cls.predictions.transform.LayerNorm", layer["mlm_norm"])
        found["cls.predictions.bias"] = Place((layer["embedding"].bias,))
    if "nsp" in layer:
        found |= _linear("cls.seq_relationship", layer["nsp"])
    if isinstance(layer.get("outputs"), keras.layers.Dense):
        found |= _linear("classifier", layer["outputs"])
    return found


def _gpt2(model: GPT) -> dict[str, Place]:
    layer = {each.name: each for each in model.layers}
    found = {
        "wte.weight": Place((layer["embedding"].embeddings,)),
        "wpe.weight": Place((layer["positions"].embeddings,)),
    }
    for i in range(model.get_config()["layers"]):
        block, name = layer[f"block_{i + 1}"], f"h.{i}"
        a = block.attention
        # GPT-2's "Conv1D" holds kernels as we do, [in, out], and those of attention as one.
        for part, denses in (
            ("attn.c_attn", (a.query, a.key, a.value)),
            ("attn.c_proj", (a.project,)),
            ("mlp.c_fc", (block.expand,)),
            ("mlp.c_proj", (block.contract,)),
        ):
            found[f"{name}.{part}.weight"] = Place(tuple(dense.kernel for dense in denses))
            found[f"{name}.{part}.bias"] = Place(tuple(dense.bias for dense in denses))
        found |= _norm(f"{name}.ln_1", block.attention_norm)
        found |= _norm(f"{name}.ln_2", block.dense_norm)
    return found | _norm("ln_f", layer["norm"])


def _linear(name: str, dense: keras.layers.Dense) -> dict[str, Place]:
    kernel = Place((dense.kernel,), transposed=True)
    return {f"{name}.weight": kernel, f"{name}.bias": Place((dense.bias,))}


def _norm(name: str, norm: keras.layers.LayerNormalization) -> dict[str, Place]:
    return {f"{name}.weight": Place((norm.gamma,)), f"{name}.bias": Place((norm.beta,))}
