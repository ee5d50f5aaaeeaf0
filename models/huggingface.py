"""Hugging Face directories of BERT and GPT-2: read into our models, and written back.

A directory holds ``config.json``, ``model.safetensors`` (or several shards and an index), and the
vocabulary: ``vocab.txt``, or ``vocab.json`` and ``merges.txt``.

    model = load_huggingface("bert-base-uncased", head="classification", num_classes=2)
    words = read_vocabulary("bert-base-uncased")     # for pipelines.data.tokenizers.WordPiece
    save_huggingface(model, "mine")

All sizes are what config.json says. Every tensor has its place and every shape is compared; what is
left over or missing is listed, but for heads: those that a directory has and the model does not are
left out, and those that it lacks start new. Our ids are theirs: GPT-2's vocabulary has no padding,
and where config.json names none, its end of text is it.

What has been read is written with the same names, types and values, whatever prefix, constants or
copies of tied matrices the file had; so are config.json and the files of the tokenizer.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from .bert import BERT
from .gpt import GPT
from .huggingface_config import CLASSES, config_of, family_of, options_of, updated
from .huggingface_names import ALIASES, BUFFERS, canonical, of_a_head, places
from .vocabularies import Vocabulary, read_vocabulary, vocabulary_files
from .weight_files import (
    Arrays,
    WeightsError,
    float32,
    pickled,
    read,
    read_json,
    require_same,
    some,
)

__all__ = ["Published", "Vocabulary", "load_huggingface", "read_vocabulary", "save_huggingface"]

log = logging.getLogger(__name__)

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FILES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Published:
    """What a directory holds beside the weights, kept with the model to be written back."""

    config: dict[str, Any]
    head: str | None
    """The head whose tensors are there; None for GPT-2."""
    classes: int | None
    """Of that head."""
    names: dict[str, tuple[str, np.dtype]]
    """Canonical name -> name in the file, and type."""
    rest: Arrays
    """Constants, and tensors of other heads, by their names in the file."""
    files: dict[str, bytes]


def load_huggingface(
    directory: str | Path, head: str | None = None, num_classes: int | None = None, **options: Any
) -> BERT | GPT:
    """The model of a directory, with its weights.

    Args:
        directory: see the module.
        head: of BERT; None: the one whose tensors are there.
        num_classes: of a classifier; None: as many as are there. Other than these: a new one.
        **options: of :class:`.BERT` or :class:`.GPT`, over what config.json says; e.g. ``dropout``.

    Raises:
        WeightsError: the directory is not whole, of another family, or its parts don't fit.
    """
    directory = Path(directory)
    path = directory / "config.json"
    found = _Stored.of(directory)
    family, arrays = found.family, found.arrays
    given = options_of(path, found.config, family) | options
    there, classes = _head(arrays) if family == "bert" else (None, None)
    if family == "bert":
        head = head or there
        given["head"] = head
        given["num_classes"] = classes if num_classes is None and head == there else num_classes
    elif (head, num_classes) != (None, None):
        raise WeightsError(f"{directory} is a GPT-2, which has no head to choose.")
    try:
        model = (BERT if family == "bert" else GPT)(**given)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: {error}") from None
    another = (given.get("head"), given.get("num_classes")) != (there, classes)
    model.published = found.into(model, (there, classes), another)
    return model


def fill_gpt(model: GPT, directory: Path) -> None:
    """Puts the weights of a GPT-2's directory into a model of the same sizes.

    Raises:
        WeightsError: as :func:`load_huggingface`; or options are others, all of which are named.
    """
    path = directory / "config.json"
    found, ours = _Stored.of(directory), model.get_config()
    if found.family != "gpt2":
        raise WeightsError(f"{directory} is of the family {found.family!r}; a GPT takes 'gpt2'.")
    theirs = options_of(path, found.config, "gpt2") | {"norm": "pre", "sparse_window": None}
    theirs["hidden"] = theirs["hidden"] or 4 * theirs["width"]
    of_training = ("dropout", "attention_dropout", "pad_id")  # or of the tokenizer
    names = [name for name in theirs if name not in of_training]
    require_same(str(directory), theirs, ours, names)
    model.published = found.into(model)


def save_huggingface(
    model: BERT | GPT,
    directory: str | Path,
    vocabulary: Vocabulary | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Writes a model as a directory that Hugging Face's libraries load.

    A model that :func:`load_huggingface` made is written as it was found; a new one, one with
    another head, and one that has been to a .keras file, with the names and types of today.

    Args:
        model: GPT-1 and sparse attention have no place in this format.
        directory: new, or without weights.
        vocabulary: written in place of the files that the model came with, if any.
        labels: names of a classifier's classes, for config.json.

    Raises:
        WeightsError: the format cannot hold the model, or the directory has weights already.
    """
    directory = Path(directory)
    if (directory / _WEIGHTS).exists():
        raise WeightsError(f"{directory} holds {_WEIGHTS} already. Name a new directory.")
    options, published = model.get_config(), getattr(model, "published", None)
    config, found, arrays = config_of(model), places(model), {}
    head = options.get("head")
    prefix = "transformer." if head is None else "bert."
    prefix = "" if CLASSES.get(head) == "BertModel" else prefix
    names = {
        name: (name if of_a_head(name) else prefix + name, np.dtype("float32")) for name in found
    }
    files = {} if published is None else dict(published.files)
    stored = published and (published.head, published.classes)
    if stored == (head, options.get("num_classes")):
        config, names = updated(published.config, model), published.names
        arrays = dict(published.rest)
    for name, (stored_name, dtype) in names.items():
        arrays[stored_name] = found[ALIASES.get(name, name)].get().astype(dtype)
    if vocabulary is not None:
        files, end = vocabulary_files(vocabulary), vocabulary.special.get("end")
        if end in vocabulary.pieces and "eos_token_id" in config:
            number = vocabulary.pieces.index(end)
            config = config | {"eos_token_id": number, "bos_token_id": number}
    if labels:
        config = config | {
            "id2label": {str(number): label for number, label in enumerate(labels)},
            "label2id": {label: number for number, label in enumerate(labels)},
        }
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    # Last, and whole or not at all: a directory without it is refused.
    save_file(arrays, directory / f".{_WEIGHTS}", metadata={"format": "pt"})
    os.replace(directory / f".{_WEIGHTS}", directory / _WEIGHTS)


