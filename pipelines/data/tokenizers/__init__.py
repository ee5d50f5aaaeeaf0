"""Tokenizers: from strings to ids and back, in Python for training and as a graph for serving."""

from .base import TextOp, Tokenizer
from .byte_bpe import ByteBPE
from .simple import Bytes, Characters
from .wordpiece import WordPiece

__all__ = ["ByteBPE", "Bytes", "Characters", "TextOp", "Tokenizer", "WordPiece"]
