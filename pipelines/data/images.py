"""Image files: in class folders (``folder:``) or without labels (``images:``).

Every file is decoded once when the source is opened, in parallel, so that a broken one is named
before training; after that files are read when they are needed. :mod:`.decode` says what becomes
of each kind of file. In particular the orientation in a photo's EXIF data is ignored: turn such
photos upright before (``exiftran -ai``, ``ImageOps.exif_transpose`` of Pillow).
"""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .source import Rows, Source, SourceError, nearest

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
SPLITS = ("train", "validation", "test")
_log = logging.getLogger(__name__)


class _Checked(NamedTuple):
    size: tuple[int, int] | None  # height, width; None for a file that cannot be decoded
    gray: bool
    digest: str
    reason: str = ""


def open_folder(data) -> Source:
    """``folder:PATH``: PATH/CLASS/files, or PATH/train/CLASS/files and the same under test and
    validation.

    Raises SourceError for a path that does not exist or has no class folders, an empty class
    folder, a class that training lacks, and unreadable files unless ``data.skip_corrupt``.
    """
    root = _root(data)
    if not root.is_dir():
        raise SourceError(f"{data.source}: {root} is a file; folder: takes a directory.")
    folders = _folders(root)
    own = {name: root / name for name in SPLITS if name in folders and _folders(root / name)}
    if own and "train" not in own:
        raise SourceError(
            f"{root} has {', '.join(own)} but no train folder. Training examples belong into "
            f"{root / 'train'}/CLASS/."
        )
    if own and (others := sorted(set(folders) - set(own))):
        raise SourceError(
            f"{root} mixes the split folders {', '.join(own)} with {', '.join(others[:5])}. Leave "
            "either only train, test and validation there, or only class folders."
        )
    places = own or {"train": root}
    classes = _folders(places["train"])
    if not classes:
        raise SourceError(
            f"{places['train']} has no class folders. Put the images of each class into a folder "
            "with its name, or use images:PATH for images without labels."
        )
    files: dict[str, list[Path]] = {}
    labels: dict[str, np.ndarray] = {}
    for split, place in places.items():
        found = {name: _files(place / name, deep=True) for name in _folders(place)}
        for name, members in found.items():
            if name not in classes:
                raise SourceError(
                    f"The class {name!r} is in {place} but not in training. "
                    f"{nearest(name, classes)}The classes of training are "
                    f"{', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}."
                )
            if not members:
                raise SourceError(
                    f"The class folder {place / name} has no images "
                    f"({', '.join(SUFFIXES)}). Fill it or remove it."
                )
        files[split] = [path for members in found.values() for path in members]
        ids = [classes.index(name) for name, members in found.items() for _ in members]
        labels[split] = np.array(ids, np.int64)
    return _source(data, root, files, labels, tuple(classes))


def open_images(data) -> Source:
    """``images:PATH``: every image under PATH at any depth, or one file; no labels.

    Raises SourceError as :func:`open_folder`.
    """
    root = _root(data)
    found = [root] if root.is_file() else _files(root, deep=True)
    if not found:
        raise SourceError(f"There are no images ({', '.join(SUFFIXES)}) under {root}.")
    return _source(data, root, {"train": found}, {}, ())


def _root(data) -> Path:
    rest = data.source.partition(":")[2]
    if rest.startswith("@"):
        from .catalog import locate

        return Path(locate(rest[1:]))
    root = Path(rest).expanduser()
    if not root.exists():
        parent = root.parent
        near = nearest(root.name, os.listdir(parent)) if parent.is_dir() else ""
        raise SourceError(
            f"{data.source}: {root} does not exist. {near}Relative paths start at the working "
            f"directory, {Path.cwd()}."
        )
    return root.absolute()


def _folders(place: Path) -> list[str]:
    return sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(place: Path, deep: bool) -> list[Path]:
    found = []
    for folder, inner, names in os.walk(place, followlinks=True):
        inner[:] = sorted(name for name in inner if deep and not name.startswith("."))
        found += [
            Path(folder, name)
            for name in sorted(names)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return found


def _source(data, root, files, labels, classes) -> Source:
    every = [path for members in files.values() for path in members]
    checked = dict(zip(every, check_files(every), strict=True))
    bad = [(path, result.reason) for path, result in checked.items() if result.size is None]
    if bad and not data.skip_corrupt:
        shown = "; ".join(f"{path} ({reason})" for path, reason in bad[:3])
        raise SourceError(
            f"{len(bad)} of {len(every)} images cannot be read: {shown}"
            f"{'; …' if len(bad) > 3 else ''}. Repair or remove them, or leave them out with "
            "--data.skip-corrupt true (they are counted in the run's dataset.json)."
        )
    good = {path: result for path, result in checked.items() if result.size is not None}
    if not good:
        raise SourceError(f"None of the {len(every)} images under {root} can be read.")
    splits = {}
    digest = hashlib.sha256()
    for split, members in files.items():
        keep = np.array([path in good for path in members], bool)
        target = labels[split][keep] if labels else None
        paths = [path for path in members if path in good]
        splits[split] = Rows({"path": np.array([str(path) for path in paths], object)}, target)
        for path in paths:
            digest.update(f"{split}|{path.relative_to(root)}|{good[path].digest}\n".encode())
    about: dict[str, Any] = {
        "origin": str(root),
        "fingerprint": digest.hexdigest(),
        "files": len(good),
        "skipped": len(bad),
        "skipped_files": [str(path) for path, _ in bad],
        "image": _image(good),
    }
    task = "classification" if labels else "unlabelled"
    return Source("image", task, classes, splits, "class" if labels else "", about)


def _image(good: dict[Path, _Checked]) -> dict[str, Any]:
    """Size (None if it varies) and channels (1 if all pixels of all images are gray) of a set."""
    sizes = {result.size for result in good.values()}
    height, width = next(iter(sizes)) if len(sizes) == 1 else (None, None)
    channels = 1 if all(result.gray for result in good.values()) else 3
    return {"height": height, "width": width, "channels": channels, "dtype": "uint8"}


def check_files(paths: list[Path]) -> list[_Checked]:
    """Decodes each file as training will; in threads, with as many images in memory as threads."""
    import tensorflow as tf

    from .decode import decode_rgb

    def look(content):
        image = decode_rgb(content)
        gray = tf.reduce_all(image == image[..., :1])
        return tf.concat([tf.shape(image)[:2], [tf.cast(gray, tf.int32)]], 0)

    # one graph for all: eager calls would hold Python's lock for most of the time
    look = tf.function(look, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)

    def check(path: Path) -> _Checked:
        try:
            content = path.read_bytes()
        except OSError as error:
            return _Checked(None, False, "", error.strerror or str(error))
        if not content:
            return _Checked(None, False, "", "empty")
        try:
            height, width, gray = look(content).numpy().tolist()
        except tf.errors.OpError as error:
            unknown = "Unknown image" in error.message
            reason = "not an image" if unknown else "corrupt, or of a kind that is not read"
            return _Checked(None, False, "", reason)
        return _Checked((height, width), bool(gray), hashlib.sha256(content).hexdigest())

    workers = os.cpu_count() or 1
    results: list[_Checked] = []
    with ThreadPoolExecutor(workers) as pool:
        waiting = iter(paths)
        while block := list(islice(waiting, 1024 * workers)):
            results += pool.map(check, block)
            _log.info("checked %d of %d images", len(results), len(paths))
    return results
