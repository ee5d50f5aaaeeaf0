"""A run of BERT or GPT as a directory that Hugging Face's libraries load, tokenizer included.

``config.json`` with the names of the classes, ``model.safetensors``, and the vocabulary that the
run's chain of ops has learnt or borrowed, with its special pieces. Their tokenizer adds [CLS] and
[SEP] itself, and cuts texts where the run does. It lowers and strips accents as the run does; other
ops before the tokenizer have no place in these files: they and what stands before them are named in
a warning, and texts have to go through them first.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..models import huggingface
from ..models.bert import BERT
from ..models.gpt import GPT
from ..models.huggingface_names import places
from ..models.vocabularies import Vocabulary, read_vocabulary
from ..models.weight_files import WeightsError
from .data.ops import build
from .data.tokenizers import base
from .run import Run, RunError, sync

log = logging.getLogger(__name__)

_KINDS = {"wordpiece": "wordpiece", "byte_bpe": "byte-bpe"}  # op -> kind of vocabulary
_HELD = ("lowercase", "strip_accents")  # by the files of a WordPiece


def export_huggingface(run: Run, to: str | os.PathLike | None = None, verify: bool = True) -> Path:
    """Writes the directory, whole or not at all, and returns it.

    Args:
        run: a finished run of a BERT, or of a GPT in GPT-2's form, on text.
        to: the directory, which must be new or empty; by default ``huggingface`` in the run's.
        verify: read it back and compare every weight and piece.

    Raises:
        RunError: another model, a tokenizer that the format lacks, or the directory is taken.
    """
    place = Path(to) if to is not None else run.path / "huggingface"
    model = run.model
    if not isinstance(model, BERT | GPT):
        raise RunError(
            f"{run.path} is a run of {run.recipe.model.name}; --format huggingface is for BERT and "
            "GPT. Leave it out for a SavedModel."
        )
    vocabulary = vocabulary_of(run, model.get_config()["context"])
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RunError(f"{place} is there already. Name a new directory with --to.")
    building = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=place.parent, prefix=".building-"))
        os.chmod(building, 0o755)
        labels = run.dataset["classes"] if model.get_config().get("num_classes") else ()
        huggingface.save_huggingface(model, building, vocabulary, labels)
        if verify:
            _require_equal(building, model, vocabulary)
        sync(building)
        os.replace(building, place)  # over an empty directory, too
    except WeightsError as error:
        raise RunError(f"{run.path} cannot be written in this format: {error}") from None
    except OSError as error:
        raise RunError(f"The export to {place} failed: {error}.") from None
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
    return place


def vocabulary_of(run: Run, context: int) -> Vocabulary:
    """The tokenizer of a run's chain of ops, for a model with a context of so many ids.

    Raises RunError where the format has none such.
    """
    preprocess = run.preprocess
    ops = list(_expanded(preprocess.chain, preprocess.states))
    found = next((place for place, (step, _) in enumerate(ops) if step.name in _KINDS), None)
    if found is None:
        raise RunError(
            f"The tokenizer in data.ops ({preprocess.chain!r}) has no place in Hugging Face's "
            f"files, which hold {' and '.join(_KINDS)}. Train with one of these."
        )
    (tokenizer, state), before = ops[found], [step.name for step, _ in ops[:found]]
    pieces = tokenizer.name == "wordpiece"
    # What comes before an op that the files lack has to stay before it: both are done outside.
    held = _HELD if pieces else ()
    cut = max((place for place, op in enumerate(before, 1) if op not in held), default=0)
    lost, before = before[:cut], before[cut:]
    if lost:
        log.warning(
            "texts for %s have to go through %s first: its tokenizer's files cannot say so",
            run.path, "|".join(lost),
        )  # fmt: skip
    after = [step for step, _ in ops[found + 1 :]]
    enclosed = any(step.name == "enclose" for step in after)
    if pieces and not enclosed and preprocess.inputs["task"] != "masked-language-model":
        log.warning(
            "%s was trained without [CLS] and [SEP], which Hugging Face's tokenizer adds: call it "
            "with add_special_tokens=False",
            run.path,
        )
    limits = [
        (step.args or [step.kwargs["n"]])[0] + 2 * enclosed
        for step in after
        if step.name == "max_tokens"
    ]
    ours = {"pad": base.PAD, "start": base.START, "end": base.END, "unknown": base.UNKNOWN}
    special = ours | state.get("special", {})
    if not pieces:
        special |= {"start": None}  # which those files do not name
    size, ideographs = special.pop("size", None), special.pop("ideographs", True)
    return Vocabulary(
        _KINDS[tokenizer.name],
        state["vocabulary"],
        state.get("merges", []),
        special,
        pieces and "lowercase" in before,
        "strip_accents" in before if pieces else None,
        min([context, *limits]),
        ideographs,
        size,
    )


def _expanded(chain: str, states: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Ops of a chain and what they have learnt; those of a borrowed tokenizer in its place."""
    for (step, _), state in zip(build(chain, "text"), states, strict=True):
        if step.name == "tokenizer_of":
            yield from _expanded(state["ops"], state["states"])
        else:
            yield step, state


def _require_equal(directory: Path, model: BERT | GPT, vocabulary: Vocabulary) -> None:
    again = huggingface.load_huggingface(directory)
    read, written = places(again), places(model)
    other = [
        name
        for name, place in written.items()
        if name not in read or not np.array_equal(read[name].get(), place.get())
    ]
    if other or read_vocabulary(directory) != vocabulary:
        raise RunError(
            f"The directory does not read back as it was written ({', '.join(other[:5]) or 'the'}"
            f"{'' if other else ' vocabulary'}); please report this with the recipe."
        )
