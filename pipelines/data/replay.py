"""Replay memory: a memory-mapped ring of frames, and the ways to draw minibatches from it.

A lane is what one environment has done, in order; position p of a lane lies in slot p % slots. A
slot holds the newest frame of the observation at that step, the action taken there, its reward, how
many steps the episode was old, and how it went on. A frame is stored once: stacks of frames and
returns over n steps are put together when they are drawn, within one episode. After a step at
which an episode was cut off (truncated) one more slot holds the observation it was cut off at,
since its value stands for the rewards that would have followed; after a terminal step nothing
follows.

The ring has more slots than the capacity: room for what is collected between two checkpoints.
Minibatches only reach back ``capacity`` slots, so that going on from a checkpoint finds every slot
it may draw as it was, though the memory is written in place.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from .priorities import Priorities
from .source import SourceError

GOES_ON, TERMINATED, TRUNCATED, CUT_OFF = range(4)
"""How a slot's step went on; CUT_OFF is the slot after TRUNCATED, in which no action was taken."""


class Ring:
    """The memory of several lanes.

    Args:
        directory: where the files go or, from a run that goes on, are.
        lanes: number of environments.
        capacity: slots that may be drawn from, all lanes together; a multiple of ``lanes``.
        room: further slots a lane, for what is written between two checkpoints.
        frame_shape, dtype: of one frame: [f], [h, w] or [h, w, c].
        stack: frames of an observation, oldest first along the last axis. At the beginning of an
            episode the first frame stands for those before it.
        n_step: steps whose rewards are summed before the value of the observation after them.
        discount: of a reward one step later.

    Attributes:
        heads: int64 [lanes], the number of slots written to each lane so far.
    """

    def __init__(
        self,
        directory: Path,
        lanes: int,
        capacity: int,
        room: int,
        frame_shape: tuple[int, ...],
        dtype: str,
        stack: int = 1,
        n_step: int = 1,
        discount: float = 0.99,
    ):
        self.lanes, self.capacity, self.stack = lanes, capacity // lanes, stack
        self.slots = slots(lanes, capacity, room, stack)
        self.n_step = n_step
        self._powers = discount ** np.arange(n_step + 1)
        self.heads = np.zeros(lanes, np.int64)
        fields = {
            "frame": (frame_shape, dtype),
            "action": ((), "int32"),
            "reward": ((), "float32"),
            "age": ((), "int32"),
            "end": ((), "uint8"),
        }
        self._maps = {
            name: _map(directory / f"{name}.npy", (lanes, self.slots, *shape), kind)
            for name, (shape, kind) in fields.items()
        }
        # Plain views: NumPy's memmap class makes every access several times slower.
        self.frame, self.action, self.reward, self.age, self.end = (
            np.asarray(array) for array in self._maps.values()
        )

    def append(self, lane: int, frame, action: int, reward: float, age: int, end: int) -> None:
        """Writes the next slot of a lane."""
        slot = self.heads[lane] % self.slots
        self.frame[lane, slot] = frame
        self.action[lane, slot] = action
        self.reward[lane, slot] = reward
        self.age[lane, slot] = age
        self.end[lane, slot] = end
        self.heads[lane] += 1

    def flush(self) -> None:
        """Has the system write what has changed to the disk."""
        for array in self._maps.values():
            array.flush()

    @property
    def starts(self) -> np.ndarray:
        """int64 [lanes], the oldest position of each lane that may be drawn."""
        return np.maximum(self.heads - self.capacity, 0)

    def horizon(self, lane: np.ndarray, position: np.ndarray):
        """What follows steps [m]: the return over n steps or until the episode's end.

        Returns:
            reward float32 [m]; the position int64 [m] of s' (after termination the step's own,
            whose value counts nothing); bootstrap float32 [m]; whether [m] it can be drawn: an
            action was taken and all that follows is stored.
        """
        reward = np.zeros(len(position))
        bootstrap = np.zeros(len(position))
        after = position.copy()
        begun = self.end[lane, position % self.slots] != CUT_OFF
        known = begun.copy()
        open_ = begun.copy()
        for j in range(self.n_step):
            here = position + j
            known &= ~open_ | (here < self.heads[lane])
            open_ &= known
            slot = here % self.slots
            reward += np.where(open_, self._powers[j] * self.reward[lane, slot], 0.0)
            end = self.end[lane, slot]
            last = open_ & ((end == TRUNCATED) | ((end == GOES_ON) & (j == self.n_step - 1)))
            bootstrap = np.where(last, self._powers[j + 1], bootstrap)
            after = np.where(last, here + 1, after)
            open_ &= end == GOES_ON
        known &= after < self.heads[lane]
        return reward.astype(np.float32), after, bootstrap.astype(np.float32), known

    def observations(self, lane: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Observations [m, ...] at positions: stacks of frames of their episodes."""
        if self.stack == 1:
            return stacked(self.frame[lane, position % self.slots][:, None])
        back = np.arange(self.stack - 1, -1, -1)
        age = self.age[lane, position % self.slots]
        places = position[:, None] - np.minimum(back, age[:, None])
        return stacked(self.frame[lane[:, None], places % self.slots])

    def transitions(self, lane: np.ndarray, position: np.ndarray) -> dict[str, np.ndarray]:
        """Steps at positions [m] that can be drawn, as :class:`epochal.models.dqn.DQN` reads."""
        reward, after, bootstrap, _ = self.horizon(lane, position)
        return {
            "observation": self.observations(lane, position),
            "action": self.action[lane, position % self.slots],
            "reward": reward,
            "next_observation": self.observations(lane, after),
            "bootstrap": bootstrap,
        }


def stacked(frames: np.ndarray) -> np.ndarray:
    """Frames [m, k, f], [m, k, h, w] or [m, k, h, w, c] -> [m, k f], [m, h, w, k] or
    [m, h, w, k c]."""
    if frames.ndim == 4:
        return np.moveaxis(frames, 1, -1)
    if frames.shape[1] == 1:
        return frames[:, 0]
    return np.concatenate(list(np.moveaxis(frames, 1, 0)), axis=-1)


class Uniform:
    """Every step in reach is as likely as any other."""

    def draw(self, ring: Ring, count: int, random: np.random.Generator):
        """Lanes and positions, int64 [count] each, and weights in the loss, float32 [count]."""
        starts, sizes = ring.starts, ring.heads - ring.starts
        ends = np.cumsum(sizes)
        lane = np.zeros(count, np.int64)
        position = np.zeros(count, np.int64)
        missing = np.arange(count)
        while len(missing):  # a few are cut off, or too new for all that follows to be known
            place = random.integers(ends[-1], size=len(missing))
            lane[missing] = np.searchsorted(ends, place, side="right")
            inside = place - (ends - sizes)[lane[missing]]
            position[missing] = starts[lane[missing]] + inside
            missing = missing[~ring.horizon(lane[missing], position[missing])[3]]
        return lane, position, np.ones(count, np.float32)


class Latest:
    """No replay: the newest steps, in the order in which they were taken."""

    def draw(self, ring: Ring, count: int, random: np.random.Generator):
        """As :meth:`Uniform.draw`; nothing is random. Few steps are given several times."""
        each = -(-count // ring.lanes)
        lanes, positions = [], []
        for lane in range(ring.lanes):
            first = max(ring.starts[lane], ring.heads[lane] - 2 * each - ring.n_step)
            position = np.arange(first, ring.heads[lane])
            lane_of = np.full(len(position), lane)
            position = position[ring.horizon(lane_of, position)[3]][-each:]
            lanes.append(np.full(len(position), lane))
            positions.append(position)
        lane, position = np.concatenate(lanes), np.concatenate(positions)
        if len(position) > count:
            lane, position = lane[-count:], position[-count:]
        return np.resize(lane, count), np.resize(position, count), np.ones(count, np.float32)


class Prioritized:
    """Steps of which much is to be learnt come more often (Schaul et al. 2016).

    Proportional: P(i) = p_i^alpha / sum p^alpha with p = |TD error| + 0.000001 of the last time
    that a step was learnt from, and the highest p so far for one that never was. In the loss it
    counts (N P(i))^-beta, divided by the minibatch's largest such number (section 3.4).

    Args:
        ring: the memory.
        alpha: 0 is uniform.
    """

    floor = 1e-6

    def __init__(self, ring: Ring, alpha: float):
        self.ring, self.alpha = ring, alpha
        self.beta = 1.0
        self.tree = Priorities(ring.lanes * ring.slots)
        self.highest = 1.0
        self.first = np.zeros(ring.lanes, np.int64)  # positions that have a priority: from here
        self.next = np.zeros(ring.lanes, np.int64)  # to here

    def draw(self, ring: Ring, count: int, random: np.random.Generator):
        """As :meth:`Uniform.draw`: one step from each of ``count`` equal parts of the sum."""
        self._follow()
        leaf = self.tree.find((np.arange(count) + random.random(count)) / count)
        lane, slot = leaf // ring.slots, leaf % ring.slots
        newest = ring.heads[lane] - 1
        position = newest - (newest - slot) % ring.slots
        share = self.tree.leaves[leaf] / self.tree.total
        weight = (self.size * share) ** -self.beta
        return lane, position, (weight / weight.max()).astype(np.float32)

    @property
    def size(self) -> int:
        """N: steps that can be drawn."""
        return int(np.count_nonzero(self.tree.leaves))

    def learnt(self, lane: np.ndarray, position: np.ndarray, errors: np.ndarray) -> None:
        """Takes the errors [m] of steps that were learnt from; of one step the last counts."""
        there = position >= self.first[lane]
        priority = np.abs(errors[there]).astype(np.float64) + self.floor
        self.highest = max(self.highest, float(priority.max(initial=0.0)))
        leaf = lane[there] * self.ring.slots + position[there] % self.ring.slots
        last = len(leaf) - 1 - np.unique(leaf[::-1], return_index=True)[1]
        self.tree.set(leaf[last], priority[last] ** self.alpha)

    def _follow(self) -> None:
        """Gives new steps a priority, and takes it from those that are out of reach."""
        ring = self.ring
        for lane in range(ring.lanes):
            gone = np.arange(self.first[lane], min(ring.starts[lane], self.next[lane]))
            self.tree.set(lane * ring.slots + gone % ring.slots, np.zeros(len(gone)))
            self.first[lane] = ring.starts[lane]
            new = np.arange(max(self.next[lane], ring.starts[lane]), ring.heads[lane])
            lane_of = np.full(len(new), lane)
            known = ring.horizon(lane_of, new)[3]
            taken = ring.end[lane, new % ring.slots] != CUT_OFF
            waiting = np.flatnonzero(taken & ~known)  # for what follows them
            new = new[: waiting[0]] if len(waiting) else new
            known = known[: len(new)]
            value = np.where(known, self.highest**self.alpha, 0.0)
            self.tree.set(lane * ring.slots + new % ring.slots, value)
            self.next[lane] = max(self.next[lane], ring.starts[lane]) + len(new)

    def get_state(self) -> dict[str, Any]:
        """All but the leaves, as JSON can hold it."""
        return {
            "highest": self.highest,
            "first": self.first.tolist(),
            "next": self.next.tolist(),
        }

    def set_state(self, state: dict[str, Any], leaves: np.ndarray) -> None:
        self.highest = state["highest"]
        self.first, self.next = (np.array(state[key], np.int64) for key in ("first", "next"))
        self.tree.set(np.arange(len(leaves)), leaves)


def slots(lanes: int, capacity: int, room: int, stack: int) -> int:
    """Slots of a lane: frames of a stack may lie before the first slot that is drawn."""
    return capacity // lanes + room + stack - 1


def ring_bytes(slots: int, frame_shape: tuple[int, ...], dtype: str) -> int:
    """What so many slots, of all lanes, take: a frame each and 13 bytes."""
    return slots * (int(np.prod(frame_shape)) * np.dtype(dtype).itemsize + 13)


def available_memory() -> int:
    """Bytes that programs can still get, files that the system has in memory included."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(one.split()[1]) for one in lines if one.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_size(needed: int, directory: Path) -> None:
    """Raises SourceError where a memory of so many bytes has no room in memory or on the disk."""
    there = (
        sum(file.stat().st_size for file in directory.glob("*.npy")) if directory.exists() else 0
    )
    place = next(p for p in (directory, *directory.parents) if p.exists())
    limits = {
        "of memory": available_memory(),
        f"on the disk of {place}": shutil.disk_usage(place).free + there,
    }
    for what, limit in limits.items():
        if needed > limit:
            raise SourceError(
                f"The replay memory needs {needed / 1e9:.2f} GB, and {limit / 1e9:.2f} GB {what} "
                "are free. Lower data.replay.capacity, or algorithm.steps_per_epoch (between two "
                "checkpoints nothing is overwritten)."
            )


def _map(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    if path.is_file():
        found = np.lib.format.open_memmap(path, mode="r+")
        if found.shape == shape and found.dtype == np.dtype(dtype):
            return found
    path.parent.mkdir(parents=True, exist_ok=True)
    created = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with open(path, "r+b") as file:  # else a full disk ends the process, without an exception
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return created