# --- Reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """All that a directory holds."""

    directory: Path
    config: dict[str, Any]
    family: str
    names: dict[str, str]
    """Canonical name -> name in the file."""
    arrays: Arrays
    """By canonical names, in float32; without constants."""
    tensors: Arrays
    """By the names in the file, as they are."""

    @classmethod
    def of(cls, directory: Path) -> _Stored:
        config, stored = read_json(directory, "config.json"), _tensors(directory)
        names = {canonical(name): name for name in stored}
        if len(names) < len(stored):
            twice = [name for name in stored if names[canonical(name)] != name]
            raise WeightsError(
                f"{directory} has tensors with and without a prefix ({some(twice)})."
            )
        family = family_of(directory / "config.json", config, list(names))
        arrays = {
            name: float32(directory, stored_name, stored[stored_name])
            for name, stored_name in names.items()
            if not BUFFERS.fullmatch(name)
        }
        return cls(directory, config, family, names, arrays, stored)

    def into(self, model, head: tuple = (None, None), another: bool = False) -> Published:
        """Puts the arrays into a model; see :func:`_fill`. What is to be kept with it."""
        left = _fill(self.directory, model, self.arrays, self.names, another)
        used = [name for name in self.arrays if name not in left]
        types = {name: (self.names[name], self.tensors[self.names[name]].dtype) for name in used}
        rest = {
            stored_name: self.tensors[stored_name]
            for name, stored_name in self.names.items()
            if name not in types
        }
        files = {
            name: (self.directory / name).read_bytes()
            for name in _FILES
            if (self.directory / name).is_file()
        }
        return Published(self.config, *head, types, rest, files)


