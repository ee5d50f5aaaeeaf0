"""The replay memory against episodes that are simply kept; priorities against their definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epochal.pipelines.data import replay
from epochal.pipelines.data.replay import (
    CUT_OFF,
    GOES_ON,
    TERMINATED,
    TRUNCATED,
    Ring,
)
from epochal.pipelines.data.sampling import Latest, Priorities, Prioritized, Uniform
from epochal.pipelines.data.source import SourceError

DISCOUNT = 0.9


def ring(place, lanes=1, capacity=40, room=0, stack=1, n_step=1, shape=(3,), dtype="float32"):
    return Ring(place, lanes, capacity, room, shape, dtype, stack, n_step, DISCOUNT)


class Kept:
    """Episodes as lists, written to a ring step by step. A frame is (lane, episode, time)."""

    def __init__(self, memory: Ring):
        self.memory = memory
        self.steps = [[] for _ in range(memory.lanes)]  # a position each: (episode, time)
        self.episodes = [[] for _ in range(memory.lanes)]

    def play(self, lane: int, length: int, end: int, seed: int) -> None:
        """An episode of so many steps that ends so; GOES_ON: it is still being played."""
        number = len(self.episodes[lane])
        rewards = np.random.default_rng(seed).integers(-3, 4, length).astype(float)
        self.episodes[lane].append((rewards, end))
        for time in range(length):
            how = end if time == length - 1 else GOES_ON
            frame = np.array([lane, number, time])
            self.memory.append(lane, frame, time % 5, rewards[time], time, how)
            self.steps[lane].append((number, time))
        if end == TRUNCATED:
            self.memory.append(lane, np.array([lane, number, length]), 0, 0.0, length, CUT_OFF)
            self.steps[lane].append((number, length))

    def frames(self, lane: int, episode: int, time: int) -> np.ndarray:
        stack = self.memory.stack
        times = [max(time - j, 0) for j in range(stack - 1, -1, -1)]
        return np.concatenate([[lane, episode, t] for t in times])

    def transition(self, lane: int, position: int):
        """(observation, return, bootstrap, what follows or None), or None: it can't be drawn."""
        episode, time = self.steps[lane][position]
        rewards, end = self.episodes[lane][episode]
        if time == len(rewards):
            return None
        total, n = 0.0, self.memory.n_step
        for j in range(n):
            total += DISCOUNT**j * rewards[time + j]
            if time + j == len(rewards) - 1:
                if end == TERMINATED:
                    return self.frames(lane, episode, time), total, 0.0, None
                if end == GOES_ON:  # what follows is not stored yet
                    return None
                n = j + 1
                break
        after = time + n
        if after == len(rewards) and end != TRUNCATED:
            if end == TERMINATED:
                raise AssertionError("the loop has returned")
            return None
        return (
            self.frames(lane, episode, time),
            total,
            DISCOUNT**n,
            self.frames(lane, episode, after),
        )


@st.composite
def memories(draw):
    lanes = draw(st.integers(1, 2))
    options = {
        "lanes": lanes,
        "capacity": draw(st.integers(8, 20)) * lanes,
        "room": draw(st.integers(0, 5)),
        "stack": draw(st.integers(1, 4)),
        "n_step": draw(st.integers(1, 4)),
    }
    episode = st.tuples(st.integers(1, 9), st.sampled_from([TERMINATED, TRUNCATED]))
    played = [draw(st.lists(episode, min_size=1, max_size=8)) for _ in range(lanes)]
    going = [draw(st.integers(0, 5)) for _ in range(lanes)]
    return options, played, going


def filled(place, options, played, going) -> Kept:
    kept = Kept(ring(place, **options))
    for lane, episodes in enumerate(played):
        for seed, (length, end) in enumerate(episodes):
            kept.play(lane, length, end, seed)
        if going[lane]:
            kept.play(lane, going[lane], GOES_ON, 99)
    return kept


