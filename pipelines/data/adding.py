"""The adding problem: how far back can a network remember two numbers?

Hochreiter and Schmidhuber (1997), section 5.4, made it to show what the LSTM can and a plain
recurrent network cannot. Here it is in the form of later comparisons (Le, Jaitly, Hinton 2015:
A simple way to initialize recurrent networks of rectified linear units, section 4.1): a sequence of
numbers, uniform on [0, 1), of which two are marked, one in each half; the target is their sum. Who
always answers 1 has a mean squared error of 1/6 = 0.167, the sum's variance.
"""

from __future__ import annotations

import numpy as np

from .source import Rows, Source, SourceError, fingerprint
from .splits import uniform

LENGTH = 150
EXAMPLES = {"train": 20_000, "validation": 1_000, "test": 4_000}


def open_adding(data) -> Source:
    """``builtin:adding`` or ``builtin:adding/LENGTH``: sequences of LENGTH (by default 150) steps.

    ``features`` float32 [n,t,2]: the numbers, and a marker that is 1 at one step of each half and
    else 0. 20,000 examples to train (or ``data.train_examples``), 1,000 to validate and 4,000 to
    test; they are functions of ``data.split_seed``. Raises SourceError for a length below 2.
    """
    _, slash, given = data.source.partition("/")
    if slash and not (given.isdecimal() and int(given) >= 2):
        raise SourceError(
            f"{data.source!r}: after `adding/` comes the length of a sequence, 2 or more, such as "
            "builtin:adding/150."
        )
    length = int(given) if slash else LENGTH
    counts = EXAMPLES | {"train": data.train_examples or EXAMPLES["train"]}
    splits = {name: _rows(count, length, data.split_seed, name) for name, count in counts.items()}
    about = {
        "origin": "made by this package; Hochreiter and Schmidhuber 1997, section 5.4",
        "fingerprint": fingerprint({n: rows.columns["features"] for n, rows in splits.items()}),
        "examples": sum(counts.values()),
        "columns": ["number", "marker"],
    }
    return Source("features", "regression", (), splits, "sum of the marked numbers", about)


def _rows(count: int, length: int, seed: int, split: str) -> Rows:
    numbers = uniform(count * length, seed, f"adding numbers {split}").astype(np.float32)
    numbers = numbers.reshape(count, length)
    marked = uniform(2 * count, seed, f"adding markers {split}").reshape(count, 2)
    half = length // 2
    first = (marked[:, 0] * half).astype(np.int64)
    second = half + (marked[:, 1] * (length - half)).astype(np.int64)
    features = np.zeros([count, length, 2], np.float32)
    features[:, :, 0] = numbers
    each = np.arange(count)
    features[each, first, 1] = features[each, second, 1] = 1
    return Rows({"features": features}, numbers[each, first] + numbers[each, second])
