"""Environments from the recipe to the SavedModel: learning, lock-step, resuming, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium import spaces

from epochal.pipelines import checkpoint, override
from epochal.pipelines.data import control, environments, load
from epochal.pipelines.data.actor import epsilon_at
from epochal.pipelines.data.environments import Player, make, play, seed_of
from epochal.pipelines.data.replay import TERMINATED, TRUNCATED
from epochal.pipelines.data.source import SourceError
from epochal.pipelines.environment import effective_threads
from epochal.pipelines.evaluate import evaluate
from epochal.pipelines.export import export
from epochal.pipelines.predict import predict
from epochal.pipelines.recipe import Algorithm, Choice, Data, Recipe, RecipeError, Replay
from epochal.pipelines.run import RunError
from epochal.pipelines.train import train
from epochal.pipelines.verify import ask_alone

CELLS = 8


class Corridor(gymnasium.Env):
    """Eight cells; at the far end is a reward of 1; each step costs 0.05. The best return is 0.65,
    from a start one cell further on 0.7."""

    observation_space = spaces.Box(0.0, 1.0, (CELLS,), np.float32)
    action_space = spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = int(self.np_random.integers(2))
        return self.seen(), {}

    def seen(self):
        return np.eye(CELLS, dtype=np.float32)[self.cell]

    def step(self, action):
        self.cell = max(self.cell + (1 if action else -1), 0)
        over = self.cell == CELLS - 1
        return self.seen(), 0.95 if over else -0.05, over, False, {}

    def render(self):
        return np.tile((self.seen() * 255).astype(np.uint8)[None, :, None], (4, 1, 3))


class Pixels(Corridor):
    """The same as a grey image of 6x6 pixels."""

    observation_space = spaces.Box(0, 255, (6, 6), np.uint8)

    def seen(self):
        image = np.zeros(36, np.uint8)
        image[self.cell * 4] = 255
        return image.reshape(6, 6)

    def render(self):
        return np.repeat(self.seen()[..., None], 3, axis=2)


class Lives(Corridor):
    """Loses one of three lives at every second step, and is over with the last."""

    def reset(self, **options):
        self.age, self.lives = 0, 3
        return super().reset(**options)[0], {"lives": 3}

    def step(self, action):
        seen, reward, *_ = super().step(0)
        self.age += 1
        self.lives -= self.age % 2 == 0
        return seen, reward, self.lives == 0, False, {"lives": self.lives}


class Continuous(Corridor):
    action_space = spaces.Box(-1.0, 1.0, (1,))


class Dictionary(Corridor):
    observation_space = spaces.Dict({"cell": spaces.Discrete(CELLS)})


@pytest.fixture(scope="module", autouse=True)
def registered():
    made = {
        "Corridor-v0": Corridor,
        "Pixels-v0": Pixels,
        "Lives-v0": Lives,
        "Continuous-v0": Continuous,
        "Dictionary-v0": Dictionary,
    }
    for name, entry in made.items():
        gymnasium.register(name, entry_point=entry, max_episode_steps=25)
    yield
    for name in made:
        del gymnasium.registry[name]


def recipe(source="gym:Corridor-v0", model=None, algorithm=None, **replay) -> Recipe:
    replay = {
        "capacity": 500,
        "start": 100,
        "train_freq": 8,
        "updates": 4,
        "environments": 2,
        "epsilon_steps": 600,
        "discount": 0.9,
        "validation_episodes": 3,
        "test_episodes": 6,
    } | replay
    return Recipe(
        name="corridor",
        data=Data(source=source, batch_size=16, replay=Replay(**replay)),
        model=model or Choice(name="dqn-mlp", hidden=[24], target_every=20),
        loss=Choice(name="huber"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.003),
            **({"epochs": 3, "steps_per_epoch": 40} | (algorithm or {})),
        ),
        seed=1,
    )


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    return train(recipe(), tmp_path_factory.mktemp("corridor") / "run")


class Stop(keras.callbacks.Callback):
    """Breaks training off in the middle of an epoch, as Ctrl-C does."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


def state(run):
    return checkpoint.load_checkpoint(run.path / "checkpoints" / "latest.npz")


def assert_same(one, other):
    assert one.history == other.history
    (arrays, about), (others, also) = state(one), state(other)
    for x, y in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(x, y)
    assert about["callbacks"] == also["callbacks"]
    for x, y in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


# --- Learning -------------------------------------------------------------------------------------


