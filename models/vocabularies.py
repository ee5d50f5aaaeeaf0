"""Vocabularies as Hugging Face's directories have them: of WordPiece and of byte-level BPE.

They stand in ``vocab.txt``, or in ``vocab.json`` and ``merges.txt``; newer directories have
``tokenizer.json`` alone.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .weight_files import WeightsError, read_json

log = logging.getLogger(__name__)

_NAMES = {
    "wordpiece": {"pad": "pad_token", "start": "cls_token", "end": "sep_token",
                  "unknown": "unk_token"},
    "byte-bpe": {"pad": "pad_token", "end": "eos_token", "unknown": "unk_token"},
}  # fmt: skip
_WORDPIECE = {"pad": "[PAD]", "start": "[CLS]", "end": "[SEP]", "unknown": "[UNK]"}
_END = "<|endoftext|>"
_ENDLESS = 10**9  # Hugging Face writes 1e30 for "any number"
# What tokenizer.json has to say, where it says anything, for our tokenizers to give the same ids.
_AS_OURS = {
    "WordPiece": {
        "normalizer": {"type": "BertNormalizer", "clean_text": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    },
    "BPE": {
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "use_regex": True},
        "model": {"dropout": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                  "byte_fallback": False, "ignore_merges": False},
    },
}  # fmt: skip
_LONG = ("vocab", "merges")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's description, for :mod:`epochal.pipelines.data.tokenizers`:
    ``WordPiece(pieces, **special)`` or ``ByteBPE(pieces, merges, **special)``."""

    kind: str
    """"wordpiece" or "byte-bpe"."""
    pieces: list[str]
    """In the order of their ids."""
    merges: list[str] = field(default_factory=list)
    """"left right", the first to merge first; of byte-bpe."""
    special: dict[str, str | None] = field(default_factory=dict)
    """Pieces for "pad", "start", "end" and "unknown"; None for what the vocabulary lacks."""
    lowercase: bool = False
    """Whether texts are to be lower case."""
    strip_accents: bool | None = None
    """Whether they are to be without accents; None: where they are to be lower case."""
    longest: int | None = None
    """Ids that a text may have, start and end included; None: any number."""
    ideographs: bool = True
    """Whether each Chinese character is a word of its own; of wordpiece."""
    size: int | None = None
    """Ids of the model, where these are more than the pieces; the last ones stand for nothing."""


