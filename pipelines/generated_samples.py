"""How good a generator is: on a split, and what its samples look like.

================== =============================================================================
``d_real``         mean of what the discriminator says of the split: a probability for minimax and
                   non-saturating, else a logit
``d_fake``         the same of generated examples; both are 0.5 where it can't tell them apart.
                   With batch normalisation by batches as large as in training, real or generated,
                   each with its own statistics, see :meth:`epochal.models.gan.GAN.logits`
``diversity``      mean distance between samples over that between real examples; near 1
conditional models
``class_...``      the diversity within the class where it is smallest; 0: the noise is ignored
points of known centres (builtin:ring)
``modes``          centres around which lies at least a fifth of the samples that are due to them
``good_share``     share of samples within three standard deviations of a centre
images
``novelty``        median distance from a sample to the nearest training image, in pixels, over that
                   of real examples which were not trained on; near 0: samples are copies
images, by features of a classifier of the same images (``epochal evaluate --features RUN``)
``frechet``        Frechet distance of the features, see :mod:`.sample_distances`
``kernel``         kernel distance of the same
``precision``      share of the samples that lie among the real examples
``recall``         share of the real examples that lie among the samples
``baseline_...``   the same four of a Gaussian mixture, see :mod:`.sample_baseline`
================== =============================================================================

As many samples as the split has examples, 10,000 at most (of points always so many), of the seeds
0, 1, 2, ..., with the classes of the split where the model is conditional. Training images are
those of the training split, 60,000 at most. Where there are more, they are a random choice that is
always the same, and they come in random order.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from . import sample_baseline, sample_pictures
from .intervals import intervals
from .run import RunError
from .sample_distances import (
    class_diversity,
    collapse,
    diversity,
    frechet,
    kernel_distance,
    novelty,
    precision_recall,
)
from .sample_features import of_images
from .served_samples import Sampler

log = logging.getLogger(__name__)

MOST = 10_000
TRAINED = 60_000
_ASKED = 1_000  # examples whose nearest training example is looked for
_FEW = 10  # examples below which features say nothing
GOOD = 3.0  # standard deviations
_DUE = 0.2
_ROWS = 256  # examples that the discriminator is shown at a time, where it doesn't mind


def measure(
    model, loss, dataset, split: str, features: str | os.PathLike | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Samples a generator and holds the samples against a split.

    Args:
        model: a GAN.
        loss: of :mod:`epochal.models.gan_losses`.
        dataset: with the task "generation".
        split: one of ``dataset.sizes``.
        features: a finished run of a classifier of such images, or a file of Inception's weights;
            see :mod:`.sample_features`.

    Returns:
        ({"split", "examples", "metrics": {name: {"value", "low", "high"}}, and ``collapse``, what
        is wrong, where something is}, {"real", "samples"}, of images also {"train"}, and with
        features {"baseline"}).

    Raises:
        RunError: features of a run that is no classifier of such images.
    """
    real, labels = examples(dataset, split, MOST)
    count = len(real) if real.ndim == 4 else MOST
    ids = labels[np.arange(count) % len(labels)] if model.options["conditional"] else None
    made = Sampler(model)(np.arange(count), ids)
    size = dataset.batch_size if model.options["normalization"] == "batch" else _ROWS
    logits = [_logits(model, real, labels, size), _logits(model, made, ids, size)]
    metrics: dict[str, dict[str, float]] = {}
    for name, d in zip(("d_real", "d_fake"), logits, strict=True):
        score = np.asarray(loss.score(d), np.float64)
        metrics |= intervals(lambda index, s=score, n=name: {n: s[index].mean(axis=-1)}, len(d))
    spread = diversity(real, made)
    metrics["diversity"] = _alone(spread)
    within = np.nan if ids is None else class_diversity(real, labels, made, ids)
    if ids is not None:
        metrics["class_diversity"] = _alone(within)
    if "centres" in dataset.about and real.ndim == 2:
        metrics |= on_centres(made, dataset.about["centres"], dataset.about["deviation"])
    found = {"real": real, "samples": made}
    if real.ndim == 4:
        found["train"] = train = examples(dataset, "train", TRAINED)[0]
        if split != "train":
            pick = [rows[:_ASKED] for rows in (made, real)]
            metrics["novelty"] = _alone(novelty(*pick, train))
    if features is not None:
        if real.ndim != 4 or len(real) < _FEW:
            raise RunError(
                f"Features are of images, {_FEW} or more; the {split} split has "
                f"{len(real)} of {list(real.shape[1:])}. Leave --features out."
            )
        theirs = of_images(features, real)
        found["baseline"] = sample_baseline.images(train, count)
        for prefix, images in (("", made), ("baseline_", found["baseline"])):
            by = by_features(theirs, of_images(features, images))
            metrics |= {prefix + name: value for name, value in by.items()}
    elif real.ndim == 4:
        log.info("no Frechet distance: epochal evaluate RUN --features CLASSIFIER-RUN gives it")
    result = {"split": split, "examples": len(real), "metrics": metrics}
    lost = float(np.mean(loss.real(logits[0])) + np.mean(loss.fake(logits[1])))
    if reason := collapse(spread, None if loss.penalty else lost, within):
        log.warning("%s", reason)
        result["collapse"] = reason
    return result, found