@settings(max_examples=150, deadline=None)
@given(memories())
def test_no_step_ever_mixes_two_episodes(tmp_path_factory, made):
    """Every step in reach: its stack of frames, its return, what its value stands for."""
    kept = filled(tmp_path_factory.mktemp("ring"), *made)
    memory = kept.memory
    for lane in range(memory.lanes):
        positions = np.arange(memory.starts[lane], memory.heads[lane])
        assert len(positions) == min(memory.capacity, len(kept.steps[lane]))
        lanes = np.full(len(positions), lane)
        known = memory.horizon(lanes, positions)[3]
        found = memory.transitions(lanes, positions)
        for i, position in enumerate(positions):
            right = kept.transition(lane, position)
            assert known[i] == (right is not None), position
            if right is None:
                continue
            observation, total, bootstrap, after = right
            np.testing.assert_array_equal(found["observation"][i], observation)
            assert found["reward"][i] == pytest.approx(total, abs=1e-5)
            assert found["bootstrap"][i] == pytest.approx(bootstrap)
            assert found["action"][i] == kept.steps[lane][position][1] % 5
            if after is not None:
                np.testing.assert_array_equal(found["next_observation"][i], after)


@settings(max_examples=60, deadline=None)
@given(memories())
def test_samplers_draw_only_what_can_be_learnt_from(tmp_path_factory, made):
    kept = filled(tmp_path_factory.mktemp("ring"), *made)
    memory = kept.memory
    able = {
        (lane, position)
        for lane in range(memory.lanes)
        for position in range(memory.starts[lane], memory.heads[lane])
        if kept.transition(lane, position) is not None
    }
    if not able:
        return
    random = np.random.default_rng(0)
    samplers = [Uniform(), Latest(64), Prioritized(memory, 0.6)]
    for sampler in samplers:
        lane, position, weight = sampler.draw(memory, 16, random)
        assert set(zip(lane.tolist(), position.tolist(), strict=True)) <= able
        assert weight.shape == (16,)
    assert samplers[2].size == len(able)


def test_termination_and_truncation_are_told_apart(tmp_path):
    kept = Kept(ring(tmp_path))
    kept.play(0, 3, TERMINATED, 0)
    kept.play(0, 3, TRUNCATED, 1)
    found = kept.memory.transitions(np.array([0, 0]), np.array([2, 5]))
    np.testing.assert_allclose(found["bootstrap"], [0.0, 0.9])
    np.testing.assert_array_equal(found["next_observation"][1], [0, 1, 3])  # where it was cut off


def test_images_become_channels_oldest_first(tmp_path):
    memory = ring(tmp_path, stack=3, shape=(2, 2), dtype="uint8")
    for age in range(4):
        memory.append(0, np.full((2, 2), 10 + age), 0, 0.0, age, GOES_ON)
    found = memory.observations(np.array([0, 0, 0]), np.array([0, 1, 3]))
    assert found.shape == (3, 2, 2, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[:, 0, 0], [[10, 10, 10], [10, 10, 11], [11, 12, 13]])


def test_what_a_checkpoint_may_draw_survives_all_that_is_written_until_the_next(tmp_path):
    options = {"capacity": 20, "room": 15, "stack": 3, "n_step": 2}
    kept = Kept(ring(tmp_path, **options))
    for seed in range(7):
        kept.play(0, 6, TRUNCATED, seed)
    memory = kept.memory
    head = memory.heads.copy()
    positions = np.arange(memory.starts[0], head[0])
    lanes = np.zeros(len(positions), np.int64)
    known = memory.horizon(lanes, positions)[3]
    before = memory.transitions(lanes[known], positions[known])
    kept.play(0, 14, TRUNCATED, 0)  # 15 slots; then a kill, and the memory is opened again
    again = ring(tmp_path, **options)
    again.heads[:] = head
    after = again.transitions(lanes[known], positions[known])
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_uniform_is_uniform(tmp_path):
    kept = Kept(ring(tmp_path, lanes=2, capacity=40))
    for lane, length in ((0, 9), (1, 19)):  # lanes of different length
        kept.play(lane, length, TERMINATED, 0)
    lane, position, weight = Uniform().draw(kept.memory, 28_000, np.random.default_rng(0))
    counts = np.bincount(lane * 19 + position, minlength=38)
    counts = counts[counts > 0]
    assert len(counts) == 28
    assert abs(counts - 1000).max() < 150  # 4.7 standard deviations
    assert (weight == 1).all()


