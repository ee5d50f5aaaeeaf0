"""Acting and learning: ours, and stable-baselines3's DQN with the same settings.

Both sides clip gradients to a norm of 10, copy the target network after as many steps, and learn
from as many minibatches. stable-baselines3 counts both in steps of the environment, ours copies
after gradient steps.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from .nets import clock, need

_EPSILON, _CLIP, _RATE = 0.1, 10.0, 0.001
_ATARI = "ALE/Pong-v5"


def dqn(
    side: str, *, quick: bool, hidden: int, batch: int, every: int, between: int, threads: int
) -> dict[str, Any]:
    """Steps in CartPole with one minibatch in ``every`` of them, after a warm-up.

    Args:
        side: "ours" or "stable-baselines3".
        quick: fewer steps.
        hidden: width of both hidden layers.
        batch: steps of a minibatch.
        every: environment steps a minibatch.
        between: environment steps that are acted before their minibatches are learnt from.
        threads: of TensorFlow or PyTorch.
    """
    steps, epochs = (1_024, 2) if quick else (4_096, 4)
    settings = {"batch": batch, "every": every, "between": between, "copy": 256, "start": 1_024}
    run = _ours if side == "ours" else _peer
    seconds = run("CartPole-v1", [hidden, hidden], threads, steps, epochs, **settings)
    return {"rate": steps / seconds, "unit": "environment steps/s"}


def dqn_atari(side: str, *, quick: bool, threads: int) -> dict[str, Any]:
    """Steps in Pong from its pixels: the Nature net, a minibatch of 32 in 4 steps (of 4 frames).

    Both sides have 30 idle steps at most at the start, the brighter of the last two frames, 84x84
    pixels of grey by OpenCV, 4 frames, rewards by their sign.

    Args:
        side: "ours" or "stable-baselines3".
        quick: fewer steps.
        threads: of TensorFlow or PyTorch.
    """
    need("ale_py")
    steps, epochs = (64, 2) if quick else (256, 4)
    settings = {"batch": 32, "every": 4, "between": 4, "copy": 1_000, "start": 256}
    run = _ours if side == "ours" else _peer
    seconds = run(_ATARI, None, threads, steps, epochs, **settings)
    return {"rate": steps / seconds, "unit": "environment steps/s"}


def _ours(name, hidden, threads, steps, epochs, *, batch, every, between, copy, start) -> float:
    """Seconds of an epoch; ``hidden`` None: the Nature net on frames of Atari."""
    import tensorflow as tf

    from .. import choices
    from .. import recipe as r
    from ..data import load
    from ..plan import build_optimizer

    with contextlib.suppress(RuntimeError):  # TensorFlow is already running: in tests
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    net = {"name": "dqn-nature"} if hidden is None else {"name": "dqn-mlp", "hidden": hidden}
    frames = {"stack": 4, "clip_reward": True} if hidden is None else {}
    elements = steps // between
    recipe = r.Recipe(
        name="bench",
        data=r.Data(
            source=f"gym:{name}",
            batch_size=batch,
            replay=r.Replay(
                capacity=10_000,
                start=start,
                train_freq=between,
                updates=between // every,
                epsilon_start=_EPSILON,
                epsilon_end=_EPSILON,
                **frames,
            ),
        ),
        model=r.Choice(**net, target_every=copy // every),
        loss=r.Choice(name="huber"),
        algorithm=r.Algorithm(
            optimizer=r.Choice(name="adam", learning_rate=_RATE),
            clip_norm=_CLIP,
            epochs=epochs + 1,
            steps_per_epoch=elements,
        ),
    )
    dataset = load(recipe.data)
    loss = choices.build_loss(recipe.loss)
    model = choices.build_model(recipe, dataset, loss)
    model.compile(build_optimizer(recipe, elements * (epochs + 1)), loss)
    callback, seconds = clock()
    with tempfile.TemporaryDirectory() as place:
        actor = dataset.attach(model, Path(place), elements, epochs + 1)
        model.fit(
            dataset.train(0), epochs=epochs + 1, steps_per_epoch=elements, verbose=0,
            shuffle=False, callbacks=[callback, actor],
        )  # fmt: skip
    return statistics.median(seconds[1:])


def _peer(name, hidden, threads, steps, epochs, *, batch, every, between, copy, start) -> float:
    """Seconds that ``steps`` take, on average."""
    need("torch").set_num_threads(threads)
    sb3 = need("stable_baselines3")
    model = sb3.DQN(
        "CnnPolicy" if hidden is None else "MlpPolicy",
        _frames(name) if hidden is None else name,
        learning_rate=_RATE,
        buffer_size=10_000,
        learning_starts=start,
        batch_size=batch,
        train_freq=between,
        gradient_steps=between // every,
        target_update_interval=copy,
        exploration_initial_eps=_EPSILON,
        exploration_final_eps=_EPSILON,
        max_grad_norm=_CLIP,
        policy_kwargs=None if hidden is None else {"net_arch": hidden},
        device="cpu",
        seed=0,
    )
    model.learn(start + steps)
    began = time.perf_counter()
    model.learn(epochs * steps, reset_num_timesteps=False)
    return (time.perf_counter() - began) / epochs


def _frames(name: str):
    """An Atari game as stable-baselines3 has it, with the settings that ours has."""
    import gymnasium

    gymnasium.register_envs(need("ale_py"))
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    single = make_atari_env(
        name,
        seed=0,
        wrapper_kwargs={"terminal_on_life_loss": False},
        env_kwargs={"frameskip": 1, "repeat_action_probability": 0.0},
    )
    return VecFrameStack(single, n_stack=4)
