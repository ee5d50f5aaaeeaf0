"""Deep Q-network: one network that learns to play from pixels and the score alone.

Mnih et al.: Playing Atari with deep reinforcement learning (2013), and Human-level control through
deep reinforcement learning (Nature, 2015). Q-learning with a network was known to diverge; new
were a replay memory, which breaks the correlation of successive steps, and, in 2015, a second
network that is copied now and then and says what the targets are. What is learnt is Q(s, a), the
discounted sum of rewards after action a in state s:

    target = r                                      where the episode terminated
           = r + discount * max_a' Q_target(s', a')  otherwise, also where it was only cut off

and the loss is Huber's of target - Q(s, a), whose gradient is that difference clipped to [-1, 1].

| model | layers, for A actions | trainable parameters |
|---|---|---|
| `dqn-2013` | 16 8x8 stride 4, 32 4x4 stride 2, 256 | 676,144 + 257 A |
| `dqn-nature` | 32 8x8 stride 4, 64 4x4 stride 2, 64 3x3, 512 | 1,684,128 + 513 A |
| `dqn-mlp` | vectors of f numbers: 120, 84 | 120 f + 10,284 + 85 A |

Options beyond the papers: `double` (van Hasselt et al. 2015: the online network chooses a', the
target network values it) and `dueling` (Wang et al. 2016, equation 9: Q = V + A - mean A, each of
the two with hidden layers of its own). Returns over n steps and priorities come with the data.

Deviations from the papers:

1. The loss is the mean over the minibatch; `reduction="sum"` is the authors' code. It matters to
   RMSProp, whose epsilon of 0.01 is large beside the square of a mean gradient.
2. `target_every` counts gradient steps. The authors' code copies every 10,000 steps of the agent,
   that is 2,500 gradient steps (the article says 10,000 updates).
3. Their RMSProp, g / sqrt(mean(g^2) - mean(g)^2 + 0.01), is the optimizer `rmsprop` with rho 0.95,
   epsilon 0.01 and `centered`; it is chosen in the algorithm, not here.
4. Weights and biases start uniform in +-1 / sqrt(inputs), as their code's (Torch's) layers do.
5. Wang et al. scale the gradient that enters the last convolution by 1 / sqrt(2); here it is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from .dqn_snapshot import Snapshot
from .layers import seeds

REDUCTIONS = ("mean", "sum")
CONVOLUTIONS_2013 = ((16, 8, 4), (32, 4, 2))
CONVOLUTIONS_NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


class MeanReturn(keras.metrics.Mean):
    """Mean over finished episodes; NaN, not 0, where none has finished."""

    def result(self):
        return self.total / self.count


@keras.saving.register_keras_serializable("epochal")
class DQN(keras.Model):
    """Action values by a network, with the target network and the training step of DQN.

    Compile it with a regression loss and train it by ``fit`` on elements as
    :mod:`epochal.pipelines.data.replay` makes them, each a dict of u minibatches of b steps:

    ==================== =======================================================================
    ``observation``      [u, b, *input_shape], s
    ``action``           int32 [u, b], a
    ``reward``           float32 [u, b], the rewards up to s', discounted
    ``next_observation`` [u, b, *input_shape], s'
    ``bootstrap``        float32 [u, b], what max Q(s') counts: discount^n; 0 after termination
    ``weight``           float32 [u, b], of the step in the loss
    ``returned``         float32 [2], sum of the returns of episodes that finished, and their number
    ``epsilon``          float32 [], how often the action was random; only recorded
    ==================== =======================================================================

    Validation elements are ``{"return": float32 [n]}``, returns of n episodes.

    Args:
        input_shape: of one observation: (height, width, channels) of uint8 pixels, which are
            divided by 255 here, or (f,) of float32 numbers.
        num_classes: number of actions A.
        convolutions: (filters, size, stride) each, without padding; none for vectors.
        hidden: widths of the dense layers before the values.
        dueling: value and advantages apart (Wang et al. 2016).
        double: double DQN (van Hasselt et al. 2015).
        target_every: gradient steps between copies into the target network; 1: there is none.
        reduction: "mean" of the losses of a minibatch, or "sum".
        seed: of initial weights; None draws them from ``keras.utils.set_random_seed``.

    Attributes:
        q, target: the two networks, [n, *input_shape] -> float32 [n, A].
        updates: int64, gradient steps so far.
        errors: None, or a float32 variable [u, b] that every step leaves |target - Q| in, for
            priorities; not a part of the model's state.

    Raises:
        ValueError: an option out of range, or observations too small for the convolutions.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        convolutions: Sequence[Sequence[int]] = (),
        hidden: Sequence[int] = (120, 84),
        dueling: bool = False,
        double: bool = False,
        target_every: int = 1_000,
        reduction: str = "mean",
        seed: int | None = None,
        name: str = "dqn",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.options = {
            "input_shape": tuple(input_shape),
            "num_classes": num_classes,
            "convolutions": tuple(tuple(one) for one in convolutions),
            "hidden": tuple(hidden),
            "dueling": dueling,
            "double": double,
            "target_every": target_every,
            "reduction": reduction,
            "seed": seed,
        }
        _check(self.options)
        draw = seeds(seed)
        self.q, self.target = (_network(self.options, draw, which) for which in ("q", "target"))
        self.target.trainable = False
        self.target.set_weights(self.q.get_weights())
        self.updates = self.add_weight(
            shape=(), dtype="int64", initializer="zeros", trainable=False, name="updates"
        )
        self.errors: tf.Variable | None = None
        self.loss_mean = keras.metrics.Mean(name="loss")
        self.value_mean = keras.metrics.Mean(name="q_value")
        self.return_mean = MeanReturn(name="return")
        self.epsilon_mean = keras.metrics.Mean(name="epsilon")
        self.built = True

    def compile(self, optimizer, loss, metrics=(), **kwargs):
        """As Keras's. The loss compares one value with its target; what is recorded is fixed."""
        if metrics:
            raise ValueError(f"DQN records loss, q_value, return and epsilon, no {metrics!r}.")
        self.td_loss = loss  # Keras would look for its arguments in the data
        super().compile(optimizer=optimizer, **kwargs)

    def call(self, inputs, training=None):
        """Observations [n, *input_shape] -> action values float32 [n, A]."""
        return self.q(inputs, training=training)

    # --- Learning -----------------------------------------------------------------------------

    def td_target(self, reward, bootstrap, next_observation) -> tf.Tensor:
        """reward + bootstrap * Q_target(s', a'), float32 [n]; a' maximises Q_target, or with
        ``double`` the online Q."""
        values = self.target(next_observation, training=False)
        if self.options["double"]:
            chosen = tf.argmax(self.q(next_observation, training=False), axis=1)
            best = tf.gather(values, chosen, axis=1, batch_dims=1)
        else:
            best = tf.reduce_max(values, axis=1)
        return tf.stop_gradient(reward + bootstrap * best)

    def train_step(self, data: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Learns from each minibatch of an element in turn."""
        data = dict(data)
        returned, epsilon = data.pop("returned"), data.pop("epsilon")
        count = data["action"].shape[0]  # XLA wants a number where there is one
        count = tf.shape(data["action"])[0] if count is None else count
        if isinstance(count, int) and count == 1:
            errors = self._learn({name: value[0] for name, value in data.items()})[None]
        else:

            def body(i, errors):
                batch = {name: value[i] for name, value in data.items()}
                return i + 1, errors.write(i, self._learn(batch))

            shape = data["action"].shape[1:]
            errors = tf.TensorArray(tf.float32, count, element_shape=shape)
            _, errors = tf.while_loop(
                lambda i, _: i < count, body, (0, errors), parallel_iterations=1
            )
            errors = errors.stack()
        if self.errors is not None:
            self.errors.assign(errors)
        # Who waits for `updates` finds all else done: TensorFlow orders only what touches the same
        # variable, so every other one is read before.
        changed = [*self.q.variables, *self.target.variables]
        done = [variable.value.read_value() for variable in changed]
        done += [] if self.errors is None else [self.errors.read_value()]
        with tf.control_dependencies(done):
            self.updates.assign_add(tf.cast(count, tf.int64))
        mean = tf.math.divide_no_nan(returned[0], returned[1])
        self.return_mean.update_state(mean, sample_weight=returned[1])
        self.epsilon_mean.update_state(epsilon)
        return self.get_metrics_result()

    def _learn(self, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        """One gradient step; |target - Q| of the minibatch [b]."""
        target = self.td_target(batch["reward"], batch["bootstrap"], batch["next_observation"])
        with tf.GradientTape() as tape:
            values = self.q(batch["observation"], training=True)
            value = tf.gather(values, batch["action"], axis=1, batch_dims=1)
            losses = self.td_loss.call(target, value) * batch["weight"]
            mean = tf.reduce_mean(losses)
            loss = tf.reduce_sum(losses) if self.options["reduction"] == "sum" else mean
            loss = self.optimizer.scale_loss(loss)
        weights = self.q.trainable_weights
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        # Not `updates`, which is counted up at the end of the element only.
        steps = tf.cast(self.optimizer.iterations, tf.int64)
        tf.cond(steps % self.options["target_every"] == 0, self._copy, lambda: None)
        self.loss_mean.update_state(mean)
        self.value_mean.update_state(tf.reduce_mean(tf.reduce_max(values, axis=1)))
        return tf.abs(target - value)

    def _copy(self) -> None:
        for theirs, ours in zip(self.target.variables, self.q.variables, strict=True):
            theirs.assign(ours)

    def test_step(self, data: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Records returns of episodes that were played for validation."""
        self.return_mean.update_state(data["return"])
        return {"return": self.return_mean.result()}

    # --- Acting -------------------------------------------------------------------------------

    def count_updates(self) -> int:
        """``updates`` as it is now: for actors, who ask all the time."""
        return int(_read(self.updates.value))

    def snapshot(self) -> Snapshot:
        """A copy of the online network as it is now, in NumPy: what acting uses."""
        weights = {
            layer.name: [_read(variable.value) for variable in variables]
            for layer in self.q.layers
            if (variables := layer.variables)
        }
        return Snapshot(self.options, weights)

    # --- Keras --------------------------------------------------------------------------------

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.options["num_classes"])

    def build(self, input_shape=None):
        self.built = True

    def get_config(self):
        return {**self.options, "name": self.name}


def _read(variable: tf.Variable) -> np.ndarray:
    """A copy of its value, in one operation: `np.array(variable)` costs several times as much."""
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype).numpy()


