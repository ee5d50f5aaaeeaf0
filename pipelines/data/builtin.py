"""Sets that need no download and no files: those of installed libraries, and generated tasks."""

from __future__ import annotations

import numpy as np

from . import generated
from .adding import open_adding
from .docstrings import open_docstrings
from .ring import open_ring
from .source import Rows, Source, SourceError, fingerprint, nearest
from .sunspots import open_sunspots

# name -> (loader, origin and licence)
_SETS = {
    "digits": (
        "load_digits",
        "UCI Optical Recognition of Handwritten Digits (test part), CC BY 4.0",
    ),
    "iris": ("load_iris", "UCI Iris (Fisher 1936), CC BY 4.0"),
    "wine": ("load_wine", "UCI Wine recognition, CC BY 4.0"),
    "breast_cancer": ("load_breast_cancer", "UCI Breast Cancer Wisconsin (Diagnostic), CC BY 4.0"),
    "diabetes": ("load_diabetes", "Efron et al. 2004, Least Angle Regression; via scikit-learn"),
}


def open_builtin(data) -> Source:
    """``builtin:NAME``. digits: uint8 images [1797,8,8,1], the 17 gray levels spread over 0..255;
    iris, wine, breast_cancer, diabetes: features in their own units; docstrings: see
    :mod:`.docstrings`; copy, dates, reverse, sort: see :mod:`.generated`; ring: see
    :mod:`.ring`; adding/LENGTH: see :mod:`.adding`; sunspots: see :mod:`.sunspots`. Raises
    SourceError for an unknown name."""
    name = data.source.partition(":")[2]
    if name.partition("/")[0] == "adding":
        return open_adding(data)
    if name.partition("/")[0] in generated.NAMES:
        return generated.open_generated(name)
    if name == "ring":
        return open_ring()
    if name == "sunspots":
        return open_sunspots(data)
    if name == "docstrings":
        return open_docstrings(data.task)
    if name not in _SETS:
        known = sorted((*_SETS, *generated.NAMES, "adding", "docstrings", "ring", "sunspots"))
        raise SourceError(
            f"There is no built-in set {name!r}. {nearest(name, known)}They are {', '.join(known)}."
        )
    from sklearn import datasets

    loader, origin = _SETS[name]
    options = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(datasets, loader)(**options)
    regression = name == "diabetes"
    if name == "digits":
        columns = {"image": np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]}
    else:
        columns = {"features": bunch.data.astype(np.float32)}
    target = bunch.target.astype(np.float32 if regression else np.int64)
    about = {
        "origin": origin,
        "fingerprint": fingerprint({**columns, "target": target}),
        "examples": len(target),
    }
    if name != "digits":
        about["columns"] = [str(column) for column in bunch.feature_names]
    return Source(
        kind="image" if name == "digits" else "features",
        task="regression" if regression else "classification",
        classes=() if regression else tuple(str(label) for label in bunch.target_names),
        splits={"train": Rows(columns, target)},
        target_name="disease progression after one year" if regression else "class",
        about=about,
    )
