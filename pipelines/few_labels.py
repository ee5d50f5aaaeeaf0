"""What a representation is worth where few images have labels: the follow-ups of SimCLR.

Some of the labelled training images are kept, in proportion to the classes, and on these alone

- ``linear``: logistic regression on the embeddings of the frozen encoder;
- ``knn``: the vote of the nearest embeddings, see :mod:`.representation`;
- ``fine_tuned``: a classifier that starts from the encoder, all of it trained on, as in Chen et al.
  2020, appendix B.5: Nesterov's momentum 0.9, a rate of 0.05 for a batch of 256, no weight decay;
- ``from_scratch``: the same network from random weights, with the rate (0.1 for 128), schedule and
  weight decay of our supervised recipes, which suit it better.

The two networks see the same images in the same order for as many steps, cropped and mirrored as
the representation was learnt but with their colours as they are; the last step's weights count, so
that no further label chooses between them. All four are measured on the test split. Their pairs
differ in which images have labels, and in all else that a seed decides. Options of the encoder that
say where its weights came from or what of it was frozen are left out: they belong to the run.

Unlabelled images can be the very ones that are tested on later, as where ``images:PATH`` and
``folder:PATH`` hold the same photos, since only a source with labels is split by class. How many
are is counted.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from . import paired
from .choices import check_recipe
from .claim import recipe_differences
from .data import Dataset, SourceError, load
from .data.ops import Step
from .recipe import Algorithm, Choice, Data, Recipe, RecipeError, override
from .representation import embedder, probes
from .run import Run, RunError, check_same_data, write_json
from .seen import count_seen
from .train import train

log = logging.getLogger(__name__)

ARMS = ("linear", "knn", "fine_tuned", "from_scratch")
_COLOURS = ("color_jitter", "random_grayscale", "gaussian_blur", "pca_noise")
_BATCH = 64
_STEPS, _PASSES, _MOST = 1_000, 20, 5_000  # steps: so many passes, within these limits
_EPOCH = 250  # steps between checkpoints
_OWN = ("weights", "new_head", "freeze")  # options of an encoder that are about one training of it


def few_labels(
    runs: Run | str | os.PathLike | Sequence[Run | str | os.PathLike],
    labels: str | None = None,
    fractions: Sequence[float] = (1.0,),
    seeds: int = 3,
    *,
    changes: dict[str, Any] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    data: Any = None,
) -> dict[str, Any]:
    """Compares what is learnt from few labels with and without a representation.

    Args:
        runs: a finished SimCLR run; or several, of one recipe and different seeds: then each gives
            one pair, and the interval is over all that a seed decides, the representation included.
        labels: where the labels are, e.g. "folder:PATH"; by default the source of the run.
        fractions: shares of the training images that keep their labels, above 0 and at most 1.
        seeds: pairs of a single run.
        changes: dotted keys of the supervised recipes, both of them, e.g. {"algorithm.steps": 500}.
        callbacks: further Keras callbacks, given to every training.
        data: arrays, for runs whose source is ``python``.

    Returns:
        {"labels", "runs", "seeds", "test_examples", "test_seen", "fractions": [{"fraction",
        "examples", "scores": {arm: [pairs]}, "difference", "low", "high", "verdict"}]}: accuracies
        on the test split, and that of ``fine_tuned`` less that of ``from_scratch``; ``test_seen``
        of the tested images are among the unlabelled ones that the encoder learnt from (None: these
        are no longer there, or others are). Also written as few-labels.json into the first run's
        directory; the trainings are run directories in its few-labels/ and resume.

    Raises:
        RunError: no SimCLR run, or an unfinished one; runs of different recipes or of the same
            seed; labels without a test split, or of images that an encoder cannot take.
        RecipeError: a fraction out of range or one that leaves a class empty; bad changes. Before
            any training.
        SourceError: the labels cannot be opened.
    """
    runs = [runs] if isinstance(runs, Run | str | os.PathLike) else list(runs)
    runs = [run if isinstance(run, Run) else Run(run) for run in runs]
    for run in runs:
        if run.recipe.data.task != "representation":
            raise RunError(
                f"{run.path} has learnt no representation, but {run.recipe.model.name}. Give the "
                "directory of a SimCLR run."
            )
        _ = run.model  # an unfinished run has none
    _check_pairs(runs)
    if seeds < 1:
        raise RecipeError(f"A comparison needs at least one seed; got {seeds}.")
    first = runs[0].recipe.seed
    pairs = (
        [(run, run.recipe.seed) for run in runs]
        if len(runs) > 1
        else [(runs[0], first + i) for i in range(seeds)]
    )
    source = labels or runs[0].recipe.data.source
    whole = load(_data(runs[0], source), data)
    if whole.task != "classification" or "test" not in whole.sizes:
        raise RunError(
            f"{source} gives {'no labels' if whole.task == 'unlabelled' else whole.task}, with the "
            f"splits {', '.join(whole.sizes)}; a comparison needs classes and "
            "a test split. Give --labels folder:PATH, with a folder a class."
        )
    for run in runs:
        _check_size(whole, source, run)
    counts = [_count(fraction, whole, source) for fraction in fractions]
    plans = []  # all of them are checked before the first is trained
    for count in counts:
        all_of_them = count == whole.sizes["train"]
        plans.append([
            (run, seed, *_recipes(run, seed, source, count, all_of_them, changes or {}))
            for run, seed in pairs
        ])  # fmt: skip
    seen = _seen(whole, runs[0], data)
    rows = []
    for fraction, count, plan in zip(fractions, counts, plans, strict=True):
        scores: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for run, seed, tuned, scratch in plan:
            log.info("%d labels, seed %d, %s", count, seed, run.path)
            for arm, score in _probe(run, load(tuned.data, data)).items():
                scores[arm].append(score)
            for arm, recipe in (("fine_tuned", tuned), ("from_scratch", scratch)):
                scores[arm].append(_train(recipe, _folder(run, recipe), callbacks, data))
        rows.append(_row(fraction, count, scores))
    result = {
        "labels": source,
        "runs": [str(run.path) for run in runs],
        "seeds": [seed for _, seed in pairs],
        "test_examples": whole.sizes["test"],
        "test_seen": seen,
        "fractions": rows,
    }
    write_json(runs[0].path / "few-labels.json", result)
    return result


def _check_pairs(runs: Sequence[Run]) -> None:
    """Raises RunError for runs that differ in more than their seeds, or not in these."""
    first, *others = runs
    for run in others:
        one, other = (r.recipe.model_copy(update={"name": "", "seed": 0}) for r in (first, run))
        if differences := recipe_differences(one, other):
            raise RunError(
                f"{run.path} is a run of another recipe than {first.path}: {'; '.join(differences)}"
                ". Pairs may differ in their seeds alone. Give runs of one recipe."
            )
    seeds = [run.recipe.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise RunError(
            f"The runs {', '.join(str(run.path) for run in runs)} have the seeds "
            f"{', '.join(map(str, seeds))}: a seed that comes twice would count twice. Give each "
            "once, and train others with `epochal train RECIPE --seed N`."
        )


def _seen(whole: Dataset, run: Run, data: Any) -> int | None:
    """How many test images a run's encoder has learnt from; None where that cannot be found out."""
    try:
        learnt = load(run.recipe.data, data)
        check_same_data(run, learnt)
        count = count_seen(whole, learnt)
    except (SourceError, RunError, OSError) as error:
        log.warning("whether %s was trained on images of the test: %s", run.path, error)
        return None
    if count:
        log.warning(
            "%d of the %d test images are among the unlabelled ones that %s was trained on",
            count, whole.sizes["test"], run.path,
        )  # fmt: skip
    return count


