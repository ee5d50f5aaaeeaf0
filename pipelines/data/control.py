"""Environments as data: what is learnt from is what the agent itself does.

An element of the training stream is `train_freq` steps in the environments and the minibatches that
are learnt from after them. Actor and learner go in lock-step: an element is acted with a copy of
the weights as the element before it left them, whoever asks for it how early. So the weights are a
function of the recipe, and a run that was killed ends with those of one that was not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ..recipe import Data, Replay
from .actor import Actor
from .environments import Player, make, one_thread, play, players_for
from .source import SourceError
from .stream import FOREVER, end_at_once

_VALIDATION, _TEST = 2, 3  # after those of the actor's keys
_ELEMENT = 10_000  # steps of an epoch, where the recipe does not say
# Atari truncates by itself, after half an hour of play; otherwise gymnasium's spec knows.
_ATARI_LONGEST = 25_000


class Observations:
    """What is between an environment and the model: nothing, but for a type.

    Has the interface of :class:`.preprocess.Preprocess` that serving uses.
    """

    kind = "control"

    def __init__(self, shape: tuple[int, ...], dtype: str):
        self.inputs = {"shape": list(shape), "dtype": dtype}

    def raw_signature(self) -> dict[str, tf.TensorSpec]:
        spec = tf.TensorSpec(
            [None, *self.inputs["shape"]], tf.as_dtype(self.inputs["dtype"]), name="observation"
        )
        return {"observation": spec}

    def tensor_spec(self) -> tf.TensorSpec:
        return self.raw_signature()["observation"]

    def serve(self, raw: dict[str, tf.Tensor]) -> tf.Tensor:
        return raw["observation"]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "ops": "", "inputs": dict(self.inputs), "states": []}


class ControlDataset:
    """An environment with the interface of :class:`.dataset.Dataset`, made by :func:`.load`.

    Attributes:
        task, kind: "control".
        sizes: "train", the steps that are remembered; "validation" and "test", their episodes.
        num_targets: number of actions.
        input_shape: of an observation, all its frames together.
        steps_per_epoch: elements of an epoch, where the recipe does not say.
        updates: optimizer steps of an element.

    Raises:
        SourceError: an environment that cannot be used (see :func:`.environments.make`), a
            minibatch larger than what is collected before the first, options that do not fit.
    """

    task = kind = "control"
    classes: tuple[str, ...] = ()
    target_name = "action value"
    target_scale = (0.0, 1.0)
    mixes = False
    vocabulary_size = None

    def __init__(self, data: Data):
        self._data, self.replay = data, data.replay or Replay()
        self.name = data.source.partition(":")[2]
        if data.ops:
            raise SourceError(
                f"data.ops ({data.ops!r}) are for images, text and tables. An environment is "
                "changed by wrappers of gymnasium: register the wrapped one under its own name."
            )
        replay = self.replay
        collected = replay.start - replay.environments * replay.n_step
        if data.batch_size > min(collected, replay.capacity):
            raise SourceError(
                f"A minibatch has {data.batch_size} steps (data.batch_size), but only "
                f"{max(collected, 0)} of {replay.start} first steps (data.replay.start) and "
                f"{replay.capacity} of all (data.replay.capacity) can be learnt from at first. "
                "Collect more, or learn from fewer."
            )
        self._players: list[Player] = []  # for validation and test
        player = self.new_player()
        player.reset(0)
        self._example = player
        self.frame_shape, self.dtype = player.frame.shape, player.dtype.name
        self.input_shape = player.observation.shape
        self.num_targets = int(player.environment.action_space.n)
        self.preprocess = Observations(self.input_shape, self.dtype)
        self.sizes = {
            "train": replay.capacity,
            "validation": replay.validation_episodes,
            "test": replay.test_episodes,
        }
        self.steps_per_epoch = -(-_ELEMENT // replay.train_freq)
        self.updates = replay.updates
        spec = player.environment.spec
        self.about = {
            "origin": f"gymnasium environment {self.name}",
            "fingerprint": f"{self.name} {self.input_shape} {self.num_targets}",
            "actions": self.num_targets,
            "longest_episode": None if spec is None else spec.max_episode_steps,
        }
        self._actor: Actor | None = None

    def new_player(self, render: bool = False, life_loss: bool = False) -> Player:
        """A new environment, ready for its first reset."""
        environment = make(self.name, self.replay.sticky_actions, render)
        return Player(environment, self.replay.stack, life_loss)

    @property
    def longest(self) -> int | None:
        """Steps after which an episode is cut off, at least, where that is known."""
        return _ATARI_LONGEST if self.name.startswith("ALE/") else self.about["longest_episode"]

    def attach(self, model, directory: Path, steps_per_epoch: int, epochs: int) -> Actor:
        """Gives the actor its model and a place for the memory.

        Returns:
            The callback that a run saves and restores the actor's state by.

        Raises:
            SourceError: the memory would not fit into the machine's, or on the disk.
        """
        self._model = model
        self._actor = Actor(self, model, Path(directory) / "replay", steps_per_epoch, epochs)
        return self._actor

    def train(self, seed: int, start_step: int = 0) -> tf.data.Dataset:
        """The unbounded stream of elements from ``start_step`` on, as DQN's train_step reads them.

        Needs :meth:`attach`, and a model that learns from each element before it asks for another.
        """
        if self._actor is None:
            raise SourceError(
                f"{self._data.source} is played by a model: train it by a recipe, which gives it "
                "one."
            )
        actor = self._actor
        actor.seed = seed
        batch = (self.replay.updates, self._data.batch_size)
        observation = ((*batch, *self.input_shape), self.dtype)
        specs = {
            "observation": observation,
            "action": (batch, "int32"),
            "reward": (batch, "float32"),
            "next_observation": observation,
            "bootstrap": (batch, "float32"),
            "weight": (batch, "float32"),
            "returned": ((2,), "float32"),
            "epsilon": ((), "float32"),
        }

        def element(number):
            def act(number):
                made = actor.element(int(number))
                return [made[name] for name in specs]

            found = tf.numpy_function(act, [number], [dtype for _, dtype in specs.values()])
            return {
                name: tf.ensure_shape(value, shape)
                for (name, (shape, _)), value in zip(specs.items(), found, strict=True)
            }

        plain = tf.autograph.experimental.do_not_convert(element)
        return _lock_step(tf.data.Dataset.range(start_step, FOREVER).map(plain))

    def split(self, name: str) -> tf.data.Dataset:
        """One element, {"return": float32 [n]}: the episodes of a split, played anew by each
        pass with the weights of the attached model."""
        if name not in ("validation", "test"):
            raise SourceError(f"An environment has episodes to validate and to test, not {name!r}.")

        @tf.autograph.experimental.do_not_convert
        def episodes(_):
            returns = tf.numpy_function(
                lambda: self.episodes(self._model, name)["return"], [], "float32"
            )
            return {"return": tf.ensure_shape(returns, [self.sizes[name]])}

        return _lock_step(tf.data.Dataset.range(1).map(episodes))

    def episodes(self, model, split: str) -> dict[str, np.ndarray]:
        """Plays the episodes of a split: always the same resets, in environments of their own.

        Returns:
            ``return`` float32 [n] and ``length`` int64 [n], in steps.
        """
        players = players_for(self.sizes[split], self.new_player, self._players)
        with one_thread():
            return play(players, model.snapshot(), self.keys(split), self.replay.test_epsilon)

    def keys(self, split: str) -> list[tuple[int, ...]]:
        """What decides the resets of a split's episodes, and their random actions."""
        kind = {"validation": _VALIDATION, "test": _TEST}[split]
        return [(self._data.split_seed, kind, number) for number in range(self.sizes[split])]

    def observations(self, count: int) -> np.ndarray:
        """The first observations [count, ...] of a game played at random."""
        random, found = np.random.default_rng(0), []
        player = self._example
        player.reset(0)
        while len(found) < count:
            found.append(player.observation)
            player.step(int(random.integers(self.num_targets)))
            if player.over:
                player.reset(0)
        return np.stack(found)

    def describe(self) -> dict[str, Any]:
        """Everything about the data that JSON can hold; the run directory's dataset.json."""
        return {
            "source": self._data.source,
            "kind": self.kind,
            "task": self.task,
            "classes": [],
            "target": self.target_name,
            "target_scale": list(self.target_scale),
            "sizes": dict(self.sizes),
            "split_seed": self._data.split_seed,
            "input_shape": list(self.input_shape),
            "preprocess": self.preprocess.to_dict(),
            "about": self.about,
        }


def _lock_step(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Without what tf.data would add: it would ask for elements before their time."""
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    end_at_once(options)
    return dataset.with_options(options)
