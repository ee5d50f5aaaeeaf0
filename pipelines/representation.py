"""What a representation is worth: probes with the labels that were kept apart, and its geometry.

==================== ===========================================================================
``knn_accuracy``     the vote of the 20 nearest training embeddings, by cosine (Wu et al. 2018,
                     arXiv:1805.01978, section 3.4, with equal votes)
``linear_accuracy``  logistic regression on standardised embeddings (Chen et al. 2020, section 2.3)
``alignment``        mean of |f(x) - f(y)|^2 for two random views x, y of an image; less is better
``uniformity``       log of the mean of exp(-2 |f(x) - f(y)|^2) for two images; less is better (both
                     of Wang and Isola 2020, arXiv:2005.10242, section 4.1; f has length 1)
==================== ===========================================================================

Each comes a second time as ``untrained_...``: the same network as it was before training, which is
no bad representation of small images, with the batch statistics of training images, without which
it would be worse than it has to be (see :func:`untrained`). Probes learn from up to 20,000 training
examples, evenly spread over the split, and only where the source has labels; geometry is that of up
to 2,000 examples of the split that is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import matplotlib as mpl
import numpy as np
import tensorflow as tf

from ..models.knn import knn
from .canvas import BLUE, STYLE, new_figure, save, shorten
from .intervals import Statistic, intervals

NEIGHBORS = 20
PROBED = 20_000
PAIRS = 2_000
_NAMED = 20  # classes up to which the map has a legend


def measure(model, dataset, split: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Probes a model and the network that it was before training.

    Args:
        model: a SimCLR, from images to embeddings.
        dataset: a :class:`.data.views.ViewsDataset`.
        split: one of ``dataset.sizes``; probes of the training split see what they learn from.

    Returns:
        ({"split", "examples", "metrics": {name: {"value", "low", "high"}}, "untrained": what that
        network is, in words}, {"embedding": float32 [n, d]}, those of the trained model).
    """
    found = {}
    metrics: dict[str, dict[str, float]] = {}
    before, filled = untrained(model, dataset)
    for prefix, network in (("", model), ("untrained_", before)):
        embed = embedder(network)
        found[prefix] = embed(dataset.split(split))
        hits = probe(embed, dataset, split, found[prefix])
        own = {} if not hits else intervals(_shares(hits), len(found[prefix]))
        places = spread(dataset.sizes[split], PAIRS)
        if len(places) > 1:
            images = _unit(found[prefix][places])
            pairs = [embed(_view(dataset.views(split, places), v)) for v in (0, 1)]
            own |= intervals(geometry(images, *map(_unit, pairs)), len(places))
        metrics |= {prefix + name: value for name, value in own.items()}
    result = {
        "split": split,
        "examples": len(found[""]),
        "metrics": metrics,
        "untrained": "the network before training"
        + (f", its batch statistics those of {filled:,} training images" if filled else ""),
    }
    return result, {"embedding": found[""]}