def chain_of(run: Run) -> str:
    """The ops of a SimCLR run for supervised training: without those that change colours, and with
    the numbers that the run learnt, so that its encoder sees what it is used to."""
    texts = []
    for (step, _), state in zip(run.preprocess.steps, run.preprocess.states, strict=True):
        if step.name in _COLOURS:
            continue
        if step.name == "standardize":
            step = Step("standardize", (), {k: tuple(state[k]) for k in ("mean", "std")})
        arguments = [*map(repr, step.args), *(f"{k}={v!r}" for k, v in step.kwargs.items())]
        texts.append(f"{step.name}({', '.join(arguments)})" if arguments else step.name)
    return "|".join(texts)


def _check_size(whole: Dataset, source: str, run: Run) -> None:
    """Raises RunError for images of another size than the run's encoder takes."""
    ours, theirs = whole.input_shape, tuple(run.model.options["input_shape"])
    if ours != theirs:
        raise RunError(
            f"{source} gives images of {'x'.join(map(str, ours))} after the run's ops, and the "
            f"encoder of {run.path} takes {'x'.join(map(str, theirs))}. Resize the labelled "
            "images, or train the run with an op that makes all images one size, such as "
            f"random_resized_crop({theirs[0]})."
        )


def _chain(run: Run, source: str) -> str:
    """The ops for images of a source; those of another one than the run's become gray or coloured
    first, as its own are."""
    chain = chain_of(run)
    channels = {1: "grayscale", 3: "rgb"}.get(run.model.options["input_shape"][-1])
    if source == run.recipe.data.source or channels is None:
        return chain
    return "|".join(step for step in (channels, chain) if step)