def _network(options: dict[str, Any], draw, name: str) -> keras.Model:
    pixels = len(options["input_shape"]) == 3
    inputs = keras.Input(options["input_shape"], dtype="uint8" if pixels else "float32")
    x, fan = inputs, math.prod(options["input_shape"])
    if pixels:
        x, fan = layers.Rescaling(1 / 255, name="rescale")(x), options["input_shape"][-1]
    for i, (filters, size, stride) in enumerate(options["convolutions"], 1):
        start = _start(fan * size * size, draw)
        x = layers.Conv2D(filters, size, stride, activation="relu", name=f"conv_{i}", **start)(x)
        fan = filters
    if len(x.shape) > 2:
        x = layers.Flatten(name="flatten")(x)

    def stream(x, prefix: str, last: str, width: int):
        for i, units in enumerate(options["hidden"], 1):
            start = _start(x.shape[-1], draw)
            x = layers.Dense(units, activation="relu", name=f"{prefix}hidden_{i}", **start)(x)
        return layers.Dense(width, name=last, dtype="float32", **_start(x.shape[-1], draw))(x)

    actions = options["num_classes"]
    if not options["dueling"]:
        return keras.Model(inputs, stream(x, "", "values", actions), name=name)
    value = stream(x, "value_", "value", 1)
    advantage = stream(x, "advantage_", "advantages", actions)
    mean = keras.ops.mean(advantage, axis=1, keepdims=True)
    return keras.Model(inputs, value + (advantage - mean), name=name)


