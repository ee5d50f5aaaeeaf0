"""DQN: classic control, a lander, a small pixel game, Atari.

Changes that show what the parts are for:

    --data.replay.sampling latest           no replay: only steps since the last learning
    --model.target-every 1                  no target network
    --data.replay.sampling prioritized      and what came after the papers of 2013 and 2015:
    --data.replay.n-step 3
    --model.double true
    --model.dueling true

What each contributes, seed by seed, with the returns of all seeds in a picture:

    epochal ablate dqn-pixel-breakout --vary data.replay.sampling=uniform,latest \\
        --vary model.target_every=250,1 --seeds 3

`algorithm.steps` counts training steps: each acts `train_freq` times and learns from `updates`
minibatches.
"""

from __future__ import annotations

from ..recipe import Algorithm, Choice, Data, Recipe, Replay
from . import recipe


@recipe
def dqn_cartpole() -> Recipe:
    """CartPole-v1 in 99,304 steps: a pole is balanced for 500 steps, the most there are.

    2 CPU cores, under a minute. Mean return over 100 episodes: 500 in each of 5 seeds.

        epochal train dqn-cartpole
    """
    return Recipe(
        name="dqn-cartpole",
        data=Data(
            source="gym:CartPole-v1",
            batch_size=64,
            replay=Replay(
                capacity=100_000,
                start=1_000,
                train_freq=256,
                updates=128,
                epsilon_end=0.04,
                epsilon_steps=8_000,
            ),
        ),
        model=Choice(name="dqn-mlp", hidden=[256, 256], target_every=128),
        loss=Choice(name="huber"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.0023), steps=384, steps_per_epoch=16
        ),
    )


@recipe
def dqn_acrobot() -> Recipe:
    """Acrobot-v1 in 100,000 steps: two links are swung up; -100 is usual, the worst is -500.

    2 CPU cores. Not measured; projected: 2 minutes.

        epochal train dqn-acrobot
    """
    return Recipe(
        name="dqn-acrobot",
        data=Data(
            source="gym:Acrobot-v1",
            batch_size=128,
            replay=Replay(
                capacity=50_000,
                start=1_000,
                train_freq=4,
                updates=1,
                epsilon_end=0.1,
                epsilon_steps=12_000,
            ),
        ),
        model=Choice(name="dqn-mlp", hidden=[256, 256], target_every=250),
        loss=Choice(name="huber"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.00063),
            steps=24_750,
            steps_per_epoch=1_250,
            steps_per_execution=25,
        ),
    )


@recipe
def dqn_lunarlander() -> Recipe:
    """LunarLander-v3 in 100,000 steps: land between two flags; 200 is called solved.

    2 CPU cores. Not measured; projected: 4 minutes. Needs the extra rl.

        epochal train dqn-lunarlander
    """
    return Recipe(
        name="dqn-lunarlander",
        data=Data(
            source="gym:LunarLander-v3",
            batch_size=128,
            replay=Replay(
                capacity=50_000,
                start=1_000,
                train_freq=4,
                updates=4,
                epsilon_end=0.1,
                epsilon_steps=12_000,
            ),
        ),
        model=Choice(name="dqn-mlp", hidden=[256, 256], target_every=250),
        loss=Choice(name="huber"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.00063),
            steps=24_750,
            steps_per_epoch=1_250,
            steps_per_execution=25,
        ),
    )


@recipe
def dqn_pixel_breakout() -> Recipe:
    """A 10x10 Breakout of our own from its pixels, in 200,000 steps.

    As in MinAtar, one action in ten is replaced by the one before it: without that the game has two
    starts and no chance, so that a way through it can be learnt by heart.

    2 CPU cores, 3 minutes on one of them, busy. Mean return over 100 episodes, seeds 0 to 9: 10.3,
    with a spread of 3.7 (seeds 0 to 2: 12.6, 5.5, 7.2); without replay 6.9, spread 2.9 (4.8, 4.5,
    8.5); random play (`--data.replay.test-epsilon 1`) 0.5. Without replay is -3.3 [-7.4, 0.7] over
    ten pairs, below in seven of them. Without a target network 5.7, 4.8 and 5.3 in the seeds 0 to
    2: -3.1 [-11.3, 5.0]. Intervals are at 95%, by Student's t.

        epochal train dqn-pixel-breakout
        epochal train dqn-pixel-breakout --data.replay.sampling latest     (no replay)
        epochal train dqn-pixel-breakout --model.target-every 1            (no target network)
    """
    return Recipe(
        name="dqn-pixel-breakout",
        data=Data(
            source="gym:epochal/PixelBreakout-v0",
            batch_size=32,
            replay=Replay(
                capacity=100_000,
                start=5_000,
                train_freq=4,
                updates=1,
                epsilon_end=0.1,
                epsilon_steps=100_000,
                sticky_actions=0.1,
            ),
        ),
        # As Young and Tian 2019, figure 2: one convolution is enough for ten cells.
        model=Choice(name="dqn-nature", convolutions=[[16, 3, 1]], hidden=[128], target_every=250),
        loss=Choice(name="huber"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.00025),
            steps=48_750,
            steps_per_epoch=3_250,
            steps_per_execution=25,
        ),
    )


@recipe
def dqn_pong() -> Recipe:
    """Pong from its pixels; the settings of `dqn-breakout` in a tenth of the time.

    Not measured; projected: 6 hours on 2 CPU cores (its first 20,000 steps take 3 minutes on one).
    Needs the extra rl.

        epochal train dqn-pong
    """
    return _atari(
        "dqn-pong",
        "gym:ALE/Pong-v5",
        capacity=200_000,
        start=20_000,
        epsilon_steps=200_000,
        steps=500_000,
    )


@recipe
def dqn_breakout() -> Recipe:
    """Breakout from its pixels, with the settings of Mnih et al. 2015, extended data table 1.

    For a GPU: not measured; projected: 2 days, and a week on 2 CPU cores. Needs the extra rl, and
    7.5 GB for the memory. Validation plays 20 episodes, the paper's 135,000 steps.

        epochal train dqn-breakout
    """
    return _atari(
        "dqn-breakout",
        "gym:ALE/Breakout-v5",
        capacity=1_000_000,
        start=50_000,
        epsilon_steps=1_000_000,
        steps=12_500_000,
        life_loss=True,
    )


def _atari(name: str, source: str, steps: int, **replay) -> Recipe:
    """All but lengths and sizes as in Mnih et al. 2015; a step is four of the game's frames."""
    return Recipe(
        name=name,
        data=Data(
            source=source,
            batch_size=32,
            replay=Replay(
                train_freq=4,
                updates=1,
                epsilon_end=0.1,
                stack=4,
                clip_reward=True,
                test_epsilon=0.05,
                validation_episodes=20,
                test_episodes=100,
                **replay,
            ),
        ),
        model=Choice(name="dqn-nature", target_every=2_500, reduction="sum"),
        loss=Choice(name="huber"),
        algorithm=Algorithm(
            optimizer=Choice(
                name="rmsprop", learning_rate=0.00025, rho=0.95, epsilon=0.01, centered=True
            ),
            steps=steps,
            steps_per_epoch=12_500,
        ),
    )
