"""Text: ``text:PATH`` (with labels, or to be continued) and ``pairs:PATH`` (text to text)."""

from __future__ import annotations

import glob
import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from . import catalog, delimited, stored
from .source import Rows, Source, SourceError, fingerprint, nearest

_PLAIN = (".txt", ".md", ".txt.gz")


def open_text(data) -> Source:
    """``text:PATH`` or ``text:@NAME``.

    ======================================  ======================================================
    PATH                                    what is learnt
    ======================================  ======================================================
    table (.csv, .tsv, also .gz)            the target column from the column of text; without any
                                            other column, or with data.task language-model, the
                                            text itself
    folder with a folder of .txt a class    the class
    folder of .txt files                    the text itself; each file is a document
    one .txt file, or several by their      the text itself; a document ends at an empty line, and
    pattern, such as shards/*.txt.gz        the end of the (last) file is the test
    ======================================  ======================================================

    Text that is learnt itself is read document by document; of a folder or of .txt files that hold
    more than ``data.cache_mib`` MiB, it then lies in files, see :mod:`.stored`. Tables are held in
    memory.

    Returns:
        Source of kind "text" with the column ``text``; target int64 class ids, or none (task
        "language-model").

    Raises:
        SourceError: a missing or unreadable file, empty texts, a target that is missing.
    """
    where = data.source.removeprefix("text:")
    if "*" in where:
        return _documents_of(_shards(where), where, data)
    path, entry = _resolve(where, "text")
    if path.is_dir():
        return _folder(path, data)
    if path.name.lower().endswith(_PLAIN):
        return _documents_of([path], path.name, data)
    texts, _, raw = _table(path)
    column = _column(data.text, "text", texts, data.target, path.name)
    _require_text(texts[column], column, path.name)
    about = _about(path, entry, raw, len(texts[column]))
    target = data.target or (entry.target if entry else None)
    if target is None:
        others = [name for name in texts if name != column]
        target = others[-1] if others else None
    if data.task == "language-model" or target is None:
        rows = Rows({"text": texts[column]})
        return Source("text", "language-model", (), {"train": rows}, column, about)
    if target not in texts:
        raise _no_column(path.name, target, texts)
    classes, ids = np.unique(_require_text(texts[target], target, path.name), return_inverse=True)
    if len(classes) < 2 or len(classes) > max(20, len(ids) // 2):
        raise SourceError(
            f"{path.name}: the target {target!r} has {len(classes)} different values in "
            f"{len(ids)} rows, which are no classes to learn. Set `data.target`, or data.task to "
            "language-model to learn the text itself."
        )
    rows = Rows({"text": texts[column]}, ids.astype(np.int64))
    names = tuple(str(name) for name in classes)
    return Source("text", "classification", names, {"train": rows}, target, about)


def is_plain(source: str) -> bool:
    """Whether a source is text:PATH of plain files or folders of them, not of a table."""
    scheme, _, where = source.partition(":")
    table = where.startswith("@") or where.lower().endswith(delimited.ENDINGS)
    return scheme == "text" and not table


def open_pairs(data) -> Source:
    """``pairs:PATH`` or ``pairs:@NAME``: a table (.csv, .tsv, also .gz) of sources and targets.

    The target is ``data.target`` (by default the catalogue's choice, else the last column), the
    source ``data.text`` (by default the first other one). Pairs whose sources only differ in
    letter case, digits and punctuation form a group, which goes into one split as a whole.

    Returns:
        Source of kind "pairs", task "translation", with the columns ``source`` and ``target``.

    Raises:
        SourceError: a missing file or column, empty cells.
    """
    path, entry = _resolve(data.source.removeprefix("pairs:"), "pairs")
    texts, _, raw = _table(path)
    target = data.target or (entry.target if entry else None) or list(texts)[-1]
    if target not in texts:
        raise _no_column(path.name, target, texts)
    column = _column(data.text, None, texts, target, path.name)
    rows = {
        "source": _require_text(texts[column], column, path.name),
        "target": _require_text(texts[target], target, path.name),
    }
    return pairs_source(rows, _about(path, entry, raw, len(rows["source"])), target)


def texts_of(path: Path, data) -> list[str]:
    """The texts of a file for prediction: lines of plain text, or the column of a table that a
    recipe's data read. Raises SourceError."""
    if path.name.lower().endswith(_PLAIN):
        return [line for line in _plain(path).splitlines() if line.strip()]
    texts, _, _ = _table(path)
    usual = "text" if data.source.startswith("text:") else None
    return list(texts[_column(data.text, usual, texts, data.target, path.name)])


def pairs_source(columns: dict[str, np.ndarray], about: dict, target_name: str = "target"):
    """A source of pairs, grouped by what their sources have in common."""
    rows = Rows(columns, groups=pair_groups(columns["source"]))
    return Source("pairs", "translation", (), {"train": rows}, target_name, about)


def pair_groups(texts: Iterable[str]) -> np.ndarray:
    """int64 [n]: equal where texts differ only in case, digits, punctuation and blanks.

    A text without any letter stands for itself.
    """
    keys = [re.sub(r"[\W\d_]+", " ", text).strip().casefold() or text for text in texts]
    return np.unique(np.array(keys, object), return_inverse=True)[1].astype(np.int64)


def _resolve(where: str, kind: str) -> tuple[Path, catalog.Entry | None]:
    if not where.startswith("@"):
        path = Path(where).expanduser()
        if not path.exists():
            there = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
            raise SourceError(f"There is no {path}. {nearest(path.name, there)}".strip())
        return path, None
    entry = catalog.get(where)
    if entry.kind not in (kind, "pairs"):
        fitting = sorted(name for name, e in catalog.SETS.items() if e.kind == kind)
        raise SourceError(
            f"The data set {where!r} holds {entry.kind} ({entry.title}). `{kind}:` reads "
            f"{', '.join('@' + name for name in fitting)}."
        )
    return catalog.locate(where), entry


def _table(path: Path) -> tuple[dict[str, np.ndarray], str, bytes]:
    packed, raw = delimited.read_bytes(path)
    texts, delimiter = delimited.parse(raw, path.name)
    columns = {name: np.array(text.to_pylist(), object) for name, text in texts.items()}
    return columns, delimiter, packed


def _about(path: Path, entry: catalog.Entry | None, raw: bytes, rows: int) -> dict:
    import hashlib

    return {
        "file": path.name,
        "origin": entry.origin if entry else "",
        "licence": entry.licence if entry else "",
        "fingerprint": hashlib.sha256(raw).hexdigest(),
        "rows": rows,
    }


def _column(
    wanted: str | None, usual: str | None, texts: dict, target: str | None, name: str
) -> str:
    if wanted is not None and wanted not in texts:
        raise _no_column(name, wanted, texts)
    others = [column for column in texts if column != target]
    if not others:
        raise SourceError(
            f"{name} has the column {target!r} alone. Expected one with text beside the target."
        )
    return wanted or (usual if usual in others else others[0])


def _no_column(name: str, column: str, texts: dict) -> SourceError:
    return SourceError(
        f"{name} has no column {column!r}. {nearest(column, texts)}Its columns are "
        f"{', '.join(texts)}."
    )


def _require_text(values: np.ndarray, column: str, name: str) -> np.ndarray:
    empty = [row for row, value in enumerate(values, 1) if not value]
    if empty:
        shown = ", ".join(map(str, empty[:5])) + (", …" if len(empty) > 5 else "")
        raise SourceError(
            f"{name}: the column {column!r} is empty in {len(empty)} of {len(values)} rows (row "
            f"{shown}; the first below the header is row 1). Leave these rows out."
        )
    return values


def _lines(path: Path) -> Iterator[str]:
    """The lines of a plain text, each with its end, which is one line feed. SourceError."""
    packed = path.suffix.lower() == ".gz"
    encoding = "utf-8-sig"  # a byte order mark begins a file, if any
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    line = raw.decode(encoding)
                except UnicodeDecodeError as error:
                    raise SourceError(
                        f"{path}, line {number}: byte 0x{raw[error.start]:02x} is not UTF-8. Save "
                        "the file as UTF-8, for instance with `iconv -t UTF-8`."
                    ) from None
                encoding = "utf-8"
                yield line[:-2] + "\n" if line.endswith("\r\n") else line
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} cannot be read: {error}.") from None


