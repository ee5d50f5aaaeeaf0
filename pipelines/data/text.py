"""Text: ``text:PATH`` (with labels, or to be continued) and ``pairs:PATH`` (text to text)."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from . import catalog, delimited
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
    one .txt file                           the text itself; a document ends at an empty line, and
                                            the file's end is the test
    ======================================  ======================================================

    Returns:
        Source of kind "text" with the column ``text``; target int64 class ids, or none (task
        "language-model").

    Raises:
        SourceError: a missing or unreadable file, empty texts, a target that is missing.
    """
    where = data.source.removeprefix("text:")
    path, entry = _resolve(where, "text")
    if path.is_dir():
        return _folder(path, data.task)
    if path.name.lower().endswith(_PLAIN):
        stored, text = _plain(path)
        documents = [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text) if part.strip()]
        return _language_model(documents, path.name, in_time=True)
    texts, _, stored = _table(path)
    column = _column(data.text, "text", texts, data.target, path.name)
    _require_text(texts[column], column, path.name)
    about = _about(path, entry, stored, len(texts[column]))
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
    texts, _, stored = _table(path)
    target = data.target or (entry.target if entry else None) or list(texts)[-1]
    if target not in texts:
        raise _no_column(path.name, target, texts)
    column = _column(data.text, None, texts, target, path.name)
    rows = {
        "source": _require_text(texts[column], column, path.name),
        "target": _require_text(texts[target], target, path.name),
    }
    return pairs_source(rows, _about(path, entry, stored, len(rows["source"])), target)


def texts_of(path: Path, data) -> list[str]:
    """The texts of a file for prediction: lines of plain text, or the column of a table that a
    recipe's data read. Raises SourceError."""
    if path.name.lower().endswith(_PLAIN):
        return [line for line in _plain(path)[1].splitlines() if line.strip()]
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
    stored, raw = delimited.read_bytes(path)
    texts, delimiter = delimited.parse(raw, path.name)
    columns = {name: np.array(text.to_pylist(), object) for name, text in texts.items()}
    return columns, delimiter, stored


def _about(path: Path, entry: catalog.Entry | None, stored: bytes, rows: int) -> dict:
    import hashlib

    return {
        "file": path.name,
        "origin": entry.origin if entry else "",
        "licence": entry.licence if entry else "",
        "fingerprint": hashlib.sha256(stored).hexdigest(),
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


def _plain(path: Path) -> tuple[bytes, str]:
    try:
        stored = path.read_bytes()
        raw = gzip.decompress(stored) if path.suffix.lower() == ".gz" else stored
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} cannot be read: {error}.") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8. Save the file as "
            "UTF-8, for instance with `iconv -t UTF-8`."
        ) from None
    if not text.strip():
        raise SourceError(f"{path} is empty: there is nothing to learn.")
    return stored, text.replace("\r\n", "\n")


def _folder(path: Path, task: str | None) -> Source:
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(_PLAIN))
    if not files:
        raise SourceError(f"{path} has no {', '.join(_PLAIN)} files.")
    texts = np.array([_plain(file)[1] for file in files], object)
    parents = [file.relative_to(path).parts[0] if file.parent != path else "" for file in files]
    if task == "language-model" or len(set(parents)) < 2 or "" in parents:
        return _language_model(list(texts), path.name)
    classes, ids = np.unique(parents, return_inverse=True)
    about = {
        "folder": path.name,
        "fingerprint": fingerprint({"text": texts, "class": np.array(parents, object)}),
        "rows": len(texts),
    }
    names = tuple(str(name) for name in classes)
    rows = Rows({"text": texts}, ids.astype(np.int64))
    return Source("text", "classification", names, {"train": rows}, "class", about)


def _language_model(documents: list[str], name: str, in_time: bool = False) -> Source:
    texts = np.array(documents, object)
    about = {"file": name, "fingerprint": fingerprint({"text": texts}), "rows": len(texts)}
    rows = Rows({"text": texts})
    return Source("text", "language-model", (), {"train": rows}, "text", about, in_time)
