"""Kill -9 at any moment and train again: the very bits of a run that was never killed.

Dropout, augmentation, MixUp, EMA, a schedule and early stopping are on. The kills fall at random
times, in the middle of steps, validations and checkpoint writes; the seed of the times is printed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from epochal.pipelines import checkpoint, run

_TRAIN = """
import sys, numpy as np
from epochal.pipelines import recipe as r
from epochal.pipelines.train import train
recipe = r.Recipe(
    name="resume",
    data=r.Data(source="builtin:digits", batch_size=48, train_examples=600, mixup=0.2,
                ops="standardize|random_crop(8, padding=1)|flip_lr|flatten"),
    model=r.Choice(name="mlp", hidden=[32], dropout=0.3, batch_norm=True),
    loss=r.Choice(name="cross-entropy", label_smoothing=0.1),
    algorithm=r.Algorithm(
        optimizer=r.Choice(name="radam", learning_rate=0.01),
        schedule=r.Choice(name="cosine"),
        epochs=40, ema=0.9, weight_decay=0.01, clip_norm=1.0,
        early_stopping=r.EarlyStopping(monitor="val_accuracy", patience=4, min_delta=0.005),
    ),
    seed=3,
)
train(recipe, sys.argv[1])
"""


def _start(directory: Path, code: str = _TRAIN) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # With TensorFlow's own number of threads, not the one that the tests set.
        env={k: v for k, v in os.environ.items() if not k.startswith("TF_NUM_")},
    )


def _wait(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-2000:]


def _kill_randomly(directory: Path, kills: int, seconds: float, rng: random.Random) -> int:
    """Starts again and again; kills after the first epoch of each life, at a random moment."""
    done = 0
    for _ in range(kills):
        process = _start(directory)
        latest = directory / "checkpoints" / "latest.npz"
        before = latest.stat().st_mtime_ns if latest.exists() else None
        while process.poll() is None:  # kills during start-up would only test start-up
            if latest.exists() and latest.stat().st_mtime_ns != before:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, seconds))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            done += 1
        process.communicate()
        if (directory / "metrics.json").exists():
            break
    return done


def _same(one: Path, other: Path) -> None:
    a, b = run.Run(one), run.Run(other)
    assert a.history == b.history
    assert a.metrics["stop_reason"] == b.metrics["stop_reason"]
    assert a.metrics["test"] == b.metrics["test"]
    for x, y in zip(a.model.get_weights(), b.model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    states = [checkpoint.load_checkpoint(p / "checkpoints" / "latest.npz") for p in (one, other)]
    for x, y in zip(states[0][0], states[1][0], strict=True):
        np.testing.assert_array_equal(x, y)
    assert states[0][1]["callbacks"] == states[1][1]["callbacks"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, float]:
    directory = tmp_path_factory.mktemp("whole") / "run"
    _wait(_start(directory))
    finished = run.Run(directory)
    assert finished.metrics["stop_reason"].startswith("early stopping"), finished.metrics
    return directory, finished.metrics["wall_seconds"]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_and_resumed_run_is_bit_equal(kills, uninterrupted, tmp_path):
    whole, seconds = uninterrupted
    seed = random.randrange(1_000_000)
    print("seed of the kills:", seed)
    directory = tmp_path / "killed"
    killed = _kill_randomly(directory, kills, 2 * seconds / kills, random.Random(seed))
    assert killed >= 1
    _wait(_start(directory))
    _same(whole, directory)


@pytest.mark.parametrize(
    "moment", ["before the rename", pytest.param("after the last rename", marks=pytest.mark.slow)]
)
def test_kill_while_a_checkpoint_is_written(moment, uninterrupted, tmp_path):
    """Before the rename the checkpoint before it counts; after it history.csv is a row behind."""
    whole, _ = uninterrupted
    epochs = len(run.Run(whole).history)
    directory = tmp_path / "killed"
    after = moment.startswith("after")
    stop = _TRAIN.replace(
        "train(recipe, sys.argv[1])",
        f"""
import os
rename, count = os.replace, [0]
def dying(source, target):
    last = str(target).endswith("latest.npz")
    count[0] += last
    if last and count[0] == {epochs if after else 4}:
        if {after}:
            rename(source, target)
        os.kill(os.getpid(), 9)
    rename(source, target)
os.replace = dying
train(recipe, sys.argv[1])
""",
    )
    process = _start(directory, stop)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    checkpoints = directory / "checkpoints"
    saved = checkpoint.load_checkpoint(checkpoints / "latest.npz")[1]["history"]
    assert len(saved) == (epochs if after else 3)
    assert any(".tmp." in p.name for p in checkpoints.iterdir()) is not after
    _wait(_start(directory))
    _same(whole, directory)
    assert not [p for p in checkpoints.iterdir() if ".tmp." in p.name]
