"""Replay memory: a memory-mapped ring of frames. How it is drawn from stands in :mod:`.sampling`.

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

import numpy as np

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