def test_an_agent_learns_to_walk_to_the_end(learnt):
    found = learnt.metrics["test"]
    assert found["return"]["value"] > 0.64  # straight on; at random it is about -0.7
    assert found["episode_length"]["value"] <= 7
    assert learnt.metrics["validation"]["return"]["value"] > 0.64
    assert learnt.dataset["sizes"] == {"train": 500, "validation": 3, "test": 6}
    assert {"loss", "q_value", "return", "epsilon", "val_return"} <= set(learnt.history[0])
    assert learnt.history[-1]["step"] == 3 * 40 * 4
    assert not (learnt.path / "replay").exists()  # training is over, and with it the memory
    assert (learnt.path / "plots" / "returns.png").is_file()


def test_values_are_discounted_rewards(learnt):
    """From cell 5 on: step to 6 for -0.05, step to 7 for 0.95."""
    values = learnt.model(np.eye(CELLS, dtype=np.float32)).numpy()
    assert values[6, 1] == pytest.approx(0.95, abs=0.05)
    assert values[5, 1] == pytest.approx(-0.05 + 0.9 * 0.95, abs=0.1)


def test_pixels_are_learnt_from_by_convolutions_with_priorities_and_all_options(tmp_path):
    model = Choice(name="dqn-nature", convolutions=[[8, 3, 1]], hidden=[32], dueling=True,
                   double=True, target_every=20)  # fmt: skip
    run = train(
        recipe("gym:Pixels-v0", model, sampling="prioritized", n_step=3, stack=2), tmp_path / "run"
    )
    assert run.metrics["test"]["return"]["value"] > 0.6
    assert run.dataset["input_shape"] == [6, 6, 2]


def test_epsilon_goes_down_on_a_straight_line():
    replay = Replay(epsilon_start=1.0, epsilon_end=0.1, epsilon_steps=900)
    found = [epsilon_at(replay, steps) for steps in (0, 450, 900, 10_000)]
    assert found == pytest.approx([1.0, 0.55, 0.1, 0.1])


# --- Lock-step and resuming -----------------------------------------------------------------------


