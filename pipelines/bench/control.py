"""Acting and learning on CartPole: ours, and stable-baselines3's DQN with the same settings."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from .nets import clock, need

_START, _EPSILON, _BLOCK = 1_000, 0.1, 256


def dqn(
    side: str, *, quick: bool, hidden: int, batch: int, every: int, block: bool, threads: int
) -> dict[str, Any]:
    """Steps in the environment with one minibatch in ``every`` of them, after a warm-up.

    Ours acts 256 steps and then learns from as many minibatches as belong to them. With ``block``
    the peer does so too; else it learns after every few steps, as its users have it: it does not
    gain from blocks of single minibatches.

    Args:
        side: "ours" or "stable-baselines3".
        quick: fewer steps.
        hidden: width of both hidden layers.
        batch: steps of a minibatch.
        every: environment steps a minibatch.
        block: whether the peer learns in blocks of 256 steps.
        threads: of TensorFlow or PyTorch.
    """
    blocks, epochs = (4, 2) if quick else (16, 4)
    run = _ours if side == "ours" else _peer
    seconds = run(hidden, batch, every, block, threads, blocks, epochs)
    return {"rate": blocks * _BLOCK / seconds, "unit": "environment steps/s"}


def _ours(hidden, batch, every, block, threads, blocks, epochs) -> float:
    import tensorflow as tf

    from .. import choices
    from .. import recipe as r
    from ..data import load
    from ..train import build_optimizer

    with contextlib.suppress(RuntimeError):  # TensorFlow is already running: in tests
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    updates = _BLOCK // every
    recipe = r.Recipe(
        name="bench",
        data=r.Data(
            source="gym:CartPole-v1",
            batch_size=batch,
            replay=r.Replay(
                start=_START,
                train_freq=_BLOCK,
                updates=updates,
                epsilon_start=_EPSILON,
                epsilon_end=_EPSILON,
            ),
        ),
        model=r.Choice(name="dqn-mlp", hidden=[hidden, hidden], target_every=updates),
        loss=r.Choice(name="huber"),
        algorithm=r.Algorithm(epochs=epochs + 1, steps_per_epoch=blocks),
    )
    dataset = load(recipe.data)
    loss = choices.build_loss(recipe.loss)
    model = choices.build_model(recipe, dataset, loss)
    model.compile(build_optimizer(recipe, blocks * epochs), loss)
    callback, seconds = clock()
    with tempfile.TemporaryDirectory() as place:
        actor = dataset.attach(model, Path(place), blocks, epochs + 1)
        model.fit(
            dataset.train(0), epochs=epochs + 1, steps_per_epoch=blocks, verbose=0, shuffle=False,
            callbacks=[callback, actor],
        )  # fmt: skip
    return statistics.median(seconds[1:])


def _peer(hidden, batch, every, block, threads, blocks, epochs) -> float:
    need("torch").set_num_threads(threads)
    model = need("stable_baselines3").DQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=0.001,
        buffer_size=50_000,
        learning_starts=_START,
        batch_size=batch,
        train_freq=_BLOCK if block else every,
        gradient_steps=_BLOCK // every if block else 1,
        target_update_interval=_BLOCK,
        exploration_initial_eps=_EPSILON,
        exploration_final_eps=_EPSILON,
        policy_kwargs={"net_arch": [hidden, hidden]},
        device="cpu",
        seed=0,
    )
    model.learn(_START + blocks * _BLOCK)
    began = time.perf_counter()
    model.learn(epochs * blocks * _BLOCK, reset_num_timesteps=False)
    return (time.perf_counter() - began) / epochs
