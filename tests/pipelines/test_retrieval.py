"""Retrieval: which training source is the nearest, and whose target is the answer."""

from collections import Counter

import numpy as np
import pytest

from epochal.pipelines import retrieval
from epochal.pipelines.data import load
from epochal.pipelines.recipe import Data

KNOWN = [
    "Open the selected file.",
    "Closes the dialog.",
    "Close the dialog!",
    "Inserts a new row above the cell",
    "Deletes the selected rows",
]


def by_hand(known, asked):
    """Cosines of (1 + log count) (log((1 + n) / (1 + df)) + 1) over n-grams of padded words."""

    def grams(text):
        words = [f" {word} " for word in text.lower().split()]
        return Counter(
            word[i : i + n] for word in words for n in range(2, 6) for i in range(len(word) - n + 1)
        )

    rows = [grams(text) for text in known]
    seen = Counter(gram for row in rows for gram in row)

    def vector(counts):
        weights = {
            gram: (1 + np.log(count)) * (np.log((1 + len(known)) / (1 + seen[gram])) + 1)
            for gram, count in counts.items()
            if gram in seen
        }
        size = np.sqrt(sum(value**2 for value in weights.values()))
        return {gram: value / size for gram, value in weights.items()}

    vectors = [vector(row) for row in rows]

    def cosine(a, b):
        return sum(value * b.get(gram, 0.0) for gram, value in a.items())

    return [
        int(np.argmax([cosine(vector(grams(text)), other) for other in vectors])) for text in asked
    ]


def test_the_nearest_is_that_of_the_formula():
    asked = ["opens a file", "delete selected row", "the dialog closes", "new cells", "rows above"]
    found = retrieval.nearest(KNOWN, asked)
    assert found.tolist() == by_hand(KNOWN, asked)
    assert len(set(found.tolist())) > 2


def test_every_source_finds_itself_and_strangers_the_first():
    assert retrieval.nearest(KNOWN, KNOWN).tolist() == [0, 1, 2, 3, 4]
    assert retrieval.nearest([*KNOWN, KNOWN[3]], [KNOWN[3]]).tolist() == [3]  # the first of two
    assert retrieval.nearest(KNOWN, ["日本", ""]).tolist() == [0, 0]
    assert retrieval.nearest([" ", ""], ["a"]).tolist() == [0]


def test_many_questions_are_asked_in_parts(monkeypatch):
    whole = retrieval.nearest(KNOWN, KNOWN[::-1])
    monkeypatch.setattr(retrieval, "_ROWS", 2)
    np.testing.assert_array_equal(retrieval.nearest(KNOWN, KNOWN[::-1]), whole)


def test_answers_are_targets_of_the_training_split_alone():
    pytest.importorskip("tokenizers")
    data = Data(source="builtin:reverse/6", ops="characters", train_examples=300,
                validation_fraction=0.05, test_fraction=0.05)  # fmt: skip
    dataset = load(data)
    asked = dataset.raw("test", np.arange(20))["source"]
    given = retrieval.translate(dataset, asked)
    known = dataset.raw("train", np.arange(dataset.sizes["train"]))
    place = {source: i for i, source in enumerate(known["source"])}
    assert set(given) <= set(known["target"])
    nearest = retrieval.nearest(list(known["source"]), list(asked))
    assert [known["source"][i][::-1] for i in nearest] == list(given)
    assert not set(asked) & set(place)
