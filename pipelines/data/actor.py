"""Who plays the environments while a model learns: the other half of :mod:`.control`."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..recipe import Replay
from . import replay as memory
from . import sampling
from .environments import Player, one_thread, seed_of
from .replay import CUT_OFF, TRUNCATED, Ring
from .source import SourceError

_RESET, _DRAWS = 0, 1  # first part of the keys of random numbers
_PATIENCE = 3_600.0  # seconds that an element waits for the learner


class Actor(keras.callbacks.Callback):
    """Plays the environments, fills the memory, and draws from it.

    Its state, at the end of an epoch, is a few positions, and for each environment which episode it
    is in and the actions since its reset: these are done again when a run goes on, and the memory
    is where it was.
    """

    def __init__(self, dataset, model, place: Path, elements: int, epochs: int):
        super().__init__()
        self.dataset, self.learner, self.place = dataset, model, place
        self.seed = 0
        self._replay, self._batch = dataset.replay, dataset._data.batch_size
        self._elements, self._last = elements, max(1, elements * epochs - 1)
        self._state: dict[str, Any] | None = None
        self._ring: Ring | None = None
        lanes = self._replay.environments
        steps = elements * self._replay.train_freq // lanes
        longest = dataset.longest
        #: slots of a lane that an epoch fills at most: one more for each episode that is cut off
        self._room = steps + (steps if longest is None else steps // longest + 1)
        slots = memory.slots(lanes, self._replay.capacity, self._room, self._replay.stack)
        needed = memory.ring_bytes(lanes * slots, dataset.frame_shape, dataset.dtype)
        memory.check_size(needed, place)
        if self._replay.sampling == "prioritized":
            # Before the model's step is traced; filled by each step, and read by the next element.
            model.errors = tf.Variable(tf.zeros([self._replay.updates, self._batch]))

    # --- An element ---------------------------------------------------------------------------

    def element(self, number: int) -> dict[str, np.ndarray]:
        """Acts, and draws minibatches: the element of that number, which come one by one."""
        if self._ring is None:
            self._open(number)
        self._wait(number)
        self._take_errors()
        replay = self._replay
        random = np.random.default_rng((self.seed, _DRAWS, number))
        epsilon = epsilon_at(replay, number * replay.train_freq)
        self._finished: list[float] = []
        with one_thread():
            if number == 0:
                self._act(-(-replay.start // replay.environments), 1.0, random)
            self._act(replay.train_freq // replay.environments, epsilon, random)
        count = replay.updates * self._batch
        if replay.sampling == "prioritized":
            begin = replay.importance_exponent
            self._sampler.beta = begin + (1 - begin) * min(1.0, number / self._last)
        lane, position, weight = self._sampler.draw(self._ring, count, random)
        self._drawn = lane, position
        made = self._ring.transitions(lane, position) | {"weight": weight}
        made = {
            name: value.reshape(replay.updates, self._batch, *value.shape[1:])
            for name, value in made.items()
        }
        made["returned"] = np.array([sum(self._finished), len(self._finished)], np.float32)
        made["epsilon"] = np.float32(epsilon)
        return made

    def _act(self, times: int, epsilon: float, random: np.random.Generator) -> None:
        """So many steps in each environment."""
        values = None
        lanes, actions = len(self._players), self.dataset.num_targets
        at_random = random.random((times, lanes)) < epsilon
        chosen = random.integers(actions, size=(times, lanes))
        for i in range(times):
            if not at_random[i].all():
                values = values or self.learner.snapshot()
                seen = np.stack([player.observation for player in self._players])
                best = values(seen).argmax(axis=1)
                chosen[i] = np.where(at_random[i], chosen[i], best)
            for lane, player in enumerate(self._players):
                self._step(lane, player, int(chosen[i, lane]))

    def _step(self, lane: int, player: Player, action: int) -> None:
        frame, age = player.frame, player.age
        reward, end, after = player.step(action)
        reward = float(np.sign(reward)) if self._replay.clip_reward else reward
        self._ring.append(lane, frame, action, reward, age, end)
        if end == TRUNCATED:
            self._ring.append(lane, after, 0, 0.0, age + 1, CUT_OFF)
        if player.over:
            self._finished.append(player.total)
            self._episodes[lane] += 1
            self._reset(lane)

    def _reset(self, lane: int) -> None:
        key = (self.seed, _RESET, lane, self._episodes[lane])
        self._players[lane].reset(seed_of(*key))

    def _wait(self, number: int) -> None:
        """Until all elements before have been learnt from."""
        done = self._offset + number * self._replay.updates
        deadline = time.monotonic() + _PATIENCE
        while self.learner.count_updates() < done:
            if self._ring is None:
                raise RuntimeError("Training is over: there is no further element.")
            if time.monotonic() > deadline:
                raise RuntimeError(f"Element {number - 1} was not learnt from in an hour.")
            time.sleep(0.0002)

    def _take_errors(self) -> None:
        """Gives the errors of the last element's steps to the priorities."""
        if self._drawn is not None and self.learner.errors is not None:
            errors = self.learner.errors.numpy().reshape(-1)
            self._sampler.learnt(*self._drawn, errors)
        self._drawn = None

    # --- State --------------------------------------------------------------------------------

    def _open(self, number: int) -> None:
        """The memory and the environments as they were before element ``number``."""
        replay, dataset = self._replay, self.dataset
        lanes, state = replay.environments, self._state
        if number and state is None:
            raise RuntimeError(f"The stream cannot begin at element {number} without its state.")
        self._ring = Ring(
            self.place,
            lanes,
            replay.capacity,
            self._room,
            dataset.frame_shape,
            dataset.dtype,
            replay.stack,
            replay.n_step,
            replay.discount,
        )
        if replay.sampling == "prioritized":
            self._sampler = sampling.Prioritized(self._ring, replay.priority_exponent)
        else:
            latest = replay.sampling == "latest"
            self._sampler = sampling.Latest(replay.train_freq) if latest else sampling.Uniform()
        self._players = [dataset.new_player(False, replay.life_loss) for _ in range(lanes)]
        self._drawn = None
        self._episodes = [0] * lanes if state is None else list(state["episodes"])
        for lane in range(lanes):
            self._reset(lane)
        if state is not None:
            self._ring.heads[:] = state["heads"]
            for player, actions in zip(self._players, state["actions"], strict=True):
                for action in actions:
                    player.step(action)
            if replay.sampling == "prioritized":
                leaves = np.load(self.place / state["priorities"], allow_pickle=False)
                self._sampler.set_state(state["sampler"], leaves)
        self._offset = self.learner.count_updates() - number * replay.updates

    def get_state(self) -> dict[str, Any]:
        """Between elements: JSON-able. What it refers to is on the disk."""
        if self._ring is None:
            return self._state or {}
        self._take_errors()
        self._ring.flush()
        state: dict[str, Any] = {
            "heads": self._ring.heads.tolist(),
            "episodes": list(self._episodes),
            "actions": [list(player.actions) for player in self._players],
        }
        if self._replay.sampling == "prioritized":
            state["sampler"] = self._sampler.get_state()
            state["priorities"] = f"priorities-{int(self._ring.heads.sum())}.npy"
            # The checkpoint before, which still counts, names another file.
            kept = (self._state or {}).get("priorities")
            for path in self.place.glob("priorities-*.npy"):
                if path.name != kept:
                    path.unlink()
            np.save(self.place / state["priorities"], self._sampler.tree.leaves)
        self._state = state
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes effect when the first element is asked for."""
        self._state = state or None

    def on_epoch_begin(self, epoch, logs=None):
        """Refuses to go on without the memory; here an error still reaches the caller as it is."""
        missing = self._ring is None and not (self.place / "frame.npy").is_file()
        if self._state is not None and missing:
            raise SourceError(
                f"The replay memory {self.place} is gone, and training can't go on without it. Put "
                "it back, or start a new run directory."
            )

    def on_train_end(self, logs=None):
        """Training is over, and with it the memory."""
        self._ring = None
        shutil.rmtree(self.place, ignore_errors=True)


def epsilon_at(replay: Replay, steps: int) -> float:
    """How often actions are random ``steps`` steps after learning has begun."""
    done = min(1.0, steps / replay.epsilon_steps)
    return replay.epsilon_start + (replay.epsilon_end - replay.epsilon_start) * done
