"""Two classifiers, or two regressions, on the same examples: how far apart, with an interval.

The interval is that of the paired difference: both are measured on the same resamples of the same
examples (the percentile bootstrap of :mod:`.intervals`), so that what is hard for both cancels out.
It holds the randomness of the test examples, and not that of training: for that train several
seeds, see :mod:`.ablate`.

A run of text can also be measured against a baseline, which is trained on the same training rows:

=====================  ========================================================================
``tf-idf``             logistic regression on TF-IDF of words and pairs of words
``tf-idf-characters``  the same on runs of 1 to 4 characters within words, e.g. for Korean
=====================  ========================================================================

with the penalty (C of 1, 4 or 16) that is best on the validation split, as scikit-learn has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .data import load
from .intervals import intervals
from .run import Run, RunError, check_same_data
from .supervised import predict_split, statistic_of

BASELINES = {
    "tf-idf": {"analyzer": "word", "ngram_range": (1, 2)},
    "tf-idf-characters": {"analyzer": "char_wb", "ngram_range": (1, 4)},
}
_PENALTIES = (1.0, 4.0, 16.0)


def compare(
    run: Run, predictions: dict[str, np.ndarray], dataset, split: str, other: str | Path
) -> dict[str, Any]:
    """Measures another model on a split and how far a run's metrics lie above its metrics.

    Args:
        run: a run of classification or regression.
        predictions: its answers for the split, as ``supervised.predict_split`` gives them.
        dataset: its data, opened.
        split: of both.
        other: a run directory, or a name of :data:`BASELINES`.

    Returns:
        {"against": name, "metrics": of the other {name: {"value", "low", "high"}}, "difference":
        the run's minus the other's, the same}.

    Raises:
        RunError: another task, or other examples or targets in the split.
    """
    if dataset.task not in ("classification", "regression"):
        raise RunError(
            f"{run.path} is a run for {dataset.task}; compared example by example are "
            "classification and regression."
        )
    target = dataset.targets(split)
    name = str(other)
    if name in BASELINES:
        theirs, their_loss = baseline(dataset, split, name), run.loss
    else:
        theirs, their_loss = _of_run(Run(other), run, dataset, split, target)
    mine = statistic_of(run.loss, target, predictions)
    yours = statistic_of(their_loss, target, theirs)

    def gap(index: np.ndarray) -> dict[str, np.ndarray]:
        one, two = mine(index), yours(index)
        return {key: one[key] - two[key] for key in one if key in two}

    n = len(target)
    return {
        "against": name,
        "metrics": intervals(yours, n),
        "difference": intervals(gap, n, differences=True),
    }


def _of_run(other: Run, run: Run, dataset, split: str, target) -> tuple[dict[str, np.ndarray], Any]:
    """Another run's answers for the split, whose examples have to be the same; and its loss."""
    model = other.model
    theirs = load(other.recipe.data)
    check_same_data(other, theirs)
    same = (
        split in theirs.sizes
        and theirs.describe()["about"].get("fingerprint")
        == dataset.describe()["about"].get("fingerprint")
        and np.array_equal(theirs.rows(split), dataset.rows(split))
        and np.array_equal(theirs.targets(split), target)
    )
    if not same:
        raise RunError(
            f"The {split} split of {other.path} does not hold the examples of that of {run.path}: "
            f"{other.recipe.data.source} against {run.recipe.data.source}. Train both on the same "
            "data with the same fractions and split_seed."
        )
    return predict_split(model, other.loss, theirs, split), other.loss


def baseline(dataset, split: str, name: str) -> dict[str, np.ndarray]:
    """What a baseline answers for a split of labelled text: {"probabilities": [n, c]}.

    Raises:
        RunError: these data are no labelled text.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    if dataset.kind != "text" or dataset.task != "classification":
        raise RunError(
            f"{name} is a baseline for labelled text, and these data are {dataset.kind}."
        )

    def texts(part: str) -> list[str]:
        return list(dataset.raw(part, np.arange(dataset.sizes[part]))["text"])

    words = TfidfVectorizer(
        min_df=2 if dataset.sizes["train"] > 1_000 else 1, sublinear_tf=True, **BASELINES[name]
    )
    known, labels = words.fit_transform(texts("train")), dataset.targets("train")
    asked = words.transform(texts(split))
    choices = _PENALTIES if "validation" in dataset.sizes and split != "validation" else (1.0,)
    models = [LogisticRegression(C=c, max_iter=1_000).fit(known, labels) for c in choices]
    best = models[0]
    if len(models) > 1:
        held, right = words.transform(texts("validation")), dataset.targets("validation")
        best = max(models, key=lambda model: model.score(held, right))
    return {"probabilities": best.predict_proba(asked).astype(np.float32)}
