"""Corpora larger than memory: texts, and what is made of them, in files that are looked into.

What is read, or made, block by block goes into files of plain numbers, ``NAME.bin``, with an
``index.json`` that has their types and lengths, in a directory that appears whole or not at all. It
is named by what it was made from, so that it is made once. The files are mapped into memory: the
operating system holds what is in use, and gives it up where memory is short.

The directories lie in ``EPOCHAL_CACHE_DIR``, else in the user's cache (``~/.cache/epochal``). They
may be deleted at any time, and are made again. They need about the room of the uncompressed text
and 2 bytes a token (4 where a vocabulary has more than 65,536 pieces).

Memory is bounded by the largest document, which is worked on as a whole, and, where a vocabulary is
learnt (``wordpiece``, ``byte_bpe``), by the number of distinct words, which are counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ... import __version__
from ..run import sync
from .source import SourceError, fingerprint

log = logging.getLogger(__name__)

VARIABLE = "EPOCHAL_CACHE_DIR"
BLOCK = 1 << 18  # characters, or tokens, that are worked on at a time
# Part of the directories' names. It rises with their format, and with any change of what an op or a
# reader gives: what an older one has made would be taken for it.
_FORMAT = 1
Arrays = dict[str, np.ndarray]


def directory(kind: str, made_from: Any) -> Path:
    """Where that goes which is made from facts that JSON can hold: ``KIND-HASH``."""
    facts = json.dumps([*_makers(), made_from], sort_keys=True).encode()
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "epochal")
    base = Path(os.path.expanduser(os.environ.get(VARIABLE) or cache))
    return base / f"{kind}-{hashlib.sha256(facts).hexdigest()[:20]}"


def _makers() -> list[Any]:
    """Versions of the code that makes ids of texts."""
    try:
        library = metadata.version("tokenizers")
    except metadata.PackageNotFoundError:
        library = None
    return [_FORMAT, __version__, unicodedata.unidata_version, library]


def arrays(place: Path | None, blocks: Callable[[], Iterable[Arrays]]) -> Arrays:
    """Arrays that come in blocks, one after the other: in memory, or mapped from a directory.

    Args:
        place: the directory, which is written unless it is there; None: in memory.
        blocks: -> name -> 1-D arrays; the same names and types in every block. One at least.

    Raises:
        SourceError: the directory cannot be written, or is not whole.
    """
    if place is None:
        parts: dict[str, list[np.ndarray]] = {}
        for block in blocks():
            for name, values in block.items():
                parts.setdefault(name, []).append(values)
        # One name after the other, so that not all of it is there twice.
        return {name: np.concatenate(parts.pop(name)) for name in list(parts)}
    if not os.path.exists(place):  # Path.exists raises where one may not look
        _write(place, blocks)
    return _mapped(place)


def _write(place: Path, blocks: Callable[[], Iterable[Arrays]]) -> None:
    # Of each host its own: not every file system shares locks between hosts.
    prefix = f".{place.name}-{platform.node()}-"
    try:
        if str(place).startswith("~"):
            raise OSError("the home directory is not known")
        place.parent.mkdir(parents=True, exist_ok=True)
        with _lock(place):  # whoever comes second finds it made
            if os.path.exists(place):
                return
            for left in place.parent.iterdir():  # by a process that died
                if left.name.startswith(prefix):
                    shutil.rmtree(left, ignore_errors=True)
            building = Path(tempfile.mkdtemp(prefix=prefix, dir=place.parent))
            log.info("writing %s", place)
            try:
                os.chmod(building, 0o755)
                _fill(building, blocks())
                sync(building)
                _publish(building, place)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise SourceError(
            f"{place} cannot be written: {error.strerror or error}. The text of a corpus that is "
            "larger than data.cache_mib goes there, and its ids. Make room, or set "
            f"{VARIABLE} to a directory that has some: about 1.5 times the uncompressed text, 3 "
            "times with bytes or characters."
        ) from None


@contextlib.contextmanager
def _lock(place: Path) -> Iterator[None]:
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that writes %s", place)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _publish(building: Path, place: Path) -> None:
    try:
        os.rename(building, place)
    except OSError:
        if not os.path.exists(place):  # else another host was faster, and has made the same
            raise


def _fill(building: Path, blocks: Iterable[Arrays]) -> None:
    files, index = {}, {}
    with contextlib.ExitStack() as opened:
        for block in blocks:
            for name, values in block.items():
                if name not in files:
                    files[name] = opened.enter_context(open(building / f"{name}.bin", "wb"))
                    index[name] = {"dtype": values.dtype.str, "length": 0}
                files[name].write(np.ascontiguousarray(values).data)
                index[name]["length"] += len(values)
    (building / "index.json").write_text(json.dumps(index))


def _mapped(place: Path) -> Arrays:
    found = {}
    try:
        index = json.loads((place / "index.json").read_text())
        for name, about in index.items():
            file, dtype = place / f"{name}.bin", np.dtype(about["dtype"])
            there, wanted = file.stat().st_size, about["length"] * dtype.itemsize
            if there != wanted:
                raise ValueError(f"{file.name} has {there:,} bytes, not {wanted:,}")
            # Nothing writes; but TensorFlow shares memory only that could be written to.
            mode = "r+" if os.access(file, os.W_OK) else "c"
            found[name] = np.memmap(file, dtype, mode) if wanted else np.zeros(0, dtype)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{place} is not whole ({error}). Delete it: it is made again from the source."
        ) from None
    return found


def tensor(values: np.ndarray):
    """An array as a tensor in main memory; one that is mapped from a file stays there."""
    import tensorflow as tf

    if isinstance(values, np.memmap):
        return tf.experimental.dlpack.from_dlpack(np.asarray(values).__dlpack__())
    with tf.device("CPU:0"):
        return tf.identity(tf.constant(values))


class StoredTexts:
    """Strings in a directory, in place of an array of them: ``[i]``, ``[indices]``, in order.

    Attributes:
        place: the directory.
        size: of all of them in UTF-8, bytes.
    """

    dtype, ndim = np.dtype(object), 1

    def __init__(self, place: Path, texts: Callable[[], Iterator[str]]):
        found = arrays(place, lambda: _encoded(texts()))
        self.place, self.size = place, len(found["text"])
        self._text, self._ends = np.asarray(found["text"]), np.asarray(found["ends"])
        if not len(self._ends) or self._ends[-1] != self.size:
            raise SourceError(f"{place} is not whole. Delete it: it is made again.")

    @property
    def shape(self) -> tuple[int]:
        return self._ends.shape

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            end = self._ends[index]
            begin = self._ends[index - 1] if index else 0
            return self._text[begin:end].tobytes().decode()
        rows = range(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        found = np.empty(len(rows), object)
        found[:] = [self[row] for row in rows]
        return found

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))


def _encoded(texts: Iterator[str]) -> Iterator[Arrays]:
    total = 0
    for block in in_blocks(texts):
        coded = [text.encode() for text in block]
        ends = total + np.cumsum([len(text) for text in coded], dtype=np.int64)
        total = int(ends[-1])
        yield {"text": np.frombuffer(b"".join(coded), np.uint8), "ends": ends}


def in_blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts, of about :data:`BLOCK` characters each; one text at least."""
    held, size = [], 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= BLOCK:
            yield held
            held, size = [], 0
    if held:
        yield held


