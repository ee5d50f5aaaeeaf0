"""Gymnasium's environments (extra ``rl``) as an agent of ours meets them."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from .replay import GOES_ON, TERMINATED, TRUNCATED, stacked
from .source import SourceError, nearest

_OWN = {"epochal/PixelBreakout-v0": ("pixel_breakout:PixelBreakout", 2_500)}
_ATARI = {"noop_max": 30, "frame_skip": 4, "screen_size": 84, "grayscale_obs": True}
_TOGETHER = 32  # episodes that are played at a time
_INSTALL = "pip install 'epochal[rl]'"


def make(name: str, sticky_actions: float = 0.0, render: bool = False):
    """A gymnasium environment by its name, e.g. CartPole-v1, with what is known about it checked.

    Atari games (``ALE/...``) get gymnasium's wrappers set as in Mnih et al. 2015, methods: up to 30
    idle steps at the start, an action lasts 4 frames, of the last two of which the brighter pixels
    are taken, 84x84 pixels of grey.

    Args:
        name: as gymnasium has it.
        sticky_actions: the chance that the last action is taken again instead (Machado et al.
            2018), in each step; Atari's own emulator draws it in each of its frames.
        render: for pictures: with the render mode rgb_array.

    Raises:
        SourceError: gymnasium or what the environment needs is not installed, there is no such
            environment, or its actions or observations are not of a kind that can be learnt from.
    """
    gymnasium = _gymnasium()
    options: dict[str, Any] = {"render_mode": "rgb_array"} if render else {}
    atari = name.startswith("ALE/")
    if atari:
        _register_atari(gymnasium, name)
        options |= {"frameskip": 1, "repeat_action_probability": sticky_actions}
    try:
        environment = gymnasium.make(name, disable_env_checker=True, **options)
        if atari:
            environment = gymnasium.wrappers.AtariPreprocessing(environment, **_ATARI)
        elif sticky_actions:
            environment = gymnasium.wrappers.StickyAction(environment, sticky_actions)
    except gymnasium.error.DependencyNotInstalled as error:
        raise SourceError(
            f"The environment {name} needs a package that is not installed: {error} What classic "
            f"control, LunarLander and Atari need comes with {_INSTALL}."
        ) from None
    except gymnasium.error.Error as error:
        known = [spec for spec in gymnasium.registry if "/" not in spec or spec in _OWN]
        raise SourceError(
            f"gymnasium has no environment {name!r}: {nearest(name, known)}({error})"
        ) from None
    _check(environment, name)
    return environment


def _gymnasium():
    try:
        import gymnasium
    except ImportError:
        raise SourceError(f"Sources gym:NAME need the package gymnasium: {_INSTALL}.") from None
    for own, (where, longest) in _OWN.items():
        if own not in gymnasium.registry:
            entry = f"{__package__}.{where}"
            gymnasium.register(own, entry_point=entry, max_episode_steps=longest)
    return gymnasium


def _register_atari(gymnasium, name: str) -> None:
    try:
        import ale_py
    except ImportError:
        raise SourceError(f"The game {name} needs the package ale-py: {_INSTALL}.") from None
    gymnasium.register_envs(ale_py)


def _check(environment, name: str) -> None:
    from gymnasium import spaces

    actions, seen = environment.action_space, environment.observation_space
    if not isinstance(actions, spaces.Discrete):
        raise SourceError(
            f"{name} has actions of the kind {type(actions).__name__}. DQN takes the best of a few "
            "actions, so they have to be discrete; continuous ones need another algorithm."
        )
    images = isinstance(seen, spaces.Box) and len(seen.shape) in (2, 3) and seen.dtype == np.uint8
    numbers = isinstance(seen, spaces.Box) and len(seen.shape) == 1 and seen.dtype.kind in "fiu"
    if not images and not numbers:
        shape = f" of shape {seen.shape} and type {seen.dtype}" if seen.shape is not None else ""
        raise SourceError(
            f"{name} has observations of the kind {type(seen).__name__}{shape}. Supported are Box "
            "spaces of one axis (numbers), and of two or three axes in uint8 (pixels). Wrap the "
            "environment so that it gives such, and register it under a name of its own."
        )


class Player:
    """An environment that is being played: its episode, its newest frame, the stack of frames.

    Args:
        environment: from :func:`make`.
        stack: frames of an observation.
        life_loss: a lost life ends what is learnt from, though the game goes on (as the authors of
            DQN do in training).

    Attributes:
        frame: the newest; ``observation`` the stack.
        age: steps since the first frame of the stack's episode.
        actions: since the last reset.
        total: sum of rewards since the last reset.
        over: the game needs a reset.
    """

    def __init__(self, environment, stack: int = 1, life_loss: bool = False):
        self.environment, self.life_loss = environment, life_loss
        self.first_action = int(environment.action_space.start)
        pixels = environment.observation_space.dtype == np.uint8
        self.dtype = np.dtype(
            np.uint8 if pixels and len(environment.observation_space.shape) > 1 else np.float32
        )
        self.frames: deque[np.ndarray] = deque(maxlen=stack)
        self.over = True

    def reset(self, seed: int) -> None:
        """Begins the episode that the seed decides."""
        frame, info = self.environment.reset(seed=int(seed))
        self._begin(frame)
        self.actions: list[int] = []
        self.total, self.over = 0.0, False
        self.lives = info.get("lives")

    def _begin(self, frame) -> None:
        frame = np.asarray(frame, self.dtype)
        self.frames.extend([frame] * self.frames.maxlen)
        self.age = 0

    @property
    def frame(self) -> np.ndarray:
        return self.frames[-1]

    @property
    def observation(self) -> np.ndarray:
        if self.frames.maxlen == 1 and self.frame.ndim != 2:
            return self.frame
        return stacked(np.stack(self.frames)[None])[0]

    def step(self, action: int) -> tuple[float, int, np.ndarray]:
        """Acts once; action counts from 0. Returns the reward, how it went on (GOES_ON, TERMINATED
        or TRUNCATED) and the frame after the step."""
        frame, reward, terminated, truncated, info = self.environment.step(
            action + self.first_action
        )
        frame = np.asarray(frame, self.dtype)
        self.actions.append(action)
        self.total += float(reward)
        lives, self.lives = self.lives, info.get("lives")
        lost = self.life_loss and lives is not None and self.lives < lives
        self.over = bool(terminated or truncated)
        if terminated or lost:
            end = TERMINATED
            self._begin(frame)
        else:
            end = TRUNCATED if truncated else GOES_ON
            self.frames.append(frame)
            self.age += 1
        return float(reward), end, frame


@functools.cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


def one_thread():
    """A context in which NumPy multiplies on one thread.

    The matrices of a step are small: the Nature net values one observation in 0.4 ms on one thread
    and in 0.9 on two, and where other work shares the two cores in 0.7 and 295.
    """
    return _threads().limit(limits=1, user_api="blas")


def seed_of(*key: int) -> int:
    """A seed for a reset: 31 bits that are a function of the key."""
    return int(np.random.SeedSequence(key).generate_state(1)[0] >> 1)


def play(
    players: list[Player],
    values: Callable[[np.ndarray], np.ndarray],
    keys: Sequence[tuple[int, ...]],
    epsilon: float = 0.0,
) -> dict[str, np.ndarray]:
    """Plays an episode for each key, several at a time.

    Args:
        players: at least one; as many episodes are played at a time.
        values: observations [n, ...] -> action values [n, A].
        keys: each decides its episode's reset and random actions.
        epsilon: how often the action is random, else the best.

    Returns:
        ``return`` float32 and ``length`` int64, [n] in the order of the keys.
    """
    found = {"return": np.zeros(len(keys), np.float32), "length": np.zeros(len(keys), np.int64)}
    waiting = list(range(len(keys)))[::-1]
    active: list[tuple[Player, int, np.random.Generator]] = []
    for player in players[: len(keys)]:
        active.append(_next(player, waiting.pop(), keys))
    while active:
        best = values(np.stack([player.observation for player, _, _ in active]))
        going = []
        for (player, number, random), q in zip(active, best, strict=True):
            at_random = epsilon and random.random() < epsilon
            player.step(int(random.integers(len(q)) if at_random else np.argmax(q)))
            if not player.over:
                going.append((player, number, random))
                continue
            found["return"][number], found["length"][number] = player.total, len(player.actions)
            if waiting:
                going.append(_next(player, waiting.pop(), keys))
        active = going
    return found


def _next(player: Player, number: int, keys: Sequence[tuple[int, ...]]):
    player.reset(seed_of(*keys[number]))
    return player, number, np.random.default_rng(keys[number])


def players_for(count: int, new: Callable[[], Player], players: list[Player]) -> list[Player]:
    """Adds to ``players`` what is missing for so many episodes; returns those to play with."""
    while len(players) < min(count, _TOGETHER):
        players.append(new())
    return players[:count]