def _start(fan: int, draw) -> dict[str, Any]:
    limit = 1 / math.sqrt(fan)

    def uniform():
        return keras.initializers.RandomUniform(-limit, limit, seed=draw())

    return {"kernel_initializer": uniform(), "bias_initializer": uniform()}


def _check(options: dict[str, Any]) -> None:
    shape, actions = options["input_shape"], options["num_classes"]
    if len(shape) not in (1, 3):
        raise ValueError(f"Observations are [f] numbers or [h, w, c] pixels; got {list(shape)}.")
    if options["convolutions"] and len(shape) == 1:
        raise ValueError(f"Vectors of {shape[0]} numbers have no pixels to convolve: use dqn-mlp.")
    if actions < 2 or min(options["hidden"], default=1) < 1:
        raise ValueError(
            f"There must be 2 or more actions, and 1 or more units in each hidden layer; got "
            f"num_classes={actions!r}, hidden={options['hidden']!r}."
        )
    if options["target_every"] < 1:
        raise ValueError(f"target_every must be 1 or more; got {options['target_every']!r}.")
    if options["reduction"] not in REDUCTIONS:
        raise ValueError(
            f"reduction must be one of {', '.join(REDUCTIONS)}; got {options['reduction']!r}."
        )
    sides = shape[:2]
    for filters, size, stride in options["convolutions"]:
        if min(filters, stride) < 1 or min(sides) < size:
            raise ValueError(
                f"A convolution of (filters, size, stride) = {(filters, size, stride)} does not "
                f"fit maps of {sides[0]}x{sides[1]}: give other `convolutions`."
            )
        sides = tuple((side - size) // stride + 1 for side in sides)


dqn_2013 = partial(
    DQN, convolutions=CONVOLUTIONS_2013, hidden=(256,), target_every=1, name="dqn_2013"
)
dqn_nature = partial(
    DQN, convolutions=CONVOLUTIONS_NATURE, hidden=(512,), target_every=2_500, name="dqn_nature"
)
dqn_mlp = partial(DQN, name="dqn_mlp")
