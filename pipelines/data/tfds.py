"""Sets prepared by TensorFlow Datasets: ``tfds:NAME`` or ``tfds:NAME/CONFIG``.

Only what is already on disk is used; nothing is ever downloaded. Sets that decode to at most
``data.cache_mib`` are held in memory; larger ones stream from their record files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from . import tfds_text
from .source import Records, Rows, Source, SourceError, nearest, require_finite

SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}


def open_tfds(data) -> Source:
    """A prepared set with an input and one target (its ``supervised_keys``), or of text alone.

    Images, vectors of numbers; text with classes (kind "text"), with text (kind "pairs"), or by
    itself, to be continued. It is looked for in ``TFDS_DATA_DIR``, else in ~/tensorflow_datasets.
    Raises SourceError where it is not prepared, is none of these, or its files are missing.
    """
    place = _prepared(data.source.partition(":")[2].replace(":", "/"))
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(place))
    info = builder.info
    keys = info.supervised_keys
    found = {SPLITS[split]: split for split in info.splits if split in SPLITS}
    if "train" not in found:
        raise SourceError(f"{data.source} has no train split, but {', '.join(info.splits)}.")
    about = {
        "origin": info.homepage or f"TensorFlow Datasets {info.full_name}",
        "licence": (info.redistribution_info.license or "") if _has_licence(info) else "",
        "name": info.full_name,
    }
    texts = [name for name in info.features if isinstance(info.features[name], tfds.features.Text)]
    if (keys[0] if keys else None) in texts or (not keys and len(texts) == 1):
        return tfds_text.open_texts(data, builder, found, keys or (texts[0], None), about)
    if not keys or len(keys) != 2 or not all(isinstance(key, str) for key in keys):
        raise SourceError(
            f"{data.source} does not say which feature is the input and which the target "
            f"(supervised_keys: {keys}). Sets of images, of vectors and of text are supported."
        )
    inputs, target = (info.features[key] for key in keys)
    kind = _kind(tfds, inputs, data.source)
    classes, task = _task(tfds, target, data.source)
    records = {
        ours: _records(info, theirs, keys, kind, task, data.source)
        for ours, theirs in found.items()
    }
    records = {
        split: records[split]
        for split in ("train", "validation", "test")
        if split in found and not (task == "classification" and _secret(records[split]))
    }
    return Source(
        kind=kind,
        task=task,
        classes=classes,
        splits=_held(records, kind, task, data),
        target_name=keys[1],
        about=about | {"fingerprint": _fingerprint(info, records)},
    )


def _prepared(name: str) -> Path:
    """The newest prepared version's directory."""
    root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    base = root / name

    def versions(place: Path) -> list[Path]:
        found = place.glob("*/dataset_info.json") if place.is_dir() else ()
        return sorted(
            (file.parent for file in found if file.parent.name.replace(".", "").isdigit()),
            key=lambda version: tuple(int(part) for part in version.name.split(".")),
        )

    if versions(base):
        return versions(base)[-1]
    if (base / "dataset_info.json").exists():  # NAME/VERSION or NAME/CONFIG/VERSION
        return base
    configs = sorted(p.name for p in base.iterdir() if versions(p)) if base.is_dir() else []
    if len(configs) == 1:
        return versions(base / configs[0])[-1]
    if configs:
        raise SourceError(
            f"tfds:{name} is prepared in several configurations; name one: "
            + ", ".join(f"tfds:{name}/{config}" for config in configs)
            + "."
        )
    there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    listed = f"Prepared there: {', '.join(there)}. " if there else "Nothing is prepared there. "
    raise SourceError(
        f"tfds:{name} is not prepared under {root}. {nearest(name, there)}{listed}Set "
        "TFDS_DATA_DIR to a directory that has it, or prepare it with your own command, which may "
        f"download: tfds build {name} --data_dir {root}"
    )


def _has_licence(info) -> bool:
    return bool(getattr(info, "redistribution_info", None))


def _kind(tfds, inputs, source: str) -> str:
    if isinstance(inputs, tfds.features.Image):
        if np.dtype(inputs.np_dtype) == np.uint8 and inputs.shape[-1] in (1, 3):
            return "image"
    elif isinstance(inputs, tfds.features.Tensor) and len(inputs.shape) <= 1:
        numbers = np.dtype(inputs.np_dtype).kind in "fiub"
        if numbers and None not in inputs.shape:
            return "features"
    raise SourceError(
        f"The input of {source} is {inputs!r}; uint8 images of 1 or 3 channels and vectors of "
        "numbers are supported."
    )


