"""Names of classes without examples (``labels:``): for weights that are taken as they are.

A published classifier needs no data to answer, only the names of its classes in their order. A
recipe with such a source and ``algorithm.epochs`` 0 becomes a run that predicts, exports, serves.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from .source import Source, SourceError, fingerprint, nearest


def open_labels(data) -> Source:
    """``labels:PATH``: a text file (UTF-8) with one class a line, in the order of the class ids; or
    ``labels:N``: the N classes "0", "1", .... Inputs are colour images of any size.

    A name that stands there more than once ("crane", the bird and the machine) gets its id added.
    Raises SourceError for a file that is missing or no such text, and for fewer than two classes.
    """
    rest = data.source.partition(":")[2]
    if rest.isdigit():
        names = [str(i) for i in range(int(rest))]
    else:
        names = _lines(Path(rest).expanduser())
    if len(names) < 2:
        raise SourceError(
            f"{data.source} has {len(names)} classes; to tell apart are at least two."
        )
    times = Counter(names)
    classes = [name if times[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]
    about = {
        "origin": data.source,
        "fingerprint": fingerprint({"classes": np.array(classes)}),
        "image": {"height": None, "width": None, "channels": 3, "dtype": "uint8"},
    }
    return Source("image", "classification", tuple(classes), {}, "class", about)


def _lines(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SourceError(
            f"There is no file {path}. {nearest(path.name, beside)}It has one class a line, in the "
            "order of the class ids; labels:1000 numbers a thousand classes instead."
        ) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SourceError(f"{path} is no text in UTF-8. It has one class a line.") from None
    if "" in names:
        raise SourceError(f"Line {names.index('') + 1} of {path} is empty: it has a class a line.")
    return names
