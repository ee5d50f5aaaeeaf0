"""Small finished runs, made without the trainer: for evaluate, predict and export; and texts."""

from __future__ import annotations

import csv
import random
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# "median income" and "class" cannot be names of inputs; some numbers and towns are missing.
HEADER = ("median income", "town", "a-b", "class", "price $")
ROWS = [
    (
        1 + i % 7,
        ("Bonn", "Köln", "")[i % 3],
        "" if i % 11 == 5 else i / 10,
        i % 2,
        100 + 10 * (i % 7),
    )
    for i in range(66)
]


@dataclass
class Made:
    """A run with its data: ``run`` and ``dataset``; arrays where it was trained on such."""

    run: Any
    dataset: Any
    arrays: Any = None
    extra: dict = field(default_factory=dict)


def make(directory: Path, name: str, data, loss: str, layers, arrays=None) -> Made:
    """A run directory with a Sequential of these layers (or with a KNN), trained for one epoch."""
    import keras

    from epochal.pipelines.choices import build_loss
    from epochal.pipelines.data import load
    from epochal.pipelines.recipe import Recipe
    from epochal.pipelines.run import Run, write_atomic, write_json

    recipe = Recipe(name=name, data=data, model="mlp", loss=loss, algorithm={"epochs": 1})
    dataset = load(recipe.data, arrays)
    loss = build_loss(recipe.loss)
    keras.utils.set_random_seed(0)
    width = loss.num_outputs(dataset.num_targets)
    if callable(layers):
        model = layers(dataset.input_shape, width, capacity=dataset.sizes["train"], k=3)
    else:
        head = keras.layers.Dense(width, dtype="float32")
        model = keras.Sequential([keras.Input(dataset.input_shape), *layers, head])
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(dataset.train(0), steps_per_epoch=dataset.steps_per_epoch, epochs=1, verbose=0,
              shuffle=False)  # fmt: skip
    directory.mkdir(parents=True)
    write_atomic(directory / "recipe.json", recipe.to_json())
    write_json(directory / "dataset.json", dataset.describe())
    model.save(directory / "model.keras")
    return Made(Run(directory), dataset, arrays)


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def digits(runs) -> Made:
    """Images, ten classes; batch normalisation, AlexNet's layers and dropout."""
    from keras import layers

    from epochal.models.layers import GroupedConv2D, LocalResponseNormalization

    body = [
        layers.Conv2D(8, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        LocalResponseNormalization(groups=2),
        GroupedConv2D(8, 3, groups=2),
        layers.Flatten(),
        layers.Dropout(0.5),
    ]
    data = {"source": "builtin:digits", "ops": "translate(1)|standardize"}
    return make(runs / "digits", "digits", data, "cross-entropy", body)


@pytest.fixture(scope="session")
def housing(runs) -> Made:
    """A table with awkward column names, text and missing values; standardised likelihood."""
    from keras import layers

    file = runs / "housing.csv"
    with open(file, "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([HEADER, *ROWS])
    data = {
        "source": f"csv:{file}",
        "ops": "impute|one_hot|standardize",
        "batch_size": 8,
        "standardize_target": True,
        "task": "regression",
    }
    return make(runs / "housing", "housing", data, "gaussian", [layers.Dense(8, "relu")])


@pytest.fixture(scope="session")
def diabetes(runs) -> Made:
    """Arrays of features, quantile regression, from scikit-learn."""
    data = {"source": "builtin:diabetes", "ops": "standardize", "standardize_target": True}
    return make(runs / "diabetes", "diabetes", data, "quantile", [])


@pytest.fixture(scope="session")
def arrays(runs) -> Made:
    """Two classes with one logit, on arrays from Python."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(80, 3)).astype(np.float32)
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).astype(np.int64)
    data = {"source": "python", "batch_size": 8}
    return make(runs / "arrays", "arrays", data, "binary-cross-entropy", [], (x, y))


@pytest.fixture(scope="session")
def neighbors(runs) -> Made:
    """k nearest neighbours of features, by votes."""
    from epochal.models.knn import knn

    data = {"source": "builtin:iris", "shuffle": False, "batch_size": 16}
    return make(runs / "neighbors", "neighbors", data, "zero-one", knn)


def _scraps(draw: random.Random) -> list:
    """Functions that each make a scrap of text, with what goes wrong in tokenizers."""
    english = ["The", "quick", "brown", "fox's", "dog,", "they'll", "we've", "I'm", "don't",
               "re-enter", "naïve", "café", "ﬁne", "Straße", "İO"]  # fmt: skip
    korean = ["한국어", "문장은", "어절로", "띄어쓴다", "값", "뷁", "ㅋㅋㅋ", "ㅠㅠ", "좋아요"]
    emoji = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇰🇷", "❤️", "🤷🏾‍♂️", "\U0001fae8"]
    marks = [c for c in map(chr, range(0x110000)) if unicodedata.combining(c)]
    blanks = [c for c in map(chr, range(0x110000)) if c.isspace()]
    blanks += ["\u200b", "\u2060", "\ufeff", "\u180e"]  # invisible, yet no white space
    controls = [
        *map(chr, range(32)),
        "\x7f",
        "\x85",
        "\x9f",
        "\u200d",
        "\u202e",
        "\ufffd",
        "\ufffe",
    ]
    punctuation = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»…—、。！・€")
    jamo = [chr(c) for c in range(0x1100, 0x1200)]
    ideographs = list("漢字東京㐀𠀀豈")
    composed = [*"ǖÅḍ̇ộậ", "\u0958", "\u2126", "\u0344", "\u0f77", "\u1e9b\u0323", "\u09c7\u09be"]

    def some(things, most):
        return lambda: "".join(draw.choices(things, k=draw.randint(1, most)))

    def anything():
        code = draw.randrange(0x110000 - 0x800)
        return chr(code if code < 0xD800 else code + 0x800)

    return [
        *[lambda: draw.choice(english)] * 6,
        *[lambda: draw.choice(korean)] * 3,
        lambda: unicodedata.normalize("NFD", draw.choice(korean)),
        some(jamo, 5),
        lambda: draw.choice(emoji),
        lambda: draw.choice("aeo각") + some(marks, 4)(),
        some(marks, 3),
        some(composed, 3),
        some(blanks, 4),
        *[lambda: " " * draw.randint(1, 4)] * 4,
        some(controls, 3),
        some(punctuation, 5),
        lambda: (
            "'" + draw.choice(["s", "t", "re", "ve", "m", "ll", "d", "l", "S", "sx", "'s", "r"])
        ),
        lambda: draw.choice("aбが") * draw.choice([30, 99, 100, 101, 130]),
        lambda: str(draw.randrange(10**6)) + draw.choice(["", "½", "²", "٣"]),
        some(ideographs, 3),
        anything,
        lambda: chr(draw.randrange(0x250)),
        lambda: chr(draw.randrange(0x10000, 0x20000)),
    ]


@pytest.fixture(scope="session")
def strings() -> list[str]:
    """10,000 texts of up to 12 scraps; the empty text is among them."""
    draw = random.Random(0)
    scraps = _scraps(draw)
    return ["", *("".join(s() for s in draw.choices(scraps, k=draw.randint(1, 12)))
                  for _ in range(9_999))]  # fmt: skip


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """1,200 plain sentences in English and Korean, to learn vocabularies from."""
    draw = random.Random(1)
    words = ["the", "a", "dog", "dogs", "cat", "cats", "runs", "running", "ran", "slowly", "quick",
             "quickly", "jumped", "over", "lazy", "don't", "it's", "she'll", "2019", "100", ",",
             ".", "!", "?", "unhappy", "happiness", "naïve", "café", "나는", "학교에", "학교를",
             "갔다", "간다", "좋은", "영화", "영화가", "영화를", "재미있다", "재미없다", "정말",
             "정말로", "그리고"]  # fmt: skip
    syllables = ["ba", "sto", "ri", "en", "tle", "mu", "가", "는", "교", "육", "ing", "사"]
    words += ["".join(draw.choices(syllables, k=draw.randint(2, 4))) for _ in range(300)]
    return [" ".join(draw.choices(words, k=draw.randint(3, 12))) for _ in range(1_200)]


@pytest.fixture(scope="session")
def graph_rows():
    """The graph face on many rows, traced once, in batches of 500: -> list of str or of ids."""

    def run(op, rows: list) -> list:
        import tensorflow as tf

        spec = [tf.TensorSpec([None], tf.string)]
        traced = tf.function(op.graph, input_signature=spec, autograph=False)
        out = []
        for start in range(0, len(rows), 500):
            answer = traced(tf.constant(rows[start : start + 500]))
            if isinstance(answer, tf.RaggedTensor):
                out += answer.to_list()
            else:
                out += [text.decode() for text in answer.numpy().tolist()]
        return out

    return run