def held(texts: Callable[[], Iterator[str]], made_from: Any, mib: int) -> np.ndarray | StoredTexts:
    """Texts in memory, or in files if they have more than ``mib`` MiB in UTF-8.

    Args:
        texts: -> all of them, one after the other; called again where they are too many.
        made_from: what they are a function of, such as names, sizes and times of files.
        mib: the recipe's ``data.cache_mib``.
    """
    place, most = directory("texts", made_from), mib * 2**20
    if not os.path.exists(place):
        found, size = [], 0
        for text in texts():
            found.append(text)
            size += len(text.encode())
            if size > most:
                break
        else:
            return np.array(found, object)
        del found
    stored = StoredTexts(place, texts)
    return stored if stored.size > most else np.array(list(stored), object)


def fingerprint_of(columns: dict[str, np.ndarray | StoredTexts]) -> str:
    """:func:`.source.fingerprint`; of stored texts it is computed once and kept beside them."""
    if not any(isinstance(column, StoredTexts) for column in columns.values()):
        return fingerprint(columns)
    made_from = {
        name: column.place.name if isinstance(column, StoredTexts) else fingerprint({"": column})
        for name, column in columns.items()
    }

    def blocks() -> Iterator[Arrays]:
        yield {"sha256": np.frombuffer(bytes.fromhex(fingerprint(columns)), np.uint8)}

    return arrays(directory("fingerprint", made_from), blocks)["sha256"].tobytes().hex()


def facts_of(files: Iterable[Path]) -> list[list[Any]]:
    """Of each file its path, size in bytes and time of change: another file has others.

    Raises SourceError for one that cannot be read.
    """
    try:
        stats = [(path.resolve(), path.stat()) for path in files]
    except OSError as error:
        raise SourceError(f"{error.filename} cannot be read: {error.strerror}.") from None
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
