"""How the answers of an ensemble's members become one: in NumPy, and as one graph.

:mod:`.ensemble` says what the ways to ``combine`` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

from .served import Served

_TINY = 1e-12  # below it a probability's logarithm is taken as its


def mean_answer(
    answers: Sequence[dict[str, np.ndarray]], weights: np.ndarray, combine: str
) -> dict[str, np.ndarray]:
    """The answer of the whole: ``probabilities`` [n,c], or ``prediction`` [n], in float32."""
    kind = "probabilities" if "probabilities" in answers[0] else "prediction"
    stacked = np.stack([answer[kind] for answer in answers])
    return {kind: _mean(np, stacked, weights.astype(np.float32), combine)}


def _mean(library, stacked, weights, combine: str):
    """Weighted mean over the first axis, [m, ...] -> [...]; NumPy or tf.experimental.numpy."""
    weights = library.reshape(weights, [-1] + [1] * (len(stacked.shape) - 1))
    if combine != "logits" or len(stacked.shape) < 3:
        return library.sum(weights * stacked, axis=0)
    logits = library.sum(weights * library.log(library.maximum(stacked, _TINY)), axis=0)
    powers = library.exp(logits - library.max(logits, axis=-1, keepdims=True))
    return powers / library.sum(powers, axis=-1, keepdims=True)


def stack(answers: Sequence[dict[str, np.ndarray]], target: np.ndarray) -> np.ndarray:
    """Weights [m], none negative and of sum 1, under which the mean answer fits targets best.

    Best is the smallest log loss of classes, the smallest squared error of numbers. Source:
    Breiman: Stacked regressions (1996).
    """
    if "probabilities" in answers[0]:
        rows = np.arange(len(target))
        truth = np.stack([answer["probabilities"][rows, target.reshape(-1)] for answer in answers])

        def loss(weights):
            return -np.log(np.maximum(weights @ truth, _TINY)).mean()

    else:
        values = np.stack([answer["prediction"].reshape(-1) for answer in answers])

        def loss(weights):
            return np.square(weights @ values - target.reshape(-1)).mean() / values.var()

    m = len(answers)
    found = minimize(
        loss,
        np.full(m, 1 / m),
        method="SLSQP",
        bounds=[(0, 1)] * m,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
    )
    weights = np.clip(found.x, 0, 1)
    return weights / weights.sum()


class Together(tf.Module):
    """All members behind one signature: raw inputs in, the mean answer out.

    Args:
        members: on the same raw inputs.
        classes: names by class id; () for numbers.
        weights: [m].
        combine: see the module's text.
    """

    def __init__(
        self, members: list[Served], classes: Sequence[str], weights: np.ndarray, combine: str
    ):
        super().__init__(name="ensemble")
        self.members = members
        self.names = members[0].names
        specs = members[0].raw.input_signature
        shares = tf.constant(weights, tf.float32)

        def raw(inputs):
            found = [member.raw(inputs) for member in members]
            answers = dict(found[0])
            kind = "probabilities" if "probabilities" in answers else "prediction"
            stacked = tf.stack([answer[kind] for answer in found])
            mean = _mean(tf.experimental.numpy, stacked, shares, combine)
            if kind == "prediction":
                return {"prediction": mean}
            chosen = tf.argmax(mean, axis=-1)
            labels = tf.constant([name.encode() for name in classes])
            answers = {"probabilities": mean, "class_id": chosen}
            return answers | {"label": tf.gather(labels, chosen)}

        self.raw = tf.function(raw, input_signature=specs, autograph=False)

    @property
    def signatures(self) -> dict[str, Any]:
        """The raw form alone: members may preprocess in ways of their own."""
        return {"serving_default": self.raw.get_concrete_function()}
