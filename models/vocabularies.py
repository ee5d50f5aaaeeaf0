"""Vocabularies as Hugging Face's directories have them: of WordPiece and of byte-level BPE."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from .weight_files import WeightsError, read_json

_NAMES = {
    "wordpiece": {"pad": "pad_token", "start": "cls_token", "end": "sep_token",
                  "unknown": "unk_token"},
    "byte-bpe": {"pad": "pad_token", "end": "eos_token", "unknown": "unk_token"},
}  # fmt: skip
_WORDPIECE = {"pad": "[PAD]", "start": "[CLS]", "end": "[SEP]", "unknown": "[UNK]"}
_END = "<|endoftext|>"
_ENDLESS = 10**9  # Hugging Face writes 1e30 for "any number"


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


def read_vocabulary(directory: str | Path) -> Vocabulary:
    """The tokenizer's description in a directory.

    Raises:
        WeightsError: there is none, it is damaged, or of another model than config.json's.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise WeightsError(
            f"There is no directory {directory}. Give a Hugging Face directory: it holds vocab.txt "
            "(BERT), or vocab.json and merges.txt (GPT-2)."
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
            special=special("wordpiece", _WORDPIECE),
            lowercase=bool(said.get("do_lower_case", True)),
            strip_accents=said.get("strip_accents"),
        )
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        ids = read_json(directory, "vocab.json")
        pieces = sorted(ids, key=ids.get)
        if [ids[piece] for piece in pieces] != list(range(len(pieces))):
            raise WeightsError(f"{directory / 'vocab.json'} leaves out ids, or has some twice.")
        merges = _lines(directory / "merges.txt")
        merges = merges[1:] if merges[0].startswith("#version") else merges
        found = Vocabulary("byte-bpe", pieces, merges, special("byte-bpe", {"end": _END}))
        if found.special["unknown"] == _END:  # as their files say; but no byte is unknown
            found.special["unknown"] = None
    else:
        raise WeightsError(
            f"{directory} has no vocabulary: neither vocab.txt (BERT) nor vocab.json with "
            "merges.txt (GPT-2)."
        )
    longest = said.get("model_max_length")
    if isinstance(longest, int) and longest < _ENDLESS:
        found = replace(found, longest=longest)
    if (directory / "config.json").is_file():
        size = read_json(directory, "config.json").get("vocab_size", len(found.pieces))
        if len(found.pieces) > size:
            raise WeightsError(
                f"{directory} has a vocabulary of {len(found.pieces):,} pieces, and a model of "
                f"{size:,} ids: they are of different models."
            )
    return found


def _lines(path: Path) -> list[str]:
    text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n")


def vocabulary_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """Name -> content of the files that a directory has of it."""
    if vocabulary.kind == "wordpiece":
        config = {"do_lower_case": vocabulary.lowercase, "tokenizer_class": "BertTokenizer"}
        if vocabulary.strip_accents is not None:
            config["strip_accents"] = vocabulary.strip_accents
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
