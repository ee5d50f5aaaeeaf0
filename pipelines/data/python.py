"""Arrays and ready-made datasets given from Python: ``train(recipe, data=(x, y))``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .source import Rows, Source, SourceError, fingerprint, nearest, require_finite

SPLITS = ("train", "validation", "test")


def open_arrays(data, arrays: Any) -> Source:
    """A source from what Python has at hand.

    Args:
        data: the recipe's data slot; ``data.task`` overrides what the labels' dtype suggests
            (whole numbers, booleans and text: classification; floats: regression).
        arrays: ``(x, y)``; or a dict of splits, "train" among them, of such pairs; in place of a
            pair a finite tf.data.Dataset of (x, y), batched or not, which is read once and held
            in memory (at most ``data.cache_mib``). x is images [n,h,w,c], uint8 or float, or
            features [n,f] or [n]; y is [n] or [n,1]. x alone has no labels.

    Raises:
        SourceError: shapes or dtypes that do not fit, NaN or infinite values, labels that
            training lacks.
    """
    given = arrays if isinstance(arrays, dict) else {"train": arrays}
    for name in given:
        if name not in SPLITS:
            raise SourceError(
                f"Data for a split {name!r} were given. {nearest(name, SPLITS)}The splits are "
                f"{', '.join(SPLITS)}."
            )
    if "train" not in given:
        raise SourceError(f"Data for {', '.join(given) or 'no split'} were given, not for train.")
    pairs = {name: _pair(name, value, data.cache_mib) for name, value in given.items()}
    task = _task(None if data.task == "generation" else data.task, pairs)
    columns = {name: _examples(name, x) for name, (x, _) in pairs.items()}
    shapes = {name: next(iter(c.values())).shape[1:] for name, c in columns.items()}
    kinds = {name: (next(iter(c)), next(iter(c.values())).dtype) for name, c in columns.items()}
    for name in columns:
        if shapes[name] != shapes["train"] or kinds[name] != kinds["train"]:
            raise SourceError(
                f"Examples of the {name} split have the shape {shapes[name]} and dtype "
                f"{kinds[name][1]}, those of training {shapes['train']} and {kinds['train'][1]}. "
                "All splits need the same."
            )
    targets, classes = _targets(task, pairs)
    splits = {}
    for name, column in columns.items():
        target = targets.get(name)
        n = len(next(iter(column.values())))
        if target is not None and len(target) != n:
            raise SourceError(f"The {name} split has {n} examples, but {len(target)} targets.")
        splits[name] = Rows(column, target)
    parts = {f"{n}/{k}": v for n, rows in splits.items() for k, v in rows.columns.items()}
    about = {
        "origin": "given from Python",
        "fingerprint": fingerprint(parts | {f"{n}/y": y for n, y in targets.items()}),
    }
    kind = kinds["train"][0]
    return Source(kind, task, classes, splits, "target" if targets else "", about)


def _pair(name: str, value: Any, cache_mib: int) -> tuple[np.ndarray, np.ndarray | None]:
    if hasattr(value, "element_spec"):
        return _read(name, value, cache_mib)
    if isinstance(value, tuple) and len(value) == 2:
        return np.asarray(value[0]), np.asarray(value[1])
    if isinstance(value, tuple):
        raise SourceError(
            f"The {name} split was given as {len(value)} arrays; give (x, y), or x alone."
        )
    return np.asarray(value), None


def _read(name: str, dataset: Any, cache_mib: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A tf.data dataset as arrays. Batched, if its targets (or its rows of features) are."""
    spec = dataset.element_spec
    labelled = isinstance(spec, tuple)
    if (labelled and len(spec) != 2) or isinstance(spec, dict):
        raise SourceError(f"The {name} dataset gives {spec}; it must give (x, y) or x.")
    x_rank = (spec[0] if labelled else spec).shape.rank
    y_rank = spec[1].shape.rank if labelled else None
    if int(dataset.cardinality()) == -1:
        raise SourceError(f"The {name} dataset never ends. Give a finite one, without repeat().")
    batched = x_rank in (2, 4) and y_rank in (None, 1, 2)
    elements = dataset if batched else dataset.batch(256)
    xs, ys, size = [], [], 0
    for element in elements.as_numpy_iterator():
        x, y = element if labelled else (element, None)
        size += x.nbytes
        if size > cache_mib * 2**20:
            raise SourceError(
                f"The {name} dataset is larger than data.cache_mib ({cache_mib} MiB): a dataset "
                "from Python is held in memory. Raise the limit, or use a source that streams, "
                "folder:PATH or tfds:NAME."
            )
        xs.append(x)
        ys.append(y)
    if not xs:
        raise SourceError(f"The {name} dataset is empty.")
    y = np.concatenate(ys) if labelled else None
    if y is not None and y.dtype == object:
        y = np.array([text.decode() for text in y.ravel()])
    return np.concatenate(xs), y