def test_latest_are_the_newest(tmp_path):
    kept = Kept(ring(tmp_path))
    kept.play(0, 9, TERMINATED, 0)
    kept.play(0, 4, GOES_ON, 0)
    lane, position, _ = Latest(64).draw(kept.memory, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(position, [7, 8, 9, 10, 11])  # what follows 12 is not known yet
    assert (lane == 0).all()
    position = Latest(2).draw(kept.memory, 6, np.random.default_rng(0))[1]
    np.testing.assert_array_equal(position, [10, 11] * 3)  # older ones were learnt from before


def test_priorities_are_drawn_in_proportion(tmp_path):
    """P(i) = p^alpha / sum, weights (N P)^-beta over their largest (Schaul et al., section 3)."""
    kept = Kept(ring(tmp_path))
    kept.play(0, 8, TERMINATED, 0)
    memory = kept.memory
    sampler = Prioritized(memory, alpha=0.5)
    sampler.beta = 0.7
    sampler.draw(memory, 1, np.random.default_rng(0))
    np.testing.assert_allclose(sampler.tree.leaves[:8], 1.0)  # new: the highest so far
    errors = np.array([0.1, 4.0, 1.0, 0.0, 2.0, 0.5, 9.0, 0.3])
    sampler.learnt(np.zeros(8, np.int64), np.arange(8), errors)
    share = np.sqrt(errors + 1e-6) / np.sqrt(errors + 1e-6).sum()
    _, position, weight = sampler.draw(memory, 20_000, np.random.default_rng(0))
    counts = np.bincount(position, minlength=8)
    np.testing.assert_allclose(counts / 20_000, share, atol=2e-4)  # stratified: almost exact
    right = (8 * share[position]) ** -0.7
    np.testing.assert_allclose(weight, right / right.max(), rtol=1e-5)
    kept.play(0, 1, TERMINATED, 0)
    sampler.draw(memory, 1, np.random.default_rng(0))
    assert sampler.tree.leaves[8] == pytest.approx(3.0, rel=1e-5)  # sqrt of the highest, 9


def test_of_several_errors_of_a_step_the_last_counts(tmp_path):
    kept = Kept(ring(tmp_path))
    kept.play(0, 3, TERMINATED, 0)
    sampler = Prioritized(kept.memory, alpha=1.0)
    sampler.draw(kept.memory, 1, np.random.default_rng(0))
    sampler.learnt(np.zeros(3, np.int64), np.array([1, 1, 1]), np.array([5.0, -7.0, 2.0]))
    assert sampler.tree.leaves[1] == pytest.approx(2.0, rel=1e-5)
    assert sampler.highest == pytest.approx(7.0, rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=70), st.integers(0, 2**32 - 1))
def test_the_tree_finds_where_the_running_sum_passes(values, seed):
    values = np.array(values)
    values[np.random.default_rng(seed).random(len(values)) < 0.3] = 0.0
    tree, rebuilt = Priorities(len(values)), Priorities(len(values))
    tree.set(np.arange(len(values)), np.random.default_rng(seed).random(len(values)))
    for i in np.random.default_rng(seed).permutation(len(values)):
        tree.set(np.array([i]), values[[i]])
    rebuilt.set(np.arange(len(values)), values)
    np.testing.assert_array_equal(tree._sums, rebuilt._sums)  # bit for bit
    if values.sum() == 0:
        return
    shares = np.append(np.random.default_rng(seed).random(50), [0.0, np.nextafter(1, 0)])
    found = tree.find(shares)
    assert (values[found] > 0).all()
    sums = np.cumsum(values)
    near = 1e-9 * sums[-1]
    assert (sums[found] >= shares * sums[-1] - near).all()
    assert (sums[found] - values[found] <= shares * sums[-1] + near).all()


def test_a_million_atari_frames_fit_in_seven_and_a_half_gigabytes():
    room = 50_000 + 50_000 // 25_000 + 1
    assert replay.ring_bytes(1_000_000 + room + 3, (84, 84), "uint8") <= 7.5e9


def test_a_memory_that_does_not_fit_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "available_memory", lambda: 1_000_000)
    with pytest.raises(SourceError, match=r"needs 7\.07 GB, and 0\.00 GB of memory.*capacity"):
        replay.check_size(replay.ring_bytes(1_000_000, (84, 84), "uint8"), tmp_path / "made")
    assert not (tmp_path / "made").exists()
