"""How good a generator is: on a split, and what its samples look like.

================== =============================================================================
``d_real``         mean of what the discriminator says of the split: a probability for minimax and
                   non-saturating, else a logit
``d_fake``         the same of generated examples; both are 0.5 where it can't tell them apart
``diversity``      mean distance between samples over that between real examples; near 1
points of known centres (builtin:ring)
``modes``          centres around which lies at least a fifth of the samples that are due to them
``good_share``     share of samples within three standard deviations of a centre
images, by features of a classifier of the same images (``epochal evaluate --features RUN``)
``frechet``        Frechet distance of the features, see :mod:`.sample_distances`
``kernel``         kernel distance of the same
================== =============================================================================

As many samples as the split has examples, 10,000 at most (of points always so many), of the seeds
0, 1, 2, ..., with the classes of the split where the model is conditional.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import sample_pictures
from .run import Run, RunError
from .sample_distances import diversity, frechet, kernel_distance
from .served_samples import Sampler

log = logging.getLogger(__name__)

MOST = 10_000
GOOD = 3.0  # standard deviations
_DUE = 0.2
_SAME = 0.05  # diversity below which a generator has collapsed
_BEATEN = 0.01  # loss of a discriminator that no longer teaches


def measure(
    model, loss, dataset, split: str, features: str | os.PathLike | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Samples a generator and holds the samples against a split.

    Args:
        model: a GAN.
        loss: of :mod:`epochal.models.gan_losses`.
        dataset: with the task "generation".
        split: one of ``dataset.sizes``.
        features: a finished run of a classifier of such images.

    Returns:
        ({"split", "examples", "metrics": {name: {"value", "low", "high"}}, and ``collapse``, what
        is wrong, where something is}, {"real", "samples"}).

    Raises:
        RunError: features of a run that is no classifier of such images.
    """
    from .evaluate import intervals

    real, labels = examples(dataset, split, MOST)
    count = len(real) if real.ndim == 4 else MOST
    ids = labels[np.arange(count) % len(labels)] if model.options["conditional"] else None
    made = Sampler(model)(np.arange(count), ids)
    logits = [_logits(model, real, labels), _logits(model, made, ids)]
    metrics: dict[str, dict[str, float]] = {}
    for name, d in zip(("d_real", "d_fake"), logits, strict=True):
        score = np.asarray(loss.score(d), np.float64)
        metrics |= intervals(lambda index, s=score, n=name: {n: s[index].mean(axis=-1)}, len(d))
    spread = diversity(real, made)
    metrics["diversity"] = _alone(spread)
    if "centres" in dataset.about and real.ndim == 2:
        metrics |= on_centres(made, dataset.about["centres"], dataset.about["deviation"])
    if features is not None:
        theirs, ours = (of_classifier(features, images) for images in (real, made))
        metrics["frechet"] = _alone(frechet(theirs, ours))
        metrics["kernel"] = _alone(kernel_distance(theirs, ours))
    elif real.ndim == 4:
        log.info("no Frechet distance: epochal evaluate RUN --features CLASSIFIER-RUN gives it")
    result = {"split": split, "examples": len(real), "metrics": metrics}
    lost = float(np.mean(loss.real(logits[0])) + np.mean(loss.fake(logits[1])))
    if reason := collapse(spread, None if loss.penalty else lost):
        log.warning("%s", reason)
        result["collapse"] = reason
    return result, {"real": real, "samples": made}


def collapse(spread: float, lost: float | None) -> str | None:
    """What is wrong with a game, in a sentence, or None.

    Args:
        spread: :func:`.sample_distances.diversity`.
        lost: the discriminator's loss, None where it has no least value.
    """
    if spread < _SAME:
        return (
            f"the generator has collapsed: its samples lie {spread:.2g} times as far apart as real "
            "examples. Try a smaller learning rate, another loss, or more critic_steps."
        )
    if lost is not None and lost < _BEATEN:
        return (
            f"the discriminator's loss is {lost:.2g}: it knows every sample, and teaches the "
            "generator nothing. Make it smaller or slower, or take the loss wasserstein-gp."
        )
    return None


