"""What the two players of a GAN minimise. D(x) here is the logit before any sigmoid.

| name | discriminator minimises, mean over real x and generated z | generator minimises | paper |
|---|---|---|---|
| minimax | softplus(-D(x)) + softplus(D(z)) | -softplus(D(z)) | Goodfellow 2014, eq. 1 |
| non-saturating | the same | softplus(-D(z)) | Goodfellow 2014, section 3 |
| least-squares | (D(x) - 1)^2 / 2 + D(z)^2 / 2 | (D(z) - 1)^2 / 2 | Mao 2017, eq. 9 |
| hinge | max(0, 1 - D(x)) + max(0, 1 + D(z)) | -D(z) | Miyato 2018, eq. 16 and 17 |
| wasserstein-gp | D(z) - D(x) + penalty (norm of dD/dx^ - 1)^2 | -D(z) | Gulrajani 2017, eq. 3 |

-log sigmoid(d) = softplus(-d) and -log(1 - sigmoid(d)) = softplus(d): minimax is the game of the
paper. Where the discriminator is sure of a generated example, the slope of minimax vanishes for the
generator, sigmoid(d) -> 0; that of non-saturating goes to 1.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from .loss_base import TaskLoss, check_number

Tensor = Any
_register = keras.saving.register_keras_serializable("epochal")


class GANLoss(TaskLoss):
    """Base of the losses of a GAN, on logits of any shape, computed in float32.

    Each has three functions, one value a row: ``real(d)`` and ``fake(d)``, what the discriminator
    pays for logits of real and of generated rows, and ``generator(d)``, what the generator pays.

    As a Keras loss, ``call(y, d)``, it is the discriminator's: y is 1 for real rows and 0 for
    generated ones.

    Attributes:
        penalty: weight of the gradient penalty; 0 where there is none.
        probable: whether sigmoid(d) is the probability that a row is real.
    """

    task = "generation"
    takes_mixtures = False
    penalty = 0.0
    probable = False

    def num_outputs(self, num_targets: int) -> int:
        """As many as the data have classes: what a generator can be asked for."""
        return num_targets

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y, d = self._floats(y_true), self._floats(y_pred)
        return y * self.real(d) + (1 - y) * self.fake(d)

    def score(self, d: Tensor) -> Tensor:
        """Logits as they are recorded: probabilities where they are such, else unchanged."""
        d = self._floats(d)
        return ops.sigmoid(d) if self.probable else d


@_register
class Minimax(GANLoss):
    """The game of Goodfellow et al. 2014, equation 1: both players share one value."""

    default_name = "minimax"
    probable = True

    def real(self, d: Tensor) -> Tensor:
        return ops.softplus(-self._floats(d))

    def fake(self, d: Tensor) -> Tensor:
        return ops.softplus(self._floats(d))

    def generator(self, d: Tensor) -> Tensor:
        return -self.fake(d)


@_register
class NonSaturating(Minimax):
    """The same game, the generator maximising log D instead (Goodfellow et al. 2014, section 3)."""

    default_name = "non_saturating"

    def generator(self, d: Tensor) -> Tensor:
        return self.real(d)


@_register
class LeastSquares(GANLoss):
    """Squared distances to 1 for real, 0 for generated (Mao et al. 2017, equation 9)."""

    default_name = "least_squares"

    def real(self, d: Tensor) -> Tensor:
        return 0.5 * ops.square(self._floats(d) - 1)

    def fake(self, d: Tensor) -> Tensor:
        return 0.5 * ops.square(self._floats(d))

    def generator(self, d: Tensor) -> Tensor:
        return self.real(d)


@_register
class Hinge(GANLoss):
    """Margins of 1 (Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17)."""

    default_name = "hinge"

    def real(self, d: Tensor) -> Tensor:
        return ops.relu(1 - self._floats(d))

    def fake(self, d: Tensor) -> Tensor:
        return ops.relu(1 + self._floats(d))

    def generator(self, d: Tensor) -> Tensor:
        return -self._floats(d)


@_register
class WassersteinGP(GANLoss):
    """The earth mover's distance, the critic kept smooth by a gradient penalty (Gulrajani 2017).

    Args:
        penalty: lambda, its weight, above 0; 10 in the paper.

    Raises:
        ValueError: a penalty that is no positive number.
    """

    default_name = "wasserstein_gp"
    _options = ("penalty",)

    def __init__(self, penalty: float = 10.0, **kwargs):
        super().__init__(**kwargs)
        self.penalty = check_number(self, "penalty", penalty, 0.0)

    def real(self, d: Tensor) -> Tensor:
        return -self._floats(d)

    def fake(self, d: Tensor) -> Tensor:
        return self._floats(d)

    def generator(self, d: Tensor) -> Tensor:
        return -self._floats(d)


def gradient_penalty(critic, real: Tensor, fake: Tensor, share: Tensor) -> tf.Tensor:
    """Mean of (norm of dD/dx - 1)^2 at x = share * real + (1 - share) * fake; a float32 scalar.

    Gulrajani et al. 2017, algorithm 1, lines 6 and 7, without the weight. The norm is over all
    numbers of an example.

    Args:
        critic: x [n, ...] -> logits [n, 1]; no row may depend on another one.
        real, fake: float32 [n, ...].
        share: float32 [n], uniform in [0, 1).
    """
    share = tf.reshape(share, [-1, *[1] * (len(real.shape) - 1)])
    between = share * real + (1 - share) * fake
    with tf.GradientTape() as tape:
        tape.watch(between)
        total = tf.reduce_sum(tf.cast(critic(between), tf.float32))
    slope = tf.cast(tape.gradient(total, between), tf.float32)
    square = tf.reduce_sum(tf.square(slope), axis=list(range(1, len(real.shape))))
    # The root has no derivative at 0, which a critic without slope would reach.
    return tf.reduce_mean(tf.square(tf.sqrt(square + 1e-12) - 1))