def read_vocabulary(directory: str | Path) -> Vocabulary:
    """The tokenizer's description in a directory.

    Raises:
        WeightsError: there is none, it is damaged, or of another model than config.json's.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise WeightsError(
            f"There is no directory {directory}. Give a Hugging Face directory: it holds vocab.txt "
            "(BERT), vocab.json and merges.txt (GPT-2), or tokenizer.json."
        )
    said = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            said = read_json(directory, name) | said

    def special(kind: str, usual: dict[str, str]) -> dict[str, str | None]:
        found = {"pad": None, "start": None, "end": None, "unknown": None} | usual
        for key, name in _NAMES[kind].items():
            piece = said.get(name) or found[key]
            found[key] = piece["content"] if isinstance(piece, dict) else piece
        return found

    if (directory / "vocab.txt").is_file():
        found = Vocabulary(
            "wordpiece",
            _lines(directory / "vocab.txt"),
            lowercase=bool(said.get("do_lower_case", True)),
            strip_accents=said.get("strip_accents"),
            ideographs=bool(said.get("tokenize_chinese_chars", True)),
        )
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        pieces = _in_order(directory / "vocab.json", read_json(directory, "vocab.json"))
        merges = _lines(directory / "merges.txt")
        found = Vocabulary("byte-bpe", pieces, merges[merges[0].startswith("#version") :])
    elif (directory / "tokenizer.json").is_file():
        found = _of_library(directory / "tokenizer.json", read_json(directory, "tokenizer.json"))
    else:
        raise WeightsError(
            f"{directory} has no vocabulary: neither vocab.txt (BERT), nor vocab.json with "
            "merges.txt (GPT-2), nor tokenizer.json."
        )
    added = _added(directory, said)
    while len(found.pieces) in added:
        found.pieces.append(added[len(found.pieces)])
    if found.kind == "wordpiece":
        found = replace(found, special=special("wordpiece", _WORDPIECE))
    else:
        found = replace(found, special=special("byte-bpe", {"end": _END}))
        if found.special["unknown"] == found.special["end"]:  # so they say; but no byte is unknown
            found.special["unknown"] = None
        if said.get("add_prefix_space"):
            log.warning(
                "%s has add_prefix_space: its model learnt texts that begin with a blank, which "
                "is not added here",
                directory,
            )
    longest = said.get("model_max_length")
    if isinstance(longest, int) and longest < _ENDLESS:
        found = replace(found, longest=longest)
    if (directory / "config.json").is_file():
        size = read_json(directory, "config.json").get("vocab_size", len(found.pieces))
        if type(size) is not int:
            raise WeightsError(f"{directory / 'config.json'} has vocab_size = {size!r}, no number.")
        if len(found.pieces) > size:
            raise WeightsError(
                f"{directory} has a vocabulary of {len(found.pieces):,} pieces, and a model of "
                f"{size:,} ids: they are of different models."
            )
        if size > len(found.pieces):  # filled up to a round number, for speed
            found = replace(found, size=size)
    return found


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path} is no text in UTF-8: {error}. Fetch it again.") from None
    return text.removesuffix("\n").split("\n")


def _in_order(path: Path, ids: dict[str, int]) -> list[str]:
    """Pieces in the order of their ids."""
    if sorted(ids.values(), key=str) != sorted(range(len(ids)), key=str):
        raise WeightsError(f"{path} leaves out ids, or has some twice.")
    return sorted(ids, key=ids.get)


def _added(directory: Path, said: dict[str, Any]) -> dict[int, str]:
    """Id -> piece, of pieces that a vocabulary got later and that may stand in files beside it."""
    found = {int(i): piece["content"] for i, piece in said.get("added_tokens_decoder", {}).items()}
    if (directory / "added_tokens.json").is_file():
        found |= {i: piece for piece, i in read_json(directory, "added_tokens.json").items()}
    if (directory / "tokenizer.json").is_file():
        listed = read_json(directory, "tokenizer.json").get("added_tokens") or []
        found |= {piece["id"]: piece["content"] for piece in listed}
    return found


def _differs(has: dict[str, Any] | None, wanted: dict[str, Any] | None) -> bool:
    if has is None or wanted is None:
        return has is not wanted
    return any(
        has.get(name) not in ((value,) if name == "type" else (value, None))
        for name, value in wanted.items()
    )


def _of_library(path: Path, content: dict[str, Any]) -> Vocabulary:
    """What a file of the library ``tokenizers`` says, without the special pieces.

    Raises WeightsError for what gives other ids than our tokenizers.
    """
    model = content.get("model") or {}
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
    if kind not in _AS_OURS:
        raise WeightsError(f"{path} has the model {kind!r}; read are {', '.join(_AS_OURS)}.")
    for part, wanted in _AS_OURS[kind].items():
        if _differs(has := content.get(part), wanted):
            told = {key: value for key, value in (has or {}).items() if key not in _LONG}
            raise WeightsError(
                f"{path} has the {part} {told or None!r}. Read are WordPiece as BERT has it and "
                "byte-level BPE as GPT-2 has it: with this one the ids would be others."
            )
    pieces = _in_order(path, model.get("vocab") or {})
    if kind == "WordPiece":
        normalizer = content["normalizer"]
        return Vocabulary(
            "wordpiece",
            pieces,
            lowercase=bool(normalizer.get("lowercase", True)),
            strip_accents=normalizer.get("strip_accents"),
            ideographs=bool(normalizer.get("handle_chinese_chars", True)),
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return Vocabulary("byte-bpe", pieces, merges)


def vocabulary_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """Name -> content of the files that a directory has of it."""
    if vocabulary.kind == "wordpiece":
        config = {"do_lower_case": vocabulary.lowercase, "tokenizer_class": "BertTokenizer"}
        if vocabulary.strip_accents is not None:
            config["strip_accents"] = vocabulary.strip_accents
        if not vocabulary.ideographs:
            config["tokenize_chinese_chars"] = False
        texts = {"vocab.txt": "\n".join(vocabulary.pieces) + "\n"}
    else:
        config = {"tokenizer_class": "GPT2Tokenizer"}
        ids = {piece: number for number, piece in enumerate(vocabulary.pieces)}
        texts = {
            "vocab.json": json.dumps(ids, ensure_ascii=False),
            "merges.txt": "\n".join(["#version: 0.2", *vocabulary.merges]) + "\n",
        }
    for key, name in _NAMES[vocabulary.kind].items():
        if vocabulary.special.get(key) is not None:
            config[name] = vocabulary.special[key]
    if vocabulary.kind == "byte-bpe" and vocabulary.special.get("end") is not None:
        config["bos_token"] = vocabulary.special["end"]  # as GPT-2 has it: one piece for both
    if vocabulary.longest is not None:
        config["model_max_length"] = vocabulary.longest
    texts["tokenizer_config.json"] = json.dumps(config, indent=2, ensure_ascii=False)
    return {name: text.encode() for name, text in texts.items()}
