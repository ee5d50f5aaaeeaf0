"""English prose that every installation has: the documentation inside the installed libraries.

``builtin:docstrings``: paragraphs of the docstrings of some of epochal's own dependencies, labelled
by library. A real text source of some hundred thousand words that needs no download. Source files
are parsed, never imported. Which paragraphs there are depends on the versions installed, which the
fingerprint and ``about["versions"]`` say.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import gc
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

from .source import Rows, Source, SourceError, fingerprint

LIBRARIES = ("keras", "matplotlib", "numpy", "scikit-learn", "scipy", "tensorflow")
_WORDS = range(12, 120)  # of a paragraph; shorter ones are headings and fragments
_PER_LIBRARY = 4_000  # paragraphs, at most, so that the largest library does not drown the others
_FILES = 500  # files of a library, at most


def open_docstrings(task: str | None = None) -> Source:
    """Paragraphs in the column ``text``, the library as class (or, with the task "language-model",
    no target). SourceError where none is found."""
    texts, labels, versions = [], [], {}
    for label, library in enumerate(LIBRARIES):
        with _uncollected():
            found = _paragraphs(library)
        versions[library] = metadata.version(library)
        texts += found
        labels += [label] * len(found)
        if not found:
            raise SourceError(
                f"The installed {library} {versions[library]} has no docstrings (was it installed "
                "without sources, or stripped?), so builtin:docstrings cannot be read."
            )
    columns = {"text": np.array(texts, object)}
    target = np.array(labels, np.int64)
    about = {
        "origin": "docstrings of the installed libraries, under their own licences",
        "versions": versions,
        "fingerprint": fingerprint({**columns, "target": target}),
        "rows": len(texts),
    }
    if task == "language-model":
        rows = {"train": Rows(columns)}
        return Source("text", "language-model", (), rows, "text", about)
    rows = {"train": Rows(columns, target)}
    return Source("text", "classification", LIBRARIES, rows, "library", about)


def _paragraphs(library: str) -> list[str]:
    """Different paragraphs of prose of a library, in the order of its files."""
    found: dict[str, None] = {}
    for path in _files(library):
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):  # templates and the like
            continue
        for node in _documented(tree):
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                text = " ".join(paragraph.split())
                if _is_prose(text):
                    found[text] = None
        if len(found) >= _PER_LIBRARY:
            break
    return list(found)[:_PER_LIBRARY]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: syntax trees are many objects and no cycles, and searching them
    for such, with all of TensorFlow beside them, takes as long as parsing."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _documented(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef]:
    """The module, its classes and functions in the order of ``ast.walk``, which visits every
    expression too, ten nodes for one."""
    waiting = collections.deque([tree])
    while waiting:
        node = waiting.popleft()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield node
        waiting.extend(
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case)
        )


def _files(library: str) -> list[Path]:
    """Its Python files without tests, spread evenly where there are too many."""
    names = metadata.distribution(library).files or []
    paths = sorted(
        str(name)
        for name in names
        if str(name).endswith(".py")
        and not re.search(r"(^|/)(tests?|testing)(/|_)|_test\.py", str(name))
    )
    chosen = paths[:: max(1, len(paths) // _FILES)]
    return [Path(metadata.distribution(library).locate_file(path)) for path in chosen]


def _is_prose(text: str) -> bool:
    """Sentences, rather than code, tables, lists of arguments or headings."""
    if len(text.split()) not in _WORDS or not text[0].isupper() or text[-1] not in ".!?":
        return False
    if re.search(r">>>|\.\. |::|==|--|\|", text):
        return False
    return sum(c.isalpha() or c == " " for c in text) > 0.88 * len(text)