def _data(run: Run, source: str, **settings) -> Data:
    """All labelled images of a source, split as the run's own were, none for validation."""
    old = run.recipe.data
    known = old.model_dump() if source == old.source else {
        "source": source, "test_fraction": old.test_fraction, "split_seed": old.split_seed,
        "skip_corrupt": old.skip_corrupt,
    }  # fmt: skip
    fixed = {
        "ops": _chain(run, source),
        "task": None,
        "validation_fraction": 0.0,
        "train_examples": None,
        "train_fraction": None,
        "batch_size": _BATCH,
    }
    return Data(**known | fixed | settings)


def _count(fraction: float, whole: Dataset, source: str) -> int:
    """How many training images keep their labels. Raises RecipeError."""
    size, classes = whole.sizes["train"], len(whole.classes)
    if not 0 < fraction <= 1:
        raise RecipeError(f"A fraction of the labels is above 0 and at most 1; got {fraction}.")
    count = max(1, round(fraction * size))
    if count < classes:
        raise RecipeError(
            f"A fraction of {fraction:g} of the {size:,} training images of {source} is {count}, "
            f"which leaves some of the {classes} classes empty. Take {classes / size:.2g} or more."
        )
    return count


def _recipes(
    run: Run, seed: int, source: str, count: int, all_of_them: bool, changes: dict[str, Any]
) -> tuple[Recipe, Recipe]:
    """The two supervised recipes of a pair: from the encoder, and from random weights."""
    batch = min(_BATCH, count)
    steps = min(max(_STEPS, _PASSES * -(-count // batch)), _MOST)
    kept = {} if all_of_them else {"train_examples": count, "train_seed": seed}
    options = run.model.options
    own = {k: v for k, v in options["encoder_options"].items() if k not in _OWN}
    found = []
    for name, weights, optimizer, decay in (
        ("fine-tuned", {"weights": str(run.path)}, 0.05 * batch / 256, 0.0),
        ("from-scratch", {}, 0.1 * batch / 128, 2e-3),
    ):
        recipe = Recipe(
            name=name,
            data=_data(run, source, batch_size=batch, **kept),
            model=Choice(name=options["encoder"], **own, **weights),
            loss=Choice(name="cross-entropy"),
            algorithm=Algorithm(
                optimizer=Choice(name="nesterov", learning_rate=optimizer),
                schedule=Choice(name="one-cycle" if not weights else "cosine"),
                steps=steps,
                steps_per_epoch=min(_EPOCH, steps),
                weight_decay=decay,
                precision=run.recipe.algorithm.precision,
            ),
            seed=seed,
        )
        recipe = override(recipe, changes)
        check_recipe(recipe)
        found.append(recipe)
    return found[0], found[1]


def _probe(run: Run, dataset: Dataset) -> dict[str, float]:
    """Accuracies on the test split of what the frozen encoder allows."""
    known, labels = (dataset.targets(split) for split in ("train", "test"))
    if len(np.unique(known)) < len(dataset.classes):  # a streamed source, which is not stratified
        raise RecipeError(
            f"The {len(known)} labels that are kept leave a class of {dataset.classes} empty. Take "
            "a larger fraction."
        )
    embed = embedder(run.model)
    memory, asked = (embed(dataset.split(split).map(_image)) for split in ("train", "test"))
    hits = probes(memory, known, asked, labels, len(dataset.classes))
    return {name.removesuffix("_accuracy"): float(right.mean()) for name, right in hits.items()}


def _image(x, y):
    return x


def _folder(run: Run, recipe: Recipe) -> Path:
    """A directory for just this training, so that others do not get in its way."""
    digest = hashlib.sha256(recipe.to_json().encode()).hexdigest()[:8]
    return run.path / "few-labels" / f"{recipe.name}-seed-{recipe.seed}-{digest}"


def _train(recipe: Recipe, folder: Path, callbacks, data) -> float:
    accuracy = train(recipe, folder, data, callbacks=callbacks).metrics["test"]["accuracy"]
    keras.backend.clear_session()  # memory stays that of one run
    gc.collect()
    return accuracy["value"]


def _row(fraction: float, count: int, scores: dict[str, list[float]]) -> dict[str, Any]:
    found = paired.difference(scores["fine_tuned"], scores["from_scratch"])
    name = f"fine-tuned against from scratch with {count:,} labels"
    return {
        "fraction": fraction,
        "examples": count,
        "scores": scores,
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "verdict": paired.verdict(name, found, "points", True, 100.0),
    }
