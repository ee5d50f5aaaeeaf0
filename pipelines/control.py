"""How well an agent plays, and what it looks like.

=================== ============================================================================
``return``          mean over episodes of the sum of rewards, as the environment gives them
``episode_length``  mean number of the agent's steps
``human_score``     (return - random play) / (human - random play), in percent, for the Atari games
                    of :data:`HUMAN` (Mnih et al. 2015, extended data table 2)
=================== ============================================================================

The episodes of validation, by which the best epoch is found, and those of the test begin with
resets of their own, the same for every run. Random actions: ``data.replay.test_epsilon``.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

from .canvas import BLUE, ORANGE, STYLE, new_figure, save
from .data.environments import seed_of
from .data.source import SourceError
from .intervals import intervals
from .run import RunError, write_atomic

log = logging.getLogger(__name__)

HUMAN = {"Breakout": (1.7, 31.8), "Pong": (-20.7, 9.3)}
"""Game -> what random play and a human tester score."""
_FRAMES = 600  # of a picture that moves
_SHOWN = 20  # milliseconds a frame, at least: what programs can show
_FRAME_TIME = 1 / 30  # seconds, where an environment does not say


def measure(model, dataset, split: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Plays the episodes of a split.

    Args:
        model: a DQN.
        dataset: a :class:`.data.control.ControlDataset`.
        split: "validation" or "test".

    Returns:
        ({"split", "examples": episodes, "metrics": {name: {"value", "low", "high"}}}, {"return"
        float32 [n], "length" int64 [n]}).

    Raises:
        RunError: another split.
    """
    if split not in ("validation", "test"):
        raise RunError(
            f"{dataset.name} has episodes to validate and to test, and none of the split {split!r}."
        )
    found = dataset.episodes(model, split)
    returns, lengths = (found[name].astype(np.float64) for name in ("return", "length"))
    human = HUMAN.get(dataset.name.removeprefix("ALE/").partition("-")[0])

    def statistic(index: np.ndarray) -> dict[str, np.ndarray]:
        mean = returns[index].mean(axis=-1)
        values = {"return": mean, "episode_length": lengths[index].mean(axis=-1)}
        if human is not None and dataset.name.startswith("ALE/"):
            low, high = human
            values["human_score"] = 100 * (mean - low) / (high - low)
        return values

    metrics = intervals(statistic, len(returns))
    return {"split": split, "examples": len(returns), "metrics": metrics}, found


def report(found: dict[str, np.ndarray], directory: Path) -> None:
    """Draws the returns of single episodes: returns.png."""
    returns = np.sort(found["return"])
    figure = new_figure(5.2, 3.4)
    with mpl.rc_context(STYLE):
        axes = figure.add_subplot()
        axes.bar(np.arange(1, len(returns) + 1), returns, width=1.0, color=BLUE)
        axes.axhline(returns.mean(), color=ORANGE)
        axes.set(xlabel="episodes, from the worst to the best", ylabel="sum of rewards")
        axes.set_title(f"{returns.mean():.4g} on average, {np.median(returns):.4g} in the middle")
        save(figure, directory / "returns.png")


def video(model, dataset, path: Path) -> None:
    """Plays the first episode of the test, always the best action, into a GIF.

    Args:
        model, dataset: as for :func:`measure`.
        path: the GIF to write; up to 600 frames.

    Raises:
        RunError: the environment draws no pictures, or lacks a package to do so.
    """
    try:
        player = dataset.new_player(render=True)
        values = model.snapshot()
        player.reset(seed_of(*dataset.keys("test")[0]))
        frames = []
        while not player.over and len(frames) < _FRAMES:
            frames.append(Image.fromarray(player.environment.render()))
            player.step(int(np.argmax(values(player.observation[None])[0])))
    except (SourceError, ImportError, AttributeError, TypeError) as error:
        raise RunError(f"No pictures of {dataset.name}: {error}") from None
    except Exception as error:  # gymnasium's own, which can't be named where it isn't installed
        if type(error).__module__.partition(".")[0] != "gymnasium":
            raise
        raise RunError(f"No pictures of {dataset.name}: {error}") from None
    rate = player.environment.metadata.get("render_fps") or 1 / _FRAME_TIME
    blob = io.BytesIO()
    frames[0].save(
        blob,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=max(_SHOWN, round(1000 / rate)),
        loop=0,
    )
    write_atomic(path, blob.getvalue())