def _tensors(directory: Path) -> Arrays:
    """All tensors, by their names in the file."""
    if (directory / _WEIGHTS).is_file():
        return read(directory / _WEIGHTS)
    shards = sorted(directory.glob("model-*-of-*.safetensors"))
    if not (directory / _INDEX).is_file():
        for path in sorted(directory.glob("pytorch_model*.bin")):
            raise pickled(path, _WEIGHTS)
        lost = f", and its {len(shards)} shards no {_INDEX}" if shards else ""
        raise WeightsError(f"{directory} has no {_WEIGHTS}{lost}. Fetch it again.")
    index = read_json(directory, _INDEX).get("weight_map", {})
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise WeightsError(f"{directory / _INDEX} names no shards. Fetch it again.")
    wanted = sorted(set(index.values()))
    if not wanted:
        raise WeightsError(f"{directory / _INDEX} names not a single shard. Fetch it again.")
    absent = [name for name in wanted if not (directory / name).is_file()]
    if absent:
        raise WeightsError(
            f"{directory} lacks {len(absent)} of the {len(wanted)} shards that {_INDEX} names: "
            f"{', '.join(absent)}. Fetch them again."
        )
    found: Arrays = {}
    for name in wanted:
        found |= read(directory / name)
    if lost := [name for name in index if name not in found]:
        raise WeightsError(
            f"{directory}: {len(lost)} tensors are not in the shards where {_INDEX} has them "
            f"({some(lost)}). Fetch them again."
        )
    return found


def _head(arrays: Arrays) -> tuple[str, int | None]:
    """The head whose tensors are there, and its classes."""
    pooled = "pooler.dense.weight" in arrays
    if "cls.predictions.bias" in arrays:
        return (
            "pretraining" if pooled and "cls.seq_relationship.weight" in arrays else "mlm"
        ), None
    if "classifier.weight" in arrays:
        classes = len(arrays["classifier.weight"])
        return ("classification" if pooled else "tokens"), classes
    return ("encoder" if pooled else "embedding"), None


def _fill(
    directory: Path, model, arrays: Arrays, names: dict[str, str], another: bool
) -> list[str]:
    """Puts tensors into their places. The names of those of other heads, which are left out.

    Raises WeightsError for others that are left, for missing ones (those of a head excepted, where
    the model has ``another``), and for other shapes.
    """
    found = places(model)
    new = [name for name in found if name not in arrays]
    left = [name for name in arrays if ALIASES.get(name, name) not in found]
    classes = model.get_config().get("num_classes")
    if "classifier.bias" in found and len(arrays.get("classifier.bias", ())) not in (0, classes):
        both = [name for name in found if name.startswith("classifier.")]
        new, left = new + both, left + both
    shapes = [
        f"{names[name]} is {_by(arrays[name].shape)}, and would be {_by(place.shape)}"
        for name, place in found.items()
        if name in arrays and name not in new and arrays[name].shape != place.shape
    ]
    untied = [
        names[name]
        for name, other in ALIASES.items()
        if name in arrays and other in arrays and not np.array_equal(arrays[name], arrays[other])
    ]
    faults = [
        (shapes, "of other shapes"),
        ([name for name in new if not (another and of_a_head(name))], "missing"),
        ([names[name] for name in left if not of_a_head(name)], "left over"),
        (untied, "that should equal others"),
    ]
    if any(listed for listed, _ in faults):
        told = "; ".join(
            f"{len(listed)} {what} ({some(listed)})" for listed, what in faults if listed
        )
        raise WeightsError(f"{directory}: the tensors contradict config.json: {told}.")
    for listed, what in ((new, "start new"), (left, "are left out")):
        if listed:
            log.info("%s: %s %s", directory, ", ".join(listed), what)
    for name, place in found.items():
        if name not in new:
            place.set(arrays[name])
    return left


def _by(shape) -> str:
    return "x".join(map(str, shape))