def _secret(records: Records) -> bool:
    """Whether a split's labels were never published, as ImageNet's of its test images: all -1."""
    import tensorflow as tf

    first = tf.data.TFRecordDataset(records.files).take(32).map(records.parse_target)
    labels = list(first.as_numpy_iterator())
    return bool(labels) and max(labels) < 0


def _task(tfds, target, source: str) -> tuple[tuple[str, ...], str]:
    if isinstance(target, tfds.features.ClassLabel):
        names = target.names or [str(label) for label in range(target.num_classes)]
        return tuple(names), "classification"
    if target.shape == () and np.dtype(target.np_dtype).kind in "fiu":
        return (), "regression"
    raise SourceError(
        f"The target of {source} is {target!r}; class labels and single numbers are supported."
    )


def _records(info, split: str, keys, kind: str, task: str, source: str) -> Records:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    from .decode import decode_rgb, to_channels

    part = info.splits[split]
    files = tuple(str(path) for path in part.filepaths)
    if str(info.file_format.value) != "tfrecord":
        raise SourceError(
            f"{source} is stored as {info.file_format.value}; prepare it again as tfrecord, "
            "TensorFlow's own record format: tfds build --file_format tfrecord"
        )
    missing = [path for path in files if not os.path.exists(path)]
    if missing:
        raise SourceError(
            f"{len(missing)} of {len(files)} files of {source} are missing, the first is "
            f"{missing[0]}. Prepare the set again, or copy it completely."
        )
    features = info.features
    partial = {key: type(features)({key: features[key]}) for key in keys}
    dtype = tf.int64 if task == "classification" else tf.float32

    def parse_target(serialized):
        return tf.cast(partial[keys[1]].deserialize_example(serialized)[keys[1]], dtype)

    shape = tuple(features[keys[0]].shape)
    # Images are decoded as they are when a model is served. TFDS takes the fast transform of JPEG
    # files, whose pixels are up to six levels off.
    decoders = {keys[0]: tfds.decode.SkipDecoding()} if kind == "image" else None

    def parse(serialized):
        example = features.deserialize_example(serialized, decoders=decoders)
        x = example[keys[0]]
        if kind == "image":
            x = tf.ensure_shape(to_channels(decode_rgb(x), shape[-1]), shape)
        else:
            x = tf.reshape(tf.cast(x, tf.float32), [math.prod(shape)])
        return x, tf.cast(example[keys[1]], dtype)

    return Records(
        files,
        tuple(part.shard_lengths),
        shape if kind == "image" else (math.prod(shape),),
        parse,
        parse_target,
    )


def _held(records: dict[str, Records], kind: str, task: str, data) -> dict[str, Rows | Records]:
    """In memory, if all of it fits; images of varying size always stream."""
    import tensorflow as tf

    from .stream import end_at_once

    shape = records["train"].shape
    if None in shape:
        return dict(records)
    item = np.dtype(np.uint8 if kind == "image" else np.float32)
    size = sum(len(part) for part in records.values()) * math.prod(shape) * item.itemsize
    if size > data.cache_mib * 2**20:
        if kind == "features":
            raise SourceError(
                f"{data.source} takes {size / 2**20:,.0f} MiB, more than data.cache_mib "
                f"({data.cache_mib}). Only images stream; raise data.cache_mib."
            )
        return dict(records)
    held: dict[str, Rows | Records] = {}
    for split, part in records.items():
        x = np.empty((len(part), *shape), item)
        y = np.empty(len(part), np.int64 if task == "classification" else np.float32)
        rows = tf.data.TFRecordDataset(part.files).map(
            part.parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        options = tf.data.Options()
        end_at_once(options)
        rows = rows.with_options(options)
        start = 0
        for images, targets in rows.batch(1024).prefetch(2).as_numpy_iterator():
            x[start : start + len(targets)], y[start : start + len(targets)] = images, targets
            start += len(targets)
        if start != len(part):
            raise SourceError(
                f"{data.source} should have {len(part)} examples in {split}, but its files have "
                f"{start}. Prepare the set again."
            )
        require_finite(f"{split} of {data.source}", x)
        held[split] = Rows({"image" if kind == "image" else "features": x}, y)
    return held


def _fingerprint(info, records: dict[str, Records]) -> str:
    """SHA-256 over the set's full name and its files' names, sizes and numbers of examples."""
    facts: list[Any] = [info.full_name]
    for split, part in records.items():
        files = [(os.path.basename(p), os.path.getsize(p)) for p in part.files]
        facts.append([split, list(part.shard_lengths), files])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