def test_two_runs_and_twenty_steps_at_a_time_give_the_same_weights(learnt, tmp_path):
    again = train(recipe(), tmp_path / "again")
    assert_same(learnt, again)
    many = train(recipe(algorithm={"steps_per_execution": 20}), tmp_path / "many")
    for x, y in zip(learnt.model.get_weights(), many.model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    other = train(override(recipe(), {"seed": 2}), tmp_path / "other")
    assert other.history != learnt.history


def test_an_element_waits_for_the_learner_however_early_it_is_asked_for(
    learnt, tmp_path, monkeypatch
):
    monkeypatch.setattr(control, "_lock_step", lambda dataset: dataset.prefetch(3))
    early = train(recipe(), tmp_path / "early")
    for x, y in zip(learnt.model.get_weights(), early.model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("sampling", ["uniform", "prioritized"])
def test_a_run_that_was_broken_off_ends_as_one_that_was_not(sampling, tmp_path):
    """Twice in the middle of an epoch; the ring has gone round by then."""
    made = recipe("gym:Pixels-v0", Choice(name="dqn-mlp", hidden=[16]), sampling=sampling,
                  stack=3, n_step=2, capacity=160)  # fmt: skip
    whole = train(made, tmp_path / "whole")
    for stop in (Stop(1, 17), Stop(2, 30)):
        with pytest.raises(KeyboardInterrupt):
            train(made, tmp_path / "broken", callbacks=[stop])
        assert (tmp_path / "broken" / "replay" / "frame.npy").is_file()
    assert_same(whole, train(made, tmp_path / "broken"))


_CHILD = """
import os, sys, keras
from pathlib import Path
from epochal.pipelines.recipe import Recipe
from epochal.pipelines.train import train
class Kill(keras.callbacks.Callback):
    epoch = 0
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 1 and batch == 15:
            os.kill(os.getpid(), 9)
train(Recipe.from_json(Path(sys.argv[1]).read_text()), sys.argv[2], callbacks=[Kill()])
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    """Killed by signal 9 in another process, with frames in the memory that nobody has synced."""
    made = recipe("gym:CartPole-v1", algorithm={"epochs": 3, "steps_per_epoch": 20})
    (tmp_path / "recipe.json").write_text(made.to_json())
    command = [sys.executable, "-c", _CHILD, str(tmp_path / "recipe.json"), str(tmp_path / "run")]
    # The number of threads is that of this process, whoever has set it.
    threads = {
        f"TF_NUM_{kind.upper()}OP_THREADS": str(count)
        for kind, count in effective_threads().items()
    }
    killed = subprocess.run(command, env=os.environ | threads, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert_same(train(made, tmp_path / "whole"), train(made, tmp_path / "run"))


def test_a_lost_memory_is_noticed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), tmp_path / "run", callbacks=[Stop(1, 5)])
    shutil.rmtree(tmp_path / "run" / "replay")
    with pytest.raises(SourceError, match="memory .* is gone"):
        train(recipe(), tmp_path / "run")


# --- Environments ---------------------------------------------------------------------------------


def test_a_lost_life_ends_what_is_learnt_from_while_the_game_goes_on():
    player = Player(make("Lives-v0"), stack=2, life_loss=True)
    player.reset(0)
    ends, ages, over = [], [], []
    while not player.over:
        ends.append(player.step(1)[1])
        ages.append(player.age)
        over.append(player.over)
    assert [end == TERMINATED for end in ends] == [False, True] * 3
    assert ages == [1, 0] * 3  # the stack of frames begins anew
    assert over == [False] * 5 + [True]
    assert player.total == pytest.approx(-0.3)


def test_frames_of_atari_are_those_of_the_paper():
    pytest.importorskip("ale_py")
    player = Player(make("ALE/Pong-v5"), stack=4)
    player.reset(3)
    ale = player.environment.unwrapped.ale
    assert ale.getFloat("repeat_action_probability") == 0
    began = ale.getEpisodeFrameNumber()
    assert 0 < began <= 30  # idle steps
    for _ in range(3):
        player.step(2)
    assert ale.getEpisodeFrameNumber() == began + 12
    assert (player.observation.shape, player.dtype) == ((84, 84, 4), np.uint8)
    np.testing.assert_array_equal(player.observation[..., -1], player.frame)
    assert len(np.unique(player.frame)) > 2
    other = make("ALE/Pong-v5", sticky_actions=0.25)
    assert other.unwrapped.ale.getFloat("repeat_action_probability") == 0.25


def test_actions_stick_as_the_seed_has_it():
    """To and fro from cell 0: with actions that stick for sure after the first, it only goes on."""

    def cells(sticky, seed=5):
        player = Player(make("Corridor-v0", sticky_actions=sticky))
        player.reset(seed)
        way = []
        for step in range(20):
            if player.over:
                break
            player.step((step + 1) % 2)
            way.append(int(np.argmax(player.observation)))
        return way

    assert max(cells(0.0)) <= 2  # it never arrives
    assert cells(0.999) == list(range(cells(0.999)[0], CELLS))
    assert cells(0.3) == cells(0.3) != cells(0.3, seed=6)


def test_a_time_limit_truncates():
    player = Player(make("Corridor-v0"))
    player.reset(0)
    ends = [player.step(0)[1] for _ in range(25)]
    assert ends[-1] == TRUNCATED
    assert TRUNCATED not in ends[:-1]
    assert player.over


def test_episodes_are_played_alike_one_by_one_and_together():
    def values(observations):
        return np.tile([0.0, 1.0], (len(observations), 1))

    keys = [(0, 2, number) for number in range(9)]
    alone = play([Player(make("Corridor-v0"))], values, keys, epsilon=0.5)
    together = play([Player(make("Corridor-v0")) for _ in range(4)], values, keys, epsilon=0.5)
    for name in ("return", "length"):
        np.testing.assert_array_equal(alone[name], together[name])
    assert len(set(alone["return"].tolist())) > 2
    assert len({seed_of(*key) for key in keys}) == 9


def test_validation_and_test_begin_otherwise():
    dataset = load(recipe().data)
    assert not set(dataset.keys("validation")) & set(dataset.keys("test"))


def test_pixel_breakout_is_deterministic_and_can_be_played():
    """Keeping the paddle under the ball wins; doing nothing loses soon."""

    def returns(follow, seed):
        player = Player(make("epochal/PixelBreakout-v0"))
        player.reset(seed)
        seen = []
        while not player.over and player.age < 300:
            seen.append(player.observation.copy())
            paddle, ball = (int(np.argwhere(seen[-1][..., i])[0, 1]) for i in (0, 1))
            player.step((1 if ball < paddle else 2 if ball > paddle else 0) if follow else 0)
        return player.total, np.stack(seen)

    won, seen = returns(True, 3)
    assert won > 20 * max(returns(False, seed)[0] for seed in range(4)) / 4 >= 0
    assert won > 20
    assert seen.dtype == np.uint8
    assert seen.shape[1:] == (10, 10, 4)
    assert set(np.unique(seen)) == {0, 255}
    np.testing.assert_array_equal(returns(True, 3)[1], seen)
    sides = {tuple(np.argwhere(returns(False, seed)[1][0][..., 1])[0]) for seed in range(8)}
    assert sides == {(3, 0), (3, 9)}


# --- After training -------------------------------------------------------------------------------


def test_the_export_answers_values_and_actions_with_tensorflow_alone(learnt, tmp_path):
    directory = export(learnt)
    seen = np.eye(CELLS, dtype=np.float32)[:6]
    request = {"serving_default/observation": seen}
    answer = ask_alone([directory], [request])[0]
    np.testing.assert_allclose(
        answer["serving_default/q_values"], learnt.model(seen), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(answer["serving_default/action"], np.ones(6))
    assert answer["serving_default/action"].dtype == np.int64
    about = json.loads((directory / "signature.json").read_text())
    assert about["task"] == "control"
    inputs = about["signatures"]["serving_default"]["inputs"]["observation"]
    assert (inputs["dtype"], inputs["shape"]) == ("float32", [None, CELLS])
    found = predict(learnt, seen)
    assert [one["action"] for one in found] == [1] * 6
    np.save(tmp_path / "seen.npy", seen[:2])
    assert predict(learnt, [str(tmp_path / "seen.npy")]) == found[:2]
    with pytest.raises(SourceError, match=r"takes observations \[8\] of float32; got .*\[1, 3\]"):
        predict(learnt, np.zeros(3))
    assert found[0]["q_values"] == pytest.approx(answer["serving_default/q_values"][0].tolist())


def test_evaluation_again_gives_the_same_numbers_and_a_video(learnt):
    result = evaluate(learnt, video=True)
    assert result["metrics"]["return"] == pytest.approx(learnt.metrics["test"]["return"])
    from PIL import Image

    with Image.open(learnt.path / "plots" / "episode.gif") as picture:
        assert picture.n_frames >= 6
    with pytest.raises(RunError, match="none of the split 'train'"):
        evaluate(learnt, "train")


# --- Bad input ------------------------------------------------------------------------------------


def test_what_is_not_installed_names_the_extra(monkeypatch):
    if "ale_py" not in sys.modules:
        monkeypatch.setitem(sys.modules, "ale_py", None)
        with pytest.raises(SourceError, match=r"ale-py.*pip install 'epochal\[rl\]'"):
            load(Data(source="gym:ALE/Pong-v5"))
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(SourceError, match=r"gymnasium.*pip install 'epochal\[rl\]'"):
        load(Data(source="gym:CartPole-v1"))


def refused(message, source="gym:Corridor-v0", error=SourceError, batch_size=16, **replay):
    with pytest.raises(error, match=message):
        load(Data(source=source, batch_size=batch_size, replay=Replay(**replay)))


def test_environments_that_cannot_be_learnt_from():
    refused("Did you mean 'CartPole-v1'", "gym:CartPol-v1")
    refused("discrete; continuous ones need", "gym:Continuous-v0")
    refused("kind Dict.*Supported are Box", "gym:Dictionary-v0")


def test_a_batch_larger_than_what_has_been_collected():
    refused(r"A minibatch has 64 steps.*only 47 of 50", batch_size=64, start=50, n_step=3)
    refused(r"64 steps.*and 32 of all", batch_size=64, capacity=32)


def test_a_memory_that_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr("epochal.pipelines.data.replay.available_memory", lambda: 1_000)
    with pytest.raises(SourceError, match=r"data\.replay\.capacity"):
        train(recipe(), tmp_path / "run")


def test_slots_of_a_recipe_that_do_not_go_together(tmp_path):
    with pytest.raises(RecipeError, match="multiple of environments"):
        override(recipe(), {"data.replay.train_freq": 5})
    with pytest.raises(SourceError, match=r"data\.ops"):
        load(Data(source="gym:Corridor-v0", ops="standardize"))
    with pytest.raises(SourceError, match=r"data\.replay is for environments"):
        load(Data(source="builtin:iris", replay=Replay()))
    for changes, message in (
        ({"model": "mlp"}, "do not go together"),
        ({"loss": "gaussian"}, "one for each action"),
        ({"loss": "cross-entropy"}, "for classification, the data"),
    ):
        with pytest.raises(RecipeError, match=message):
            train(override(recipe(), changes), tmp_path / "run")
    digits = Recipe(name="x", data=Data(source="builtin:digits", ops="flatten"), loss="huber",
                    model="dqn-mlp", algorithm=Algorithm(epochs=1))  # fmt: skip
    with pytest.raises(RecipeError, match="do not go together|is for regression"):
        train(digits, tmp_path / "digits")
    assert environments.seed_of(1, 2) != environments.seed_of(2, 1)
