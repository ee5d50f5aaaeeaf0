"""``algorithm.conformal``: the quantiles of forecasts, moved by what validation says they lack.

After training, each pair of quantiles a and 1 - a is moved apart (or together) by one number for
each target and step of the horizon, such that on validation windows the share 1 - 2a of truths lies
between them; see :mod:`epochal.models.conformal`. Other quantiles, the median above all, stay as
they are. The numbers are weights of the model's last layer, so that evaluation, prediction and
export answer alike.

The test split plays no part. The validation split plays two: it has also chosen the epoch, for
whose weights its residuals are therefore a little smaller than those of data that chose nothing.
Its own coverage after the correction is 90% by construction and says nothing; the test's does.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ..models import conformal
from .recipe import Recipe, RecipeError


def check(recipe: Recipe, dataset, loss) -> None:
    """Raises RecipeError where a recipe asks for what its data and loss cannot give."""
    if not recipe.algorithm.conformal:
        return
    if dataset.task != "forecasting":
        raise RecipeError(
            f"algorithm.conformal widens the intervals of forecasts; {recipe.data.source} is for "
            f"{dataset.task}. Leave it out."
        )
    found = conformal.pairs(getattr(loss, "quantiles", ()))
    if not found:
        raise RecipeError(
            "algorithm.conformal moves pairs of quantiles such as 0.05 and 0.95; the loss "
            f"{recipe.loss} has none. Choose quantile(quantiles=[0.05, 0.5, 0.95])."
        )
    windows = dataset.sizes.get("validation", 0)
    most = max(conformal.needed(level) for *_, level in found)
    if windows < most:
        raise RecipeError(
            f"algorithm.conformal needs {most} windows or more in the validation split, which has "
            f"{windows}. Raise data.validation_fraction, or leave algorithm.conformal out."
        )


def widen(model: keras.Model, loss, dataset) -> tuple[keras.Model, dict[str, Any]]:
    """The model with :class:`epochal.models.conformal.ShiftQuantiles` behind its outputs.

    Args:
        model: a functional model whose outputs [n, h, m q] the loss reads.
        loss: quantile, with at least one pair.
        dataset: of a series, with a validation split.

    Returns:
        (the model, {"windows": n of validation, "widening": {target: {level in percent: the mean
        over the horizon, in the target's own units}}}).
    """
    from .supervised import predict_split

    quantiles = predict_split(model, loss, dataset, "validation")["quantiles"].astype(np.float64)
    truth = dataset.targets("validation").astype(np.float64)
    shift = np.zeros(quantiles.shape[1:])
    means: dict[str, dict[str, float]] = {name: {} for name in dataset.target_names}
    for i, j, level in conformal.pairs(loss.quantiles):
        by = conformal.widening(quantiles[..., i], quantiles[..., j], truth, level)
        shift[..., i], shift[..., j] = -by, by
        for name, value in zip(dataset.target_names, by.mean(axis=0), strict=True):
            means[name][f"{100 * level:g}"] = float(value)
    # The model answers in standard deviations of its targets.
    shift /= np.asarray(dataset.target_scale[1])[:, None]
    layer = conformal.ShiftQuantiles(loss.quantiles, name="conformal")
    wider = keras.Model(model.input, layer(model.output), name=model.name)
    layer.shift.assign(shift.reshape(layer.shift.shape))
    return wider, {"windows": len(truth), "widening": means}
