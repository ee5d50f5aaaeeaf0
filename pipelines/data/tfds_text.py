"""Text of TensorFlow Datasets: with classes or translated, held in memory; or by itself, which lies
in files where it is larger than ``data.cache_mib`` (see :mod:`.stored`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import stored
from .source import Rows, Source, SourceError
from .text import pair_groups


def open_texts(data, builder, splits: dict[str, str], keys, about: dict[str, Any]) -> Source:
    """A source of kind "text", or "pairs" where the target is text too.

    Args:
        data: the recipe's data; its task "language-model" leaves out the target.
        builder: of a prepared set.
        splits: our name -> the set's.
        keys: names of the features (text, target or None).
        about: what the source knows of itself.

    Raises:
        SourceError: a target that is neither text nor a class.
    """
    import tensorflow_datasets as tfds

    text, target = keys if data.task != "language-model" else (keys[0], None)
    kind = None if target is None else builder.info.features[target]
    classes: tuple[str, ...] = ()
    if isinstance(kind, tfds.features.ClassLabel):
        classes = tuple(kind.names or map(str, range(kind.num_classes)))
    elif kind is not None and not isinstance(kind, tfds.features.Text):
        raise SourceError(
            f"The target of {data.source} is {kind!r}; of text, classes and other text can be "
            "learnt. Set data.task to language-model to learn the text itself."
        )
    held, facts = {}, {}
    for ours in ("train", "validation", "test"):
        if ours not in splits:
            continue
        if target is None:
            held[ours] = Rows({"text": _by_itself(builder, splits[ours], text, data.cache_mib)})
            facts[f"{ours}/text"] = held[ours].columns["text"]
            continue
        examples = list(builder.as_dataset(split=splits[ours]).as_numpy_iterator())
        texts = np.array([example[text].decode("utf-8", "replace") for example in examples], object)
        if classes:
            labels = np.array([example[target] for example in examples], np.int64)
            held[ours] = Rows({"text": texts}, labels)
        else:
            answers = [example[target].decode("utf-8", "replace") for example in examples]
            columns = {"source": texts, "target": np.array(answers, object)}
            held[ours] = Rows(columns, groups=pair_groups(texts))
        facts |= {f"{ours}/{name}": column for name, column in held[ours].columns.items()}
    about = about | {"fingerprint": stored.fingerprint_of(facts)}
    if classes:
        return Source("text", "classification", classes, held, target, about)
    if target is not None:
        return Source("pairs", "translation", (), held, target, about)
    return Source("text", "language-model", (), held, text, about)


def _by_itself(builder, split: str, feature: str, mib: int) -> np.ndarray | stored.StoredTexts:
    """The texts of a split, read one by one from its record files."""
    import tensorflow_datasets as tfds

    def texts() -> Iterator[str]:
        config = tfds.ReadConfig(try_autocache=False)  # which would hold small sets in memory
        for example in builder.as_dataset(split=split, read_config=config).as_numpy_iterator():
            yield example[feature].decode("utf-8", "replace")

    files = sorted(map(Path, builder.info.splits[split].filepaths))
    made_from = ["tfds", builder.info.full_name, split, feature, stored.facts_of(files)]
    return stored.held(texts, made_from, mib)