def by_features(theirs: np.ndarray, ours: np.ndarray) -> dict[str, dict[str, float]]:
    """What features of real examples [n, d] and of generated ones [m, d] say, by name."""
    metrics = {
        "frechet": _alone(frechet(theirs, ours)),
        "kernel": _alone(kernel_distance(theirs, ours)),
    }
    inside = precision_recall(theirs, ours)
    for name, hits in zip(("precision", "recall"), inside, strict=True):
        share = hits.astype(np.float64)
        metrics |= intervals(lambda index, s=share, n=name: {n: s[index].mean(axis=-1)}, len(hits))
    return metrics


def on_centres(points: np.ndarray, centres, deviation: float) -> dict[str, dict[str, float]]:
    """``modes`` and ``good_share`` of points [n, f] around known centres [m, f]."""
    gaps = np.linalg.norm(points[:, None] - np.asarray(centres), axis=2)
    chosen, good = gaps.argmin(axis=1), gaps.min(axis=1) <= GOOD * deviation
    found = np.bincount(chosen[good], minlength=len(centres))
    covered = int((found >= _DUE * len(points) / len(centres)).sum())
    share = good.astype(np.float64)
    return {
        "modes": _alone(covered),
        **intervals(lambda index: {"good_share": share[index].mean(axis=-1)}, len(points)),
    }


def examples(dataset, split: str, most: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Random examples of a split, so many at most, in random order, always the same: as the model
    sees them, uint8 images or float32 points, and their class ids [n], or None.

    Sources may be sorted by class, as folders are: what looks at the first rows, or at block after
    block, is to see all classes.
    """
    draw = np.random.default_rng(0)
    positions = np.sort(draw.permutation(dataset.sizes[split])[:most])
    order = draw.permutation(len(positions))
    parts, labels = [], []
    for batch in dataset.split(split, positions):
        x, y = batch if isinstance(batch, tuple) else (batch, None)
        x = x.numpy()
        parts.append(np.rint(np.clip(x, 0, 255)).astype(np.uint8) if x.ndim == 4 else x)
        labels.append(None if y is None else y.numpy())
    known = None if labels[0] is None else np.concatenate(labels)[order].astype(np.int64)
    return np.concatenate(parts)[order], known


def report(model, found: dict[str, np.ndarray], directory: Path) -> None:
    """Draws samples.png, of images interpolation.png and neighbours.png, and baseline.png where
    there is one."""
    if found["real"].ndim != 4:
        sample_pictures.scatter(found["real"], found["samples"], directory / "samples.png")
        return
    sample_pictures.fixed(Sampler(model), directory / "samples.png")
    sample_pictures.interpolation(model, directory / "interpolation.png")
    sample_pictures.neighbours(found["samples"][:8], found["train"], directory / "neighbours.png")
    baseline = directory / "baseline.png"
    if "baseline" in found:
        sample_pictures.grid(found["baseline"][:64], baseline)
    else:
        baseline.unlink(missing_ok=True)  # from an earlier report


def _logits(model, x: np.ndarray, labels: np.ndarray | None, size: int) -> np.ndarray:
    """What the discriminator says of examples [n, ...], [n], so many at a time. The last batch
    begins earlier where it would be smaller: its statistics are to be those of a whole one."""
    labels = labels if model.options["conditional"] else None
    parts = []
    for start in range(0, len(x), size):
        first = max(0, min(start, len(x) - size))
        rows = slice(first, first + size)
        said = model.logits(x[rows], None if labels is None else labels[rows])
        parts.append(said.numpy()[start - first :, 0])
    return np.concatenate(parts)


def _alone(value: float) -> dict[str, float]:
    return {"value": float(value), "low": np.nan, "high": np.nan}