def _plain(path: Path) -> str:
    text = "".join(_lines(path))
    if not text.strip():
        raise _empty(path)
    return text


def _documents(path: Path) -> Iterator[str]:
    """What stands between the empty lines of a plain text."""
    held, found, fresh = [], False, False  # fresh: the line before ended, and ends no empty line

    def whole() -> Iterator[str]:
        text = "".join(held)
        held.clear()
        if text.strip():
            yield text.strip("\n")

    for line in _lines(path):
        if fresh and line.endswith("\n") and not line.strip(" \t\n"):
            fresh = False
            for text in whole():
                found = True
                yield text
        else:
            held.append(line)
            fresh = line.endswith("\n")
    for text in whole():
        found = True
        yield text
    if not found:
        raise _empty(path)


def _empty(path: Path) -> SourceError:
    return SourceError(f"{path} is empty: there is nothing to learn.")


def _shards(pattern: str) -> list[Path]:
    """The plain texts that a pattern finds, in the order of their names."""
    found = sorted(map(Path, glob.glob(str(Path(pattern).expanduser()), recursive=True)))
    files = [path for path in found if path.is_file() and path.name.lower().endswith(_PLAIN)]
    if not files:
        raise SourceError(
            f"No file is called {pattern}, or none of them ends in {', '.join(_PLAIN)}."
        )
    return files


def _documents_of(files: list[Path], name: str, data) -> Source:
    def documents() -> Iterator[str]:
        for file in files:
            yield from _documents(file)

    return _language_model(documents, ["documents", stored.facts_of(files)], name, data, True)


def _folder(path: Path, data) -> Source:
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(_PLAIN))
    if not files:
        raise SourceError(f"{path} has no {', '.join(_PLAIN)} files.")
    parents = [file.relative_to(path).parts[0] if file.parent != path else "" for file in files]
    if data.task == "language-model" or len(set(parents)) < 2 or "" in parents:
        made_from = ["files", stored.facts_of(files)]
        return _language_model(lambda: map(_plain, files), made_from, path.name, data)
    texts = np.array([_plain(file) for file in files], object)
    classes, ids = np.unique(parents, return_inverse=True)
    about = {
        "folder": path.name,
        "fingerprint": fingerprint({"text": texts, "class": np.array(parents, object)}),
        "rows": len(texts),
    }
    names = tuple(str(name) for name in classes)
    rows = Rows({"text": texts}, ids.astype(np.int64))
    return Source("text", "classification", names, {"train": rows}, "class", about)


def _language_model(
    documents: Callable[[], Iterator[str]], made_from: list, name: str, data, in_time: bool = False
) -> Source:
    texts = stored.held(documents, made_from, data.cache_mib)
    facts = {"fingerprint": stored.fingerprint_of({"text": texts}), "rows": len(texts)}
    rows = {"train": Rows({"text": texts})}
    return Source("text", "language-model", (), rows, "text", {"file": name} | facts, in_time)
