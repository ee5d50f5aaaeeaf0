"""Which steps of a replay memory are learnt from: any, the newest, or those with large errors."""

from __future__ import annotations

from typing import Any

import numpy as np

from .replay import CUT_OFF, Ring


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
    """No replay: the newest steps, in the order in which they were taken.

    Args:
        steps: at most so many of them: those taken since the last learning. A minibatch of more
            would be a small memory, whose steps are learnt from several times.
    """

    def __init__(self, steps: int):
        self.steps = steps

    def draw(self, ring: Ring, count: int, random: np.random.Generator):
        """As :meth:`Uniform.draw`; nothing is random. Few steps are given several times, which
        their mean does not notice."""
        each = -(-min(count, self.steps) // ring.lanes)
        lanes, positions = [], []
        for lane in range(ring.lanes):
            # Some cannot be learnt from: what follows is not known (yet), or the time was up.
            reach = 2 * each + ring.n_step + 64
            first = max(ring.starts[lane], ring.heads[lane] - reach)
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


class Priorities:
    """Numbers, none negative, that are drawn in proportion to their size: by a tree of their sums.

    A sum is always that of its two parts, never the old one plus a difference: so a tree built
    anew from the leaves is, bit for bit, the tree that grew.

    Args:
        size: how many numbers; they start as 0.
    """

    def __init__(self, size: int):
        self._size = size
        self._depth = max(1, int(size - 1).bit_length())
        self._base = 1 << self._depth
        self._sums = np.zeros(2 * self._base)  # node i has the parts 2 i and 2 i + 1; 1 is the root

    @property
    def leaves(self) -> np.ndarray:
        """float64 [size], a view."""
        return self._sums[self._base : self._base + self._size]

    @property
    def total(self) -> float:
        return float(self._sums[1])

    def set(self, leaves: np.ndarray, values: np.ndarray) -> None:
        """Sets numbers at positions [m], which are all different."""
        if not len(leaves):
            return
        nodes = np.asarray(leaves, np.int64) + self._base
        self._sums[nodes] = values
        for _ in range(self._depth):
            nodes = np.unique(nodes >> 1)
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def find(self, shares: np.ndarray) -> np.ndarray:
        """Positions [m] where the running sum passes shares [m], in [0, 1), of the total."""
        rest = np.asarray(shares, np.float64) * self.total
        nodes = np.ones(len(rest), np.int64)
        for _ in range(self._depth):
            left, right = self._sums[2 * nodes], self._sums[2 * nodes + 1]
            # Rounding may point behind the last number: never at a part that is 0.
            goes_right = ((rest >= left) & (right > 0)) | (left == 0)
            rest = np.where(goes_right, rest - left, rest)
            nodes = 2 * nodes + goes_right
        return nodes - self._base