def untrained(model, dataset) -> tuple[keras.Model, int]:
    """The network before training, as good as it is by itself.

    Its weights are the very ones that training started from, of the seed in the model's options;
    where these came from a file (``encoder_options``), it is random ones in their place.

    Batch normalisation starts with a mean of 0 and a variance of 1, which no layer's inputs have:
    left like that, training would be given credit for counting. So the moving statistics of the
    encoder are filled first, from two random views of each of up to 2,000 training images, which
    is what training fills them from; no weight changes.

    Args:
        model: a SimCLR.
        dataset: a :class:`.data.views.ViewsDataset`.

    Returns:
        (the network, how many images its statistics are those of: 0 where it has none).
    """
    network = type(model).from_config(model.get_config())
    network.trainable = True  # a frozen layer would keep its statistics
    norms = [
        layer
        for layer in network.encoder.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    seen = 0
    if norms:
        places = spread(dataset.sizes["train"], PAIRS)
        for views in dataset.views("train", places):
            for layer in norms:  # so that each image counts the same, and the start not at all
                layer.momentum = seen / (seen + len(views))
            network.encoder(tf.reshape(views, [-1, *views.shape[2:]]), training=True)
            seen += len(views)
    return network, seen


def embedder(model) -> Callable[[tf.data.Dataset], np.ndarray]:
    """A function from batches of images, as the model takes them, to embeddings float32 [n, d]."""
    spec = tf.TensorSpec([None, *model.options["input_shape"]], tf.float32)
    ask = tf.function(lambda x: model(x, training=False), [spec], autograph=False)
    return lambda batches: np.concatenate([ask(x).numpy() for x in batches])


def spread(n: int, most: int) -> np.ndarray:
    """Up to ``most`` of the positions 0..n-1, evenly spread."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(np.int64)


def probe(embed, dataset, split: str, embeddings: np.ndarray) -> dict[str, np.ndarray]:
    """Whether each example of a split, of these embeddings [n, d], is classified rightly; ``embed``
    as :func:`embedder` gives it.

    Returns:
        {"knn_accuracy": float64 [n], "linear_accuracy": [n]}; {} where there are no labels.
    """
    labels = dataset.labels(split)
    if labels is None:
        return {}
    places = spread(dataset.sizes["train"], PROBED)
    known = dataset.labels("train", places)
    memory = embed(dataset.split("train", places))
    return probes(memory, known, embeddings, labels, len(dataset.label_names))


def probes(
    memory: np.ndarray, known: np.ndarray, embeddings: np.ndarray, labels: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    """Whether each embedding is classified rightly, by those whose class is known.

    Args:
        memory: float32 [m, d], embeddings of the classes ``known`` int64 [m].
        embeddings: float32 [n, d], of the classes ``labels`` int64 [n].
        classes: their number.

    Returns:
        {"knn_accuracy": float64 [n], "linear_accuracy": [n]}, the latter where ``known`` has two
        classes or more. Where few are known, as many neighbours vote as there are of a class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    neighbors = knn(
        memory.shape[1:],
        classes,
        capacity=len(memory),
        k=max(1, min(NEIGHBORS, len(memory) // classes)),
        metric="cosine",
    )
    neighbors.compile()
    neighbors.fit(memory, known, batch_size=1024, shuffle=False, verbose=0)
    votes = np.concatenate([neighbors(part) for part in _parts(embeddings)])
    found = {"knn_accuracy": votes.argmax(axis=1) == labels}
    if len(np.unique(known)) > 1:
        line = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
        found["linear_accuracy"] = line.fit(memory, known).predict(embeddings) == labels
    return {name: right.astype(np.float64) for name, right in found.items()}


def _parts(rows: np.ndarray, size: int = 1024) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _view(batches: tf.data.Dataset, number: int) -> tf.data.Dataset:
    return batches.map(lambda views: views[:, number])


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _shares(hits: dict[str, np.ndarray]) -> Statistic:
    return lambda index: {name: right[index].mean(axis=-1) for name, right in hits.items()}


def geometry(images: np.ndarray, first: np.ndarray, second: np.ndarray) -> Statistic:
    """Alignment and uniformity of embeddings of length 1.

    Args:
        images: [m, d], of images as evaluation sees them.
        first, second: [m, d], of two views of each.

    Returns:
        A function from resampled positions [b, m] to both; two draws of one image are no pair.
    """
    gaps = np.square(first - second).sum(axis=1)
    likeness = np.exp(4.0 * (images @ images.T) - 4.0)  # |f - g|^2 = 2 - 2 f.g
    alone = np.diag(likeness)

    def statistic(index: np.ndarray) -> dict[str, np.ndarray]:
        times = np.stack([np.bincount(row, minlength=len(images)) for row in index]).astype(float)
        total = ((times @ likeness) * times).sum(axis=1) - np.square(times) @ alone
        pairs = np.square(times.sum(axis=1)) - np.square(times).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):  # all draws of one image
            uniformity = np.log(total / pairs)
        return {"alignment": gaps[index].mean(axis=-1), "uniformity": uniformity}

    return statistic


def report(dataset, split: str, predictions: dict[str, np.ndarray], directory: Path) -> None:
    """Draws the map of the embeddings of a split, coloured by class: embeddings.png.

    t-SNE of up to 2,000 of them (van der Maaten and Hinton 2008), by cosine. Fewer than five give
    no map.
    """
    from sklearn.manifold import TSNE

    rows = predictions["embedding"]
    places = spread(len(rows), PAIRS)
    if len(places) < 5:
        return
    perplexity = min(30.0, (len(places) - 1) / 3)
    flat = TSNE(perplexity=perplexity, metric="cosine", random_state=0).fit_transform(rows[places])
    figure = new_figure(6.6, 5.4)
    with mpl.rc_context(STYLE):
        axes = figure.add_subplot()
        labels, names = dataset.labels(split, places), dataset.label_names
        style = {"s": 11, "linewidths": 0, "alpha": 0.85}
        if labels is None:
            axes.scatter(*flat.T, color=BLUE, **style)
        else:
            colours = mpl.colormaps["tab10" if len(names) <= 10 else "tab20"]
            if len(names) > _NAMED:
                colours = mpl.colormaps["turbo"].resampled(len(names))
            for number, name in enumerate(names):
                mine = flat[labels == number]
                axes.scatter(*mine.T, color=colours(number), label=shorten(name, 20), **style)
            if len(names) <= _NAMED:
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.0)
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(f"{len(places):,} embeddings of the {split} split, by t-SNE")
        save(figure, directory / "embeddings.png")