def on_centres(points: np.ndarray, centres, deviation: float) -> dict[str, dict[str, float]]:
    """``modes`` and ``good_share`` of points [n, f] around known centres [m, f]."""
    from .evaluate import intervals

    gaps = np.linalg.norm(points[:, None] - np.asarray(centres), axis=2)
    chosen, good = gaps.argmin(axis=1), gaps.min(axis=1) <= GOOD * deviation
    found = np.bincount(chosen[good], minlength=len(centres))
    covered = int((found >= _DUE * len(points) / len(centres)).sum())
    share = good.astype(np.float64)
    return {
        "modes": _alone(covered),
        **intervals(lambda index: {"good_share": share[index].mean(axis=-1)}, len(points)),
    }


def of_classifier(run: Run | str | os.PathLike, images: np.ndarray) -> np.ndarray:
    """What a classifier's last layer sees of images uint8 [n, h, w, c], float32 [n, d].

    Raises RunError for a run of another kind, or of images of other sizes or channels.
    """
    run = run if isinstance(run, Run) else Run(run)
    about, inputs = run.dataset, run.preprocess.inputs
    wanted = [inputs.get(name) for name in ("height", "width", "channels")]
    fits = all(a in (None, b) for a, b in zip(wanted, images.shape[1:], strict=True))
    if about["kind"] != "image" or about["task"] != "classification" or not fits:
        raise RunError(
            f"{run.path} cannot tell how good images {list(images.shape[1:])} are: it is trained "
            f"on {about['kind']} data {wanted} for {about['task']}. Give a classifier of images "
            "of this size."
        )
    model = run.model
    try:
        last = model.layers[-1].input
        network = keras.Model(model.inputs, last)
    except (AttributeError, ValueError) as error:
        raise RunError(f"The model of {run.path} has no last layer to look into: {error}") from None

    @tf.function(autograph=False, reduce_retracing=True)
    def look(batch):
        return network(run.preprocess(batch), training=False)

    parts = [look(tf.constant(images[i : i + 256])).numpy() for i in range(0, len(images), 256)]
    return np.concatenate(parts).reshape(len(images), -1).astype(np.float32)


def examples(dataset, split: str, most: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The first examples of a split as the model sees them, uint8 images or float32 points, and
    their class ids [n], or None."""
    parts, labels, count = [], [], 0
    for batch in dataset.split(split):
        x, y = batch if isinstance(batch, tuple) else (batch, None)
        parts.append(x.numpy())
        labels.append(None if y is None else y.numpy())
        count += len(parts[-1])
        if count >= most:
            break
    real = np.concatenate(parts)[:most]
    if real.ndim == 4:
        real = np.rint(np.clip(real, 0, 255)).astype(np.uint8)
    known = None if labels[0] is None else np.concatenate(labels)[:most].astype(np.int64)
    return real, known


def report(model, dataset, found: dict[str, np.ndarray], directory: Path) -> None:
    """Draws samples.png, and of images interpolation.png and neighbours.png."""
    if found["real"].ndim != 4:
        sample_pictures.scatter(found["real"], found["samples"], directory / "samples.png")
        return
    sample_pictures.grid(sample_pictures.fixed(Sampler(model)), directory / "samples.png")
    sample_pictures.interpolation(model, directory / "interpolation.png")
    train, _ = examples(dataset, "train", MOST)
    sample_pictures.neighbours(found["samples"][:8], train, directory / "neighbours.png")


def _logits(model, x: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    labels = labels if model.options["conditional"] else None
    parts = [
        model.logits(x[i : i + 256], None if labels is None else labels[i : i + 256]).numpy()
        for i in range(0, len(x), 256)
    ]
    return np.concatenate(parts)[:, 0]


def _alone(value: float) -> dict[str, float]:
    return {"value": float(value), "low": np.nan, "high": np.nan}