def _examples(name: str, x: np.ndarray) -> dict[str, np.ndarray]:
    if x.dtype.kind not in "fiub":
        raise SourceError(
            f"x of the {name} split has the dtype {x.dtype}; numbers are needed. Tables with text "
            "columns are read by csv:PATH."
        )
    if x.ndim in (3, 5):
        raise SourceError(
            f"x of the {name} split has the shape {x.shape}. Images are [n, height, width, "
            "channels]: use x[..., None] for one channel."
        )
    if x.ndim not in (1, 2, 4) or 0 in x.shape:
        raise SourceError(
            f"x of the {name} split has the shape {x.shape}; images [n, height, width, channels] "
            "or features [n, f] are needed."
        )
    if x.ndim == 4:
        if x.shape[3] not in (1, 3):
            raise SourceError(
                f"x of the {name} split has the shape {x.shape}: images have 1 or 3 channels, in "
                "the last place."
            )
        if x.dtype != np.uint8 and x.dtype.kind != "f":
            raise SourceError(f"Images are uint8 (0..255) or float; {name} has {x.dtype}.")
    if x.dtype != np.uint8 or x.ndim != 4:
        require_finite(f"x of the {name} split", x)
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused
            x = x.astype(np.float32, copy=False)
        require_finite(f"x of the {name} split, as float32", x)
    return {"image": x} if x.ndim == 4 else {"features": x.reshape(len(x), -1)}


def _task(wanted: str | None, pairs: dict[str, tuple[np.ndarray, np.ndarray | None]]) -> str:
    without = [name for name, (_, y) in pairs.items() if y is None]
    if without and len(without) < len(pairs):
        raise SourceError(f"Targets are missing for {', '.join(without)}, but not for all splits.")
    if without:
        return "unlabelled"
    return wanted or ("regression" if pairs["train"][1].dtype.kind == "f" else "classification")


def _targets(task: str, pairs) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Targets by split (ids or float32), and the class names in the order of the ids."""
    if task == "unlabelled":
        return {}, ()
    given = {}
    for name, (_, y) in pairs.items():
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1:
            raise SourceError(
                f"y of the {name} split has the shape {y.shape}; one target an example, [n], is "
                "needed. For one-hot labels give y.argmax(axis=1)."
            )
        if y.dtype.kind == "O":
            if not all(isinstance(label, str) for label in y):
                raise SourceError(f"y of the {name} split holds neither numbers nor only text.")
            y = y.astype(str)
        if y.dtype.kind == "f":
            require_finite(f"y of the {name} split", y)
        given[name] = y
    if task == "regression":
        if given["train"].dtype.kind not in "fiub":
            raise SourceError(f"y has the dtype {given['train'].dtype}; regression needs numbers.")
        return {name: y.astype(np.float32) for name, y in given.items()}, ()
    known = np.unique(given["train"])
    if given["train"].dtype.kind == "f" and not (known == np.rint(known)).all():
        raise SourceError(
            f"data.task is classification, but y holds fractions such as {known[known % 1 > 0][0]}."
            " Give class ids or names, or set data.task to regression."
        )
    ids = {}
    for name, y in given.items():
        unknown = np.setdiff1d(y, known)
        if len(unknown):
            shown = ", ".join(str(label) for label in unknown[:5])
            raise SourceError(
                f"The {name} split has labels that training lacks: {shown}. A class can only be "
                "learnt from examples: add some to training, or take them out here."
            )
        ids[name] = np.searchsorted(known, y).astype(np.int64)
    names = known.astype(np.int64) if known.dtype.kind == "f" else known
    return ids, tuple(str(name) for name in names)
